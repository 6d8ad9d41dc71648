"""Reads one YAML file into plain values and remembers the line of every key and value.

Nothing here knows which keys are allowed; that is load.py's work.
"""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import ConfigError, Finding

MAX_BYTES = 1 << 20
MAX_DEPTH = 32

KeyPath = tuple[str | int, ...]

_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"(?=.*[.eE])[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a key and its value stand, each as file:line or as a word for the command line."""

    key: str
    value: str


@dataclass(frozen=True, slots=True)
class Source:
    """A parsed file: plain values, a place for every key path, and what was wrong on the way."""

    path: Path
    values: dict[str, Any]
    places: dict[KeyPath, Place]
    findings: tuple[Finding, ...] = ()

    def place(self, key_path: KeyPath) -> Place:
        """Return the place of a key, or of its nearest parent that the file holds."""
        for length in range(len(key_path), 0, -1):
            if key_path[:length] in self.places:
                return self.places[key_path[:length]]
        return Place(str(self.path), str(self.path))

    def with_values(self, values: dict[str, Any], places: dict[KeyPath, Place]) -> Source:
        """Return a copy that holds other values and further places."""
        return replace(self, values=values, places={**self.places, **places})


def read(path: Path) -> Source:
    """Read a YAML file that holds one mapping.

    Scalars follow the YAML 1.2 core schema, so `1e-5` is a number while `no`, `010`, `1:30`
    and dates stay text. A repeated key is a finding, and its first value is kept.

    Raises:
        ConfigError: the file is missing, too large, not UTF-8, not YAML, or uses anchors or tags.
    """
    text = _read_text(path)
    node = _compose(text, str(path))
    if node is None:
        raise ConfigError("the file is empty", where=str(path), hint="triptych init", code="empty-file")
    if not isinstance(node, yaml.MappingNode):
        where = f"{path}:{node.start_mark.line + 1}"
        raise ConfigError("a run file is a mapping of keys to values", where=where, code="not-a-mapping")
    builder = _Builder(str(path))
    values = builder.build(node, ())
    return Source(path, values, builder.places, tuple(builder.findings))


def parse_value(text: str, *, where: str) -> Any:
    """Read the value part of an override: a scalar, or a YAML list, mapping or quoted string.

    Raises:
        ConfigError: a list, mapping or quoted string that does not close, or repeats a key.
    """
    text = text.strip()
    if text[:1] not in ("[", "{", '"', "'"):
        return plain_scalar(text)
    node = _compose(text, where, one_line=True)
    builder = _Builder(where, one_line=True)
    value = builder.build(node, ())
    if builder.findings:
        raise ConfigError.from_findings(builder.findings)
    return value


def plain_scalar(text: str) -> str | int | float | bool | None:
    """Return what an unquoted scalar means: null, true/false, a number, else the text itself."""
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text) and math.isfinite(number := float(text)):
        return number
    return text


def _read_text(path: Path) -> str:
    where = str(path)
    if path.is_dir():
        raise ConfigError(f"{path} is a folder, not a run file", where=where, code="not-a-file")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(
            f"there is no file {path}", where=where, hint=_similar_file(path), code="missing-file"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"cannot read the file: {error.strerror}", where=where, code="unreadable-file"
        ) from None
    if len(content) > MAX_BYTES:
        raise ConfigError("the file is larger than 1 MiB", where=where, code="file-too-large")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ConfigError(
            f"byte {content[error.start]: #04x} is not UTF-8",
            where=f"{path}:{line}",
            hint="save the file as UTF-8",
            code="not-utf8",
        ) from None


def _similar_file(path: Path) -> str:
    folder = path.parent
    names = [entry.name for entry in folder.iterdir() if entry.is_file()] if folder.is_dir() else []
    close = difflib.get_close_matches(path.name, names, n=1)
    return str(folder / close[0]) if close else ""


class _Loader(yaml.SafeLoader):
    """Composes nodes only, and refuses what a run file has no use for."""

    place = ""
    one_line = False
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            sign = "*" if isinstance(event, yaml.AliasEvent) else "&"
            self.refuse(
                event, f"anchors and aliases are not read: {sign}{event.anchor}", "quote it, or write it out"
            )
        if getattr(event, "tag", None) is not None:
            self.refuse(
                event, f"YAML tags are not read: {event.tag}", "quote the value, or leave the tag out"
            )
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self.refuse(event, f"values are nested deeper than {MAX_DEPTH} levels", "")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def refuse(self, event: yaml.Event, message: str, hint: str) -> None:
        where = self.place if self.one_line else f"{self.place}:{_line(event.start_mark)}"
        raise ConfigError(message, where=where, hint=hint, code="yaml-feature")


def _compose(text: str, place: str, *, one_line: bool = False) -> yaml.Node | None:
    try:
        loader = _Loader(text)
        loader.place, loader.one_line = place, one_line
        return loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = place if one_line else f"{place}:{_line(mark)}"
        raise ConfigError(
            _syntax_message(error), where=where, hint=_hint(error), code="yaml-syntax"
        ) from None
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        where = place if one_line else f"{place}:{line}"
        message = f"character U+{ord(str(error.character)[:1]):04X} is not allowed in YAML"
        raise ConfigError(message, where=where, code="yaml-syntax") from None


def _line(mark: Any) -> int:
    return mark.line + 1 if mark else 1


def _syntax_message(error: yaml.MarkedYAMLError) -> str:
    parts = [part for part in (error.context, error.problem) if part]
    return f"this is not YAML: {', '.join(parts)}"


def _hint(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or ""
    if "'\\t'" in problem:
        return "indent with spaces; YAML allows no tabs"
    if "mapping values are not allowed" in problem:
        return "indent the lines of one block equally, and quote text that holds ': '"
    if "expected a single document" in (error.context or ""):
        return "keep one run a file; remove the '---' line"
    return ""


@dataclass(slots=True)
class _Builder:
    """Turns nodes into plain values and notes places and repeated keys."""

    place: str
    one_line: bool = False
    places: dict[KeyPath, Place] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def build(self, node: yaml.Node | None, path: KeyPath) -> Any:
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self.places[(*path, index)] = Place(self.where(item), self.where(item))
            return [self.build(item, (*path, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode):
            return node.value if node.style else plain_scalar(node.value)
        return None

    def mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or not key_node.value:
                message = "a key must be one word, not a list, a mapping or nothing"
                self.findings.append(Finding(message, self.where(key_node), code="bad-key"))
                continue
            key = key_node.value
            here = (*path, key)
            if key in values:
                first = self.places[here].key
                message = f"the key {key!r} stands here and at {first}"
                self.findings.append(
                    Finding(message, self.where(key_node), "keep one of the two", "duplicate-key")
                )
                continue
            self.places[here] = Place(self.where(key_node), self.where(value_node))
            values[key] = self.build(value_node, here)
        return values

    def where(self, node: yaml.Node) -> str:
        return self.place if self.one_line else f"{self.place}:{node.start_mark.line + 1}"
