"""What KTO, GRPO and RLOO share: the parent as TRL's policy and reference, proofs, and checkpoints of it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import PeftModel
from safetensors.torch import load_file

from pipeline.contract import StageContext, StageResult
from pipeline.errors import HandOverError
from stages.runtime.adapter_folder import write_tensors
from stages.runtime.adapters import named_adapter_parameters, save_adapter, stored_key
from stages.runtime.computing import computing_of
from stages.runtime.folders import ADAPTER_WEIGHTS_FILE
from stages.runtime.handover import HandOver, prove_hand_over
from stages.runtime.saving.seal import train_sealed

LOGGER = logging.getLogger(__name__)

POLICY, REFERENCE = "default", "ref"
"The names by which TRL knows the adapter it trains and the frozen copy that it compares with."
TrainerT = TypeVar("TrainerT")


class PolicyCheckpoints:
    """Part of a TRL trainer: its checkpoints hold the policy's adapter alone, and nothing is sent anywhere.

    transformers would also write the reference and the reward adapter, and load all of them trainable.
    """

    model: PeftModel

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        tensors = {
            stored_key(name, POLICY): value for name, value in named_adapter_parameters(self.model, POLICY)
        }
        folder = Path(str(output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / ADAPTER_WEIGHTS_FILE, tensors)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        held = load_file(Path(resume_from_checkpoint) / ADAPTER_WEIGHTS_FILE)
        with torch.no_grad():
            for name, parameter in named_adapter_parameters(self.model, POLICY):
                parameter.copy_(held[stored_key(name, POLICY)])

    def create_model_card(self, *_arguments: Any, **_options: Any) -> None:
        """Write none: it would hold paths of this machine."""

    def _send_telemetry(self) -> None:
        """Send nothing."""


def with_parent(model: PeftModel, make: Callable[[], TrainerT]) -> TrainerT:
    """Build a TRL trainer on a model that carries the parent as POLICY, and leave its weights as they are.

    TRL rounds the adapters of a 4-bit base to bfloat16 and copies them for its reference: what it was
    given is put back into both, and what was trainable before is trainable, nothing else.
    """
    policy = named_adapter_parameters(model, POLICY)
    given = {name: parameter.detach().clone() for name, parameter in policy}
    learns = {name: parameter.requires_grad for name, parameter in policy}
    trainer = make()
    for name, parameter in named_adapter_parameters(model, POLICY):
        parameter.data = given[name].clone()
        parameter.requires_grad_(learns[name])
    for name, parameter in named_adapter_parameters(model, REFERENCE):
        parameter.data = given[name.replace(f".{REFERENCE}.", f".{POLICY}.")].clone()
        parameter.requires_grad_(False)
    return trainer


def train_policy(
    trainer: Any, ctx: StageContext, *, text: str, has_reference: bool
) -> tuple[HandOver, tuple[str, ...]]:
    """Prove where the policy starts, then train it from its newest sealed checkpoint to the last step.

    Returns:
        What was proven, and damaged checkpoints that were passed over.

    Raises:
        HandOverError: the policy is not the parent, the reference is not the policy, or nothing was learned.
        Interrupted: the stage was asked to stop; the last checkpoint is sealed.
    """
    model, parent = trainer.model, ctx.inputs["policy"]
    proof = prove_hand_over(
        model,
        parent,
        policy=POLICY,
        reference=REFERENCE if has_reference else None,
        has_reference=has_reference,
    )
    start = [parameter.detach().clone() for _, parameter in named_adapter_parameters(model, POLICY)]
    found = train_sealed(trainer, ctx, text=text)
    learned = named_adapter_parameters(model, POLICY)
    if all(torch.equal(before, after) for before, (_, after) in zip(start, learned, strict=True)):
        raise HandOverError(
            "the adapter learned nothing: its weights are those of its parent",
            where=ctx.name,
            hint="a larger learning_rate, more steps, or a reward that differs between responses",
            code="nothing-learned",
        )
    return proof, tuple(str(damage) for damage in found.damages)


def policy_result(
    trainer: Any, ctx: StageContext, proof: HandOver, metrics: dict[str, float], notes: tuple[str, ...]
) -> StageResult:
    """Write the trained adapter and say how the training ended."""
    folder = save_adapter(
        trainer.model,
        ctx.output_dir / "adapter",
        name=POLICY,
        base=ctx.inputs["base"],
        tokenizer=trainer.processing_class,
    )
    last = last_values(trainer.state.log_history)
    config = ctx.config
    computing = computing_of(trainer.model, config.model, config.tuning, autocast=True)
    found = {**last, **proof.metrics(), **metrics}
    return StageResult({"adapter": folder}, found, notes, computing=computing)


def last_values(history: list[dict[str, Any]]) -> dict[str, float]:
    """Return the newest value of every metric of a trainer's log, runtimes and step counts left out."""
    found: dict[str, float] = {}
    for line in history:
        found |= {
            name: float(value)
            for name, value in line.items()
            if isinstance(value, int | float)
            and name not in ("epoch", "step", "total_flos")
            and not name.startswith("train_")
        }
    return found
