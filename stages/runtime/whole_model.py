"""A model whose own weights train: opened in float32 from its parent, proven to be it, written whole."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.config.run import ModelConfig, TuningConfig
from pipeline.contract import Checkpoint
from pipeline.errors import HandOverError
from reward.model import ScoreHead
from stages.runtime.adapters import in_frozen_layer
from stages.runtime.handover import HandOver
from stages.runtime.loading import backbone, load_base
from stages.runtime.offloading import offload_activations
from stages.runtime.text.chat import ChatText, TextContract, generation_eos

SCORE_FILE = "score.safetensors"
"The head of a whole reward model, beside its weights."
_READABLE = 0o644


class NoAdapters:
    """Stands where a switch between adapters stands: there is one model, and it is in effect."""

    def on(self, name: str | None) -> AbstractContextManager[None]:
        """Change nothing."""
        return nullcontext()

    def use(self, name: str | None) -> None:
        """Change nothing."""


def open_whole(
    source: Checkpoint, model: ModelConfig, tuning: TuningConfig
) -> tuple[PreTrainedModel, HandOver]:
    """Open a model in float32 with gradients where the tuning lets it learn, and prove what it holds.

    Small steps are lost in half precision, so the weights are held in float32; on a GPU matrix products
    run in bfloat16 under autocast.

    Raises:
        ModelError: the model cannot be read.
        HandOverError: a weight is not the one of its folder, or nothing may learn.
    """
    loaded = load_base(source, model.model_copy(update={"dtype": "float32"}))
    if tuning.activation_offloading:
        offload_activations(backbone(loaded))
    num_trainable = 0
    for name, weight in loaded.named_parameters():
        weight.requires_grad_(not _is_frozen(name, tuning))
        num_trainable += weight.numel() if weight.requires_grad else 0
    if num_trainable == 0:
        hint = "a smaller frozen_layers, or other patterns in frozen_modules"
        raise HandOverError("no weight may learn", where="tuning", hint=hint, code="nothing-trainable")
    if source.path.is_dir():
        _prove_held(loaded, source)
    return loaded, HandOver(0.0, 0.0, num_trainable)


def computing(model: nn.Module, dtype: str) -> AbstractContextManager[None]:
    """Return the context of a forward pass: bfloat16 products on a GPU unless float32 is asked for."""
    kind = next(model.parameters()).device.type
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=kind == "cuda" and dtype != "float32")


def save_whole(
    model: PreTrainedModel,
    folder: Path,
    *,
    tokenizer: PreTrainedTokenizerBase,
    head: ScoreHead | None = None,
) -> Path:
    """Write weights, configs, tokenizer and text contract; the same weights give the same bytes.

    Raises:
        HandOverError: a weight is not finite.
    """
    bad = [name for name, weight in model.named_parameters() if not bool(torch.isfinite(weight).all())]
    if bad:
        message = f"{len(bad)} weights are not finite, first {bad[0]}"
        raise HandOverError(message, hint="a smaller learning_rate", code="non-finite-weights")
    stops = ChatText(tokenizer, generation_eos=generation_eos(model)).stop_token_ids
    model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    TextContract.from_tokenizer(tokenizer, generation_eos=stops).write(folder)
    if head is not None:
        from safetensors.torch import save_file

        save_file(head.tensors(), folder / SCORE_FILE, metadata={"format": "pt"})
    for file in folder.iterdir():
        file.chmod(_READABLE)
    return folder


def _is_frozen(name: str, tuning: TuningConfig) -> bool:
    """Frozen layers, modules by pattern, and with frozen layers what stands before them too."""
    if in_frozen_layer(name, tuning.frozen_layers):
        return True
    path = name.rpartition(".")[0]
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in tuning.frozen_modules)


def _prove_held(model: PreTrainedModel, source: Checkpoint) -> None:
    """Compare every weight with the folder's own file, bit for bit after the cast to float32."""
    held = dict(model.named_parameters())
    compared = 0
    for name, tensor in _stored(source.path):
        weight = held.get(name)
        if weight is None:
            continue
        compared += 1
        if not torch.equal(weight.detach().cpu(), tensor.float()):
            raise HandOverError(
                f"{name} is not the weight that {source.source or source.path} holds",
                where=source.source,
                hint="download or save the model again",
                code="policy-is-not-parent",
            )
    if compared < math.ceil(len(held) / 2):
        raise HandOverError(
            f"only {compared} of {len(held)} weights have a name in {source.source or source.path}",
            hint="save the model again with this version of transformers",
            code="policy-is-not-parent",
        )


def _stored(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for file in sorted(folder.glob("*.safetensors")):
        if file.name == SCORE_FILE:
            continue
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - a safetensors file is no mapping
                yield name, tensors.get_tensor(name)
