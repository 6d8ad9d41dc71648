"""The monitor of PPO: silent while training goes well, one alarm for each way it goes wrong."""

from __future__ import annotations

import pytest
import torch

from pipeline.contract import ArtifactKind
from pipeline.errors import Interrupted
from stages.ops.stats import correlation
from stages.ppo import SPEC
from stages.trainers.ppo.monitor import HISTORY, NAMES, find_alarms
from tests.ppo_setup import chain, config, without, written
from tests.tiny import ManualStop, stage_context

GOOD = {
    "objective/kl": 1.0,
    "objective/scores": 0.0,
    "ppo/score_std": 1.0,
    "policy/entropy_avg": 2.0,
    "ppo/eos_rate": 0.9,
    "ppo/response_length": 20.0,
    "ppo/score_length_correlation": 0.1,
    "ppo/distinct_ratio": 0.8,
    "ppo/explained_variance": 0.5,
    "ppo/watched_score": 1.0,
    "ppo/watched_std": 0.5,
}
LEARNED = {**GOOD, "objective/scores": 2.0, "ppo/watched_score": 1.2}


def names(*lines, first=GOOD, max_kl=30.0):
    return [alarm.name for alarm in find_alarms(first, lines, max_kl=max_kl)]


def test_training_that_goes_well_raises_no_alarm():
    assert names(*[GOOD] * HISTORY) == []
    assert names(*[LEARNED] * HISTORY) == []
    assert names() == []


@pytest.mark.parametrize(
    ("changes", "name", "words"),
    [
        pytest.param({"objective/kl": 31.0}, "kl", "31.0 nats", id="kl"),
        pytest.param({"policy/entropy_avg": 0.19}, "entropy", "from 2 to 0.19", id="entropy"),
        pytest.param({"ppo/eos_rate": 0.4}, "eos", "40% of the responses", id="eos"),
        pytest.param(
            {"ppo/response_length": 27.0, "ppo/score_length_correlation": 0.8},
            "length",
            "grew from 20.0 to 27.0",
            id="length",
        ),
        pytest.param({"ppo/distinct_ratio": 0.5}, "repetition", "50% of a response", id="repetition"),
        pytest.param({"ppo/watched_score": 0.8}, "reward_hacking", "fell by 0.40", id="hacking"),
        pytest.param({"ppo/explained_variance": -0.1}, "value", "worse than a constant", id="value"),
    ],
)
def test_each_way_to_go_wrong_has_its_alarm_and_says_the_numbers(changes, name, words):
    (alarm,) = find_alarms(GOOD, [{**LEARNED, **changes}] * HISTORY, max_kl=30.0)

    assert alarm.name == name
    assert words in alarm.message
    assert name in NAMES


def test_longer_answers_alone_or_a_score_that_stays_are_no_alarm():
    longer = {**LEARNED, "ppo/response_length": 40.0}
    follows = {**LEARNED, "ppo/score_length_correlation": 0.9}
    unlearned = {**longer, "ppo/score_length_correlation": 0.9, "objective/scores": 0.2}

    assert names(*[longer] * HISTORY) == []
    assert names(*[follows] * HISTORY) == []
    assert names(*[unlearned] * HISTORY) == []


def test_one_bad_batch_is_noise_except_for_a_blown_up_kl():
    bad = {**LEARNED, "ppo/distinct_ratio": 0.5, "objective/kl": 40.0}

    assert names(*[LEARNED] * 4, bad) == ["kl"]
    assert names(*[{**GOOD, "ppo/explained_variance": -1.0}] * (HISTORY - 1)) == []


def test_without_a_watched_score_nothing_is_said_of_it():
    blind = {k: v for k, v in LEARNED.items() if "watched" not in k}

    assert names(*[blind] * HISTORY, first=blind) == []


def test_correlation_worked_by_hand():
    x = torch.tensor([1.0, 2.0, 3.0])

    # deviations -1 0 1 and -1 2 -1: covariance 0; and 2 -1 -1 against -1 0 1: -3 / sqrt(2 * 6)
    assert float(correlation(x, torch.tensor([0.0, 3.0, 0.0]))) == pytest.approx(0.0)
    assert float(correlation(x, torch.tensor([4.0, 1.0, 1.0]))) == pytest.approx(-3 / 12**0.5)
    assert float(correlation(x, torch.ones(3))) == 0.0


LONG = "def score(prompt, response, row):\n    return float(len(response))\n"
SHORT = "def score(prompt, response, row):\n    return -float(len(response))\n"


@pytest.fixture(scope="module")
def loves_length(tmp_path_factory):
    """A chain whose policy ends by itself after a dozen tokens, paid for length and watched for brevity."""
    root = tmp_path_factory.mktemp("loves_length")
    inputs = without(chain(root, eos_token_id=[3, *range(200, 220)]), "reward")
    return {
        **inputs,
        "reward_function": written(root / "long.py", LONG, ArtifactKind.FUNCTION),
        "watch": written(root / "short.py", SHORT, ArtifactKind.FUNCTION),
    }


def greedy_for_length(**changes):
    return config(
        rollout_batch_size=24,
        per_device_train_batch_size=24,
        max_new_tokens=24,
        learning_rate=2e-2,
        kl_coef=0.0,
        **changes,
    )


@pytest.mark.parametrize(
    "seed", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)]
)
def test_a_reward_that_loves_length_raises_the_alarm_and_the_best_policy_is_kept(
    loves_length, tmp_path, seed
):
    ctx = stage_context(
        tmp_path, greedy_for_length(seed=seed, total_iterations=50, on_alarm="stop"), loves_length
    )

    result = SPEC.run(ctx)

    assert result.metrics["ppo/iterations"] < 50
    alarms = {name for name in NAMES if ctx.logger.lines[-1][f"alarm/{name}"]}
    assert alarms & {"length", "reward_hacking"}
    assert any("alarm after iteration" in note for note in result.notes)
    watched = ctx.logger.series("ppo/watched_score")
    assert result.metrics["ppo/best_score"] > watched[-1]
    assert result.metrics["ppo/best_iteration"] < result.metrics["ppo/iterations"]


def test_by_default_an_alarm_is_said_once_and_training_goes_on(loves_length, tmp_path, caplog):
    ctx = stage_context(tmp_path, greedy_for_length(total_iterations=4, alarm_kl=1e-6), loves_length)

    result = SPEC.run(ctx)

    assert result.metrics["ppo/iterations"] == 4
    assert result.metrics["ppo/alarms"] >= 1
    assert sum("nats away" in record.message for record in caplog.records) == 1
    assert "ppo/best_iteration" not in result.metrics


def test_the_best_policy_survives_an_interruption(loves_length, tmp_path):
    settings = greedy_for_length(total_iterations=3, keep="best")
    whole = SPEC.run(stage_context(tmp_path / "whole", settings, loves_length))
    with pytest.raises(Interrupted):
        SPEC.run(stage_context(tmp_path / "parts", settings, loves_length, stop=ManualStop(after=1)))

    parts = SPEC.run(stage_context(tmp_path / "parts", settings, loves_length))

    file = "adapter_model.safetensors"
    assert (whole.outputs["adapter"] / file).read_bytes() == (parts.outputs["adapter"] / file).read_bytes()
    assert whole.metrics == parts.metrics
    assert whole.metrics["ppo/best_iteration"] < 3
