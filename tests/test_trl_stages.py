"""KTO, GRPO and RLOO from files to files: start, learning, reference, interruption, refusals."""

from __future__ import annotations

import shutil
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file

from pipeline.config.run import TuningConfig
from pipeline.contract import ArtifactKind, StageCheck
from pipeline.errors import ConfigError, DataError, HandOverError, Interrupted
from stages.data import PromptRow
from stages.grpo import SPEC as GRPO
from stages.grpo import GRPOConfig
from stages.kto import SPEC as KTO
from stages.kto import KTOConfig
from stages.labelled import read_labelled
from stages.rloo import SPEC as RLOO
from stages.rloo import RLOOConfig
from stages.trainers import kto as kto_module
from stages.trainers.group_rewards import SampledPrompt, open_rewards
from stages.trainers.kto import LabelledIds, dataset_of
from stages.trainers.trl_policy import last_values
from tests.metric_names import undocumented
from tests.pair_fixtures import FP32, TUNING, preference_file, reopen, sft_adapter, toy_rows
from tests.ppo_setup import adapter, chain, without, written
from tests.tiny import ManualStop, as_checkpoint, stage_context

TRAINING = {
    "model": FP32,
    "tuning": TUNING,
    "learning_rate": 5e-3,
    "per_device_train_batch_size": 8,
    "max_steps": 10,
    "warmup_ratio": 0.0,
    "logging_steps": 1,
    "seed": 1,
}
EACH = pytest.mark.parametrize(
    ("spec", "config_type"),
    [
        pytest.param(GRPO, GRPOConfig, id="grpo", marks=pytest.mark.slow),
        pytest.param(RLOO, RLOOConfig, id="rloo"),
    ],
)
LETTERS = "def score(prompt, response, row):\n    return sum(c.isalpha() for c in response) / 12\n"


@pytest.fixture(scope="module")
def sft(tiny_base, tmp_path_factory):
    return sft_adapter(tiny_base, tmp_path_factory.mktemp("sft") / "adapter")


def names_of(ctx):
    """Every metric that a stage logged."""
    return {name for line in ctx.logger.lines for name in line} - {"step", "epoch"}


def kto_context(root, base, adapter, *, rows=None, stop=None, **changes):
    root.mkdir(parents=True, exist_ok=True)
    rows = toy_rows(48) if rows is None else rows
    inputs = {"base": base, "policy": adapter, "preferences": preference_file(root / "pairs.jsonl", rows)}
    return stage_context(root, KTOConfig(**{**TRAINING, "eval_share": 0.25, **changes}), inputs, stop=stop)


@pytest.fixture(scope="module")
def kto(tiny_base, sft, tmp_path_factory):
    ctx = kto_context(tmp_path_factory.mktemp("kto"), tiny_base, sft)
    return ctx, KTO.run(ctx)


def test_kto_starts_at_one_half_with_the_parent_as_reference(kto):
    ctx, result = kto

    # 1 - sigmoid(0) for good and bad alike, while policy and reference are equal
    assert ctx.logger.series("loss")[0] == pytest.approx(0.5, abs=1e-4)
    assert undocumented("kto", {*result.metrics, *names_of(ctx)}) == []
    assert ctx.logger.series("kl")[0] == pytest.approx(0.0, abs=1e-4)
    assert abs(result.metrics["handover/kl"]) < 1e-6
    assert result.metrics["handover/logit_difference"] < 1e-5


def test_kto_learns_what_people_called_good(kto):
    ctx, result = kto

    assert ctx.logger.series("loss")[-1] < 0.4
    assert ctx.logger.series("rewards/margins")[-1] > 0.5
    assert result.metrics["eval_auc"] > 0.9
    assert result.metrics["eval_rewards/chosen"] > result.metrics["eval_rewards/rejected"]
    assert (result.outputs["adapter"] / "text.json").is_file()


def test_kto_says_on_every_line_how_many_tokens_it_computed_and_how_fast(kto):
    ctx, _ = kto
    lines = [line for line in ctx.logger.lines if "loss" in line]

    # A step holds 8 of the 72 training rows: 10 steps are the whole set and 8 rows of the second pass.
    assert [line["step"] for line in lines] == list(range(1, 11))
    assert all(line["tokens_per_second"] > 0 for line in lines)
    # A byte is a token here. The template adds 20: <|im_start|> user newline (1 + 5), <|im_end|> newline (2),
    # <|im_start|> assistant newline (1 + 10) and the <|im_end|> after the answer.
    counts = [line["num_tokens"] for line in lines]
    sizes = [
        len(row["prompt"]) + len(row[side]) + 20 for row in toy_rows(48) for side in ("chosen", "rejected")
    ]
    assert min(sizes) * 8 <= counts[0] <= max(sizes) * 8
    assert all(min(sizes) * 8 <= b - a <= max(sizes) * 8 for a, b in pairwise(counts))


