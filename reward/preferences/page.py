"""The page that a team lead reads: one HTML file, no script, nothing loaded from anywhere."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from reward.preferences.plots import Interval, Point, histogram, intervals, scatter

TEMPLATES = Path(__file__).parent / "page"
ALPHA_NAMES = {
    "raw": "raw agreement",
    "alpha_nominal": "alpha, nominal",
    "alpha_interval": "alpha, interval",
    "alpha_decisive": "alpha, decisive votes",
    "alpha_ordinal_strength": "alpha, ordinal strength",
}
LENGTH_TICKS = {-4.0: "16 × shorter", 0.0: "equal", 4.0: "16 × longer"}
"Powers of two in words."
MAX_PEOPLE = 200
SHOWN_PEOPLE = 20
"Rows of the table of people that are open from the start."


def render(reports: Sequence[Mapping[str, Any]]) -> str:
    """Return one page about one or more checked files."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda value: "" if value is None else f"{value:.1%}"
    environment.filters["seconds"] = lambda value: "" if value is None else f"{value:,.0f}"
    environment.filters["commands"] = _commands
    environment.filters["number"] = _number
    style = (TEMPLATES / "style.css").read_text("utf-8")
    digest = b64encode(hashlib.sha256(style.encode()).digest()).decode()
    files = [_file_view(report) for report in reports]
    return environment.get_template("report.html.jinja").render(
        files=files,
        style=Markup(style),
        policy="; ".join(
            (
                "default-src 'none'",
                f"style-src 'sha256-{digest}'",
                "img-src data:",
                "base-uri 'none'",
                "form-action 'none'",
            )
        ),
    )


def _file_view(report: Mapping[str, Any]) -> dict[str, Any]:
    """Add plots, and order checks by how bad they are."""
    order = {"fail": 0, "warn": 1, "info": 2, "ok": 3}
    checks = sorted(report["checks"], key=lambda check: order[check["verdict"]])
    return {
        **report,
        "loud": [check for check in checks if check["verdict"] in ("fail", "warn")],
        "quiet": [check for check in checks if check["verdict"] == "info"],
        "passed": [check["id"] for check in checks if check["verdict"] == "ok"],
        "people": report["annotators"][:SHOWN_PEOPLE],
        "more_people": report["annotators"][SHOWN_PEOPLE:MAX_PEOPLE],
        "failed": [check["id"] for check in checks if check["verdict"] == "fail"],
        "warned": [check["id"] for check in checks if check["verdict"] == "warn"],
        "num_people": len(report["annotators"]),
        "svg": {name: Markup(svg) for name, svg in _plots(report).items()},
    }


def _plots(report: Mapping[str, Any]) -> dict[str, str]:
    """Draw what was measured; a plot without data is left out."""
    found: dict[str, str] = {}
    length = report["plots"]["length_ratio"]
    if sum(length["counts"]):
        found["length"] = histogram(
            length["edges"],
            length["counts"],
            title="How much longer the preferred response is",
            x_label="length of the preferred response against the other's",
            ticks=LENGTH_TICKS,
        )
    shares = report["plots"]["vote_share"]
    if sum(shares["counts"]):
        found["votes"] = histogram(
            shares["edges"], shares["counts"], title="Largest vote share of a pair", x_label="share of votes"
        )
    rows = [
        Interval(name, found_value["value"], found_value["low"], found_value["high"])
        for key, name in ALPHA_NAMES.items()
        if (found_value := report["agreement"].get(key))
    ]
    if rows:
        low = min(0.0, *(row.low for row in rows))
        found["agreement"] = intervals(rows, title="Agreement", low=low, high=1.0, marks=(0.0, 0.667, 0.8))
    position = next((check for check in report["checks"] if check["id"] == "position_bias"), None)
    if position and position["measured"].get("first_share") is not None:
        measured = position["measured"]
        row = Interval("first is preferred", measured["first_share"], measured["low"], measured["high"])
        found["position"] = intervals([row], title="Position", low=0.0, high=1.0, marks=(0.0, 0.5, 1.0))
    points = [
        Point(row["votes"], row["agreement"], f"{row['name']}: {row['votes']} votes", bool(row["flags"]))
        for row in report["annotators"]
        if row["agreement"] is not None
    ]
    if points:
        found["annotators"] = scatter(
            points[:2000],
            title="Annotators",
            x_label="votes",
            y_label="agreement with the others",
            level=report["agreement"].get("human_ceiling"),
        )
    return found


def _commands(text: str) -> Markup:
    """Set what stands between back quotes as code."""
    parts = [escape(part) for part in text.split("`")]
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if number % 2 else part for number, part in enumerate(parts)
    )


def _number(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int) or float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:.3g}" if abs(value) < 1e-3 else f"{value:.3f}"
