"""CPU seconds, loss and live memory of fine-tuning: ours against TRL's own trainer on the same rows.

    python -m tests.benchmarks.sft_speed ../shared/realdata/hh-rlhf/harmless-base-test.jsonl.gz

One process, one thread, variants in turn. The model is a Llama of 26 million random weights; the rows
are the chosen answers of the file, 32 of them, 8 a step. `compact` is TRL's own head made to score
labelled positions only, as it does on a GPU.
"""

from __future__ import annotations

import argparse
import gzip
import json
import logging
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import trl.trainer.utils as trl_utils
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.trainer_utils import SaveStrategy
from trl.trainer.sft_trainer import SFTTrainer

from pipeline.config.run import TuningConfig
from stages.runtime.adapters import new_adapter
from stages.sft import SftConfig
from stages.trainers import sft_layout, sft_trainer
from stages.trainers.sft_rows import TokenRow
from tests.benchmarks.live_bytes import LiveBytes

NUM_ROWS, BATCH = 32, 8
SPLIT = "\n\nAssistant:"


def main() -> None:
    """Print one line a variant, and their ratios to the first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    with gzip.open(options.file, "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["chosen"] for line in lines]
    tokenizer = make_tokenizer(texts)
    rows = make_rows(texts, tokenizer)
    seconds: dict[str, list[float]] = {}
    print(
        f"{NUM_ROWS} rows, {sum(len(r.input_ids) for r in rows)} tokens, "
        f"{sum(label >= 0 for r in rows for label in r.labels)} of them answers"
    )
    for _ in range(options.rounds):
        for name in options.variants:
            cpu, loss = run(name, rows, tokenizer)
            seconds.setdefault(name, []).append(cpu)
            print(f"  {name:28} {cpu:7.2f} CPU-s  loss {loss:.6f}", flush=True)
    first = min(seconds[options.variants[0]])
    for name, values in seconds.items():
        cpu, mebibytes = min(values), peak_bytes(name, rows, tokenizer) / 2**20
        print(f"{name:28} {cpu:7.2f} CPU-s  {first / cpu:5.2f} x  {mebibytes:8.1f} MiB live", flush=True)


VARIANTS: dict[str, dict[str, bool]] = {
    "trl default": {"trl": True, "checkpointing": True, "bf16": True},
    "trl compact": {"trl": True, "checkpointing": True, "bf16": True, "compact": True},
    "ours like for like": {"checkpointing": True, "bf16": True, "packing": True},
    "trl fp32, no checkpointing": {"trl": True, "compact": True},
    "ours padded": {},
    "ours as the stage runs": {"packing": True},
}


def run(name: str, rows: list[TokenRow], tokenizer: Any) -> tuple[float, float]:
    """Train one epoch; return CPU seconds of train() and the mean of the logged losses."""
    trainer, attention = build(name, rows, tokenizer)
    before = trl_utils._use_triton
    if VARIANTS[name].get("compact"):
        trl_utils._use_triton = lambda _device: True
    try:
        with attention:
            start = time.process_time()
            trainer.train()
            cpu = time.process_time() - start
    finally:
        trl_utils._use_triton = before
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return cpu, sum(losses) / len(losses)


def build(name: str, rows: list[TokenRow], tokenizer: Any) -> tuple[SFTTrainer, Any]:
    """Build a trainer on a fresh model of the same random weights."""
    variant = VARIANTS[name]
    config = SftConfig(
        per_device_train_batch_size=BATCH,
        logging_steps=1,
        save_steps=10_000,
        packing=variant.get("packing", False),
        tuning=TuningConfig(lora_r=16, gradient_checkpointing=variant.get("checkpointing", False)),
    )
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(
            "llama",
            hidden_size=512,
            num_hidden_layers=6,
            num_attention_heads=8,
            num_key_value_heads=4,
            intermediate_size=1408,
            vocab_size=16384,
            tie_word_embeddings=True,
            max_position_embeddings=2048,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    ).requires_grad_(False)
    model = new_adapter(base, config.tuning, seed=0)
    args = sft_trainer.trainer_arguments(config, num_rows=len(rows), folder=Path("/nowhere"))
    args.bf16, args.save_strategy = variant.get("bf16", False), SaveStrategy.NO
    data = Dataset.from_dict({"input_ids": [r.input_ids for r in rows], "labels": [r.labels for r in rows]})
    if variant.get("trl"):
        return SFTTrainer(model, args=args, train_dataset=data, processing_class=tokenizer), nullcontext()
    layout = sft_layout.choose_layout(model, config, tokenizer)
    trainer = sft_trainer.AnswerTrainer(
        model,
        args,
        head=layout.head,
        data_collator=layout.collator,
        train_dataset=data,
        processing_class=tokenizer,
    )
    return trainer, layout.attention(model)


def peak_bytes(name: str, rows: list[TokenRow], tokenizer: Any) -> int:
    """Return the peak of live tensor bytes above the weights in one step on the longest rows."""
    longest = sorted(rows, key=lambda row: -len(row.input_ids))[:BATCH]
    trainer, attention = build(name, longest, tokenizer)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(BATCH)])
    before = trl_utils._use_triton
    if VARIANTS[name].get("compact"):
        trl_utils._use_triton = lambda _device: True
    trainer.model.train()
    try:
        with attention, LiveBytes() as live:
            if trainer.args.gradient_checkpointing:
                trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
            with trainer.compute_loss_context_manager():
                loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor(100))
            loss.backward()
    finally:
        trl_utils._use_triton = before
    return live.peak


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a BPE of 16,384 tokens on the texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<bos>", "<eos>"]
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=16384, special_tokens=special, show_progress=False)
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )


def make_rows(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> list[TokenRow]:
    """Return every 72nd dialogue, its last answer to be learned."""
    rows = []
    for text in texts[:: len(texts) // NUM_ROWS][:NUM_ROWS]:
        prompt, answer = text.rsplit(SPLIT, 1)
        ids = tokenizer(prompt + SPLIT)["input_ids"]
        rows.append(
            TokenRow([*ids, *tokenizer(answer)["input_ids"], tokenizer.eos_token_id][:1024], len(ids))
        )
    return rows


if __name__ == "__main__":
    main()
