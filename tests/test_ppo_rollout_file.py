"""Responses of training that are published: as samples for the report and for annotation."""

from __future__ import annotations

import json

import pytest

from pipeline.errors import Interrupted
from pipeline.report.artifacts import read_samples
from stages.ppo import SPEC
from stages.trainers.ppo.rollout_file import RESPONSES, RolloutFile
from tests.chain import triptych
from tests.ppo_setup import PROMPTS, chain, config
from tests.tiny import ManualStop, stage_context


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return chain(tmp_path_factory.mktemp("chain"))


@pytest.fixture(scope="module")
def published(inputs, tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    ctx = stage_context(root, config(total_iterations=3, rollout_prompts=2), inputs)
    return SPEC.run(ctx).outputs["rollouts"], ctx.logger.lines


def samples_of(folder):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def test_every_response_to_the_first_prompts_is_kept_with_its_scores(published):
    folder, lines = published

    samples = samples_of(folder)

    # 3 iterations of 8 responses over 6 prompts: each prompt is answered 4 times.
    assert [sample["prompt"] for sample in samples] == list(PROMPTS[:2])
    assert [len(sample["by"]) for sample in samples] == [4, 4]
    for answer in (answer for sample in samples for answer in sample["by"].values()):
        scores = answer["scores"]
        assert scores["score"] == pytest.approx(scores["score_model"] + scores["score_reward_function"])
        assert scores["score_reward_function"] == answer["text"].count("a")
        assert scores["reward"] == pytest.approx(scores["score"] - (not answer["finished"]), abs=1e-5)
        assert 1 <= answer["tokens"] <= 12
    first = [sample["by"][name] for sample in samples for name in sample["by"] if name == "iteration 1"]
    assert all(answer["scores"]["kl"] == 0.0 for answer in first)
    assert lines[0]["objective/kl"] == 0.0


def test_the_report_and_the_annotation_export_read_them(published, tmp_path):
    folder, _ = published

    shown = read_samples(folder, "ppo")
    done = triptych(
        "data",
        "export",
        str(folder / "samples.jsonl"),
        "--to",
        "labelstudio",
        "--out",
        "round",
        folder=tmp_path,
    )

    assert [len(sample.answers) for sample in shown.samples] == [4, 4]
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tasks" in done.stdout


def test_by_default_nothing_is_kept(inputs, tmp_path):
    result = SPEC.run(stage_context(tmp_path, config(total_iterations=1), inputs))

    assert "rollouts" not in result.outputs
    assert (tmp_path / "scratch" / "rollouts" / RESPONSES).read_text() == ""


def test_an_interrupted_stage_gives_the_same_rollouts(published, inputs, tmp_path):
    settings = config(total_iterations=3, rollout_prompts=2)
    with pytest.raises(Interrupted):
        SPEC.run(stage_context(tmp_path, settings, inputs, stop=ManualStop(after=0)))

    result = SPEC.run(stage_context(tmp_path, settings, inputs))

    file = "samples.jsonl"
    assert (result.outputs["rollouts"] / file).read_bytes() == (published[0] / file).read_bytes()


def test_lines_after_the_checkpoint_and_a_torn_last_line_are_dropped(tmp_path):
    path = tmp_path / RESPONSES
    line = {"iteration": 1, "number": 0, "id": "0", "prompt": "p", "text": "é", "scores": {}}
    kept = {**line, "tokens": 1, "finished": True}
    lines = [json.dumps({**kept, "iteration": i}, ensure_ascii=False) for i in (1, 2, 3)]
    path.write_text("\n".join(lines) + '\n{"iteration": 2, "te', encoding="utf-8")

    RolloutFile(tmp_path, [], finished=2)

    assert [json.loads(text)["iteration"] for text in path.read_text().splitlines()] == [1, 2]
