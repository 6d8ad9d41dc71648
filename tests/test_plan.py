"""The plan says what will run and why, and preflight says everything that is wrong, before a step."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.contract import ArtifactKind
from pipeline.errors import ConfigError
from pipeline.inputs import FromUser
from pipeline.plan import make_plan, recipe_changes
from pipeline.preflight import LEAST_FREE_BYTES, disk_findings, preflight
from tests.fakes.engine import CHAIN, Engine


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return Engine(tmp_path / "work")


def _told(engine: Engine, *overrides: str) -> dict[str, tuple[str, str]]:
    plan = make_plan(engine.load(*overrides), engine.store)
    return {stage.name: (stage.action, stage.reason) for stage in plan.stages}


def test_before_the_first_run_only_first_stages_have_a_key(engine: Engine) -> None:
    plan = make_plan(engine.load(), engine.store)

    assert [stage.key is None for stage in plan.stages] == [False, True, True]
    assert _told(engine) == {
        "first": ("run", "not run yet"),
        "second": ("wait", "run, unless the output of first comes out unchanged"),
        "third": ("wait", "run, unless the output of second and first comes out unchanged"),
    }
    assert not engine.store.root.exists(), "a plan writes nothing"


def test_after_a_run_everything_is_reused(engine: Engine) -> None:
    engine.run_here()

    assert {action for action, _ in _told(engine).values()} == {"reuse"}


def test_the_reason_names_the_setting_with_both_values(engine: Engine) -> None:
    engine.run_here()

    told = _told(engine, "second.rate=3", "second.steps=4")

    assert told["first"][0] == "reuse"
    assert told["second"] == ("run", "rate 2.0 -> 3.0, steps 3 -> 4")


def test_the_reason_names_the_input_that_changed(engine: Engine) -> None:
    engine.run_here()
    (engine.folder / "corpus.txt").write_text("HELLO\n")

    assert _told(engine)["first"] == ("run", "input text holds something else")


def test_the_reason_names_a_new_version_of_the_stage() -> None:
    before = {"kind": "ppo", "version": 1, "config": {}, "inputs": {}}

    assert recipe_changes(before, {**before, "version": 2}) == ["version 1 -> 2"]


def test_roles_of_the_users_choice_count_in_their_order() -> None:
    before = {"config": {}, "inputs": {}, "order": ["sft", "dpo"]}

    assert recipe_changes(before, {**before, "order": ["dpo", "sft"]}) == ["inputs are in another order"]


def test_an_attempt_that_did_not_finish_will_be_continued(engine: Engine) -> None:
    engine.run_here("second.trouble=user")

    assert _told(engine)["second"] == ("run", "continues an attempt that did not finish")


def test_a_stage_whose_result_was_deleted_says_so(engine: Engine) -> None:
    engine.run_here()
    folder = engine.stage_folders()["first"]
    folder.rename(engine.folder / "away")

    assert _told(engine)["first"] == ("run", "its stored result is gone")


def test_a_damaged_result_is_named_in_the_plan_and_nothing_is_written(engine: Engine) -> None:
    engine.run_here()
    weights = engine.stage_folders()["first"] / "model" / "model.safetensors"
    weights.unlink()
    before = sorted(engine.folder.rglob("*"))

    action, reason = _told(engine)["first"]

    assert action == "run"
    assert "model/model.safetensors is missing" in reason
    assert sorted(engine.folder.rglob("*")) == before


def test_preflight_gathers_findings_of_inputs_cards_and_disk(engine: Engine) -> None:
    engine.run_here()
    plan = make_plan(engine.load("second.rate=-1", "third.rate=-2"), engine.store)

    with pytest.raises(ConfigError) as caught:
        preflight(plan, engine.store)

    places = [(finding.code, finding.where.rpartition("/")[2]) for finding in caught.value.findings]
    # The second rate stands in line 6 of the file, the third only on the command line.
    assert [code for code, _ in places] == ["bad-rate", "bad-rate"]
    assert all(place for _, place in places)


def test_too_little_room_is_said_with_both_numbers(engine: Engine) -> None:
    plan = make_plan(engine.load(), engine.store)

    assert disk_findings(plan, engine.store, free=LEAST_FREE_BYTES) == []
    (finding,) = disk_findings(plan, engine.store, free=LEAST_FREE_BYTES - 1)
    assert finding.message == "too little room: 256.0 MiB free, the run needs about 256.0 MiB"
    assert finding.code == "disk-full"


def test_a_run_that_only_reuses_needs_no_room(engine: Engine) -> None:
    engine.run_here()

    assert disk_findings(make_plan(engine.load(), engine.store), engine.store, free=0) == []


def test_a_full_copy_of_a_users_model_needs_room_for_four(tmp_path: Path) -> None:
    engine = Engine(
        tmp_path / "work",
        text='name: {name}\ntracking: {{wandb: "off"}}\n'
        "stages: {{only: {{kind: tests.fakes.adder, inputs: {{parent: llama}}}}}}\n",
    )
    llama = engine.folder / "llama"
    llama.mkdir()
    (llama / "config.json").write_text("{}")
    (llama / "model.safetensors").write_bytes(bytes(1000))
    plan = make_plan(engine.load(), engine.store)
    origin = plan.stages[0].wired.inputs["parent"]

    assert isinstance(origin, FromUser)
    assert origin.kind == ArtifactKind.FULL_MODEL
    assert disk_findings(plan, engine.store, free=LEAST_FREE_BYTES + 4000) == []
    assert disk_findings(plan, engine.store, free=LEAST_FREE_BYTES + 3999) != []


def test_the_same_stage_in_another_run_file_has_the_same_key(engine: Engine, tmp_path: Path) -> None:
    other = Engine(tmp_path / "elsewhere", text=CHAIN.replace("first", "sft"), name="other")

    keys = [make_plan(run.load(), run.store).stages[0].key for run in (engine, other)]

    assert keys[0] == keys[1]
