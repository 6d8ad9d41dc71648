"""What the tests of supervised fine-tuning share: rows, a quick run, a loss made by hand."""

from __future__ import annotations

import json

import torch
from safetensors.torch import load_file
from torch.nn import functional

from pipeline.config.run import TuningConfig
from pipeline.contract import ArtifactKind
from stages.sft import SftConfig, run
from tests.tiny import as_checkpoint, stage_context

QUICK = {
    "per_device_train_batch_size": 4,
    "logging_steps": 1,
    "learning_rate": 1e-2,
    "eval_share": 0.0,
    "warmup_ratio": 0.0,
    "tuning": TuningConfig(lora_r=4),
}


def demonstrations(folder, rows=12):
    """Write answers of different lengths, so that padding and packing differ."""
    path = folder / "demonstrations.jsonl"
    lines = [
        {"prompt": f"say {i}" + "?" * (i % 4), "completion": f"it is {i}" + "!" * (5 * i % 9)}
        for i in range(rows)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return as_checkpoint(path, ArtifactKind.DEMONSTRATIONS)


def run_sft(folder, base, *, policy=None, data=None, **settings):
    inputs = {"base": base, "demonstrations": data or demonstrations(folder)}
    if policy is not None:
        inputs["policy"] = policy
    ctx = stage_context(folder, SftConfig(**{**QUICK, **settings}), inputs)
    return ctx, run(ctx)


def weights(result):
    return load_file(result.outputs["adapter"] / "adapter_model.safetensors")


def hand_made_loss(model, tokenizer, path):
    """Return the mean cross-entropy of answer tokens, row by row, from the model's own logits."""
    total, count = 0.0, 0
    for line in path.read_text().splitlines():
        row = json.loads(line)
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": row["prompt"]}], add_generation_prompt=True, return_dict=False
        )
        answer = tokenizer(row["completion"] + "<|im_end|>")["input_ids"]
        logits = model(torch.tensor([prompt + answer])).logits[0]
        predicting = logits[len(prompt) - 1 : -1]
        total = total + functional.cross_entropy(predicting, torch.tensor(answer), reduction="sum")
        count += len(answer)
    return total / count
