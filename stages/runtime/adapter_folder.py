"""An adapter folder on disk: read what peft wrote, refuse other forms, write the same bytes each time."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.contract import Checkpoint
from pipeline.errors import Finding, HandOverError, ModelError
from stages.runtime.folders import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, adapter_findings, read_json
from stages.runtime.text.chat import TextContract

HEAD_KEY = "base_model.model.score."
"Where a score head stands in adapter_model.safetensors, as peft itself stores it."
_READABLE = 0o644
_SHORT = 16
_ON_HUB = re.compile(r"(?P<id>[\w.-]+(/[\w.-]+)?)@(?P<commit>[0-9a-f]{40})")
"How a run names a Hub model once its revision is pinned to a commit."
_HEAD_MODULES = ["classifier", "score"]
_PLAIN_LORA = {
    "rank_pattern": "a rank of its own for some layers",
    "alpha_pattern": "a scale of its own for some layers",
    "layers_pattern": "a layer pattern",
    "layers_to_transform": "a choice of layers",
    "trainable_token_indices": "trained token embeddings",
    "target_parameters": "adapters on bare parameters",
    "lora_bias": "LoRA biases",
    "alora_invocation_tokens": "activated LoRA",
    "megatron_config": "Megatron layers",
    "layer_replication": "replicated layers",
}


@dataclass(frozen=True, slots=True)
class StoredAdapter:
    """An adapter as a folder holds it, its head left out."""

    name: str
    "How a message names the folder."
    rank: int
    alpha: float
    rank_stabilised: bool
    "True: the scale is alpha / sqrt(rank); False: alpha / rank."
    magnitudes: bool
    "DoRA: the tensors hold a length for each output of each layer."
    target_modules: str | list[str]
    tensors: Mapping[str, Tensor]

    @property
    def scale(self) -> float:
        """The factor of the update: alpha / rank, or alpha / sqrt(rank)."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)


def open_adapter(source: Checkpoint, base: Checkpoint) -> StoredAdapter:
    """Read an adapter folder that must belong to a base.

    Raises:
        ModelError: the folder cannot be read, or holds something else than plain LoRA.
        HandOverError: it belongs to another base.
    """
    findings = adapter_findings(source.path)
    if findings:
        raise ModelError.from_findings(findings)
    config = read_json(source.path / ADAPTER_CONFIG_FILE)
    name = source.source or source.path.name
    _refuse_other_forms(config, name)
    _refuse_other_base(config, source, base)
    tensors = read_tensors(source)
    return StoredAdapter(
        name=name,
        rank=int(config["r"]),
        alpha=float(config["lora_alpha"]),
        rank_stabilised=bool(config.get("use_rslora")),
        magnitudes=bool(config.get("use_dora")),
        target_modules=config["target_modules"],
        tensors={key: value for key, value in tensors.items() if not key.startswith(HEAD_KEY)},
    )


def read_tensors(source: Checkpoint) -> dict[str, Tensor]:
    """Read the weights of an adapter folder as they are stored, head included, on the CPU.

    Raises:
        ModelError: the file is missing, damaged, or holds a number that is not finite.
    """
    file = source.path / ADAPTER_WEIGHTS_FILE
    hint = "run the stage that made it again, or copy the folder again"
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        message = f"{file} cannot be read: {error}"
        raise ModelError(message, where=source.source, hint=hint, code="damaged-adapter") from error
    _refuse_non_finite(tensors, where=str(file), hint=hint)
    return tensors


def write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> Path:
    """Write weights in fp32 in the order of their names, readable by others.

    Raises:
        ModelError: a weight is not finite.
    """
    hint = "lower learning_rate or max_grad_norm and run the stage again"
    _refuse_non_finite(tensors, where=file.name, hint=hint)
    plain = {key: tensors[key].detach().to("cpu", torch.float32).contiguous() for key in sorted(tensors)}
    save_file(plain, file, metadata={"format": "pt"})
    file.chmod(_READABLE)
    return file


