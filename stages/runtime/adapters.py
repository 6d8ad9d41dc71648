"""Named LoRA adapters on one frozen base: make, load with proof, save.

Nothing is ever merged into the base, and a base in 4 bits is never written to disk.
"""

from __future__ import annotations

import fnmatch
import logging
import math
import re
import warnings
from collections.abc import Mapping, Set
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.config.run import TuningConfig
from pipeline.contract import Checkpoint
from pipeline.errors import Finding, HandOverError, ModelError
from stages.runtime.adapter_folder import (
    HEAD_KEY,
    StoredAdapter,
    open_adapter,
    read_tensors,
    write_config,
    write_tensors,
)
from stages.runtime.adapter_start import start_adapter, uniform_start
from stages.runtime.adapter_weights import MAGNITUDE, named_adapter_parameters, stored_key
from stages.runtime.experts import without_experts
from stages.runtime.folders import ADAPTER_WEIGHTS_FILE
from stages.runtime.loading import base_of, causal_lm_of
from stages.runtime.switch import AdapterSwitch, enable_checkpointing
from stages.runtime.text.chat import TextContract, generation_eos

__all__ = [
    "AdapterSwitch",
    "enable_checkpointing",
    "in_frozen_layer",
    "is_frozen",
    "load_adapter",
    "load_head",
    "named_adapter_parameters",
    "new_adapter",
    "save_adapter",
    "stored_key",
    "trained_parameters",
]

LOGGER = logging.getLogger(__name__)


def new_adapter(
    base: PreTrainedModel | PeftModel, tuning: TuningConfig, *, name: str = "policy", seed: int
) -> PeftModel:
    """Put a fresh trainable adapter on a base: it changes nothing until it is trained.

    The initial weights are a function of the seed and the weight's name only; global random
    state is left as it was.

    Raises:
        ModelError: target_modules names no layer of the model.
    """
    targets = tuning.target_modules
    config = LoraConfig(
        r=tuning.lora_r,
        lora_alpha=tuning.lora_alpha,
        lora_dropout=tuning.lora_dropout,
        target_modules=targets if isinstance(targets, str) else sorted(targets),
        use_dora=tuning.use_dora,
        use_rslora=tuning.use_rslora,
        task_type="CAUSAL_LM",
    )
    model = _inject(base, without_experts(causal_lm_of(base), config), name=name)
    start_adapter(model, name, tuning.lora_init, seed=seed)
    _set_trainable(model, name, tuning)
    return model


def load_adapter(
    model: PreTrainedModel | PeftModel,
    source: Checkpoint,
    *,
    name: str,
    trainable: bool,
    tuning: TuningConfig | None = None,
    dropout: float = 0.0,
) -> PeftModel:
    """Load a stored adapter under a name and prove that every one of its weights arrived.

    A reward or value adapter loads into the causal model too; its head is read by load_head.
    A larger `tuning.lora_r` widens the adapter without changing what it computes:
    A' = [A; random], B' = [B, 0], same scale. Rank and scale are else the stored ones.

    Args:
        model: the base, or a model that already carries adapters.
        source: adapter, reward_model or value_model.
        name: name of the adapter inside the model; must be new.
        trainable: whether its weights get gradients.
        tuning: asks for a rank; None keeps the stored one.
        dropout: on the adapter's input; 0 wherever a ratio or a reference is compared.

    Raises:
        ModelError: the folder cannot be read, or holds a kind of adapter that is not plain LoRA.
        HandOverError: it belongs to another base, or its weights do not fit this model exactly.
    """
    stored = open_adapter(source, base_of(model))
    config = _wanted_config(stored, tuning=tuning, dropout=dropout)
    model = _inject(model, config, name=name)
    _fill(model, stored, name=name)
    _set_trainable(model, name, (tuning or TuningConfig()) if trainable else None)
    return model


