"""Pretraining and domain adaptation: every weight trains, in fp32, on packed raw text."""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from pipeline.contract import StageContext, StageResult
from pipeline.errors import DataError, Finding, ModelError
from stages.pretrain import PretrainConfig
from stages.runtime.computing import computing_of
from stages.runtime.handover import prove_trainable
from stages.runtime.loading import backbone, device, load_base, load_tokenizer, vocabulary_findings
from stages.runtime.offloading import offload_activations
from stages.runtime.ranks import open_ranks
from stages.runtime.text.blocks import IGNORED, Batch, collate, pack
from stages.runtime.text.byte_tokenizer import train_tokenizer
from stages.runtime.text.chat import ChatText, TextContract, generation_eos
from stages.runtime.text.documents import Document, read_documents, split
from stages.runtime.text.encoding import TextEncoder
from stages.runtime.text.template_guard import check_template
from stages.runtime.text.templates import resolve_template
from stages.trainers.early_stopping import EarlyStopping
from stages.trainers.loop import LossOutput, train
from stages.trainers.order import order, row_batches, seed_of, total_steps

LOGGER = logging.getLogger(__name__)

_READABLE = 0o644


def pretrain(ctx: StageContext) -> StageResult:
    """Train a model from scratch or from a base, and write it with its tokenizer.

    Raises:
        DataError: the text is too short for one step.
        ModelError: the architecture is unknown, or there is neither a base nor an architecture.
    """
    config: PretrainConfig = ctx.config
    open_ranks(ctx)
    documents = read_documents(ctx.inputs["text"].path, text_field=config.text_field)
    corpus = split(documents, fraction=config.eval_fraction, seed=config.seed)
    model, tokenizer = _start(ctx, [_plain(document) for document in corpus.training])
    blocks = _blocks(corpus.training, tokenizer, config)
    held_out = _blocks(corpus.held_out, tokenizer, config)
    if not blocks:
        hint = "more text, or a smaller eval_fraction"
        raise DataError("the text is too short to train on", where="text", hint=hint, code="too-short")

    model.requires_grad_(True)
    parameters = list(model.named_parameters())
    num_trainable = prove_trainable(parameters)
    measure = _measure(model, tokenizer, held_out, config)
    initial = measure()
    early = EarlyStopping.of(
        config.early_stopping,
        parameters,
        rows=blocks,
        held_out=held_out,
        measure=lambda rows: _measure(model, tokenizer, rows, config)(),
        seed=config.seed,
    )
    torch.manual_seed(seed_of(config.seed, "training"))
    model.train()
    summary = train(
        parameters=parameters,
        config=config,
        total_steps=total_steps(config, len(blocks)),
        batches=_batches(blocks, tokenizer, config, ranks=ctx.place.count),
        loss=_loss(model),
        ctx=ctx,
        prefix="pretrain",
        evaluate=measure if held_out else None,
        eval_steps=config.eval_steps,
        early=early,
    )
    if not ctx.place.is_main:
        return StageResult({})
    folder = save_model(model, ctx.output_dir / "model", tokenizer=tokenizer)
    metrics = {
        **summary.evaluation,
        **(early.metrics() if early else {}),
        **({"initial_perplexity": initial["perplexity"]} if initial else {}),
        "loss": summary.metrics["loss"],
        "num_documents": float(len(corpus.training)),
        "num_tokens": float(sum(len(block) - 1 for block in blocks)),
        "num_parameters": float(num_trainable),
    }
    computing = computing_of(model, config.model, None, autocast=True)
    return StageResult({"model": folder}, metrics, summary.notes, computing=computing)


def model_from_scratch(
    architecture: dict[str, Any], config: PretrainConfig, vocabulary: int
) -> PreTrainedModel:
    """Make a randomly initialised model; the weights depend on the seed alone.

    Raises:
        ModelError: model_type is unknown, or a key is none of the family's.
    """
    family = dict(architecture)
    model_type = str(family.pop("model_type", ""))
    made = model_config(model_type, family | {"vocab_size": vocabulary}, max_length=config.max_length)
    options = {} if config.model.attn_implementation == "auto" else _attention(config)
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(config.seed, "initial weights"))
        model = AutoModelForCausalLM.from_config(made, dtype=torch.float32, **options)
    return model.to(device())


def model_config(model_type: str, family: dict[str, Any], *, max_length: int) -> Any:
    """Make a transformers config; unknown families and keys are refused with the closest name.

    Raises:
        ModelError: see above; every finding at once.
    """
    try:
        known = AutoConfig.for_model(model_type)
    except ValueError as error:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

        close = difflib.get_close_matches(model_type, list(CONFIG_MAPPING_NAMES), n=1)
        hint = f"model_type: {close[0]}" if close else "model_type: llama"
        message = f"transformers knows no model type {model_type!r}"
        where = "architecture.model_type"
        raise ModelError(message, where=where, hint=hint, code="unknown-model-type") from error
    names = {*known.to_dict(), *known.attribute_map}
    findings = []
    for key in sorted(family.keys() - names):
        close = difflib.get_close_matches(key, sorted(names), n=1)
        message, hint = f"{model_type} has no setting {key!r}", close[0] if close else "remove it"
        findings.append(Finding(message, f"architecture.{key}", hint, "unknown-key"))
    made = None if findings else AutoConfig.for_model(model_type, **family)
    longest = getattr(made, "max_position_embeddings", None)
    if longest is not None and longest < max_length:
        message = f"max_length is {max_length}, but the architecture has {longest} positions"
        findings.append(Finding(message, "max_length", f"max_length: {longest}", "too-long"))
    if findings:
        raise ModelError.from_findings(findings)
    return made


