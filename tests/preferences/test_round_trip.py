"""Out to annotation tools and back: nothing lost, order turned back, edits refused."""

from __future__ import annotations

import csv
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.main import main
from reward.preferences.exchange import judgements
from reward.preferences.exchange.assignment import Overlap, assign, least_shared
from reward.preferences.exchange.judgements import Imported, import_judgements
from reward.preferences.exchange.outgoing import Exported, export
from reward.preferences.exchange.probes import read_probes
from reward.preferences.exchange.sheets import guarded, unguarded
from reward.preferences.exchange.tasks import Plan, cmp_id_of, read_key
from reward.preferences.records import PreferenceRecord, Response, Vote, VoteKind
from tests.preferences.planted import write_jsonl

NUM_PAIRS = 500


def pool(count: int, *, responses: int = 2) -> list[PreferenceRecord]:
    starts = ("=", "+", "-", "@", "'", "", "", "")
    records = []
    for n in range(count):
        texts = [f'{starts[(n + side) % 8]}Answer {n}-{side}, "quoted", ünï' for side in range(responses)]
        prompt = [{"role": "user", "content": f"{starts[n % 8]}Question {n}:\nwhat now?"}]
        named = (Response(f"r{side}", text, f"m{side}") for side, text in enumerate(texts))
        records.append(PreferenceRecord(prompt, tuple(named)))
    return records


PLAN = Plan(Overlap(4, 2, 0.3), probe_share=0.0, repeat_share=0.0, seed=5)


def judge(texts: tuple[str, ...], person: str) -> str:
    """What a simulated person answers, by the texts alone, so that order must not matter."""
    rng = random.Random(f"{person}|{'|'.join(sorted(texts))}")
    said = rng.choice(["best", "best", "best", "tie", "both_bad", "skip"])
    return said if said != "best" else min(texts, key=lambda text: random.Random(text).random())


def fill_sheet(path: Path, person: str) -> Path:
    """Fill in a CSV sheet as a person would."""
    with path.open(newline="", encoding="utf-8-sig") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        texts = unguarded(row["response_a"]), unguarded(row["response_b"])
        said = judge(texts, person)
        row["choice"] = {texts[0]: "a", texts[1]: "B "}.get(said, said)
        row["confidence"] = "4"
    done = path.with_name(f"done-{path.name}")
    with done.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return done


def fill_workbook(path: Path, person: str) -> Path:
    from openpyxl import load_workbook

    book = load_workbook(path)
    for row in book.active.iter_rows(min_row=2):
        texts = unguarded(row[2].value), unguarded(row[3].value)
        said = judge(texts, person)
        row[4].value = {texts[0]: "a", texts[1]: "b"}.get(said, said)
    done = path.with_name(f"done-{path.name}")
    book.save(done)
    return done


def fill_label_studio(path: Path, person: str, form: str) -> Path:
    """Answer tasks as the server exports them."""
    rows = []
    for number, task in enumerate(json.loads(path.read_text()), start=1):
        data = task["data"]
        said = judge((data["answer1"], data["answer2"]), person)
        side = {data["answer1"]: "left", data["answer2"]: "right"}.get(said)
        if form == "JSON":
            value: dict[str, Any] = {"selected": side} if side else {"choices": [said]}
            kind = "pairwise" if side else "choices"
            result = [{"type": kind, "from_name": "comparison" if side else "tie", "value": value}]
            note = {"id": number, "completed_by": {"id": person}, "result": result, "lead_time": 9.5}
            rows.append({"id": number, "data": data, "annotations": [note]})
        else:
            answer: dict[str, Any] = {"comparison": [{"selected": side}]} if side else {"tie": said}
            times = {"created_at": "t", "updated_at": "t", "lead_time": 9.5}
            rows.append(
                {**data, "id": number, "annotator": person, "annotation_id": number, **answer, **times}
            )
    done = path.with_name(f"done-{path.stem}.{'csv' if form == 'CSV' else 'json'}")
    if form == "CSV":
        columns = sorted({name for row in rows for name in row})
        with done.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, columns, restval="")
            writer.writeheader()
            for row in rows:
                writer.writerow({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()})
    else:
        done.write_text(json.dumps(rows))
    return done


def fill_argilla(path: Path, person: str) -> Path:
    rows = json.loads(path.read_text())
    for row in rows:
        names = {row["fields"]["response_1"]: "response_1", row["fields"]["response_2"]: "response_2"}
        said = judge(tuple(names), person)
        answer = {"value": names.get(said, said), "user_id": person, "status": "submitted"}
        row["responses"] = {"preference": [answer]}
    done = path.with_name(f"done-{path.name}")
    done.write_text(json.dumps(rows))
    return done


