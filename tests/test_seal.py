"""Sealed checkpoints of transformers trainers: damages are named, the one before is used, bits are equal."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from pipeline.config.run import ModelConfig, TuningConfig
from pipeline.contract import Checkpoint
from pipeline.errors import Interrupted
from stages.config import TrainingConfig
from stages.runtime.adapters import named_adapter_parameters, new_adapter
from stages.runtime.checkpoints import checkpoint_key
from stages.runtime.loading import load_base
from stages.runtime.seal import REQUIRED_FILES, newest_sealed, train_sealed
from tests.tiny import ManualStop, RecordingLogger, stage_context

CONFIG = TrainingConfig(max_steps=6)
ADAPTER = "policy/adapter_model.safetensors"


class Crash(BaseException):
    """Stands for the end of the process: no handler of the trainer may run."""


class CrashAt(TrainerCallback):
    """Ends training in the middle of a step's bookkeeping."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Crash


def _trainer(base: Checkpoint, folder: Path, **changes) -> Trainer:
    tuning = TuningConfig(lora_r=2, lora_alpha=4, lora_dropout=0.1)
    model = new_adapter(load_base(base, ModelConfig()), tuning, seed=0)
    rows = [{"input_ids": [5 + i, 9, 7 + i], "labels": [5 + i, 9, 7 + i]} for i in range(8)]
    arguments = TrainingArguments(
        str(folder),
        max_steps=6,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        save_steps=2,
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=3,
        **changes,
    )
    return Trainer(model, arguments, train_dataset=rows)


def _weights(trainer: Trainer) -> list[torch.Tensor]:
    return [value.detach().clone() for _, value in named_adapter_parameters(trainer.model, "policy")]


@pytest.fixture(scope="module")
def straight(tiny_base: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> list[torch.Tensor]:
    root = tmp_path_factory.mktemp("straight")
    trainer = _trainer(tiny_base, root / "scratch" / "trainer")
    train_sealed(trainer, stage_context(root, CONFIG))
    return _weights(trainer)


@pytest.fixture(scope="module")
def crashed(tiny_base: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage that died after step 5, with sealed checkpoints of steps 2 and 4."""
    root = tmp_path_factory.mktemp("crashed")
    trainer = _trainer(tiny_base, root / "scratch" / "trainer")
    trainer.add_callback(CrashAt(5))
    with pytest.raises(Crash):
        train_sealed(trainer, stage_context(root, CONFIG))
    return root


def _remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _cut(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return damage


def _flip(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[-1] ^= 1
        (folder / name).write_bytes(bytes(content))

    return damage


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        pytest.param(_cut(ADAPTER), ADAPTER, id="truncated adapter"),
        pytest.param(_remove(ADAPTER), ADAPTER, id="no adapter"),
        pytest.param(_flip(ADAPTER), ADAPTER, id="one bit of adapter"),
        pytest.param(_remove("trainer_state.json"), "trainer_state.json", id="no trainer state"),
        pytest.param(_remove("optimizer.pt"), "optimizer.pt", id="no optimizer"),
        pytest.param(_remove("scheduler.pt"), "scheduler.pt", id="no scheduler"),
        pytest.param(_remove("rng_state.pth"), "rng_state.pth", id="no random state"),
        pytest.param(
            _remove("policy/adapter_config.json"), "policy/adapter_config.json", id="no adapter config"
        ),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    crashed: Path, tmp_path, damage, named
) -> None:
    folder = tmp_path / "trainer"
    shutil.copytree(crashed / "scratch" / "trainer", folder)
    key = checkpoint_key(stage_context(tmp_path, CONFIG))
    damage(folder / "checkpoint-4")

    found = newest_sealed(folder, key)

    assert found.step == 2
    assert found.path == folder / "checkpoint-2"
    assert named in found.damages[0].message


def test_a_run_that_falls_back_ends_with_the_bits_of_an_uninterrupted_one(
    tiny_base: Checkpoint, crashed: Path, straight: list[torch.Tensor], tmp_path: Path
) -> None:
    shutil.copytree(crashed / "scratch", tmp_path / "scratch")
    _remove("optimizer.pt")(tmp_path / "scratch" / "trainer" / "checkpoint-4")
    trainer = _trainer(tiny_base, tmp_path / "scratch" / "trainer")

    found = train_sealed(trainer, stage_context(tmp_path, CONFIG))

    assert found.step == 2
    assert all(torch.equal(a, b) for a, b in zip(straight, _weights(trainer), strict=True))


def test_a_checkpoint_without_a_seal_does_not_count(crashed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "trainer"
    shutil.copytree(crashed / "scratch" / "trainer", folder)
    (folder / "checkpoint-4.seal").unlink()
    (folder / "checkpoint-99").mkdir()

    found = newest_sealed(folder, checkpoint_key(stage_context(tmp_path, CONFIG)))

    assert found.step == 2
    assert len(found.damages) == 2


def test_checkpoints_of_other_settings_are_never_resumed(crashed: Path, tmp_path: Path) -> None:
    other = CONFIG.model_copy(update={"learning_rate": 1.0})
    key = checkpoint_key(stage_context(tmp_path, other))

    found = newest_sealed(crashed / "scratch" / "trainer", key)

    assert (found.path, found.step) == (None, 0)
    assert "other settings" in found.damages[0].message


def test_a_stop_saves_seals_and_goes_on_to_the_same_bits(
    tiny_base: Checkpoint, straight: list[torch.Tensor], tmp_path: Path
) -> None:
    with pytest.raises(Interrupted, match="after step 3 of 6"):
        train_sealed(
            _trainer(tiny_base, tmp_path / "scratch" / "trainer"),
            stage_context(tmp_path, CONFIG, stop=ManualStop(after=2)),
        )

    trainer = _trainer(tiny_base, tmp_path / "scratch" / "trainer")
    found = train_sealed(trainer, stage_context(tmp_path, CONFIG))

    assert (found.step, found.damages) == (3, ())
    assert all(torch.equal(a, b) for a, b in zip(straight, _weights(trainer), strict=True))


def test_the_newest_two_are_kept_by_step_and_hold_no_pickled_arguments(
    tiny_base: Checkpoint, tmp_path: Path
) -> None:
    context = stage_context(tmp_path, CONFIG)
    train_sealed(_trainer(tiny_base, tmp_path / "scratch" / "trainer"), context)

    folder = tmp_path / "scratch" / "trainer"
    names = sorted(path.name for path in folder.iterdir() if path.name.startswith("checkpoint"))
    assert names == ["checkpoint-4", "checkpoint-4.seal", "checkpoint-6", "checkpoint-6.seal"]
    assert not list(folder.rglob("training_args.bin"))
    assert all((folder / "checkpoint-6" / name).is_file() for name in REQUIRED_FILES)
    logger = context.logger
    assert isinstance(logger, RecordingLogger)
    assert [line["step"] for line in logger.lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert {"loss", "grad_norm", "learning_rate"} <= logger.lines[0].keys()
    assert "train_loss" not in logger.lines[-1]


def test_the_trainers_own_rotation_is_refused(tiny_base: Checkpoint, tmp_path: Path) -> None:
    trainer = _trainer(tiny_base, tmp_path / "scratch" / "trainer", save_total_limit=1)

    with pytest.raises(ValueError, match="save_total_limit"):
        train_sealed(trainer, stage_context(tmp_path, CONFIG))
