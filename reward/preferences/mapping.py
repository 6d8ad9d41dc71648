"""The mapping file: what a person says about a file. It always wins over detection."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import yaml
from pydantic import Field, ValidationError, model_validator

from pipeline.config.strict import StrictModel
from pipeline.errors import DataError, Finding
from reward.preferences.lines import TableForm

Model = TypeVar("Model", bound=StrictModel)
NO_ORDER = ("tie", "both_bad", "skip", "cancelled")


class Choice(StrictModel):
    """A column that names the better response in words."""

    column: str
    "Column that holds the choice."
    values: dict[str, str] = Field(min_length=1)
    "What is written -> response id, or tie, both_bad, skip, cancelled."


class Scale(StrictModel):
    """A column that holds a number between two responses."""

    column: str
    "Column that holds the number."
    low: float
    "Smallest value that may occur."
    high: float
    "Largest value that may occur."
    high_prefers: str
    "Response id that the largest value prefers: the direction is declared here."
    tie_within: float = Field(0.0, ge=0)
    "Distance from the middle up to which a value is a tie."

    @property
    def middle(self) -> float:
        """The value that prefers neither response."""
        return (self.low + self.high) / 2


class Scores(StrictModel):
    """One number a response."""

    columns: dict[str, str] = Field(min_length=2)
    "Response id -> column."
    higher_is_better: bool
    "Direction of the numbers; there is no default."
    low: float | None = None
    "Smallest value that may occur; with high, the ratings are kept too."
    high: float | None = None
    "Largest value that may occur."


class Ranks(StrictModel):
    """One rank a response."""

    columns: dict[str, str] = Field(min_length=2)
    "Response id -> column."
    best: Literal["lowest", "highest"]
    "Which rank is the best one; there is no default."


class Mapping(StrictModel):
    """How to read one file. Every key is optional."""

    format: str | None = None
    "Name of a format; naming it also declares the direction of its scale."
    delimiter: str | None = Field(None, min_length=1, max_length=1)
    "Character between the cells of a CSV file; None finds it out."
    header: bool = True
    "False when the first row of a table is data; its columns are then column_1, column_2 ..."
    sheet: str | None = None
    "Name of the sheet of a workbook; None takes the first."
    encoding: str | None = None
    "Encoding of a text file; None finds it out."
    no_prompt: bool = False
    "Read chosen and rejected as whole texts with an empty prompt."
    axis: Literal["better", "safer"] | None = None
    "Which of the two labels of PKU-SafeRLHF to use."
    buckets: tuple[str, ...] | None = None
    "Bucket names of a Label Studio ranker, the best first."
    prompt: str | None = None
    "Column of the prompt."
    chosen: str | None = None
    "Column of the better response."
    rejected: str | None = None
    "Column of the worse response."
    margin: str | None = None
    "Column of the reward margin."
    completion: str | None = None
    "Column of a single response, judged by label."
    label: str | None = None
    "Column that is true for a good completion."
    responses: dict[str, str] | None = Field(None, min_length=2)
    "Response id -> column."
    choice: Choice | None = None
    scale: Scale | None = None
    scores: Scores | None = None
    ranks: Ranks | None = None
    id: str | None = None
    "Column of the comparison's name."
    annotator: str | None = None
    "Column of the person who judged."
    status: str | None = None
    "Column whose value Rejected, Returned or Abandoned drops the judgement."
    shown_first: str | None = None
    "Column of the response id that stood first on the screen."
    gold: str | None = None
    "Column of the response id that a probe item must prefer; empty for ordinary items."
    started_at: str | None = None
    "Column of the time when judging began."
    submitted_at: str | None = None
    "Column of the time when the judgement was sent."
    seconds: str | None = None
    "Column of the seconds spent."
    strength: str | None = None
    "Column of how much better, never negative."
    confidence: str | None = None
    "Column of how sure the person was."
    reason: str | None = None
    "Column of the written reason."
    guideline: str | None = None
    "Column of the version of the guideline."
    batch: str | None = None
    "Column of the batch."

    @property
    def table(self) -> TableForm:
        """The part that concerns tables."""
        return TableForm(self.delimiter, self.header, self.sheet, self.encoding)

    @property
    def names_columns(self) -> bool:
        """True when it says which columns hold the responses."""
        return bool(self.chosen or self.completion or self.responses)

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        """Refuse mappings that leave the direction or a side open."""
        if bool(self.chosen) != bool(self.rejected):
            raise ValueError("chosen and rejected belong together")
        if bool(self.completion) != bool(self.label):
            raise ValueError("completion and label belong together")
        said = [name for name in ("choice", "scale", "scores", "ranks") if getattr(self, name) is not None]
        if len(said) > 1:
            raise ValueError(f"give one of choice, scale, scores and ranks, not {' and '.join(said)}")
        if said and self.responses is None and self.format in (None, "table"):
            raise ValueError(f"{said[0]} needs responses")
        self._check_ids()
        return self

    def _check_ids(self) -> None:
        ids = set(self.responses or ())
        used: set[str] = set()
        if self.choice:
            used |= set(self.choice.values.values()) - set(NO_ORDER)
        if self.scale:
            used.add(self.scale.high_prefers)
            if self.responses is not None and len(ids) != 2:
                raise ValueError("a scale stands between two responses")
            if self.scale.low >= self.scale.high:
                raise ValueError("scale: low must be below high")
        for columns in (self.scores, self.ranks):
            used |= set(columns.columns) if columns else set()
        unknown = sorted(used - ids)
        if ids and unknown:
            raise ValueError(f"there is no response {unknown[0]!r}; responses are {', '.join(sorted(ids))}")

    def options(self) -> dict[str, Any]:
        """Return the values that readers use, as plain data."""
        values = self.model_dump()
        if self.scale:
            values["scale"]["middle"] = self.scale.middle
        return values


def load_mapping(path: Path | None) -> Mapping:
    """Read a mapping file; None gives the empty mapping.

    Raises:
        DataError: missing, not YAML, unknown keys or wrong values; all at once.
    """
    return Mapping() if path is None else read_yaml_model(path, Mapping)


def read_yaml_model(path: Path, model: type[Model]) -> Model:
    """Read a YAML file with the keys of a config class.

    Raises:
        DataError: missing, not YAML, unknown keys or wrong values; all at once.
    """
    if not path.is_file():
        raise DataError(f"there is no file {str(path)!r}", where=str(path), code="missing-file")
    try:
        values: Any = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"the file is not YAML: {error}", where=str(path)) from error
    if values is not None and not isinstance(values, dict):
        raise DataError("the file must hold keys and values", where=str(path), code="bad-mapping")
    try:
        return model.model_validate(values or {})
    except ValidationError as error:
        raise DataError.from_findings([_finding(path, item, model) for item in error.errors()]) from error


def _finding(path: Path, item: Any, model: type[StrictModel]) -> Finding:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        known = list(model.model_fields) if len(item["loc"]) == 1 else []
        close = difflib.get_close_matches(key, known, n=1)
        hint = f"{close[0]}: ..." if close else (f"one of {', '.join(known)}" if known else "")
        return Finding(f"there is no key {key!r}", str(path), hint, code="bad-mapping")
    message = f"{key}: {item['msg']}" if key else str(item["msg"])
    return Finding(message, str(path), code="bad-mapping")
