"""`triptych plan --gpu`: a row a stage, refusals with a remedy, and no torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cli import plan_memory
from pipeline.cli.main import main
from pipeline.memory.card_size import local_card
from tests.memory.shapes import LLAMA_8B, config_only

DATA = Path(__file__).resolve().parents[2] / "data" / "demo"
STAGES = """
name: planned
model: {base: base}
tuning: {method: qlora, gradient_checkpointing: true}
stages:
  sft:    {kind: sft, inputs: {demonstrations: DATA/sft.jsonl}, per_device_train_batch_size: 2}
  reward: {kind: reward, inputs: {policy: sft, preferences: DATA/preferences.jsonl}}
  dpo:    {kind: dpo, inputs: {policy: sft, preferences: DATA/preferences.jsonl}}
  ppo:    {kind: ppo, inputs: {policy: sft, reward: reward, prompts: DATA/prompts.jsonl}}
"""


@pytest.fixture
def run_file(tmp_path):
    config_only(tmp_path / "base", LLAMA_8B)
    file = tmp_path / "run.yaml"
    file.write_text(STAGES.replace("DATA", str(DATA)))
    return file


def _plan(file, *words):
    return main(["plan", str(file), "--store", str(file.parent / "store"), *words])


def test_a_card_that_holds_every_stage_is_accepted(run_file, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")

    assert _plan(run_file, "--gpu", "40GiB") == 0

    shown = capsys.readouterr().out
    assert "memory on 40GiB" in shown
    for stage in ("sft", "reward", "dpo", "ppo"):
        assert f"\n {stage} " in shown


def test_a_card_that_is_too_small_is_refused_stage_by_stage_with_a_remedy(run_file, capsys):
    assert _plan(run_file, "--gpu", "9GiB", "sft.per_device_train_batch_size=16") == 2

    errors = capsys.readouterr().err
    line = next(n for n, text in enumerate(run_file.read_text().splitlines(), 1) if " sft: " in text)
    assert f"run.yaml:{line}: stage 'sft' needs" in errors
    assert "the card has 9.0" in errors
    assert "try: per_device_train_batch_size: " in errors


def test_the_remedy_it_names_is_accepted(run_file, capsys):
    words = ("sft.per_device_train_batch_size=64", "ppo.generation_batch_size=8")
    assert _plan(run_file, "--gpu", "16GiB", *words) == 2
    remedy = capsys.readouterr().err.partition("per_device_train_batch_size: ")[2].split()[0]

    words = (f"sft.per_device_train_batch_size={remedy}", "ppo.generation_batch_size=8")
    assert _plan(run_file, "--gpu", "16GiB", *words) == 0


def test_the_json_form_holds_every_term_in_bytes(run_file, capsys):
    assert _plan(run_file, "--gpu", "40GiB", "--json") == 0

    memory = json.loads(capsys.readouterr().out)["memory"]
    sft = memory["stages"][0]
    assert memory["memory_bytes"] == 40 * 2**30
    assert sft["num_trained"] == 41_943_040
    assert sft["total"]["expected"] == pytest.approx(
        sum(term["expected"] for term in sft["terms"].values()), abs=len(sft["terms"])
    )


def test_without_a_card_nothing_is_said_of_memory(run_file, capsys, monkeypatch):
    monkeypatch.setattr(plan_memory, "local_card", lambda: None)

    assert _plan(run_file) == 0

    assert "memory" not in capsys.readouterr().out


def test_a_base_with_unknown_experts_gets_no_plan_and_says_why(run_file, capsys):
    config = {**LLAMA_8B, "model_type": "deepseek_v3", "n_routed_experts": 8}
    (run_file.parent / "base" / "config.json").write_text(json.dumps(config))

    assert _plan(run_file, "--gpu", "9GiB") == 0

    assert (
        "sft: no plan, no memory plan for the experts of model_type 'deepseek_v3'" in capsys.readouterr().out
    )


def test_a_stage_that_computes_nothing_on_a_card_says_so(run_file, capsys):
    prepare = f"  prepared: {{kind: prepare, inputs: {{preferences: {DATA}/preferences.jsonl}}}}\n"
    run_file.write_text(run_file.read_text() + prepare)

    assert _plan(run_file, "--gpu", "40GiB") == 0

    assert "prepared: no plan, it computes nothing on a card" in capsys.readouterr().out


def test_a_base_made_by_a_pretrain_stage_is_planned_from_its_architecture(tmp_path, capsys):
    file = tmp_path / "run.yaml"
    sizes = "{model_type: llama, hidden_size: 64, intermediate_size: 128, num_hidden_layers: 2, "
    sizes += "num_attention_heads: 4}"
    file.write_text(
        f"name: scratch\nstages:\n  base: {{kind: pretrain, inputs: {{text: {DATA}/corpus.txt}}, "
        f"architecture: {sizes}, vocab_size: 512}}\n"
        f"  sft: {{kind: sft, inputs: {{base: base, demonstrations: {DATA}/sft.jsonl}}}}\n"
    )

    assert _plan(file, "--gpu", "8GiB", "--json") == 0

    stages = json.loads(capsys.readouterr().out)["memory"]["stages"]
    # Token table and head 2 * 512 * 64; a layer 4 * 64^2 + 3 * 64 * 128 + 2 * 64; the last norm 64.
    assert stages[0]["num_trained"] == 2 * 512 * 64 + 2 * (4 * 64**2 + 3 * 64 * 128 + 2 * 64) + 64
    # Rank 16: four maps 64 -> 64 and three between 64 and 128, in two layers.
    assert stages[1]["num_trained"] == 2 * 16 * (4 * 128 + 3 * 192)


FAKE_SMI = """#!/bin/sh
echo "$@" >> "$0.calls"
echo "Some Card, %d"
"""


@pytest.fixture
def card(tmp_path, monkeypatch):
    """Put an nvidia-smi first on the path that reports a card of so many MiB."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def report(mebibytes):
        (folder / "nvidia-smi").write_text(FAKE_SMI % mebibytes)
        (folder / "nvidia-smi").chmod(0o755)
        return folder / "nvidia-smi.calls"

    return report


