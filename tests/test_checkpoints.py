"""Checkpoints of our own loops: whole or absent, verified, the one before used when the newest is damaged."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.disk import Disk
from pipeline.errors import StoreError
from stages.runtime.saving.checkpoints import CheckpointFolder
from stages.runtime.saving.training_state import (
    pack_optimizer,
    pack_random_state,
    restore_optimizer,
    restore_parameters,
    restore_random_state,
)


def _tensors(step: int) -> dict[str, dict[str, torch.Tensor]]:
    return {
        "parameters": {"a": torch.full((3, 2), float(step)), "b": torch.arange(4.0)},
        "optimizer": {"a|exp_avg": torch.ones(3, 2) * step},
        "random": {"torch": torch.get_rng_state()},
    }


def _folder(root: Path, steps: tuple[int, ...] = (1, 2), key: str = "key") -> CheckpointFolder:
    folder = CheckpointFolder(root, key)
    for step in steps:
        folder.save(step, _tensors(step), {"sums": {"loss": [0.1 * step, 1.0]}, "step": step})
    return folder


def test_what_was_saved_comes_back_bit_for_bit(tmp_path: Path) -> None:
    found = _folder(tmp_path).latest()

    assert (found.step, found.path.name, found.damages) == (2, "step-000000002", ())
    assert found.state == {"sums": {"loss": [0.2, 1.0]}, "step": 2}
    for group, named in _tensors(2).items():
        assert found.tensors[group].keys() == named.keys()
        assert all(torch.equal(found.tensors[group][name], value) for name, value in named.items())


def test_an_empty_folder_has_no_checkpoint(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "none", "key")

    assert folder.latest() is None
    assert folder.damages == ()


def test_the_oldest_go_by_step_and_not_by_time(tmp_path: Path) -> None:
    folder = _folder(tmp_path, steps=(5, 10))
    for path in tmp_path.iterdir():
        os.utime(path, (2e9, 2e9))  # the clock was set back since

    folder.save(15, _tensors(15), {})

    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000010", "step-000000015"]


def _remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _truncate(name: str) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size // 2)


def _flip(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[-3] ^= 1
        (folder / name).write_bytes(bytes(content))

    return damage


FILES = ("parameters.safetensors", "optimizer.safetensors", "random.safetensors", "state.json", "files.json")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", [_remove, _truncate, _flip], ids=["removed", "truncated", "one bit"])
def test_every_damage_is_named_and_the_checkpoint_before_is_used(tmp_path: Path, kind, name: str) -> None:
    folder = _folder(tmp_path)
    kind(name)(tmp_path / "step-000000002")

    found = folder.latest()

    assert found.step == 1
    assert torch.equal(found.tensors["parameters"]["a"], torch.ones(3, 2))
    assert name in found.damages[0].message
    assert found.damages[0].where.endswith("step-000000002")


def test_when_all_are_damaged_there_is_none_and_each_is_named(tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    for step in (1, 2):
        _remove("optimizer.safetensors")(tmp_path / f"step-00000000{step}")

    assert folder.latest() is None
    assert len(folder.damages) == 2


def test_a_checkpoint_renamed_to_another_step_is_refused(tmp_path: Path) -> None:
    folder = _folder(tmp_path, steps=(1,))
    (tmp_path / "step-000000001").rename(tmp_path / "step-000000009")

    assert folder.latest() is None
    assert "step 1" in folder.damages[0].message


def test_a_checkpoint_of_other_settings_is_never_loaded(tmp_path: Path) -> None:
    _folder(tmp_path, key="one")

    other = CheckpointFolder(tmp_path, "two")

    assert other.latest() is None
    assert {finding.code for finding in other.damages} == {"foreign-checkpoint"}


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    folder = _folder(tmp_path)

    folder.save(2, {"parameters": {"a": torch.zeros(1)}}, {"again": True})

    assert folder.latest().state == {"again": True}


def test_an_error_while_saving_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = _folder(tmp_path)

    with pytest.raises(TypeError):
        folder.save(3, _tensors(3), {"not json": object()})

    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000001", "step-000000002"]


def test_a_full_disk_is_one_clear_error_and_the_checkpoints_before_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    folder = _folder(tmp_path)

    def full(tensors, path):
        path.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("stages.runtime.saving.checkpoints.save_file", full)

    with pytest.raises(StoreError, match=r"cannot be written .* No space left"):
        folder.save(3, _tensors(3), {})
    assert folder.latest().step == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000001", "step-000000002"]


def _save_until_killed(root: Path, pipe: int) -> None:
    """Save one checkpoint after another and report each; runs in a forked child."""
    folder, step = CheckpointFolder(root, "key"), 0
    while True:
        step += 1
        folder.save(step, {"parameters": {"a": torch.full((50_000,), float(step))}}, {"step": step})
        os.write(pipe, b"%d\n" % step)


def test_a_kill_at_any_moment_loses_no_checkpoint_that_was_reported(tmp_path: Path) -> None:
    for attempt in range(6):
        root = tmp_path / str(attempt)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            _save_until_killed(root, writer)
        os.close(writer)
        with os.fdopen(reader) as lines:
            steps = [int(next(lines)) for _ in range(2 + attempt)]
            # The child is somewhere in the middle of the next save by now.
            os.kill(child, signal.SIGKILL)
            steps += [int(line) for line in lines if line.endswith("\n")]
        os.waitpid(child, 0)

        folder = CheckpointFolder(root, "key")
        found = folder.latest()

        assert folder.damages == ()
        assert found.step in (steps[-1], steps[-1] + 1)
        assert torch.equal(found.tensors["parameters"]["a"], torch.full((50_000,), float(found.step)))
        assert not list(root.glob(".tmp-*"))


def test_a_process_that_ends_at_any_disk_operation_leaves_the_old_or_the_new_checkpoint(
    tmp_path: Path,
) -> None:
    seen = []
    for end_at in range(100):
        root = tmp_path / str(end_at)
        _folder(root)
        child = os.fork()
        if child == 0:
            operations = iter(range(end_at, -1, -1))
            disk = Disk(before=lambda name, path: None if next(operations) else os._exit(9))  # noqa: B023
            CheckpointFolder(root, "key", disk=disk).save(3, _tensors(3), {})
            os._exit(0)
        _, status = os.waitpid(child, 0)

        folder = CheckpointFolder(root, "key")
        found = folder.latest()
        assert folder.damages == ()
        assert torch.equal(found.tensors["parameters"]["a"], torch.full((3, 2), float(found.step)))
        seen.append(found.step)
        if os.waitstatus_to_exitcode(status) == 0:
            break
    # Make a folder and flush its parent, flush five files and the folder, rename: nine operations
    # before which the old checkpoint counts.
    assert seen == [2] * 9 + [3] * (len(seen) - 9)
    assert len(seen) > 10


def test_random_state_of_torch_numpy_and_python_comes_back(tmp_path: Path) -> None:
    torch.manual_seed(1), np.random.seed(2), random.seed(3)
    np.random.standard_normal(), random.gauss(0, 1)  # each keeps half of a pair for the next call
    tensors, state = pack_random_state()
    CheckpointFolder(tmp_path, "key").save(1, {"random": tensors}, {"random": state})
    want = (torch.rand(3), np.random.standard_normal(3), random.gauss(0, 1), random.random())

    found = CheckpointFolder(tmp_path, "key").latest()
    restore_random_state(found.tensors["random"], found.state["random"])

    got = (torch.rand(3), np.random.standard_normal(3), random.gauss(0, 1), random.random())
    assert torch.equal(want[0], got[0])
    assert (want[1] == got[1]).all()
    assert want[2:] == got[2:]


def test_optimizer_state_goes_by_name_and_not_by_position(tmp_path: Path) -> None:
    def made(order: str) -> tuple[list, torch.optim.AdamW]:
        parameters = {name: nn.Parameter(torch.ones(2) * ord(name)) for name in "ab"}
        named = [(name, parameters[name]) for name in order]
        return named, torch.optim.AdamW([value for _, value in named], lr=0.1)

    named, optimizer = made("ab")
    (named[0][1].sum() + 2 * named[1][1].sum()).backward()
    optimizer.step()
    other, again = made("ba")

    restore_optimizer(again, other, pack_optimizer(optimizer, named))

    # After one step exp_avg = 0.1 * gradient: 0.1 for a, 0.2 for b.
    moments = {name: again.state[value]["exp_avg"][0].item() for name, value in other}
    assert moments == pytest.approx({"a": 0.1, "b": 0.2})
    with pytest.raises(ValueError, match="not trained here"):
        restore_optimizer(again, other[:1], pack_optimizer(optimizer, named))


def test_weights_of_other_names_are_refused() -> None:
    parameter = nn.Parameter(torch.zeros(2))

    with pytest.raises(ValueError, match="1 differ, first extra"):
        restore_parameters([("a", parameter)], {"a": torch.ones(2), "extra": torch.ones(2)})
    with pytest.raises(ValueError, match="shape"):
        restore_parameters([("a", parameter)], {"a": torch.ones(3)})


def test_nothing_is_pickled(tmp_path: Path) -> None:
    _folder(tmp_path)

    names = {path.name for path in tmp_path.rglob("*") if path.is_file()}

    assert {Path(name).suffix for name in names} == {".safetensors", ".json"}
    assert json.loads((tmp_path / "step-000000001" / "state.json").read_text())["step"] == 1
