"""Choose which adapter of a model is in effect, in microseconds and without side effects.

peft's own set_adapter and disable_adapter flip requires_grad: with them a value adapter can stop
learning in silence. This switch sets the two fields that a forward pass reads, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import TracebackType

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper

from pipeline.errors import ModelError
from stages.runtime.dora import with_lengths
from stages.runtime.ranks import ONE, Ranks

_REMEDY = "pip install 'peft>=0.21,<0.22'"


class AdapterSwitch:
    """Selects one adapter, or none, in every layer of a model.

    The layers are looked up once, and again only when adapters were added. It relies on two private
    fields of peft, `_active_adapter` and `_disable_adapters`; self_test() checks that they still
    mean what they did.
    """

    def __init__(self, model: PeftModel) -> None:
        self._model = model
        self._layers: list[BaseTunerLayer | AuxiliaryTrainingWrapper] = []
        self._names: tuple[str, ...] = ()
        self._find_layers()

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters that the model carries, in the order they were added."""
        return tuple(self._model.peft_config)

    @property
    def current(self) -> str | None:
        """The adapter in effect now; None when the base works alone."""
        layer = self._layers[0]
        if layer._disable_adapters:
            return None
        active = layer._active_adapter
        return active if isinstance(active, str) else active[0]

    def use(self, name: str | None) -> None:
        """Put one adapter in effect, or none. requires_grad is never touched.

        Raises:
            KeyError: the model carries no adapter of that name.
        """
        if self.names != self._names:
            self._find_layers()
        if name is None:
            for layer in self._layers:
                layer._disable_adapters = True
            return
        if name not in self._names:
            raise KeyError(f"no adapter {name!r}; the model carries {', '.join(self._names)}")
        for layer in self._layers:
            layer._active_adapter = [name]
            layer._disable_adapters = False

    @contextmanager
    def on(self, name: str | None) -> Iterator[None]:
        """Put an adapter in effect inside a with block; the one before returns, also after an error."""
        before = self.current
        self.use(name)
        try:
            yield
        finally:
            self.use(before)

    def pinned(self) -> AbstractContextManager[None]:
        """Return a context that puts the adapter that is current now in effect again, any number of times."""
        return _Pinned(self, self.current)

    def self_test(self, ranks: Ranks = ONE) -> None:
        """Check on one layer, with random numbers, that the switch does what it says.

        Args:
            ranks: where each holds a part of the layer, they put it together for the length of the test.

        Raises:
            ModelError: the installed peft computes something else, or requires_grad moved.
        """
        layer = next(item for item in self._layers if isinstance(item, LoraLayer))
        if not ranks.place.in_parts:
            self._test(layer)
            return
        from stages.runtime.parts import layer_gathered

        with layer_gathered(self._model, layer):
            self._test(layer)

    def _test(self, layer: LoraLayer) -> None:
        before = [p.requires_grad for p in self._model.parameters()]
        base = layer.get_base_layer()
        first = next(iter(layer.lora_A.values())).weight
        generator = torch.Generator().manual_seed(0)
        # A base in half precision takes no fp32 input; one in 4 bits takes any.
        weight = base.weight
        dtype = weight.dtype if weight.dtype.is_floating_point else first.dtype
        x = torch.randn(3, first.shape[1], generator=generator).to(first.device, dtype)
        with torch.no_grad(), self.on(None):
            alone = layer(x)
            _require(torch.equal(alone, base(x)), "a disabled adapter still changes the output")
        for name in layer.lora_A:
            self._check_layer(layer, name, x, alone)
        _require(before == [p.requires_grad for p in self._model.parameters()], "requires_grad moved")

    def _check_layer(self, layer: LoraLayer, name: str, x: torch.Tensor, alone: torch.Tensor) -> None:
        down, up = layer.lora_A[name], layer.lora_B[name]
        with torch.no_grad(), self.on(name):
            expected = alone + (up(down(x.to(down.weight.dtype))) * layer.scaling[name]).to(alone.dtype)
            if name in layer.lora_magnitude_vector:
                lengths = layer.lora_magnitude_vector[name].weight
                a, b, scale = down.weight, up.weight, layer.scaling[name]
                expected = with_lengths(expected, layer, down=a, up=b, scale=scale, lengths=lengths)
            got = layer(x)
        tolerance = 1e-5 if alone.dtype == torch.float32 else 1e-1
        largest = float(expected.float().abs().max())
        apart = float((got.float() - expected.float()).abs().max())
        _require(
            apart <= tolerance * max(1.0, largest), f"adapter {name!r} is not in effect when switched on"
        )

    def _find_layers(self) -> None:
        kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
        self._layers = [module for module in self._model.modules() if isinstance(module, kinds)]
        self._names = self.names
        if not self._layers:
            raise ValueError("the model carries no adapter")


def enable_checkpointing(model: PeftModel, switch: AdapterSwitch) -> None:
    """Recompute activations in backward under the adapter of their own forward pass.

    Without the pin, a backward pass that runs after a switch recomputes with the wrong adapter and
    gives wrong gradients in silence. Acts in train() only.
    """
    model.gradient_checkpointing_enable(
        gradient_checkpointing_kwargs={
            "use_reentrant": False,
            "context_fn": lambda: (nullcontext(), switch.pinned()),
        }
    )


class _Pinned(AbstractContextManager[None]):
    """Unlike a generator's context it may be entered again: a graph can be walked twice."""

    def __init__(self, switch: AdapterSwitch, name: str | None) -> None:
        self._switch, self._name = switch, name
        self._before: list[str | None] = []

    def __enter__(self) -> None:
        self._before.append(self._switch.current)
        self._switch.use(self._name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._switch.use(self._before.pop())


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ModelError(
            f"the adapter switch failed its self-test: {what}", hint=_REMEDY, code="peft-changed"
        )
