"""A run file means what it says: scalars, shared settings, overrides, places."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.load import load_run
from pipeline.config.overrides import apply
from pipeline.config.schema import run_schema
from pipeline.config.source import plain_scalar, read
from tests import fake_cards
from tests.config.test_mistakes import GOOD, load


@pytest.fixture(autouse=True)
def _cards(monkeypatch):
    fake_cards.install(monkeypatch)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("5E3", 5000.0),
        (".5", 0.5),
        ("3.", 3.0),
        ("-7", -7),
        ("0", 0),
        ("true", True),
        ("False", False),
        ("", None),
        ("~", None),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("off", "off"),
        ("010", "010"),
        ("0o17", "0o17"),
        ("0x10", "0x10"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("2026-11-21", "2026-11-21"),
        (".inf", ".inf"),
        (".nan", ".nan"),
        ("1e999", "1e999"),
    ],
)
def test_plain_scalars_follow_the_core_schema(text, value):
    result = plain_scalar(text)

    assert (result, type(result)) == (value, type(value))


def test_quoted_scalars_stay_text(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("a: '1e-5'\nb: \"true\"\nc: |\n  1\n")

    assert read(path).values == {"a": "1e-5", "b": "true", "c": "1\n"}


@given(st.dictionaries(st.text("abcxyz", min_size=1), st.integers() | st.booleans() | st.text("ab :#-\n")))
def test_what_a_yaml_writer_writes_is_read_back(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("yaml") / "a.yaml"
    path.write_text(yaml.safe_dump(values or {"a": 1}))

    # Integers past 18 digits stay text: JSON cannot hold them exactly.
    small = {key: str(v) if isinstance(v, int) and abs(v) >= 10**18 else v for key, v in values.items()}
    assert read(path).values == (small or {"a": 1})


def test_a_stage_takes_the_shared_settings_and_its_own_win_key_by_key(tmp_path):
    text = GOOD.replace("beta: 0.2", "beta: 0.2\n    seed: 1\n    tuning: {lora_alpha: 8}")

    run = load(tmp_path, text)

    sft, dpo = run.stage_configs["sft"], run.stage_configs["dpo"]
    assert (sft.seed, sft.tuning.lora_r, sft.tuning.lora_alpha) == (7, 4, 32)
    assert (dpo.seed, dpo.tuning.lora_r, dpo.tuning.lora_alpha) == (1, 4, 8)
    assert dpo.model.dtype == "float32"


def test_a_stage_may_undo_a_shared_setting_with_null(tmp_path):
    text = GOOD.replace("beta: 0.2", "beta: 0.2\n    model: {base: null}")

    run = load(tmp_path, text)

    assert run.stage_configs["dpo"].model.base is None
    assert run.stage_configs["sft"].model.base == "some/model"


def test_shared_settings_do_not_reach_a_card_that_has_no_such_field(tmp_path):
    run = load(tmp_path, GOOD + "  evaluate: {kind: evaluate}\n")

    assert run.stage_configs["evaluate"].model_dump() == {"seed": 7, "num_samples": 64, "architecture": {}}


def test_a_block_with_every_line_commented_out_means_defaults(tmp_path):
    run = load(tmp_path, GOOD.replace("  base: some/model\n  dtype: float32", "  # dtype: float32"))

    assert run.config.model.dtype == "auto"


def test_off_is_a_word_of_the_tracking_block(tmp_path):
    run = load(tmp_path, GOOD + "tracking: {wandb: off}\n")

    assert run.config.tracking.wandb == "off"


def test_overrides_set_single_keys_and_later_ones_win(tmp_path):
    run = load(
        tmp_path,
        GOOD,
        "dpo.beta=1e-2",
        "stages.sft.learning_rate=1",
        "sft.learning_rate=2",
        "tuning.lora_alpha=64",
        "dpo.gate={max_loss: 3}",
        "dpo.inputs.preferences=a: b #c.jsonl",
        "dpo.tuning.target_modules=[q_proj, v_proj]",
    )

    dpo = run.stage_configs["dpo"]
    assert dpo.beta == 0.01
    assert run.stage_configs["sft"].learning_rate == 2
    assert dpo.tuning.lora_alpha == 64
    assert run.config.stages["dpo"].gate == {"max_loss": 3}
    assert run.config.stages["dpo"].inputs["preferences"] == "a: b #c.jsonl"
    assert dpo.tuning.target_modules == ("q_proj", "v_proj")


def test_overrides_do_not_change_the_source_they_start_from(tmp_path):
    (tmp_path / "run.yaml").write_text(GOOD)
    source = read(tmp_path / "run.yaml")

    changed = apply(source, ["dpo.beta=1"])

    assert changed.values["stages"]["dpo"]["beta"] == 1
    assert source.values["stages"]["dpo"]["beta"] == 0.2


def test_where_names_the_line_the_command_line_or_the_nearest_parent(tmp_path):
    run = load(tmp_path, GOOD, "dpo.loss_type=ipo")
    file = str(tmp_path / "run.yaml")

    assert run.where("dpo.beta") == f"{file}:16"
    assert run.where("stages.dpo.inputs.policy") == f"{file}:15"
    assert run.where("dpo.loss_type") == "command line: dpo.loss_type"
    assert run.where("dpo.tuning.lora_r") == f"{file}:7"
    assert run.where("dpo.max_steps") == f"{file}:14"
    assert run.where("tracking.wandb") == file


def test_the_resolved_run_loads_again_as_the_same_run(tmp_path):
    run = load(tmp_path, GOOD)
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(json.loads(json.dumps(run.resolved()))))

    second = load_run(again)

    assert second.resolved() == run.resolved()
    assert second.stage_configs == run.stage_configs


def test_the_schema_holds_every_setting_with_its_help():
    schema = run_schema()

    block = schema["$defs"]["stage_dpo"]
    assert block["properties"]["beta"]["description"] == "Strength of the pull to the reference."
    assert block["properties"]["beta"]["exclusiveMinimum"] == 0
    assert set(block["properties"]["inputs"]["properties"]) == {"base", "policy", "preferences"}
    assert block["additionalProperties"] is False
    assert schema["properties"]["stages"]["additionalProperties"]["properties"]["kind"]["enum"] == [
        "dpo",
        "evaluate",
        "ppo",
        "sft",
    ]
    assert "in_key" not in json.dumps(schema)


def test_the_schema_takes_a_block_whose_lines_are_all_comments():
    for name in ("model", "tuning", "tracking"):
        assert {"type": "null"} in run_schema()["properties"][name]["anyOf"]


def test_every_reference_of_the_schema_is_defined():
    schema = run_schema()
    text = json.dumps(schema)

    names = {part.split('"')[0] for part in text.split("#/$defs/")[1:]}
    assert names <= set(schema["$defs"])


def test_loading_is_not_confused_by_a_byte_order_mark_or_windows_lines(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())

    assert load_run(path).where("dpo.beta") == f"{path}:16"


def test_a_path_object_is_kept_as_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(GOOD)

    assert load_run(Path("run.yaml")).where("seed") == "run.yaml:2"


def test_a_chat_template_is_found_beside_the_run_file(tmp_path):
    (tmp_path / "mine.jinja").write_text("{{ messages }}")
    text = GOOD.replace("dtype: float32", "dtype: float32\n  chat_template: mine.jinja")

    run = load(tmp_path, text)
    changed = load(tmp_path, text, "model.chat_template=qwen3")

    assert run.stage_configs["sft"].model.chat_template == str(tmp_path / "mine.jinja")
    assert changed.stage_configs["sft"].model.chat_template == "qwen3"
