"""Open a base model and its tokenizer: safetensors only, frozen, one clear error for each mistake.

No code from a model repository runs unless the run file says so.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from pipeline.config.run import ModelConfig, TuningConfig
from pipeline.contract import Checkpoint
from pipeline.errors import Finding, ModelError
from stages.runtime.folders import model_findings, tokenizer_findings
from stages.runtime.offloading import offload_activations
from stages.runtime.ranks import ONE, Ranks
from stages.runtime.text.template_guard import check_template
from stages.runtime.text.templates import resolve_template

LOGGER = logging.getLogger(__name__)

PAD_NAMES = ("<|pad|>", "<pad>", "[PAD]", "<|finetune_right_pad_id|>", "<|endoftext|>", "<unk>", "<|unk|>")
"Tokens that may stand for padding when a tokenizer names none, in order of preference."
_BASE_ATTRIBUTE = "base_checkpoint"


def device() -> torch.device:
    """Return the device that stages run on: the first GPU, else the CPU."""
    return (
        torch.device("cuda", torch.cuda.current_device())
        if torch.cuda.is_available()
        else torch.device("cpu")
    )


def load_tokenizer(source: Checkpoint, model: ModelConfig) -> PreTrainedTokenizerBase:
    """Open a tokenizer with a pad token and the chat template that the run file asks for.

    The pad token is the tokenizer's own, else a reserved token that is not eos, else eos.
    Masks never depend on it: a mask is made from lengths.

    Args:
        source: folder of a model or an adapter, or a Hub id in `source.source`.
        model: template, revision and trust come from here.

    Raises:
        ModelError: no tokenizer, a vocabulary larger than the embedding, no such template, or one
            that runs out of bounds.
    """
    where, revision = _location(source, model)
    if source.path.is_dir():
        _raise(tokenizer_findings(source.path))
    with _as_model_error(where):
        tokenizer = AutoTokenizer.from_pretrained(
            where, revision=revision, trust_remote_code=model.trust_remote_code
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = _pad_token(tokenizer)
    if model.chat_template is not None:
        tokenizer.chat_template = resolve_template(model.chat_template)
    for template in _templates(tokenizer):
        check_template(template, source=model.chat_template or source.source)
    return tokenizer


def _templates(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the tokenizer's chat templates; some carry several by name."""
    template = tokenizer.chat_template
    return list(template.values()) if isinstance(template, dict) else [template] if template else []


def load_base(
    source: Checkpoint, model: ModelConfig, tuning: TuningConfig | None = None, *, ranks: Ranks = ONE
) -> PreTrainedModel:
    """Open the base model: frozen, in eval(), on the device, in 4 or 8 bits when the tuning says so.

    4 bits means nf4 with double quantisation, 8 bits LLM.int8(); embeddings and the output head stay
    as they are.
    The model remembers `source`, so that an adapter of another base is refused later. Ranks that hold
    parts of the base read it on the CPU first.

    Raises:
        ModelError: the folder or Hub id cannot be opened, holds no safetensors, lacks weights,
            or needs code of its own.
    """
    where, revision = _location(source, model)
    if source.path.is_dir():
        _raise(model_findings(source.path))
    options = _load_options(model, tuning, whole=not ranks.place.in_parts)
    with _as_model_error(where):
        loaded, report = AutoModelForCausalLM.from_pretrained(
            where, revision=revision, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    _raise(_weight_findings(where, report))
    loaded.requires_grad_(False)
    if "quantization_config" not in options and "device_map" not in options:
        if ranks.place.in_parts:
            from stages.runtime.parts import cut_layers

            cut_layers(loaded, ranks, device().type)
        loaded = loaded.to(device())
    _keep_cpu_4bit_unpacked(loaded)
    loaded.eval()
    if tuning is not None and tuning.activation_offloading:
        offload_activations(backbone(loaded))
    attention = getattr(loaded.config, "_attn_implementation", "its own")
    held = tuning.method if tuning is not None and tuning.method in ("qlora", "8bit") else "plain"
    LOGGER.info("base %s: %s, %s, attention %s, on %s", where, loaded.dtype, held, attention, device())
    return name_base(loaded, source)


def name_base(model: PreTrainedModel, source: Checkpoint) -> PreTrainedModel:
    """Note on the model which checkpoint it was read from. Returns the model."""
    setattr(model, _BASE_ATTRIBUTE, source)
    return model


def base_of(model: nn.Module) -> Checkpoint:
    """Return the checkpoint that a base model, wrapped by peft or not, was read from.

    Raises:
        ValueError: the model was not opened by load_base and name_base was not called.
    """
    inner = causal_lm_of(model)
    source = getattr(inner, _BASE_ATTRIBUTE, None)
    if not isinstance(source, Checkpoint):
        raise ValueError("the model does not say what it was read from: open it with load_base")
    return source


def causal_lm_of(model: nn.Module) -> PreTrainedModel:
    """Return the causal language model inside, through PeftModel or not."""
    return (
        model.get_base_model()
        if hasattr(model, "peft_config") and hasattr(model, "get_base_model")
        else model
    )


def backbone(causal_lm: nn.Module) -> nn.Module:
    """Return the part that gives hidden states, without the output head; adapters stay in effect."""
    inner = causal_lm_of(causal_lm)
    return getattr(inner, inner.base_model_prefix)


def output_embedding(causal_lm: nn.Module) -> Tensor:
    """Return the weight of the output head (vocabulary, hidden)."""
    return causal_lm_of(causal_lm).get_output_embeddings().weight


def base_dtype(model: ModelConfig) -> torch.dtype:
    """Return the precision that the frozen base is held in."""
    if model.dtype == "auto":
        on_gpu = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if on_gpu else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[model.dtype]


def vocabulary_findings(tokenizer: PreTrainedTokenizerBase, causal_lm: nn.Module) -> list[Finding]:
    """Say whether the tokenizer can make an id that the embedding has no row for."""
    rows = causal_lm_of(causal_lm).get_input_embeddings().weight.shape[0]
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest < rows:
        return []
    message = f"the tokenizer makes ids up to {largest}, but the model's embedding has {rows} rows"
    hint = "use the tokenizer that came with the model; added tokens need a resized embedding"
    return [Finding(message, "", hint, "vocabulary-too-large")]


def position_findings(causal_lm: nn.Module, longest: int) -> list[Finding]:
    """Say whether rows are longer than the base was made for."""
    limit = getattr(causal_lm_of(causal_lm).config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(limit, int) or longest <= limit:
        return []
    message = f"the longest row has {longest} tokens, but the base has positions for {limit}"
    return [Finding(message, "max_length", f"max_length: {limit}", "too-few-positions")]


def _location(source: Checkpoint, model: ModelConfig) -> tuple[str, str | None]:
    """Return what from_pretrained is given: a folder, or a Hub id and its revision."""
    if source.path.is_dir():
        return str(source.path), None
    looks_local = source.path.is_absolute() or source.producer is not None
    name = source.source or str(source.path)
    if looks_local and (not source.source or Path(source.source) == source.path):
        finding = Finding(f"there is no folder {source.path}", "model.base", _MISSING_HINT, "missing-model")
        raise ModelError.from_findings([finding])
    return name, model.revision


_MISSING_HINT = "a folder that holds config.json, or a Hub id such as owner/name"


def _load_options(model: ModelConfig, tuning: TuningConfig | None, *, whole: bool = True) -> dict[str, Any]:
    dtype = base_dtype(model)
    options: dict[str, Any] = {
        "dtype": dtype,
        "use_safetensors": True,
        "trust_remote_code": model.trust_remote_code,
    }
    if model.attn_implementation != "auto":
        options["attn_implementation"] = model.attn_implementation
    if device().type != "cpu" and whole:
        options["device_map"] = {"": device()}
    if tuning is not None and tuning.method == "qlora":
        options["quantization_config"] = _four_bits()
    if tuning is not None and tuning.method == "8bit":
        options["quantization_config"] = _eight_bits()
    return options


def _four_bits() -> BitsAndBytesConfig:
    compute = torch.float32 if device().type == "cpu" else torch.bfloat16
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )


def _eight_bits() -> BitsAndBytesConfig:
    # Above a threshold, columns of large activations are computed apart; which ones depends on the whole
    # batch, so a token's log-probability would too, and no cached reference could equal its policy.
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)


