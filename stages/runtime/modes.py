"""Evaluation mode for a while, and every module back as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into eval() for the block and give each module its own mode back afterwards.

    `model.train(was_training)` would set all modules alike, and so switch off activation
    checkpointing where only the layers were in train().
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
