"""Early stopping: when training ends, which weights it gives, the gap it tells, exactness after a stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.errors import DataError, Interrupted, StageFailed
from stages.config import TrainingConfig
from stages.early_stopping import EarlyStoppingConfig
from stages.trainers.early_stopping import EarlyStopping
from stages.trainers.loop import LossOutput, train
from tests.tiny import ManualStop, RecordingLogger, stage_context


def _watched(values: list[float], *, trained: float = 0.0, every: int = 1, **settings: Any):
    """Feed values as measurements while a weight counts the steps; return watch, log and weight."""
    weight = nn.Parameter(torch.zeros(1))
    config = EarlyStoppingConfig(eval_steps=every, **settings)
    coming = iter(values)
    early = EarlyStopping(
        config,
        [("weight", weight)],
        held_out=lambda: {config.metric: next(coming), "eval_other": 7.0},
        trained=lambda: {config.metric: trained},
    )
    logger, total, done = RecordingLogger(), every * len(values), 0
    while done < total and not early.stopped:
        done += 1
        with torch.no_grad():
            weight.fill_(done)
        early.after(done, total, logger)
    return early, logger, weight


@pytest.mark.parametrize(
    ("values", "settings", "ended", "best"),
    [
        # Best at step 3; steps 4 and 5 gain nothing, so patience 2 is spent after step 5.
        pytest.param([4, 1, 0, 1, 4, 0], {"patience": 2}, 5, 3, id="loss-rises"),
        # A gain at step 4 starts the waiting anew: 5, 6 spend it.
        pytest.param([4, 3, 3, 2, 5, 5, 1], {"patience": 2}, 6, 4, id="a-gain-starts-anew"),
        # An equal value is no gain, and the first of equals is the best.
        pytest.param([2, 2, 2, 1], {"patience": 2}, 3, 1, id="equal-is-no-gain"),
        # Against the mark 4: 3.6 and 3.2 gain less than 1, so two measurements are waited; the best is 3.2.
        pytest.param(
            [4, 3.6, 3.2, 0], {"patience": 2, "min_delta": 1.0}, 3, 3, id="small-gains-do-not-count"
        ),
        # Against the mark 4: 3.4 is too little, 2.8 gains 1.2 in all and becomes the mark; then two more.
        pytest.param(
            [4, 3.4, 2.8, 2.5, 2.4, 0], {"patience": 2, "min_delta": 1.0}, 5, 5, id="small-gains-add-up"
        ),
        # Exactly min_delta is not more than it.
        pytest.param([4, 3, 2.5, 1], {"patience": 1, "min_delta": 1.0}, 2, 2, id="exactly-min-delta"),
        pytest.param(
            [0.5, 0.7, 0.6, 0.6], {"metric": "eval_rewards/accuracies", "patience": 2}, 4, 2, id="rise"
        ),
        pytest.param([3, 2, 1], {"patience": 1}, 3, 3, id="never-stops"),
    ],
)
def test_training_ends_after_the_patience_and_gives_the_best_weights(values, settings, ended, best) -> None:
    early, logger, weight = _watched(values, **settings)

    early.put_back()

    assert logger.lines[-1]["step"] == ended
    assert early.metrics()["best_step"] == best
    assert float(weight) == best
    assert early.metrics()["stopped_early"] == float(ended < len(values))
    assert early.measured == {early._config.metric: values[best - 1], "eval_other": 7.0}


def test_only_every_eval_steps_and_the_last_step_are_measured() -> None:
    early, logger, _ = _watched([3, 2, 1], every=4)

    assert [line["step"] for line in logger.lines] == [4, 8, 12]
    early.after(10, 11, logger)  # no measurement is due: nothing is left to feed
    assert early.metrics()["best_step"] == 12


@pytest.mark.parametrize(
    ("metric", "held_out", "trained", "gap"),
    [
        # A loss of 1.5 held out and of 1.2 on what was trained on: 0.3 worse where it was not trained.
        pytest.param("eval_loss", 1.5, 1.2, 0.3, id="loss"),
        # An accuracy of 0.7 held out and of 0.9 trained: 0.2 worse.
        pytest.param("eval_rewards/accuracies", 0.7, 0.9, 0.2, id="accuracy"),
    ],
)
def test_the_gap_is_positive_where_training_rows_do_better(metric, held_out, trained, gap) -> None:
    early, logger, _ = _watched([held_out], trained=trained, metric=metric)

    assert logger.series("overfitting_gap") == [pytest.approx(gap)]
    assert early.metrics()["overfitting_gap"] == pytest.approx(gap)


def test_the_gap_that_is_told_is_the_one_at_the_best_step() -> None:
    # Held out 2, 1, 3 against 0 on training rows: the best is the second.
    early, logger, _ = _watched([2, 1, 3])

    assert logger.series("overfitting_gap") == [2, 1, 3]
    assert early.metrics()["overfitting_gap"] == 1


def test_a_measurement_that_is_no_number_stops_the_stage() -> None:
    with pytest.raises(StageFailed, match="eval_loss is nan on the held-out rows after step 2"):
        _watched([1.0, float("nan"), 1.0])


def test_the_sample_for_the_gap_is_drawn_from_training_rows_and_as_large_as_the_held_out_part() -> None:
    seen: list[list[int]] = []

    def measure(rows):
        seen.append(list(rows))
        return {"eval_loss": 1.0}

    weight = nn.Parameter(torch.zeros(1))
    early = EarlyStopping.of(
        EarlyStoppingConfig(eval_steps=1),
        [("weight", weight)],
        rows=range(100),
        held_out=range(100, 110),
        measure=measure,
        seed=3,
    )
    early.after(1, 2, RecordingLogger())
    early.after(2, 2, RecordingLogger())

    assert seen[0] == list(range(100, 110))
    assert len(set(seen[1])) == 10
    assert set(seen[1]) < set(range(100))
    assert seen[1] != list(range(10))
    assert seen[3] == seen[1]


def test_nothing_held_out_is_said_before_the_first_step() -> None:
    with pytest.raises(DataError, match="no held-out row"):
        EarlyStopping.of(
            EarlyStoppingConfig(eval_steps=1), [], rows=[1], held_out=[], measure=lambda _: {}, seed=0
        )


CONFIG = TrainingConfig(
    learning_rate=1.0, warmup_ratio=0.0, lr_scheduler_type="constant", logging_steps=2, save_steps=2
)


def _descend(
    root: Path,
    *,
    noise: float = 0.0,
    draws: int = 5,
    steps: int = 20,
    stop: ManualStop | None = None,
    **settings: Any,
):
    """Under a constant gradient AdamW moves by its learning rate: after k steps the weight is -k.

    The held-out loss is (weight + 3)^2: 4, 1, 0, 1, 4 after steps 1 to 5.
    """
    weight = nn.Parameter(torch.zeros(1))
    torch.manual_seed(0)

    def measure(_: Any = None) -> dict[str, float]:
        torch.rand(draws)
        return {"eval_loss": float((weight.detach() + 3) ** 2)}

    config = EarlyStoppingConfig(**{"eval_steps": 1, "patience": 2, **settings})
    early = EarlyStopping(config, [("weight", weight)], held_out=measure, trained=measure)
    ctx = stage_context(root, CONFIG, stop=stop)
    summary = train(
        parameters=[("weight", weight)],
        config=CONFIG,
        total_steps=steps,
        batches=lambda step: [step],
        loss=lambda _: LossOutput((weight * (1 - noise * torch.rand(1))).sum()),
        ctx=ctx,
        prefix="test",
        evaluate=measure,
        early=early,
    )
    return weight, ctx.logger, summary


def test_the_loop_stops_and_gives_the_best_weights_back(tmp_path: Path) -> None:
    weight, logger, summary = _descend(tmp_path)

    assert float(weight) == pytest.approx(-3, abs=1e-5)
    assert summary.steps == 5
    assert summary.evaluation == {"eval_loss": pytest.approx(0, abs=1e-9)}
    assert summary.metrics["best_step"] == 3
    assert summary.metrics["stopped_early"] == 1
    assert summary.notes == (
        "stopped after step 5 of 20: no gain in 2 measurements; the weights are those of step 3, "
        f"where eval_loss was {summary.evaluation['eval_loss']:.4g}",
    )
    # Each measurement is logged once; the line of the last step is written although 5 is no multiple of 2.
    assert [line["step"] for line in logger.lines if "eval_loss" in line] == [1, 2, 3, 4, 5]
    assert [line["step"] for line in logger.lines if "loss" in line] == [2, 4, 5]


def test_a_training_that_never_loses_runs_to_its_end_and_keeps_its_best(tmp_path: Path) -> None:
    weight, _, summary = _descend(tmp_path, steps=4, patience=9)

    # The last step is worse than the one before: 0 after step 3, 1 after step 4.
    assert (summary.steps, summary.metrics["stopped_early"], summary.metrics["best_step"]) == (4, 0, 3)
    assert float(weight) == pytest.approx(-3, abs=1e-5)


def test_a_measurement_that_draws_random_numbers_does_not_move_the_training(tmp_path: Path) -> None:
    quiet, _, _ = _descend(tmp_path / "quiet", noise=0.3, draws=0)
    drawing, _, _ = _descend(tmp_path / "drawing", noise=0.3, draws=5)

    assert torch.equal(quiet, drawing)


@pytest.mark.parametrize("after", [1, 2, 3, 4])
def test_a_stopped_run_that_goes_on_ends_in_the_same_bits(tmp_path: Path, after: int) -> None:
    straight, lines, whole = _descend(tmp_path / "straight", noise=0.3)
    with pytest.raises(Interrupted):
        _descend(tmp_path / "broken", noise=0.3, stop=ManualStop(after=after - 1))

    resumed, again, summary = _descend(tmp_path / "broken", noise=0.3)

    assert summary.resumed_from == after
    assert torch.equal(straight, resumed)
    assert (summary.steps, summary.evaluation, summary.notes) == (whole.steps, whole.evaluation, whole.notes)
    assert summary.metrics == whole.metrics
    assert again.series("eval_loss") == lines.series("eval_loss")[after:]


def test_a_process_killed_after_the_end_does_not_train_past_it(tmp_path: Path) -> None:
    # With patience 3 training ends after step 6, where a checkpoint is due; a second run starts from it.
    first, _, whole = _descend(tmp_path, patience=3)

    second, lines, summary = _descend(tmp_path, patience=3)

    assert (whole.steps, summary.steps, summary.resumed_from) == (6, 6, 6)
    assert torch.equal(first, second)
    assert summary.metrics == whole.metrics
    assert lines.lines == []
