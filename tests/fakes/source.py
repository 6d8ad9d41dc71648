"""A stage that turns a text file into a small model, step by step, with checkpoints."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import time
from pathlib import Path
from typing import Literal

from pydantic import Field

from pipeline.config.strict import NOT_IN_KEY, StrictModel
from pipeline.contract import ArtifactKind, InputSlot, StageContext, StageResult, StageSpec
from pipeline.errors import DataError, Interrupted


class FakeConfig(StrictModel):
    """Settings of a stage that adds numbers."""

    seed: int = 42
    "Enters the result."
    rate: float = 1.0
    "What each step adds."
    steps: int = Field(3, ge=1)
    "How many steps."
    pause_seconds: float = Field(0.0, json_schema_extra=NOT_IN_KEY)
    "How long a step takes."
    tally: str | None = Field(None, json_schema_extra=NOT_IN_KEY)
    "A file that gets a line for each step computed."
    trouble: Literal["no", "user", "bug", "memory", "disk", "kill", "pickle", "edit"] = Field(
        "no", json_schema_extra=NOT_IN_KEY
    )
    "What goes wrong at the second step."


def run(ctx: StageContext) -> StageResult:
    """Add `rate` for each step to the seed and the size of every input."""
    config = ctx.config
    value, step = _resume(ctx)
    while step < config.steps:
        step += 1
        value += config.rate
        _tally(config, ctx.name, step)
        _save(ctx.scratch_dir / "checkpoint.json", {"value": value, "step": step})
        ctx.logger.log({"loss": 1.0 / step}, step=step)
        ctx.logger.progress(step, config.steps, f"value {value}")
        if step == 2:
            _trouble(config, ctx.output_dir)
            if config.trouble == "edit":
                next(iter(ctx.inputs.values())).path.write_text("edited")
        if ctx.stop.requested and step < config.steps:
            raise Interrupted(f"stopped at step {step} of {config.steps}", hint="the same command goes on")
        time.sleep(config.pause_seconds)
    return StageResult(
        {"model": write_model(ctx.output_dir / "model", value)},
        {"value": value, "accuracy": 0.5},
        computing={"weights": "float64"},
    )


def write_model(folder: Path, value: float) -> Path:
    """Write a folder that passes for a model: one number in a safetensors file."""
    folder.mkdir()
    header = json.dumps({"weight": {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}}).encode()
    weights = len(header).to_bytes(8, "little") + header + struct.pack("<d", value)
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "config.json").write_text(json.dumps({"model_type": "fake"}))
    return folder


def read_model(folder: Path) -> float:
    """Return the number of a model that `write_model` wrote."""
    (value,) = struct.unpack("<d", (folder / "model.safetensors").read_bytes()[-8:])
    return float(value)


def _resume(ctx: StageContext) -> tuple[float, int]:
    checkpoint = ctx.scratch_dir / "checkpoint.json"
    # Like the real stages: a checkpoint that a loss of power left in pieces is passed over.
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(checkpoint.read_text())
        return found["value"], found["step"]
    start = float(ctx.config.seed)
    for given in ctx.inputs.values():
        start += read_model(given.path) if given.path.is_dir() else given.path.stat().st_size
    return start, 0


def _save(path: Path, state: dict[str, float]) -> None:
    path.with_suffix(".draft").write_text(json.dumps(state))
    path.with_suffix(".draft").replace(path)


def _tally(config: FakeConfig, name: str, step: int) -> None:
    if config.tally:
        with Path(config.tally).open("a") as stream:
            stream.write(f"{name} {step}\n")


def _trouble(config: FakeConfig, output_dir: Path) -> None:
    if config.trouble == "user":
        raise DataError("row 7 has no prompt", where="data.jsonl:7", hint="add one", code="missing-prompt")
    if config.trouble == "bug":
        raise ZeroDivisionError("a planted bug")
    if config.trouble == "memory":
        raise MemoryError("planted")
    if config.trouble == "disk":
        raise OSError(28, "No space left on device")
    if config.trouble == "kill":
        os.kill(os.getpid(), 9)
    if config.trouble == "pickle":
        (output_dir / "model").mkdir()
        (output_dir / "model" / "training_args.bin").write_bytes(b"\x80\x04.")
        (output_dir / "model" / "training_args.bin").rename(output_dir / "training_args.bin")
        (output_dir / "model").rmdir()


SPEC = StageSpec(
    kind="tests.fakes.source",
    version=1,
    config_type=FakeConfig,
    inputs={"text": InputSlot((ArtifactKind.TEXT,))},
    outputs={"model": ArtifactKind.FULL_MODEL},
    run=run,
    summary="makes a fake model from text",
    metrics=("value", "accuracy"),
)
