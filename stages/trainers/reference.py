"""Log-probabilities of the reference policy: computed once, kept by content, never computed again."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.canonical import digest
from stages.runtime.saving.durable import publish
from stages.trainers.pair_data import TokenPair

LOGGER = logging.getLogger(__name__)

Logps = dict[str, Tensor]
"`chosen` and `rejected`: summed log-probabilities (pairs,) in float32."
_FILE = "logps.safetensors"


def reference_key(pairs: Sequence[TokenPair], *, base: str, adapter: str, dtype: str, layout: str) -> str:
    """Return the name of a set of reference log-probabilities: everything they depend on, nothing else.

    Args:
        pairs: whose token ids count; labels, weights and order of training do not.
        base: fingerprint of the base.
        adapter: fingerprint of the reference's adapter.
        dtype: precision and quantisation of the base.
        layout: packed or padded, and the token budget: they change rounding.
    """
    tokens = hashlib.sha256()
    for pair in pairs:
        for part in (pair.prompt, pair.chosen, pair.rejected):
            tokens.update(len(part).to_bytes(4, "big"))
            tokens.update(b"".join(token.to_bytes(4, "big") for token in part))
    return digest(
        {"base": base, "adapter": adapter, "dtype": dtype, "layout": layout, "tokens": tokens.hexdigest()}
    )


def cached_logps(folder: Path, key: str, num_pairs: int, compute: Callable[[], Logps]) -> tuple[Logps, bool]:
    """Read log-probabilities from the cache, or compute and store them.

    A damaged file is computed again and said so in the log.

    Returns:
        The log-probabilities, and whether they came from the cache.
    """
    place = folder / f"reference-{key[:32]}"
    held = _read(place / _FILE, num_pairs)
    if held is not None:
        return held, True
    logps = compute()
    with publish(place) as temporary:
        save_file(logps, temporary / _FILE)
    return logps, False


def _read(path: Path, num_pairs: int) -> Logps | None:
    if not path.is_file():
        return None
    try:
        held = load_file(path)
    except (SafetensorError, OSError) as error:
        LOGGER.warning("%s is damaged and computed again: %s", path, error)
        return None
    shapes = {name: tuple(value.shape) for name, value in held.items()}
    if shapes != {"chosen": (num_pairs,), "rejected": (num_pairs,)}:
        LOGGER.warning("%s is damaged and computed again: it holds %s", path, shapes)
        return None
    return held if all(bool(torch.isfinite(value).all()) for value in held.values()) else None
