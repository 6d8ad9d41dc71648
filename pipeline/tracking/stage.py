"""What a tracker is told of a stage, and what a tracker is."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from pipeline.config.run import TrackingConfig
from pipeline.tracking.lines import MetricLine

Status = Literal["complete", "failed", "interrupted"]


@dataclass(frozen=True, slots=True)
class TrackedStage:
    """One stage of a run as dashboards see it."""

    run: str
    name: str
    kind: str
    key: str
    config: Mapping[str, Any]
    "The stage's settings, resolved, as JSON-able values."
    parents: Mapping[str, str] = field(default_factory=dict)
    "Role -> key of the stage that made the input, or the content digest of a file."

    @property
    def run_id(self) -> str:
        """The same for the same stage key, so that a stage that goes on keeps its dashboard run."""
        return hashlib.sha256(f"triptych/{self.key}".encode()).hexdigest()[:16]

    def described(self) -> dict[str, Any]:
        """Return settings beside the manifest's own words: key, kind, parents."""
        manifest = {"key": self.key, "kind": self.kind, "stage": self.name, "run": self.run}
        return {**self.config, "manifest": {**manifest, "parents": dict(self.parents)}}

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a JSON object, for TrackedStage(**fields)."""
        return asdict(self)


class Tracker(Protocol):
    """A dashboard that reads metrics. May raise anything; its caller drops it then."""

    name: str

    def start(self, stage: TrackedStage) -> None:
        """Open, or go on with, the dashboard's run of a stage."""

    def log(self, lines: Sequence[MetricLine]) -> None:
        """Send lines; steps do not fall within a stage but for a stage that went back."""

    def finish(self, status: Status, record: Mapping[str, Any]) -> None:
        """Close the stage's run with the final metrics and outputs of its record."""


def make(name: str, *, tracking: TrackingConfig, folder: Path) -> Tracker:
    """Return the tracker of that name: wandb, tensorboard, mlflow or trackio. Imports its package.

    Args:
        name: which one.
        tracking: the run file's block.
        folder: the run's folder in the store; offline files go below it.
    """
    if name == "wandb":
        from pipeline.tracking.wandb import WandbTracker

        return WandbTracker(tracking, folder)
    if name == "tensorboard":
        from pipeline.tracking.tensorboard import TensorBoardTracker

        return TensorBoardTracker(folder / "tensorboard")
    if name == "mlflow":
        from pipeline.tracking.mlflow import MlflowTracker

        return MlflowTracker(tracking, folder)
    if name == "trackio":
        from pipeline.tracking.trackio import TrackioTracker

        return TrackioTracker(tracking, folder / "trackio")
    raise ValueError(f"there is no tracker {name!r}")


def enabled(tracking: TrackingConfig) -> list[str]:
    """Return the names of the trackers that a run file switches on."""
    names = [] if tracking.wandb == "off" else ["wandb"]
    names += ["tensorboard"] if tracking.tensorboard else []
    names += ["trackio"] if tracking.trackio else []
    return names + (["mlflow"] if tracking.mlflow else [])
