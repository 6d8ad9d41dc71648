"""What the report shows of a run, as plain values. Filled by collect.py, drawn by page.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.cost import CostRecord
from pipeline.report.numbers import is_amount
from pipeline.tracking.lines import Series

State = Literal["ran", "reused", "running", "failed", "interrupted", "blocked", "waiting", "damaged"]


@dataclass(frozen=True, slots=True)
class InputView:
    """One input of a stage."""

    role: str
    kind: str
    source: str
    "File name, Hub id or stage name, as the record keeps it."
    fingerprint: str = ""
    producer: str | None = None


@dataclass(frozen=True, slots=True)
class OutputView:
    """One output of a stage."""

    role: str
    kind: str
    digest: str
    num_files: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class AlarmView:
    """Something that a stage's monitor found wrong."""

    name: str
    step: int
    "Where it was found first."
    count: int = 1
    "Lines of metrics on which it stood."


@dataclass(frozen=True, slots=True)
class StageView:
    """One stage of the run."""

    name: str
    kind: str
    state: State
    reason: str = ""
    "Why it ran, was reused, or did not finish."
    key: str = ""
    seconds: float | None = None
    inputs: Sequence[InputView] = ()
    outputs: Sequence[OutputView] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    attempts: Sequence[str] = ()
    "One plain line for each start of the stage."
    environment: Mapping[str, str] = field(default_factory=dict)
    series: Mapping[str, Series] = field(default_factory=dict)
    cost: CostRecord | None = None
    gate_bounds: Mapping[str, float] = field(default_factory=dict)
    gate_closed: Sequence[str] = ()
    "One sentence for each bound that was missed."
    alarms: Sequence[AlarmView] = ()


@dataclass(frozen=True, slots=True)
class TableView:
    """A table that a stage published."""

    stage: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    notes: Sequence[str] = ()

    @property
    def number_columns(self) -> set[int]:
        """Indices of the columns that hold numbers, to be set flush right."""
        return {index for row in self.rows for index, value in enumerate(row) if index and is_amount(value)}


@dataclass(frozen=True, slots=True)
class Answer:
    """What one model answered to a prompt."""

    name: str
    text: str
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SampleView:
    """One prompt with every model's answer."""

    prompt: str
    answers: Sequence[Answer]


@dataclass(frozen=True, slots=True)
class SamplesView:
    """The samples that a stage published, perhaps cut."""

    stage: str
    samples: Sequence[SampleView]
    total: int


@dataclass(frozen=True, slots=True)
class DataView:
    """What a check of a preference file found."""

    stage: str
    file: str
    facts: Sequence[tuple[str, str]]
    flags: Sequence[str]
    rejects: Sequence[tuple[str, str]]
    "Place and message of rows that were set aside, perhaps cut."
    num_rejects: int = 0


@dataclass(frozen=True, slots=True)
class RunView:
    """Everything the report shows."""

    name: str
    made: str
    "When this page was made, as text in UTC."
    stages: Sequence[StageView]
    command: str
    config_text: str = ""
    "The run file as given."
    resolved_text: str = ""
    "The run with every default written out."
    tables: Sequence[TableView] = ()
    samples: Sequence[SamplesView] = ()
    data: Sequence[DataView] = ()
    finished: str = ""
    seconds: float | None = None
    updated: str = ""
    "When the manifest was last written, RFC 3339."
    price_per_hour: float | None = None
    currency: str = "USD"
    "What the price is in."
    times: Mapping[str, float] = field(default_factory=dict)
    "Seconds of the last command by part; empty for runs of older versions."
    live: bool = False
    "The run goes on; the page loads itself again."
