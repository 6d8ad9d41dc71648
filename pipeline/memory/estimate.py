"""The memory of one stage on one card: exact terms, bounded terms, and their sum in three cases.

low: rows half as long as max_length and no waste; expected: rows as long as max_length allows;
high: the same with a fragmented allocator and a large CUDA context.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from pipeline.memory.activations import (
    Pass,
    Precision,
    logits_bytes,
    peak_bytes,
    reading_bytes,
    tiled_bytes,
    waiting_bytes,
)
from pipeline.memory.shape import ModelShape
from pipeline.memory.storage import BYTES, Dtype, optimizer_bytes, weight_bytes
from pipeline.memory.trained import Trained
from pipeline.memory.work import Decoding, Workload

MIB = 2**20
CONTEXT = (300 * MIB, 550 * MIB, 900 * MIB)
"CUDA context and kernels: outside the allocator, and different from driver to driver."
WORKSPACE = 64 * MIB
"Workspaces of cuBLAS and cuDNN."
FRAGMENTATION = (0.0, 0.04, 0.10)
"Share of the allocator's bytes that is reserved and cannot be used."
LOGITS_AT_ONCE = 2**26
"Logits that the compact output head holds at once on a GPU."
GATHERED = (1, 2, 4)
"Whole layers at once where layers are cut: the one that runs, the next one on its way, and copies."
_SHORTER = 2
"In the low case rows are this many times shorter than max_length."


@dataclass(frozen=True, slots=True)
class Range:
    """A number of bytes in three cases."""

    low: float
    expected: float
    high: float

    @classmethod
    def exact(cls, value: float) -> Range:
        """Make a range of one number."""
        return cls(value, value, value)

    def __add__(self, other: Range) -> Range:
        return Range(self.low + other.low, self.expected + other.expected, self.high + other.high)

    def times(self, low: float, expected: float, high: float) -> Range:
        """Return each case times a factor of its own."""
        return Range(self.low * low, self.expected * expected, self.high * high)


@dataclass(frozen=True, slots=True)
class StageMemory:
    """What a stage needs, term by term."""

    terms: Mapping[str, Range]
    phase: str
    "When the peak is reached: training, sampling or the optimizer's step."
    num_trained: int
    "Weights that get gradients."
    waiting: float = 0.0
    "Bytes of the host's memory that hold offloaded activations."

    @property
    def allocated(self) -> Range:
        """Bytes of tensors at the peak: what torch.cuda.max_memory_allocated reports."""
        return _sum(value for name, value in self.terms.items() if name not in _OUTSIDE)

    @property
    def total(self) -> Range:
        """Bytes of the card that the stage needs."""
        return _sum(self.terms.values())


_OUTSIDE = ("CUDA context", "fragmentation")


def estimate(work: Workload, shape: ModelShape) -> StageMemory:
    """Return the memory of a stage on a GPU. No weights are loaded."""
    trained = trained_weights(work, shape)
    dtype = held_dtype(work)
    casts = work.autocast or trained.full
    precision = Precision(BYTES[dtype], autocast=casts and work.model.dtype != "float32")
    method = work.tuning.method if work.tuning is not None else "lora"
    weights = weight_bytes(shape, "" if trained.full else method, dtype)
    num_trained, adapters, optimizer = _held(work, trained)
    terms = {
        "base": Range.exact(sum(weights.values()) - elsewhere_bytes(work, shape)),
        "adapters and heads": Range.exact(adapters),
        "gradients": Range.exact(4 * num_trained),
        "optimizer": Range.exact(optimizer),
    }
    if work.parts > 1:
        terms["gathered layers"] = Range(*(count * shape.num_layer * BYTES[dtype] for count in GATHERED))
    if method in ("qlora", "8bit") and not trained.full:
        terms["dequantised layer"] = Range.exact(shape.largest_linear * precision.compute)
    phases = _phases(work, trained, precision, num_trained)
    phase = max(phases, key=lambda name: phases[name].expected)
    terms[phase] = phases[phase]
    terms["workspace"] = Range(WORKSPACE / 2, WORKSPACE, 2 * WORKSPACE)
    terms["fragmentation"] = _sum(terms.values()).times(*FRAGMENTATION)
    terms["CUDA context"] = Range(*CONTEXT)
    step = _step_of(work)
    waiting = waiting_bytes(trained, precision, step) if step is not None else 0.0
    return StageMemory(terms, phase, num_trained, waiting)


def elsewhere_bytes(work: Workload, shape: ModelShape) -> int:
    """Return the bytes of layers that other processes hold: each one keeps some rows of every tensor."""
    rest = shape.num_layer - sum(linear.num_parameters for linear in shape.linears)
    kept = math.ceil(rest / work.parts) + sum(
        math.ceil(linear.outputs / work.parts) * (linear.inputs + linear.bias) for linear in shape.linears
    )
    return shape.layers * (shape.num_layer - kept) * BYTES[held_dtype(work)]


def trained_weights(work: Workload, shape: ModelShape) -> Trained:
    """Return what one trained adapter, or the trained model, holds."""
    tuning = work.tuning
    if tuning is None:
        return Trained(shape, rank=0)
    if tuning.method == "full":
        return Trained(shape, rank=0, frozen_layers=tuning.frozen_layers, frozen=tuning.frozen_modules)
    targets = None if tuning.target_modules == "all-linear" else tuning.target_modules
    return Trained(
        shape,
        rank=tuning.lora_r,
        targets=targets,
        frozen_layers=tuning.frozen_layers,
        magnitudes=tuning.use_dora,
        frozen=tuning.frozen_modules,
    )


def held_dtype(work: Workload) -> Dtype:
    """Return the precision of the base's plain weights on a GPU."""
    whole = work.tuning is None or work.tuning.method == "full"
    if whole or work.model.dtype == "float32":
        return "float32"
    return "bfloat16"


