"""The report in a real browser: what is drawn when, and nothing wider than the window."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.report.page import render
from pipeline.report.view import StageView
from tests.browser import look_at
from tests.report.sample_run import curve, demo

DRAWN = "document.querySelectorAll('.plot svg').length"
LAST = "[...document.querySelectorAll('.stage-curves')].at(-1)"
SCROLL = f"""(async () => {{
  console.warn(`before ${{{DRAWN}}}`);
  document.documentElement.style.scrollBehavior = 'auto';
  {LAST}.scrollIntoView();
  const there = () => {LAST}.querySelectorAll('.plot svg').length;
  for (let turn = 0; turn < 200 && there() < 3; turn++) await new Promise((done) => setTimeout(done, 50));
  console.warn(`after ${{there()}} of ${{{DRAWN}}}`);
}})()"""


@pytest.fixture
def long_page(tmp_path):
    """Sixty stages with three curves each; the first are far below the window's edge."""
    series = {name: curve(2, 1, seed=number) for number, name in enumerate(("loss", "kl", "reward"))}
    stages = [StageView(f"s{n}", "ppo", "ran", key="a" * 64, series=series) for n in range(60)]
    path = tmp_path / "report.html"
    path.write_text(render(replace(demo(), stages=stages)), encoding="utf-8")
    return path


def test_a_curve_that_is_far_away_is_drawn_when_it_comes_near(long_page):
    view = look_at(long_page, height=900, script=SCROLL)

    before, after = (line.split() for line in view.console)
    assert before == ["before", "0"]
    assert after[1] == "3"
    # Those that were never in sight cost nothing still.
    assert int(after[3]) < 60


def test_a_page_of_ordinary_size_is_drawn_whole_once_it_is_idle(tmp_path):
    path = tmp_path / "report.html"
    path.write_text(render(demo()), encoding="utf-8")
    wait = f"""(async () => {{
      const wanted = [...document.querySelectorAll('.plot')].filter((place) => place.clientWidth).length;
      for (let turn = 0; turn < 200 && {DRAWN} < wanted; turn++) {{
        await new Promise((done) => setTimeout(done, 50));
      }}
      console.warn(`${{{DRAWN}}} of ${{wanted}}`);
    }})()"""

    view = look_at(path, height=900, script=wait)

    # One curve of base, two of sft and of reward, three of dpo, five of ppo, and three of speed of each.
    assert view.console == ["28 of 28"]


def test_what_a_reader_chose_outlives_the_reload_of_a_live_page(tmp_path):
    path = tmp_path / "report.html"
    path.write_text(render(replace(demo(), live=True)), encoding="utf-8")
    choose = """
      document.getElementById('theme').click();
      document.getElementById('log').click();
      const smooth = document.getElementById('smooth');
      smooth.value = 40; smooth.dispatchEvent(new Event('input'));
      const reference = document.getElementById('reference');
      reference.value = 'SFT'; reference.dispatchEvent(new Event('change'));
      document.getElementById('stage-2').open = true"""
    tell = """
      const open = [...document.querySelectorAll('details[open]')].map((fold) => fold.id);
      console.warn(document.documentElement.style.colorScheme, document.getElementById('log').checked,
        document.getElementById('smooth').value, document.getElementById('reference').value,
        document.querySelectorAll('mark').length > 0, open.join())"""

    view = look_at(path, height=900, script=choose, again=tell, theme="light")

    assert view.console == ["dark True 40 SFT True stage-2"]
