"""Supervised fine-tuning from files to a written adapter. The optimisation itself is TRL's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from pipeline.contract import StageContext, StageResult
from pipeline.errors import DataError, HandOverError, ModelError
from stages.data import (
    RejectedRow,
    read_demonstrations,
    split_by_prompt,
    too_many_rejects,
    write_rejects,
)
from stages.runtime.adapters import (
    load_adapter,
    named_adapter_parameters,
    new_adapter,
    save_adapter,
    trained_parameters,
)
from stages.runtime.computing import computing_of
from stages.runtime.handover import HandOver, prove_hand_over
from stages.runtime.loading import load_base, load_tokenizer, position_findings, vocabulary_findings
from stages.runtime.ranks import open_ranks
from stages.runtime.saving.seal import train_sealed
from stages.runtime.text.chat import ChatText, TextContract
from stages.runtime.whole_model import open_whole, save_whole
from stages.sft import SftConfig
from stages.trainers.early_stopping import EarlyStopping
from stages.trainers.sft_evaluation import HeldOut
from stages.trainers.sft_layout import JoinedRows, choose_layout, without_base_dropout
from stages.trainers.sft_rows import TokenRows, encode_rows, prove_stop_is_trained
from stages.trainers.sft_trainer import AnswerTrainer, make_trainer
from stages.tuning import ADAPTER as ADAPTER_OUTPUT
from stages.tuning import MODEL

ADAPTER = "policy"
REJECTS_FILE = "rejected_rows.jsonl"


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything that is decided before weights are loaded."""

    tokenizer: PreTrainedTokenizerBase
    chat: ChatText
    train: TokenRows
    held_out: TokenRows
    rejects: list[RejectedRow]

    def metrics(self) -> dict[str, float]:
        """Return what became of the rows of the file."""
        num_too_long = self.train.num_too_long + self.held_out.num_too_long
        return {
            "num_train_rows": len(self.train.rows),
            "num_eval_rows": len(self.held_out.rows),
            "num_rejected_rows": len(self.rejects) - num_too_long,
            "num_too_long_rows": num_too_long,
            "num_cut_rows": self.train.num_cut + self.held_out.num_cut,
        }


def train_sft(ctx: StageContext) -> StageResult:
    """Train an adapter on the answers of the demonstrations and write it to `output_dir/adapter`.

    Raises:
        DataError: too many unusable rows, none short enough, or no trained stop token.
        HandOverError: the adapter does not start as its parent, or another text contract.
        Interrupted: the stage was asked to stop; the last checkpoint is sealed.
    """
    config: SftConfig = ctx.config
    ranks = open_ranks(ctx)
    prepared = prepare(ctx)
    longest = max(len(row.input_ids) for part in (prepared.train, prepared.held_out) for row in part.rows)
    model, proof = start_model(ctx, prepared.tokenizer, longest=longest)
    notes = [*prepared.chat.notes]
    if without_base_dropout(model):
        notes.append("dropout of the base model is off: it is frozen")
    layout = choose_layout(model, config, prepared.tokenizer)
    # Every rank writes its random state into the main one's checkpoints.
    folder = ranks.from_main(lambda: ctx.scratch_dir / "trainer")
    trainer = make_trainer(
        model, prepared.train.rows, config, layout, prepared.tokenizer, folder=folder, ranks=ranks
    )
    # The trainer may not have touched what it was given: TRL resets or rounds adapters in some set-ups.
    if config.tuning.method != "full":
        prove_hand_over(model, ctx.inputs.get("policy"), policy=ADAPTER)
    prove_batch_trains_stop(trainer, prepared.chat)
    evaluation = HeldOut(trainer, prepared.held_out.rows, ctx, every=config.eval_steps)
    evaluation.early = trainer.early = EarlyStopping.of(
        config.early_stopping,
        trained_parameters(model, ADAPTER),
        rows=prepared.train.rows,
        held_out=prepared.held_out.rows,
        measure=evaluation.measure,
        seed=config.seed,
    )
    trainer.add_callback(evaluation)
    with layout.attention(model):
        found = train_sealed(trainer, ctx, text="sft")
        if trainer.early:
            trainer.early.put_back()
        final = evaluation.measure()
    if not ranks.is_main:
        return StageResult({})
    role, folder = write_policy(ctx, model, prepared.tokenizer)
    if prepared.rejects:
        write_rejects(prepared.rejects, folder / REJECTS_FILE)
    if final and not trainer.early:
        ctx.logger.log(final, step=trainer.state.global_step)
    notes += [*layout.notes, *(str(damage) for damage in found.damages)]
    if trainer.early:
        final = final | trainer.early.metrics()
        notes += trainer.early.notes(trainer.state.global_step, trainer.state.max_steps)
    metrics = {**trainer.totals.metrics(), **final, **prepared.metrics(), **proof.metrics()}
    packed = isinstance(layout.collator, JoinedRows)
    computing = computing_of(model, config.model, config.tuning, autocast=True, packed=packed)
    return StageResult({role: folder}, metrics, tuple(notes), computing=computing)