def load_head(source: Checkpoint) -> dict[str, Tensor]:
    """Read the score head of a reward or value model in fp32: weight (1, hidden), maybe bias (1,).

    Raises:
        HandOverError: the folder holds no head.
    """
    head = {
        key.removeprefix(HEAD_KEY): value.float()
        for key, value in read_tensors(source).items()
        if key.startswith(HEAD_KEY)
    }
    if "weight" not in head:
        raise HandOverError(
            f"{source.source or source.path} holds no score head ({HEAD_KEY}weight)",
            where=source.source,
            hint="give a reward model here; with peft, save the head through modules_to_save=['score']",
            code="missing-head",
        )
    return head


def save_adapter(
    model: PeftModel,
    folder: Path,
    *,
    name: str,
    base: Checkpoint,
    tokenizer: PreTrainedTokenizerBase,
    head: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write one adapter, its config, tokenizer and text contract; the same weights give the same bytes.

    With `head` the folder is a reward or value model: plain peft opens it on
    AutoModelForSequenceClassification(num_labels=1).

    Raises:
        ModelError: a weight is not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {stored_key(key, name): value for key, value in named_adapter_parameters(model, name)}
    tensors |= {HEAD_KEY + key: value for key, value in (head or {}).items()}
    write_tensors(folder / ADAPTER_WEIGHTS_FILE, tensors)
    write_config(folder, model.peft_config[name], base=base, with_head=head is not None)
    tokenizer.save_pretrained(folder)
    contract = TextContract.from_tokenizer(
        tokenizer,
        base=base,
        generation_eos=generation_eos(causal_lm_of(model)),
    )
    contract.write(folder)
    return folder


def trained_parameters(model: torch.nn.Module, name: str) -> list[tuple[str, torch.nn.Parameter]]:
    """Return the weights that get gradients, sorted by name: of one adapter, or of a model without any."""
    if not isinstance(model, PeftModel):
        return sorted((key, value) for key, value in model.named_parameters() if value.requires_grad)
    return [(key, value) for key, value in named_adapter_parameters(model, name) if value.requires_grad]


def is_frozen(key: str, tuning: TuningConfig) -> bool:
    """Say whether a weight belongs to a layer or module that the tuning leaves as it is."""
    if in_frozen_layer(key, tuning.frozen_layers):
        return True
    path = key.split(".lora_")[0].removeprefix("base_model.model.")
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in tuning.frozen_modules)


def in_frozen_layer(key: str, frozen_layers: int) -> bool:
    """Say whether a weight belongs to one of the first layers."""
    layer = _LAYER.search(key)
    return layer is not None and int(layer[1]) < frozen_layers


_LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")


def _inject(model: PreTrainedModel | PeftModel, config: LoraConfig, *, name: str) -> PeftModel:
    """Add untrained adapter layers; mode, gradients of other adapters and random state stay as they were."""
    if not name.isidentifier():
        raise ValueError(f"{name!r} cannot name an adapter: use letters, digits and _")
    if isinstance(model, PeftModel) and name in model.peft_config:
        raise ValueError(f"the model already carries an adapter {name!r}")
    was_training = model.training
    gpus = list(range(torch.cuda.device_count()))
    try:
        with torch.random.fork_rng(devices=gpus), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if isinstance(model, PeftModel):
                model.add_adapter(name, config)
            else:
                model = get_peft_model(model, config, adapter_name=name)
    except ValueError as error:
        first = str(error).splitlines()[0]
        hint = "all-linear, or names of linear layers of this model"
        where = "tuning.target_modules"
        raise ModelError(first, where=where, hint=hint, code="no-target-modules") from error
    return model.train(was_training)


def _set_trainable(model: PeftModel, name: str, tuning: TuningConfig | None) -> None:
    """Let an adapter learn but for what the tuning freezes; without a tuning, none of it learns."""
    for key, parameter in named_adapter_parameters(model, name):
        parameter.requires_grad_(tuning is not None and not is_frozen(key, tuning))


