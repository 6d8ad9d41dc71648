"""Supervised fine-tuning goes on exactly where it stopped, from the last checkpoint that is whole."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from pipeline.contract import ArtifactKind
from pipeline.errors import ExitCode, Interrupted
from stages.sft import SftConfig, run
from tests.tiny import ManualStop, as_checkpoint, stage_context, tiny_model

SETTINGS = {
    "per_device_train_batch_size": 4,
    "max_steps": 8,
    "save_steps": 2,
    "logging_steps": 2,
    "learning_rate": 1e-2,
    "eval_share": 0.2,
    "tuning": {"lora_r": 4, "lora_dropout": 0.1},
}
REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    path = folder / "demonstrations.jsonl"
    rows = [{"prompt": f"say {i}", "completion": f"it is {i}" + "!" * (i % 5)} for i in range(15)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "base": tiny_model(folder / "base"),
        "demonstrations": as_checkpoint(path, ArtifactKind.DEMONSTRATIONS),
    }


@pytest.fixture(scope="module")
def uninterrupted(inputs, tmp_path_factory):
    ctx = stage_context(tmp_path_factory.mktemp("whole"), SftConfig(**SETTINGS), inputs)
    return ctx, run(ctx)


def adapter_bytes(result):
    return (result.outputs["adapter"] / "adapter_model.safetensors").read_bytes()


def interrupted(folder, inputs, *, after):
    """Stop after a number of steps; the context to go on with has the same scratch folder."""
    ctx = stage_context(folder, SftConfig(**SETTINGS), inputs, stop=ManualStop(after=after - 1))
    with pytest.raises(Interrupted) as caught:
        run(ctx)
    assert caught.value.exit_code == ExitCode.INTERRUPTED
    assert not list(ctx.output_dir.iterdir())
    return stage_context(folder, SftConfig(**SETTINGS), inputs)


@pytest.fixture(scope="module")
def stopped_at_4(inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped")
    interrupted(folder, inputs, after=4)
    return folder


def timeless(lines, after):
    """The lines of training steps after a step, without what a clock says."""
    found = [line for line in lines if line["step"] > after and "loss" in line]
    return [{name: value for name, value in line.items() if name != "tokens_per_second"} for line in found]


@pytest.mark.parametrize("after", [1, 7])
def test_a_stopped_run_that_goes_on_ends_in_the_same_bits(tmp_path, inputs, uninterrupted, after):
    ctx = interrupted(tmp_path, inputs, after=after)

    result = run(ctx)

    whole_ctx, whole = uninterrupted
    assert adapter_bytes(result) == adapter_bytes(whole)
    assert result.metrics == whole.metrics
    assert not result.notes
    steps = [line["step"] for line in ctx.logger.lines if "loss" in line]
    assert min(steps) > after
    assert timeless(whole_ctx.logger.lines, after + 2) == timeless(ctx.logger.lines, after + 2)


def test_a_killed_process_goes_on_from_its_last_checkpoint_with_the_same_bits(
    tmp_path, inputs, uninterrupted
):
    given = [
        (role, source.kind.value, str(source.path), source.fingerprint) for role, source in inputs.items()
    ]
    program = f"""
import dataclasses, os, signal
from pathlib import Path
from pipeline.contract import ArtifactKind, Checkpoint
from stages.sft import SftConfig, run
from tests.tiny import RecordingLogger, stage_context

class Killer(RecordingLogger):
    def progress(self, step, total, text=""):
        if step == 5:
            os.kill(os.getpid(), signal.SIGKILL)

inputs = {{role: Checkpoint(ArtifactKind(kind), Path(path), name) for role, kind, path, name in {given!r}}}
ctx = stage_context(Path({str(tmp_path)!r}), SftConfig(**{SETTINGS!r}), inputs)
run(dataclasses.replace(ctx, logger=Killer()))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]

    ctx = stage_context(tmp_path, SftConfig(**SETTINGS), inputs)
    result = run(ctx)

    assert adapter_bytes(result) == adapter_bytes(uninterrupted[1])
    assert result.metrics == uninterrupted[1].metrics
    assert min(line["step"] for line in ctx.logger.lines if "loss" in line) == 6  # from checkpoint 4


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_last_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "adapter cut": ("policy/adapter_model.safetensors", truncate),
    "adapter missing": ("policy/adapter_model.safetensors", Path.unlink),
    "adapter bit flipped": ("policy/adapter_model.safetensors", flip_last_byte),
    "adapter config cut": ("policy/adapter_config.json", truncate),
    "optimizer missing": ("optimizer.pt", Path.unlink),
    "scheduler missing": ("scheduler.pt", Path.unlink),
    "random state missing": ("rng_state.pth", Path.unlink),
    "trainer state cut": ("trainer_state.json", truncate),
    "totals missing": ("totals.json", Path.unlink),
    "seal missing": ("../checkpoint-4.seal", Path.unlink),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    tmp_path, inputs, uninterrupted, stopped_at_4, name
):
    shutil.copytree(stopped_at_4, tmp_path, dirs_exist_ok=True)
    ctx = stage_context(tmp_path, SftConfig(**SETTINGS), inputs)
    file, damage = DAMAGES[name]
    folder = ctx.scratch_dir / "trainer" / "checkpoint-4"
    damage(folder / file)

    result = run(ctx)

    assert adapter_bytes(result) == adapter_bytes(uninterrupted[1])
    assert result.metrics == uninterrupted[1].metrics
    assert min(line["step"] for line in ctx.logger.lines if "loss" in line) == 4  # from checkpoint 2
    assert any("checkpoint-4" in note for note in result.notes)
    assert any(Path(file).name.split(".seal")[0] in note for note in result.notes)


def test_checkpoints_of_other_settings_are_not_gone_on_from(tmp_path, inputs, stopped_at_4):
    shutil.copytree(stopped_at_4, tmp_path, dirs_exist_ok=True)
    other = {**SETTINGS, "learning_rate": 5e-3}
    ctx = stage_context(tmp_path, SftConfig(**other), inputs)
    fresh_ctx = stage_context(tmp_path / "fresh", SftConfig(**other), inputs)

    result, fresh = run(ctx), run(fresh_ctx)

    assert adapter_bytes(result) == adapter_bytes(fresh)
    assert any("other settings" in note for note in result.notes)


def test_a_stop_asked_for_at_the_last_step_ends_the_stage(tmp_path, inputs, uninterrupted):
    ctx = stage_context(tmp_path, SftConfig(**SETTINGS), inputs, stop=ManualStop(after=7))

    assert adapter_bytes(run(ctx)) == adapter_bytes(uninterrupted[1])


def test_a_checkpoint_holds_no_path_of_this_machine_in_a_pickle(stopped_at_4):
    folder = stopped_at_4 / "scratch" / "trainer" / "checkpoint-4"

    assert not (folder / "training_args.bin").exists()
    assert load_file(folder / "policy" / "adapter_model.safetensors")
