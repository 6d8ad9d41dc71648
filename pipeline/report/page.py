"""Draws a run as one HTML page that needs nothing but itself.

Every word that comes from a run is escaped by the template; the page's own script and style are
allowed by their digests and nothing else is.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.report import numbers
from pipeline.report.checks import checks_of
from pipeline.report.cost import cost_table, time_of
from pipeline.report.curves import charts_of
from pipeline.report.lineage import HEIGHT, WIDTH, lay_out
from pipeline.report.view import RunView, SamplesView, StageView

HERE = Path(__file__).parent
HEADLINES = (
    *("accuracy", "length_floor", "objective/scores", "objective/kl", "ppo/response_length"),
    *("perplexity", "initial_perplexity", "eval_loss", "train_loss", "eval_mean_token_accuracy"),
    *("margin_mean", "rewards/accuracies", "rewards/margins", "loss"),
)
"Final metrics that stand in the table of stages, by weight."
FAMILIES = ("gold/", "win_rate/")
ASIDE = ("handover/", "num_", "grad_norm", "learning_rate", "tokens_")
THROUGHPUT = ("tokens_per_second", "samples_per_second")
REFRESH_SECONDS = 20


def render(run: RunView) -> str:
    """Return the page of a run as HTML text."""
    style = (HERE / "page.css").read_text(encoding="utf-8")
    script = (HERE / "page.js").read_text(encoding="utf-8")
    charts = charts_of(run.stages)
    curves = [chart.points for found in charts.values() for chart in found if not chart.lone]
    return (
        environment()
        .get_template("page.html.jinja")
        .render(
            run=run,
            graph=lay_out(run.stages),
            node_width=WIDTH,
            node_height=HEIGHT,
            charts=charts,
            cost=cost_table(run),
            time_of_command=time_of(run.times),
            checks=checks_of(run),
            curves=curves,
            style=Markup(style),
            script=Markup(script),
            policy=policy(style, script),
            refresh_seconds=REFRESH_SECONDS,
        )
    )


def environment() -> Environment:
    """Return the templates with the filters that pages of runs share; everything is escaped."""
    shared = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shared.filters |= {
        "short": numbers.short,
        "size": numbers.size,
        "duration": numbers.duration,
        "digest": numbers.digest,
        "amount": numbers.amount,
        "value_and_interval": numbers.value_and_interval,
    }
    shared.tests["numeric"] = numbers.is_number
    shared.globals |= {
        "throughput": throughput,
        "headline": headline,
        "kind_class": kind_class,
        "sample_names": sample_names,
    }
    return shared


def kind_class(kind: str) -> str:
    """Return the CSS class of a stage kind; unknown kinds share one colour."""
    known = ("pretrain", "sft", "reward", "dpo", "ppo", "evaluate")
    return f"kind-{kind}" if kind in known else "kind-other"


def throughput(stage: StageView) -> float | None:
    """Return a stage's median speed, tokens a second if it was logged."""
    for word in THROUGHPUT:
        for name, series in stage.series.items():
            values = [value for value in series.values if value == value]
            if name.rsplit("/", 1)[-1] == word and values:
                return median(values)
    return None


def headline(stage: StageView) -> list[tuple[str, float]]:
    """Return the three final metrics that say most about a stage.

    Of a family such as gold/MODEL the highest come first.
    """
    falling = sorted(stage.metrics, key=lambda name: -stage.metrics[name])
    families = [name for family in FAMILIES for name in falling if name.startswith(family)]
    known = families or [name for name in HEADLINES if name in stage.metrics]
    others = [name for name in stage.metrics if name not in HEADLINES and not name.startswith(ASIDE)]
    return [(name, stage.metrics[name]) for name in [*known, *others][:3]]


def sample_names(groups: Sequence[SamplesView]) -> list[str]:
    """Return the name of every model whose answers are shown."""
    answers = [answer for group in groups for sample in group.samples for answer in sample.answers]
    return list(dict.fromkeys(answer.name for answer in answers))


def policy(style: str, script: str) -> str:
    """Return the content security policy: this style, this script, and nothing from anywhere."""
    return (
        "default-src 'none'; "
        f"style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
