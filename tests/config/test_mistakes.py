"""Every mistake in a run file is named with its place and a remedy, all in one go."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.load import LoadedRun, load_run
from pipeline.errors import ConfigError
from tests import fake_cards

# Line 1 is `name`; the planted faults below refer to these numbers.
GOOD = """\
name: demo
seed: 7
model:
  base: some/model
  dtype: float32
tuning:
  lora_r: 4
stages:
  sft:
    kind: sft
    inputs: {demonstrations: sft.jsonl}
    learning_rate: 1e-3
  dpo:
    kind: dpo
    inputs: {policy: sft, preferences: pairs.jsonl}
    beta: 0.2
    gate: {min_loss: 0.1}
"""


@pytest.fixture(autouse=True)
def _cards(monkeypatch):
    fake_cards.install(monkeypatch)


def load(folder: Path, text: str, *overrides: str) -> LoadedRun:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return load_run(path, overrides)


# (what is replaced, by what, code, line, a word the message or hint must hold)
FAULTS = [
    pytest.param(
        "learning_rate:", "learnig_rate:", "unknown-key", 12, "try: learning_rate", id="misspelt-key"
    ),
    pytest.param("lora_r: 4", "lora_rr: 4", "unknown-key", 7, "try: lora_r", id="misspelt-shared-key"),
    pytest.param("seed: 7", "sead: 7", "unknown-key", 2, "try: seed", id="misspelt-top-key"),
    pytest.param(
        "beta: 0.2", "lora_r: 8", "unknown-key", 16, "stages.dpo.tuning.lora_r", id="tuning-key-in-stage"
    ),
    pytest.param("seed: 7", "beta: 1", "unknown-key", 2, "stages.dpo.beta", id="stage-key-at-top"),
    pytest.param("seed: 7", "lora_r: 8", "unknown-key", 2, "tuning.lora_r", id="tuning-key-at-top"),
    pytest.param("learning_rate:", "lr:", "unknown-key", 12, "try: learning_rate", id="name-from-elsewhere"),
    pytest.param("    beta: 0.2", "    settings: {}", "unknown-key", 16, "directly", id="settings-block"),
    pytest.param("dtype: float32", "dtype: fp32", "bad-choice", 5, "float32", id="bad-choice"),
    pytest.param("lora_r: 4", "lora_r: four", "wrong-type", 7, '"four"', id="word-for-number"),
    pytest.param("lora_r: 4", "lora_r: 4.5", "wrong-type", 7, "whole number", id="fraction-for-count"),
    pytest.param("lora_r: 4", "lora_r: true", "wrong-type", 7, "true", id="true-for-count"),
    pytest.param("beta: 0.2", "beta: true", "wrong-type", 16, "true", id="true-for-stage-number"),
    pytest.param("lora_r: 4", "lora_r: 0", "out-of-range", 7, "at least 1", id="too-small"),
    pytest.param("beta: 0.2", "beta: -1", "out-of-range", 16, "greater than 0", id="stage-number-too-small"),
    pytest.param("1e-3", "1e999", "wrong-type", 12, "finite number", id="overflow"),
    pytest.param("1e-3", ".nan", "wrong-type", 12, "learning_rate must be a number", id="nan"),
    pytest.param("1e-3", "1:30", "wrong-type", 12, "1:30", id="sexagesimal"),
    pytest.param("base: some/model", "base: 12", "wrong-type", 4, 'base: "12"', id="number-for-text"),
    pytest.param("name: demo", "name: my demo", "bad-value", 1, "my demo", id="bad-run-name"),
    pytest.param("name: demo", "name:", "wrong-type", 1, "null", id="empty-name"),
    pytest.param("name: demo\n", "", "missing-key", None, "name", id="no-name"),
    pytest.param("kind: dpo", "kind: ddpo", "unknown-kind", 14, "kind: dpo", id="unknown-kind"),
    pytest.param("    kind: dpo\n", "", "missing-key", 13, "kind: dpo", id="no-kind"),
    pytest.param("seed: 7", "ppo: {kind: ppo}", "unknown-key", 2, "stages.ppo", id="stage-at-top"),
    pytest.param("policy: sft", "polcy: sft", "unknown-input", 15, "try: policy", id="misspelt-role"),
    pytest.param("policy: sft, ", "", "missing-input", 15, "policy", id="missing-role"),
    pytest.param("min_loss", "min_los", "bad-gate", 17, "min_loss", id="gate-on-unknown-metric"),
    pytest.param("min_loss", "loss", "bad-gate", 17, "min_loss", id="gate-without-side"),
    pytest.param("{min_loss: 0.1}", "{min_loss: low}", "wrong-type", 17, "low", id="gate-not-a-number"),
    pytest.param("  dpo:", "  d.po:", "bad-name", 13, "d.po", id="stage-name-with-dot"),
    pytest.param("  dpo:", "  model:", "bad-name", 13, "model", id="stage-named-like-a-key"),
    pytest.param("seed: 7", "seed: 7\nseed: 8", "duplicate-key", 3, "run.yaml:2", id="repeated-key"),
    pytest.param("beta: 0.2", "hf_token: abc", "secret", 16, "env:HF_TOKEN", id="secret"),
    pytest.param("some/model", "https://me:pw@host/x", "secret", 4, "env:BASE", id="password-in-address"),
    pytest.param("seed: 7", "a: &x 7", "yaml-feature", 2, "&x", id="anchor"),
    pytest.param("seed: 7", "seed: *x", "yaml-feature", 2, "*x", id="alias"),
    pytest.param("seed: 7", "seed: !!python/name:os.system", "yaml-feature", 2, "python", id="tag"),
    pytest.param("  lora_r: 4", "\tlora_r: 4", "yaml-syntax", 7, "spaces", id="tab"),
    pytest.param("seed: 7", "seed: 7: 8", "yaml-syntax", 2, "quote", id="colon-in-value"),
    pytest.param("seed: 7", "seed: [7", "yaml-syntax", None, "not YAML", id="open-bracket"),
    pytest.param("seed: 7", "? [a, b]\n: 7", "bad-key", 2, "one word", id="list-as-key"),
    pytest.param(
        "stages:\n  sft", "---\nstages:\n  sft", "yaml-syntax", 8, "one run a file", id="two-documents"
    ),
]


@pytest.mark.parametrize(("old", "new", "code", "line", "word"), FAULTS)
def test_one_mistake_gives_one_finding_with_its_line_and_a_remedy(tmp_path, old, new, code, line, word):
    assert GOOD.count(old) == 1

    with pytest.raises(ConfigError) as caught:
        load(tmp_path, GOOD.replace(old, new))

    (finding,) = caught.value.findings
    place = str(tmp_path / "run.yaml") + (f":{line}" if line else "")
    assert finding.code == code
    assert finding.where == place if line else finding.where.startswith(place)
    assert word in str(finding)
    assert len(str(caught.value).splitlines()) < 10


def test_the_good_file_loads_without_a_finding(tmp_path):
    run = load(tmp_path, GOOD)

    assert run.config.name == "demo"


def test_all_mistakes_of_a_file_are_reported_in_the_order_of_its_lines(tmp_path):
    text = (
        GOOD.replace("seed: 7", "sed: 7").replace("lora_r: 4", "lora_r: 0").replace("kind: sft", "kind: sfft")
    )
    text = text.replace("beta: 0.2", "beta: high")

    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)

    lines = [int(finding.where.rpartition(":")[2]) for finding in caught.value.findings]
    assert lines == [2, 7, 10, 16]


def test_a_mistake_in_a_shared_block_is_reported_once_however_many_stages_take_it(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, GOOD.replace("dtype: float32", "dtyp: float32"))

    assert [finding.where.rpartition(":")[2] for finding in caught.value.findings] == ["5"]


def test_a_mistake_on_the_command_line_is_placed_there(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, GOOD, "dpo.bata=0.5", "dpo.learning_rate=fast", "dpoo.beta=1")

    findings = {finding.where: str(finding) for finding in caught.value.findings}
    assert set(findings) == {
        "command line: dpo.bata",
        "command line: dpo.learning_rate",
        "command line: dpoo.beta",
    }
    assert "try: beta" in findings["command line: dpo.bata"]
    assert "try: stages.dpo" in findings["command line: dpoo.beta"]


@pytest.mark.parametrize(
    ("override", "word"),
    [
        pytest.param("dpo.beta", "no '='", id="no-equals"),
        pytest.param("=3", "no key", id="no-key"),
        pytest.param("dpo..beta=3", "no key", id="empty-part"),
        pytest.param("seed.x=3", "has no key", id="below-a-number"),
        pytest.param("dpo.inputs={a: b", "not YAML", id="open-mapping"),
    ],
)
def test_an_override_that_cannot_be_read_is_refused(tmp_path, override, word):
    with pytest.raises(ConfigError, match="command line") as caught:
        load(tmp_path, GOOD, override)

    assert word in str(caught.value)


def test_a_secret_is_never_repeated_in_the_message(tmp_path):
    secret = "hf_" + "a1B2" * 9

    with pytest.raises(ConfigError) as caught:
        load(tmp_path, GOOD.replace("some/model", secret))

    assert secret not in str(caught.value)


def test_names_of_text_tokens_and_token_counts_are_not_taken_for_secrets(tmp_path):
    text = GOOD + "  evaluate: {kind: evaluate, architecture: {pad_token: <pad>, max_new_tokens: 3}}\n"

    run = load(tmp_path, text)

    assert run.stage_configs["evaluate"].architecture == {"pad_token": "<pad>", "max_new_tokens": 3}


def test_a_missing_file_is_named_with_the_nearest_name(tmp_path):
    (tmp_path / "demo.yaml").write_text(GOOD)

    with pytest.raises(ConfigError, match=r"there is no file .*dmo\.yaml\n.*try: .*demo\.yaml"):
        load_run(tmp_path / "dmo.yaml")


@pytest.mark.parametrize(
    ("content", "code"),
    [
        pytest.param(b"", "empty-file", id="empty"),
        pytest.param(b"# only a comment\n", "empty-file", id="comment-only"),
        pytest.param(b"- a\n- b\n", "not-a-mapping", id="list"),
        pytest.param(b"name: \xff\n", "not-utf8", id="latin-1"),
        pytest.param(b"name: a\x00b\n", "yaml-syntax", id="nul"),
        pytest.param(b"#" * (1 << 20) + b"#", "file-too-large", id="large"),
        pytest.param(b"a: " + b"[" * 5000, "yaml-feature", id="deep"),
    ],
)
def test_a_file_that_is_no_run_file_gives_one_clear_error(tmp_path, content, code):
    path = tmp_path / "run.yaml"
    path.write_bytes(content)

    with pytest.raises(ConfigError) as caught:
        load_run(path)

    (finding,) = caught.value.findings
    assert finding.code == code
    assert finding.where.startswith(str(path))


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is a folder"):
        load_run(tmp_path)
