"""What several models answered, side by side on one page."""

from __future__ import annotations

from pipeline.report.answers_page import render_answers
from pipeline.report.view import Answer, SampleView
from tests.browser import look_at
from tests.report.parsed import Page
from tests.report.test_hostile import HOSTILE


def samples() -> list[SampleView]:
    return [
        SampleView(
            "When?", [Answer("demo:sft", "It opens at nine."), Answer("demo:ppo", "It opens at ten.")]
        ),
        SampleView("Where?", [Answer("demo:sft", "Here."), Answer("demo:ppo", "")]),
        SampleView(HOSTILE, [Answer("demo:sft", HOSTILE), Answer("demo:ppo", "Here.")]),
    ]


def test_every_prompt_stands_with_both_answers_as_text():
    text = render_answers(["demo:sft", "demo:ppo"], samples(), summary="None of 3 answers is the same.")

    page = Page(text)
    assert len([a for a in page.all("article") if a.get("class") == "sample"]) == 3
    assert "None of 3 answers is the same." in page.words
    assert page.words.count(HOSTILE) == 2
    assert HOSTILE not in text
    assert "empty answer" in page.words


def test_the_page_marks_what_differs_and_fits_a_phone(tmp_path):
    path = tmp_path / "answers.html"
    path.write_text(render_answers(["demo:sft", "demo:ppo"], samples(), summary="s"), encoding="utf-8")
    mark = """
      const chooser = document.getElementById('reference');
      const marked = (card) => [...card.querySelectorAll('mark')].map((word) => word.textContent).join();
      for (const name of ['demo:ppo', 'demo:sft']) {
        chooser.value = name;
        chooser.dispatchEvent(new Event('change'));
        console.warn([...document.querySelectorAll('.sample')].slice(0, 2).map(marked).join(';'));
      }"""

    view = look_at(path, width=400, height=900, script=mark)

    # "nine." against "ten."; "Here." against nothing, whose own remark is not an answer.
    assert view.console == ["nine.;Here.", "ten.;"]
    assert view.requests == []
    assert view.page_width == 400
