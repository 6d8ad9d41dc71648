"""TensorBoard as a reader of metrics: one folder of event files a stage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.tracking.lines import MetricLine
from pipeline.tracking.stage import Status, TrackedStage


class TensorBoardTracker:
    """Writes event files below a folder; a stage that starts again is written anew."""

    name = "tensorboard"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.place = folder
        self.writer: Any = None

    def start(self, stage: TrackedStage) -> None:
        """Open the stage's event file, in place of one from an earlier attempt."""
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.place = self.folder / stage.name
        if self.place.exists():
            shutil.rmtree(self.place)
        self.writer = EventFileWriter(str(self.place))
        self._text("config", json.dumps(stage.described(), indent=2, sort_keys=True))

    def log(self, lines: Sequence[MetricLine]) -> None:
        """Write each metric as a scalar at its step and time."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        for line in lines:
            values = [Summary.Value(tag=name, simple_value=value) for name, value in line.metrics.items()]
            self.writer.add_event(Event(step=line.step, wall_time=line.time, summary=Summary(value=values)))

    def finish(self, status: Status, record: Mapping[str, Any]) -> None:
        """Close the event file and take the host's name out of its name."""
        if self.writer is None:
            return
        self.writer.close()
        self.writer = None
        for file in self.place.glob("events.out.tfevents.*"):
            file.rename(file.with_name(".".join(file.name.split(".")[:4])))

    def _text(self, tag: str, text: str) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
        from tensorboard.util.tensor_util import make_tensor_proto

        metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
        block = "\n".join(f"    {line}" for line in text.splitlines())
        value = Summary.Value(tag=tag, metadata=metadata, tensor=make_tensor_proto([block]))
        self.writer.add_event(Event(step=0, summary=Summary(value=[value])))
