"""The data report in a real browser: quiet, self-contained, and no wider than the window."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.main import main
from tests.browser import look_at
from tests.preferences.test_annotators import comparisons

HOSTILE = "<script>console.error('ran'); fetch('http://127.0.0.1:8901/x')</script><img src=//x.invalid/y.png>"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with every part: findings, plots, many people, hostile and unbreakable text, two files."""
    from reward.preferences.writers import record_to_json

    folder = tmp_path_factory.mktemp("page")
    people: dict[str, dict[str, Any]] = {f"rater-{number}": {} for number in range(40)}
    people["odd"] = {"care": 0.2, "first": 0.6}
    rows = [record_to_json(record) for record in comparisons(700, people, per_item=5)]
    for row in rows[:5]:
        row["responses"][0]["text"] = HOSTILE + "w" * 400
        row["prompt"] = HOSTILE
    rows[9]["responses"][1]["text"] = ""
    for name in ("first", HOSTILE.replace("/", "_")[:60]):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text)
    main(["data", "check", *map(str, sorted(folder.glob("*.jsonl"))), "--out", str(folder / "out")])
    return folder / "out" / "report.html"


@pytest.mark.parametrize("width", [1280, 400])
def test_the_report_is_quiet_asks_for_nothing_and_fits_the_window(page: Path, width: int) -> None:
    opened = "document.querySelectorAll('details').forEach(part => part.open = true)"

    view = look_at(page, width=width, script=opened)

    assert view.console == []
    assert view.requests == []
    assert view.page_width <= width
    assert view.page_height > 2000
    assert view.screenshot.startswith(b"\x89PNG")


def test_the_report_shows_hostile_text_as_text(page: Path) -> None:
    text = page.read_text("utf-8")

    assert "<script" not in text
    assert "<img" not in text
    assert text.count("&lt;script&gt;") >= 2
