"""A changed default must raise its stage's version: keys hold only what differs from defaults.

A new setting needs nothing. After a deliberate change: python -m tests.test_defaults
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline import registry
from pipeline.fingerprint import defaults

RELEASED = Path(__file__).parent / "released" / "defaults.json"


def _now() -> dict[str, dict[str, Any]]:
    cards = [registry.find(kind) for kind in sorted(registry.BUILT_IN)]
    return {f"{card.kind} version {card.version}": _flat(defaults(card.config_type)) for card in cards}


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


@pytest.mark.parametrize("name", sorted(_now()))
def test_the_defaults_of_a_stage_are_those_of_its_version(name: str) -> None:
    released, now = json.loads(RELEASED.read_text())[name], _now()[name]

    changed = {key: (old, now[key]) for key, old in released.items() if key in now and now[key] != old}

    assert changed == {}, "raise `version` in the card, then run python -m tests.test_defaults"


def test_a_changed_default_is_seen_and_a_new_setting_is_not_one() -> None:
    released = {"beta": 0.1, "inner.rank": 8}

    assert _flat({"beta": 0.1, "inner": {"rank": 8, "new": 1}}).items() >= released.items()
    assert not _flat({"beta": 0.2, "inner": {"rank": 8}}).items() >= released.items()


if __name__ == "__main__":
    kept = json.loads(RELEASED.read_text()) if RELEASED.exists() else {}
    RELEASED.write_text(json.dumps({**kept, **_now()}, indent=1, sort_keys=True) + "\n")
