"""The base of every config class: frozen, no unknown keys, no NaN."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class StrictModel(BaseModel):
    """A frozen config object that refuses unknown keys and non-finite numbers.

    The string literal under a field is its help text. A field that cannot change
    the result (logging, paths, device placement) is declared with
    `json_schema_extra=NOT_IN_KEY` and stays out of the stage key.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        validate_default=True,
        protected_namespaces=(),
    )


NOT_IN_KEY: dict[str, Any] = {"in_key": False}

BY_CONTENT: dict[str, Any] = {"by_content": True}
"Mark of a field that may name a file: the stage key then holds the file's digest, not its path."