def _wanted_config(stored: StoredAdapter, *, tuning: TuningConfig | None, dropout: float) -> LoraConfig:
    """Build the config to load an adapter with: the stored one, or a wider one of the same scale."""
    rank, alpha = stored.rank, stored.alpha
    if tuning is not None and tuning.use_dora and not stored.magnitudes:
        raise HandOverError(
            f"{stored.name} is plain LoRA, and use_dora asks for an adapter with magnitudes",
            where="tuning.use_dora",
            hint="use_dora: false here, or use_dora: true in the stage that made it",
            code="other-form",
        )
    if tuning is not None and tuning.lora_r != rank:
        if tuning.lora_r < rank:
            raise HandOverError(
                f"{stored.name} has rank {rank}; lora_r: {tuning.lora_r} would cut what it learned",
                where="tuning.lora_r",
                hint=f"lora_r: {rank} or more here, or a smaller lora_r in the stage that made it",
                code="rank-too-small",
            )
        factor = tuning.lora_r / rank
        rank, alpha = tuning.lora_r, alpha * (math.sqrt(factor) if stored.rank_stabilised else factor)
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=stored.target_modules,
        use_rslora=stored.rank_stabilised,
        use_dora=stored.magnitudes,
        task_type="CAUSAL_LM",
    )


def _fill(model: PeftModel, stored: StoredAdapter, *, name: str) -> None:
    """Copy stored weights into an injected adapter; every key and shape must fit."""
    parameters = {stored_key(key, name): value for key, value in named_adapter_parameters(model, name)}
    findings = _key_findings(parameters.keys(), stored)
    for key in sorted(parameters.keys() & stored.tensors.keys()):
        if not _fits(parameters[key].shape, stored.tensors[key].shape, key=key, rank=stored.rank):
            here, there = tuple(parameters[key].shape), tuple(stored.tensors[key].shape)
            message = f"{stored.name}: {key} has shape {there}, the model needs {here}"
            findings.append(Finding(message, stored.name, _OTHER_BASE, "adapter-shape"))
    if findings:
        raise HandOverError.from_findings(findings[:10])
    with torch.no_grad():
        for key, parameter in parameters.items():
            _copy_widened(parameter, stored.tensors[key], key=key)


_OTHER_BASE = "give the base that the adapter was trained on, or train the adapter again on this base"


def _key_findings(wanted: Set[str], stored: StoredAdapter) -> list[Finding]:
    missing, unexpected = sorted(set(wanted) - set(stored.tensors)), sorted(set(stored.tensors) - set(wanted))
    findings = []
    for keys, text in ((missing, "lacks"), (unexpected, "holds, beyond what the model has,")):
        if keys:
            message = f"{stored.name} {text} {len(keys)} weights, first {keys[0]}"
            findings.append(Finding(message, stored.name, _OTHER_BASE, "adapter-keys"))
    return findings


def _fits(here: torch.Size, there: torch.Size, *, key: str, rank: int) -> bool:
    if MAGNITUDE in key:
        return here == there
    axis = 0 if ".lora_A." in key else 1
    same = len(here) == len(there) and all(
        a == b for i, (a, b) in enumerate(zip(here, there, strict=True)) if i != axis
    )
    return same and there[axis] == rank


def _copy_widened(parameter: Tensor, stored: Tensor, *, key: str) -> None:
    """Copy a weight into a parameter of equal or larger rank: A'=[A; random], B'=[B, 0]."""
    if MAGNITUDE in key:
        parameter.copy_(stored.to(parameter))
    elif ".lora_A." in key:
        rows = stored.shape[0]
        parameter[:rows] = stored.to(parameter)
        if rows < parameter.shape[0]:
            parameter[rows:] = uniform_start(parameter.shape, key=key, seed=0)[rows:].to(parameter)
    else:
        parameter.zero_()
        parameter[:, : stored.shape[1]] = stored.to(parameter)
