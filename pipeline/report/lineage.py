"""Lays out the graph of stages: columns by depth, rows that cross little."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pipeline.report.view import StageView

WIDTH, HEIGHT = 172, 62
GAP_X, GAP_Y = 52, 18
MARGIN = 2

Bend = tuple[str, str, int]
"Where a long edge passes a column: parent, child, column."
Slot = str | Bend
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Node:
    """A stage's box."""

    stage: StageView
    x: float
    y: float
    files: tuple[str, ...]
    "Names of files and models that it reads."


@dataclass(frozen=True, slots=True)
class Graph:
    """Boxes and the curves between them, in pixels."""

    nodes: Sequence[Node]
    edges: Sequence[tuple[str, str]]
    "An SVG path and what it says."
    width: float
    height: float


def lay_out(stages: Sequence[StageView]) -> Graph:
    """Return where each stage stands. An edge that a longer way implies is left out."""
    names = {stage.name for stage in stages}
    given = {
        stage.name: list(dict.fromkeys(item.producer for item in stage.inputs if item.producer in names))
        for stage in stages
    }
    parents = {name: [parent for parent in found if parent] for name, found in given.items()}
    parents = {name: _direct(found, parents) for name, found in parents.items()}
    depth = _depths(parents)
    place = _places(_columns(parents, depth), parents)
    edges = [
        (_curve(_way(parent, name, depth, place)), f"{parent} to {name}")
        for name, found in parents.items()
        for parent in found
    ]
    nodes = [Node(stage, *place[stage.name], _files(stage)) for stage in stages]
    width = max((x for x, _ in place.values()), default=0.0) + WIDTH + MARGIN
    height = max((y for _, y in place.values()), default=0.0) + HEIGHT + MARGIN
    return Graph(nodes, edges, width, height)


def _depths(parents: Mapping[str, Sequence[str]]) -> dict[str, int]:
    depth: dict[str, int] = {}
    waiting = dict(parents)
    while waiting:
        ready = [name for name, found in waiting.items() if all(parent in depth for parent in found)]
        # A graph with a cycle never comes from a plan; draw what is left in one column.
        for name in ready or list(waiting):
            depth[name] = 1 + max((depth.get(parent, -1) for parent in waiting.pop(name)), default=-1)
    return depth


def _columns(parents: Mapping[str, Sequence[str]], depth: Mapping[str, int]) -> dict[int, list[Slot]]:
    """Return what stands in each column: stages, and a free slot where a long edge passes."""
    columns: dict[int, list[Slot]] = {}
    for name, found in parents.items():
        columns.setdefault(depth[name], []).append(name)
        for parent in found:
            for column in range(depth[parent] + 1, depth[name]):
                columns.setdefault(column, []).append((parent, name, column))
    return columns


def _places(columns: Mapping[int, Sequence[Slot]], parents: Mapping[str, Sequence[str]]) -> dict[Slot, Point]:
    tallest = max((len(slots) for slots in columns.values()), default=0)
    place: dict[Slot, Point] = {}

    def middle(slot: Slot) -> float:
        rows = [place[before][1] for before in _before(slot, parents) if before in place]
        return sum(rows) / len(rows) if rows else 0.0

    for column in sorted(columns):
        slots = sorted(columns[column], key=middle)
        top = MARGIN + (tallest - len(slots)) * (HEIGHT + GAP_Y) / 2
        for row, slot in enumerate(slots):
            place[slot] = (MARGIN + column * (WIDTH + GAP_X), top + row * (HEIGHT + GAP_Y))
    return place


def _before(slot: Slot, parents: Mapping[str, Sequence[str]]) -> list[Slot]:
    """Return the slots of an earlier column that an edge to this slot comes from."""
    if isinstance(slot, str):
        return list(parents[slot])
    parent, name, column = slot
    return [(parent, name, column - 1), parent]


def _direct(found: Sequence[str], parents: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the parents that are not also an ancestor of another parent."""
    implied: set[str] = set()
    for parent in found:
        stack = list(parents[parent])
        while stack:
            name = stack.pop()
            if name not in implied:
                implied.add(name)
                stack.extend(parents[name])
    return [parent for parent in found if parent not in implied]


def _way(parent: str, name: str, depth: Mapping[str, int], place: Mapping[Slot, Point]) -> list[Point]:
    """Return the points an edge goes through: a box's right side, free slots, a box's left side."""
    half = HEIGHT / 2
    start, end = place[parent], place[name]
    points = [(start[0] + WIDTH, start[1] + half)]
    for column in range(depth[parent] + 1, depth[name]):
        x, y = place[(parent, name, column)]
        points += [(x, y + half), (x + WIDTH, y + half)]
    return [*points, (end[0], end[1] + half)]


def _curve(points: Sequence[Point]) -> str:
    path = f"M{points[0][0]:g} {points[0][1]:g}"
    for (x1, y1), (x2, y2) in pairwise(points):
        bend = (x2 - x1) / 2
        path += f"C{x1 + bend:g} {y1:g} {x2 - bend:g} {y2:g} {x2:g} {y2:g}"
    return path


def _files(stage: StageView) -> tuple[str, ...]:
    return tuple(dict.fromkeys(item.source for item in stage.inputs if not item.producer and item.source))
