"""The whole chain through the front door: run, run again, change one key, verify, move, break."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from safetensors.torch import load_file

from tests.chain import DEMO, small_demo, triptych
from tests.metric_names import undocumented
from tests.readme_tree import documented_commands

STAGES = ["base", "sft", "reward", "dpo", "ppo", "evaluate"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which the cut-down demo has run once."""
    folder = tmp_path_factory.mktemp("chain")
    result = small_demo(folder=folder)
    assert result.returncode == 0, result.stdout + result.stderr
    key = Ed25519PrivateKey.generate()
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / "key.pub").write_bytes(public)
    return folder


def records(folder: Path) -> dict[str, dict]:
    """Return the record of every committed stage by name."""
    found = [json.loads(path.read_text()) for path in folder.glob("store/stages/*/*/record.json")]
    return {record["stage"]: record for record in found}


def test_every_stage_of_the_demo_is_committed(finished: Path) -> None:
    assert sorted(records(finished)) == sorted(STAGES)


def test_every_stage_proved_at_step_0_that_it_is_its_parent(finished: Path) -> None:
    metrics = {name: record["metrics"] for name, record in records(finished).items()}

    for stage in ("sft", "reward", "dpo", "ppo"):
        assert metrics[stage]["handover/logit_difference"] < 1e-5
        assert metrics[stage]["handover/num_trainable"] > 0
    assert metrics["dpo"]["handover/kl"] < 1e-6
    assert metrics["dpo"]["handover/loss_minus_ln2"] < 1e-4
    assert metrics["ppo"]["handover/kl"] < 1e-6
    assert metrics["ppo"]["ppo/first_ratio_error"] == 0


TRL_NAMES = {
    "sft": {"num_tokens", "mean_token_accuracy", "entropy"},
    "reward": {"loss", "rewards/accuracies", "rewards/margins", "learning_rate", "grad_norm"},
    "dpo": {
        *("rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins"),
        *("logps/chosen", "logps/rejected", "loss"),
    },
    "ppo": {
        *("objective/kl", "objective/entropy", "objective/non_score_reward", "objective/rlhf_reward"),
        *("objective/scores", "policy/approxkl_avg", "policy/clipfrac_avg", "policy/entropy_avg"),
        *("loss/policy_avg", "loss/value_avg", "val/clipfrac_avg", "val/ratio", "val/num_eos_tokens"),
        *("lr", "episode", "eps"),
    },
}
"Names of TRL's trainers, which dashboards know; for PPO those of its former PPOTrainer."


@pytest.mark.parametrize("stage", STAGES)
def test_what_a_stage_logs_is_in_the_table_of_metrics_under_trls_names(stage: str, finished: Path) -> None:
    record = records(finished)[stage]
    (file,) = finished.glob(f"store/stages/*/{record['key']}/metrics.jsonl")
    logged = {name for line in file.open() for name in json.loads(line)["metrics"]}

    assert undocumented(record["kind"], {*logged, *record["metrics"]}) == []
    assert TRL_NAMES.get(stage, set()) <= logged
    if stage != "evaluate":
        assert {"num_tokens", "tokens_per_second"} <= logged
    assert record["cost"]["num_tokens"] > 0
    assert record["cost"]["peak_memory_bytes"] > 10_000_000


def test_a_second_run_computes_nothing(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.glob("store/stages/*/*/*")}

    again = small_demo(folder=finished)

    assert again.returncode == 0
    assert all(f"{stage}: reused" in again.stdout + again.stderr for stage in STAGES)
    assert {path: path.stat().st_mtime_ns for path in finished.glob("store/stages/*/*/*")} == before


def test_a_changed_kl_coef_runs_ppo_and_what_follows_it_only(finished: Path) -> None:
    plan = small_demo("ppo.kl_coef=0.11", "--json", folder=finished, command="plan")
    actions = {stage["name"]: stage["action"] for stage in json.loads(plan.stdout)["stages"]}

    assert [name for name in STAGES if actions[name] != "reuse"] == ["ppo", "evaluate"]


def test_the_run_ends_with_a_table_of_base_prompted_base_and_every_policy(finished: Path) -> None:
    key = records(finished)["evaluate"]["key"]
    table = json.loads((finished / "store" / "stages" / key[:2] / key / "table" / "table.json").read_text())

    names = [row[0] for row in table["rows"]]
    assert {"base", "sft", "dpo", "ppo"} < set(names)
    assert len(names) == 5


