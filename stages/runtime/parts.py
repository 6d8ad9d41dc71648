"""A frozen base in parts: each rank holds a share of every layer and gathers a layer while it runs.

Adapters, embeddings, head and norms outside the layers stay whole on every rank, so nothing that is
trained or saved is cut. Source: torch.distributed.fsdp.fully_shard (FSDP 2), applied to frozen layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from pipeline.errors import ModelError
from stages.runtime.ranks import Ranks


def cut_layers(model: PreTrainedModel, ranks: Ranks, device: str) -> None:
    """Leave this rank's share of every layer in memory; adapters that are added later are not cut.

    All ranks then have to run the model at the same time, equally often: every layer is a meeting.

    Args:
        model: frozen, on the CPU or where the ranks are.
        ranks: the stage's processes; their group must be open.
        device: cpu or cuda.

    Raises:
        ModelError: the model does not say what its layers are.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        name = type(model).__name__
        hint = "accelerate.backend: ddp"
        raise ModelError(f"{name} does not say what its layers are", hint=hint, code="no-layers")
    mesh = init_device_mesh(device, (ranks.count,))
    for layer in layers:
        # By its default a layer that stands alone would stay whole after its pass.
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)


@contextmanager
def layer_gathered(model: nn.Module, inner: nn.Module) -> Iterator[None]:
    """Hold the layer that a module lies in whole, for a look at it outside the layer's own pass."""
    cut = [module for module in model.modules() if isinstance(module, FSDPModule)]
    (layer,) = [module for module in cut if inner in module.modules()]
    layer.unshard()
    try:
        yield
    finally:
        layer.reshard()


def leave_to_their_ranks(model: nn.Module) -> None:
    """Keep DistributedDataParallel, which a trainer may wrap around a model, from comparing cut weights."""
    cut = [name for name, value in model.named_parameters() if isinstance(value, DTensor)]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, cut)
