"""The DPO stage from files to files: start, learning, reference cache, resume."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from pipeline.config.run import TuningConfig
from pipeline.disk import Disk
from pipeline.errors import HandOverError, Interrupted, StoreError
from stages.dpo import SPEC, DPOConfig
from stages.ops.preference_losses import PairLogps
from stages.runtime.saving.cache import TensorCache
from stages.trainers import dpo as dpo_module
from stages.trainers.pair_data import TokenPair
from stages.trainers.reference import reference_key, reference_logps
from tests.pair_fixtures import FP32, TUNING, preference_file, sft_adapter, token_pairs, toy_rows
from tests.tiny import ManualStop, stage_context

SETTINGS = {
    "model": FP32,
    "tuning": TUNING,
    "learning_rate": 5e-3,
    "per_device_train_batch_size": 8,
    "max_steps": 12,
    "warmup_ratio": 0.0,
    "logging_steps": 1,
    "eval_share": 0.25,
    "seed": 1,
}
ROWS = toy_rows(64)


@pytest.fixture(scope="module")
def sft(tiny_base, tmp_path_factory):
    return sft_adapter(tiny_base, tmp_path_factory.mktemp("sft") / "adapter")


def context(root, base, adapter, rows=ROWS, *, stop=None, **changes):
    root.mkdir(parents=True, exist_ok=True)
    inputs = {"base": base, "policy": adapter, "preferences": preference_file(root / "pairs.jsonl", rows)}
    return stage_context(root, DPOConfig(**{**SETTINGS, **changes}), inputs, stop=stop)


@pytest.fixture(scope="module")
def trained(tiny_base, sft, tmp_path_factory):
    ctx = context(tmp_path_factory.mktemp("dpo"), tiny_base, sft)
    return ctx, SPEC.run(ctx)


def test_it_starts_at_ln_2_with_the_reference_equal_to_the_policy(trained):
    ctx, result = trained

    assert ctx.logger.series("loss")[0] == pytest.approx(math.log(2), abs=1e-4)
    assert ctx.logger.series("rewards/margins")[0] == pytest.approx(0, abs=1e-4)
    assert abs(result.metrics["handover/kl"]) < 1e-6
    assert result.metrics["handover/logit_difference"] < 1e-5


def test_it_learns_to_prefer_what_people_preferred(trained):
    ctx, result = trained

    assert ctx.logger.series("loss")[-1] < 0.3
    assert ctx.logger.series("rewards/accuracies")[-1] == 1.0
    assert ctx.logger.series("rewards/chosen")[-1] > ctx.logger.series("rewards/rejected")[-1]
    assert result.metrics["accuracy"] > 0.9


@pytest.mark.parametrize("loss_type", ["ipo", "hinge", "robust", "sigmoid_norm", "simpo", "orpo"])
def test_every_member_trains_and_its_loss_falls(tiny_base, sft, tmp_path, loss_type):
    smoothing = 0.1 if loss_type == "robust" else 0.0
    beta = 2.0 if loss_type == "simpo" else 0.1
    ctx = context(
        tmp_path,
        tiny_base,
        sft,
        loss_type=loss_type,
        label_smoothing=smoothing,
        beta=beta,
        max_steps=6,
        sft_coef=0.01,
    )

    SPEC.run(ctx)

    losses = ctx.logger.series("loss")
    assert losses[-1] < losses[0]
    assert ctx.logger.series("rewards/margins")[-1] > ctx.logger.series("rewards/margins")[0]


def test_four_steps_equal_two_and_two_bit_for_bit_without_a_second_reference_pass(tiny_base, sft, tmp_path):
    changes = {"max_steps": 4}
    first = context(tmp_path / "a", tiny_base, sft, **changes)
    straight = SPEC.run(first)
    with pytest.raises(Interrupted):
        SPEC.run(context(tmp_path / "b", tiny_base, sft, stop=ManualStop(after=1), **changes))

    ctx = context(tmp_path / "b", tiny_base, sft, **changes)
    continued = SPEC.run(ctx)

    one, other = (
        load_file(r.outputs["adapter"] / "adapter_model.safetensors") for r in (straight, continued)
    )
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert ctx.logger.series("reference/computed_pairs") == [0.0]
    assert ctx.logger.series("loss") == first.logger.series("loss")[2:]


def test_a_four_bit_base_starts_at_ln_2_and_learns(tiny_base, sft, tmp_path):
    tuning = TuningConfig(method="qlora", lora_r=4, lora_alpha=8)
    ctx = context(tmp_path, tiny_base, sft, tuning=tuning, max_steps=6)

    result = SPEC.run(ctx)

    assert ctx.logger.series("loss")[0] == pytest.approx(math.log(2), abs=1e-4)
    assert abs(result.metrics["handover/kl"]) < 1e-6
    assert ctx.logger.series("loss")[-1] < 0.6


def test_another_folder_rate_beta_seed_or_held_out_share_computes_no_reference(tiny_base, sft, tmp_path):
    cache = tmp_path / "cache"
    first = replace(context(tmp_path / "a", tiny_base, sft, max_steps=1), cache_dir=cache)
    SPEC.run(first)
    changes = {"beta": 0.5, "learning_rate": 1e-4, "loss_type": "ipo", "seed": 7, "eval_share": 0.5}
    again = replace(context(tmp_path / "b", tiny_base, sft, max_steps=1, **changes), cache_dir=cache)
    SPEC.run(again)

    assert first.logger.series("reference/computed_pairs") == [64.0]
    assert again.logger.series("reference/computed_pairs") == [0.0]
    assert first.logger.series("reference/seconds")[0] > 0
    assert again.logger.series("reference/seconds") == [0.0]


def test_another_parent_computes_its_own_reference(tiny_base, sft, tmp_path):
    other = sft_adapter(tiny_base, tmp_path / "other", seed=2)
    for adapter in (sft, other):
        ctx = context(tmp_path / adapter.fingerprint[:8], tiny_base, adapter, max_steps=1)
        ctx = replace(ctx, cache_dir=tmp_path / "cache")
        SPEC.run(ctx)

        assert ctx.logger.series("reference/computed_pairs") == [64.0]


def test_a_reference_that_is_not_the_policy_stops_the_stage(tiny_base, sft, tmp_path, monkeypatch):
    real = dpo_module.reference_logps

    def shifted(*arguments, **options):
        logps, computed = real(*arguments, **options)
        return {"chosen": logps["chosen"] - 1, "rejected": logps["rejected"]}, computed

    monkeypatch.setattr(dpo_module, "reference_logps", shifted)

    with pytest.raises(HandOverError, match=r"not ln 2"):
        SPEC.run(context(tmp_path, tiny_base, sft))


def test_the_reference_key_names_all_that_counts():
    pairs = token_pairs(3)
    base = {"base": "b", "adapter": "a", "dtype": "d", "layout": "l"}
    key = reference_key(pairs, **base)

    assert reference_key(list(pairs), **base) == key
    assert reference_key(pairs[:2], **base) != key
    assert len({reference_key(pairs, **{**base, name: "x"}) for name in base} | {key}) == 5
    # the same tokens in a row, cut at another place
    moved = [
        TokenPair((1, 2), (3, 4), (5,)),
        TokenPair((1,), (2, 3, 4), (5,)),
        TokenPair((1, 2), (3,), (4, 5)),
    ]
    assert len({reference_key([pair], **base) for pair in moved}) == 3


def first_tokens(pairs):
    """A reference whose log-probabilities say which pair they belong to."""
    return {
        side: torch.tensor([float(getattr(p, side)[0]) for p in pairs]) for side in ("chosen", "rejected")
    }


def key_of(pairs):
    return reference_key(pairs, base="b", adapter="a", dtype="d", layout="l")


def test_the_cache_gives_each_pair_its_own_numbers_in_any_order(tmp_path):
    pairs = token_pairs(9)
    logps, computed = reference_logps(tmp_path, pairs, key_of, first_tokens)
    turned, computed_again = reference_logps(tmp_path, [*pairs[::-1], pairs[3]], key_of, first_tokens)

    assert (computed, computed_again) == (9, 0)
    assert logps["rejected"].tolist() == [float(p.rejected[0]) for p in pairs]
    assert turned["chosen"].tolist() == [float(p.chosen[0]) for p in (*pairs[::-1], pairs[3])]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "shape", "nan", "listing"])
def test_a_damaged_entry_is_computed_again_and_mended(tmp_path, damage, caplog):
    pairs = token_pairs(3)
    reference_logps(tmp_path, pairs, key_of, first_tokens)
    (entry,) = (path for path in tmp_path.iterdir() if path.is_dir())
    path = entry / "tensors.safetensors"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-3])
    elif damage == "flipped":
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "listing":
        (entry / "files.json").unlink()
    else:
        bad = torch.full((3,), math.nan) if damage == "nan" else torch.zeros(4)
        TensorCache(tmp_path).write(entry.name, {"chosen": bad, "rejected": bad.clone()})

    logps, computed = reference_logps(tmp_path, pairs, key_of, first_tokens)

    assert computed == 3
    assert logps["chosen"].tolist() == [float(p.chosen[0]) for p in pairs]
    assert reference_logps(tmp_path, pairs, key_of, first_tokens)[1] == 0


def test_a_cached_entry_stopped_while_it_was_written_is_absent(tmp_path):
    def fail(operation, path):
        if operation == "publish" or operation == "rename":
            raise OSError(28, "No space left on device")

    cache = TensorCache(tmp_path, disk=Disk(fail))
    with pytest.raises(StoreError, match="disk is full"):
        cache.write("k", {"x": torch.zeros(1)})

    assert cache.read("k") is None
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def _cost(gap):
    return math.log(1 + math.exp(-gap))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # Means a token: chosen -2 / 4, rejected -3 / 2; beta 2 * 1 less the margin asked for.
        pytest.param({"loss_type": "simpo", "simpo_gamma": 1.5}, _cost(2 - 1.5), id="simpo_gamma"),
        # Sums: -2 + 3 = 1, times beta 2; the reference finds both equally likely.
        pytest.param({}, _cost(2), id="beta"),
        pytest.param({"label_smoothing": 0.1}, 0.9 * _cost(2) + 0.1 * _cost(-2), id="label_smoothing"),
        # Plus 0.5 times 2 / 4 nats a token of chosen.
        pytest.param({"sft_coef": 0.5}, _cost(2) + 0.25, id="sft_coef"),
    ],
)
def test_the_settings_reach_the_loss(settings, expected):
    zero = torch.zeros(1)
    logps = PairLogps(
        torch.tensor([-2.0]), torch.tensor([-3.0]), torch.tensor([4.0]), torch.tensor([2.0]), zero, zero
    )
    trainer = dpo_module.DPOTrainer(None, None, DPOConfig(beta=2.0, **settings), None)

    loss = trainer.losses(SimpleNamespace(labels=torch.ones(1)), logps)

    assert float(loss) == pytest.approx(expected, abs=1e-6)
