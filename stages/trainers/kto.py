"""Trains a policy with TRL's KTOTrainer on labelled responses; policy and reference are the parent."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from trl.trainer.kto_config import KTOConfig as TRLKTOConfig
from trl.trainer.kto_trainer import KTOTrainer

from pipeline.contract import StageContext, StageResult
from pipeline.errors import DataError, ModelError
from reward.metrics import precision_recall_f1, roc_auc
from reward.preferences.split import split_groups
from stages.kto import KTOConfig
from stages.labelled import Labelled, labelled_findings, read_labelled
from stages.runtime.loading import position_findings, vocabulary_findings
from stages.runtime.modes import evaluating
from stages.runtime.switch import AdapterSwitch
from stages.runtime.text.chat import ChatText
from stages.trainers.order import order, total_steps
from stages.trainers.pair_model import open_parent
from stages.trainers.trl_arguments import shared_arguments
from stages.trainers.trl_policy import (
    POLICY,
    REFERENCE,
    PolicyCheckpoints,
    policy_result,
    train_policy,
    with_parent,
)

TOKENS_FILE = "num_tokens.txt"


@dataclass(frozen=True, slots=True)
class LabelledIds:
    """A labelled response as token ids."""

    prompt: list[int]
    response: list[int]
    label: bool


class LabelledTrainer(PolicyCheckpoints, KTOTrainer):
    """TRL's trainer on rows that are already token ids; its count of tokens goes on after a resume."""

    _total_train_tokens: int

    def _prepare_dataset(self, dataset: Dataset, *_arguments: Any, **_options: Any) -> Dataset:
        return dataset

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        (Path(str(output_dir)) / TOKENS_FILE).write_text(str(self._total_train_tokens), encoding="utf-8")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        written = (Path(resume_from_checkpoint) / TOKENS_FILE).read_text(encoding="utf-8")
        self._total_train_tokens = int(written)


def train_kto(ctx: StageContext) -> StageResult:
    """Run the KTO stage: read, prove, train, measure, write.

    Raises:
        DataError: too many unusable rows, or no two labels left.
        HandOverError: the policy is not the parent, or the reference is not the policy.
        Interrupted: the stage was asked to stop; the last checkpoint is sealed.
    """
    config: KTOConfig = ctx.config
    parent = open_parent(ctx, name=POLICY)
    rows, held_out, counts = _rows(ctx, config, parent.chat)
    train = [rows[number] for number in order(config.seed, 0, len(rows))]
    longest = max(len(row.prompt) + len(row.response) for row in (*train, *held_out))
    unfit = [*vocabulary_findings(parent.tokenizer, parent.model), *position_findings(parent.model, longest)]
    if unfit:
        raise ModelError.from_findings(unfit)
    trainer = with_parent(
        parent.model,
        lambda: LabelledTrainer(
            parent.model,
            args=_arguments(config, len(train), ctx),
            train_dataset=dataset_of(train),
            processing_class=parent.tokenizer,
        ),
    )
    proof, damages = train_policy(trainer, ctx, text="kto", has_reference=True)
    measured = measure(trainer, held_out, config)
    if measured:
        ctx.logger.log(measured, step=trainer.state.global_step)
    return policy_result(trainer, ctx, proof, {**measured, **counts}, damages)


def dataset_of(rows: Sequence[LabelledIds]) -> Dataset:
    """Return TRL's columns. The KL term reads each prompt with the response of another prompt before it."""
    return Dataset.from_dict(
        {
            "prompt_ids": [row.prompt for row in rows],
            "completion_ids": [row.response for row in rows],
            "KL_completion_ids": [_mismatched(rows, number) for number in range(len(rows))],
            "label": [row.label for row in rows],
        }
    )


def measure(trainer: Any, rows: Sequence[LabelledIds], config: KTOConfig) -> dict[str, float]:
    """Return how well the implied reward, beta * log ratio, tells good from bad held-out responses.

    A response counts as called good when its reward is above 0.
    """
    if not rows:
        return {}
    rewards = config.beta * (logps(trainer, rows, POLICY) - logps(trainer, rows, REFERENCE))
    labels = np.array([row.label for row in rows])
    values = rewards.double().numpy()
    precision, recall, f1 = precision_recall_f1(labels, values > 0)
    found = {
        "eval_precision": precision,
        "eval_recall": recall,
        "eval_f1": f1,
        "eval_auc": roc_auc(values[labels], values[~labels]),
    }
    sides = {"chosen": values[labels], "rejected": values[~labels]}
    found |= {f"eval_rewards/{name}": float(side.mean()) for name, side in sides.items() if len(side)}
    return found