def test_kto_reads_single_labelled_responses(tiny_base, sft, tmp_path):
    rows = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in toy_rows(24)
        for side in ("chosen", "rejected")
    ]
    ctx = kto_context(tmp_path, tiny_base, sft, rows=rows, max_steps=2)
    result = KTO.run(ctx)

    assert result.metrics["num_train_rows"] + result.metrics["num_eval_rows"] == 48


def test_a_ranking_names_each_response_once_a_label(tmp_path):
    path = tmp_path / "pairs.jsonl"
    sides = [("a", "b"), ("a", "c"), ("b", "c")]
    preference_file(path, [{"prompt": "q", "chosen": one, "rejected": other} for one, other in sides])

    found = {(row.response, row.label) for row in read_labelled(path).rows}

    assert found == {("a", True), ("b", True), ("b", False), ("c", False)}


def test_the_settings_of_kto_reach_its_trainer(tiny_base, sft, tmp_path):
    changes = {"beta": 0.3, "desirable_weight": 1.2, "undesirable_weight": 0.8}
    ctx = kto_context(tmp_path, tiny_base, sft, **changes, loss_type="apo_zero_unpaired")

    given = kto_module._arguments(ctx.config, 10, ctx)

    assert {name: getattr(given, name) for name in changes} == changes
    assert given.loss_type == "apo_zero_unpaired"


def test_kto_measures_rewards_against_the_reference(monkeypatch):
    rows = [LabelledIds([1], [2], True), LabelledIds([1], [3], False), LabelledIds([1], [4], True)]
    said = {
        kto_module.POLICY: torch.tensor([-1.0, -5.0, -4.0]),
        kto_module.REFERENCE: torch.tensor([-3.0, -2.0, -3.0]),
    }
    monkeypatch.setattr(kto_module, "logps", lambda trainer, rows, adapter: said[adapter])

    found = kto_module.measure(None, rows, KTOConfig(beta=0.5))

    # Rewards 0.5 * (2, -3, -1): good 1 and -0.5, bad -1.5. One of two good ones is above 0, and no bad one.
    assert found["eval_rewards/chosen"] == pytest.approx(0.25)
    assert found["eval_rewards/rejected"] == pytest.approx(-1.5)
    assert (found["eval_precision"], found["eval_recall"], found["eval_auc"]) == (1.0, 0.5, 1.0)


