"""Bytes that a forward pass keeps for the backward pass, item by item, from the shape alone.

The items follow what autograd saves in transformers' layers with peft's adapters: inputs of norms in
float32, inputs of trained maps, what attention and the activation function need.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.memory.shape import Linear, ModelShape
from pipeline.memory.trained import Trained

FULL = 4
"Bytes of a float32."
TILE = (4096, 32768)
"Positions and vocabulary entries of a tile of TRL's output head."
WAITING = ("layers", "layer inputs", "final norm")
"Items that wait in the host's memory where activations are offloaded."
_PLACES = 40
"Bytes that say where the rows of one chosen expert come from and go to, and their weight."
_SCORE_COPIES = 4
"Tensors (heads, queries, keys) kept where no fused kernel computes attention."


@dataclass(frozen=True, slots=True)
class Precision:
    """In what precision a forward pass runs."""

    stream: int
    "Bytes of a number between the layers: 2 in bfloat16, 4 in float32."
    autocast: bool = False
    "Matrix products in bfloat16 whatever the weights are."

    @property
    def compute(self) -> int:
        """Bytes of a number that a matrix product gives."""
        return 2 if self.autocast else self.stream


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward pass with gradients."""

    tokens: int
    "Positions computed, padding included."
    row_tokens: int
    "Tokens of the longest row: what attention without a fused kernel squares."
    answers: int
    "Positions whose next token counts in the loss; 0 where no token's probability is needed."
    key_share: float = 1.0
    "Keys that attention holds for each position; more than 1 where answers share a prompt."
    all_logits: bool = False
    "The loss makes the logits of every position."
    checkpointing: bool = False
    "Layers are recomputed in the backward pass."
    offloading: bool = False
    "What the layers keep waits in the host's memory."


def saved_bytes(trained: Trained, precision: Precision, step: Pass) -> dict[str, float]:
    """Return what is kept at the end of the forward pass: layers, and what stands around them.

    With checkpointing a layer keeps its input only, `recomputed` then holds one layer in full.
    """
    shape = trained.shape
    layer = sum(layer_bytes(trained, precision, step).values())
    kept: dict[str, float] = {}
    if step.checkpointing:
        kept["layer inputs"] = trained.layers * step.tokens * shape.hidden * precision.stream
        kept["recomputed"] = step.tokens * layer
    else:
        kept["layers"] = step.tokens * (trained.layers * layer - _first_norm(trained, precision))
    return kept | _around(trained, precision, step)


def waiting_bytes(trained: Trained, precision: Precision, step: Pass) -> float:
    """Return what waits in the host's memory at the end of the forward pass."""
    kept = saved_bytes(trained, precision, step)
    return sum(kept.get(name, 0.0) for name in WAITING) if step.offloading else 0.0


def layer_bytes(trained: Trained, precision: Precision, step: Pass) -> dict[str, float]:
    """Return the bytes that one layer keeps for each token, by what they are for."""
    shape = trained.shape
    attention = precision.compute * 2 * (shape.query_width + step.key_share * shape.kv_width)
    attention += FULL * shape.heads
    if shape.softcap:
        attention += _SCORE_COPIES * shape.heads * step.row_tokens * precision.compute
    return {
        "norms": shape.layer_norms * _norm(shape, precision, trained=trained.full) + _qk_norms(trained),
        "inputs of trained maps": _inputs(trained, precision),
        "adapters": len(trained.learning) * trained.rank * (2 if precision.autocast else FULL)
        + (_magnitudes(trained, precision) if trained.magnitudes else 0),
        "attention": attention,
        "feed-forward": shape.intermediate * precision.compute * (3 if shape.gated else shape.act_copies),
        "experts": _routed(shape, precision),
    }


def transient_bytes(shape: ModelShape, step: Pass) -> float:
    """Return what the backward pass of one layer holds beyond what was kept: gradients on their way.

    One float32 gradient as wide as the feed-forward part and two or three as wide as the hidden states,
    fitted on the live tensors of the project's trainers; with experts, one in half precision for each
    that computes a token.
    """
    routed = 2 * shape.experts.active * shape.hidden if shape.experts else 0
    return step.tokens * (FULL * shape.intermediate + 10 * shape.hidden + routed)


def lengths_bytes(trained: Trained) -> float:
    """Return what DoRA holds to measure one weight: an identity, the weight, its update; all float32."""
    if not trained.magnitudes:
        return 0.0
    return max(FULL * (one.inputs**2 + 3 * one.num_weights) for one in trained.learning)


def logits_bytes(shape: ModelShape, rows: int, *, with_entropy: bool) -> float:
    """Return the float32 logits that are held at once for some rows, with the copies of their softmax."""
    return rows * shape.vocabulary * FULL * (3 if with_entropy else 2)


def tiled_bytes(shape: ModelShape, rows: int, precision: Precision, *, width: int = TILE[1]) -> float:
    """Return what TRL's output head holds: one tile of logits, as wide for any vocabulary, and gradients.

    Source: trl 1.16, trl/kernels/chunked_logprob.py, ChunkedLogProbFunction.
    """
    return min(rows, TILE[0]) * width * precision.compute + rows * shape.hidden * FULL