def _step_of(work: Workload) -> Pass | None:
    """Return the pass with gradients as the tuning runs it."""
    if work.step is None or work.tuning is None:
        return work.step
    return replace(work.step, offloading=work.tuning.activation_offloading)


def _held(work: Workload, trained: Trained) -> tuple[int, int, int]:
    """Return trained weights, bytes of adapters and heads, and bytes of optimizer state."""
    heads = work.heads * trained.shape.hidden + work.head_biases
    own = list(trained.shape.own_head) if work.own_head else []
    heads += sum(own)
    num_trained = work.trained * trained.num_trained + heads
    adapters = 4 * ((work.trained + work.frozen) * trained.num_adapter + heads)
    optimizer = work.tuning.optimizer if work.tuning is not None else "adamw"
    sizes = work.trained * trained.sizes + work.heads * [trained.shape.hidden] + work.head_biases * [1] + own
    return num_trained, adapters, optimizer_bytes(sizes, optimizer)


def _phases(work: Workload, trained: Trained, precision: Precision, num_trained: int) -> dict[str, Range]:
    """Return the bytes of each phase beyond what is always held."""
    reading = reading_bytes(trained.shape, work.read_tokens, precision)
    phases = {"reading": Range(reading / _SHORTER, reading, reading)}
    if (step := _step_of(work)) is not None:
        phases["training"] = _bounded(lambda one: _training(work, trained, precision, one), step)
        if work.tuning is None or work.tuning.optimizer == "adamw":
            # The square roots and quotients of a step over all tensors at once.
            phases["optimizer step"] = Range.exact(4 * num_trained)
    if work.decoding is not None:
        phases["sampling"] = _sampling(work.decoding, trained.shape, precision)
    return phases


def _training(work: Workload, trained: Trained, precision: Precision, step: Pass) -> float:
    shape = trained.shape
    if step.all_logits:
        # float32 logits, their softmax's gradient, and the gradient in the model's precision.
        logits: float = step.tokens * shape.vocabulary * (4 + 4 + precision.compute)
    elif work.tiled_head:
        logits = tiled_bytes(shape, step.answers, precision)
    else:
        rows = min(step.answers, max(16, LOGITS_AT_ONCE // shape.vocabulary))
        logits = logits_bytes(shape, rows, with_entropy=work.with_entropy)
    beside = reading_bytes(shape, step.tokens, precision) if work.reads_beside else 0.0
    return peak_bytes(trained, precision, step, logits=logits, beside=beside)


def _sampling(decoding: Decoding, shape: ModelShape, precision: Precision) -> Range:
    """Key-value cache, one layer of it twice, the prompts' first pass and the logits of a step."""
    low = Decoding(decoding.rows, decoding.prompt_tokens // _SHORTER, decoding.new_tokens // _SHORTER)
    low_bytes, high_bytes = (_decoded(case, shape, precision) for case in (low, decoding))
    return Range(low_bytes, high_bytes, high_bytes)


def _decoded(decoding: Decoding, shape: ModelShape, precision: Precision) -> float:
    cache = 2 * (shape.layers + 1) * shape.kv_width * precision.stream * decoding.tokens
    logits = decoding.rows * shape.vocabulary * (precision.stream + 3 * 4)
    prompts = decoding.rows * decoding.prompt_tokens
    first = reading_bytes(shape, prompts, precision) + prompts * decoding.prompt_tokens
    cache_then = cache * decoding.prompt_tokens / max(1, decoding.prompt_tokens + decoding.new_tokens)
    return max(cache + logits, cache_then + first)


def _bounded(cost: Callable[[Pass], float], step: Pass) -> Range:
    short = replace(
        step,
        tokens=step.tokens // _SHORTER,
        answers=step.answers // _SHORTER,
        row_tokens=step.row_tokens // _SHORTER,
    )
    return Range(cost(short), cost(step), cost(step))


def _sum(values: Iterable[Range]) -> Range:
    total = Range.exact(0)
    for value in values:
        total += value
    return total
