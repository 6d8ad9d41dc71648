"""Bytes of quantised weights and of optimizer state, held against bitsandbytes' own tensors."""

from __future__ import annotations

import bitsandbytes as bnb
import pytest
import torch

from pipeline.config.run import ModelConfig, TuningConfig
from pipeline.memory.families import read_shape
from pipeline.memory.storage import int8_bytes, nf4_bytes, optimizer_bytes, weight_bytes
from stages.runtime.loading import load_base
from tests.tiny import tiny_model

MATRICES = [(384, 128), (100, 70), (1000, 3000), (1, 64)]


def _held(*tensors):
    return sum(t.untyped_storage().nbytes() for t in tensors)


@pytest.mark.parametrize(("outputs", "inputs"), MATRICES)
def test_a_matrix_in_nf4_takes_what_bitsandbytes_stores(outputs, inputs):
    weight = bnb.nn.Params4bit(
        torch.randn(outputs, inputs), requires_grad=False, quant_type="nf4", compress_statistics=True
    ).to("cpu")
    state = weight.quant_state

    held = _held(weight.data, state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)

    assert nf4_bytes(outputs * inputs) == held


@pytest.mark.parametrize(("outputs", "inputs"), MATRICES)
def test_a_matrix_in_8_bits_takes_what_bitsandbytes_stores(outputs, inputs):
    layer = bnb.nn.Linear8bitLt(inputs, outputs, bias=False, has_fp16_weights=False)
    layer.weight = bnb.nn.Int8Params(
        torch.randn(outputs, inputs).half(), requires_grad=False, has_fp16_weights=False
    )
    layer = layer.to("cpu")
    layer(torch.randn(2, inputs))

    held = _held(layer.weight.data, layer.state.SCB)

    assert int8_bytes(outputs * inputs, outputs) == held


@pytest.mark.parametrize(
    ("name", "make"),
    [
        pytest.param("adamw", torch.optim.AdamW, id="adamw"),
        pytest.param("paged_adamw", bnb.optim.PagedAdamW, id="paged"),
        pytest.param("adamw_8bit", bnb.optim.AdamW8bit, id="8-bit"),
        pytest.param("paged_adamw_8bit", bnb.optim.PagedAdamW8bit, id="paged 8-bit"),
    ],
)
@pytest.mark.filterwarnings("ignore:Paged optimizers")
def test_optimizer_state_takes_what_the_optimizer_holds(name, make):
    # 10,000 and 4,096 weights are held in 8 bits, 800 are not.
    sizes = [10_000, 4_096, 800]
    parameters = [torch.nn.Parameter(torch.randn(size)) for size in sizes]
    optimizer = make(parameters, lr=1e-3)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()

    storages = {
        t.untyped_storage().data_ptr(): _held(t)
        for state in optimizer.state.values()
        for key, t in state.items()
        if torch.is_tensor(t) and key != "step"
    }

    assert optimizer_bytes(sizes, name) == sum(storages.values())


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_a_loaded_base_holds_exactly_the_planned_bytes(method, dtype, model_type, tmp_path):
    base = tiny_model(tmp_path / "base", model_type, vocab_size=777)
    model = load_base(base, ModelConfig(dtype=dtype), TuningConfig(method=method))

    held = {}
    for weight in model.parameters():
        held[weight.untyped_storage().data_ptr()] = _held(weight.data)
        state = getattr(weight, "quant_state", None)
        if state is not None:
            for t in (state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code):
                # The code tables of a CPU are shared by all matrices; a GPU holds a copy a matrix.
                held[id(state), t.data_ptr()] = _held(t)

    assert sum(weight_bytes(read_shape(base.path), method, dtype).values()) == sum(held.values())
