"""From one preference file to the inputs of every stage, split by prompt."""

from __future__ import annotations

import json

import pytest

from pipeline.contract import ArtifactKind, Checkpoint
from pipeline.errors import DataError
from reward.preferences.pairs import load_pairs
from reward.preferences.records import PreferenceRecord, Response, Vote, VoteKind, prompt_group
from stages.data import read_demonstrations, read_prompts
from stages.derivation import demonstrations, derive, dialogue, prompts
from stages.prepare import PrepareConfig, run
from stages.runtime.text.documents import read_documents
from tests.realdata import find_realdata
from tests.tiny import stage_context

LINES = (
    "amber birch cedar delta elm fern grove hazel",
    "iris juniper kelp lotus maple nettle oak pine",
)
WORDS = " ".join(LINES).split()


def record(prompt, better, worse, *, kind=VoteKind.STRICT):
    tiers = (("r0",), ("r1",)) if kind is VoteKind.STRICT else (("r0", "r1"),)
    return PreferenceRecord(
        prompt, (Response("r0", better), Response("r1", worse)), (Vote(tiers, kind),), line=1
    )


def prepare(root, path, **settings):
    source = Checkpoint(ArtifactKind.PREFERENCES, path, "0" * 64)
    return run(stage_context(root, PrepareConfig(**settings), {"preferences": source}))


@pytest.fixture
def pair_file(tmp_path):
    lines = [
        json.dumps({"prompt": f"what is {word} for", "chosen": f"good {word}", "rejected": f"bad {word}"})
        for word in WORDS
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(lines))
    return path


def test_every_output_is_read_by_the_stage_it_is_for(tmp_path, pair_file):
    result = prepare(tmp_path / "run", pair_file, held_out_share=0.25)

    out = result.outputs
    assert len(read_documents(out["text"])) == 24
    assert len(read_demonstrations(out["demonstrations"])[0]) == 12
    assert len(read_prompts(out["prompts"])) == 12
    assert len(load_pairs(out["preferences"]).pairs) == 12
    assert len(read_demonstrations(out["held_out_demonstrations"])[0]) == 4
    assert len(read_prompts(out["held_out_prompts"])) == 4
    assert len(load_pairs(out["held_out_preferences"]).pairs) == 4
    assert result.metrics["num_held_out_preferences"] == 4


def test_no_prompt_stands_on_both_sides(tmp_path, pair_file):
    out = prepare(tmp_path / "run", pair_file).outputs

    held_out = {pair.group for pair in load_pairs(out["held_out_preferences"]).pairs}
    trained = {pair.group for pair in load_pairs(out["preferences"]).pairs}
    trained |= {prompt_group(row.prompt) for row in read_prompts(out["prompts"])}
    trained |= {row.group for row in read_demonstrations(out["demonstrations"])[0]}
    trained |= {prompt_group(list(document[:-1])) for document in read_documents(out["text"])}
    assert held_out
    assert not held_out & trained


def test_the_same_seed_writes_the_same_bytes(tmp_path, pair_file):
    first, second = (dict(prepare(tmp_path / name, pair_file, seed=1).outputs) for name in "ab")
    other = prepare(tmp_path / "c", pair_file, seed=2).outputs

    reports = [out.pop("data_report") / "report.json" for out in (first, second)]
    assert reports[0].read_bytes() == reports[1].read_bytes()
    assert all(first[role].read_bytes() == second[role].read_bytes() for role in first)
    assert first["held_out_prompts"].read_bytes() != other["held_out_prompts"].read_bytes()


def test_a_demonstration_is_what_people_preferred_and_a_tie_gives_none():
    rows = demonstrations([record("p", "yes", "no"), record("q", "a", "b", kind=VoteKind.TIE)])

    assert rows == [{"prompt": "p", "completion": "yes"}]


def test_of_three_responses_the_one_that_beats_both_is_the_demonstration():
    responses = tuple(Response(f"r{i}", text) for i, text in enumerate(("low", "top", "mid")))
    ranked = PreferenceRecord("p", responses, (Vote((("r1",), ("r2",), ("r0",))),))
    shared = PreferenceRecord("p", responses, (Vote((("r1", "r2"), ("r0",))),))

    assert demonstrations([ranked]) == [{"prompt": "p", "completion": "top"}]
    assert demonstrations([shared]) == []


def test_text_holds_both_responses_of_a_pair():
    made = derive([record(word, "a", "b") for word in WORDS], held_out_share=0.2, seed=0)

    answers = [row["text"][-1]["content"] for row in made.text]
    assert answers.count("a") == answers.count("b") == len(made.preferences)


def test_a_dialogue_keeps_the_turns_before_the_response():
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "?"},
    ]

    assert dialogue(turns, "!")["text"] == [*turns, {"role": "assistant", "content": "!"}]


def test_a_prompt_judged_twice_is_asked_once():
    records = [record("p", "a", "b"), record("q", "a", "b"), record("p", "c", "d")]

    assert prompts(records) == [{"prompt": "p"}, {"prompt": "q"}]


def test_one_prompt_cannot_be_split():
    with pytest.raises(DataError, match="cannot be split by prompt"):
        derive([record("p", "a", "b")], held_out_share=0.5, seed=0)


def test_the_public_dialogues_give_every_valid_pair_to_one_side(tmp_path):
    result = prepare(tmp_path, find_realdata("hh-rlhf", "harmless-base-test.jsonl.gz"))

    metrics = result.metrics
    assert metrics["num_rejected"] == 9
    assert metrics["num_preferences"] + metrics["num_held_out_preferences"] == 2303
    assert metrics["num_held_out_preferences"] == pytest.approx(0.15 * 2303, abs=2)
