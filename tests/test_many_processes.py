"""Two processes give what one gives: in every logged number and in the weights, whatever happens to them."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from pipeline.errors import ExitCode
from tests.many_setup import (
    assert_same_metrics,
    command,
    end,
    failure_of,
    is_alive,
    lines_of,
    parent_of,
    run,
    run_alone,
    run_until_step,
    said_at_the_end,
    stage_folder,
    verified,
    weight_distance,
    write_world,
)

TWO = "accelerate.num_processes=2"
PARTS = "accelerate.backend=fsdp2"
LONGER = ("reward.max_steps=14", "reward.save_steps=3")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("many"))


def test_a_killed_rank_is_named_and_the_same_command_goes_on(world: Path) -> None:
    assert run_alone(world, *LONGER, store="longer", until="reward") == 0
    child, ranks = run_until_step(world, TWO, *LONGER, store="killed", until="reward", step=4)
    end(ranks[1], signal.SIGKILL)
    said = said_at_the_end(child)

    assert child.returncode == ExitCode.KILLED
    assert "rank 1 of 2 was killed by SIGKILL" in said
    failure = failure_of(world, "killed")
    assert (failure["outcome"], failure["exit_code"]) == ("killed", ExitCode.KILLED)
    assert failure["findings"][0]["message"] == "rank 1 of 2 was killed by SIGKILL"
    again = run(world, TWO, *LONGER, store="killed", until="reward")
    assert again.returncode == 0, again.stderr
    # Steps up to the checkpoint are not logged twice, those after it are logged once.
    assert_same_metrics(world, "longer", "killed", "reward", within=1e-5)
    assert weight_distance(world, "longer", "killed", "reward") < 1e-6
    assert verified(world, "killed")
    one, two = (stage_folder(world, store, "reward") for store in ("longer", "killed"))
    assert one.name == two.name, "the number of processes is not in the key"
    assert "made by 2 processes (ddp)" in (two / "record.json").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["base_stage", "sft", "reward", "dpo", "ppo"])
def test_two_processes_give_the_stage_of_one(world: Path, stage: str) -> None:
    alone = run_alone(world, store="one", until=stage)
    both = run(world, TWO, store="two", until=stage)

    assert alone == both.returncode == 0, both.stderr
    assert_same_metrics(world, "one", "two", stage, within=1e-4)
    assert weight_distance(world, "one", "two", stage) < 1e-5
    assert verified(world, "two")


def test_ranks_that_hold_parts_of_the_base_give_the_stage_of_one(world: Path) -> None:
    assert_parts_give_the_same(world, "dpo", store="in_parts", one="whole")


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_every_stage_on_a_base_in_parts_is_that_of_one(world: Path, stage: str) -> None:
    assert_parts_give_the_same(world, stage, store=f"in_parts_{stage}", one="one")


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_layers_in_parts_are_recomputed_where_asked(world: Path, stage: str) -> None:
    again = f"{stage}.tuning.gradient_checkpointing=true"
    assert_parts_give_the_same(world, stage, again, store=f"again_{stage}", one="one")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "setting"),
    [("dpo", "dpo.per_device_train_batch_size=1"), ("ppo", "ppo.num_mini_batches=8")],
)
def test_a_rank_without_rows_runs_the_layers_with_the_others(world: Path, stage: str, setting: str) -> None:
    # One row a step: the second rank has none, and the first one needs its parts of the layers.
    alone = run_alone(world, setting, store="single_rows", until=stage)
    both = run(world, TWO, PARTS, setting, store="single_rows_in_parts", until=stage)

    assert alone == both.returncode == 0, both.stderr
    assert_same_metrics(world, "single_rows", "single_rows_in_parts", stage, within=1e-4)
    assert weight_distance(world, "single_rows", "single_rows_in_parts", stage) < 1e-5


@pytest.mark.slow
def test_a_base_in_parts_goes_on_after_a_kill_and_one_process_may_go_on_for_it(world: Path) -> None:
    assert run_alone(world, *LONGER, store="longer", until="reward") == 0
    child, ranks = run_until_step(world, TWO, PARTS, *LONGER, store="cut", until="reward", step=4)
    end(ranks[1], signal.SIGKILL)
    said = said_at_the_end(child)

    assert "rank 1 of 2 was killed by SIGKILL" in said
    assert run_alone(world, *LONGER, store="cut", until="reward") == 0
    assert_same_metrics(world, "longer", "cut", "reward", within=1e-5)
    assert weight_distance(world, "longer", "cut", "reward") < 1e-6


def assert_parts_give_the_same(world: Path, stage: str, *words: str, store: str, one: str) -> None:
    """Run a stage on a base in parts and by one process, and compare every number and weight."""
    alone = run_alone(world, store=one, until=stage)
    both = run(world, TWO, PARTS, *words, store=store, until=stage)

    assert alone == both.returncode == 0, both.stderr
    assert_same_metrics(world, one, store, stage, within=1e-4)
    assert weight_distance(world, one, store, stage) < 1e-5
    assert verified(world, store)
    assert "made by 2 processes (fsdp2)" in (stage_folder(world, store, stage) / "record.json").read_text()


@pytest.mark.slow
def test_rank_0_killed_is_named_and_one_process_may_go_on_for_two(world: Path) -> None:
    child, ranks = run_until_step(world, TWO, *LONGER, store="killed-0", until="reward", step=4)
    end(ranks[0], signal.SIGKILL)
    said = said_at_the_end(child)

    assert "rank 0 of 2 was killed by SIGKILL" in said
    run_alone(world, *LONGER, store="longer", until="reward")
    assert run(world, *LONGER, store="killed-0", until="reward").returncode == 0
    assert_same_metrics(world, "longer", "killed-0", "reward", within=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
@pytest.mark.parametrize(
    ("stage", "longer"),
    [("sft", ("sft.max_steps=14", "sft.save_steps=3")), ("ppo", ("ppo.total_iterations=6",))],
)
def test_a_stage_goes_on_from_the_checkpoint_of_two(
    world: Path, stage: str, longer: tuple[str, ...], how: signal.Signals
) -> None:
    store, alone = f"{stage}-{how.name}", f"longer-{stage}"
    child, ranks = run_until_step(world, TWO, *longer, store=store, until=stage, step=3)
    end(ranks[1] if how == signal.SIGKILL else child.pid, how)
    said = said_at_the_end(child)

    assert ("rank 1 of 2 was killed" if how == signal.SIGKILL else "was stopped after") in said
    assert run_alone(world, *longer, store=alone, until=stage) == 0
    assert run(world, TWO, *longer, store=store, until=stage).returncode == 0
    assert_same_metrics(world, alone, store, stage, within=1e-4)
    assert weight_distance(world, alone, store, stage) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("asked", ["the run", "rank 1"])
def test_a_stop_request_is_agreed_on_saved_and_gone_on_from(world: Path, asked: str) -> None:
    store = f"stopped-{asked.split()[-1]}"
    child, ranks = run_until_step(world, TWO, *LONGER, store=store, until="reward", step=4)
    end(child.pid if asked == "the run" else ranks[1], signal.SIGTERM)
    said = said_at_the_end(child)

    assert child.returncode == ExitCode.INTERRUPTED, said
    assert "was stopped after step" in said
    run_alone(world, *LONGER, store="longer", until="reward")
    assert run(world, TWO, *LONGER, store=store, until="reward").returncode == 0
    assert_same_metrics(world, "longer", store, "reward", within=1e-5)
    assert weight_distance(world, "longer", store, "reward") < 1e-6
    assert [line["step"] for line in lines_of(world, store, "reward") if "loss" in line] == list(range(1, 15))


@pytest.mark.slow
def test_two_machines_that_share_a_folder_give_the_stage_of_one(world: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    block = {"num_processes": 2, "num_machines": 2, "main_process_ip": "127.0.0.1", "main_process_port": port}
    words = [f"accelerate.{key}={value}" for key, value in block.items()]
    helper = subprocess.Popen(
        command(*words, "accelerate.machine_rank=1", store="machines", until="dpo"), cwd=world
    )
    first = run(world, *words, store="machines", until="dpo")

    assert first.returncode == 0, first.stderr
    assert helper.wait(timeout=60) == 0
    assert run_alone(world, store="one", until="dpo") == 0
    assert_same_metrics(world, "one", "machines", "dpo", within=1e-4)
    assert weight_distance(world, "one", "machines", "dpo") < 1e-5
    assert verified(world, "machines")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["asked twice", "killed", "without its launcher"])
def test_no_rank_outlives_its_run(world: Path, how: str) -> None:
    store = f"ended-{how.split()[0]}"
    child, ranks = run_until_step(world, TWO, "reward.max_steps=200", store=store, until="reward", step=3)
    if how == "asked twice":
        end(child.pid, signal.SIGTERM)
        time.sleep(0.05)
        end(child.pid, signal.SIGTERM)
    else:
        end(child.pid if how == "killed" else parent_of(ranks[0]), signal.SIGKILL)
    said = said_at_the_end(child)

    deadline = time.monotonic() + 20
    while any(map(is_alive, ranks.values())) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(ranks) == 2
    assert not any(map(is_alive, ranks.values()))
    if how == "without its launcher":
        assert "accelerate launch was killed by SIGKILL" in said


@pytest.mark.slow
def test_a_reward_function_that_raises_ends_all_ranks_with_its_own_message(world: Path) -> None:
    gold = (world / "gold.py").read_text()
    (world / "gold.py").write_text("def score(prompt, response, row):\n    raise KeyError('boom')\n")
    ended = run(world, TWO, store="raises", until="ppo")
    (world / "gold.py").write_text(gold)

    assert ended.returncode == ExitCode.USER_ERROR
    assert "rank 0 of 2: score() raised KeyError: 'boom'" in ended.stderr