def prepare(ctx: StageContext) -> Prepared:
    """Read, split and tokenise the demonstrations; check the text contract. No weights are loaded."""
    config: SftConfig = ctx.config
    source = ctx.inputs["demonstrations"]
    demonstrations, rejects = read_demonstrations(source.path)
    tokenizer = load_tokenizer(ctx.inputs.get("policy") or ctx.inputs["base"], config.model)
    check_parents(ctx, tokenizer)
    chat = ChatText(tokenizer)
    parts = [
        encode_rows(part, chat, max_length=config.max_length, truncation=config.truncation)
        for part in split_by_prompt(demonstrations, share=config.eval_share, seed=config.seed)
    ]
    unwritable = [row for part in parts for row in part.rejects if row.check != "too_long"]
    bad, num_good = [*rejects, *unwritable], len(demonstrations) - len(unwritable)
    found = too_many_rejects(bad, num_good, config.max_rejected_share, source.path)
    if found:
        raise DataError.from_findings(found)
    if not parts[0].rows:
        raise DataError(
            f"no demonstration is short enough: all are longer than max_length {config.max_length}",
            where=str(source.path),
            hint="a larger max_length",
            code="no-usable-row",
        )
    for part in parts:
        prove_stop_is_trained(part.rows, chat.stop_token_ids, num_cut=part.num_cut)
    set_aside = [*rejects, *parts[0].rejects, *parts[1].rejects]
    return Prepared(tokenizer, chat, parts[0], parts[1], sorted(set_aside, key=lambda row: row.line))


def check_parents(ctx: StageContext, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that token ids mean the same as in the base and in the adapter to go on from.

    A first fine-tuning may choose the chat template of its base; nothing may change it later.

    Raises:
        HandOverError: every difference, with both values.
    """
    own = TextContract.from_tokenizer(tokenizer, base=ctx.inputs["base"])
    findings = []
    for role in ("base", "policy"):
        source = ctx.inputs.get(role)
        parent = TextContract.read(source.path) if source is not None and source.path.is_dir() else None
        if source is None or parent is None:
            continue
        chooses = role == "base" and ctx.config.model.chat_template is not None
        findings += [
            finding
            for finding in own.differences(parent, where=ctx.name, other_name=source.producer or role)
            if not (chooses and finding.code in _CHOSEN_WITH_TEMPLATE)
        ]
    if findings:
        raise HandOverError.from_findings(findings)


_CHOSEN_WITH_TEMPLATE = ("text-chat-template-sha256", "text-stop-token-ids")


def start_model(
    ctx: StageContext, tokenizer: PreTrainedTokenizerBase, *, longest: int = 0
) -> tuple[Any, HandOver]:
    """Load the base and put the adapter on it: fresh, or the parent's; prove that it starts there.

    Where every weight trains, the model is the parent itself.

    Args:
        ctx: inputs and settings.
        tokenizer: must fit the base's embedding.
        longest: tokens of the longest row, which the base must have positions for.
    """
    config: SftConfig = ctx.config
    parent = ctx.inputs.get("policy")
    if config.tuning.method == "full":
        whole, proof = open_whole(parent or ctx.inputs["base"], config.model, config.tuning)
        findings = [*vocabulary_findings(tokenizer, whole), *position_findings(whole, longest)]
        if findings:
            raise ModelError.from_findings(findings)
        return whole, proof
    base = load_base(ctx.inputs["base"], config.model, config.tuning, ranks=open_ranks(ctx))
    findings = [*vocabulary_findings(tokenizer, base), *position_findings(base, longest)]
    if findings:
        raise ModelError.from_findings(findings)
    if parent is None:
        model = new_adapter(base, config.tuning, name=ADAPTER, seed=config.seed)
    else:
        dropout = config.tuning.lora_dropout
        model = load_adapter(
            base, parent, name=ADAPTER, trainable=True, tuning=config.tuning, dropout=dropout
        )
    return model, prove_hand_over(model, parent, policy=ADAPTER)


def write_policy(ctx: StageContext, model: Any, tokenizer: PreTrainedTokenizerBase) -> tuple[str, Path]:
    """Write what was trained; return the output's role and folder.

    Raises:
        HandOverError: the adapter learned nothing, or a weight is not finite.
    """
    if ctx.config.tuning.method == "full":
        return MODEL, save_whole(model, ctx.output_dir / MODEL, tokenizer=tokenizer)
    prove_learned(model)
    folder = ctx.output_dir / ADAPTER_OUTPUT
    save_adapter(model, folder, name=ADAPTER, base=ctx.inputs["base"], tokenizer=tokenizer)
    return ADAPTER_OUTPUT, folder


def prove_batch_trains_stop(trainer: AnswerTrainer, chat: ChatText) -> None:
    """Check on the first rows, collated as in training, that stop tokens count in the loss.

    Raises:
        DataError: none does, as when padding and the stop token share an id that is masked.
    """
    rows = [trainer.train_dataset[i] for i in range(min(8, len(trainer.train_dataset)))]
    labels = trainer.data_collator(rows)["labels"]
    if not torch.isin(labels, torch.tensor(chat.stop_token_ids)).any():
        raise DataError(
            "no stop token counts in the loss of the first rows, so the model would never learn to stop",
            hint="a larger max_length, or a chat template that ends its turns",
            code="no-trained-stop",
        )


def prove_learned(model: PeftModel) -> None:
    """Check after training that the adapter does something.

    Raises:
        HandOverError: every lora_B is still zero.
    """
    ups = [value for name, value in named_adapter_parameters(model, ADAPTER) if ".lora_B." in name]
    if not any(bool(value.any()) for value in ups):
        raise HandOverError(
            "the adapter learned nothing: every lora_B is zero after training",
            hint="a larger learning_rate or more steps",
            code="nothing-learned",
        )
