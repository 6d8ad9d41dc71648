"""The checks, costs and comparisons of the report's pages."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.cost import CostRecord
from pipeline.report.checks import checks_of
from pipeline.report.compare_page import render_comparison
from pipeline.report.cost import cost_table
from pipeline.report.page import render
from pipeline.report.view import AlarmView, RunView
from tests.browser import look_at
from tests.report.parsed import Page
from tests.report.sample_run import curve, demo, stage
from tests.report.test_hostile import HOSTILE, hostile_run


def run_of(**changes):
    return RunView("r", "now", [stage("ppo", "ppo", {}, {}, **changes)], "triptych run r.yaml")


def test_an_alarm_stands_first_with_its_remedy():
    run = run_of(
        metrics={"handover/kl": 0.0, "accuracy": 0.7},
        gate_bounds={"min_accuracy": 0.6},
        alarms=[AlarmView("reward_hacking", 410, 7)],
    )

    found = checks_of(run)

    assert [check.verdict for check in found] == ["alarm", "passed", "passed"]
    assert found[0].text == "alarm reward hacking from step 410, on 7 lines of metrics"
    assert "kl_coef" in found[0].remedy


@pytest.mark.parametrize(
    ("bounds", "closed", "texts"),
    [
        ({"min_accuracy": 0.6}, (), ["gate open: accuracy 0.7 ≥ 0.6"]),
        ({"max_accuracy": 0.9}, (), ["gate open: accuracy 0.7 ≤ 0.9"]),
        ({"min_accuracy": 0.8}, ("accuracy is 0.7, below 0.8",), ["gate closed: accuracy is 0.7, below 0.8"]),
    ],
)
def test_a_gate_says_what_it_compared(bounds, closed, texts):
    run = run_of(metrics={"accuracy": 0.7}, gate_bounds=bounds, gate_closed=closed)

    assert [check.text for check in checks_of(run)] == texts


def test_a_run_without_checks_has_no_section_of_them():
    assert 'id="checks"' not in render(run_of())
    assert 'id="checks"' in render(run_of(metrics={"handover/kl": 0.0}))


def test_the_cost_table_sums_times_tokens_and_price():
    stages = [
        stage("a", "sft", {}, {}, seconds=90.0, cost=CostRecord(peak_memory_bytes=2**30, num_tokens=1000)),
        stage("b", "ppo", {}, {}, seconds=30.0, cost=CostRecord(peak_memory_bytes=2**31, num_tokens=500)),
    ]

    table = cost_table(RunView("r", "now", stages, "triptych run", price_per_hour=6.0))

    assert table.columns == ("Time", "Share", "Tokens", "Peak memory", "Price, USD")
    assert table.rows[0].cells == ("1 min 30 s", "75%", "1\u202f000", "1.0 GiB", "0.15")
    assert table.total == ("2 min 00 s", "100%", "1\u202f500", "2.0 GiB", "0.2")


def other_run():
    """The demo again with one setting, one metric and one curve changed."""
    run = demo()
    changed = [
        replace(
            found,
            key="f" * 64,
            settings={**found.settings, "kl_coef": 0.1},
            metrics={**found.metrics, "objective/scores": 1.42},
            series={**found.series, "objective/kl": curve(0.001, 2.0, seed=99)},
        )
        if found.name == "ppo"
        else found
        for found in run.stages
    ]
    return replace(run, name="other", stages=changed)


def test_a_comparison_names_what_differs_and_what_is_the_same():
    text = render_comparison(demo(), other_run())
    page = Page(text)

    words = " ".join(page.words.split())
    assert "6 stages: 5 the same result, 1 not." in words
    assert '<th scope="row">kl_coef</th><td>0.05</td><td>0.1</td>' in text
    # 1.42 - 1.71
    numbers = "".join(f'<td class="number">{value}</td>' for value in ("1.71", "1.42", "−0.29"))
    assert numbers in text
    assert len(page.all("figure")) == 4


def test_a_comparison_shows_hostile_text_as_text_and_asks_for_nothing(tmp_path):
    text = render_comparison(hostile_run(), replace(other_run(), name=HOSTILE))

    page = Page(text)
    assert not page.all("img")
    assert len(page.all("script")) == 2
    assert HOSTILE in page.words


@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_draws_both_runs_without_a_complaint(tmp_path, width):
    path = tmp_path / "both.html"
    path.write_text(render_comparison(demo(), other_run()), encoding="utf-8")
    # What the page drew is said through the console, which the test reads.
    count = "console.warn('drawn ' + document.querySelectorAll('path.beside').length)"

    seen = look_at(path, width=width, height=5000, script=count)

    assert [line for line in seen.console if "drawn" not in line] == []
    assert any("drawn 4" in line for line in seen.console)
    assert seen.requests == []
    assert seen.page_width <= width


@pytest.mark.parametrize("width", [1280, 400])
def test_the_report_needs_no_sideways_scrolling(tmp_path, width):
    path = tmp_path / "report.html"
    run = demo()
    stages = [
        replace(found, cost=CostRecord(peak_memory_bytes=5 * 10**8, num_tokens=10**6)) for found in run.stages
    ]
    path.write_text(render(replace(run, stages=stages, price_per_hour=2.0)), encoding="utf-8")

    seen = look_at(path, width=width)

    assert (seen.console, seen.requests) == ([], [])
    assert seen.page_width <= width