def test_the_card_of_this_machine_is_asked_when_none_is_named(run_file, card, capsys):
    card(40960)

    assert _plan(run_file) == 0

    assert "memory on Some Card, 40.0 GiB" in capsys.readouterr().out


def test_run_stops_before_it_starts_when_a_stage_cannot_fit_this_card(run_file, card, capsys):
    card(4096)

    assert main(["run", str(run_file), "--store", str(run_file.parent / "store")]) == 2

    assert "stage 'sft' needs" in capsys.readouterr().err
    assert not (run_file.parent / "store" / "stages").exists()


def test_hidden_cards_do_not_count_and_the_first_visible_one_is_asked(card, monkeypatch):
    calls = card(4096)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert local_card() is None

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    assert local_card().memory_bytes == 4 * 2**30
    assert calls.read_text().startswith("-i 3 ")


@pytest.mark.parametrize(
    ("method", "said"),
    [("pissa", "moves the base's weights"), ("ia3", "only LoRA forms"), ("dora", "use_dora: true")],
)
def test_a_tuning_that_cannot_be_handed_on_is_refused_with_the_reason(run_file, capsys, method, said):
    assert _plan(run_file, f"tuning.method={method}") == 2

    assert said in capsys.readouterr().err


WHOLE = """
name: whole
model: {base: base}
tuning: {method: full, gradient_checkpointing: true}
stages:
  sft:    {kind: sft, inputs: {demonstrations: DATA/sft.jsonl}, per_device_train_batch_size: 1}
  reward: {kind: reward, inputs: {policy: sft, preferences: DATA/preferences.jsonl}}
  dpo:    {kind: dpo, inputs: {policy: sft, preferences: DATA/preferences.jsonl}}
"""


def test_whole_models_are_handed_on_and_ppo_on_them_is_refused(tmp_path, capsys):
    config_only(tmp_path / "base", {**LLAMA_8B, "hidden_size": 512, "num_hidden_layers": 4})
    file = tmp_path / "run.yaml"
    file.write_text(WHOLE.replace("DATA", str(DATA)))
    assert _plan(file, "--gpu", "40GiB") == 0

    ppo = "  ppo:    {kind: ppo, inputs: {policy: sft, reward: reward, prompts: DATA/prompts.jsonl}}\n"
    file.write_text((WHOLE + ppo).replace("DATA", str(DATA)))
    assert _plan(file) == 2

    errors = capsys.readouterr().err
    assert "stage 'sft' gives model (full_model), and this input takes adapter" in errors
    assert "stage 'reward' gives full_reward_model" in errors


def test_planning_memory_loads_no_torch(run_file):
    words = ["plan", str(run_file), "--store", str(run_file.parent / "store"), "--gpu", "40GiB"]
    code = (
        f"import sys; from pipeline.cli.main import main; main({words}); "
        "heavy = {'torch', 'transformers', 'peft', 'numpy'} & set(sys.modules); sys.exit(len(heavy))"
    )

    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
