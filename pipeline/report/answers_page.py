"""Draws what several models answered to the same prompts as one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from markupsafe import Markup

from pipeline.report.collect import day_and_time
from pipeline.report.page import HERE, environment, policy
from pipeline.report.view import SampleView


def render_answers(names: Sequence[str], samples: Sequence[SampleView], *, summary: str) -> str:
    """Return the page as HTML text.

    Args:
        names: of the models, in the order of each sample's answers.
        samples: prompts with an answer a model.
        summary: a sentence above them.
    """
    style = (HERE / "page.css").read_text(encoding="utf-8")
    script = (HERE / "page.js").read_text(encoding="utf-8")
    template = environment().get_template("answers.html.jinja")
    return template.render(
        names=list(names),
        samples=samples,
        summary=summary,
        made=day_and_time(datetime.now(UTC)),
        style=Markup(style),
        script=Markup(script),
        policy=policy(style, script),
    )
