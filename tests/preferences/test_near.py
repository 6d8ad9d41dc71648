"""Texts that are nearly alike: hashed sets against sets of words, marks against all pairs."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from random import Random

import numpy as np
import pytest

from reward.preferences import near
from reward.preferences.checks.rephrased import CharGrams, Nearest
from reward.preferences.near import GramSets, near_duplicates, similar_between, similar_sets, word_grams
from reward.preferences.records import normalised


def texts(number: int, *, seed: int) -> list[str]:
    """Random texts, each third one a slightly changed copy of the text before."""
    random = Random(seed)
    made: list[str] = []
    for place in range(number):
        words = [f"w{random.randrange(400)}é" for _ in range(random.randrange(1, 40))]
        if place % 3 == 2:
            words = made[-1].split()
            words[random.randrange(len(words))] = "other"
        made.append("  ".join(words))
    return made


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """The share of grams that two sets have in common."""
    left, right = set(one.tolist()), set(other.tolist())
    return len(left & right) / len(left | right)


def crowd(number: int, *, seed: int) -> list[str]:
    """Random texts in four clusters of near-duplicates, some of them equal, and strangers between them."""
    random = Random(seed)
    stems = [[f"s{cluster}w{place}" for place in range(12 + 9 * cluster)] for cluster in range(4)]
    made = []
    for _ in range(number):
        words = list(random.choice(stems))
        for _ in range(random.randrange(3)):
            words[random.randrange(len(words))] = f"x{random.randrange(50)}"
        made.append(" ".join(words if random.random() < 0.9 else random.choices(words, k=8)))
    return made


def one_by_one(sets: GramSets) -> list[tuple[int, int, float]]:
    """The near-duplicates in their order, pair by pair: by band, by distance within it, by place."""
    marks, found = sets.marks(), []
    for band in range(near.NUM_BANDS):
        order = np.argsort(marks[:, band], kind="stable").tolist()
        for step in range(1, near._MAX_BUCKET + 1):
            for one, other in zip(order, order[step:], strict=False):
                met = (marks[one, :band] == marks[other, :band]).any()
                if marks[one, band] == marks[other, band] and not met:
                    alike = jaccard(sets[one], sets[other])
                    found += [(one, other, alike)] if alike >= near.THRESHOLD else []
    return found


def triples(text: str) -> set[tuple[str, ...]]:
    words = text.lower().split()
    return {tuple(words[i : i + 3]) for i in range(len(words) - 2)} or {tuple(words)}


def test_hashed_grams_have_the_similarity_of_the_sets_of_word_triples() -> None:
    made = texts(60, seed=3)

    for one, other in itertools.combinations(made, 2):
        left, right = triples(one), triples(other)
        if (len(left) == 1) == (len(right) == 1):
            expected = len(left & right) / len(left | right)
            assert jaccard(word_grams(one), word_grams(other)) == pytest.approx(expected)


@pytest.mark.parametrize("size", [1, 3, 40_000])
def test_grams_do_not_depend_on_where_in_the_text_they_stand(size: int) -> None:
    before = " ".join(f"x{n}" for n in range(size))

    grams = set(word_grams(f"{before} one two three").tolist())

    assert set(word_grams("one two three").tolist()) <= grams


def test_near_duplicates_are_those_that_a_comparison_of_all_pairs_finds() -> None:
    made = texts(300, seed=4)
    grams = [word_grams(text) for text in made]
    exact = {
        (i, j)
        for i, j in itertools.combinations(range(len(made)), 2)
        if jaccard(grams[i], grams[j]) >= near.THRESHOLD
    }

    found = [(i, j) for i, j, _ in near_duplicates(made)]

    assert len(found) == len(set(found))
    assert set(found) <= exact
    # Sets that are 0.8 alike share a band with 1 - (1 - 0.8^8)^16 = 0.95; more alike ones nearly always.
    assert len(found) >= 0.95 * len(exact) > 20


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param({}, id="as-it-is"),
        pytest.param({"_FEW": 0}, id="every-pair-in-a-table"),
        pytest.param({"_FEW": 10**9}, id="every-pair-alone"),
        pytest.param({"_TILE": 7, "_CELLS": 40, "_FEW": 0}, id="many-tiles-and-tables"),
        pytest.param({"_TILE": 5, "_MAX_BUCKET": 3}, id="few-neighbours"),
        pytest.param({"_TILE": 2, "_MAX_BUCKET": 9}, id="neighbours-beyond-a-tile"),
    ],
)
def test_many_near_duplicates_are_found_as_one_by_one_and_in_that_order(
    monkeypatch: pytest.MonkeyPatch, sizes: dict[str, int]
) -> None:
    for name, size in sizes.items():
        monkeypatch.setattr(near, name, size)
    sets = GramSets()
    for text in crowd(150, seed=7):
        sets.append(word_grams(text))

    found = list(similar_sets(sets))

    assert found == one_by_one(sets)
    assert len(found) > 250


def test_sets_in_a_file_give_what_sets_in_memory_give(monkeypatch: pytest.MonkeyPatch) -> None:
    made = texts(200, seed=5)
    in_memory = list(near_duplicates(made))
    monkeypatch.setattr(near, "MAX_MEMORY_BYTES", 64)

    assert list(near_duplicates(made)) == in_memory
    assert in_memory


def test_two_files_are_compared_with_each_other_and_not_with_themselves() -> None:
    made = crowd(80, seed=8)
    ours, theirs, both = GramSets(), GramSets(), GramSets()
    for place, text in enumerate(made):
        (ours if place < 50 else theirs).append(word_grams(text))
        both.append(word_grams(text))

    found = list(similar_between(ours, theirs))

    across = [(one, other - 50, alike) for one, other, alike in one_by_one(both) if one < 50 <= other]
    assert found == across
    assert len(found) > 50


def test_a_comparison_of_two_files_names_places_in_each() -> None:
    made = texts(90, seed=6)
    ours, theirs = GramSets(), GramSets()
    for text in made:
        ours.append(word_grams(text))
    for text in ("entirely different words here", made[7], made[3]):
        theirs.append(word_grams(text))

    found = {(one, other) for one, other, alike in similar_between(ours, theirs) if alike == 1.0}

    assert {(7, 1), (3, 2)} <= found


def char_grams(text: str) -> Counter[str]:
    """The same grams the slow way: 3 to 5 letters inside one word between blanks."""
    words = [f" {word} " for word in normalised(text).lower().split()]
    return Counter(
        word[i : i + size] for word in words for size in (3, 4, 5) for i in range(len(word) - size + 1)
    )


def test_the_nearest_text_has_the_cosine_that_counting_grams_gives() -> None:
    targets = ["How do I bake a loaf of bread?", "Where is the station?", "Name three rivers of Spain."]
    text = "Tell me, how do I bake bread at home?"
    counted = [char_grams(target) for target in targets]
    # Weight of a gram: ln((1 + targets) / (1 + targets with it)) + 1.
    idf = {
        gram: math.log(4 / (1 + sum(gram in one for one in counted))) + 1
        for gram in set().union(char_grams(text), *counted)
    }

    def vector(grams: Counter[str]) -> dict[str, float]:
        values = {gram: times * idf[gram] for gram, times in grams.items()}
        norm = math.sqrt(sum(value**2 for value in values.values()))
        return {gram: value / norm for gram, value in values.items()}

    ours = vector(char_grams(text))
    cosines = [sum(ours.get(gram, 0) * value for gram, value in vector(one).items()) for one in counted]

    found = Nearest([CharGrams.of(target) for target in targets]).find(CharGrams.of(text))

    assert found is not None
    assert found[0] == int(np.argmax(cosines)) == 0
    assert found[1] == pytest.approx(max(cosines), abs=1e-9)


def test_nothing_is_near_when_there_is_no_target_and_an_empty_text_is_near_nothing() -> None:
    assert Nearest([]).find(CharGrams.of("anything")) is None
    assert Nearest([CharGrams.of("anything")]).find(CharGrams.of("")) is None
