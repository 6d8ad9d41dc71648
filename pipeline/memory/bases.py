"""Shapes of public base models, and how a person names a base: a shape, a folder, a config.json, a Hub id."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from pipeline import hub
from pipeline.config.suggest import close
from pipeline.errors import ModelError
from pipeline.memory.families import read_shape, shape_of
from pipeline.memory.shape import ModelShape

SHIPPED = Path(__file__).with_name("bases.yaml")


@dataclass(frozen=True, slots=True)
class KnownBase:
    """A public model by its published config.json."""

    name: str
    source: str
    parameters: int
    "As published."
    shape: ModelShape


def known_bases() -> list[KnownBase]:
    """Return the shipped shapes, smallest first."""
    rows = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))["bases"]
    return [
        KnownBase(row["name"], row["source"], int(row["parameters"]), shape_of(row["config"])) for row in rows
    ]


def weights(count: int) -> str:
    """Write a number of weights in three significant figures: 135 million, 8.03 billion."""
    for size, name in ((10**9, "billion"), (10**6, "million"), (10**3, "thousand")):
        # 999.5 million is a billion in three figures.
        if count >= 0.9995 * size:
            decimals = 2 if count < 9.995 * size else 1 if count < 99.95 * size else 0
            return f"{count / size:.{decimals}f} {name}"
    return str(count)


def find_shape(text: str) -> ModelShape:
    """Return the shape of the base that a person names. Nothing is downloaded.

    Raises:
        ModelError: nothing here has that name, or its family is not known.
    """
    path = Path(text).expanduser()
    if path.exists():
        return read_shape(path)
    bases = known_bases()
    short = text.rpartition("/")[2].lower()
    named = next((base for base in bases if base.name.lower() == short), None)
    if named is not None:
        return named.shape
    cached = hub.look_up(text) if hub.looks_like_hub_id(text) else None
    if cached is not None and cached.path is not None:
        return read_shape(cached.path)
    near = close(short, [base.name for base in bases]) or ", ".join(base.name for base in bases)
    raise ModelError(
        f"no folder, cached Hub model or known shape {text!r}",
        hint=f"the path of its config.json, or {near}",
        code="missing-model",
    )
