"""Strongly connected components: responses that are each better than the other by some path."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence


def strong_components(edges: Iterable[tuple[Hashable, Hashable]]) -> list[list[Hashable]]:
    """Return the components with more than one node of a directed graph.

    Source: Tarjan, Depth-first search and linear graph algorithms, 1972; without recursion.
    """
    graph: dict[Hashable, list[Hashable]] = defaultdict(list)
    for better, worse in edges:
        graph[better].append(worse)
    index: dict[Hashable, int] = {}
    low: dict[Hashable, int] = {}
    path: list[Hashable] = []
    on_path: set[Hashable] = set()
    found: list[list[Hashable]] = []
    for start in list(graph):
        if start in index:
            continue
        work: list[tuple[Hashable, int]] = [(start, 0)]
        while work:
            node, place = work.pop()
            if place == 0:
                index[node] = low[node] = len(index)
                path.append(node)
                on_path.add(node)
            else:
                low[node] = min(low[node], low[graph[node][place - 1]])
            place = _next_unseen(graph.get(node, ()), place, index, low, on_path, node)
            if place < len(graph.get(node, ())):
                work += [(node, place + 1), (graph[node][place], 0)]
                continue
            if low[node] == index[node]:
                component: list[Hashable] = []
                while not component or component[-1] != node:
                    component.append(path.pop())
                    on_path.discard(component[-1])
                if len(component) > 1:
                    found.append(component)
    return found


def _next_unseen(
    targets: Sequence[Hashable],
    place: int,
    index: dict[Hashable, int],
    low: dict[Hashable, int],
    on_path: set[Hashable],
    node: Hashable,
) -> int:
    """Return the place of the next target that was never visited; note those that are on the path."""
    while place < len(targets) and targets[place] in index:
        if targets[place] in on_path:
            low[node] = min(low[node], index[targets[place]])
        place += 1
    return place


def three_cycles(edges: Iterable[tuple[Hashable, Hashable]]) -> int:
    """Count the cycles of three nodes."""
    graph: dict[Hashable, set[Hashable]] = defaultdict(set)
    for better, worse in edges:
        graph[better].add(worse)
    closed = sum(
        1
        for first, seconds in list(graph.items())
        for second in seconds
        for third in graph.get(second, ())
        if third != first and first in graph.get(third, ())
    )
    return closed // 3
