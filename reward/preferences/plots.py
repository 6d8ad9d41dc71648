"""Small plots as inline SVG. Text in them is escaped; colours come from the page's style."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 520, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 26, 40


@dataclass(frozen=True, slots=True)
class Point:
    """One mark of a scatter plot."""

    x: float
    y: float
    label: str
    marked: bool


@dataclass(frozen=True, slots=True)
class Interval:
    """One row of an interval plot."""

    label: str
    value: float
    low: float
    high: float


def histogram(
    edges: Sequence[float],
    counts: Sequence[int],
    *,
    title: str,
    x_label: str,
    ticks: Mapping[float, str] | None = None,
) -> str:
    """Draw counts between edges, with a line at 0 where it lies inside; ticks name values in words."""
    low, high, most = edges[0], edges[-1], max([*counts, 1])
    parts = [_frame(title, x_label, "pairs", most)]
    for left, right, count in zip(edges, edges[1:], counts, strict=False):
        x, width = _x(left, low, high), _x(right, low, high) - _x(left, low, high) - 1
        y = _y(count, most)
        parts.append(
            f'<rect class="bar" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" '
            f'height="{HEIGHT - BOTTOM - y:.1f}">'
            f"<title>{left:g} to {right:g}: {count}</title></rect>"
        )
    if low < 0 < high:
        parts.append(
            f'<line class="mark" x1="{_x(0, low, high):.1f}" x2="{_x(0, low, high):.1f}" {_span()}/>'
        )
    named = ticks or {value: f"{value:g}" for value in (low, (low + high) / 2, high)}
    parts += [_x_tick(value, low, high, text) for value, text in named.items()]
    return _svg(parts, title)


def intervals(
    rows: Sequence[Interval], *, title: str, low: float, high: float, marks: Sequence[float]
) -> str:
    """Draw a dot with an interval for each row, and a vertical line at each mark."""
    height = TOP + 30 * len(rows) + BOTTOM
    left = 190
    scale = (WIDTH - left - RIGHT) / (high - low)

    def place(value: float) -> float:
        return left + (min(max(value, low), high) - low) * scale

    parts = []
    for mark in marks:
        x = place(mark)
        parts.append(
            f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{height - BOTTOM}"/>'
            f'<text class="tick" x="{x:.1f}" y="{height - BOTTOM + 16}" text-anchor="middle">{mark:g}</text>'
        )
    for number, row in enumerate(rows):
        y = TOP + 15 + 30 * number
        parts.append(
            f'<text class="name" x="{left - 10}" y="{y + 4}" text-anchor="end">{escape(row.label)}</text>'
            f'<line class="whisker" x1="{place(row.low):.1f}" x2="{place(row.high):.1f}" y1="{y}" y2="{y}"/>'
            f'<circle class="dot" cx="{place(row.value):.1f}" cy="{y}" r="5">'
            f"<title>{row.value:.3f} ({row.low:.3f} to {row.high:.3f})</title></circle>"
            f'<text class="tick" x="{min(place(row.high) + 8, WIDTH - 40):.1f}" y="{y + 4}">'
            f"{row.value:.3f}</text>"
        )
    return _svg(parts, title, height=height)


def scatter(points: Sequence[Point], *, title: str, x_label: str, y_label: str, level: float | None) -> str:
    """Draw one dot a point on [0, max x] by [0, 1]; marked points stand out."""
    most = max([point.x for point in points] + [1.0])
    parts = [_frame(title, x_label, y_label, 1.0)]
    if level is not None:
        y = _y(level, 1.0)
        parts.append(f'<line class="mark" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
    for point in points:
        kind = "dot flagged" if point.marked else "dot"
        parts.append(
            f'<circle class="{kind}" cx="{_x(point.x, 0, most):.1f}" cy="{_y(point.y, 1.0):.1f}" r="4">'
            f"<title>{escape(point.label)}</title></circle>"
        )
    parts += [_x_tick(value, 0, most, f"{value:,}") for value in (0, round(most))]
    return _svg(parts, title)


def _svg(parts: Sequence[str], title: str, *, height: float = HEIGHT) -> str:
    inside = "".join(parts)
    return f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(title)}">{inside}</svg>'


def _frame(title: str, x_label: str, y_label: str, most: float) -> str:
    base = HEIGHT - BOTTOM
    return (
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>'
        f'<line class="axis" x1="{LEFT}" x2="{LEFT}" y1="{TOP}" y2="{base}"/>'
        f'<text class="tick" x="{LEFT - 6}" y="{TOP + 5}" text-anchor="end">{most:g}</text>'
        f'<text class="tick" x="{LEFT - 6}" y="{base}" text-anchor="end">0</text>'
        f'<text class="tick" x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 6}" text-anchor="middle">'
        f"{escape(x_label)}</text>"
        f'<text class="tick" x="{LEFT}" y="12">{escape(y_label)}</text>'
    )


def _x_tick(value: float, low: float, high: float, text: str) -> str:
    """Draw a tick's name: centred, but inside the picture at both ends."""
    place = {low: ("start", LEFT), high: ("end", WIDTH - RIGHT)}
    anchor, x = place.get(value, ("middle", _x(value, low, high)))
    name = escape(text)
    return f'<text class="tick" x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="{anchor}">{name}</text>'


def _span() -> str:
    return f'y1="{TOP}" y2="{HEIGHT - BOTTOM}"'


def _x(value: float, low: float, high: float) -> float:
    return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)


def _y(value: float, most: float) -> float:
    return TOP + (1 - value / most) * (HEIGHT - TOP - BOTTOM)
