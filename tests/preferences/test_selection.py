"""What to have judged next: disagreement by hand, spread over prompts, a random arm that is logged."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from pipeline.cli.main import main
from reward.preferences.exchange.tasks import cmp_id_of
from reward.preferences.records import PreferenceRecord, Response
from reward.preferences.selection import ACTIVE, RANDOM, bald, select
from reward.preferences.writers import read_records, write_records
from tests.preferences.planted import write_jsonl


def pool(count: int, *, per_prompt: int = 1) -> list[PreferenceRecord]:
    return [
        PreferenceRecord(
            f"number {n // per_prompt} asks {n // per_prompt * 31} things",
            (Response("a", f"yes {n}"), Response("b", f"no {n}")),
        )
        for n in range(count)
    ]


def test_disagreement_by_hand() -> None:
    # Two models sure of opposite sides: mean 0.5 has 1 bit, each alone nearly none.
    assert bald([40.0, -40.0]) == pytest.approx(1.0, abs=1e-9)
    # Two models of one mind, however unsure, do not disagree.
    assert bald([0.0, 0.0]) == pytest.approx(0.0)
    # p = 3/4 and 1/4: 1 - H(1/4), H(1/4) = 0.811278.
    assert bald([math.log(3), -math.log(3)]) == pytest.approx(1 - 0.811278, abs=1e-6)


def test_the_most_disputed_come_first_beside_a_random_arm() -> None:
    records = pool(40)
    margins = {cmp_id_of(record): [n / 10, -n / 10] for n, record in enumerate(records)}

    chosen = select(records, margins, count=10, random_share=0.3, seed=1)

    arms = [item.arm for item in chosen]
    assert (arms.count(RANDOM), arms.count(ACTIVE)) == (3, 7)
    drawn = {item.cmp_id for item in chosen if item.arm == RANDOM}
    disputed = [cmp_id_of(record) for record in reversed(records) if cmp_id_of(record) not in drawn]
    assert [item.cmp_id for item in chosen if item.arm == ACTIVE] == disputed[:7]
    assert all(item.record.meta["arm"] == item.arm for item in chosen)


def test_the_random_arm_does_not_look_at_the_margins() -> None:
    records = pool(40)
    low = {cmp_id_of(record): [0.0, 0.0] for record in records}
    high = {cmp_id_of(record): [n, -n] for n, record in enumerate(records)}

    def drawn(margins: dict[str, list[float]]) -> list[str]:
        found = select(records, margins, count=10, random_share=0.5, seed=1)
        return [item.cmp_id for item in found if item.arm == RANDOM]

    assert drawn(low) == drawn(high)


def test_one_prompt_is_not_asked_twice_before_every_other_was_asked() -> None:
    records = pool(12, per_prompt=4)
    margins = {cmp_id_of(record): [(12 - n) / 10, -(12 - n) / 10] for n, record in enumerate(records)}

    chosen = select(records, margins, count=3, random_share=0.0, seed=0)

    assert len({str(item.record.prompt) for item in chosen}) == 3


def test_one_model_cannot_disagree() -> None:
    with pytest.raises(ValueError, match="two or more"):
        select(pool(2), {cmp_id_of(pool(2)[0]): [1.0]}, count=1, random_share=0.0, seed=0)


def test_the_command_selects(tmp_path: Path) -> None:
    records = pool(20)
    write_records(tmp_path / "pool.jsonl", records)
    rows = [{"cmp_id": cmp_id_of(record), "margins": [n, -n]} for n, record in enumerate(records)]
    margins = write_jsonl(tmp_path / "margins.jsonl", rows)
    words = [
        "data",
        "select",
        str(tmp_path / "pool.jsonl"),
        "--count",
        "10",
        "--out",
        str(tmp_path / "next.jsonl"),
    ]

    assert main([*words, "--margins", str(margins)]) == 0

    chosen, _ = read_records(tmp_path / "next.jsonl")
    assert [record.meta["arm"] for record in chosen].count(RANDOM) == 3
    bad = write_jsonl(tmp_path / "bad.jsonl", [{"cmp_id": "c", "margins": "high"}])
    assert main([*words, "--margins", str(bad)]) == 2
