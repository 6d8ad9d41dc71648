"""The training loop: exact resume, schedule, stop flag, clear errors."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.errors import Interrupted, StageFailed
from stages.config import TrainingConfig
from stages.runtime.saving.checkpoints import CheckpointFolder
from stages.trainers.loop import LoopSettings, LossOutput, make_optimizer, train
from stages.trainers.order import order, row_batches, total_steps
from tests.tiny import ManualStop, stage_context

CONFIG = TrainingConfig(
    per_device_train_batch_size=2, gradient_accumulation_steps=2, learning_rate=0.05, logging_steps=3
)


def _problem(seed: int = 0):
    """A small regression whose loss draws from the random state, as dropout would."""
    generator = torch.Generator().manual_seed(seed)
    rows, targets = torch.randn(10, 3, generator=generator), torch.randn(10, generator=generator)
    weight = nn.Parameter(torch.randn(3, 1, generator=generator))
    bias = nn.Parameter(torch.zeros(1))

    def loss(indexes: list[int]) -> LossOutput:
        noise = 0.1 * torch.randn(len(indexes))
        error = (rows[indexes] @ weight).squeeze(1) + bias + noise - targets[indexes]
        share = error.square().sum() / 4
        return LossOutput(
            share, {"absolute": (error.detach().abs().sum(), len(indexes))}, tokens=len(indexes)
        )

    return [("weight", weight), ("bias", bias)], loss


def _train(root: Path, steps: int, *, config=CONFIG, stop=None, seed=0, **hooks):
    parameters, loss = _problem()
    torch.manual_seed(seed)
    ctx = stage_context(root, config, stop=stop)
    summary = train(
        parameters=parameters,
        config=config,
        total_steps=steps,
        batches=row_batches(config, 10),
        loss=loss,
        ctx=ctx,
        prefix="test",
        **hooks,
    )
    return parameters, ctx.logger, summary


def test_two_steps_a_stop_and_two_more_equal_four_steps_bit_for_bit(tmp_path: Path) -> None:
    straight, lines, _ = _train(tmp_path / "straight", 4)

    with pytest.raises(Interrupted) as stopped:
        _train(tmp_path / "broken", 4, stop=ManualStop(after=1))
    # Another seed after the restart: the random state must come from the checkpoint.
    resumed, again, summary = _train(tmp_path / "broken", 4, seed=99)

    assert "after step 2 of 4" in str(stopped.value)
    assert summary.resumed_from == 2
    for (_, a), (_, b) in zip(straight, resumed, strict=True):
        assert torch.equal(a, b)
    for name in ("loss", "absolute", "grad_norm", "learning_rate", "num_tokens"):
        # Step 3 averages over steps 1 to 3: two of them were taken before the stop.
        assert again.series(name) == lines.series(name)


@pytest.mark.parametrize("name", ["optimizer.safetensors", "random.safetensors", "state.json"])
def test_after_a_damage_the_checkpoint_before_gives_the_same_bits(tmp_path: Path, name: str) -> None:
    often = CONFIG.model_copy(update={"save_steps": 1})
    straight, _, _ = _train(tmp_path / "straight", 5, config=often)
    with pytest.raises(Interrupted):
        _train(tmp_path / "broken", 5, config=often, stop=ManualStop(after=2))
    (tmp_path / "broken" / "scratch" / "checkpoints" / "step-000000003" / name).unlink()

    resumed, _, summary = _train(tmp_path / "broken", 5, config=often, seed=99)

    assert summary.resumed_from == 2
    assert name in summary.notes[0]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(straight, resumed, strict=True))


def test_a_changed_setting_starts_from_the_beginning(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        _train(tmp_path, 4, stop=ManualStop(after=1))

    _, _, summary = _train(tmp_path, 4, config=CONFIG.model_copy(update={"learning_rate": 0.01}))

    assert summary.resumed_from == 0
    assert "other settings" in summary.notes[0]


def test_logging_and_saving_more_often_goes_on_from_the_same_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        _train(tmp_path, 4, stop=ManualStop(after=1))

    _, _, summary = _train(
        tmp_path, 4, config=CONFIG.model_copy(update={"logging_steps": 1, "save_steps": 1})
    )

    assert summary.resumed_from == 2


def test_an_evaluation_does_not_move_the_training(tmp_path: Path) -> None:
    plain, _, _ = _train(tmp_path / "plain", 4)

    watched, lines, _ = _train(
        tmp_path / "watched", 4, evaluate=lambda: {"eval_loss": float(torch.rand(1))}, eval_steps=3
    )

    assert [line["step"] for line in lines.lines if "eval_loss" in line] == [3, 4]
    assert torch.equal(plain[0][1], watched[0][1])


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=["nan", "inf"])
def test_a_loss_that_is_not_finite_stops_before_the_weights_are_touched(tmp_path: Path, value: float) -> None:
    weight = nn.Parameter(torch.ones(2, 1))

    with pytest.raises(StageFailed, match="at step 1 of 3") as error:
        train(
            parameters=[("weight", weight)],
            config=CONFIG,
            total_steps=3,
            batches=lambda step: [None],
            loss=lambda micro: LossOutput(weight.sum() * value),
            ctx=stage_context(tmp_path, CONFIG),
            prefix="test",
        )

    assert error.value.findings[0].code == "non-finite-loss"
    assert torch.equal(weight, torch.ones(2, 1))


def test_the_schedule_is_that_of_transformers() -> None:
    from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

    makers = {"linear": get_linear_schedule_with_warmup, "cosine": get_cosine_schedule_with_warmup}
    for kind, make in makers.items():
        config = CONFIG.model_copy(update={"lr_scheduler_type": kind, "warmup_ratio": 0.25})
        settings = LoopSettings.from_config(config, 10)
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=config.learning_rate)
        schedule = make(optimizer, settings.warmup_steps, 10)

        for step in range(10):
            assert settings.rate(step) == pytest.approx(schedule.get_last_lr()[0], abs=1e-15)
            optimizer.step()
            schedule.step()
    constant = CONFIG.model_copy(update={"lr_scheduler_type": "constant", "warmup_ratio": 0.0})
    assert LoopSettings.from_config(constant, 10).rate(9) == config.learning_rate


def test_a_step_over_micro_batches_equals_one_over_the_whole_batch(tmp_path: Path) -> None:
    # The first step of plain gradient descent from w = 1 on (w x_i - 0)^2 / 4, x = 1, 2, 3, 4:
    # the gradient is 2 w (1 + 4 + 9 + 16) / 4 = 15, and its norm is logged before clipping.
    weight = nn.Parameter(torch.ones(1, 1))
    ctx = stage_context(tmp_path, CONFIG)

    train(
        parameters=[("weight", weight)],
        config=CONFIG.model_copy(update={"logging_steps": 1}),
        total_steps=1,
        batches=lambda step: [[1.0, 2.0], [3.0, 4.0]],
        loss=lambda xs: LossOutput(sum((weight * x).square().sum() / 4 for x in xs)),
        ctx=ctx,
        prefix="test",
    )

    assert ctx.logger.series("grad_norm") == [15.0]
    assert ctx.logger.series("loss") == [7.5]


def test_norms_and_biases_are_not_decayed() -> None:
    matrix, vector = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    settings = LoopSettings.from_config(CONFIG.model_copy(update={"weight_decay": 0.5}), 4)

    optimizer = make_optimizer([("m", matrix), ("v", vector)], settings)

    assert [(len(g["params"]), g["weight_decay"]) for g in optimizer.param_groups] == [(1, 0.5), (1, 0.0)]


def test_a_frozen_parameter_is_refused(tmp_path: Path) -> None:
    frozen = nn.Parameter(torch.ones(1), requires_grad=False)

    with pytest.raises(ValueError, match="frozen"):
        train(
            parameters=[("frozen", frozen)],
            config=CONFIG,
            total_steps=1,
            batches=lambda step: [],
            loss=lambda micro: LossOutput(frozen.sum()),
            ctx=stage_context(tmp_path, CONFIG),
            prefix="test",
        )


def test_every_epoch_holds_each_row_once_in_an_order_of_its_own() -> None:
    batches = row_batches(CONFIG, 10)  # 4 rows a step, so 3 steps an epoch: 4 + 4 + 2

    epochs = [
        [row for step in range(3) for micro in batches(3 * epoch + step) for row in micro] for epoch in (0, 1)
    ]

    assert [sorted(rows) for rows in epochs] == [list(range(10))] * 2
    assert epochs[0] != epochs[1]
    assert [len(micro) for micro in batches(2)] == [2]
    assert order(1, 0, 10) == order(1, 0, 10) != order(2, 0, 10)


def test_epochs_become_steps_rounded_up() -> None:
    # 10 rows, 4 a step: 3 steps an epoch; one and a half epochs are 4.5 steps, so 5.
    assert total_steps(CONFIG.model_copy(update={"num_train_epochs": 1.5}), 10) == 5
    assert total_steps(CONFIG.model_copy(update={"max_steps": 7}), 10) == 7


def test_checkpoints_are_kept_every_save_steps(tmp_path: Path) -> None:
    _train(tmp_path, 6, config=CONFIG.model_copy(update={"save_steps": 2}))

    kept = sorted(path.name for path in (tmp_path / "scratch" / "checkpoints").iterdir())
    assert kept == ["step-000000004", "step-000000006"]
    assert CheckpointFolder(tmp_path / "scratch" / "checkpoints", "another key").latest() is None
