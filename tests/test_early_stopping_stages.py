"""Early stopping in the stages: pretrain, sft, reward and dpo end early and give their best weights."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import yaml

from pipeline.config.run import TuningConfig
from pipeline.contract import ArtifactKind, StageCheck
from pipeline.errors import Interrupted
from pipeline.fingerprint import key_settings
from stages import dpo, pretrain, reward, sft
from stages.early_stopping import EarlyStoppingConfig
from tests.pair_fixtures import FP32, TUNING, preference_file, sft_adapter, toy_rows
from tests.readme_tree import ROOT
from tests.tiny import ManualStop, as_checkpoint, stage_context

EARLY = {"early_stopping": {"eval_steps": 2, "patience": 2}}
SFT = {
    "model": FP32,
    "tuning": TUNING,
    "per_device_train_batch_size": 4,
    "learning_rate": 2e-2,
    "warmup_ratio": 0.0,
    "max_steps": 30,
    "save_steps": 2,
    "eval_share": 0.25,
    **EARLY,
}
PAIRS = {**SFT, "seed": 1, "learning_rate": 1e-2, "per_device_train_batch_size": 8}
TEXT = {
    "architecture": {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64}
    | {"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2},
    "vocab_size": 300,
    "max_steps": 60,
    "max_length": 32,
    "learning_rate": 2e-2,
    "warmup_ratio": 0.0,
    "eval_fraction": 0.3,
    "save_steps": 2,
    **EARLY,
}


@pytest.fixture(scope="module")
def stages(tiny_base, tmp_path_factory):
    """Stage -> card, settings and inputs in which there is nothing to learn that holds elsewhere."""
    folder = tmp_path_factory.mktemp("data")
    letters = torch.randint(97, 123, (40, 8), generator=torch.Generator().manual_seed(0)).tolist()
    noise = ["".join(map(chr, row)) for row in letters]
    answers = folder / "answers.jsonl"
    rows = [{"prompt": f"{i} {noise[i][:3]}", "completion": noise[i]} for i in range(40)]
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = folder / "text.txt"
    text.write_text("\n\n".join(" ".join(noise[i : i + 4]) for i in range(0, 40, 4)))
    pairs = preference_file(folder / "pairs.jsonl", toy_rows(64, shuffled=True))
    adapter = sft_adapter(tiny_base, folder / "adapter")
    both = {"base": tiny_base, "policy": adapter, "preferences": pairs}
    return {
        "sft": (
            sft,
            sft.SftConfig(**SFT),
            {"base": tiny_base, "demonstrations": as_checkpoint(answers, ArtifactKind.DEMONSTRATIONS)},
        ),
        "reward": (reward, reward.RewardConfig(**PAIRS), both),
        "dpo": (dpo, dpo.DPOConfig(**PAIRS), both),
        "pretrain": (
            pretrain,
            pretrain.PretrainConfig(**TEXT),
            {"text": as_checkpoint(text, ArtifactKind.TEXT)},
        ),
    }


def _weights(result) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for folder in result.outputs.values()
        for path in sorted(folder.rglob("*.safetensors"))
    }


def _timeless(result) -> dict[str, float]:
    return {name: value for name, value in result.metrics.items() if name != "tokens_per_second"}


@pytest.mark.parametrize("kind", ["sft", "reward", "dpo", "pretrain"])
def test_a_stage_that_overfits_ends_early_with_its_best_weights_also_after_a_stop(tmp_path, stages, kind):
    card, config, inputs = stages[kind]
    ctx = stage_context(tmp_path / "whole", config, inputs)
    whole = card.SPEC.run(ctx)

    losses = {line["step"]: line["eval_loss"] for line in ctx.logger.lines if "overfitting_gap" in line}
    best = min(losses, key=losses.__getitem__)
    # What is learned holds for the training rows only.
    assert ctx.logger.series("overfitting_gap")[-1] > 0.01
    assert whole.metrics["best_step"] == best
    assert whole.metrics["stopped_early"] == 1
    assert max(losses) == best + 4 < config.max_steps
    assert any(f"stopped after step {best + 4} of {config.max_steps}" in note for note in whole.notes)

    stopped = ManualStop(after=best)
    with pytest.raises(Interrupted):
        card.SPEC.run(stage_context(tmp_path / "broken", config, inputs, stop=stopped))
    again = card.SPEC.run(stage_context(tmp_path / "broken", config, inputs))

    assert _weights(again) == _weights(whole)
    assert _timeless(again) == _timeless(whole)
    # The process dies after training and before the result is published: nothing more is learned.
    (tmp_path / "after").mkdir()
    after = card.SPEC.run(replace(ctx, output_dir=tmp_path / "after"))
    assert _weights(after) == _weights(whole)
    assert _timeless(after) == _timeless(whole)
    assert after.notes == whole.notes


@pytest.mark.parametrize("kind", ["sft", "reward", "dpo", "pretrain"])
def test_what_a_stage_gives_are_the_best_weights_not_the_last(tmp_path, stages, kind):
    card, config, inputs = stages[kind]
    ctx = stage_context(tmp_path, config, inputs)

    result = card.SPEC.run(ctx)

    # What is measured after training, on the weights that are written, is what was measured at the best step.
    final, name = ("margin_mean", "eval_rewards/margins") if kind in ("reward", "dpo") else ("eval_loss",) * 2
    lines = {line["step"]: line for line in ctx.logger.lines if "overfitting_gap" in line}
    best, last = lines[result.metrics["best_step"]], lines[max(lines)]
    assert best["eval_loss"] == min(line["eval_loss"] for line in lines.values())
    assert result.metrics[final] == pytest.approx(best[name], abs=1e-6)
    assert abs(last[name] - best[name]) > 1e-3


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_where_every_weight_trains_the_whole_best_model_comes_back(tmp_path, stages, kind):
    card, config, inputs = stages[kind]
    full = {"tuning": TuningConfig(method="full"), "learning_rate": 5e-2 if kind == "sft" else 1e-3}
    inputs = inputs if kind == "sft" else {**inputs, "policy": inputs["base"]}
    ctx = stage_context(tmp_path, config.model_copy(update=full), inputs)

    result = card.SPEC.run(ctx)

    final, name = ("margin_mean", "eval_rewards/margins") if kind == "dpo" else ("eval_loss",) * 2
    lines = {line["step"]: line for line in ctx.logger.lines if "overfitting_gap" in line}
    best = min(lines, key=lambda step: lines[step]["eval_loss"])
    assert result.metrics["best_step"] == best < max(lines)
    assert result.metrics[final] == pytest.approx(lines[best][name], abs=1e-6)


def test_each_member_of_an_ensemble_has_its_own_best_step(tmp_path, stages):
    _, config, inputs = stages["reward"]
    ctx = stage_context(tmp_path, config.model_copy(update={"ensemble": 2}), inputs)

    result = reward.SPEC.run(ctx)

    ends = [note for note in result.notes if note.startswith("stopped after step")]
    other = [line for line in ctx.logger.lines if "member_1/overfitting_gap" in line]
    best = min(other, key=lambda line: line["member_1/eval_loss"])["step"]
    assert len(ends) == 2
    assert f"the weights are those of step {best}," in ends[1]


@pytest.mark.parametrize("kind", ["sft", "reward", "dpo", "pretrain"])
def test_a_plan_says_what_a_stage_cannot_watch(stages, kind):
    card, config, _ = stages[kind]
    share = "eval_fraction" if kind == "pretrain" else "eval_share"
    odd = EarlyStoppingConfig(
        metric="eval_rewards/margins" if kind in ("sft", "pretrain") else "eval_mean_token_accuracy",
        eval_steps=1,
    )
    wrong = config.model_copy(update={"early_stopping": odd, share: 0.0})

    findings = card.SPEC.check(StageCheck("a", wrong, {}))

    assert {"unknown-metric", "nothing-held-out"} <= {finding.code for finding in findings}
    assert {finding.where for finding in findings if finding.code == "unknown-metric"} == {
        "stages.a.early_stopping.metric"
    }
    assert not [f for f in card.SPEC.check(StageCheck("a", config, {})) if "early" in f.where]


def test_a_held_out_file_is_something_to_watch(stages):
    card, config, _ = stages["dpo"]
    alone = config.model_copy(update={"eval_share": 0.0})

    findings = card.SPEC.check(StageCheck("a", alone, {}, roles=("held_out",)))

    assert not [finding for finding in findings if finding.code == "nothing-held-out"]


@pytest.mark.parametrize("kind", ["sft", "reward", "dpo", "pretrain"])
def test_off_it_leaves_the_key_as_it_was_and_on_every_part_of_it_counts(stages, kind):
    _, config, _ = stages[kind]
    keys = [key_settings(config.model_copy(update={"early_stopping": None}))]
    for change in ({}, {"eval_steps": 3}, {"patience": 3}, {"min_delta": 0.1}):
        setting = EarlyStoppingConfig(**{**EARLY["early_stopping"], **change})
        keys.append(key_settings(config.model_copy(update={"early_stopping": setting})))

    assert "early_stopping" not in keys[0]
    assert len({json.dumps(key, sort_keys=True, default=str) for key in keys}) == 5


def test_the_block_of_the_documentation_is_a_setting_of_dpo():
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    (text,) = [block.split("```")[0] for block in page.split("```yaml\n") if "early_stopping:" in block]
    settings = yaml.safe_load(text)["dpo"]

    config = dpo.DPOConfig(**{name: value for name, value in settings.items() if name != "kind"})

    assert config.early_stopping == EarlyStoppingConfig(
        metric="eval_rewards/accuracies", eval_steps=20, patience=3, min_delta=0.005
    )
    assert not dpo.SPEC.check(StageCheck("dpo", config, {}))
