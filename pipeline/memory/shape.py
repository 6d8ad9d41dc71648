"""The shape of a causal language model: every weight counted, nothing loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Norm = Literal["rms", "layer"]


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear map of one layer."""

    name: str
    "Last part of its module's path, as target_modules names it."
    inputs: int
    outputs: int
    bias: bool
    reads: str
    "Which activation it reads; maps that read the same one may share what autograd keeps of it."
    block: str = ""
    "Module of the layer that holds it; empty when the layer does."

    @property
    def num_weights(self) -> int:
        """Entries of the matrix."""
        return self.inputs * self.outputs

    @property
    def num_parameters(self) -> int:
        """Entries of the matrix and the bias."""
        return self.num_weights + (self.outputs if self.bias else 0)


@dataclass(frozen=True, slots=True)
class Experts:
    """The experts of one layer, stored as two blocks, and the router that chooses among them."""

    count: int
    active: int
    "Experts that compute a token."
    hidden: int
    inner: int
    "Width of one expert."

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Weights of each tensor: gate and up maps together, down maps, router."""
        block = self.count * self.inner * self.hidden
        return (2 * block, block, self.count * self.hidden)

    @property
    def num_active(self) -> int:
        """Weights that compute a token."""
        return self.active * 3 * self.inner * self.hidden + self.count * self.hidden


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What a config.json says of a decoder's sizes."""

    model_type: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    "Of the feed-forward part; with experts, of those together that compute a token."
    vocabulary: int
    linears: tuple[Linear, ...]
    "Of one layer; all layers are alike."
    tied: bool
    "The output head is the token embedding."
    norm: Norm
    layer_norms: int
    "Norms of one layer that read a (tokens, hidden) tensor."
    layer_vectors: int
    "Parameters of one layer that are not in a linear map: norms, and norms of queries and keys."
    outer_vectors: int
    "Parameters of the final norm."
    positions: int = 0
    "Rows of a learned position table; 0 for rotary positions."
    head_bias: bool = False
    gated: bool = True
    "The feed-forward part multiplies act(gate) with up."
    act_copies: int = 1
    "Tensors (tokens, intermediate) that the activation function keeps for its gradient."
    qk_norm: bool = False
    softcap: bool = False
    "Attention scores are bounded, so no fused kernel computes them."
    max_positions: int | None = None
    layers_path: str = "model.layers"
    "Module that holds the layers."
    table_path: str = "model.embed_tokens"
    "Module of the token embedding."
    norms_first: bool = True
    "Norms stand before the maps of a layer, and one behind the last layer; False: behind the maps."
    outer_linears: tuple[Linear, ...] = ()
    "Maps outside the layers that carry adapters."
    experts: Experts | None = None
    "No adapter and no quantisation reaches them."
    own_head: tuple[int, ...] = ()
    "Numbers of weights of each tensor of a classification head of the model's own."

    @property
    def query_width(self) -> int:
        """Width of all query heads."""
        return self.heads * self.head_size

    @property
    def kv_width(self) -> int:
        """Width of all key heads."""
        return self.kv_heads * self.head_size

    @property
    def num_embedding(self) -> int:
        """Parameters of the token and position tables."""
        return (self.vocabulary + self.positions) * self.hidden

    @property
    def num_head(self) -> int:
        """Parameters of the output head beyond the token table; its bias included."""
        return (0 if self.tied else self.vocabulary * self.hidden) + (
            self.vocabulary if self.head_bias else 0
        )

    @property
    def num_linear(self) -> int:
        """Entries of all matrices of all layers: what a quantised base holds in few bits."""
        return self.layers * sum(linear.num_weights for linear in self.linears)

    @property
    def num_vectors(self) -> int:
        """Biases and norms."""
        biases = sum(linear.outputs for linear in self.linears if linear.bias)
        return self.layers * (biases + self.layer_vectors) + self.outer_vectors

    @property
    def num_parameters(self) -> int:
        """All parameters, tied ones once."""
        return (
            self.num_embedding
            + self.num_head
            + self.num_linear
            + self.num_vectors
            + self.num_outer
            + self.num_experts
        )

    @property
    def num_experts(self) -> int:
        """Parameters of all experts and routers."""
        return self.layers * sum(self.experts.sizes) if self.experts else 0

    @property
    def num_active(self) -> int:
        """Weights of the layers that compute a token: all matrices, of the experts the chosen ones."""
        return self.num_linear + (self.layers * self.experts.num_active if self.experts else 0)

    @property
    def num_outer(self) -> int:
        """Parameters of maps outside the layers and of a classification head of the model's own."""
        return sum(one.num_parameters for one in self.outer_linears) + sum(self.own_head)

    @property
    def num_layer(self) -> int:
        """Parameters of one layer."""
        inside = sum(linear.num_parameters for linear in self.linears) + self.layer_vectors
        return inside + (sum(self.experts.sizes) if self.experts else 0)

    def path(self, layer: int, linear: Linear) -> str:
        """Return the full path of a linear map's module."""
        return ".".join(filter(None, (self.layers_path, str(layer), linear.block, linear.name)))

    def all_linears(self) -> Iterator[Linear]:
        """Yield every linear map of every layer."""
        for _ in range(self.layers):
            yield from self.linears

    @property
    def largest_linear(self) -> int:
        """Entries of the largest matrix of a layer: what dequantising holds at once."""
        return max(linear.num_weights for linear in self.linears)
