"""TRL's SFTTrainer with our ids, our compact head and rows that are laid end to end."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from pipeline.errors import StageFailed
from stages.runtime.adapter_folder import write_tensors
from stages.runtime.ranks import ONE, Ranks
from stages.runtime.trained_head import Head
from stages.sft import SftConfig
from stages.trainers.early_stopping import EarlyStopping
from stages.trainers.order import total_steps
from stages.trainers.sft_layout import AnswerLogprobs, Layout, answer_logprobs, joined_inputs
from stages.trainers.sft_ranks import RankBatches, RankLoader, Share
from stages.trainers.sft_rows import IGNORED, TokenRow
from stages.trainers.trl_arguments import shared_arguments

TOTALS_FILE = "totals.json"
EARLY_FILE, BEST_FILE = "early_stopping.json", "best.safetensors"


@dataclass(slots=True)
class Totals:
    """Sums over a whole training; they go on after a resume, unlike the trainer's own."""

    loss: float = 0.0
    "Negative log-probability of answer tokens, nats."
    answer_tokens: int = 0
    hits: int = 0
    "Answer tokens that were the likeliest."
    tokens: int = 0
    "Tokens computed, prompts included, padding not."

    def metrics(self) -> dict[str, float]:
        """Return the final metrics of the training."""
        answers = max(1, self.answer_tokens)
        return {
            "train_loss": self.loss / answers,
            "mean_token_accuracy": self.hits / answers,
            "num_tokens": float(self.tokens),
        }


