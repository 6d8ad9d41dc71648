"""Whatever stands in prompts, names and numbers of a run is shown as text, and nothing else happens."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace

import pytest

from pipeline.report.compare_page import render_comparison
from pipeline.report.curves import charts_of
from pipeline.report.page import render
from pipeline.report.view import (
    AlarmView,
    Answer,
    DataView,
    OutputView,
    SamplesView,
    SampleView,
    TableView,
)
from pipeline.report.write import write_report
from tests.browser import look_at
from tests.fakes.engine import CHAIN, Engine
from tests.report.parsed import Page
from tests.report.sample_run import curve, demo, stage

HOSTILE = (
    "</script><script>console.error('ran')</script><img src=//x.invalid/y onerror=console.error('ran')>"
    "<!--\"'&{{7*7}}</textarea></style></title> <img/src=//x.invalid/z/onerror=console.error('ran')>"
)


def hostile_run():
    run = demo()
    bad = stage(
        HOSTILE,
        "sft",
        {},
        {HOSTILE: curve(1, 0)},
        files={HOSTILE: HOSTILE},
        reason=HOSTILE,
        metrics={HOSTILE: 1.0},
        notes=(HOSTILE,),
        settings={HOSTILE: HOSTILE},
        alarms=[AlarmView(HOSTILE, 3)],
        gate_closed=(HOSTILE,),
        gate_bounds={HOSTILE: 0.5},
    )
    bad = replace(
        bad,
        kind=HOSTILE,
        state="failed",
        attempts=(HOSTILE,),
        environment={HOSTILE: HOSTILE},
        outputs=[OutputView(HOSTILE, HOSTILE, HOSTILE, 1, 1)],
    )
    data = DataView(HOSTILE, HOSTILE, [(HOSTILE, HOSTILE)], [HOSTILE], [(HOSTILE, HOSTILE)], 1)
    samples = SamplesView(
        "evaluate",
        [SampleView(HOSTILE, [Answer("plain", "words"), Answer(HOSTILE, HOSTILE, {HOSTILE: 1.0})])],
        1,
    )
    table = TableView("evaluate", HOSTILE, [HOSTILE], [[HOSTILE]], (HOSTILE,))
    return replace(
        run,
        name=HOSTILE,
        stages=[*run.stages, bad],
        samples=[samples],
        tables=[table],
        data=[data],
        made=HOSTILE,
        finished=HOSTILE,
        currency=HOSTILE,
        price_per_hour=1.0,
        config_text=HOSTILE,
        resolved_text=HOSTILE,
        command=HOSTILE,
    )


def test_hostile_text_is_shown_as_text():
    text = render(hostile_run())

    page = Page(text)
    assert len(page.blocks["script"]) == 2
    assert page.all("img") == []
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.words.count(HOSTILE) > 10
    assert HOSTILE not in text


def hostile_pages():
    """Return both pages of a run whose every word is hostile, compared with one that differs."""
    run = hostile_run()
    other = replace(
        run,
        name=f"other {HOSTILE}",
        stages=[
            replace(s, key="ff" * 32, settings={HOSTILE: f"x{HOSTILE}"}, metrics={HOSTILE: 2.0})
            for s in run.stages
        ],
        tables=[
            replace(table, columns=["model", HOSTILE], rows=[[HOSTILE, HOSTILE]]) for table in run.tables
        ],
    )
    first = replace(run, tables=other.tables)
    return {"report": render(run), "comparison": render_comparison(first, other)}


def test_a_file_with_a_hostile_name_is_shown_by_its_name(tmp_path):
    name = "<img src=x onerror=alert(1)>.txt"
    engine = Engine(tmp_path / "work", text=CHAIN.replace("corpus.txt", f"'{name}'"))
    (engine.folder / name).write_text("hello\n")
    engine.run_here()

    text = write_report(engine.store, "chain").read_text(encoding="utf-8")

    assert "<img" not in text
    assert name in Page(text).words


@pytest.mark.parametrize("name", ["report", "comparison"])
def test_hostile_text_does_nothing_in_a_browser(tmp_path, name):
    path = tmp_path / "page.html"
    path.write_text(hostile_pages()[name], encoding="utf-8")
    # Every curve is pointed at, and every hostile word is marked as one that the plain answer lacks.
    use = """
      document.querySelectorAll('details').forEach((part) => { part.open = true; });
      const chooser = document.getElementById('reference');
      if (chooser) { chooser.selectedIndex = 1; chooser.dispatchEvent(new Event('change')); }
      for (const figure of document.querySelectorAll('figure.chart')) {
        figure.scrollIntoView();
        figure.dispatchEvent(new KeyboardEvent('keydown', { key: 'End' }));
      }
      if (chooser && !document.querySelector('mark')) console.warn('nothing was marked');
      new Promise((done) => setTimeout(done, 300))"""

    view = look_at(path, script=use, again=use)

    assert view.console == []
    assert view.requests == []
    assert "<img" not in path.read_text(encoding="utf-8")
    assert HOSTILE in Page(path.read_text(encoding="utf-8")).words


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_draws_every_visible_curve_without_a_complaint(tmp_path, width):
    path = tmp_path / "report.html"
    path.write_text(render(hostile_run()), encoding="utf-8")
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
        "--disable-background-networking --disable-component-update --virtual-time-budget=3000 "
        f"--enable-logging=stderr --dump-dom --window-size={width},9000 "
        f"--user-data-dir={tmp_path / 'profile'}"
    )

    done = subprocess.run(
        ["chromium", *flags.split(), path.as_uri()], capture_output=True, text=True, timeout=120, check=False
    )

    assert "CONSOLE" not in done.stderr
    main = sum(
        1 for found in charts_of(hostile_run().stages).values() for chart in found if not chart.secondary
    )
    assert done.stdout.count('<div class="plot"><svg') >= main