def test_the_report_is_one_small_page_without_an_outside_address(finished: Path) -> None:
    page = finished / "store" / "runs" / "demo" / "report.html"

    assert page.stat().st_size < 2_000_000
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", page.read_text(encoding="utf-8"))


def test_one_flipped_bit_is_found_and_named_and_the_run_mends_it(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "copy")
    key = records(finished)["dpo"]["key"]
    weights = tmp_path / "copy" / "store" / "stages" / key[:2] / key / "adapter" / "adapter_model.safetensors"
    weights.chmod(0o644)
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(bytes(damaged))

    result = triptych("verify", "demo", folder=tmp_path / "copy")

    assert result.returncode == 1
    assert "adapter_model.safetensors" in result.stdout + result.stderr


def test_a_store_that_was_moved_verifies(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "store", tmp_path / "elsewhere" / "store")

    result = triptych("verify", "demo", folder=tmp_path / "elsewhere")

    assert result.returncode == 0, result.stdout + result.stderr


def test_no_committed_byte_names_the_folder_or_the_user(finished: Path) -> None:
    here = str(finished).encode()
    files = [path for path in finished.glob("store/stages/*/*/**/*") if path.is_file()]

    assert files
    assert not [path for path in files if here in path.read_bytes()]


def test_the_policies_start_from_the_sft_adapter_and_leave_it(finished: Path) -> None:
    adapters = {}
    for stage in ("sft", "dpo", "ppo"):
        key = records(finished)[stage]["key"]
        folder = finished / "store" / "stages" / key[:2] / key / "adapter"
        adapters[stage] = load_file(folder / "adapter_model.safetensors")

    for stage in ("dpo", "ppo"):
        moved = [float((adapters[stage][n] - t).abs().max()) for n, t in adapters["sft"].items()]
        # A reset adapter would have lora_B near 0 and lora_A drawn anew: far from the parent.
        assert 0 < max(moved) < 0.05


@pytest.mark.parametrize(
    ("page", "command"),
    [pytest.param(*entry, id=f"{entry[0]}: {entry[1]}"[:90]) for entry in documented_commands()],
)
def test_every_documented_command_works(page: str, command: str, finished: Path) -> None:
    command, _, file = command.partition(" > ")
    words = shlex.split(command)
    if words[0] == "make" or ("configs/" in command and "demo.yaml" not in command):
        pytest.skip("make runs in CI; other run files need a model or data of the reader's own")
    if words[0] == "python":
        assert importlib.util.find_spec(words[2]) is not None
        return
    root = Path(__file__).parents[1]
    if words[1] in ("run", "plan"):
        rest = [
            re.sub("(?<==)data/", f"{root}/data/", word) for word in words[2:] if word != "configs/demo.yaml"
        ]
        result = small_demo(*rest, folder=finished, command=words[1])
    else:
        local = [str(root / word) if (root / word).is_file() else word for word in words[1:]]
        result = triptych(*local, folder=finished)

    assert result.returncode == 0, f"{page}: {command}\n{result.stdout}{result.stderr}"
    if file:
        (finished / file).write_text(result.stdout)


def test_blind_questions_are_asked_of_the_policies_that_are_there(finished: Path) -> None:
    blind = DEMO.parents[1] / "data" / "demo" / "blind.jsonl"

    planned = small_demo(
        "name=blind", f"evaluate.inputs.prompts={blind}", "evaluate.seed=9", folder=finished, command="plan"
    ).stdout.splitlines()

    reused = {line.split()[0] for line in planned if " reuse " in line}
    assert reused == {"base", "sft", "reward", "dpo", "ppo"}
    assert any(line.startswith("evaluate") and " run " in line for line in planned)


def test_the_reward_card_is_shown_and_measured_again_on_another_file(finished: Path) -> None:
    shown = triptych("reward", "card", "demo", folder=finished)
    few = finished / "few.jsonl"
    lines = (DEMO.parents[1] / "data" / "demo" / "preferences.jsonl").read_text().splitlines()
    few.write_text("\n".join(lines[:60]) + "\n")

    again = triptych("reward", "card", "demo:reward", "--on", "few.jsonl", "--json", folder=finished)
    wrong = triptych("reward", "card", "demo:sft", folder=finished)

    record = next(record for record in records(finished).values() if record["kind"] == "reward")
    assert f"{record['metrics']['accuracy']:.3f}" in shown.stdout
    assert "floor: length" in shown.stdout
    card = json.loads(again.stdout)
    assert 0 < card["num_pairs"] <= 60
    assert "majority" not in card["floors"]
    assert wrong.returncode == 2
    assert "no finished reward model" in wrong.stderr
