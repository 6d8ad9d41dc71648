"""The sample stage on tiny models: what people get to judge, and an account of all other answers."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.main import main
from pipeline.config.load import load_run
from pipeline.contract import ArtifactKind, Checkpoint, StageCheck, StageResult
from pipeline.disk import Disk
from pipeline.errors import DataError, ExitCode, Interrupted
from pipeline.runner import Runner
from reward.preferences.exchange.completions import Completion, comparisons
from reward.preferences.writers import read_records
from stages.evaluation import sampling
from stages.sample import SampleConfig, check, run
from tests.evaluation.test_evaluate import adapter, write_rows
from tests.fakes.engine import Engine, InProcess, Recorder
from tests.tiny import ManualStop, as_checkpoint, stage_context

SETTINGS = {"max_new_tokens": 96, "max_length": 400, "seed": 3, "samples_per_prompt": 6}


def answer(text: str, finished: bool = True) -> Completion:
    return Completion(text, finished)


def test_answers_that_nobody_could_judge_are_left_out_and_counted() -> None:
    asked = [("p0", "one?"), ("p1", "two?"), ("p2", "three?")]
    answers = [
        [answer("a"), answer(" a "), answer("b"), answer("c"), answer("")],
        [answer("x"), answer("y", finished=False), answer("x")],
        [answer("u"), answer("v")],
    ]

    found = comparisons(asked, answers, source="run:sft@123", most=2)

    assert [(record.id, [r.text for r in record.responses]) for record in found.records] == [
        ("p0", ["a", "b"]),
        ("p2", ["u", "v"]),
    ]
    assert found.left_out == {"equal": 2, "spare": 1, "empty": 1, "cut": 1}
    assert found.unusable == ["p1"]
    assert {r.source for record in found.records for r in record.responses} == {"run:sft@123"}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory, tiny_base: Checkpoint) -> dict[str, Checkpoint]:
    folder = tmp_path_factory.mktemp("shelf")
    prompts = write_rows(folder / "prompts.jsonl", [{"id": f"p{n}", "prompt": f"say {n}"} for n in range(8)])
    return {
        "base": tiny_base,
        "policy": adapter(folder / "sft", tiny_base, seed=1),
        "prompts": as_checkpoint(prompts, ArtifactKind.PROMPTS),
    }


def sampled(root: Path, inputs: dict[str, Checkpoint], **settings: Any) -> StageResult:
    return run(stage_context(root, SampleConfig(**{**SETTINGS, **settings}), inputs))


def test_every_answer_is_in_a_comparison_or_counted(shelf: dict[str, Checkpoint], tmp_path: Path) -> None:
    result = sampled(tmp_path, shelf)

    records, rejected = read_records(result.outputs["comparisons"])
    kept = sum(len(record.responses) for record in records)
    counted = {name: int(value) for name, value in result.metrics.items()}
    left_out = sum(counted.get(f"num_{reason}", 0) for reason in ("empty", "cut", "equal", "spare"))
    alone = 8 * SETTINGS["samples_per_prompt"] - kept - left_out
    assert rejected == 0
    assert len(records) == counted["num_comparisons"] > 0
    assert counted["num_comparisons"] + counted["num_unusable"] == counted["num_prompts"] == 8
    # What remains is the one good answer of a prompt that has no second.
    assert 0 <= alone <= counted["num_unusable"]
    for record in records:
        texts = [response.text for response in record.responses]
        assert len(texts) == len(set(texts)) == 2
        assert all(text.strip() for text in texts)
        assert {response.finish for response in record.responses} == {"stop"}
        assert {response.source for response in record.responses} == {
            f"sft@{shelf['policy'].fingerprint[:12]}"
        }


def test_the_same_seed_draws_the_same_answers_whatever_the_batch(
    shelf: dict[str, Checkpoint], tmp_path: Path
) -> None:
    first, again, other = (
        sampled(tmp_path / name, shelf, **settings).outputs["comparisons"].read_text()
        for name, settings in (("a", {}), ("b", {"generation_batch_size": 5}), ("c", {"seed": 4}))
    )

    assert first == again
    assert first != other


def test_prompts_that_are_answered_in_parts_draw_other_random_numbers_in_each(
    shelf: dict[str, Checkpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "PROMPTS_AT_ONCE", 2)
    same = write_rows(tmp_path / "same.jsonl", [{"id": f"p{n}", "prompt": "say it"} for n in range(4)])
    inputs = {**shelf, "prompts": as_checkpoint(same, ArtifactKind.PROMPTS)}

    given: list[list[str]] = []

    def keep(prompts: Any, answers: Any, **options: Any) -> Any:
        held = list(answers)
        given.extend([said.text for said in texts] for texts in held)
        return comparisons(prompts, held, **options)

    monkeypatch.setattr(sampling, "comparisons", keep)
    with contextlib.suppress(DataError):  # nobody judges these answers
        sampled(tmp_path, inputs)

    # Equal prompts in two parts: with the same random numbers the third would be answered like the first.
    assert len(given) == 4
    assert given[0] != given[2]
    assert given[1] != given[3]


def test_without_a_policy_the_base_answers(shelf: dict[str, Checkpoint], tmp_path: Path) -> None:
    alone = {role: given for role, given in shelf.items() if role != "policy"}

    with_policy, of_base = sampled(tmp_path / "a", shelf), sampled(tmp_path / "b", alone)

    texts = [
        json.loads(result.outputs["comparisons"].read_text().splitlines()[0])
        for result in (with_policy, of_base)
    ]
    assert texts[0]["responses"][0]["text"] != texts[1]["responses"][0]["text"]
    assert texts[1]["responses"][0]["source"].endswith(shelf["base"].fingerprint[:12])


def test_a_stop_is_heard_and_a_prompt_without_room_is_refused(
    shelf: dict[str, Checkpoint], tmp_path: Path
) -> None:
    stop = ManualStop()
    stop.event.set()
    with pytest.raises(Interrupted):
        run(stage_context(tmp_path / "a", SampleConfig(**SETTINGS), shelf, stop=stop))

    with pytest.raises(DataError, match="no prompt leaves room"):
        sampled(tmp_path / "b", shelf, max_length=97)


def test_too_few_draws_are_found_before_anything_runs(shelf: dict[str, Checkpoint]) -> None:
    config = SampleConfig(samples_per_prompt=2, responses_per_prompt=3)

    (finding,) = check(StageCheck("sample", config, shelf))

    assert "responses_per_prompt 3 is more than samples_per_prompt" in finding.message


RUN = """\
name: ask
seed: 1
model: {base: base}
tuning: {lora_r: 2}
tracking: {wandb: "off"}
stages:
  one: {kind: tests.fakes.policy}
  ask:
    kind: sample
    inputs: {policy: one, prompts: prompts.jsonl}
    max_new_tokens: 96
    max_length: 400
    samples_per_prompt: 6
