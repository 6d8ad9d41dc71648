"""Weights & Biases as a reader of metrics: a group a run, a W&B run a stage."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pipeline.config.run import TrackingConfig
from pipeline.tracking.lines import MetricLine
from pipeline.tracking.stage import Status, TrackedStage

Mode = Literal["online", "offline", "disabled"]
INIT_TIMEOUT_SECONDS = 30.0


def mode(tracking: TrackingConfig, environment: Mapping[str, str]) -> Mode:
    """Return how W&B is reached; `auto` is online only when a key is set and nothing forbids it."""
    if tracking.wandb == "off":
        return "disabled"
    if tracking.wandb != "auto":
        return tracking.wandb
    if environment.get("WANDB_MODE") == "disabled":
        return "disabled"
    wants_offline = environment.get("WANDB_MODE") in ("offline", "dryrun")
    return "online" if environment.get("WANDB_API_KEY") and not wants_offline else "offline"


class WandbTracker:
    """Sends the metrics of one stage after another to W&B, or into offline files."""

    name = "wandb"

    def __init__(self, tracking: TrackingConfig, folder: Path) -> None:
        # These are read when wandb is imported; they keep its caches out of the home folder.
        for variable in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR"):
            os.environ.setdefault(variable, str(folder / "wandb" / "cache"))
        import wandb

        self.wandb = wandb
        self.tracking = tracking
        self.folder = folder
        self.mode = mode(tracking, os.environ)
        self.run: Any = None
        self.stage: TrackedStage | None = None
        self.first_new_step = 0

    def start(self, stage: TrackedStage) -> None:
        """Open the W&B run of a stage; the id follows from the stage key."""
        self.stage = stage
        self.folder.mkdir(parents=True, exist_ok=True)
        self.run = self.wandb.init(
            project=self.tracking.project,
            entity=self.tracking.entity,
            group=stage.run,
            job_type=stage.kind,
            name=stage.name,
            id=stage.run_id,
            # W&B has no resume for offline files: each is complete, the last one counts.
            resume="allow" if self.mode == "online" else None,
            config=stage.described(),
            settings=self._settings(),
        )
        self.first_new_step = self.run.step if getattr(self.run, "resumed", False) else 0
        if self.mode == "online":
            for role, key in stage.parents.items():
                self.run.use_artifact(self._artifact("stage", role, key, {"key": key}))

    def log(self, lines: Sequence[MetricLine]) -> None:
        """Log lines under their own step and time; steps that W&B already holds are left out."""
        for line in lines:
            if line.step < self.first_new_step:
                continue
            self.first_new_step = line.step
            row: dict[str, float] = {**line.metrics, "_timestamp": line.time}
            if line.epoch is not None:
                row["epoch"] = line.epoch
            self.run.log(row, step=line.step)

    def finish(self, status: Status, record: Mapping[str, Any]) -> None:
        """Write the summary, name the outputs as an artifact, and close the W&B run."""
        if self.run is None or self.stage is None:
            return
        self.run.summary.update({"status": status, **dict(record.get("metrics", {}))})
        if status == "complete":
            details = {"key": self.stage.key, "parents": dict(self.stage.parents)}
            self.run.log_artifact(self._artifact("stage", self.stage.kind, self.stage.key, details))
        folder = Path(self.run.dir).parent
        self.run.finish(exit_code=0 if status == "complete" else 1)
        self.run = None
        if self.mode == "offline":
            self._drop_older(folder)

    def _settings(self) -> Any:
        """Return settings that send metrics and configuration, and nothing of the machine."""
        return self.wandb.Settings(
            mode=self.mode,
            root_dir=str(self.folder),
            silent=True,
            console="off",
            init_timeout=INIT_TIMEOUT_SECONDS,
            save_code=False,
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            host="triptych",
            program="triptych",
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
        )

    def _artifact(self, kind: str, name: str, key: str, metadata: dict[str, Any]) -> Any:
        """Return an artifact that names a stage by its key and holds no file."""
        clean = re.sub(r"[^A-Za-z0-9_.-]", "-", name)
        artifact = self.wandb.Artifact(f"{clean}-{key[:16]}", kind, metadata=metadata)
        artifact.add_reference(f"triptych://{key}", name="stage", checksum=False)
        return artifact

    def _drop_older(self, newest: Path) -> None:
        """Remove offline folders of the same W&B run: each held a first part of the newest."""
        assert self.stage is not None
        for folder in newest.parent.glob(f"offline-run-*-{self.stage.run_id}"):
            if folder.resolve() != newest.resolve():
                shutil.rmtree(folder)
