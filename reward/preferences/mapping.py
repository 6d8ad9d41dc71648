"""The mapping file: what a person says about a file. It always wins over detection."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pipeline.config.strict import StrictModel
from pipeline.errors import DataError, Finding
from reward.preferences.lines import TableForm


class Mapping(StrictModel):
    """How to read one file. Every key is optional."""

    format: str | None = None
    "Name of a format; naming it also declares the direction of its scale."
    delimiter: str | None = None
    "Character between the cells of a CSV file; None finds it out."
    header: bool = True
    "False when the first row of a table is data; its columns are then column_1, column_2 ..."
    sheet: str | None = None
    "Name of the sheet of a workbook; None takes the first."
    encoding: str | None = None
    "Encoding of a text file; None finds it out."
    no_prompt: bool = False
    "Read chosen and rejected as whole texts with an empty prompt."

    @property
    def table(self) -> TableForm:
        """The part that concerns tables."""
        return TableForm(self.delimiter, self.header, self.sheet, self.encoding)


def load_mapping(path: Path | None) -> Mapping:
    """Read a mapping file; None gives the empty mapping.

    Raises:
        DataError: missing, not YAML, unknown keys or wrong values; all at once.
    """
    if path is None:
        return Mapping()
    if not path.is_file():
        raise DataError(f"there is no mapping file {str(path)!r}", where=str(path), code="missing-file")
    try:
        values: Any = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"the mapping file is not YAML: {error}", where=str(path)) from error
    try:
        return Mapping.model_validate(values or {})
    except ValidationError as error:
        raise DataError.from_findings(
            [
                Finding(
                    item["msg"], f"{path}: {'.'.join(str(part) for part in item['loc'])}", code="bad-mapping"
                )
                for item in error.errors()
            ]
        ) from error
