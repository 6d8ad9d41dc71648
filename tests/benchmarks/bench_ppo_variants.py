"""Ways to run the PPO loop: packed or padded rows, value on an adapter or the trunk, groups of responses.

    python -m tests.benchmarks.bench_ppo_variants cost
    python -m tests.benchmarks.bench_ppo_variants reward --store <demo's store> [--seeds 5]

`cost`: CPU seconds of reading and updating one batch of a random base of 20 million weights, all ways in
one process in turn, one thread. `reward`: the demo's policy and reward model at the demo's settings; what
each way is paid up to the KL that it and `gae, value adapter` both reached, and at its end.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pipeline.config.run import ModelConfig, TuningConfig
from stages.ppo import SPEC, PPOConfig
from stages.trainers.ppo import batches, roles
from stages.trainers.ppo.loop import gather
from stages.trainers.ppo.plan import minibatches
from stages.trainers.ppo.rollout import read_rollouts
from stages.trainers.ppo.setting import open_setting
from stages.trainers.ppo.update import make_optimizer, make_targets, update
from tests.benchmarks.bench_ppo_trl import half_width, over_common_kl
from tests.benchmarks.ppo_race import Shape, build_demo, build_random, inputs
from tests.tiny import RecordingLogger, stage_context

TUNING = TuningConfig(lora_r=16, lora_alpha=32)
WAYS: dict[str, dict[str, Any]] = {
    "gae, value adapter": {},
    "gae, value on the trunk": {"value": "trunk"},
    "rloo": {"advantage": "rloo", "num_generations": 4},
    "grpo": {"advantage": "grpo", "num_generations": 4},
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("cost", "reward"))
    parser.add_argument("--store", type=Path, help="store of a finished demo run")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=25)
    parser.add_argument("--ways", type=int, default=len(WAYS), help="the first so many of the ways")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if args.what == "cost":
            build_random(folder, Shape(), TUNING)
            print_costs(folder, rounds=args.rounds)
        else:
            build_demo(folder, args.store, most_tokens=96)
            print_rewards(folder, seeds=args.seeds, iterations=args.iterations, ways=args.ways)


def print_costs(folder: Path, *, rounds: int) -> None:
    """Print CPU seconds of every way, medians over rounds, and each beside the padded value adapter."""
    ways = {
        "gae, value adapter, padded": (WAYS["gae, value adapter"], True, True),
        "gae, value adapter": (WAYS["gae, value adapter"], False, True),
        "gae, value on the trunk": (WAYS["gae, value on the trunk"], False, True),
        "rloo, padded": (WAYS["rloo"], True, True),
        "rloo, each prompt for itself": (WAYS["rloo"], False, False),
        "rloo, prompts shared": (WAYS["rloo"], False, True),
    }
    steps = {name: _prepared(folder / str(i), folder, *way) for i, (name, way) in enumerate(ways.items())}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, step in steps.items():
            seconds[name].append(step())
    print(f"{'CPU seconds, 32 responses':34}{'reading':>10}{'2 epochs':>10}{'both':>8}{'to padded':>11}")
    for name, found in seconds.items():
        reading, training = (statistics.median(part) for part in zip(*found, strict=True))
        padded = "rloo, padded" if "rloo" in name else "gae, value adapter, padded"
        whole = statistics.median(sum(pair) for pair in seconds[padded])
        both = reading + training
        print(f"{name:34}{reading:10.2f}{training:10.2f}{both:8.2f}{both / whole:11.2f}")


def _prepared(
    root: Path, world: Path, changes: dict[str, Any], padded: bool, shared: bool
) -> Callable[[], tuple[float, float]]:
    """Open a way and sample once; return what reads and updates that batch and gives the CPU seconds."""
    supports = roles.supports_segments
    if padded:
        roles.supports_segments = lambda *_, **__: "asked for"
    config = PPOConfig(
        model=ModelConfig(dtype="float32"),
        tuning=TUNING,
        rollout_batch_size=32,
        num_mini_batches=1,
        num_ppo_epochs=2,
        max_new_tokens=48,
        max_length=176,
        learning_rate=1e-9,
        target_kl=None,
        **changes,
    )
    setting = open_setting(stage_context(root, config, inputs(world)))
    roles.supports_segments = supports
    rollouts, _ = gather(setting, 0)
    optimizer = make_optimizer(setting.roles, config)
    plan = minibatches(rollouts.total_lengths, config, iteration=0, epoch=0)

    def step() -> tuple[float, float]:
        grouped = batches.groupby
        if not shared:
            batches.groupby = lambda episodes, key: ((key(one), [one]) for one in episodes)
        began = time.process_time()
        readings = read_rollouts(setting.roles, rollouts, [micro for part in plan for micro in part])
        read = time.process_time()
        scores = readings.logprobs.sum(1).cos()
        targets = make_targets(readings, scores, rollouts.mask, config, kl_coef=0.05)
        update(setting.roles, optimizer, rollouts, readings, targets, config, iteration=0)
        batches.groupby = grouped
        return read - began, time.process_time() - read

    return step


def print_rewards(folder: Path, *, seeds: int, iterations: int, ways: int) -> None:
    """Print what each way is paid, its KL and its CPU seconds, means over seeds."""
    chosen = dict(list(WAYS.items())[:ways])
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen}
    for seed in range(1, seeds + 1):
        for name, changes in chosen.items():
            root = folder / f"{seed}-{name}"
            runs[name].append(_trained(root, folder, seed=seed, iterations=iterations, changes=changes))
        _print_rewards(runs)


def _print_rewards(runs: dict[str, list[dict[str, Any]]]) -> None:
    first = runs["gae, value adapter"]
    print(f"{len(first)} seeds")
    print(f"{'':26}{'CPU s':>8}{'last 5: reward':>16}{'KL':>8}{'at equal KL, to the first':>30}")
    for name, found in runs.items():
        pairs = [over_common_kl(run, base) for run, base in zip(found, first, strict=True)]
        apart = [here - there for _, here, there in pairs]
        seconds, score, kl = (
            statistics.mean(values)
            for values in (
                [run["seconds"] for run in found],
                [statistics.mean(run["score"][-5:]) for run in found],
                [statistics.mean(run["kl"][-5:]) for run in found],
            )
        )
        against = (
            ""
            if name in "gae, value adapter"
            else f"{statistics.mean(apart):+.3f} +- {half_width(apart):.3f}"
        )
        print(f"{name:26}{seconds:8.1f}{score:16.3f}{kl:8.2f}{against:>30}", flush=True)


def _trained(
    root: Path, world: Path, *, seed: int, iterations: int, changes: dict[str, Any]
) -> dict[str, Any]:
    config = PPOConfig(
        seed=seed,
        model=ModelConfig(dtype="float32"),
        tuning=TUNING,
        total_iterations=iterations,
        rollout_batch_size=64,
        per_device_train_batch_size=32,
        learning_rate=5e-4,
        kl_coef=0.05,
        max_new_tokens=32,
        max_length=128,
        save_steps=10_000,
        **changes,
    )
    ctx = stage_context(root, config, inputs(world))
    began = time.process_time()
    SPEC.run(ctx)
    logger = ctx.logger
    if not isinstance(logger, RecordingLogger):
        raise TypeError("the test's own logger was asked for")
    print(f"seed {seed}: {root.name}", file=sys.stderr, flush=True)
    return {
        "seconds": time.process_time() - began,
        "score": logger.series("ppo/shaped_score"),
        "kl": logger.series("objective/kl"),
    }


if __name__ == "__main__":
    main()
