"""AdamW in the forms that a tuning may ask for: torch's own, or bitsandbytes' paged and 8-bit ones."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch

TRL_NAMES = {
    "adamw": "adamw_torch",
    "paged_adamw": "paged_adamw_32bit",
    "adamw_8bit": "adamw_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
}
"The same choice as transformers' trainers name it."


def make_adamw(groups: Iterable[Mapping[str, Any]], kind: str, **settings: Any) -> torch.optim.Optimizer:
    """Make AdamW over parameter groups.

    Args:
        groups: as torch.optim.AdamW takes them.
        kind: adamw, paged_adamw, adamw_8bit or paged_adamw_8bit.
        settings: lr, betas, eps and weight_decay, under torch's names.
    """
    given = [dict(group) for group in groups]
    if kind == "adamw":
        return torch.optim.AdamW(given, **settings)
    from bitsandbytes import optim

    classes = {
        "paged_adamw": optim.PagedAdamW,
        "adamw_8bit": optim.AdamW8bit,
        "paged_adamw_8bit": optim.PagedAdamW8bit,
    }
    # On a CPU there is nothing to page to, and it says so at the first step.
    warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")
    made: torch.optim.Optimizer = classes[kind](given, **settings)
    return made
