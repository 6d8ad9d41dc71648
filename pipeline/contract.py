"""What the engine and a stage agree on. A stage knows nothing of the engine but this page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from pipeline.config.accelerate import ONE_PROCESS, AccelerateConfig
from pipeline.config.strict import StrictModel
from pipeline.errors import Finding
from pipeline.memory.work import Workload
from pipeline.place import ONLY, Place


class ArtifactKind(StrEnum):
    """What a checkpoint or an input file holds."""

    FULL_MODEL = "full_model"
    "A folder that AutoModelForCausalLM.from_pretrained opens, tokenizer included."
    ADAPTER = "adapter"
    "A PEFT folder for a causal model, with tokenizer files and text.json."
    REWARD_MODEL = "reward_model"
    "A PEFT folder whose adapter_model.safetensors also holds the score head."
    FULL_REWARD_MODEL = "full_reward_model"
    "A whole model with its score head in score.safetensors, from a reward stage that trains every weight."
    VALUE_MODEL = "value_model"
    "The same shape as a reward model; the PPO value function."
    DEMONSTRATIONS = "demonstrations"
    "JSON Lines with prompt and completion, or messages."
    PREFERENCES = "preferences"
    "A preference file in any format that reward.preferences reads."
    PROMPTS = "prompts"
    "JSON Lines with a prompt, a string or a list of messages."
    TEXT = "text"
    "Raw text, a document a line or a plain file."
    FUNCTION = "function"
    "A Python file that defines a scoring function; the user named it, so it is run."
    TABLE = "table"
    "table.json: {title, columns, rows, notes}; printed at the end of a run and in the report."
    SAMPLES = "samples"
    "samples.jsonl: {prompt, by: {name: {text, scores}}}; shown side by side in the report."
    DATA_REPORT = "data_report"
    "report.json of a preference check; shown in the report."


@dataclass(frozen=True, slots=True)
class InputSlot:
    """One named input of a stage."""

    kinds: tuple[ArtifactKind, ...]
    required: bool = True
    help: str = ""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An input as a stage receives it: read-only, named by its content."""

    kind: ArtifactKind
    path: Path
    fingerprint: str
    "sha256 of the content, hex; for a Hub model, of its id and 40-hex revision."
    producer: str | None = None
    "Name of the stage that made it; None for a path or Hub id given by the user."
    source: str = ""
    "How the run file names it: a stage name, a path, a Hub id."


class MetricLogger(Protocol):
    """Where a stage reports numbers; the one writer of metrics.jsonl."""

    def log(self, metrics: Mapping[str, float], *, step: int, epoch: float | None = None) -> None:
        """Append one line. NaN and infinities are kept, as strings."""

    def progress(self, step: int, total: int, text: str = "") -> None:
        """Say how far the stage is; shown as a bar or a plain line, never stored."""


class StopFlag(Protocol):
    """Set by SIGTERM or Ctrl-C; a loop reads it at each optimizer step."""

    @property
    def requested(self) -> bool:
        """True once a person or the scheduler asked the stage to stop."""


@dataclass(frozen=True, slots=True)
class StageContext:
    """All that a stage may know."""

    name: str
    config: Any
    "An instance of the card's own config_type."
    inputs: Mapping[str, Checkpoint]
    output_dir: Path
    "Empty at the start. Write each declared output to output_dir / role."
    scratch_dir: Path
    "Survives an interruption: checkpoints and caches. Never published."
    logger: MetricLogger
    stop: StopFlag
    cache_dir: Path | None = None
    "Shared by all stages of the store: results by content key, checked before use. None: there is none."
    place: Place = ONLY
    "Which of the stage's processes this is. Only the main one's outputs, metrics and scratch are kept."


@dataclass(frozen=True, slots=True)
class RowCounts:
    """What a stage made of the rows of one input file; accepted + rejected = read."""

    read: int
    accepted: int
    rejected: int
    reasons: Mapping[str, int] = field(default_factory=dict)
    "Check -> rejected rows that it found; a row may fail several."
    first_lines: Sequence[int] = ()
    "Lines of the first rejected rows; the data report names all."


@dataclass(frozen=True, slots=True)
class StageResult:
    """What a stage gave: the folder or file of each declared output, and final metrics."""

    outputs: Mapping[str, Path]
    metrics: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()
    "Plain sentences for the record and the report, such as a fall-back that was taken."
    rows: Mapping[str, RowCounts] = field(default_factory=dict)
    "Rows of input files that were read row by row, by role; they stand in the record beside the file."
    computing: Mapping[str, str] = field(default_factory=dict)
    "How weights were held and products computed, as it was chosen for the device."


@dataclass(frozen=True, slots=True)
class StageCheck:
    """What a card's check() may look at before anything runs: no weights, no torch."""

    name: str
    config: Any
    inputs: Mapping[str, Checkpoint]
    "Only the inputs that exist now; an input that a stage will make is absent."
    roles: tuple[str, ...] = ()
    "Every role that the run file or inheritance fills, also with what a stage will make."
    kinds: Mapping[str, ArtifactKind] = field(default_factory=dict)
    "What each of these roles holds or will hold."
    accelerate: AccelerateConfig = ONE_PROCESS
    "The processes that the stage will be."


@dataclass(frozen=True, slots=True)
class StageSpec:
    """A stage's card: its name, settings, inputs, outputs and how to run it."""

    kind: str
    version: int
    "Raise it when the same inputs and settings give other bytes, or a default changes."
    config_type: type[StrictModel]
    inputs: Mapping[str, InputSlot]
    outputs: Mapping[str, ArtifactKind]
    run: Callable[[StageContext], StageResult]
    summary: str
    "One line for --help."
    extra_inputs: tuple[ArtifactKind, ...] = ()
    "Kinds accepted under role names of the user's choice, as evaluate does."
    check: Callable[[StageCheck], Sequence[Finding]] | None = None
    metrics: tuple[str, ...] = ()
    "Names of final metrics that a gate may use."
    outlook: Callable[[StageCheck], Sequence[str]] | None = None
    "What plan says of a stage that will run, such as a fall-back it will take; no weights, no torch."
    memory: Callable[[StageCheck], Workload] | None = None
    "What the stage holds on a card, for the memory plan; None when it computes on none."
    absent_outputs: Callable[[Any], Sequence[str]] | None = None
    "Roles of `outputs` that a stage with these settings does not give; None says that it gives all."
    backends: tuple[str, ...] = ()
    "How several processes may train it: ddp, fsdp2; empty is one process only."

    def outputs_with(self, config: Any) -> dict[str, ArtifactKind]:
        """Return what a stage with these settings gives."""
        absent = self.absent_outputs(config) if self.absent_outputs else ()
        return {role: kind for role, kind in self.outputs.items() if role not in absent}
