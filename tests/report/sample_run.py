"""A run as the report sees it, with believable numbers and no training."""

from __future__ import annotations

import math
import random

from pipeline.report.view import (
    Answer,
    DataView,
    InputView,
    OutputView,
    RunView,
    SamplesView,
    SampleView,
    StageView,
    TableView,
)
from pipeline.tracking.lines import Series


def curve(first: float, last: float, *, points: int = 200, noise: float = 0.05, seed: int = 0) -> Series:
    draw = random.Random(seed)
    values = [
        last + (first - last) * math.exp(-4 * i / points) + draw.gauss(0, noise * abs(first - last))
        for i in range(points)
    ]
    return Series([10 * i for i in range(points)], values, [1.7e9 + i for i in range(points)])


def stage(name: str, kind: str, parents: dict[str, str], series: dict[str, Series], **rest) -> StageView:
    inputs = [InputView(role, "adapter", parent, "5e" * 32, parent) for role, parent in parents.items()]
    inputs += [InputView(role, "prompts", file, "7f" * 32) for role, file in rest.pop("files", {}).items()]
    return StageView(
        name=name,
        kind=kind,
        state=rest.pop("state", "ran"),
        key=("%x" % (hash(name) & 0xFFFFFF)).rjust(8, "0") * 8,
        seconds=rest.pop("seconds", 41.5),
        inputs=inputs,
        outputs=[OutputView("policy", "adapter", "9c" * 32, 7, 1_403_220)],
        series=series,
        environment={"python": "3.11.7", "device": "cpu", "torch": "2.13.0", "trl": "1.16.0"},
        attempts=("1: 2026-11-21 13:02 UTC, complete",),
        **rest,
    )


def speed(seed: int) -> dict[str, Series]:
    return {
        "learning_rate": curve(1e-3, 0, noise=0, seed=seed),
        "tokens_per_second": curve(8000, 8200, noise=0.6, seed=seed),
        "grad_norm": curve(3, 0.6, seed=seed),
    }


def demo() -> RunView:
    stages = [
        stage(
            "base",
            "pretrain",
            {},
            {"loss": curve(5.1, 1.9), **speed(1)},
            files={"text": "corpus.txt"},
            metrics={"perplexity": 6.91, "loss": 1.933},
            seconds=58.0,
            state="reused",
            reason="the same settings and inputs as in run demo-0",
        ),
        stage(
            "sft",
            "sft",
            {"base": "base"},
            {"loss": curve(1.9, 0.62, seed=2), "eval_loss": curve(1.8, 0.7, points=12, seed=3), **speed(2)},
            files={"demonstrations": "sft.jsonl"},
            metrics={"eval_loss": 0.7012, "loss": 0.6204},
        ),
        stage(
            "reward",
            "reward",
            {"base": "base", "policy": "sft"},
            {"loss": curve(0.69, 0.41, seed=4), "rewards/accuracies": curve(0.5, 0.84, seed=5), **speed(3)},
            files={"preferences": "preferences.jsonl"},
            metrics={"accuracy": 0.8312, "loss": 0.4117},
            notes=("Length alone would be right on 61 % of the held-out pairs.",),
        ),
        stage(
            "dpo",
            "dpo",
            {"base": "base", "policy": "sft"},
            {
                "loss": curve(0.693, 0.39, seed=6),
                "rewards/accuracies": curve(0.5, 0.88, seed=7),
                "rewards/margins": curve(0, 1.9, seed=8),
                **speed(4),
            },
            files={"preferences": "preferences.jsonl"},
            metrics={"rewards/accuracies": 0.871, "rewards/margins": 1.88, "loss": 0.391},
        ),
        stage(
            "ppo",
            "ppo",
            {"base": "base", "policy": "sft", "reward": "reward"},
            {
                "objective/kl": curve(0.001, 4.2, seed=9),
                "objective/scores": curve(-0.4, 1.7, seed=10),
                "policy/approxkl_avg": curve(0.02, 0.006, seed=11),
                "objective/entropy": curve(48, 22, seed=12),
                **speed(5),
            },
            files={"prompts": "prompts.jsonl"},
            metrics={"objective/scores": 1.71, "objective/kl": 4.19},
            seconds=72.4,
            settings={"kl_coef": 0.05, "cliprange": 0.2, "learning_rate": 3e-4, "model.dtype": "float32"},
        ),
        stage(
            "evaluate",
            "evaluate",
            {"base": "base", "sft": "sft", "dpo": "dpo", "ppo": "ppo", "reward": "reward"},
            {},
            files={"prompts": "heldout.jsonl", "gold": "gold.py"},
            metrics={"gold/ppo": 0.742, "gold/dpo": 0.731, "gold/sft": 0.604},
            seconds=22.1,
        ),
    ]
    table = TableView(
        "evaluate",
        "Held-out prompts, 200 of them",
        ["model", "gold utility", "win rate against SFT", "proxy reward", "KL", "tokens"],
        [
            ["base", 0.1234, 0.08, -1.7, None, 61.2],
            ["base, 3 examples", 0.3011, 0.19, -0.9, None, 40.3],
            ["SFT", 0.6043, None, 0.02, 0.0, 31.5],
            ["DPO", 0.7312, [0.69, 0.63, 0.75], 1.31, 6.4, 33.9],
            ["PPO", 0.7421, [0.71, 0.65, 0.77], 1.73, 4.19, 30.2],
        ],
        ("Gold utility is from 0 to 1; no stage sees it in training. Intervals are 95 %.",),
    )
    answers = {
        "base": "the the opening hours are of the the library desk on",
        "SFT": "The library opens at nine.",
        "DPO": "The library opens at 9:00 and closes at 18:00, Monday to Friday.",
        "PPO": "It opens at 9:00, Monday to Friday. May I help you with anything else?",
    }
    samples = [
        SampleView(
            "Facts: the library opens at 9:00 and closes at 18:00, Monday to Friday.\n"
            f"Question {i}: When does the library open?",
            [
                Answer(name, text, {"gold": 0.2 + 0.15 * j, "reward": -1.5 + j})
                for j, (name, text) in enumerate(answers.items())
            ],
        )
        for i in range(1, 13)
    ]
    data = DataView(
        "reward",
        "preferences.jsonl",
        [
            ("rows read", "2\u202f312"),
            ("accepted", "2\u202f303"),
            ("set aside", "9"),
            ("longer answer preferred", "61 %"),
        ],
        ["annotator a7 agrees with the others on 52 % of shared pairs"],
        [("line 17", "chosen and rejected are the same text"), ("line 203", "the prompt is empty")],
        9,
    )
    return RunView(
        name="demo",
        made="21 November 2026, 13:41 UTC",
        stages=stages,
        command="triptych run configs/demo.yaml",
        config_text="name: demo\nseed: 1\nstages:\n  base: {kind: pretrain}\n",
        resolved_text='{\n  "name": "demo"\n}',
        tables=[table],
        samples=[SamplesView("evaluate", samples, 200)],
        data=[data],
        finished="21 November 2026, 13:40 UTC",
        seconds=276.0,
    )
