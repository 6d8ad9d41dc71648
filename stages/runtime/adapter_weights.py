"""The weights of one adapter inside a model, by name, and their names in a PEFT folder."""

from __future__ import annotations

import torch
from peft import PeftModel

MAGNITUDE = ".lora_magnitude_vector"
"Part of the name of DoRA's lengths."


def named_adapter_parameters(model: PeftModel, name: str) -> list[tuple[str, torch.nn.Parameter]]:
    """Return the weights of one adapter with their full names, sorted by name."""
    part = f".{name}."
    found = ((key, value) for key, value in model.named_parameters() if ".lora_" in key and part in key)
    return sorted(found, key=lambda item: item[0])


def stored_key(key: str, name: str) -> str:
    """Return the name of a weight in a PEFT folder: the adapter's own name is left out.

    DoRA's lengths stand there without their trailing `.weight`, as peft writes them.
    """
    before, _, after = key.rpartition(f".{name}.")
    return before if before.endswith(MAGNITUDE) else f"{before}.{after}"