def fill(tool: str, form: str, written: Exported) -> list[Path]:
    done = []
    for path in written.files:
        person = path.stem.rpartition("-")[2]
        if path.suffix == ".xml" or path.name == "settings.json":
            continue
        if tool == "csv":
            done.append(fill_sheet(path, person))
        elif tool == "xlsx":
            done.append(fill_workbook(path, person))
        elif tool == "argilla":
            done.append(fill_argilla(path, person))
        else:
            done.append(fill_label_studio(path, person, form))
    return done


@pytest.mark.parametrize(
    ("tool", "form"),
    [("csv", ""), ("xlsx", ""), ("argilla", ""), ("labelstudio", "JSON"), ("labelstudio", "JSON_MIN"),
     ("labelstudio", "CSV")],
)  # fmt: skip
def test_500_pairs_come_back_with_every_vote_and_the_right_side(tool: Any, form: str, tmp_path: Path) -> None:
    records = pool(NUM_PAIRS)
    written = export(records, tmp_path, tool=tool, plan=PLAN)
    key = read_key(written.key)

    found = import_judgements(fill(tool, form, written), key)

    # 30 % of 500 pairs are judged by two people: 650 tasks.
    assert (written.tasks, found.votes, found.refused, found.open_tasks) == (650, 650, [], ())
    by_id = {cmp_id_of(record): record for record in records}
    assert {record.id for record in found.records} == set(by_id)
    for record in found.records:
        source = by_id[record.id]
        assert record.prompt == source.prompt
        assert record.responses == source.responses
        for vote in record.votes:
            assert vote.annotator is not None
            texts = tuple(response.text for response in source.responses)
            said = judge(texts, vote.annotator)
            if said in texts:
                assert record.text_of(vote.tiers[0][0]) == said
            else:
                assert vote.kind == said
    first_left = sum(vote.shown_order == ("r0", "r1") for r in found.records for vote in r.votes)
    assert 250 < first_left < 400


def test_tasks_hide_the_sources_and_the_key_is_the_only_way_back(tmp_path: Path) -> None:
    written = export(pool(40), tmp_path, tool="labelstudio", plan=PLAN)

    shown = "".join(path.read_text() for path in written.files)
    assert '"m0"' not in shown
    assert '"r0"' not in shown
    assert '"m0"' in written.key.read_text()
    config = (tmp_path / "label_config.xml").read_text()
    for answer in ('value="tie"', 'value="both_bad"', 'value="skip"', "<Pairwise", "<Rating", "<TextArea"):
        assert answer in config


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    def content(folder: str, seed: int) -> dict[str, bytes]:
        plan = Plan(Overlap(3, 2, 0.5), seed=seed)
        export(pool(30), tmp_path / folder, tool="csv", plan=plan)
        return {path.name: path.read_bytes() for path in sorted((tmp_path / folder).iterdir())}

    assert content("a", 1) == content("b", 1)
    assert content("c", 2) != content("a", 1)


def edited(tmp_path: Path, change: Any) -> Imported:
    written = export(pool(6), tmp_path, tool="csv", plan=Plan(Overlap(1, 1, 0.0), 0.0, 0.0))
    done = fill_sheet(written.files[0], "a01")
    with done.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    change(rows[2])
    with done.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return import_judgements([done], read_key(written.key))


@pytest.mark.parametrize(
    ("change", "check"),
    [
        ({"prompt": "Another question"}, "edited_prompt"),
        ({"response_b": "A better answer"}, "edited_response"),
        ({"task_id": "t123"}, "unknown_task"),
        ({"choice": "left"}, "label_out_of_range"),
        ({"confidence": "very"}, "wrong_type"),
    ],
)
def test_an_edited_row_is_refused_and_the_others_are_kept(
    change: dict[str, str], check: str, tmp_path: Path
) -> None:
    found = edited(tmp_path, lambda row: row.update(change))

    assert [item.check for item in found.refused] == [check]
    assert (found.votes, len(found.open_tasks)) == (5, 1)


def test_swapped_columns_are_refused(tmp_path: Path) -> None:
    def swap(row: dict[str, str]) -> None:
        row["response_a"], row["response_b"] = row["response_b"], row["response_a"]

    assert [item.check for item in edited(tmp_path, swap).refused] == ["edited_response"]


