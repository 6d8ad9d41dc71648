"""How the pages look: contrast of the palette, and nothing cut off on a phone, on paper, in the dark."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.report.compare_page import render_comparison
from pipeline.report.page import HERE, render
from pipeline.report.view import DataView, TableView
from tests.browser import look_at
from tests.report.sample_run import demo

STYLE = (HERE / "page.css").read_text(encoding="utf-8")
WRITING = (
    "ink",
    "muted",
    "good",
    "bad",
    "focus",
    "pretrain",
    "sft",
    "reward",
    "dpo",
    "ppo",
    "evaluate",
    "other",
)
GROUNDS = ("paper", "card", "sunken")
CUT = """[...document.querySelectorAll('.scroll')].filter((part) => part.scrollWidth > part.clientWidth + 1)
  .forEach((part) => console.warn(`cut: ${part.getAttribute('aria-label')}`))"""
WIDE = [
    *(
        "model",
        "gold utility",
        "gold - sft",
        "win rate vs sft",
        "at equal length",
        "proxy reward",
        "KL to sft",
    ),
    *("length", "EOS rate", "distinct-2"),
]


def colours() -> dict[str, tuple[str, str]]:
    """Return each colour of the palette, light and dark."""
    return {
        name: (light, dark)
        for name, light, dark in re.findall(r"--(\w+): light-dark\((#\w{6}), (#\w{6})\)", STYLE)
    }


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.2: linear light of each channel, weighed as the eye does."""
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Contrast ratio, WCAG 2.2."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_computed_as_the_standard_says():
    # The two ends, and the grey that is known as the lightest that passes on white.
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_every_colour_of_text_stands_out_from_every_ground(theme):
    palette = colours()
    assert {*WRITING, *GROUNDS} <= palette.keys()

    weak = {
        f"{text} on {ground}": round(contrast(palette[text][theme], palette[ground][theme]), 2)
        for text in WRITING
        for ground in GROUNDS
        if contrast(palette[text][theme], palette[ground][theme]) < 4.5
    }

    assert weak == {}


def wide_run():
    """A run with the widest table that a stage publishes, long names, and remarks beside numbers."""
    interval = "0.50 [0.45, 0.55]"
    rows = [[name, *[interval] * 6, 8, 0.5, 1] for name in ("base", "base few-shot", "sft", "dpo", "ppo")]
    card = [["accuracy", 0.6, "distance of confidence and accuracy in fifteen equal groups"]] * 6
    tables = [
        TableView("evaluate", "Models on the same held-out prompts of the information desk", WIDE, rows),
        TableView("judge", "As a judge sees it", WIDE[:7], [["ppo", *["0.5000 [0.4500, 0.5500]"] * 6]]),
        TableView("reward", "Reward model on held-out pairs", ["measure", "value", "remark"], card),
    ]
    run = demo()
    stages = [replace(run.stages[0], name="a" * 64), *run.stages[1:]]
    data = [DataView("reward", "w" * 120, [("rows read", "1")], ["x" * 300], [])]
    return replace(run, name="n" * 64, tables=tables, stages=stages, data=data, price_per_hour=2.5)


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("look")
    run = wide_run()
    other = replace(run, name="other", stages=[replace(s, key="ff" * 32) for s in run.stages])
    found = {"report": render(run), "comparison": render_comparison(run, other)}
    for name, text in found.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in found}


@pytest.mark.parametrize("name", ["report", "comparison"])
def test_on_a_phone_in_the_dark_nothing_is_wider_than_the_window(pages, name):
    unfold = "document.querySelectorAll('details').forEach((part) => { part.open = true; })"
    view = look_at(pages[name], width=400, height=900, theme="dark", script=unfold)

    assert view.console == []
    assert view.page_width == 400


@pytest.mark.parametrize("name", ["report", "comparison"])
def test_on_a_screen_of_ordinary_width_no_table_needs_scrolling(pages, name):
    view = look_at(pages[name], width=1280, height=900, script=CUT)

    # The comparison puts two runs into one table: what is wide for one run does scroll there.
    scrolls = {f"cut: {table.title}" for table in wide_run().tables[:2]} if name == "comparison" else set()
    assert set(view.console) <= scrolls


@pytest.mark.parametrize("name", ["report", "comparison"])
def test_on_paper_nothing_is_cut_off(pages, name):
    # A4 less its margins at 96 pixels an inch. A part that could scroll would print the shadow that says so.
    scrolls = """[...document.querySelectorAll('.scroll')].map(getComputedStyle)
      .filter((style) => style.overflowX !== 'visible' || style.backgroundImage !== 'none')
      .forEach(() => console.warn('would scroll'))"""
    view = look_at(pages[name], width=718, height=1000, script=f"{CUT}; {scrolls}", media="print")

    assert view.console == []
    assert view.page_width <= 718
