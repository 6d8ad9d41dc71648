"""What each key of the tuning block means, in numbers: scales, starts, lengths and optimizers."""

from __future__ import annotations

import math

import bitsandbytes as bnb
import pytest
import torch
from peft.tuners.lora import LoraLayer

from pipeline.config.run import ModelConfig, TuningConfig
from stages.runtime.adapters import new_adapter
from stages.runtime.loading import load_base
from stages.runtime.optimizers import make_adamw
from tests.pair_fixtures import FP32
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("base") / "llama", hidden_size=64, head_dim=16)


def _layers(base, model=FP32, **tuning):
    adapted = new_adapter(load_base(base, model), TuningConfig(**tuning), name="policy", seed=0)
    return [module for module in adapted.modules() if isinstance(module, LoraLayer)]


@pytest.mark.parametrize(
    ("stabilised", "scale"),
    # alpha 8 and rank 4: 8 / 4, and 8 / sqrt(4).
    [(False, 2.0), (True, 4.0)],
)
def test_the_update_is_scaled_by_alpha_over_the_rank_or_its_root(stabilised, scale, base):
    layer = _layers(base, lora_r=4, lora_alpha=8, use_rslora=stabilised)[0]
    down, up = layer.lora_A["policy"].weight, layer.lora_B["policy"].weight
    x = torch.randn(3, down.shape[1], generator=torch.Generator().manual_seed(0))

    with torch.no_grad():
        up.normal_(generator=torch.Generator().manual_seed(1))
        moved = layer(x) - layer.get_base_layer()(x)
        expected = scale * x @ down.T @ up.T

    assert torch.allclose(moved, expected, atol=1e-4)


@pytest.mark.parametrize("rank", [4, 9])
def test_principal_starts_with_the_main_directions_of_each_weight(rank, base):
    for layer in _layers(base, lora_r=rank, lora_init="principal"):
        down = layer.lora_A["policy"].weight.detach()
        weight = layer.get_base_layer().weight.detach()
        # A random matrix has no gap after a rank: what the rows keep of it is compared with the best.
        best = torch.linalg.svdvals(weight)[:rank].square().sum()
        unit = down * math.sqrt(3)

        kept = (weight @ unit.T).square().sum()

        assert torch.allclose(unit @ unit.T, torch.eye(rank), atol=1e-4)
        assert kept > 0.95 * best


def test_other_starts_do_not_know_the_weight(base):
    for start in ("uniform", "orthogonal"):
        layer = _layers(base, lora_r=4, lora_init=start)[0]
        down, weight = layer.lora_A["policy"].weight.detach(), layer.get_base_layer().weight.detach()
        unit = torch.linalg.qr(down.T).Q.T

        kept = (weight @ unit.T).square().sum()

        assert kept < 0.7 * torch.linalg.svdvals(weight)[:4].square().sum()


def test_lengths_start_as_the_exact_lengths_of_a_half_precision_weight(base):
    for layer in _layers(base, ModelConfig(dtype="bfloat16"), lora_r=4, use_dora=True):
        lengths = layer.lora_magnitude_vector["policy"].weight

        weight = layer.get_base_layer().weight
        assert weight.dtype == torch.bfloat16
        assert lengths.dtype == torch.float32
        assert torch.equal(lengths, weight.float().norm(dim=1))


@pytest.mark.parametrize(
    ("kind", "made", "held"),
    [
        ("adamw", torch.optim.AdamW, torch.float32),
        ("paged_adamw", bnb.optim.PagedAdamW, torch.float32),
        ("adamw_8bit", bnb.optim.AdamW8bit, torch.uint8),
        ("paged_adamw_8bit", bnb.optim.PagedAdamW8bit, torch.uint8),
    ],
)
def test_each_optimizer_is_the_one_named_and_holds_its_state_as_it_says(kind, made, held):
    weight = torch.nn.Parameter(torch.ones(64, 128))
    optimizer = make_adamw([{"params": [weight]}], kind, lr=1e-3)
    weight.grad = torch.ones_like(weight)

    optimizer.step()

    assert type(optimizer) is made
    state = optimizer.state[weight]
    moment = state["exp_avg"] if kind == "adamw" else state["state1"]
    assert moment.dtype == held
    assert float(weight.detach().max()) < 1.0