@torch.no_grad()
def logps(trainer: Any, rows: Sequence[LabelledIds], adapter: str) -> Tensor:
    """Return the summed log-probability of each response under an adapter, (rows,), on the CPU."""
    model, size = trainer.model, trainer.args.per_device_train_batch_size
    found = []
    with evaluating(model), AdapterSwitch(model).on(adapter), trainer.accelerator.autocast():
        for start in range(0, len(rows), size):
            part = [
                {"prompt_ids": row.prompt, "completion_ids": row.response, "label": row.label}
                for row in rows[start : start + size]
            ]
            batch = {name: value.to(model.device) for name, value in trainer.data_collator(part).items()}
            labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
            output = model(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                labels=labels,
                fused_lm_head=True,
            )
            found.append(output.log_probs.sum(-1).float().cpu())
    return torch.cat(found)


def _rows(
    ctx: StageContext, config: KTOConfig, chat: ChatText
) -> tuple[list[LabelledIds], list[LabelledIds], dict[str, float]]:
    """Read, split by prompt and tokenise; long and unwritable responses are counted."""
    source, mapping = ctx.inputs["preferences"], ctx.inputs.get("mapping")
    found = read_labelled(source.path, mapping=mapping.path if mapping else None)
    findings = labelled_findings(found, max_rejected_share=config.max_rejected_share)
    if findings:
        raise DataError.from_findings(findings)
    encoded = [_encoded(row, chat) for row in found.rows]
    sides = split_groups(found.rows, config.eval_share, config.seed)
    fits = [row is not None and len(row.prompt) + len(row.response) <= config.max_length for row in encoded]
    train, held_out = ([row for n in side if fits[n] and (row := encoded[n]) is not None] for side in sides)
    if {row.label for row in train} != {True, False}:
        raise DataError(
            "no good and bad response is left to train on",
            where=str(source.path),
            hint=f"a larger max_length than {config.max_length}, or more rows",
            code="no-labels",
        )
    unwritable = sum(row is None for row in encoded)
    counts = {
        "num_train_rows": float(len(train)),
        "num_eval_rows": float(len(held_out)),
        "num_rejected": float(len(found.pairs.rejects)),
        "num_unwritable": float(unwritable),
        "num_too_long": float(fits.count(False) - unwritable),
    }
    return train, held_out, counts


def _encoded(row: Labelled, chat: ChatText) -> LabelledIds | None:
    try:
        response = chat.response_ids(row.prompt, row.response)
        return LabelledIds(chat.prompt_ids(row.prompt), response, row.label)
    except DataError:
        return None


def _mismatched(rows: Sequence[LabelledIds], number: int) -> list[int]:
    """Return the response of the nearest row before that has another prompt, else of the row before."""
    for back in range(1, len(rows)):
        if rows[number - back].prompt != rows[number].prompt:
            return rows[number - back].response
    return rows[number - 1].response


def _arguments(config: KTOConfig, num_rows: int, ctx: StageContext) -> TRLKTOConfig:
    shared = shared_arguments(config, steps=total_steps(config, num_rows), folder=ctx.scratch_dir / "trainer")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is deprecated and will be removed in v6")
        return TRLKTOConfig(
            **shared,
            loss_type=config.loss_type,
            beta=config.beta,
            desirable_weight=config.desirable_weight,
            undesirable_weight=config.undesirable_weight,
            max_length=config.max_length,
            router_aux_loss_coef=0.0,
            precompute_ref_log_probs=False,
            sync_ref_model=False,
            disable_dropout=True,
            activation_offloading=False,
            pad_to_multiple_of=None,
            dataloader_drop_last=False,
            # The KL term belongs to the rows as they stand, so they are shuffled once, by train_kto.
            train_sampling_strategy="sequential",
        )