class AnswerTrainer(SFTTrainer):
    """Computes the loss of answer tokens without a (tokens, vocabulary) tensor.

    loss = - sum over the step's answer tokens of log p(token | what stands before it) / their number
    """

    # The loss below is divided by the tokens of the whole optimizer step, not of the micro-batch.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: PeftModel,
        args: SFTConfig,
        *,
        head: Head | None,
        share: Share | None = None,
        ranks: Ranks = ONE,
        **others: Any,
    ) -> None:
        # TRL rounds the adapters of a 4-bit base to bfloat16: the parent's weights, and AdamW's small
        # steps, would be lost. What it was given is put back.
        given = [(parameter, parameter.data) for parameter in model.parameters() if parameter.requires_grad]
        settings = model.config.get_text_config()
        balance = getattr(settings, "router_aux_loss_coef", None)
        if ranks.place.in_parts:
            from stages.runtime.parts import leave_to_their_ranks

            leave_to_their_ranks(model)
        super().__init__(model=model, args=args, **others)
        if balance is not None:
            # TRL writes its own coefficient into the config, which a whole model would be published with.
            settings.router_aux_loss_coef = balance
        for parameter, values in given:
            parameter.data = values
        self.head, self._share, self.ranks = head, share, ranks
        self.totals = Totals()
        self.early: EarlyStopping | None = None
        "Goes into every checkpoint."
        self.model_accepts_loss_kwargs = True

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the loss of one micro-batch, weighted by its share of the step's answer tokens."""
        # A load-balancing loss needs TRL's own forward.
        if self.aux_loss_enabled or return_outputs:
            if "lengths" in inputs:
                inputs = {**inputs, **joined_inputs(inputs.pop("lengths"))}
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        idle = self.ranks.count > 1 and bool((inputs["labels"] == IGNORED).all())
        if idle and not self.ranks.place.in_parts:
            self._count(None, inputs)
            return 0.0 * next(value for value in self.model.parameters() if value.requires_grad).sum()
        # The trainer gives autocast to model.forward alone, which is not what runs here. Of several ranks
        # each runs the plain model: their gradients are added in training_step.
        with self.accelerator.autocast():
            answer = answer_logprobs(self.model, self.head, inputs)
        self._count(None if idle else answer, inputs)
        loss = -answer.logprobs.sum() / (num_items_in_batch or max(1, answer.num_tokens))
        if not math.isfinite(float(loss.detach())):
            raise StageFailed(
                f"the loss is {float(loss.detach())} at step {self.state.global_step + 1}",
                hint=f"a learning_rate below {self.args.learning_rate:g}, or look for broken rows",
                code="non-finite-loss",
            )
        return loss

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Run one micro-batch; after the last one of a step, add the gradients of all ranks."""
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        if self.ranks.count == 1:
            return loss
        if self.accelerator.sync_gradients:
            self.ranks.add_gradients([value for value in self.model.parameters() if value.requires_grad], 0.0)
        # The trainer logs the mean over ranks; what they hold are parts of a sum.
        return loss * self.ranks.count

    def get_train_dataloader(self) -> Any:
        """Return the micro-batches of this rank; in one process the trainer's own."""
        if self.ranks.count == 1 or self._share is None:
            return super().get_train_dataloader()
        seed = int(self.args.data_seed)
        batches = RankBatches(len(self.train_dataset), self._share, self.ranks, seed=seed)
        return RankLoader.of(self.train_dataset, batches, self.data_collator)

    def _count(self, answer: AnswerLogprobs | None, inputs: Mapping[str, Tensor]) -> None:
        """Add up the micro-batches that all ranks just ran; None is one that counts for nothing."""
        mask = inputs.get("attention_mask")
        computed = inputs["input_ids"].numel() if mask is None else int(mask.sum())
        for counted in self.ranks.gathered(None if answer is None else _Counted.of(answer, computed)):
            if counted is None:
                continue
            totals, count = self.totals, max(1, counted.answer_tokens)
            totals.loss += counted.loss
            totals.answer_tokens += counted.answer_tokens
            totals.hits += counted.hits
            totals.tokens += counted.tokens
            lines = self._metrics["train"]
            lines["mean_token_accuracy"].append(counted.hits / count)
            lines["entropy"].append(counted.entropy / count)
            lines["num_tokens"] = [totals.tokens]

    def create_model_card(self, *_arguments: Any, **_options: Any) -> None:
        """Write none: it would hold paths of this machine."""

    def _send_telemetry(self) -> None:
        """Send nothing."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        # A checkpoint is sealed once every rank has written its random state into it.
        self.ranks.prove_equal([value for value in self.model.parameters() if value.requires_grad])
        if not self.ranks.is_main:
            return
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        (folder / TOTALS_FILE).write_text(json.dumps(asdict(self.totals)), encoding="utf-8")
        if self.early:
            (folder / EARLY_FILE).write_text(json.dumps(self.early.state()), encoding="utf-8")
            write_tensors(folder / BEST_FILE, self.early.tensors())

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        frozen = [value for value in self.model.parameters() if not value.requires_grad]
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        # peft lets every weight of a loaded adapter learn again, also what the tuning froze.
        for value in frozen:
            value.requires_grad_(False)
        held = json.loads((Path(resume_from_checkpoint) / TOTALS_FILE).read_text(encoding="utf-8"))
        self.totals = Totals(**held)
        if self.early:
            state = json.loads((Path(resume_from_checkpoint) / EARLY_FILE).read_text(encoding="utf-8"))
            self.early.restore(load_file(Path(resume_from_checkpoint) / BEST_FILE), state)


@dataclass(frozen=True, slots=True)
class _Counted:
    """Sums over one micro-batch."""

    loss: float
    answer_tokens: int
    hits: int
    tokens: int
    entropy: float

    @classmethod
    def of(cls, answer: AnswerLogprobs, computed: int) -> _Counted:
        loss = -float(answer.logprobs.detach().sum())
        hits, entropy = int(answer.hits.sum()), float(answer.entropies.sum())
        return cls(loss, answer.num_tokens, hits, computed, entropy)


def make_trainer(
    model: PeftModel,
    rows: Sequence[TokenRow],
    config: SftConfig,
    layout: Layout,
    tokenizer: PreTrainedTokenizerBase,
    *,
    folder: Path,
    ranks: Ranks = ONE,
) -> AnswerTrainer:
    """Build the trainer of a model that already carries its trainable adapter."""
    share = Share.of(config, ranks.count)
    data = Dataset.from_dict(
        {"input_ids": [row.input_ids for row in rows], "labels": [row.labels for row in rows]}
    )
    return AnswerTrainer(
        model,
        trainer_arguments(config, num_rows=len(rows), folder=folder, share=share),
        head=layout.head,
        share=share,
        ranks=ranks,
        data_collator=layout.collator,
        train_dataset=data,
        processing_class=tokenizer,
    )


def trainer_arguments(
    config: SftConfig, *, num_rows: int, folder: Path, share: Share | None = None
) -> SFTConfig:
    """Return TRL's arguments. The rows are ours: ids, labels and layout are not touched."""
    shared = shared_arguments(config, steps=total_steps(config, num_rows), folder=folder)
    if share is not None:
        shared["per_device_train_batch_size"] = share.micro_batch
        shared["gradient_accumulation_steps"] = share.micro_batches
    with warnings.catch_warnings():
        # TRL 1.16 itself still sets the older names of the checkpointing arguments.
        warnings.filterwarnings("ignore", message=".*is deprecated and will be removed in v6")
        return SFTConfig(
            **shared,
            loss_type="nll",
            # Routers are frozen beside adapters, and a loss on their balance would hide the loss of answers.
            router_aux_loss_coef=0.0,
            activation_offloading=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            max_length=None,
            packing=False,
            padding_free=False,
            completion_only_loss=None,
            assistant_only_loss=False,
            pad_to_multiple_of=None,
            dataloader_drop_last=False,
            train_sampling_strategy="random",
        )
