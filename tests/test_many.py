"""How several processes are started, told apart, and how their end is read."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path

import pytest
import torch
from accelerate.data_loader import SeedableRandomSampler

from pipeline.config.accelerate import AccelerateConfig
from pipeline.errors import ExitCode, Finding
from pipeline.launch import died
from pipeline.many import LOST_RANK, launch_command, rank_folder, verdict
from pipeline.place import Place
from pipeline.work import Failure, WorkFolder
from stages.config import OptimizationConfig
from stages.runtime.ranks import OneRank
from stages.sft import SftConfig, rows_a_rank
from stages.trainers.order import row_batches
from stages.trainers.pairs import make_batches
from stages.trainers.sft_ranks import IDLE, RankBatches, Share
from tests.pair_fixtures import token_pairs
from tests.test_layers import _at_module_level as at_module_level
from tests.test_layers import _imports as imports

PROCESS_GROUP = "stages.runtime.process_group"
PARTS = "stages.runtime.parts"
KILLED_TABLE = """
Root Cause (first observed failure):
[0]:
  time      : 2026-01-01_00:00:00
  rank      : 1 (local_rank: 1)
  exitcode  : -9 (pid: 77)
  traceback : Signal 9 (SIGKILL) received by PID 77
"""


def _work(folder: Path, **failures: Failure) -> WorkFolder:
    work = WorkFolder(folder)
    for name, failure in failures.items():
        path = rank_folder(work, int(name.removeprefix("rank"))).path
        path.mkdir(parents=True, exist_ok=True)
        (path / "failure.json").write_bytes(failure.to_bytes())
    return work


def _verdict(
    work: WorkFolder, *, log: str = "", returncode: int = 1, oom: bool = False, started: bool = True
) -> Failure | None:
    def say(code: int, who: str) -> Failure:
        return died(code, oom=oom, who=who)

    return verdict(work, 2, returncode=returncode, log=log, started=started, died=say)


LOST = Failure("killed", (Finding("another rank is gone", code=LOST_RANK),), ExitCode.KILLED)
BUG = Failure("bug", (Finding("a bug, KeyError: 'x'", code="bug"),))
BAD_DATA = Failure("user-error", (Finding("no usable row", "data.jsonl", code="no-usable-row"),), 2)
STOPPED = Failure("interrupted", (Finding("stopped", code="interrupted"),), ExitCode.INTERRUPTED)


def test_a_process_knows_its_place_from_the_launcher_and_is_alone_without_one() -> None:
    assert Place.of({}) == Place(0, 1, 0)
    assert Place.of({"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}) == Place(3, 4, 1)
    assert not Place(3, 4, 1).is_main


def test_ranks_that_end_well_have_no_failure(tmp_path: Path) -> None:
    assert _verdict(_work(tmp_path), returncode=0) is None


def test_a_killed_rank_is_the_cause_and_not_the_one_that_lost_it(tmp_path: Path) -> None:
    failure = _verdict(_work(tmp_path, rank0=LOST), log=KILLED_TABLE)

    assert failure is not None
    assert str(failure.findings[0].message) == "rank 1 of 2 was killed by SIGKILL"
    assert failure.exit_code == ExitCode.KILLED


def test_a_rank_killed_for_memory_is_told_from_one_that_somebody_killed(tmp_path: Path) -> None:
    failure = _verdict(_work(tmp_path, rank0=LOST), log=KILLED_TABLE, oom=True)

    assert failure is not None
    assert failure.outcome == "out-of-memory"
    assert "the operating system killed rank 1 of 2" in failure.findings[0].message


def test_a_rank_that_raised_is_the_cause_and_is_named(tmp_path: Path) -> None:
    failure = _verdict(_work(tmp_path, rank0=LOST, rank1=BUG))

    assert failure is not None
    assert failure.outcome == "bug"
    assert failure.findings[0].message == "rank 1 of 2: a bug, KeyError: 'x'"


def test_a_mistake_that_all_ranks_see_is_said_once_and_blames_none(tmp_path: Path) -> None:
    assert _verdict(_work(tmp_path, rank0=BAD_DATA, rank1=BAD_DATA)) == BAD_DATA


def test_ranks_that_stopped_when_asked_are_interrupted_though_all_ended_with_0(tmp_path: Path) -> None:
    assert _verdict(_work(tmp_path, rank0=STOPPED, rank1=STOPPED), returncode=0) == STOPPED


def test_a_rank_without_a_word_is_named_when_the_launcher_says_nothing(tmp_path: Path) -> None:
    failure = _verdict(_work(tmp_path, rank0=LOST))

    assert failure is not None
    assert failure.findings[0].message.startswith("rank 1 of 2 ended with exit code 1")


@pytest.mark.parametrize(
    ("returncode", "started", "message"),
    [
        pytest.param(-9, True, "accelerate launch was killed by SIGKILL", id="it was killed"),
        pytest.param(1, False, "accelerate launch ended with exit code 1", id="no rank ever lived"),
    ],
)
def test_a_launcher_that_fails_itself_is_named(
    tmp_path: Path, returncode: int, started: bool, message: str
) -> None:
    failure = _verdict(_work(tmp_path), returncode=returncode, started=started)

    assert failure is not None
    assert failure.findings[0].message.startswith(message)


def test_one_process_never_loads_the_code_of_several() -> None:
    """Only open_ranks does so, inside the branch for several."""
    root = Path(__file__).parents[1] / "stages"
    alone = {root / "runtime" / "process_group.py", root / "runtime" / "parts.py"}
    for path in sorted(set(root.rglob("*.py")) - alone):
        loaded = imports(at_module_level(ast.parse(path.read_text())))
        assert not {
            name for name in loaded if name.startswith(("torch.distributed", PROCESS_GROUP, PARTS))
        }, path


def test_the_command_holds_what_the_block_says(tmp_path: Path) -> None:
    block = AccelerateConfig(
        num_processes=8, num_machines=2, machine_rank=1, main_process_ip="10.0.0.1", main_process_port=4711
    )
    words = launch_command(tmp_path / "request.json", block, progress=tmp_path / "p", lock=tmp_path / "l")
    told = dict(pairwise(words))

    assert words[1:5] == ["-P", "-u", "-m", "accelerate.commands.launch"]
    assert told["--num_processes"] == "8"
    assert told["--num_machines"] == "2"
    assert told["--machine_rank"] == "1"
    assert told["--main_process_ip"] == "10.0.0.1"
    assert told["--main_process_port"] == "4711"
    assert told["--module"] == "pipeline.worker"


@pytest.mark.parametrize(
    ("backend", "flag"), [("ddp", "--multi_gpu"), ("fsdp2", "--multi_gpu"), ("deepspeed", "--use_deepspeed")]
)
def test_a_backend_is_a_flag_and_a_config_file_stands_for_it(tmp_path: Path, backend: str, flag: str) -> None:
    block = AccelerateConfig(num_processes=2, backend=backend)  # type: ignore[arg-type]
    paths = {"progress": tmp_path / "p", "lock": tmp_path / "l"}

    assert flag in launch_command(tmp_path / "request.json", block, **paths)
    words = launch_command(
        tmp_path / "request.json", block.model_copy(update={"config_file": "own.yaml"}), **paths
    )
    assert flag not in words
    assert words[words.index("--config_file") + 1] == "own.yaml"


def test_a_stage_takes_what_its_block_leaves_out_from_the_run() -> None:
    run = AccelerateConfig(num_processes=4, backend="fsdp2")

    assert AccelerateConfig(num_processes=2).over(run) == AccelerateConfig(num_processes=2, backend="fsdp2")
    assert AccelerateConfig().over(run) == run


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_a_step_is_cut_until_every_rank_has_as_much_to_do(packed: bool, ranks: int) -> None:
    pairs = token_pairs(11)
    numbers = range(len(pairs))
    whole = make_batches(pairs, numbers, max_tokens=10_000, packed=packed)
    cut = make_batches(pairs, numbers, max_tokens=10_000, packed=packed, ranks=ranks)

    assert len(whole) == 1
    assert len(cut) == ranks
    assert sorted(int(n) for batch in cut for n in batch.numbers) == list(numbers)
    # The weight of a pair is its share of the step, however the step is cut.
    weights = {int(n): float(w) for batch in cut for n, w in zip(batch.numbers, batch.weights, strict=True)}
    for number, weight in zip(whole[0].numbers.tolist(), whole[0].weights.tolist(), strict=True):
        assert weights[number] == pytest.approx(weight, rel=1e-6)
    sizes = [batch.input_ids.numel() for batch in cut]
    assert max(sizes) <= 0.8 * whole[0].input_ids.numel()


def test_more_ranks_than_pairs_leave_ranks_idle() -> None:
    assert len(make_batches(token_pairs(2), [0, 1], max_tokens=10_000, packed=True, ranks=4)) == 2


def test_rows_of_a_step_are_the_same_for_any_number_of_ranks() -> None:
    config = OptimizationConfig(per_device_train_batch_size=4, gradient_accumulation_steps=1)

    def rows(step: int, ranks: int) -> list[list[int]]:
        return row_batches(config, 10, ranks=ranks)(step)

    for step in range(4):
        assert [*chain(*rows(step, 2))] == [*chain(*rows(step, 1))]
    assert [len(part) for part in rows(0, 2)] == [2, 2]
    # The last step of an epoch holds two rows: one each.
    assert [len(part) for part in rows(2, 2)] == [1, 1]


def test_rank_0_works_in_the_folder_of_the_stage_and_others_beside_it(tmp_path: Path) -> None:
    work = WorkFolder(tmp_path)

    assert rank_folder(work, 0) == work
    assert rank_folder(work, 1).scratch == tmp_path / "ranks" / "rank-1" / "scratch"


@pytest.mark.parametrize(
    ("rows", "accumulated", "count", "expected"),
    [
        pytest.param(8, 4, 2, 8, id="whole micro-batches are handed out"),
        pytest.param(8, 1, 2, 4, id="one micro-batch is halved"),
        pytest.param(4, 3, 2, 3, id="three micro-batches of four are four of three"),
        pytest.param(8, 1, 3, None, id="eight rows are not divided by three"),
        pytest.param(1, 2, 4, None, id="more processes than rows"),
    ],
)
def test_the_rows_of_an_sft_step_are_divided_or_the_setting_is_refused(
    rows: int, accumulated: int, count: int, expected: int | None
) -> None:
    config = SftConfig(per_device_train_batch_size=rows, gradient_accumulation_steps=accumulated)

    assert rows_a_rank(config, count) == expected
    if expected is not None:
        share = Share.of(config, count)
        assert count * share.micro_batch * share.micro_batches == rows * accumulated == share.rows_a_step


@dataclass
class _Seat(OneRank):
    """A rank of several that never meets the others."""

    rank: int
    count: int

    def share(self, parts):
        return parts[self.rank :: self.count]


@pytest.mark.parametrize("num_rows", [16, 17, 18, 23, 3, 1])
@pytest.mark.parametrize("count", [2, 4])
def test_ranks_of_sft_take_every_row_once_in_the_steps_of_one_process(num_rows: int, count: int) -> None:
    config = SftConfig(per_device_train_batch_size=4, gradient_accumulation_steps=2)
    share = Share.of(config, count)
    ranks = [RankBatches(num_rows, share, _Seat(rank, count), seed=3) for rank in range(count)]
    order = list(SeedableRandomSampler(range(num_rows), generator=torch.Generator(), data_seed=3))

    taken = [list(batches) for batches in ranks]

    assert len({len(batches) for batches in taken}) == 1, "every rank takes as many turns"
    assert [len(batches) for batches in ranks] == [len(batches) for batches in taken]
    steps = range(0, num_rows, 8)
    for number, start in enumerate(steps):
        turns = [
            batches[number * share.micro_batches : (number + 1) * share.micro_batches] for batches in taken
        ]
        rows = sorted(row for part in turns for micro in part for row in micro if row != IDLE)
        assert rows == sorted(order[start : start + 8])


def test_another_epoch_of_sft_is_the_order_that_one_process_takes_then() -> None:
    config = SftConfig(per_device_train_batch_size=4, gradient_accumulation_steps=2)
    batches = RankBatches(8, Share.of(config, 2), _Seat(0, 2), seed=3)
    order = SeedableRandomSampler(range(8), generator=torch.Generator(), data_seed=3)

    batches.set_epoch(5)
    order.set_epoch(5)

    assert list(batches) == [list(order)[:4]]
