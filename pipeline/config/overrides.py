"""Command-line overrides: `a.b=c` sets one key of the run file, `ppo.beta=1` one of a stage."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.config.run import RunConfig
from pipeline.config.source import KeyPath, Place, Source, parse_value
from pipeline.errors import ConfigError, Finding


def apply(source: Source, overrides: Sequence[str]) -> Source:
    """Return the source with every override set, each placed at `command line: KEY`.

    Raises:
        ConfigError: an override without `=`, without a key, or below a value that has no keys.
    """
    if not overrides:
        return source
    values = copy.deepcopy(source.values)
    places: dict[KeyPath, Place] = {}
    findings: list[Finding] = []
    for override in overrides:
        try:
            path, value, where = _parse(override, values)
            _put(values, path, value, where=where)
        except ConfigError as error:
            findings.extend(error.findings)
            continue
        places.update({below: Place(where, where) for below in _paths(value, path)})
        for length in range(1, len(path)):
            if path[:length] not in source.places:
                places.setdefault(path[:length], Place(where, where))
    if findings:
        raise ConfigError.from_findings(findings)
    return source.with_values(values, places)


def full_path(key: str, stage_names: Sequence[str]) -> KeyPath:
    """Return the path of a dotted key; `ppo.beta` means `stages.ppo.beta` if ppo is a stage."""
    parts = tuple(key.split("."))
    if parts[0] in stage_names and parts[0] not in RunConfig.model_fields:
        return ("stages", *parts)
    return parts


def _parse(override: str, values: dict[str, Any]) -> tuple[KeyPath, Any, str]:
    key, equals, text = override.partition("=")
    key = key.strip()
    where = f"command line: {key}"
    if not equals:
        raise ConfigError(
            f"the override {override!r} has no '='",
            where="command line",
            hint=f"{key}=VALUE",
            code="bad-override",
        )
    if not all(part.strip() for part in key.split(".")):
        raise ConfigError(
            f"the override {override!r} has no key before the '='",
            where="command line",
            hint="stages.ppo.kl_coef=0.1",
            code="bad-override",
        )
    stages = values.get("stages")
    path = full_path(key, list(stages) if isinstance(stages, dict) else [])
    return path, parse_value(text, where=where), where


def _put(values: dict[str, Any], path: KeyPath, value: Any, *, where: str) -> None:
    current: Any = values
    for index, part in enumerate(path[:-1]):
        child = current.get(part)
        if child is None:
            child = current[part] = {}
        if not isinstance(child, dict):
            name = ".".join(map(str, path[: index + 1]))
            raise ConfigError(
                f"{name} is {child!r} and has no key {path[index + 1]!r}", where=where, code="bad-override"
            )
        current = child
    current[path[-1]] = value


def _paths(value: Any, path: KeyPath) -> Iterator[KeyPath]:
    yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _paths(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _paths(item, (*path, index))
