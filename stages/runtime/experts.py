"""Adapters on a mixture of experts: on its plain linear maps, never on the blocks that hold its experts.

peft turns names of expert maps, and all-linear, into adapters of the blocks, with ranks and scales of
their own: forms that cannot be handed on, stacked or widened.
"""

from __future__ import annotations

import copy

from peft import LoraConfig
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import nn
from transformers import PreTrainedModel

from pipeline.errors import ModelError

_EXPERT_NAMES = frozenset({"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"})
"Names of maps that peft takes for those of experts."


def without_experts(model: PreTrainedModel, config: LoraConfig) -> LoraConfig:
    """Return a config that puts adapters on linear maps only; the one given where peft does so anyway.

    Raises:
        ModelError: target_modules names maps of the experts.
    """
    if not _reaches_experts(model, config):
        return config
    maps = _linear_names(model) - _EXPERT_NAMES
    if config.target_modules != "all-linear":
        raise ModelError(
            f"target_modules {sorted(config.target_modules or ())} reaches into the experts of "
            f"{type(model).__name__}, whose adapters cannot be handed on",
            where="tuning.target_modules",
            hint=f"all-linear, or of {', '.join(sorted(maps))}",
            code="adapters-on-experts",
        )
    plain = copy.copy(config)
    plain.target_modules = sorted(maps)
    return plain


def _reaches_experts(model: PreTrainedModel, config: LoraConfig) -> bool:
    tried = copy.deepcopy(config)
    try:
        convert_peft_config_for_transformers(tried, model, None)
    except ValueError:
        # It refuses a part of a fused map of an expert.
        return True
    return bool(tried.target_parameters)


def _linear_names(model: PreTrainedModel) -> set[str]:
    """Return the last parts of the paths of linear maps; the output head carries no adapter."""
    head = model.get_output_embeddings()
    return {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
