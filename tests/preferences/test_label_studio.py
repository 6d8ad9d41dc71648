"""200 comparisons through a real Label Studio and back: nothing is lost, the order is turned back."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.main import main
from reward.preferences.exchange.tasks import cmp_id_of
from reward.preferences.records import PreferenceRecord, Vote, VoteKind
from reward.preferences.writers import read_records
from tests.preferences.label_studio_server import Server, running_server

NUM_TASKS = 200
FORMATS = {"JSON": "all.json", "JSON_MIN": "min.json", "CSV": "all.csv"}
REASON = 'first line, "quoted"\nsecond; größer'

pytestmark = [pytest.mark.label_studio, pytest.mark.slow]


@dataclass(frozen=True)
class Said:
    """What one person answered to one comparison."""

    kind: VoteKind
    best: str
    "Text of the better response; empty for ties and skips."
    confidence: int | None
    reason: str | None


@dataclass
class Round:
    """One round trip."""

    said: dict[tuple[str, str], Said]
    "(comparison, person) -> answer."
    key: Path
    exports: dict[str, Path]
    records: dict[str, PreferenceRecord]


def answer(rng: random.Random, task: dict[str, Any]) -> tuple[dict[str, Any], Said]:
    """Answer a task as the label interface would send it."""
    kind = rng.choices(list(VoteKind), weights=[60, 15, 10, 10, 5], k=1)[
        0
    ]  # strict, tie, both_bad, skip, cancelled
    result: list[dict[str, Any]] = []
    best = ""
    if kind is VoteKind.STRICT:
        side = rng.choice(["left", "right"])
        best = task["data"]["answer1" if side == "left" else "answer2"]
        value = {"selected": side}
        result.append({"from_name": "comparison", "to_name": "answer1", "type": "pairwise", "value": value})
    elif kind is not VoteKind.CANCELLED:
        value_of_choice = {"choices": [str(kind)]}
        result.append({"from_name": "tie", "to_name": "prompt", "type": "choices", "value": value_of_choice})
    confidence = rng.randint(1, 5) if kind is VoteKind.STRICT else None
    if confidence is not None:
        sure = {"rating": confidence}
        result.append({"from_name": "confidence", "to_name": "prompt", "type": "rating", "value": sure})
    reason = REASON if rng.random() < 0.3 and kind is not VoteKind.CANCELLED else None
    if reason is not None:
        why = {"text": [reason]}
        result.append({"from_name": "why", "to_name": "prompt", "type": "textarea", "value": why})
    cancelled = kind is VoteKind.CANCELLED
    content = {"result": result, "was_cancelled": cancelled, "lead_time": round(rng.uniform(2, 60), 3)}
    return content, Said(kind, best, confidence, reason)


@pytest.fixture(scope="module")
def trip(tmp_path_factory: pytest.TempPathFactory) -> Round:
    folder = tmp_path_factory.mktemp("label-studio")
    samples = folder / "samples.jsonl"
    rows = [
        {"prompt": f"Question {n}, what is <b>{n}</b> & more?\nSay it.",
         "completions": [f"Short {n}.", f"Longer {n}: 1 < 2, \"é\", 日本\n\n- item"]}
        for n in range(NUM_TASKS)
    ]  # fmt: skip
    samples.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = folder / "round"
    words = ["--annotators", "1", "--overlap", "1", "--repeat-share", "0", "--out", str(out)]
    assert main(["data", "export", str(samples), "--to", "labelstudio", *words]) == 0
    with running_server(folder) as server:
        said, exports = judge(server, out, folder)
    records = {cmp_id_of(record): record for record in read_records(samples)[0]}
    return Round(said, out / "key.json", exports, records)


def judge(server: Server, out: Path, folder: Path) -> tuple[dict[tuple[str, str], Said], dict[str, Path]]:
    """Import the tasks, let two people answer all of them, and export the project three times."""
    config = (out / "label_config.xml").read_text()
    project = server.call("POST", "/api/projects", {"title": "pairs", "label_config": config})["id"]
    sent = json.loads((out / "tasks-a01.json").read_text())
    server.call("POST", f"/api/projects/{project}/import", sent)
    tasks = server.call("GET", f"/api/tasks?project={project}&page_size=1000&fields=all")["tasks"]
    assert len(tasks) == len(sent) == NUM_TASKS
    people = {"lead": server.token, "second": server.sign_up("second@example.org")}
    ids = {name: server.call("GET", "/api/current-user/whoami", token=t)["id"] for name, t in people.items()}
    said = {}
    rng = random.Random(11)
    for task in tasks:
        for name, token in people.items():
            content, meant = answer(rng, task)
            server.call("POST", f"/api/tasks/{task['id']}/annotations", content, token=token)
            said[task["data"]["cmp_id"], str(ids[name])] = meant
    exports = {}
    for form, name in FORMATS.items():
        exports[form] = folder / name
        query = f"exportType={form}&download_all_tasks=true"
        exports[form].write_bytes(server.download(f"/api/projects/{project}/export?{query}"))
    return said, exports


def imported(
    trip: Round, form: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, list[PreferenceRecord]]:
    judged = folder / "judged.jsonl"
    code = main(["data", "import", str(trip.exports[form]), "--key", str(trip.key), "--out", str(judged)])
    return code, capsys.readouterr().out, read_records(judged)[0]


def as_said(record: PreferenceRecord, vote: Vote) -> Said:
    best = record.text_of(vote.tiers[0][0]) if vote.kind is VoteKind.STRICT else ""
    confidence = None if vote.confidence is None else int(vote.confidence)
    return Said(vote.kind, best, confidence, vote.reason)


@pytest.mark.parametrize("form", list(FORMATS))
def test_every_answer_comes_back_as_it_was_given(
    trip: Round, form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, records = imported(trip, form, tmp_path, capsys)

    found = {
        (record.id, str(vote.annotator)): as_said(record, vote) for record in records for vote in record.votes
    }
    # The two flat exports leave out what was cancelled; nothing in them says that it ever was.
    kept = {
        place: meant
        for place, meant in trip.said.items()
        if form == "JSON" or meant.kind is not VoteKind.CANCELLED
    }
    assert code == 0
    assert found == kept
    assert sum(len(record.votes) for record in records) == len(kept)


def test_every_kind_of_answer_was_given_by_both_people(trip: Round) -> None:
    kinds = Counter((person, meant.kind) for (_, person), meant in trip.said.items())

    assert len(trip.said) == 2 * NUM_TASKS
    assert len(kinds) == 2 * len(VoteKind)


@pytest.mark.parametrize("form", list(FORMATS))
def test_prompts_responses_and_the_order_on_the_screen_are_those_of_the_export(
    trip: Round, form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, records = imported(trip, form, tmp_path, capsys)

    assert len(records) == NUM_TASKS
    order = {
        entry["cmp_id"]: tuple(entry["order"]) for entry in json.loads(trip.key.read_text())["tasks"].values()
    }
    assert len(set(order.values())) == 2
    for record in records:
        sent = trip.records[record.id]
        assert (record.prompt, record.responses) == (sent.prompt, sent.responses)
        assert {vote.shown_order for vote in record.votes} <= {order[record.id]}


def test_a_task_that_everybody_cancelled_is_open_in_the_flat_exports(
    trip: Round, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers: dict[str, set[VoteKind]] = {}
    for (name, _), meant in trip.said.items():
        answers.setdefault(name, set()).add(meant.kind)
    nobody = sum(kinds == {VoteKind.CANCELLED} for kinds in answers.values())

    _, said, _ = imported(trip, "JSON_MIN", tmp_path, capsys)

    assert f"{nobody} tasks without a judgement" in said