def _keep_cpu_4bit_unpacked(model: nn.Module) -> None:
    """Stop bitsandbytes from repacking 4-bit weights in place on CPUs with AVX512-BF16.

    The repacking is lossy and happens in the first eval forward, and is undone, lossily again,
    by state_dict(): a checkpoint would change the model (bitsandbytes 0.50, Linear4bit.forward).
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _weight_findings(where: str, report: dict[str, Any]) -> list[Finding]:
    """Turn transformers' loading report into findings: it would fill gaps with random numbers."""
    findings = []
    for kind, text in (("missing_keys", "lacks"), ("mismatched_keys", "has another shape for")):
        keys = sorted(str(key) for key in report.get(kind) or ())
        if keys:
            message = f"the folder {text} {len(keys)} weights of its model, first {keys[0]}"
            findings.append(Finding(message, where, "download or save the model again", "incomplete-weights"))
    unused = report.get("unexpected_keys") or ()
    if unused:
        LOGGER.warning("%s holds %d weights that its model does not use", where, len(unused))
    return findings


def _pad_token(tokenizer: PreTrainedTokenizerBase) -> str:
    vocabulary = tokenizer.get_vocab()
    for name in PAD_NAMES:
        if name in vocabulary and name not in (tokenizer.eos_token, tokenizer.bos_token):
            return name
    if tokenizer.eos_token is None:
        hint = "set eos_token in tokenizer_config.json"
        raise ModelError("the tokenizer has neither a pad nor an eos token", hint=hint, code="no-eos")
    return str(tokenizer.eos_token)


@contextmanager
def _as_model_error(where: str) -> Iterator[None]:
    """Give the usual failures of from_pretrained one sentence and a remedy."""
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        message = f"the model cannot be opened: {first}"
        raise ModelError(message, where=where, hint=_remedy(str(error)), code="unreadable-model") from error


def _remedy(text: str) -> str:
    if "trust_remote_code" in text:
        return "read the repository's code, then set model.trust_remote_code: true"
    if "attn_implementation" in text or "scaled_dot_product" in text:
        return "model.attn_implementation: eager"
    if "offline" in text.lower() or "connect" in text.lower() or "cached" in text.lower():
        return "check the name and the network, or give a local folder"
    if "header" in text.lower() or "safetensor" in text.lower():
        return "download or save the model again: a weight file is damaged or not safetensors"
    return "a model that this version of transformers knows, saved with save_pretrained"


def _raise(findings: list[Finding]) -> None:
    if findings:
        raise ModelError.from_findings(findings)