def test_an_empty_choice_is_an_open_task(tmp_path: Path) -> None:
    found = edited(tmp_path, lambda row: row.update(choice=""))

    assert (found.refused, found.votes, len(found.open_tasks)) == ([], 5, 1)


def test_votes_are_appended_to_earlier_rounds(tmp_path: Path) -> None:
    written = export(pool(8), tmp_path, tool="csv", plan=Plan(Overlap(1, 1, 0.0), 0.0, 0.0))
    key = read_key(written.key)
    first = import_judgements([fill_sheet(written.files[0], "a01")], key)

    second = import_judgements([fill_sheet(written.files[0], "a01")], key, earlier=first.records)

    assert [len(record.votes) for record in second.records] == [2] * 8
    assert second.repeats == 8


def test_probes_and_repeats_come_back_marked(tmp_path: Path) -> None:
    probes = [
        PreferenceRecord(f"probe {n}", (Response("good", f"right {n}"), Response("bad", f"wrong {n}")),
                         gold=("good", "bad"))
        for n in range(10)
    ]  # fmt: skip
    plan = Plan(Overlap(2, 2, 1.0), probe_share=0.1, repeat_share=0.1, seed=2)
    written = export(pool(50), tmp_path, tool="csv", plan=plan, probes=probes)
    key = read_key(written.key)

    found = import_judgements(fill("csv", "", written), key)

    # Each of two people: 50 pairs, 5 probes, 5 repeats.
    kinds = Counter((entry.annotator, entry.kind) for entry in key.tasks.values())
    assert kinds == {
        (who, kind): count
        for who in ("a01", "a02")
        for kind, count in (("ordinary", 50), ("probe", 5), ("repeat", 5))
    }
    assert found.repeats == 10
    marked = [record for record in found.records if any(vote.is_gold_probe for vote in record.votes)]
    assert all(record.gold == ("good", "bad") for record in marked)
    assert sum(vote.is_gold_probe for record in marked for vote in record.votes) == 10
    orders: dict[tuple[str, str], list[tuple[str, ...]]] = {}
    for entry in key.tasks.values():
        orders.setdefault((entry.cmp_id, entry.annotator), []).append(entry.order)
    twice = [pair for pair in orders.values() if len(pair) == 2]
    assert len(twice) == 10
    assert all(one == other[::-1] for one, other in twice)


def test_a_repeat_comes_after_its_first_showing(tmp_path: Path) -> None:
    plan = Plan(Overlap(1, 1, 0.0), probe_share=0.0, repeat_share=0.3, seed=4)
    written = export(pool(40), tmp_path, tool="csv", plan=plan)

    seen: dict[str, str] = {}
    for task_id, entry in read_key(written.key).tasks.items():
        assert entry.kind == "ordinary" or entry.cmp_id in seen
        seen[entry.cmp_id] = task_id


def test_worthless_comparisons_are_left_out_before_anybody_is_paid(tmp_path: Path) -> None:
    good, same, empty, cut = pool(4)
    records = [
        good,
        PreferenceRecord(same.prompt, (Response("a", "alike"), Response("b", " alike "))),
        PreferenceRecord(empty.prompt, (Response("a", " "), Response("b", "something"))),
        PreferenceRecord(cut.prompt, (Response("a", "this end", finish="length"), Response("b", "fine"))),
        good,
    ]

    written = export(records, tmp_path, tool="csv", plan=Plan(Overlap(1, 1, 0.0), 0.0, 0.0))

    assert written.tasks == 1
    assert [item.reason for item in written.dropped] == [
        "the responses 'a' and 'b' are equal",
        "the response 'a' is empty",
        "the response 'a' was cut at its length limit",
        "the same comparison stands in the file twice",
    ]


def test_rankings_go_out_as_rankers(tmp_path: Path) -> None:
    written = export(
        pool(5, responses=4), tmp_path, tool="labelstudio", plan=Plan(Overlap(1, 1, 0.0), 0.0, 0.0)
    )
    tasks = json.loads(written.files[0].read_text())
    for number, task in enumerate(tasks):
        bodies = {item["body"]: item["id"] for item in task["data"]["items"]}
        task["annotations"] = [
            {"id": number, "completed_by": 1,
             "result": [{"type": "ranker", "from_name": "rank",
                         "value": {"ranker": {"rank": [bodies[text] for text in sorted(bodies)]}}}]}
        ]  # fmt: skip
        task["id"] = number
    done = tmp_path / "done.json"
    done.write_text(json.dumps(tasks))

    found = import_judgements([done], read_key(written.key))

    assert found.refused == []
    for record in found.records:
        ranked = [record.text_of(tier[0]) for tier in record.votes[0].tiers]
        assert ranked == sorted(response.text for response in record.responses)


