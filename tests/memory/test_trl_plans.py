"""The plans of kto, grpo and rloo, held against TRL's own trainers as the stages build them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from trl.trainer import utils as trl_utils

from pipeline import registry
from pipeline.config.run import TuningConfig
from pipeline.contract import StageCheck
from pipeline.memory.activations import (
    TILE,
    Pass,
    Precision,
    peak_bytes,
    saved_bytes,
    tiled_bytes,
)
from pipeline.memory.estimate import estimate
from pipeline.memory.families import read_shape, shape_of
from pipeline.memory.fit import fitting
from pipeline.memory.trained import Trained
from tests.memory.saved_by_trl import open_trainer, saved_by_grpo, saved_by_kto, saved_by_rloo
from tests.memory.shapes import LLAMA_8B
from tests.memory.test_activations import SHAPES, SIZES, sizes_of
from tests.tiny import tiny_model

TRAINERS = {"kto": saved_by_kto, "grpo": saved_by_grpo, "rloo": saved_by_rloo}
SMALL = TuningConfig(lora_r=8, lora_alpha=8)
ALWAYS = (("grouped heads", "kto", "float32"), ("tied", "grpo", "bfloat16"))
CASES = [
    pytest.param(name, kind, dtype, marks=[] if (name, kind, dtype) in ALWAYS else [pytest.mark.slow])
    for name in SHAPES
    for kind in TRAINERS
    for dtype in ("float32", "bfloat16")
]


def _bytes(dtype):
    return torch.finfo(getattr(torch, dtype)).bits // 8


@pytest.mark.parametrize(("name", "kind", "dtype"), CASES)
def test_the_plan_is_within_a_tenth_of_what_hooks_see(name, kind, dtype, tmp_path):
    model_type, sizes = sizes_of(name)

    seen = TRAINERS[kind](tmp_path, model_type, sizes, dtype=dtype)

    step = Pass(seen.tokens, seen.row_tokens, seen.answers)
    planned = saved_bytes(Trained(read_shape(seen.base), rank=8), Precision(_bytes(dtype)), step)
    assert sum(planned.values()) == pytest.approx(seen.bytes, rel=0.1)


PEAKS = [
    pytest.param(
        kind, checkpointing, dtype, marks=[] if (kind, dtype) == ("kto", "float32") else [pytest.mark.slow]
    )
    for kind in ("kto", "grpo")
    for checkpointing in (False, True)
    for dtype in ("float32", "bfloat16")
]


@pytest.mark.parametrize(("kind", "checkpointing", "dtype"), PEAKS)
def test_the_peak_of_a_backward_pass_is_within_a_tenth_of_the_live_tensors(
    kind, checkpointing, dtype, tmp_path, monkeypatch
):
    # A tile of 32,768 logits would be all there is to see beside so small a model.
    monkeypatch.setattr(trl_utils, "_CHUNKED_LOGPROB_CHUNK_SIZE", 256)
    tuning = TuningConfig(lora_r=8, lora_alpha=8, gradient_checkpointing=checkpointing)
    wide = {**SIZES, "hidden_size": 256, "intermediate_size": 768, "num_key_value_heads": 2}

    seen = TRAINERS[kind](tmp_path, "llama", wide, dtype=dtype, tuning=tuning, peak=True)

    trained, precision = Trained(read_shape(seen.base), rank=8), Precision(_bytes(dtype))
    step = Pass(seen.tokens, seen.row_tokens, seen.answers, checkpointing=checkpointing)
    # Without Triton the tile is folded by torch, through six float32 copies of it.
    logits = tiled_bytes(trained.shape, seen.answers, precision, width=256) + 6 * 4 * 256 * seen.answers
    beside = reading(trained.shape, step, precision) if kind == "kto" else 0.0
    planned = peak_bytes(trained, precision, step, logits=logits, beside=beside)
    assert planned == pytest.approx(seen.bytes, rel=0.1)


def reading(shape, step, precision):
    """Three tensors as wide as the feed-forward part, and the hidden states in float32 and three times."""
    return step.tokens * (
        3 * shape.intermediate * precision.stream + shape.hidden * (4 + 3 * precision.stream)
    )


def test_a_tile_of_the_head_is_as_wide_for_any_vocabulary():
    shape = shape_of(LLAMA_8B)

    # 4,096 positions by 32,768 entries in bfloat16, and a float32 gradient of 8,192 hidden states.
    assert TILE == (4096, 32768)
    assert tiled_bytes(shape, 8192, Precision(2)) == 4096 * 32768 * 2 + 8192 * 4096 * 4
    assert tiled_bytes(shape, 10, Precision(2)) == 10 * 32768 * 2 + 10 * 4096 * 4
    small = shape_of({**LLAMA_8B, "vocab_size": 1000})
    assert tiled_bytes(small, 10, Precision(2)) == tiled_bytes(shape, 10, Precision(2))


def _plan(kind, shape, roles=("base", "policy"), **settings):
    spec = registry.find(kind)
    config = spec.config_type(**settings)
    work = spec.memory(StageCheck(kind, config, {}, roles))
    return estimate(work, shape), work


def test_a_stage_of_trl_is_planned_with_its_own_output_head():
    small = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    shape = shape_of({**LLAMA_8B, **small, "num_hidden_layers": 2})

    planned, work = _plan("kto", shape, per_device_train_batch_size=8, max_length=512)

    # Beside so narrow a model one tile of 4,096 by 32,768 in bfloat16 is the peak, and its gradients.
    kept = sum(saved_bytes(Trained(shape, rank=16), Precision(2, autocast=True), work.step).values())
    assert planned.terms["training"].expected == kept + 4096 * 32768 * 2 + 4096 * 64 * 4


def test_the_reference_of_kto_reads_while_the_graph_of_the_policy_is_held():
    planned, work = _plan("kto", shape_of(LLAMA_8B))

    without = estimate(replace(work, reads_beside=False), shape_of(LLAMA_8B))

    # A layer's pass without gradients holds 3 * 14336 numbers of 2 bytes and 4096 of 4 + 3 * 2 a token; the
    # backward pass of a layer 14336 of 4 and 4096 of 10; 8 rows of 1,024 tokens.
    more = 8 * 1024 * ((6 * 14336 + 10 * 4096) - (4 * 14336 + 10 * 4096))
    training = planned.terms["training"].expected - without.terms["training"].expected
    assert training == pytest.approx(more)


def test_the_pass_of_a_reward_model_is_a_phase_of_its_own():
    _, work = _plan("grpo", shape_of(LLAMA_8B), ("policy", "reward"))

    alone = estimate(replace(work, step=None, decoding=None), shape_of(LLAMA_8B))

    assert alone.phase == "reading"
    assert alone.terms["reading"].expected == 8 * 1024 * (6 * 14336 + 10 * 4096)


@pytest.mark.parametrize("kind", TRAINERS)
def test_the_counted_weights_are_those_of_the_trainer(kind, tmp_path):
    base = tiny_model(tmp_path / "base", "llama", **SIZES, num_key_value_heads=2)
    trainer = open_trainer(kind, tmp_path, base, SMALL)

    planned, _ = _plan(kind, read_shape(base.path), tuning=SMALL)

    live = [(name, value) for name, value in trainer.model.named_parameters() if ".lora_" in name]
    learning = sum(value.numel() for _, value in live if value.requires_grad)
    assert planned.num_trained == learning > 0
    # Policy and reference, and the copy of the start that the stage keeps to see that something was learned.
    held = sum(value.numel() * value.element_size() for _, value in live)
    assert planned.terms["adapters and heads"].expected == held + 4 * learning


def test_without_a_price_of_kl_no_reference_is_held_and_a_reward_model_is_one_more_adapter():
    shape = shape_of(LLAMA_8B)
    frozen = lambda *roles, **settings: _plan("grpo", shape, roles, **settings)[1].frozen  # noqa: E731

    assert frozen("policy", "reward_function", beta=0.0) == 1
    assert frozen("policy", "reward_function", beta=0.04) == 2
    assert frozen("policy", "reward", beta=0.04) == 3


def test_all_responses_of_a_step_are_sampled_and_paid_at_once():
    shape = shape_of(LLAMA_8B)
    settings = {"per_device_train_batch_size": 4, "max_length": 512, "max_new_tokens": 128}

    _, one = _plan("rloo", shape, ("policy", "reward"), **settings)
    _, four = _plan("rloo", shape, ("policy", "reward"), **settings, gradient_accumulation_steps=4)

    assert (one.decoding.rows, four.decoding.rows) == (4, 16)
    assert (one.decoding.prompt_tokens, one.decoding.new_tokens) == (384, 128)
    assert (one.read_tokens, four.read_tokens) == (4 * 512, 16 * 512)
    assert one.step == four.step
    assert _plan("rloo", shape, ("policy", "reward_function"), **settings)[1].read_tokens == 0


def test_the_largest_batch_holds_whole_groups_and_kto_has_two_rows():
    shape, tuning = shape_of(LLAMA_8B), TuningConfig(method="qlora", gradient_checkpointing=True)

    for kind, least in (("grpo", 3), ("kto", 2)):
        spec = registry.find(kind)
        groups = {"num_generations": 3, "per_device_train_batch_size": 6} if kind == "grpo" else {}
        config = spec.config_type(tuning=tuning, **groups)
        needs = lambda changed: estimate(spec.memory(StageCheck(kind, changed, {}, ())), shape)  # noqa: B023, E731

        found = fitting(needs, config, 16 * 2**30, max_positions=None)

        assert found.least == least
        assert found.batch % (3 if kind == "grpo" else 1) == 0
        assert (
            needs(config.model_copy(update={"per_device_train_batch_size": found.batch})).total.expected
            <= 2**34
        )
        assert (
            needs(config.model_copy(update={"per_device_train_batch_size": found.batch + 3})).total.expected
            > 2**34
        )