def test_kto_trains_on_the_rows_in_an_order_of_the_seed(tiny_base, sft, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(kto_module, "dataset_of", lambda rows: seen.append(rows) or dataset_of(rows))
    for seed in (1, 2):
        changes = {"max_steps": 1, "eval_share": 0.0, "seed": seed}
        KTO.run(kto_context(tmp_path / str(seed), tiny_base, sft, rows=toy_rows(12), **changes))

    first, second = ([(tuple(row.prompt), tuple(row.response)) for row in rows] for rows in seen)
    # As the file has them, the good and the bad response to a prompt stand side by side.
    assert sorted(first) == sorted(second)
    assert first != second
    assert any(one[0] != other[0] for one, other in zip(first[::2], first[1::2], strict=True))


def test_the_kl_term_pairs_a_prompt_with_the_answer_to_another():
    rows = [LabelledIds([n // 2], [n], n % 2 == 0) for n in range(6)]

    found = dataset_of(rows)["KL_completion_ids"]

    # rows 0, 1 share prompt 0; 2, 3 prompt 1; 4, 5 prompt 2
    assert [ids[0] for ids in found] == [5, 5, 1, 1, 3, 3]
    assert dataset_of(rows[:2])["KL_completion_ids"] == [[1], [0]]


def test_a_file_with_good_responses_only_is_refused_by_plan_and_stage(tiny_base, sft, tmp_path):
    rows = [{"prompt": f"q {n}", "completion": "yes", "label": True} for n in range(9)]
    ctx = kto_context(tmp_path, tiny_base, sft, rows=rows)

    (finding,) = KTO.check(StageCheck("kto", ctx.config, ctx.inputs))
    with pytest.raises(DataError, match="both good and bad"):
        KTO.run(ctx)
    assert finding.code == "no-labels"


def group_context(root, inputs, config_type, *, stop=None, **changes):
    settings = {**TRAINING, "num_generations": 4, "max_new_tokens": 8, "max_length": 64, "max_steps": 4}
    return stage_context(root, config_type(**{**settings, **changes}), inputs, stop=stop)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return chain(tmp_path_factory.mktemp("world"), function=LETTERS)


@EACH
def test_groups_start_from_the_parent_and_learn_what_is_paid(world, tmp_path, spec, config_type):
    inputs = {**without(world, "reward"), "watch": world["reward_function"]}
    changes = {"max_steps": 24, "per_device_train_batch_size": 24, "beta": 0.001, "learning_rate": 3e-2}
    changes["lr_scheduler_type"] = "constant"
    ctx = group_context(tmp_path, inputs, config_type, **changes)

    result = spec.run(ctx)

    assert undocumented(spec.kind, {*result.metrics, *names_of(ctx)}) == []
    assert abs(result.metrics["handover/kl"]) < 1e-6
    assert ctx.logger.series("kl")[0] == pytest.approx(0.0, abs=1e-4)
    rewards = ctx.logger.series("reward")
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.05
    # the watched function is the same one here, and it weighs nothing in the reward
    assert ctx.logger.series("rewards/watch/mean") == ctx.logger.series("rewards/function/mean")
    assert ctx.logger.series("rewards/function/mean") == pytest.approx(rewards, rel=1e-5)
    assert result.metrics["num_prompts"] == 6


@EACH
def test_reward_model_and_function_are_both_paid_by_weight(world, tmp_path, spec, config_type):
    ctx = group_context(tmp_path, world, config_type, reward_weight=2.0, function_weight=0.5, max_steps=1)

    spec.run(ctx)

    (line,) = [line for line in ctx.logger.lines if "reward" in line]
    expected = 2.0 * line["rewards/model/mean"] + 0.5 * line["rewards/function/mean"]
    assert line["reward"] == pytest.approx(expected, rel=1e-5)


@EACH
def test_four_group_steps_equal_two_and_two_bit_for_bit(world, tmp_path, spec, config_type):
    straight = spec.run(group_context(tmp_path / "a", world, config_type))
    with pytest.raises(Interrupted):
        spec.run(group_context(tmp_path / "b", world, config_type, stop=ManualStop(after=1)))

    ctx = group_context(tmp_path / "b", world, config_type)
    continued = spec.run(ctx)

    assert [line["step"] for line in ctx.logger.lines if "reward" in line] == [3, 4]
    assert_same_weights(straight, continued)


def test_four_kto_steps_equal_two_and_two_bit_for_bit(tiny_base, sft, tmp_path):
    whole = kto_context(tmp_path / "a", tiny_base, sft, max_steps=4)
    straight = KTO.run(whole)
    with pytest.raises(Interrupted):
        KTO.run(kto_context(tmp_path / "b", tiny_base, sft, max_steps=4, stop=ManualStop(after=1)))

    ctx = kto_context(tmp_path / "b", tiny_base, sft, max_steps=4)
    continued = KTO.run(ctx)

    assert_same_weights(straight, continued)
    assert ctx.logger.series("num_tokens") == whole.logger.series("num_tokens")[2:]
    assert continued.metrics["num_tokens"] == straight.metrics["num_tokens"]


def assert_same_weights(one, other):
    first, second = (load_file(r.outputs["adapter"] / "adapter_model.safetensors") for r in (one, other))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_checkpoints_hold_the_policy_alone_and_no_pickled_arguments(world, tmp_path):
    ctx = group_context(tmp_path, world, GRPOConfig, max_steps=2, save_steps=1)
    GRPO.run(ctx)

    folder = ctx.scratch_dir / "trainer" / "checkpoint-2"
    names = {path.name for path in folder.iterdir()}
    held = load_file(folder / "adapter_model.safetensors")
    assert "training_args.bin" not in names
    assert not [path for path in folder.iterdir() if path.is_dir()]
    assert all(".ref." not in key and ".reward." not in key and "score" not in key for key in held)


@pytest.mark.parametrize("kind", ["kto", pytest.param("grpo", marks=pytest.mark.slow)])
def test_a_four_bit_base_keeps_the_parents_weights_in_full(tiny_base, sft, world, tmp_path, kind):
    tuning = TuningConfig(method="qlora", lora_r=4, lora_alpha=8)
    if kind == "kto":
        result = KTO.run(kto_context(tmp_path, tiny_base, sft, tuning=tuning, max_steps=2))
    else:
        result = GRPO.run(group_context(tmp_path, world, GRPOConfig, tuning=tuning, max_steps=2))

    assert abs(result.metrics["handover/kl"]) < 1e-6
    held = load_file(result.outputs["adapter"] / "adapter_model.safetensors")
    assert all(value.dtype == torch.float32 for value in held.values())


def test_trls_rounding_of_the_reference_would_be_found(tiny_base, sft, tmp_path, monkeypatch):
    def as_trl_leaves_it(model, make):
        trainer = make()
        for name, parameter in model.named_parameters():
            if ".ref." in name:
                parameter.data = parameter.data.to(torch.bfloat16).float() * 1.01
        return trainer

    monkeypatch.setattr(kto_module, "with_parent", as_trl_leaves_it)

    with pytest.raises(HandOverError, match="reference is not the policy"):
        KTO.run(kto_context(tmp_path, tiny_base, sft))


def test_a_reward_that_never_differs_teaches_nothing_and_says_so(world, tmp_path):
    constant = written(
        tmp_path / "same.py", "def score(prompt, response, row):\n    return 1.0\n", ArtifactKind.FUNCTION
    )
    inputs = {**without(world, "reward"), "reward_function": constant}

    with pytest.raises(HandOverError, match="learned nothing"):
        GRPO.run(group_context(tmp_path, inputs, GRPOConfig, beta=0.0, max_steps=2))


def test_groups_without_a_reward_or_with_too_few_prompts_are_refused(world, tmp_path):
    nothing = without(world, "reward", "reward_function")
    few = group_context(tmp_path / "a", world, GRPOConfig, per_device_train_batch_size=40)

    codes = [
        finding.code
        for ctx in (group_context(tmp_path / "b", nothing, RLOOConfig), few)
        for finding in GRPO.check(StageCheck("x", ctx.config, ctx.inputs, tuple(ctx.inputs)))
    ]
    assert codes == ["no-reward", "too-few-prompts"]
    with pytest.raises(ConfigError, match="nothing to reward"):
        RLOO.run(group_context(tmp_path / "c", nothing, RLOOConfig))
    with pytest.raises(DataError, match="do not fill a step"):
        GRPO.run(few)


def test_a_step_must_hold_whole_groups():
    with pytest.raises(ValueError, match="no whole groups"):
        GRPOConfig(per_device_train_batch_size=6, num_generations=4)


def test_the_last_value_of_every_metric_is_kept():
    history = [
        {"loss": 2.0, "step": 1, "reward": 0.1},
        {"loss": 1.0, "step": 2},
        {"train_runtime": 3.0, "total_flos": 9.0},
    ]

    assert last_values(history) == {"loss": 1.0, "reward": 0.1}


def test_an_ensemble_pays_its_mean_less_the_members_disagreement(world, tmp_path):
    base, folder = world["base"], tmp_path / "reward"
    shutil.copytree(world["reward"].path, folder)
    second = adapter(tmp_path / "second", base, seed=9, scored=True)
    shutil.copytree(second.path, folder / "members" / "1")
    both = as_checkpoint(folder, ArtifactKind.REWARD_MODEL)
    prompts, responses = [[5, 6, 7], [8, 9]], [[10, 11], [12, 13, 14]]
    sampled = [SampledPrompt(PromptRow(str(n), "x", n), ids) for n, ids in enumerate(prompts)]

    def paid(source, penalty):
        ctx = group_context(tmp_path, {"base": base, "reward": source}, GRPOConfig, ensemble_penalty=penalty)
        model = reopen(base, world["policy"], name="default")
        (reward,) = open_rewards(ctx, model, None)
        return torch.tensor(reward.score(sampled, responses))

    alone = torch.stack([paid(world["reward"], 0.0), paid(second, 0.0)])
    torch.testing.assert_close(paid(both, 0.0), alone.mean(0), atol=1e-6, rtol=0)
    expected = alone.mean(0) - 2.0 * (alone[0] - alone[1]).abs() / 2
    torch.testing.assert_close(paid(both, 2.0), expected, atol=1e-6, rtol=0)


def test_layers_that_are_told_to_keep_what_they_have_are_not_trained(tiny_base, sft, tmp_path):
    tuning = TUNING.model_copy(update={"frozen_layers": 1})
    result = KTO.run(kto_context(tmp_path, tiny_base, sft, tuning=tuning, max_steps=2))

    before = load_file(sft.path / "adapter_model.safetensors")
    after = load_file(result.outputs["adapter"] / "adapter_model.safetensors")
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved
    assert all(".layers.1." in key for key in moved)
