"""TRL's side of bench_ppo_trl: run by an interpreter that has trl 1.12, with nothing of this project.

python trl_ppo_side.py settings.json result.json
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer


class Clock(TrainerCallback):
    """Notes the CPU seconds and the metrics of every iteration."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.lines: list[dict[str, float]] = []
        self._began = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Start the clock."""
        self._began = time.process_time()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **others: Any) -> None:
        """Keep the metrics."""
        self.lines.append(dict(logs or {}))

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Keep the time since the iteration before."""
        now = time.process_time()
        self.seconds.append(now - self._began)
        self._began = now


def main() -> None:
    """Train as the settings say and write what it cost and gave."""
    settings = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    folder = Path(settings["folder"])
    tokenizer = AutoTokenizer.from_pretrained(folder / "sft_merged", padding_side="left")
    rows = Dataset.from_dict({"input_ids": json.loads((folder / "prompt_ids.json").read_text())})
    clock = Clock()
    with tempfile.TemporaryDirectory() as output:
        trainer = PPOTrainer(
            args=_arguments(settings, output),
            processing_class=tokenizer,
            model=AutoModelForCausalLM.from_pretrained(folder / "sft_merged"),
            ref_model=None,
            reward_model=_scorer(folder),
            value_model=_scorer(folder),
            train_dataset=rows,
            eval_dataset=rows.select(range(8)),
            callbacks=[clock],
            peft_config=LoraConfig(
                r=settings["lora_r"],
                lora_alpha=settings["lora_alpha"],
                target_modules="all-linear",
                task_type="CAUSAL_LM",
            ),
        )
        trainer.train()
    result = {
        "seconds": clock.seconds,
        "kl": [line["objective/kl"] for line in clock.lines if "objective/kl" in line],
        "score": [line["objective/scores"] for line in clock.lines if "objective/scores" in line],
        "peak_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "optimizer_bytes": state_bytes(trainer.optimizer),
    }
    Path(sys.argv[2]).write_text(json.dumps(result))


def _scorer(folder: Path) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(folder / "reward_merged", num_labels=1)


def _arguments(settings: dict[str, Any], output: str) -> PPOConfig:
    batch, micro = settings["batch"], settings["micro"]
    return PPOConfig(
        output_dir=output,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=batch // micro,
        total_episodes=settings["iterations"] * batch,
        num_mini_batches=1,
        num_ppo_epochs=settings["epochs"],
        local_rollout_forward_batch_size=settings["trl_rollout_batch"],
        response_length=settings["response"],
        stop_token="eos",
        missing_eos_penalty=settings["missing_eos_penalty"],
        temperature=1.0,
        kl_coef=settings["kl_coef"],
        learning_rate=settings["learning_rate"],
        lr_scheduler_type="constant",
        num_sample_generations=0,
        save_strategy="no",
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        bf16=False,
        seed=settings["seed"],
        disable_tqdm=True,
        adam_epsilon=1e-8,
    )


def state_bytes(optimizer: Any) -> int:
    """Return the bytes of an optimizer's state."""
    inner = getattr(optimizer, "optimizer", optimizer)
    return sum(
        value.numel() * value.element_size()
        for state in inner.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    )


if __name__ == "__main__":
    main()
