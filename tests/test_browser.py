"""The look through a browser: a page with faults shows each of them."""

from __future__ import annotations

from pathlib import Path

from tests.browser import look_at

BAD_PAGE = """<!doctype html><title>x</title><body>
<div style="width: 900px">wide</div>
<script>console.error("first"); fetch("http://127.0.0.1:8901/second").catch(() => 0); missing()</script>
"""


def test_a_page_with_faults_shows_each_of_them(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(BAD_PAGE)

    view = look_at(page, width=400, script="console.error('from the script')")

    assert {"first", "from the script"} <= set(view.console)
    assert any("Uncaught" in line for line in view.console)
    assert view.requests == ["http://127.0.0.1:8901/second"]
    assert view.page_width > 900
    assert view.screenshot.startswith(b"\x89PNG")


def test_a_page_without_faults_shows_none(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<!doctype html><title>x</title><body><p>fine</p><script>document.title = 'y'</script>")

    view = look_at(page, width=400)

    assert (view.console, view.requests, view.page_width) == ([], [], 400)