def save_model(model: PreTrainedModel, folder: Path, *, tokenizer: PreTrainedTokenizerBase) -> Path:
    """Write weights, configs, tokenizer and text contract; the same weights give the same bytes."""
    stops = ChatText(tokenizer, generation_eos=generation_eos(model)).stop_token_ids
    model.config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = list(stops)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    TextContract.from_tokenizer(tokenizer, generation_eos=stops).write(folder)
    for file in folder.iterdir():
        file.chmod(_READABLE)
    return folder


def _start(ctx: StageContext, texts: Sequence[str]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Open the base, or make tokenizer and model from scratch."""
    config: PretrainConfig = ctx.config
    base = ctx.inputs.get("base")
    if config.architecture is None:
        if base is None:
            hint = "architecture: {model_type: llama, ...}, or an input base"
            message = "there is neither an architecture nor a base to go on from"
            raise ModelError(message, where=ctx.name, hint=hint, code="no-model")
        tokenizer = load_tokenizer(base, config.model)
        model = load_base(base, config.model.model_copy(update={"dtype": "float32"}))
        findings = vocabulary_findings(tokenizer, model)
        if findings:
            raise ModelError.from_findings(findings)
    else:
        family = {key: value for key, value in config.architecture.items() if key != "model_type"}
        probe = model_config(str(config.architecture.get("model_type")), family, max_length=config.max_length)
        tokenizer = train_tokenizer(texts, vocab_size=config.vocab_size, model_config=probe.to_dict())
        if config.model.chat_template is not None:
            tokenizer.chat_template = resolve_template(config.model.chat_template)
            check_template(tokenizer.chat_template)
        family |= {
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        model = model_from_scratch(
            {**family, "model_type": probe.model_type}, config, vocabulary=len(tokenizer)
        )
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if config.activation_offloading:
        offload_activations(backbone(model))
    return model, tokenizer


def _attention(config: PretrainConfig) -> dict[str, str]:
    return {"attn_implementation": config.model.attn_implementation}


def _plain(document: Document) -> str:
    return document if isinstance(document, str) else "\n".join(str(turn["content"]) for turn in document)


def _blocks(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase, config: PretrainConfig
) -> list[list[int]]:
    """Encode documents, in an order of the seed, and pack them."""
    encode = _encoding(tokenizer, special_tokens_in_text=config.special_tokens_in_text)
    rows = order(config.seed, 0, len(documents)) if documents else []
    return pack(
        (encode(documents[row]) for row in rows),
        end_token_id=int(tokenizer.eos_token_id),
        max_length=config.max_length,
    )


def _encoding(
    tokenizer: PreTrainedTokenizerBase, *, special_tokens_in_text: bool
) -> Callable[[Document], list[int]]:
    """Return the function from a document to its ids, without an end token."""
    encoder, chat = TextEncoder(tokenizer), ChatText(tokenizer)

    def encode(document: Document) -> list[int]:
        if isinstance(document, str):
            found: list[str] = []
            text = document if special_tokens_in_text else encoder.mark(document, found)
            return encoder.encode(text, found)
        *prompt, answer = document
        ids = chat.prompt_ids(prompt) + chat.response_ids(prompt, str(answer["content"]))
        # The end token after each document is set by pack().
        return ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids

    return encode


def _batches(
    blocks: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
    config: PretrainConfig,
    *,
    ranks: int,
) -> Callable[[int], list[tuple[Batch, int]]]:
    """Return the function from a step to its micro-batches, each with the labels of the whole step."""
    rows_of = row_batches(config, len(blocks), ranks=ranks)

    def batches(step: int) -> list[tuple[Batch, int]]:
        micro = [
            collate([blocks[row] for row in rows], pad_token_id=int(tokenizer.pad_token_id))
            for rows in rows_of(step)
        ]
        labels = sum(batch.num_labels for batch in micro)
        return [(batch, labels) for batch in micro]

    return batches


def _loss(model: nn.Module) -> Callable[[tuple[Batch, int]], LossOutput]:
    def loss(micro: tuple[Batch, int]) -> LossOutput:
        batch, labels_in_step = micro
        total = _negative_log_likelihood(model, batch)
        return LossOutput(total / labels_in_step, tokens=batch.num_labels)

    return loss


def _negative_log_likelihood(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Return the summed negative log-likelihood of a batch, in nats; bf16 arithmetic on a GPU."""
    on = next(model.parameters()).device
    with torch.autocast(on.type, dtype=torch.bfloat16, enabled=on.type == "cuda"):
        logits = model(input_ids=batch.input_ids.to(on), use_cache=False).logits
    return nn.functional.cross_entropy(
        logits.float().flatten(0, 1), batch.labels.to(on).flatten(), ignore_index=IGNORED, reduction="sum"
    )


def _measure(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    blocks: Sequence[Sequence[int]],
    config: PretrainConfig,
) -> Callable[[], dict[str, float]]:
    """Return the function that measures loss (nats a token) and perplexity on the held-out blocks."""
    size = config.per_device_train_batch_size

    def measure() -> dict[str, float]:
        if not blocks:
            return {}
        was_training = model.training
        model.eval()
        total, count = 0.0, 0
        with torch.no_grad():
            for start in range(0, len(blocks), size):
                batch = collate(blocks[start : start + size], pad_token_id=int(tokenizer.pad_token_id))
                total += float(_negative_log_likelihood(model, batch))
                count += batch.num_labels
        model.train(was_training)
        mean = total / count
        return {"eval_loss": mean, "perplexity": math.exp(min(mean, 700.0))}

    return measure
