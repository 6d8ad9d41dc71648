"""The report is one safe, small, self-contained page."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.report.curves import MAX_POINTS, charts_of, thin
from pipeline.report.lineage import lay_out
from pipeline.report.numbers import duration, short, size, value_and_interval
from pipeline.report.page import headline, render
from pipeline.report.view import (
    StageView,
    TableView,
)
from pipeline.tracking.lines import Series
from tests.report.parsed import Page
from tests.report.sample_run import curve, demo, stage


def test_the_page_asks_for_nothing_from_elsewhere():
    text = render(demo())

    page = Page(text)
    targets = [
        value
        for tag, attributes in page.tags
        for name, value in attributes.items()
        if name in ("src", "href", "action", "poster", "data") or (tag == "object" and name == "data")
    ]
    assert all(value and value.startswith("#") for value in targets)
    assert "http:" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https:" not in text
    assert "@import" not in text
    assert "url(" not in text


def test_the_policy_allows_this_script_and_style_and_nothing_else():
    page = Page(render(demo()))
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")

    def digest(text: str) -> str:
        return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"

    parts = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert parts["default-src"] == "'none'"
    assert parts["style-src"] == digest(page.blocks["style"][0])
    assert parts["script-src"] == digest(page.blocks["script"][1])
    # Inline style attributes would be refused by the policy.
    assert not any("style" in attributes for _, attributes in page.tags)


def test_every_id_is_there_once_and_every_inner_link_finds_its_target():
    page = Page(render(demo()))

    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    links = [a["href"] for a in page.all("a")]
    assert {link[1:] for link in links} <= set(ids)


def test_every_chart_has_its_curve_and_stands_in_a_table_too():
    page = Page(render(demo()))

    curves = json.loads(page.blocks["script"][0])
    numbers = [int(a["data-curve"]) for a in page.all("figure")]
    assert numbers == list(range(len(curves)))
    charts = charts_of(demo().stages)
    flat = [chart for found in charts.values() for chart in found]
    # The template numbers the charts as it draws them: main ones, then those behind the fold.
    assert [chart.points for chart in flat] == curves
    assert all(a["tabindex"] == "0" and a["aria-label"] for a in page.all("figure"))


def test_fifty_stages_and_a_million_points_stay_under_two_megabytes():
    series = Series(list(range(2000)), [math.sin(i / 50) for i in range(2000)], [0.0] * 2000)
    names = [f"family/metric_{i}" for i in range(10)]
    stages = [
        StageView(name=f"s{i}", kind="ppo", state="ran", key="a" * 64, series=dict.fromkeys(names, series))
        for i in range(50)
    ]

    text = render(replace(demo(), stages=stages))

    assert sum(len(s.series) * 2000 for s in stages) == 1_000_000
    assert len(text.encode()) < 2_000_000


def test_a_run_without_results_still_makes_a_page():
    waiting = StageView(name="sft", kind="sft", state="waiting")

    text = render(
        replace(demo(), stages=[waiting], tables=[], samples=[], data=[], finished="", seconds=None)
    )

    assert "1 stage: 0 ran, 0 reused" in Page(text).words
    assert "1 not finished" in Page(text).words


def test_what_a_live_run_has_before_it_is_no_failure():
    waiting = StageView(name="dpo", kind="dpo", state="running")
    run = replace(demo(), stages=[demo().stages[0], waiting])

    assert "0 ran, 1 reused, 1 to go." in Page(render(replace(run, live=True))).words
    assert "0 ran, 1 reused, 1 not finished." in Page(render(run)).words


def test_a_page_of_a_run_that_goes_on_loads_itself_again():
    refresh = [
        a for a in Page(render(replace(demo(), live=True))).all("meta") if a.get("http-equiv") == "refresh"
    ]

    assert len(refresh) == 1
    assert 'http-equiv="refresh"' not in render(demo())


def test_thinning_keeps_ends_and_every_extreme():
    values = [0.0] * 10_000
    values[1234], values[8765] = 7.0, -7.0
    series = Series(list(range(10_000)), values, [0.0] * 10_000)

    steps, thinned = thin(series, MAX_POINTS)

    assert len(steps) <= MAX_POINTS
    assert (steps[0], steps[-1]) == (0, 9999)
    assert steps == sorted(set(steps))
    assert thinned[steps.index(1234)] == 7.0
    assert thinned[steps.index(8765)] == -7.0


def test_a_short_curve_is_kept_whole_and_a_gap_stays_a_gap():
    series = Series([1, 2, 3], [1.0, math.nan, 3.0], [0.0] * 3)

    assert thin(series, MAX_POINTS) == ([1, 2, 3], [1.0, None, 3.0])


def test_scores_are_also_drawn_over_kl_joined_by_their_steps():
    kl = Series([1, 2, 3], [0.1, 0.4, 0.9], [0.0] * 3)
    scores = Series([1, 3, 4], [1.0, 2.0, 3.0], [0.0] * 3)
    both = stage("ppo", "ppo", {}, {"objective/kl": kl, "objective/scores": scores})

    first = charts_of([both])["ppo"][0]

    # Only steps 1 and 3 have both numbers.
    assert first.points == {"steps": [0.1, 0.9], "values": [1.0, 2.0], "across": ["objective/kl"]}


def test_curves_about_the_machine_stand_behind_a_fold():
    found = charts_of(demo().stages)["ppo"]

    assert [chart.name for chart in found if chart.secondary] == [
        "grad_norm",
        "learning_rate",
        "tokens_per_second",
    ]
    assert found[0].name.startswith("objective/")


def test_the_graph_draws_parents_before_children_and_no_edge_that_others_imply():
    graph = lay_out(demo().stages)

    x = {node.stage.name: node.x for node in graph.nodes}
    assert x["base"] < x["sft"] < x["reward"] == x["dpo"] < x["ppo"] < x["evaluate"]
    # base -> reward is implied by base -> sft -> reward, and so on.
    assert {meaning for _, meaning in graph.edges} == {
        "base to sft",
        "sft to reward",
        "sft to dpo",
        "reward to ppo",
        "dpo to evaluate",
        "ppo to evaluate",
    }


def test_no_two_boxes_of_a_graph_overlap():
    places = [(node.x, node.y) for node in lay_out(demo().stages).nodes]

    assert len(set(places)) == len(places)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.12345, "0.1235"),
        (-1.5, "−1.5"),
        (0.0, "0"),
        (12345.6, "12346"),
        (1234567, "1\u202f234\u202f567"),
        (3e-7, "3e−7"),
        (math.nan, "not a number"),
        (math.inf, "∞"),
        (None, "–"),
        ([0.7, 0.65, 0.75], "0.7 [0.65, 0.75]"),
        (True, "yes"),
        ("text", "text"),
    ],
)
def test_numbers_are_written_short(value, text):
    assert short(value) == text


@pytest.mark.parametrize(
    ("cell", "parts"),
    [
        ("0.100 [0.000, 0.300]", ("0.100", "[0.000, 0.300]")),
        ("-0.36 [-0.51, -0.19]", ("−0.36", "[−0.51, −0.19]")),
        ([0.7, 0.6, 0.8], ("0.7", "[0.6, 0.8]")),
        ("+1.5", ("+1.5", "")),
        ("48 %", ("48 %", "")),
        (0.5, ("0.5", "")),
        (None, ("–", "")),
        ("base few-shot", ("base few-shot", "")),
        ("2 models", ("2 models", "")),
    ],
)
def test_a_cell_is_parted_into_its_value_and_its_interval(cell, parts):
    assert value_and_interval(cell) == parts


def test_columns_of_numbers_are_set_flush_right_however_they_are_written():
    table = TableView(
        "e", "t", ["model", "a", "b", "c", "d"], [["sft", 1.0, "0.1 [0, 1]", "free text", None]]
    )

    assert table.number_columns == {1, 2}


def test_the_table_of_stages_shows_the_best_models_of_an_evaluation():
    metrics = {"distinct_2/sft": 1.0, "gold/base": 0.1, "gold/ppo": 0.8, "gold/sft": 0.5, "gold/dpo": 0.7}

    shown = headline(StageView("evaluate", "evaluate", "ran", metrics=metrics))

    assert shown == [("gold/ppo", 0.8), ("gold/dpo", 0.7), ("gold/sft", 0.5)]


def test_a_metric_logged_once_stands_in_the_table_only():
    once = stage("sft", "sft", {}, {"loss": curve(1, 0), "eval_loss": Series([3], [0.5], [0.0])})

    page = Page(render(replace(demo(), stages=[once])))

    assert len(page.all("figure")) == 1
    assert len(json.loads(page.blocks["script"][0])) == 1
    assert "with 1 logged once" in page.words


def test_sizes_and_times_are_written_for_people():
    assert [size(n) for n in (0, 1023, 1536, 300 * 2**20)] == ["0 B", "1023 B", "1.5 KiB", "300 MiB"]
    assert [duration(s) for s in (None, 0.04, 59.4, 61, 3700)] == [
        "–",
        "0.0 s",
        "59 s",
        "1 min 01 s",
        "1 h 01 min",
    ]


def test_the_script_and_style_of_the_page_hold_no_closing_tag():
    folder = Path(render.__globals__["HERE"])

    for name in ("page.js", "page.css"):
        assert not re.search(r"</(script|style)", (folder / name).read_text())
