"""Optimizer and random state as named tensors and JSON, so that a checkpoint needs no pickle."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

NamedParameters = Sequence[tuple[str, nn.Parameter]]


def pack_optimizer(optimizer: torch.optim.Optimizer, parameters: NamedParameters) -> dict[str, Tensor]:
    """Return the optimizer's state as `parameter|slot` -> tensor (AdamW: step, exp_avg, exp_avg_sq).

    bitsandbytes counts steps in a plain number; it is packed as a tensor and comes back as a number.
    """
    return {
        f"{name}|{slot}": value if isinstance(value, Tensor) else torch.tensor(value)
        for name, parameter in parameters
        for slot, value in sorted(optimizer.state.get(parameter, {}).items())
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, parameters: NamedParameters, tensors: Mapping[str, Tensor]
) -> None:
    """Put a packed state back; every tensor must belong to a parameter of this optimizer.

    Raises:
        ValueError: the state speaks of other parameters.
    """
    by_name = dict(parameters)
    for key, value in tensors.items():
        name, slot = key.rsplit("|", 1)
        if name not in by_name:
            raise ValueError(f"the checkpoint holds optimizer state of {name}, which is not trained here")
        parameter = by_name[name]
        if slot == "step" and not isinstance(optimizer, torch.optim.AdamW):
            optimizer.state[parameter][slot] = int(value)
            continue
        on = torch.device("cpu") if slot == "step" else parameter.device
        optimizer.state[parameter][slot] = value.to(on).clone()


def pack_parameters(parameters: NamedParameters) -> dict[str, Tensor]:
    """Return the trained weights by name."""
    return {name: parameter.detach() for name, parameter in parameters}


def restore_parameters(parameters: NamedParameters, tensors: Mapping[str, Tensor]) -> None:
    """Copy saved weights back in place.

    Raises:
        ValueError: names or shapes are not those of the parameters.
    """
    by_name = dict(parameters)
    if by_name.keys() != tensors.keys():
        odd = sorted(by_name.keys() ^ tensors.keys())
        raise ValueError(f"the checkpoint holds other weights: {len(odd)} differ, first {odd[0]}")
    with torch.no_grad():
        for name, parameter in parameters:
            if parameter.shape != tensors[name].shape:
                raise ValueError(f"the checkpoint's {name} has shape {tuple(tensors[name].shape)}")
            parameter.copy_(tensors[name])


def pack_random_state() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the state of torch (CPU and every GPU), numpy and python, as tensors and JSON."""
    tensors = {"torch": torch.get_rng_state()}
    for index in range(torch.cuda.device_count()):
        tensors[f"cuda{index}"] = torch.cuda.get_rng_state(index)
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    tensors["numpy"] = torch.from_numpy(np.asarray(keys, dtype=np.int64))
    return tensors, {
        "python": [version, list(words), gauss],
        "numpy": [str(name), int(position), int(has_gauss), float(cached)],
    }


def restore_random_state(tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Set torch, numpy and python back to a packed state."""
    torch.set_rng_state(tensors["torch"])
    for index in range(torch.cuda.device_count()):
        if f"cuda{index}" in tensors:
            torch.cuda.set_rng_state(tensors[f"cuda{index}"], index)
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, position, has_gauss, cached = state["numpy"]
    keys = tensors["numpy"].numpy().astype(np.uint32)
    np.random.set_state((name, keys, position, has_gauss, cached))