def write_config(folder: Path, config: Any, *, base: Checkpoint, with_head: bool) -> Path:
    """Write adapter_config.json without paths, and with every list in order.

    Args:
        folder: where to write.
        config: peft's LoraConfig of the adapter.
        base: what the adapter was trained on.
        with_head: the folder also holds a score head, so it is a sequence classifier to peft.
    """
    content = {
        key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()
    }
    content["base_model_name_or_path"], content["revision"] = base_name(base)
    content["inference_mode"] = True
    content["task_type"] = "SEQ_CLS" if with_head else "CAUSAL_LM"
    content["modules_to_save"] = _HEAD_MODULES if with_head else None
    if isinstance(content.get("target_modules"), list):
        content["target_modules"] = sorted(content["target_modules"])
    file = folder / ADAPTER_CONFIG_FILE
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, default=str)
    file.write_text(text + "\n", encoding="utf-8")
    return file


def base_name(base: Checkpoint) -> tuple[str, str | None]:
    """Return how an adapter names its base: a Hub id and commit, or `base:` and part of its fingerprint."""
    match = _ON_HUB.fullmatch(base.source) if base.producer is None else None
    if match is None:
        return f"base:{base.fingerprint[:_SHORT]}", None
    return match["id"], match["commit"]


def _refuse_other_forms(config: Mapping[str, Any], name: str) -> None:
    findings = []
    hint = "train it again with plain LoRA"
    if config.get("peft_type") != "LORA":
        message = f"{name} is a {config.get('peft_type')} adapter; only LORA can be handed on"
        findings.append(Finding(message, name, hint, "adapter-form"))
    for key, text in _PLAIN_LORA.items():
        if config.get(key):
            findings.append(Finding(f"{name} uses {text} ({key})", name, hint, "adapter-form"))
    if config.get("bias", "none") != "none":
        findings.append(Finding(f"{name} trains biases (bias: {config['bias']})", name, hint, "adapter-form"))
    extra = set(config.get("modules_to_save") or ()) - set(_HEAD_MODULES)
    if extra:
        message = f"{name} replaces whole modules: {', '.join(sorted(extra))}"
        findings.append(Finding(message, name, hint, "adapter-form"))
    for key in ("r", "lora_alpha", "target_modules"):
        if not config.get(key):
            findings.append(
                Finding(f"{name}: {ADAPTER_CONFIG_FILE} has no {key}", name, hint, "adapter-form")
            )
    if findings:
        raise ModelError.from_findings(findings)


def _refuse_other_base(config: Mapping[str, Any], source: Checkpoint, base: Checkpoint) -> None:
    """The fingerprint in text.json decides; without it, the name in adapter_config.json."""
    contract = TextContract.read(source.path)
    if contract is not None and contract.base_fingerprint is not None:
        recorded, same = (
            f"base:{contract.base_fingerprint[:_SHORT]}",
            contract.base_fingerprint == base.fingerprint,
        )
    else:
        recorded = str(config.get("base_model_name_or_path"))
        same = recorded in (f"base:{base.fingerprint[:_SHORT]}", base.source, base_name(base)[0])
    if same:
        return
    raise HandOverError(
        f"{source.source or source.path} was trained on {recorded}, but the base here is "
        f"{base.source or base.path} (base:{base.fingerprint[:_SHORT]})",
        where=source.source,
        hint="give the adapter's own base; if the two are the same model, write "
        f"base:{base.fingerprint[:_SHORT]} as base_model_name_or_path into its {ADAPTER_CONFIG_FILE}",
        code="other-base",
    )


def _refuse_non_finite(tensors: Mapping[str, Tensor], *, where: str, hint: str) -> None:
    bad = [key for key in sorted(tensors) if not torch.isfinite(tensors[key]).all()]
    if bad:
        message = f"{where}: {len(bad)} weights are not finite, first {bad[0]}"
        raise ModelError(message, where=where, hint=hint, code="non-finite-weights")
