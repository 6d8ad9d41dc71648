"""Seals on the checkpoints of transformers and TRL trainers: only a sealed one is ever resumed.

The trainer writes its checkpoint file by file, without fsync, and resumes in silence when the
optimizer, the scheduler or the random state is missing. A seal lists every file with its digest and is
written last; a checkpoint without a seal that verifies does not count.
"""

from __future__ import annotations

import logging
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import (
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from pipeline.contract import MetricLogger, StageContext, StopFlag
from pipeline.disk import Disk
from pipeline.errors import Finding, Interrupted
from stages.runtime.ranks import ONE, Ranks, open_ranks
from stages.runtime.saving.checkpoints import checkpoint_key
from stages.runtime.saving.durable import sync_tree
from stages.runtime.saving.listing import listing_findings, make_listing

LOGGER = logging.getLogger(__name__)

REQUIRED_FILES = ("optimizer.pt", "scheduler.pt", "trainer_state.json")
RANDOM_STATES = "rng_state*.pth"
"One file, or one a rank."
PICKLED_ARGUMENTS = "training_args.bin"
_WEIGHTS = ("adapter_model.safetensors", "model.safetensors", "model.safetensors.index.json")
_FOLDER = re.compile(r"checkpoint-(\d+)")
_MISLEADING = (
    "train_loss",
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
    "total_flos",
)
"Totals of the last call of train() only: wrong after a resume."


@dataclass(frozen=True, slots=True)
class SealedSearch:
    """The checkpoint to go on from, and what is wrong with newer ones."""

    path: Path | None
    "Give str(path) to train(resume_from_checkpoint=...); None starts from the beginning."
    step: int
    "Its optimizer step; 0 for a fresh start."
    damages: tuple[Finding, ...]
    "Checkpoints that were passed over; each is also in the log."


def newest_sealed(folder: Path, key: str) -> SealedSearch:
    """Find the newest checkpoint whose seal verifies and that holds all it takes to go on exactly.

    Args:
        folder: the trainer's output_dir.
        key: what the checkpoints must belong to: checkpoint_key(ctx).
    """
    damages: list[Finding] = []
    for step in reversed(_steps(folder)):
        path = folder / f"checkpoint-{step}"
        found = listing_findings(_seal_of(path), path, key=key, step=step, required=REQUIRED_FILES)
        if not found and not any(any(path.rglob(name)) for name in _WEIGHTS):
            found = [Finding("a checkpoint holds no weights", str(path), code="damaged-checkpoint")]
        if not found and not any(path.glob(RANDOM_STATES)):
            message = "a checkpoint lacks rng_state.pth"
            found = [Finding(message, str(path), code="damaged-checkpoint")]
        damages += found
        for finding in found:
            LOGGER.warning("%s", finding)
        if not found:
            return SealedSearch(path, step, tuple(damages))
    return SealedSearch(None, 0, tuple(damages))


class SealCallback(TrainerCallback):
    """Seals each checkpoint after it was written, keeps the newest ones, and stops when asked to.

    Args:
        key: what the checkpoints belong to: checkpoint_key(ctx).
        stop: set when a person or the scheduler asks the stage to stop.
        keep: sealed checkpoints to keep.
        ranks: the processes that train; all stop when one is asked to.
    """

    def __init__(self, key: str, stop: StopFlag, *, keep: int = 2, ranks: Ranks = ONE) -> None:
        self._key, self._stop, self._keep, self._ranks = key, stop, keep, ranks
        self.ended = False
        "Whether the training ended by itself before its last step."

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse settings under which the trainer deletes checkpoints that are not yet replaced."""
        if args.save_total_limit is not None or args.load_best_model_at_end:
            raise ValueError("leave save_total_limit and load_best_model_at_end unset: seals rotate by step")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Save and stop after this optimizer step when the stage was asked to stop.

        A training that has just ended by itself is not saved: going on from there would train past its end.
        """
        if control.should_training_stop and state.global_step < state.max_steps:
            control.should_save, self.ended = False, True
        elif state.global_step < state.max_steps and self._ranks.any(self._stop.requested):
            control.should_save = True
            control.should_training_stop = True
        return control

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Make the checkpoint that was just written durable, seal it, then drop the oldest."""
        if not state.is_world_process_zero:
            return
        folder = Path(str(args.output_dir))
        path = folder / f"checkpoint-{state.global_step}"
        # A pickle that holds absolute paths and, in clear, a Hub token.
        (path / PICKLED_ARGUMENTS).unlink(missing_ok=True)
        disk = Disk()
        sync_tree(disk, path)
        disk.sync_folder(folder)
        disk.write(_seal_of(path), make_listing(path, key=self._key, step=state.global_step))
        self._rotate(folder)

    def _rotate(self, folder: Path) -> None:
        sealed = [step for step in _steps(folder) if _seal_of(folder / f"checkpoint-{step}").is_file()]
        for step in sealed[: -self._keep]:
            path = folder / f"checkpoint-{step}"
            _seal_of(path).unlink()
            shutil.rmtree(path)


class LogCallback(TrainerCallback):
    """Hands the trainer's metrics to the stage's logger under their own names, and shows progress."""

    def __init__(self, logger: MetricLogger, text: str = "") -> None:
        self._logger, self._text = logger, text
        self._began = self._seconds = 0.0
        self._tokens_before: float | None = None
        "Tokens at the line before; None after a resume, until a first line says how many there were."

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note whether tokens are counted from zero."""
        self._tokens_before = 0.0 if state.global_step == 0 else None

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock of an optimizer step."""
        self._began = time.perf_counter()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop it: evaluations and checkpoints are not training time."""
        self._seconds += time.perf_counter() - self._began

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Log every number of a line."""
        numbers = {
            name: float(value)
            for name, value in (logs or {}).items()
            if isinstance(value, int | float) and name != "epoch" and name not in _MISLEADING
        }
        if "num_tokens" in numbers:
            numbers |= self._speed(numbers["num_tokens"])
        if numbers:
            self._logger.log(numbers, step=state.global_step, epoch=state.epoch)

    def _speed(self, num_tokens: float) -> dict[str, float]:
        """Return the tokens a second of training since the line before."""
        before, seconds = self._tokens_before, self._seconds
        if num_tokens == before or seconds <= 0:
            return {}
        self._tokens_before, self._seconds = num_tokens, 0.0
        return {} if before is None else {"tokens_per_second": (num_tokens - before) / seconds}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Say how far training is."""
        self._logger.progress(state.global_step, state.max_steps, self._text)


def train_sealed(trainer: Any, ctx: StageContext, *, text: str = "") -> SealedSearch:
    """Run a transformers or TRL trainer from its newest sealed checkpoint to its last step.

    Args:
        trainer: its output_dir should be inside ctx.scratch_dir.
        ctx: key, stop flag and logger of the stage.
        text: what progress lines call this training.

    Returns:
        Where it went on from.

    Raises:
        Interrupted: the stage was asked to stop; the last checkpoint is sealed.
    """
    key, ranks = checkpoint_key(ctx), open_ranks(ctx)
    found = ranks.from_main(lambda: newest_sealed(Path(trainer.args.output_dir), key))
    # The stage's logger is the one place for metrics.
    trainer.remove_callback(PrinterCallback)
    seal = SealCallback(key, ctx.stop, ranks=ranks)
    trainer.add_callback(seal)
    trainer.add_callback(LogCallback(ctx.logger, text))
    # Never True: that would take the newest folder by its name, whole or not.
    trainer.train(resume_from_checkpoint=str(found.path) if found.path else None)
    state = trainer.state
    if state.global_step < state.max_steps and not seal.ended:
        raise Interrupted(
            f"{text or ctx.name} was stopped after step {state.global_step} of {state.max_steps}, and saved",
            where=ctx.name,
            hint="run the same command again to go on",
            code="interrupted",
        )
    return found


def _steps(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    matches = (_FOLDER.fullmatch(path.name) for path in folder.iterdir() if path.is_dir())
    return sorted(int(match[1]) for match in matches if match)


def _seal_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.seal")
