"""data/demo/: made byte for byte by its script, readable by the stages, and as mixed as it says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter

import pytest

from reward.preferences.pairs import load_pairs
from stages.data import read_demonstrations, read_prompts
from tests.demo.files import DEMO, ROOT, load_module

GENERATED = (
    "corpus.txt",
    "sft.jsonl",
    "preferences.jsonl",
    "prompts.jsonl",
    "heldout.jsonl",
    "blind.jsonl",
    "fewshot.jsonl",
)
MAX_BYTES = 2_500_000


def rows(name):
    return [json.loads(line) for line in (DEMO / name).read_text().splitlines()]


def test_the_script_writes_the_shipped_files_byte_for_byte(tmp_path):
    script = ROOT / "data" / "make_demo.py"
    subprocess.run([sys.executable, "-I", str(script), str(tmp_path)], check=True)

    for name in GENERATED:
        assert (tmp_path / name).read_bytes() == (DEMO / name).read_bytes(), name


def test_the_folder_holds_nothing_else_and_stays_small():
    found = {path.name: path.stat().st_size for path in DEMO.iterdir() if path.is_file()}

    assert set(found) == {*GENERATED, "gold.py"}
    assert sum(found.values()) < MAX_BYTES


def test_no_prompt_stands_in_two_files():
    corpus = {
        line.removeprefix("<|user|>").split("<|assistant|>")[0]
        for line in (DEMO / "corpus.txt").read_text().splitlines()
        if line.startswith("<|user|>")
    }
    prompts = [
        row["prompt"]
        for name in ("sft", "prompts", "heldout", "blind", "fewshot")
        for row in rows(f"{name}.jsonl")
    ]
    prompts += [row["prompt"][0]["content"] for row in rows("preferences.jsonl")]

    assert len(prompts) == len(set(prompts))
    assert not corpus & set(prompts)


def test_blind_questions_are_new_in_any_order_of_their_sentences():
    def sentences(prompt):
        return frozenset(re.split(r"(?<=[.?]) ", prompt))

    others = [
        row["prompt"] for name in ("sft", "prompts", "heldout", "fewshot") for row in rows(f"{name}.jsonl")
    ]
    others += [row["prompt"][0]["content"] for row in rows("preferences.jsonl")]
    others += [
        line.removeprefix("<|user|>").split("<|assistant|>")[0]
        for line in (DEMO / "corpus.txt").read_text().splitlines()
        if line.startswith("<|user|>")
    ]
    blind = [sentences(row["prompt"]) for row in rows("blind.jsonl")]

    assert len(set(blind)) == len(blind) == 300
    assert not set(blind) & set(map(sentences, others))


def test_blind_questions_are_of_the_same_kind_as_the_held_out_ones():
    blind, held_out = rows("blind.jsonl"), rows("heldout.jsonl")

    assert {tuple(row["meta"]) for row in blind} == {tuple(row["meta"]) for row in held_out}
    # One question of five is private: 60 of 300, with a standard deviation of sqrt(300 * 0.2 * 0.8) = 6.9.
    assert abs(sum(row["meta"]["expect"] == "refuse" for row in blind) - 60) < 3 * 6.9


def test_every_file_is_read_without_a_rejected_row():
    for name in ("sft", "fewshot"):
        demonstrations, rejects = read_demonstrations(DEMO / f"{name}.jsonl")
        assert demonstrations
        assert not rejects
    pairs = load_pairs(DEMO / "preferences.jsonl")
    assert (len(pairs.rejects), pairs.report.accepted) == (0, len(rows("preferences.jsonl")))
    assert len(read_prompts(DEMO / "heldout.jsonl")) == len(read_prompts(DEMO / "blind.jsonl")) == 300
    assert len(read_prompts(DEMO / "prompts.jsonl")) == len(rows("prompts.jsonl"))


def test_the_annotators_disagree_tie_and_one_is_careless():
    votes = [vote for row in rows("preferences.jsonl") for vote in row["votes"]]
    kinds = Counter(vote["kind"] for vote in votes)
    first = {
        name: sum(v["tiers"][0] == v["shown_order"][:1] for v in votes if v["annotator"] == name)
        / sum(v["annotator"] == name for v in votes)
        for name in {vote["annotator"] for vote in votes}
    }

    assert len(first) == 6
    assert 0.05 < kinds["tie"] / len(votes) < 0.25
    # The careless one is to take what is shown first in 4 of 5 cases; the others look at the text.
    assert first.pop("fox") > 0.7
    assert max(first.values()) < 0.6


def test_demonstrations_are_of_mixed_quality():
    # 35 % curt, 35 % chatty, 30 % good by construction: neither ideal nor hopeless.
    make_demo, gold = load_module(DEMO.parent / "make_demo.py"), load_module(DEMO / "gold.py")
    taken: set[str] = set()
    requests = {
        request.prompt: request
        for name in ("heldout", "fewshot", "prompts", "preferences", "sft")
        for request in make_demo.requests(name, taken)
    }
    scores = [
        gold.score(row["prompt"], row["completion"], {"meta": make_demo.meta(requests[row["prompt"]])})
        for row in rows("sft.jsonl")
    ]

    assert 0.6 < sum(scores) / len(scores) < 0.8
    assert sum(score == pytest.approx(1.0) for score in scores) / len(scores) < 0.4


def test_the_corpus_hardly_shows_the_ideal_behaviour():
    make_demo, gold = load_module(DEMO.parent / "make_demo.py"), load_module(DEMO / "gold.py")
    lines = [line for line in (DEMO / "corpus.txt").read_text().splitlines() if line.startswith("<|user|>")]
    polite = [any(text in line.lower() for text in gold.COURTESIES) for line in lines]

    assert len(lines) > 0.4 * make_demo.SIZES["corpus"]
    assert sum(polite) / len(polite) < 0.2
