"""chat, samples and compare on committed checkpoints: adapters, and whole models of stages."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from pipeline.cli.main import main
from pipeline.errors import ExitCode
from pipeline.store import Store
from stages.committed import find_committed
from stages.evaluation.speaker import Conversation, Speaker, Voice
from tests.chain import ROOT
from tests.fakes.engine import Engine

POLICIES = """\
name: talk
seed: 1
model: {base: base}
tuning: {lora_r: 2}
tracking: {wandb: "off"}
stages:
  one: {kind: tests.fakes.policy}
  twin: {kind: tests.fakes.policy, note: the same weights}
  other: {kind: tests.fakes.policy, seed: 2}
  whole: {kind: tests.fakes.whole_policy}
  onwhole: {kind: tests.fakes.policy, inputs: {base: whole}}
  numbers: {kind: tests.fakes.source, inputs: {text: corpus.txt}}
"""
SHORT = ("--max-new-tokens", "12")


@pytest.fixture(scope="module")
def engine(tmp_path_factory, tiny_base):
    """A run whose stages are random policies on a base beside the run file."""
    engine = Engine(tmp_path_factory.mktemp("talk") / "work", text=POLICIES, name="talk")
    (engine.folder / "base").symlink_to(tiny_base.path)
    (engine.folder / "prompts.jsonl").write_text(
        "".join(json.dumps({"id": f"p{i}", "prompt": f"say {i}"}) + "\n" for i in range(4))
    )
    from pipeline.config.load import load_run
    from pipeline.disk import Disk
    from pipeline.runner import Runner
    from tests.fakes.engine import InProcess, Recorder

    start = InProcess(Disk(None))
    assert Runner(load_run(engine.file), engine.store, Recorder(), start=start).go() == ExitCode.OK
    return engine


@pytest.fixture
def here(engine, monkeypatch):
    monkeypatch.chdir(engine.folder)
    return engine


def told(capsys, *words):
    assert main(list(words)) == ExitCode.OK
    return capsys.readouterr().out


@pytest.mark.parametrize("stage", ["one", "whole", "onwhole"])
def test_every_kind_of_checkpoint_answers(here, capsys, stage):
    out = told(capsys, "samples", f"talk:{stage}", "--prompts", "prompts.jsonl", "--n", "2", *SHORT)

    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["id"] for row in rows] == ["p0", "p1", "p2", "p3"]
    assert all([item["id"] for item in row["completions"]] == [f"{stage}-1", f"{stage}-2"] for row in rows)
    assert {item["source"] for row in rows for item in row["completions"]} == {f"talk:{stage}"}


def test_samples_are_the_same_for_the_same_seed_only(here, capsys):
    words = ("samples", "talk:one", "--prompts", "prompts.jsonl", "--n", "2", *SHORT)

    assert told(capsys, *words) == told(capsys, *words)
    assert told(capsys, *words) != told(capsys, *words, "--seed", "5")


def test_samples_can_be_sent_to_raters(here, capsys, tmp_path):
    told(capsys, "samples", "talk:one", "--prompts", "prompts.jsonl", "--n", "2", *SHORT, "--out", "s.jsonl")

    words = ("data", "export", "s.jsonl", "--to", "csv", "--out", str(tmp_path / "to-raters"))

    assert "was cut at its length limit" in told(capsys, *words)
    samples = here.folder / "s.jsonl"
    samples.write_text(samples.read_text().replace('"length"', '"stop"'))
    assert "4 tasks" in told(capsys, *words)


def test_identical_checkpoints_give_identical_greedy_text(here, capsys):
    words = ("--prompts", "prompts.jsonl", "--json", *SHORT)
    same = [
        json.loads(line) for line in told(capsys, "compare", "talk:one", "talk:twin", *words).splitlines()
    ]
    other = [
        json.loads(line) for line in told(capsys, "compare", "talk:one", "talk:other", *words).splitlines()
    ]

    assert all(row["by"]["talk:one"] == row["by"]["talk:twin"] for row in same)
    assert any(row["by"]["talk:one"] != row["by"]["talk:other"] for row in other)
    # A base that a stage copied, and the same adapter on it, answer as the originals do.
    whole = [
        json.loads(line) for line in told(capsys, "compare", "talk:one", "talk:onwhole", *words).splitlines()
    ]
    assert all(row["by"]["talk:one"] == row["by"]["talk:onwhole"] for row in whole)


def test_an_adapter_changes_what_its_base_says(here, capsys):
    words = ("--prompts", "prompts.jsonl", "--json", *SHORT)
    rows = [
        json.loads(line) for line in told(capsys, "compare", "talk:one", "talk:whole", *words).splitlines()
    ]

    assert any(row["by"]["talk:one"] != row["by"]["talk:whole"] for row in rows)


def test_side_by_side_counts_the_same_answers(here, capsys):
    out = told(capsys, "compare", "talk:one", "talk:twin", "--prompts", "prompts.jsonl", *SHORT)

    assert "4 of 4 answers are the same" in out
    assert out.count("(the same)") == 4


def test_side_by_side_is_a_page_too(here, capsys, tmp_path):
    page = tmp_path / "answers.html"
    words = ("compare", "talk:one", "talk:twin", "--prompts", "prompts.jsonl", "--html", str(page), *SHORT)

    assert told(capsys, *words).strip() == str(page)

    text = page.read_text(encoding="utf-8")
    assert "4 of 4 answers are the same" in text
    assert all(f"say {number}</div>" in text for number in range(4))
    assert text.count('data-name="talk:twin"') == 4


def test_a_blind_sheet_hides_the_sources_and_comes_back_as_votes(here, capsys, tmp_path):
    sheet, judged = tmp_path / "ab.csv", tmp_path / "judged.jsonl"
    told(
        capsys,
        "compare",
        "talk:one",
        "talk:other",
        "--prompts",
        "prompts.jsonl",
        *SHORT,
        "--blind",
        str(sheet),
    )
    rows = list(csv.DictReader(io.StringIO(sheet.read_text("utf-8-sig"))))
    assert "talk:" not in sheet.read_text("utf-8-sig")
    key = json.loads((tmp_path / "ab.key.json").read_text())
    # The rater likes talk:one each time, wherever it stands.
    for row in rows:
        row["choice"] = "ab"[key["tasks"][row["task_id"]]["order"].index("talk:one")]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)
    sheet.write_text(stream.getvalue())

    told(capsys, "data", "import", str(sheet), "--key", str(tmp_path / "ab.key.json"), "--out", str(judged))

    records = [json.loads(line) for line in judged.read_text().splitlines()]
    assert len(records) == len(rows) > 1
    assert Counter(vote["tiers"][0][0] for record in records for vote in record["votes"]) == {
        "talk:one": len(rows)
    }


def test_a_blind_sheet_of_equal_answers_is_refused(here, capsys, tmp_path):
    words = ("compare", "talk:one", "talk:twin", "--prompts", "prompts.jsonl", *SHORT)

    assert main([*words, "--blind", str(tmp_path / "ab.csv")]) == ExitCode.USER_ERROR

    assert "no pair is worth judging" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("compare", "talk:one", "talk:twin"), "--prompts FILE"),
        (("samples", "talk:numbers", "--prompts", "prompts.jsonl"), "no tokenizer"),
        (("samples", "talk:nothing", "--prompts", "prompts.jsonl"), "talk:one, talk:twin"),
        (("samples", "talk", "--prompts", "prompts.jsonl"), "which stage of 'talk'?"),
        (("samples", "talk:one", "--prompts", "prompts.jsonl", "--temperature", "-1"), "out of range"),
        (("samples", "talk:one", "--prompts", "prompts.jsonl", "--n", "2", "--temperature", "0"), "greedy"),
        (("samples", "talk:one", "--prompts", "prompts.jsonl", "--base", "store"), "is not the base"),
        (("samples", "talk:one", "--prompts", "prompts.jsonl", "--max-new-tokens", "512"), "positions"),
    ],
)
def test_a_mistake_is_said_with_its_remedy(here, capsys, words, said):
    assert main(list(words)) == ExitCode.USER_ERROR

    assert said in capsys.readouterr().err


def test_a_base_that_moved_is_named_by_hand(engine, tmp_path, monkeypatch, capsys):
    link = engine.folder / "base"
    place = link.resolve()
    monkeypatch.chdir(tmp_path)
    link.unlink()
    words = ("samples", "talk:one", "--store", str(engine.folder / "store"), *SHORT)
    words += ("--prompts", str(engine.folder / "prompts.jsonl"))
    try:
        assert main(list(words)) == ExitCode.USER_ERROR
        assert "--base FOLDER" in capsys.readouterr().err
        assert main([*words, "--base", str(place)]) == ExitCode.OK
    finally:
        link.symlink_to(place)


def chat(engine, typed, *words):
    return subprocess.run(
        [sys.executable, "-P", "-m", "pipeline.cli.main", "chat", *words],
        cwd=engine.folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        **({"stdin": subprocess.DEVNULL} if typed is None else {"input": typed}),
    )


def test_a_piped_conversation_is_answered_line_by_line(engine):
    done = chat(
        engine, "hello\n\n/reset\nhello\n/what\n/quit\nnever read\n", "talk:one", "--temperature", "0", *SHORT
    )

    assert done.returncode == ExitCode.OK, done.stderr
    answers = done.stdout.splitlines()
    # After /reset the same message gets the same greedy answer; nothing after /quit is read.
    half = len(answers) // 2
    assert answers
    assert answers[:half] == answers[half:]
    assert "/what is no command" in done.stderr


def test_chat_without_a_terminal_or_a_pipe_says_what_to_do(engine):
    done = chat(engine, None, "talk:one")

    assert done.returncode == ExitCode.USER_ERROR
    assert "no terminal" in done.stderr
    assert "echo" in done.stderr


@pytest.fixture(scope="module")
def speaker(engine):
    store = Store(engine.folder / "store")
    return Speaker(find_committed(store, "talk", "one", base=Path(engine.folder / "base")))


def test_a_conversation_is_what_the_model_would_say_to_all_turns(speaker):
    voice = Voice(max_new_tokens=6)
    conversation = Conversation(speaker, voice, system="be brief")
    first = conversation.say("one")
    second = conversation.say("two")

    turns = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": "two"},
    ]
    assert second == speaker.answer([turns], voice)[0][0]
    conversation.reset()
    assert conversation.say("one") == first
