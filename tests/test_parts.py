"""FSDP 2 on a frozen base: what each process holds, how turns are kept equal, what is refused."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from pipeline.config.accelerate import AccelerateConfig
from pipeline.config.run import TuningConfig
from pipeline.contract import StageCheck
from pipeline.errors import ModelError
from pipeline.memory.estimate import estimate
from pipeline.memory.families import shape_of
from pipeline.memory.work import Workload
from pipeline.place import Place
from stages.dpo import DPOConfig
from stages.runtime.adapters import new_adapter
from stages.runtime.loading import name_base
from stages.runtime.parts import cut_layers
from stages.runtime.process_group import ProcessGroup
from stages.tuning import parts_findings
from tests.tiny import tiny_model


@pytest.fixture(params=[2, 3])
def ranks(request: pytest.FixtureRequest) -> Iterator[ProcessGroup]:
    """Give the first of several ranks, of which the others exist in name only."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=request.param)
    yield ProcessGroup(Place(0, request.param, 0, in_parts=True), torch.device("cpu"))
    dist.destroy_process_group()


def held(model: torch.nn.Module) -> int:
    """Count the numbers in this process's memory."""
    return sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in model.parameters())


def test_a_rank_holds_its_part_of_each_layer_and_adapters_whole(tmp_path, ranks):
    from transformers import AutoModelForCausalLM

    base = tiny_model(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).requires_grad_(False)
    layer = model.model.layers[0]
    whole, in_layers = held(model), len(model.model.layers) * held(layer)
    # Each matrix or vector is cut along its first axis, the first rank taking the rounded-up share.
    share = len(model.model.layers) * sum(
        math.ceil(p.shape[0] / ranks.count) * (p.numel() // p.shape[0]) for p in layer.parameters()
    )

    cut_layers(model, ranks, "cpu")
    assert held(model) == whole - in_layers + share

    adapted = new_adapter(name_base(model, base), TuningConfig(lora_r=4), name="policy", seed=0)
    trained = [value for value in adapted.parameters() if value.requires_grad]
    assert trained
    assert not any(isinstance(value, DTensor) for value in trained)


def test_a_layer_is_in_parts_again_after_its_pass(tmp_path, ranks):
    from transformers import AutoModelForCausalLM

    tiny_model(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).requires_grad_(False)
    cut_layers(model, ranks, "cpu")
    before = held(model)

    with torch.no_grad():
        model(input_ids=torch.tensor([[1, 2, 3]]))

    assert held(model) == before


def test_the_plan_counts_what_a_rank_holds(tmp_path, ranks):
    from transformers import AutoConfig, AutoModelForCausalLM

    tiny_model(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    shape = shape_of(config.to_dict(), where="config.json")
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).requires_grad_(False)
    work = Workload(
        DPOConfig(model={"dtype": "float32"}).model, TuningConfig(), parts=ranks.count, trained=1, frozen=1
    )

    cut_layers(model, ranks, "cpu")

    planned = estimate(work, shape).terms["base"].expected
    # The plan rounds the norms of a layer up together, the layer each for itself.
    assert abs(held(model) * 4 - planned) <= 4 * shape.layers * shape.layer_norms
    assert "gathered layers" in estimate(work, shape).terms


def test_a_model_without_layers_is_refused(ranks):
    with pytest.raises(ModelError, match="Linear does not say what its layers are"):
        cut_layers(torch.nn.Linear(2, 2), ranks, "cpu")  # type: ignore[arg-type]


def group(rank: int, *, in_parts: bool) -> ProcessGroup:
    return ProcessGroup(Place(rank, 2, rank, in_parts=in_parts), torch.device("cpu"))


def test_ranks_with_parts_take_as_many_turns_and_whole_ones_only_their_own():
    assert group(0, in_parts=True).turns("abc") == [("a", True), ("c", True)]
    assert group(1, in_parts=True).turns("abc") == [("b", True), ("a", False)]
    assert group(1, in_parts=False).turns("abc") == [("b", True)]


def test_ranks_with_parts_read_everything_themselves():
    assert group(1, in_parts=True).readers.share("abc") == "abc"
    assert group(1, in_parts=False).readers.share("abc") == "b"


@pytest.mark.parametrize(
    ("tuning", "key"),
    [
        ({"method": "qlora"}, "method"),
        ({"method": "full"}, "method"),
        ({"use_dora": True}, "use_dora"),
        ({"lora_init": "principal"}, "lora_init"),
        ({"activation_offloading": True}, "activation_offloading"),
    ],
)
def test_what_needs_whole_layers_is_refused(tuning, key):
    def found(backend, num_processes):
        accelerate = AccelerateConfig(num_processes=num_processes, backend=backend)
        return parts_findings(StageCheck("dpo", DPOConfig(tuning=tuning), {}, accelerate=accelerate))

    (finding,) = found("fsdp2", 2)
    assert finding.where == f"tuning.{key}"
    assert finding.hint.endswith("or accelerate.backend: ddp")
    assert found("ddp", 2) == []
    assert found("fsdp2", 1) == []


def test_plain_lora_is_not_refused():
    accelerate = AccelerateConfig(num_processes=2, backend="fsdp2")
    assert parts_findings(StageCheck("dpo", DPOConfig(), {}, accelerate=accelerate)) == []