@pytest.mark.parametrize("text", ["=1+1", "+x", "-x", "@x", "'=x", "''=x", "plain", "'quoted'", ""])
def test_formula_guards_come_off_again(text: str) -> None:
    assert unguarded(guarded(text)) == text
    assert not guarded(text).startswith(("=", "+", "-", "@"))


def test_every_two_people_share_about_equally_many_items() -> None:
    found = assign([f"c{n}" for n in range(300)], Overlap(6, 2, 1.0), seed=1)

    # 300 pairs of people over 15 pairs: 20 each.
    assert least_shared(found, 6) == 20
    load = Counter(person for people in found.values() for person in people)
    assert set(load.values()) == {100}
    assert found == assign([f"c{n}" for n in reversed(range(300))], Overlap(6, 2, 1.0), seed=1)


def test_three_people_an_item_are_balanced_too() -> None:
    found = assign([f"c{n}" for n in range(140)], Overlap(7, 3, 1.0), seed=1)

    # 140 * 3 shared pairs over 21 pairs of people: 20 on average.
    assert least_shared(found, 7) >= 18
    assert all(len(set(people)) == 3 for people in found.values())


def test_a_probe_without_a_clear_answer_is_refused(tmp_path: Path) -> None:
    from pipeline.errors import DataError

    row = {"prompt": "p", "responses": ["yes", "no"], "votes": [{"annotator": "a", "kind": "tie"}]}
    with pytest.raises(DataError, match="nobody doubts"):
        read_probes(write_jsonl(tmp_path / "probes.jsonl", [row]))


def test_the_commands_go_round(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = [{"prompt": f"Question {n}?", "completions": [f"one {n}", f"two {n}"]} for n in range(20)]
    source = write_jsonl(tmp_path / "samples.jsonl", samples)
    out = tmp_path / "out"

    assert main(["data", "export", str(source), "--to", "csv", "--annotators", "2", "--out", str(out)]) == 0
    sheets = [str(fill_sheet(path, "x")) for path in sorted(out.glob("tasks-*.csv"))]
    judged = tmp_path / "judged.jsonl"
    assert main(["data", "import", *sheets, "--key", str(out / "key.json"), "--out", str(judged)]) == 0
    assert main(["data", "pairs", str(judged), "--out", str(tmp_path / "pairs.jsonl")]) == 0

    assert "0 tasks without a judgement" in capsys.readouterr().out
    assert (tmp_path / "pairs.jsonl").read_text().count("\n") > 5
    damaged = [
        *sheets[:1],
        str(write_jsonl(tmp_path / "bad.jsonl", [{"prompt": "p", "chosen": "a", "rejected": "b"}])),
    ]
    assert main(["data", "import", *damaged, "--key", str(out / "key.json"), "--out", str(judged)]) == 2


def test_all_kinds_of_votes_are_kept(tmp_path: Path) -> None:
    written = export(pool(200), tmp_path, tool="csv", plan=Plan(Overlap(1, 1, 0.0), 0.0, 0.0))

    found = import_judgements(fill("csv", "", written), read_key(written.key))

    assert set(found.kinds) == {VoteKind.STRICT, VoteKind.TIE, VoteKind.BOTH_BAD, VoteKind.SKIP}
    assert sum(found.kinds.values()) == 200


def test_a_cancelled_task_that_is_done_later_is_no_repeat() -> None:
    responses = (Response("r0", "one"), Response("r1", "two"))
    done = Vote((("r0",), ("r1",)), VoteKind.STRICT, annotator="ann")
    given_up = Vote((), VoteKind.CANCELLED, annotator="ann")

    given = [(given_up, done), (done, done)]
    records = [PreferenceRecord(f"q{n}", responses, votes) for n, votes in enumerate(given)]

    assert judgements._count_repeats(records) == 1


def test_items_for_one_person_each_are_shared_out_evenly() -> None:
    found = assign([f"i{n}" for n in range(45)], Overlap(annotators=6, per_item=2, share=0.2), seed=1)

    # 9 items go to two people and 36 to one: 54 pieces of work for 6 people.
    work = Counter(person for people in found.values() for person in people)
    assert sorted(map(len, found.values())) == [1] * 36 + [2] * 9
    assert max(work.values()) - min(work.values()) <= 1
