"""What a tuning trains: which weights of which layers, and how many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pipeline.memory.shape import Linear, ModelShape


@dataclass(frozen=True, slots=True)
class Trained:
    """The trained weights of one copy of the model, or of one adapter."""

    shape: ModelShape
    rank: int = 16
    "Of the adapters; 0 trains the weights themselves."
    targets: Sequence[str] | None = None
    "Names of the linear maps that carry an adapter; None is all of them."
    frozen_layers: int = 0
    "First layers in which nothing is trained."
    magnitudes: bool = False
    "DoRA: one more number an output."
    frozen: Sequence[str] = ()
    "Patterns of module paths in which nothing is trained."

    @property
    def full(self) -> bool:
        """Whether the weights themselves are trained."""
        return self.rank == 0

    @property
    def layers(self) -> int:
        """Layers in which something is trained."""
        return max(0, self.shape.layers - self.frozen_layers)

    @property
    def adapted(self) -> tuple[Linear, ...]:
        """Linear maps of one layer that carry an adapter."""
        if self.full:
            return ()
        named = self.targets
        return tuple(one for one in self.shape.linears if named is None or _is_named(one.name, named))

    @property
    def sizes(self) -> list[int]:
        """Numbers of weights of every trained tensor, as an optimizer holds them."""
        if self.full:
            return self._full_sizes()
        shape = self.shape
        inside = [
            size
            for layer in range(self.frozen_layers, shape.layers)
            for one in self.adapted
            if not self._is_frozen(shape.path(layer, one))
            for size in self._map_sizes(one)
        ]
        return inside + [size for one in self._outside for size in self._map_sizes(one)]

    @property
    def num_adapter(self) -> int:
        """Weights of one whole adapter, frozen layers included; 0 where the weights themselves train."""
        inside = self.shape.layers * sum(sum(self._map_sizes(one)) for one in self.adapted)
        return inside + sum(sum(self._map_sizes(one)) for one in self._outside)

    @property
    def num_trained(self) -> int:
        """Weights that get gradients."""
        return sum(self.sizes)

    @property
    def learning(self) -> tuple[Linear, ...]:
        """Linear maps of a layer, the last one, whose adapters get gradients."""
        last = self.shape.layers - 1
        return tuple(one for one in self.adapted if not self._is_frozen(self.shape.path(last, one)))

    @property
    def _outside(self) -> tuple[Linear, ...]:
        """Linear maps outside the layers that carry an adapter."""
        named = self.targets
        outer = () if self.full else self.shape.outer_linears
        return tuple(one for one in outer if named is None or _is_named(one.name, named))

    def _map_sizes(self, one: Linear) -> list[int]:
        sizes = [self.rank * one.inputs, self.rank * one.outputs]
        return [*sizes, one.outputs] if self.magnitudes else sizes

    def _is_frozen(self, path: str) -> bool:
        return any(fnmatchcase(path, pattern) for pattern in self.frozen)

    def _expert_sizes(self) -> list[int]:
        shape, sizes = self.shape, []
        for layer in range(self.frozen_layers, shape.layers if shape.experts else 0):
            blocks = (*("mlp.experts",) * 2, "mlp.gate")
            for block, size in zip(blocks, shape.experts.sizes if shape.experts else (), strict=True):
                if not self._is_frozen(f"{shape.layers_path}.{layer}.{block}"):
                    sizes.append(size)
        return sizes

    def _full_sizes(self) -> list[int]:
        shape = self.shape
        maps = [
            size
            for layer in range(self.frozen_layers, shape.layers)
            for one in shape.linears
            if not self._is_frozen(shape.path(layer, one))
            for size in (one.num_weights, one.outputs if one.bias else 0)
        ]
        maps += self._expert_sizes()
        norm = shape.layer_vectors // max(1, shape.layer_norms)
        # What a layer's norms leave over are norms of queries and keys.
        rest = shape.layer_vectors - norm * shape.layer_norms
        norms = self.layers * [*([norm] * shape.layer_norms), rest]
        bias = shape.vocabulary if shape.head_bias else 0
        outer = [shape.positions * shape.hidden, shape.outer_vectors]
        if not self._is_frozen(shape.table_path):
            outer.append(shape.vocabulary * shape.hidden)
        if not self._is_frozen("lm_head"):
            outer += [shape.num_head - bias, bias]
        return [size for size in (*maps, *norms, *outer) if size]


def _is_named(name: str, named: Sequence[str]) -> bool:
    return any(name == wanted or wanted.endswith(f".{name}") for wanted in named)