"""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, tiny_base: Checkpoint) -> Engine:
    """A finished run with a policy and what it was asked."""
    engine = Engine(tmp_path_factory.mktemp("ask") / "work", text=RUN, name="ask")
    (engine.folder / "base").symlink_to(tiny_base.path)
    write_rows(engine.folder / "prompts.jsonl", [{"id": f"p{n}", "prompt": f"say {n}"} for n in range(8)])
    runner = Runner(load_run(engine.file), engine.store, Recorder(), start=InProcess(Disk(None)))
    assert runner.go() == ExitCode.OK
    return engine


def export(*words: str) -> int:
    return main(["data", "export", *words, "--store", "store", "--to", "csv", "--out", "round"])


def test_what_a_sample_stage_gave_is_sent_to_people(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(engine.folder)

    assert export("ask:ask") == 0

    said = capsys.readouterr().out
    key = json.loads(Path("round/key.json").read_text())
    shown = Path("round/tasks-a01.csv").read_text("utf-8-sig")
    assert f"{len(key['tasks'])} tasks" in said
    sources = {r["source"] for record in key["comparisons"].values() for r in record["responses"]}
    assert len(sources) == 1
    assert sources.pop().startswith("one@")
    assert "one@" not in shown


def test_prompts_alone_are_answered_by_the_policy_that_is_named(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(engine.folder)

    words = ("prompts.jsonl", "--policy", "ask:one", "--n", "6", "--max-new-tokens", "96")
    assert export(*words) == 0

    said = capsys.readouterr().out
    assert "8 prompts, 6 answers each; left out: " in said
    key = json.loads(Path("round/key.json").read_text())
    assert all(len(record["responses"]) == 2 for record in key["comparisons"].values())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("prompts.jsonl",), "--policy RUN:STAGE lets a policy answer them"),
        (("ask:one",), "is no file and no finished stage with one file of comparisons"),
        (("prompts.jsonl", "--policy", "ask:one", "--n", "1"), "--n and --keep are at least 2"),
        (("prompts.jsonl", "--policy", "ask:one", "--temperature", "0"), "greedy answers are all equal"),
        (("prompts.jsonl", "--policy", "ask:two"), "run 'ask' has no stage 'two'"),
        (("missing.jsonl", "--policy", "ask:one"), "there is no file"),
    ],
)
def test_a_mistake_is_told_with_its_remedy(
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(engine.folder)

    assert export(*words) == 2

    assert message in capsys.readouterr().err