def reading_bytes(shape: ModelShape, tokens: int, precision: Precision) -> float:
    """Return what a layer of a pass without gradients holds at its widest."""
    wide = 3 * shape.intermediate * precision.stream
    return tokens * (wide + shape.hidden * (FULL + 3 * precision.stream))


def peak_bytes(
    trained: Trained, precision: Precision, step: Pass, *, logits: float, beside: float = 0.0
) -> float:
    """Return the peak of a forward and a backward pass: at the output head, or inside a layer.

    Args:
        trained: weights that get gradients.
        precision: of the pass.
        step: its sizes.
        logits: bytes that the output head holds at once.
        beside: bytes of a pass without gradients while the graph is held.
    """
    kept = saved_bytes(trained, precision, step)
    inside = kept.pop("recomputed", 0.0) + transient_bytes(trained.shape, step) + lengths_bytes(trained)
    if step.offloading:
        kept = {name: size for name, size in kept.items() if name not in WAITING}
        passing = _passing(trained.shape, precision, step)
        inside = inside + passing if step.checkpointing else max(inside, passing)
    return sum(kept.values()) + max(logits, inside, beside)


def _passing(shape: ModelShape, precision: Precision, step: Pass) -> float:
    """Bytes on the card of what is on its way to the host or back; fitted on live tensors.

    With recomputed layers their inputs come back; else a layer's forward pass holds its widest tensors
    until they are copied, each as an adapter reads it too.
    """
    if step.checkpointing:
        return step.tokens * shape.hidden * 3 * precision.stream
    cast = FULL if precision.stream < FULL and not precision.autocast else 0
    wide = shape.intermediate * (4 * precision.stream + cast)
    return step.tokens * (wide + shape.hidden * (2 * FULL + 2 * precision.stream))


def _norm(shape: ModelShape, precision: Precision, *, trained: bool) -> float:
    """Bytes a token of one norm over the hidden states: its input and its statistics."""
    if shape.norm == "layer":
        return shape.hidden * (FULL if precision.autocast else precision.stream) + 2 * FULL
    return shape.hidden * (FULL + (precision.stream if trained else 0)) + FULL


def _routed(shape: ModelShape, precision: Precision) -> float:
    """Bytes a token of routing: what each chosen expert gave, where its rows went, and the choice itself."""
    experts = shape.experts
    if experts is None:
        return 0.0
    return experts.active * (shape.hidden * precision.compute + _PLACES) + experts.count * FULL


def _qk_norms(trained: Trained) -> float:
    shape = trained.shape
    if not shape.qk_norm:
        return 0
    copies = 2 if trained.full else 1
    return FULL * copies * (shape.query_width + shape.kv_width) + FULL * (shape.heads + shape.kv_heads)


def _inputs(trained: Trained, precision: Precision) -> float:
    """Bytes a token of what trained maps read; casts make a copy a map, else maps share one."""
    total = 0.0
    for width, maps in _readers(trained).values():
        if trained.full:
            cast = precision.autocast and precision.stream == FULL and maps > 1
            total += width * precision.compute * (maps if cast else 1)
        elif precision.autocast:
            total += width * 2 * maps
        else:
            total += width * FULL * (maps if precision.stream < FULL else 1)
    return total


def _readers(trained: Trained) -> Mapping[str, tuple[int, int]]:
    """Return, for each activation that trained maps read, its width and how many of them read it."""
    maps: tuple[Linear, ...] = trained.shape.linears if trained.full else trained.learning
    found: dict[str, tuple[int, int]] = {}
    for one in maps:
        found[one.reads] = (one.inputs, found.get(one.reads, (0, 0))[1] + 1)
    return found


def _magnitudes(trained: Trained, precision: Precision) -> float:
    """DoRA also keeps what the base and the adapter gave, to learn how large their sum is."""
    outputs = sum(one.outputs for one in trained.learning)
    return outputs * (precision.compute + (2 if precision.autocast else FULL))


def _first_norm(trained: Trained, precision: Precision) -> float:
    """The first norm that sees no gradient keeps nothing: nothing before it is trained."""
    kept = trained.full or not trained.shape.norms_first
    return 0.0 if kept else _norm(trained.shape, precision, trained=False)


def _around(trained: Trained, precision: Precision, step: Pass) -> dict[str, float]:
    shape = trained.shape
    rotary = 0 if shape.positions else 2 * shape.head_size * precision.stream
    final = (_norm(shape, precision, trained=trained.full) if shape.norms_first else 0) + rotary
    head = 0.0
    if step.all_logits:
        head = step.tokens * (FULL * shape.vocabulary + shape.hidden * precision.compute)
    elif step.answers:
        head = step.answers * (shape.hidden * precision.stream + 16)
    around = {"final norm": step.tokens * final, "output head": head}
    if trained.full and precision.autocast:
        # Autocast keeps a bfloat16 copy of every trained matrix until the backward pass is done.
        around["cast weights"] = 2 * (shape.num_linear + shape.vocabulary * shape.hidden)
    return around
