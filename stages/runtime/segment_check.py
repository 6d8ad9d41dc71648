"""Can this model be packed? Asked of the model itself, on a tiny input, before training starts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stages.runtime.segments import pack_row, segment_model

FLOAT32_TOLERANCE = 1e-4
"Largest difference of hidden states, relative to the largest state, of packed and separate runs."
HALF_TOLERANCE = 0.05
"The same in bfloat16, where each rounds on its own."


def supports_segments(model: nn.Module, *, backbone: nn.Module) -> str | None:
    """Compare a packed row with separate sequences.

    Args:
        model: the whole model, whose attention is switched for the packed run.
        backbone: the part of it that gives hidden states.

    Returns:
        None when the model can be packed, else the reason as one clause.
    """
    groups = _probe(int(model.get_input_embeddings().num_embeddings))
    row, segments = pack_row(groups)
    separate = [[*prompt, *answer] for prompt, answers in groups for answer in answers]
    device = next(model.parameters()).device
    with torch.no_grad():
        expected = [_hidden(backbone, torch.tensor([ids], device=device)) for ids in separate]
        try:
            with segment_model(model):
                positions = segments.position_ids().to(device)
                packed = _hidden(backbone, row.to(device), position_ids=positions, segments=segments)
        except (NotImplementedError, TypeError, ValueError, RuntimeError, KeyError) as error:
            return f"its attention cannot be packed ({(str(error) or type(error).__name__).splitlines()[0]})"
    blocks = packed.split(segments.query_lengths)
    worst = max(
        float((block - whole[-len(block) :]).abs().max())
        for block, whole in zip(blocks, expected, strict=True)
    )
    scale = max(1.0, *(float(whole.abs().max()) for whole in expected))
    limit = FLOAT32_TOLERANCE if expected[0].dtype == torch.float32 else HALF_TOLERANCE
    if not worst <= limit * scale:
        return f"packed and separate sequences differ by {worst:.1e}, more than {limit * scale:.1e}"
    return None


def _probe(vocabulary: int) -> list[tuple[list[int], list[list[int]]]]:
    """Return two prompts with three and two answers of different lengths."""
    ids = [(37 * i + 11) % min(vocabulary, 500) for i in range(40)]
    return [
        (ids[:9], [ids[9:13], ids[13:16], ids[16:18]]),
        (ids[18:21], [ids[21:27], ids[27:28]]),
    ]


def _hidden(backbone: nn.Module, input_ids: Tensor, **arguments: Any) -> Tensor:
    """Return the hidden states (tokens, hidden) of one row."""
    return backbone(input_ids=input_ids, use_cache=False, **arguments).last_hidden_state[0]
