"""Roles find their stage, file or model; kinds fit; the base model is inherited."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import hub, registry
from pipeline.config.run import ModelConfig, RunConfig, StageEntry
from pipeline.config.strict import StrictModel
from pipeline.contract import ArtifactKind
from pipeline.errors import ConfigError
from pipeline.fingerprint import file_digest, hub_digest
from pipeline.inputs import FromStage, FromUser, Wiring, wire
from pipeline.kinds import kind_of_path
from tests.fakes import shapes

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeRun:
    """A run file without a file."""

    folder: Path
    stages: dict[str, dict[str, Any]]
    model: ModelConfig = field(default_factory=ModelConfig)

    @property
    def config(self) -> RunConfig:
        return RunConfig(name="x", stages={name: StageEntry(**entry) for name, entry in self.stages.items()})

    @property
    def stage_configs(self) -> Mapping[str, StrictModel]:
        return {name: shapes.ModelSettings(model=self.model) for name in self.stages}

    @property
    def path(self) -> Path:
        return self.folder / "run.yaml"

    def where(self, dotted_key: str) -> str:
        return dotted_key

    def resolved(self) -> dict[str, Any]:
        return {}

    def wire(self) -> Wiring:
        return wire(self, file_digest)


def _model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text(folder.name)
    return folder


PRETRAIN = {"kind": "tests.fakes.shapes"}
POLICY = {"kind": "tests.fakes.shapes.policy"}


def test_stages_come_parents_first_and_else_in_file_order(tmp_path: Path) -> None:
    run = FakeRun(
        tmp_path,
        {
            "late": {**POLICY, "inputs": {"policy": "middle"}},
            "base": PRETRAIN,
            "middle": {**POLICY, "inputs": {"base": "base"}},
            "alone": PRETRAIN,
        },
    )

    assert [stage.name for stage in run.wire().require()] == ["base", "middle", "late", "alone"]


def test_the_output_whose_kind_fits_is_chosen(tmp_path: Path) -> None:
    run = FakeRun(
        tmp_path,
        {
            "base": PRETRAIN,
            "policy": {**POLICY, "inputs": {"base": "base"}},
            "next": {**POLICY, "inputs": {"policy": "policy", "value": "policy"}},
        },
    )

    inputs = run.wire().require()[2].inputs

    assert inputs["policy"] == FromStage(ArtifactKind.ADAPTER, "policy", "adapter")
    assert inputs["value"] == FromStage(ArtifactKind.VALUE_MODEL, "policy", "value")


def test_an_output_that_the_settings_leave_out_cannot_be_taken(tmp_path: Path, monkeypatch) -> None:
    spec = registry.find("tests.fakes.shapes.policy")
    find = registry.find
    lesser = replace(spec, absent_outputs=lambda config: ("value",))
    monkeypatch.setattr(registry, "find", lambda kind: lesser if kind == spec.kind else find(kind))
    run = FakeRun(
        tmp_path,
        {
            "base": PRETRAIN,
            "policy": {**POLICY, "inputs": {"base": "base"}},
            "named": {**POLICY, "inputs": {"policy": "policy", "value": "policy.value"}},
            "chosen": {**POLICY, "inputs": {"policy": "policy", "value": "policy"}},
        },
    )

    messages = [finding.message for finding in run.wire().findings]

    assert messages[0] == "stage 'policy' gives no 'value' with its settings"
    assert "gives adapter (adapter), and this input takes value_model" in messages[1]


def test_an_output_can_be_named(tmp_path: Path) -> None:
    run = FakeRun(tmp_path, {"base": PRETRAIN, "next": {**POLICY, "inputs": {"base": "base.model"}}})

    assert run.wire().require()[1].inputs["base"] == FromStage(ArtifactKind.FULL_MODEL, "base", "model")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"policy": "base"}, "stage 'base' gives model (full_model), and this input takes adapter"),
        ({"policy": "base.model"}, "'base.model' is a full_model, and this input takes adapter"),
        ({"policy": "bsae"}, "no stage, file or model 'bsae'"),
        ({"data": "bsae"}, "no stage or file 'bsae'"),
    ],
)
def test_an_input_that_does_not_fit_is_named_with_its_place(
    tmp_path: Path, given: dict[str, str], words: str
) -> None:
    (role,) = given
    run = FakeRun(tmp_path, {"base": PRETRAIN, "next": {**POLICY, "inputs": {"base": "base", **given}}})

    (finding,) = run.wire().findings

    assert words in finding.message
    assert finding.where == f"stages.next.inputs.{role}"
    if "bsae" in words:
        assert finding.hint == "base"


def test_the_base_is_inherited_through_every_generation(tmp_path: Path) -> None:
    run = FakeRun(
        tmp_path,
        {
            "base": PRETRAIN,
            "sft": {**POLICY, "inputs": {"base": "base"}},
            "dpo": {**POLICY, "inputs": {"policy": "sft"}},
            "round2": {**POLICY, "inputs": {"policy": "dpo"}},
        },
    )

    stages = run.wire().require()

    assert stages[3].inputs["base"] == FromStage(ArtifactKind.FULL_MODEL, "base", "model")
    assert stages[3].parents == ("base", "dpo")


def test_parents_on_different_bases_are_an_error(tmp_path: Path) -> None:
    run = FakeRun(
        tmp_path,
        {
            "one": PRETRAIN,
            "two": PRETRAIN,
            "left": {**POLICY, "inputs": {"base": "one"}},
            "right": {**POLICY, "inputs": {"base": "two"}},
            "both": {**POLICY, "inputs": {"policy": "left", "value": "right"}},
        },
    )

    (finding,) = run.wire().findings

    assert finding.code == "bases-differ"
    assert "left on one, right on two" in finding.message


def test_the_base_of_the_model_block_serves_stages_without_parents(tmp_path: Path) -> None:
    folder = _model(tmp_path / "llama")
    run = FakeRun(tmp_path, {"sft": POLICY}, ModelConfig(base="llama"))

    base = run.wire().require()[0].inputs["base"]

    assert isinstance(base, FromUser)
    assert base.path == folder.resolve()
    assert base.source == "llama"


def test_a_missing_base_is_said_with_both_ways_out(tmp_path: Path) -> None:
    (finding,) = FakeRun(tmp_path, {"sft": POLICY}).wire().findings

    assert finding.code == "missing-base"
    assert "model: {base:" in finding.hint
    assert "inputs: {base:" in finding.hint


def test_a_wrong_base_is_said_once_for_all_stages(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    run = FakeRun(tmp_path, {"one": POLICY, "two": POLICY}, ModelConfig(base="empty"))

    (finding,) = run.wire().findings

    assert (finding.where, finding.code) == ("model.base", "wrong-model-path")


def test_a_path_is_looked_up_beside_the_run_file_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "runs").mkdir()
    for folder in ("here", "runs"):
        (tmp_path / folder / "both.jsonl").write_text(folder)
    (tmp_path / "here" / "only.jsonl").write_text("here")
    monkeypatch.chdir(tmp_path / "here")
    stages = {"base": PRETRAIN}
    for name in ("both", "only"):
        stages[name] = {**POLICY, "inputs": {"base": "base", "data": f"{name}.jsonl"}}

    found = [stage.inputs["data"] for stage in FakeRun(tmp_path / "runs", stages).wire().require()[1:]]

    assert [origin.path.parent.name for origin in found] == ["runs", "here"]


def test_a_hub_model_counts_by_id_and_commit_of_the_local_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--acme--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    _model(repository / "snapshots" / COMMIT)

    base = (
        FakeRun(tmp_path, {"sft": POLICY}, ModelConfig(base="acme/tiny")).wire().require()[0].inputs["base"]
    )

    assert isinstance(base, FromUser)
    assert base.fingerprint == hub_digest("acme/tiny", COMMIT)
    assert base.source == f"acme/tiny@{COMMIT}"
    assert base.path == repository / "snapshots" / COMMIT


def test_a_hub_model_that_is_nowhere_is_an_error_when_offline_and_fetched_later_when_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    run = FakeRun(tmp_path, {"sft": POLICY}, ModelConfig(base="acme/tiny"))

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (finding,) = run.wire().findings
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    base = run.wire().require()[0].inputs["base"]

    assert "HF_HUB_OFFLINE" in finding.message
    assert isinstance(base, FromUser)
    assert base.fingerprint is None
    assert base.model == hub.HubModel("acme/tiny", "main")


@pytest.mark.parametrize("text", ["../secret", "/etc/passwd", "a/b/c", "a b", "", "org/..", "-x"])
def test_what_is_no_hub_id_is_never_looked_up(text: str) -> None:
    assert not hub.looks_like_hub_id(text)


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({"config.json": "{}"}, ArtifactKind.FULL_MODEL),
        ({"adapter_config.json": '{"task_type": "CAUSAL_LM"}', "config.json": "{}"}, ArtifactKind.ADAPTER),
        ({"adapter_config.json": '{"task_type": "SEQ_CLS"}'}, ArtifactKind.REWARD_MODEL),
    ],
)
def test_a_model_folder_says_what_it_is(tmp_path: Path, files: dict[str, str], kind: ArtifactKind) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)

    assert kind_of_path(tmp_path, tuple(ArtifactKind)) == kind


def test_a_folder_without_a_model_and_a_file_in_its_place_are_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_text("")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "adapter_config.json").write_text("{")

    for path, words in (
        (tmp_path, "holds neither config.json nor adapter_config.json"),
        (tmp_path / "weights.safetensors", "is a file; a model is a folder"),
        (tmp_path / "broken", "is not readable JSON"),
    ):
        with pytest.raises(ConfigError, match=words):
            kind_of_path(path, (ArtifactKind.FULL_MODEL,))


@pytest.mark.parametrize(
    ("name", "kind"),
    [("gold.py", ArtifactKind.FUNCTION), ("a.txt", ArtifactKind.TEXT), ("a.jsonl", ArtifactKind.PROMPTS)],
)
def test_a_file_of_a_free_role_is_told_by_its_ending(tmp_path: Path, name: str, kind: ArtifactKind) -> None:
    (tmp_path / name).write_text("")
    allowed = (ArtifactKind.ADAPTER, ArtifactKind.PROMPTS, ArtifactKind.TEXT, ArtifactKind.FUNCTION)

    assert kind_of_path(tmp_path / name, allowed) == kind


def test_the_wiring_of_a_real_adapter_folder_is_read_as_json(tmp_path: Path) -> None:
    folder = tmp_path / "sft"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"task_type": "CAUSAL_LM", "r": 16}))
    (folder / "adapter_model.safetensors").write_text("weights")
    run = FakeRun(
        tmp_path, {"base": PRETRAIN, "dpo": {**POLICY, "inputs": {"base": "base", "policy": "sft"}}}
    )

    origin = run.wire().require()[1].inputs["policy"]

    assert isinstance(origin, FromUser)
    assert origin.kind == ArtifactKind.ADAPTER
