"""Log-probabilities of the reference policy: computed once, kept by content, never computed again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import transformers
from torch import Tensor

from pipeline.canonical import digest
from stages.runtime.ranks import ONE, Ranks
from stages.runtime.saving.cache import TensorCache
from stages.trainers.pair_data import TokenPair

Logps = dict[str, Tensor]
"`chosen` and `rejected`: summed log-probabilities (pairs,) in float32."
Compute = Callable[[Sequence[TokenPair]], Logps]
"Pairs -> their log-probabilities, in the order given."
VERSION = 1
"Raise it when the same inputs give other numbers."


def reference_key(pairs: Sequence[TokenPair], *, base: str, adapter: str, dtype: str, layout: str) -> str:
    """Return the name of a set of reference log-probabilities: everything they depend on, nothing else.

    Args:
        pairs: whose token ids count; text, labels and weights do not.
        base: fingerprint of the base.
        adapter: fingerprint of the reference's adapter.
        dtype: precision and quantisation of the base, rank of the adapter, device.
        layout: packed or padded, and the token budget: they change rounding.
    """
    tokens = hashlib.sha256()
    for pair in pairs:
        for part in _ids(pair):
            tokens.update(len(part).to_bytes(4, "big"))
            tokens.update(b"".join(token.to_bytes(4, "big") for token in part))
    return digest(
        {
            "what": f"reference log-probs {VERSION}",
            "base": base,
            "adapter": adapter,
            "dtype": dtype,
            "layout": layout,
            "tokens": tokens.hexdigest(),
            "versions": [torch.__version__, transformers.__version__],
        }
    )


def reference_logps(
    folder: Path,
    pairs: Sequence[TokenPair],
    key: Callable[[Sequence[TokenPair]], str],
    compute: Compute,
    *,
    ranks: Ranks = ONE,
) -> tuple[Logps, int]:
    """Return the reference's log-probabilities of pairs, from the cache or computed and stored.

    Each different pair is computed once, in the order of its token ids: how a seed or a share
    splits the pairs for training changes neither the numbers nor the key. A damaged entry is
    computed again, and said so in the log.

    Args:
        folder: of the cache.
        pairs: whose log-probabilities are asked for.
        key: names a set of pairs: reference_key with everything else filled in.
        compute: the reference policy.
        ranks: processes that all compute, and one of which keeps the cache.

    Returns:
        The log-probabilities in the order of `pairs`, and how many pairs were computed.
    """
    different = {_ids(pair): pair for pair in pairs}
    names = sorted(different)
    ordered = [different[name] for name in names]
    cache, entry = TensorCache(folder), key(ordered)
    held = ranks.from_main(lambda: cache.read(entry))
    computed = 0
    if held is None or not _usable(held, len(ordered)):
        held, computed = compute(ordered), len(ordered)
        if ranks.is_main:
            cache.write(entry, held)
    place = {name: number for number, name in enumerate(names)}
    index = torch.tensor([place[_ids(pair)] for pair in pairs])
    return {side: values[index] for side, values in held.items()}, computed


def _ids(pair: TokenPair) -> tuple[tuple[int, ...], ...]:
    return pair.prompt, pair.chosen, pair.rejected


def _usable(held: Logps, num_pairs: int) -> bool:
    shapes = {name: tuple(value.shape) for name, value in held.items()}
    wanted = {"chosen": (num_pairs,), "rejected": (num_pairs,)}
    return shapes == wanted and all(bool(torch.isfinite(value).all()) for value in held.values())
