"""PPO here against TRL 1.12's PPOTrainer, the last release that has it: cost, memory, reward at equal KL.

    python -m venv <folder> && <folder>/bin/pip install torch==2.13.0 trl==1.12.0 transformers==5.23.0 peft
    python -m tests.benchmarks.bench_ppo_trl --trl-python <folder>/bin/python cost
    python -m tests.benchmarks.bench_ppo_trl --trl-python <folder>/bin/python reward --store <demo's store>

Both sides train the same base with the same reward model, prompts, batch, epochs and settings, each in
a process of its own, in turn, on one thread. `cost`: a random base of 20 million weights and a learning
rate of almost nothing, so that both sides go on seeing responses of the same lengths; CPU seconds an
iteration leave out the first one. `reward`: the demo's trained policy and reward model; both curves of
reward against KL, smoothed over three iterations, are compared over the KLs that both runs reached.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
COST = {
    **{"iterations": 4, "batch": 32, "micro": 8, "epochs": 4, "prompt": 128, "response": 48},
    **{"kl_coef": 0.05, "learning_rate": 1e-9, "missing_eos_penalty": 1.0, "trl_rollout_batch": 32},
}
REWARD = {
    **{"iterations": 25, "batch": 64, "micro": 32, "epochs": 2, "prompt": 96, "response": 32},
    **{"kl_coef": 0.05, "learning_rate": 5e-4, "missing_eos_penalty": 1.0, "trl_rollout_batch": 64},
}
"The settings of configs/demo.yaml."
LORA = {"lora_r": 16, "lora_alpha": 32}
GRID = 10
"Points at which two curves are compared."
T_95 = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 8: 2.365, 10: 2.262}
"Two-sided 95 % of Student's t, by the number of seeds."


def main() -> None:
    """Run both sides seed by seed and print the table."""
    options = _options()
    if options.side_ours:
        run_ours(*map(Path, options.side_ours))
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        _child([sys.executable, "-c", _build(options, folder)])
        ours, theirs = [], []
        for seed in range(1, options.seeds + 1):
            settings = _settings(options, folder, seed)
            ours.append(_ours(settings, folder))
            theirs.append(_trl(settings, folder, options.trl_python))
            print(f"seed {seed}: {_line(ours[-1])} | TRL {_line(theirs[-1])}", flush=True)
    print_table(ours, theirs)
    if options.out:
        options.out.write_text(json.dumps({"settings": settings, "ours": ours, "trl": theirs}))


def print_table(ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]) -> None:
    """Print each measure of both sides and their ratio, then the reward at equal KL."""
    print(f"{'':34}{'here':>12}{'TRL 1.12':>12}{'ratio':>9}")
    for title, measure in (
        ("CPU seconds an iteration", lambda run: statistics.median(run["seconds"][1:] or run["seconds"])),
        ("peak RSS, MiB", lambda run: run["peak_rss"] / 2**20),
        ("optimizer state, MiB", lambda run: run["optimizer_bytes"] / 2**20),
    ):
        here, there = (statistics.mean(measure(run) for run in runs) for runs in (ours, theirs))
        print(f"{title:34}{here:12.2f}{there:12.2f}{here / there:9.3f}")
    if min(len(run["kl"]) for run in (*ours, *theirs)) < 10:
        return
    pairs = [over_common_kl(mine, other) for mine, other in zip(ours, theirs, strict=True)]
    for number, (kl, here, there) in enumerate(pairs, start=1):
        print(f"seed {number}: reward up to KL {kl:6.3f}    {here:12.3f}{there:12.3f}{here - there:+9.3f}")
    differences = [here - there for _, here, there in pairs]
    mean, half = statistics.mean(differences), half_width(differences)
    print(f"reward at equal KL, here less TRL: {mean:+.3f} +- {half:.3f} (95 %, {len(pairs)} seeds)")


def over_common_kl(mine: dict[str, Any], other: dict[str, Any]) -> tuple[float, float, float]:
    """Return the largest KL that both runs reached, and each one's mean reward up to there.

    The mean is over equal steps of sqrt(KL), the axis on which such curves are near to straight.
    """
    curves = [list(zip(smoothed(run["kl"]), smoothed(run["score"]), strict=True)) for run in (mine, other)]
    kl = min(max(point[0] for point in curve) for curve in curves)
    steps = [kl * (number / GRID) ** 2 for number in range(1, GRID + 1)]
    here, there = (statistics.mean(interpolated(curve, at) for at in steps) for curve in curves)
    return kl, here, there


def smoothed(values: Sequence[float], window: int = 3) -> list[float]:
    """Return the mean of each value and those right before it."""
    return [statistics.mean(values[max(0, i + 1 - window) : i + 1]) for i in range(len(values))]


def interpolated(curve: Sequence[tuple[float, float]], at: float) -> float:
    """Return the height of a curve where it first reaches `at`, between its points a straight line."""
    for (x0, y0), (x1, y1) in pairwise(curve):
        if x1 >= at:
            return y0 + (y1 - y0) * (at - x0) / (x1 - x0) if x1 > x0 else y1
    return max(curve)[1]


def run_ours(settings_file: Path, result_file: Path) -> None:
    """Train as the settings say, in this process, and write what it cost and gave."""
    import torch

    from stages.ppo import SPEC
    from stages.trainers.ppo import loop
    from tests.benchmarks.ppo_race import inputs
    from tests.tiny import stage_context

    settings = json.loads(settings_file.read_text())
    torch.set_num_threads(1)
    optimizers: list[Any] = []
    make = loop.make_optimizer
    loop.make_optimizer = lambda *arguments: optimizers.append(make(*arguments)) or optimizers[-1]
    with tempfile.TemporaryDirectory() as place:
        ctx = stage_context(Path(place), _config(settings), inputs(Path(settings["folder"])))
        ticks: list[float] = []
        log = ctx.logger.log

        def timed(*arguments: Any, **named: Any) -> None:
            ticks.append(time.process_time())
            log(*arguments, **named)

        ctx.logger.log = timed  # type: ignore[method-assign]
        SPEC.run(ctx)
    lines = ctx.logger.lines  # type: ignore[attr-defined]
    states = [value for state in optimizers[0].state.values() for value in state.values()]
    result = {
        # The first iteration includes the loading, and is left out by the reader.
        "seconds": [after - before for before, after in zip([0.0, *ticks], ticks, strict=False)],
        "kl": [line["objective/kl"] for line in lines],
        "score": [line["ppo/shaped_score"] for line in lines],
        "length": [line["ppo/response_length"] for line in lines],
        "peak_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "optimizer_bytes": sum(v.numel() * v.element_size() for v in states if isinstance(v, torch.Tensor)),
    }
    result_file.write_text(json.dumps(result))


def _config(settings: dict[str, Any]) -> Any:
    from pipeline.config.run import ModelConfig, TuningConfig
    from stages.ppo import PPOConfig

    return PPOConfig(
        seed=settings["seed"],
        model=ModelConfig(dtype="float32"),
        tuning=TuningConfig(**LORA, gradient_checkpointing=settings["checkpointing"]),
        total_iterations=settings["iterations"],
        rollout_batch_size=settings["batch"],
        generation_batch_size=settings["batch"],
        per_device_train_batch_size=settings["micro"],
        num_mini_batches=1,
        num_ppo_epochs=settings["epochs"],
        max_new_tokens=settings["response"],
        max_length=settings["response"] + settings["prompt"],
        missing_eos_penalty=settings["missing_eos_penalty"],
        kl_coef=settings["kl_coef"],
        learning_rate=settings["learning_rate"],
        value_learning_rate=settings["learning_rate"],
        lr_scheduler_type="constant",
        warmup_ratio=0.0,
        adam_epsilon=1e-8,
        vf_coef=0.1,
        target_kl=None,
        save_steps=10_000,
    )


def _build(options: argparse.Namespace, folder: Path) -> str:
    """Return the program that writes the world: in a process of its own, so that no peak counts it."""
    start = "from pathlib import Path; from tests.benchmarks.ppo_race import *; "
    if options.what == "reward":
        store = str(options.store.resolve())
        return f"{start}build_demo(Path({str(folder)!r}), Path({store!r}), most_tokens=96)"
    shape = f"Shape({options.hidden}, {options.layers}, {options.vocabulary})"
    return f"{start}build_random(Path({str(folder)!r}), {shape}, TuningConfig(lora_r=16, lora_alpha=32))"


def _settings(options: argparse.Namespace, folder: Path, seed: int) -> dict[str, Any]:
    given = COST if options.what == "cost" else REWARD
    named = {"checkpointing": options.checkpointing, "folder": str(folder), "seed": seed}
    if options.iterations is not None:
        named["iterations"] = options.iterations
    return {**given, **LORA, **named}


def _ours(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    return _side([sys.executable, "-m", "tests.benchmarks.bench_ppo_trl", "--side-ours"], settings, folder)


def _trl(settings: dict[str, Any], folder: Path, python: Path) -> dict[str, Any]:
    return _side([str(python), str(Path(__file__).with_name("trl_ppo_side.py"))], settings, folder)


def _side(command: list[str], settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    given, made = folder / "settings.json", folder / "result.json"
    given.write_text(json.dumps(settings))
    _child([*command, str(given), str(made)])
    return json.loads(made.read_text())


def _child(command: list[str]) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode:
        sys.exit(f"{' '.join(command[:3])} failed:\n{ended.stderr[-3000:]}")


def _line(run: dict[str, Any]) -> str:
    seconds = statistics.median(run["seconds"][1:] or run["seconds"])
    return f"{seconds:.2f} s, score {run['score'][-1]:.2f}, kl {run['kl'][-1]:.2f}"


def half_width(values: Sequence[float]) -> float:
    """Return half of the 95 % interval of a mean over seeds."""
    if len(values) < 2:
        return float("nan")
    t = T_95.get(len(values), 2.0)
    return t * statistics.stdev(values) / len(values) ** 0.5


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("cost", "reward"), default="cost")
    parser.add_argument("--trl-python", type=Path, help="interpreter of an environment with trl 1.12")
    parser.add_argument(
        "--store", type=Path, help="store of a finished demo run: triptych run configs/demo.yaml"
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--iterations", type=int, help="default: 4 for cost, 25 for reward")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations on our side")
    parser.add_argument("--out", type=Path, help="write every number as JSON")
    parser.add_argument("--side-ours", nargs=2, metavar="FILE", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
