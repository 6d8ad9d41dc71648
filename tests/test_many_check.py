"""What `plan` and `run` refuse of several processes: what, where in the file, what to do."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from pipeline import registry
from pipeline.cli.main import main
from pipeline.config.accelerate import AccelerateConfig
from pipeline.config.load import load_run
from pipeline.errors import ConfigError
from pipeline.many import launch_command
from pipeline.many_check import many_findings
from pipeline.plan import make_plan
from pipeline.preflight import outlooks, preflight
from pipeline.store import Store
from tests.many_setup import write_world

SHIPPED = Path(__file__).parents[1] / "configs" / "accelerate"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("many"))


def found(kind: str, *, cards: int = 0, **block: object) -> list[tuple[str, str, str]]:
    accelerate = AccelerateConfig.model_validate(block)
    findings = many_findings(registry.find(kind), accelerate, cards=lambda: cards)
    return [(finding.message, finding.where, finding.hint) for finding in findings]


@pytest.mark.parametrize("kind", ["pretrain", "sft", "reward", "dpo", "ppo"])
def test_two_processes_with_ddp_are_fine_where_the_trainer_shares_its_steps(kind: str) -> None:
    assert found(kind, num_processes=2) == []


@pytest.mark.parametrize("kind", ["kto", "grpo", "rloo", "evaluate", "sample", "prepare", "reward_encoder"])
def test_a_stage_that_is_one_process_refuses_two(kind: str) -> None:
    assert found(kind, num_processes=2) == [
        (f"a {kind} stage runs as one process, not as 2", "accelerate.num_processes", "num_processes: 1")
    ]


@pytest.mark.parametrize("kind", ["sft", "reward", "dpo", "ppo"])
def test_stages_with_a_frozen_base_may_hold_it_in_parts(kind: str) -> None:
    assert found(kind, num_processes=2, backend="fsdp2") == []


@pytest.mark.parametrize(
    ("kind", "backend"),
    [("pretrain", "fsdp2"), *((kind, "deepspeed") for kind in ("sft", "reward", "dpo", "ppo", "pretrain"))],
)
def test_a_backend_that_a_trainer_does_not_have_is_refused(kind: str, backend: str) -> None:
    assert found(kind, num_processes=2, backend=backend) == [
        (f"a {kind} stage cannot be trained with {backend}", "accelerate.backend", "backend: ddp")
    ]


def test_more_processes_than_visible_gpus_are_refused_and_a_cpu_may_hold_any_number() -> None:
    message = "4 processes on this machine, but 2 visible GPUs"

    assert found("dpo", num_processes=4, cards=2)[0][:2] == (message, "accelerate.num_processes")
    assert found("dpo", num_processes=2, cards=2) == []
    assert found("dpo", num_processes=4, cards=0) == []


def test_machines_need_a_place_to_meet_and_an_even_share() -> None:
    messages = [message for message, _, _ in found("dpo", num_processes=3, num_machines=2, machine_rank=2)]

    assert messages == [
        "3 processes cannot be spread evenly over 2 machines",
        "machine_rank is 2, but there are 2 machines from 0",
        "2 machines need main_process_ip",
        "2 machines need main_process_port",
    ]


def test_settings_of_many_that_one_process_would_ignore_are_refused() -> None:
    assert found("sft", backend="fsdp2")[0][0] == "backend is fsdp2, but num_processes is 1"
    assert found("sft", num_machines=2)[0][0] == "num_machines is 2, but num_processes is 1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("distributed_type: FSDP\nfsdp_config: {fsdp_version: 1}", "but backend is ddp"),
        ("distributed_type: DEEPSPEED", "but backend is ddp"),
        ("distributed_type: TPU", "but backend is ddp"),
        ("[not, a, mapping]", "no accelerate config file"),
        ("{", "no accelerate config file"),
    ],
)
def test_an_accelerate_file_that_means_something_else_is_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(text)
    (said,) = found("dpo", num_processes=2, config_file=str(file))

    assert message in said[0]
    assert said[1] == "accelerate.config_file"


@pytest.mark.parametrize(
    ("backend", "file"),
    [("ddp", "ddp.yaml"), ("fsdp2", "fsdp2.yaml"), ("deepspeed", "deepspeed_zero3.yaml")],
)
def test_a_shipped_file_says_what_its_backend_says(backend: str, file: str, tmp_path: Path) -> None:
    given = yaml.safe_load((SHIPPED / file).read_text())
    block = AccelerateConfig.model_validate({"num_processes": 2, "backend": backend})
    words = launch_command(tmp_path / "r.json", block, progress=tmp_path / "p", lock=tmp_path / "l")
    told = {"num_processes": 2, "backend": backend, "config_file": str(SHIPPED / file)}
    options = {**given, **given.get("fsdp_config", {}), **given.get("deepspeed_config", {})}

    assert not any("distributed_type" in said[0] for said in found("sft", **told))
    for flag, value in pairwise(words):
        name = flag.removeprefix("--")
        if flag.startswith(("--fsdp_", "--zero")):
            assert str(options[name]).lower() == value.lower(), name
    assert str(given["mixed_precision"]) == "no"


@pytest.mark.parametrize("backend", ["ddp", "fsdp2", "deepspeed"])
@pytest.mark.parametrize("file", [None, "ddp.yaml", "fsdp2.yaml", "deepspeed_zero3.yaml"])
def test_accelerate_itself_understands_the_command_and_the_files(
    backend: str, file: str | None, tmp_path: Path
) -> None:
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    config_file = None if file is None else str(SHIPPED / file)
    block = AccelerateConfig.model_validate(
        {"num_processes": 4, "num_machines": 2, "main_process_ip": "10.0.0.1", "main_process_port": 4711}
        | {"backend": backend, "config_file": config_file, "machine_rank": 1}
    )
    words = launch_command(tmp_path / "r.json", block, progress=tmp_path / "p", lock=tmp_path / "l")
    given = launch_command_parser().parse_args(words[words.index("accelerate.commands.launch") + 1 :])

    assert (given.num_processes, given.num_machines, given.machine_rank) == (4, 2, 1)
    assert given.module
    assert given.training_script == "pipeline.worker"
    assert given.training_script_args[0] == str((tmp_path / "r.json").resolve())
    if config_file is None:
        # A stage cuts its base itself, so accelerate is not told of FSDP.
        flag = "use_deepspeed" if backend == "deepspeed" else "multi_gpu"
        assert [name for name in ("multi_gpu", "use_fsdp", "use_deepspeed") if getattr(given, name)] == [flag]
        assert given.zero_stage == (3 if backend == "deepspeed" else None)
    else:
        assert load_config_from_file(config_file).mixed_precision == "no"


def findings_of_plan(world: Path, *overrides: str, until: str | None = None) -> list[str]:
    store = Store(world / "plans")
    plan = make_plan(load_run(world / "run.yaml", overrides), store)
    with pytest.raises(ConfigError) as refused:
        preflight(plan, store)
    return [f"{finding.where}: {finding.message}" for finding in refused.value.findings]


def test_plan_refuses_with_the_line_of_the_block(world: Path) -> None:
    text = (world / "run.yaml").read_text()
    block = "    accelerate:\n      num_processes: 2\n      backend: deepspeed\n"
    (world / "own.yaml").write_text(text.replace("    kind: dpo\n", "    kind: dpo\n" + block))
    line = next(
        n for n, row in enumerate((world / "own.yaml").read_text().splitlines(), 1) if "backend:" in row
    )
    store = Store(world / "plans")
    with pytest.raises(ConfigError) as refused:
        preflight(make_plan(load_run(world / "own.yaml", []), store), store)

    assert [str(finding) for finding in refused.value.findings] == [
        f"{world / 'own.yaml'}:{line}: a dpo stage cannot be trained with deepspeed\n    try: backend: ddp"
    ]


def test_plan_names_every_mistake_at_once(world: Path) -> None:
    said = findings_of_plan(
        world,
        "sft.accelerate.num_processes=3",
        "ppo.accelerate.num_processes=2",
        "ppo.generation_backend=transformers",
        "dpo.accelerate.num_processes=2",
        "dpo.accelerate.num_machines=2",
    )

    assert len(said) == 4
    assert "8 rows a step (4 x 2) cannot be shared by 3 processes" in said[0]
    assert "2 machines need main_process_ip" in said[1]
    assert "2 machines need main_process_port" in said[2]
    assert "generation_backend is transformers, which cannot share rows among processes" in said[3]


def test_the_command_line_refuses_in_plain_words(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", str(world / "run.yaml"), "--store", str(world / "plans")]

    assert main([*words, "ppo.accelerate.num_processes=2", "ppo.accelerate.backend=deepspeed"]) == 2
    assert "a ppo stage cannot be trained with deepspeed" in capsys.readouterr().err
    assert main([*words, "ppo.accelerate.num_process=2"]) == 2
    assert "num_processes" in capsys.readouterr().err


def test_the_runs_processes_are_for_the_stages_that_can_use_them_and_plan_says_so(world: Path) -> None:
    run = yaml.safe_load((world / "run.yaml").read_text())
    run["stages"]["clean"] = {"kind": "prepare", "inputs": {"preferences": "pairs.jsonl"}}
    run["stages"]["dpo"]["accelerate"] = {"num_processes": 1}
    (world / "mixed.yaml").write_text(yaml.safe_dump(run, sort_keys=False))
    store = Store(world / "plans")
    plan = make_plan(load_run(world / "mixed.yaml", ["accelerate.num_processes=2"]), store)
    preflight(plan, store)
    said = outlooks(plan, store)

    assert said["ppo"][0] == said["sft"][0] == "2 processes (ddp)"
    assert said["clean"][0] == "one process: this kind of stage cannot use more"
    assert {stage.name: stage.wired.accelerate.num_processes for stage in plan.stages} == {
        **dict.fromkeys(("base_stage", "sft", "reward", "ppo"), 2),
        **{"dpo": 1, "clean": 1},
    }


def test_the_number_of_processes_is_not_in_the_key(world: Path) -> None:
    def keys(*overrides: str) -> list[str | None]:
        plan = make_plan(load_run(world / "run.yaml", overrides), Store(world / "plans"))
        return [stage.key for stage in plan.stages]

    assert keys() == keys("accelerate.num_processes=2") == keys("ppo.accelerate.num_processes=4")


def test_a_block_survives_being_written_out_and_read_again(world: Path, tmp_path: Path) -> None:
    given = ("accelerate.num_processes=2", "dpo.accelerate.num_processes=4")
    first = load_run(world / "run.yaml", given)
    (world / "again.yaml").write_text(yaml.safe_dump(first.resolved()))
    second = load_run(world / "again.yaml", [])

    assert first.config.stages["dpo"].accelerate == second.config.stages["dpo"].accelerate
    assert second.config.stages["ppo"].accelerate.model_fields_set == set()
    assert second.config.accelerate.num_processes == 2
