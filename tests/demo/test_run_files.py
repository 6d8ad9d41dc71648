"""Every shipped run file can be planned: its inputs exist, its stages fit together."""

from __future__ import annotations

import pytest

from tests.chain import ROOT, triptych
from tests.realdata import find_realdata

CONFIGS = ROOT / "configs"


def test_the_demo_plans_as_it_is(tmp_path):
    result = triptych("plan", str(CONFIGS / "demo.yaml"), folder=tmp_path)

    assert result.returncode == 0, result.stderr
    assert "0 reused, 6 to run" in result.stdout


@pytest.mark.parametrize("name", ["sft-dpo", "sft-reward-ppo"])
def test_a_starting_point_plans_with_a_local_model(tmp_path, tiny_base, name):
    base = f"model.base={tiny_base.path}"

    result = triptych("plan", str(CONFIGS / f"{name}.yaml"), base, folder=tmp_path)

    assert result.returncode == 0, result.stderr
    assert "to run" in result.stdout


def test_the_real_chain_plans_with_a_copy_of_the_data(tmp_path):
    data = find_realdata("hh-rlhf", "harmless-base-test.jsonl.gz")

    result = triptych(
        "plan",
        str(CONFIGS / "hh-rlhf-cpu.yaml"),
        f"data.inputs.preferences={data}",
        folder=tmp_path,
    )

    assert result.returncode == 0, result.stderr
    assert "0 reused, 7 to run" in result.stdout


def test_without_the_data_the_real_chain_names_the_missing_file(tmp_path):
    result = triptych("plan", str(CONFIGS / "hh-rlhf-cpu.yaml"), folder=tmp_path)

    assert result.returncode == 2
    assert "harmless-base-test.jsonl.gz" in result.stderr
    assert "Traceback" not in result.stderr
