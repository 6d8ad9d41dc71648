"""Reward and DPO steps, ours and TRL's, in turn in one process on the same pairs.

    python -m tests.benchmarks.bench_pairs [--pairs 32] [--batch 8] [--rounds 1] [--stage reward|dpo]

A step is forward and backward of one batch, without the optimizer. Rows:
TRL default (float32 base, bfloat16 autocast, gradient checkpointing, head on every position on a CPU),
TRL compact (its head on answer tokens only, as on a GPU), TRL best (compact, no checkpointing,
reference precomputed), ours like for like (same precision and checkpointing as TRL's default)
and ours as the stages run (bfloat16 base, no checkpointing, reference precomputed).
Times are CPU seconds of the process; `x floor` compares them with the FLOPs of a step that computes
every token once, at the speed of the machine's own matrix products (flop_floor.py); peaks are exact
live tensor bytes above the weights on the batch with the longest row. Real hh-rlhf pairs when the file
is here (TRIPTYCH_REALDATA), else lengths drawn like theirs.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig

from reward.model import ScoreHead
from stages.dpo import DPOConfig
from stages.reward import RewardConfig
from stages.runtime.loading import backbone, causal_lm_of
from stages.runtime.output_head import OutputHead
from stages.runtime.switch import AdapterSwitch, enable_checkpointing
from stages.trainers.dpo import DPOTrainer
from stages.trainers.pair_data import TokenPair
from stages.trainers.pair_model import PairModel, recompute_layers
from stages.trainers.pairs import make_batches
from stages.trainers.reward import RewardTrainer
from tests.benchmarks.flop_floor import gemm_speed, step_flops
from tests.benchmarks.live_bytes import LiveBytes
from tests.tiny import tiny_tokenizer

VOCABULARY = 16_384
STOP = 3
CONFIG = LlamaConfig(
    vocab_size=VOCABULARY,
    hidden_size=512,
    intermediate_size=1408,
    num_hidden_layers=6,
    num_attention_heads=8,
    num_key_value_heads=4,
    tie_word_embeddings=True,
    pad_token_id=0,
)
BETA = 0.1


@dataclass
class Variant:
    """One row of the table: how a batch of pairs is stepped, and what came of it."""

    name: str
    step: Callable[[list[int]], float]
    clear: Callable[[], None]
    once: float = 0.0
    "CPU seconds spent once for all pairs, such as the reference pass."
    seconds: float = 0.0
    peak: int = 0
    losses: list[float] = field(default_factory=list)


def main() -> None:
    """Measure and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--stage", choices=("reward", "dpo", "both"), default="both")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    pairs, source = read_pairs(options.pairs)
    order = random.Random(0).sample(range(len(pairs)), len(pairs))
    batches = [order[at : at + options.batch] for at in range(0, len(order), options.batch)]
    describe(pairs, batches, source)
    with tempfile.TemporaryDirectory() as folder:
        if options.stage != "dpo":
            measure("reward", reward_variants(pairs, Path(folder)), pairs, batches, options.rounds)
        if options.stage != "reward":
            measure("dpo", dpo_variants(pairs, Path(folder)), pairs, batches, options.rounds)


def measure(
    title: str, variants: list[Variant], pairs: list[TokenPair], batches: list[list[int]], rounds: int
) -> None:
    """Step all variants in turn, batch by batch, and print the table."""
    for variant in variants:  # warm up
        variant.step(batches[0][:2])
        variant.clear()
    for _ in range(rounds):
        for batch in batches:
            for variant in variants:
                start = time.process_time()
                variant.losses.append(variant.step(batch))
                variant.seconds += time.process_time() - start
                variant.clear()
    longest = max(batches, key=lambda b: max(length(pairs[n]) for n in b))
    for variant in variants:
        with LiveBytes() as tracker:
            variant.step(longest)
        variant.peak = tracker.peak
        variant.clear()
    every = [pairs[number] for batch in batches for number in batch] * rounds
    flops = step_flops(every, CONFIG, with_head=title == "dpo")
    speeds = {dtype: gemm_speed(dtype, CONFIG) for dtype in (torch.float32, torch.bfloat16)}
    first, compact = variants[0].seconds, next((v.seconds for v in variants if "compact" in v.name), None)
    print(f"\n{title}: CPU seconds for {rounds} x {len(batches)} batches")
    for dtype, speed in speeds.items():
        name = str(dtype).removeprefix("torch.")
        least = f"{flops / speed:.2f} CPU s at {speed / 1e9:.0f} GFLOP/s in {name}"
        print(f"floor: {flops / 1e9:.0f} GFLOP, {least}")
    columns = ("CPU s", "once", "x default", "x compact", "x floor", "peak MB", "mean loss")
    print(f"{'':44}" + "".join(f"{name:>11}" for name in columns))
    for v in variants:
        against = f"{compact / v.seconds:11.2f}" if compact else f"{'-':>11}"
        floor = flops / speeds[torch.float32 if "float32" in v.name else torch.bfloat16]
        print(
            f"{v.name:44}{v.seconds:11.2f}{v.once:11.2f}{first / v.seconds:11.2f}{against}"
            f"{v.seconds / floor:11.2f}{v.peak / 1e6:11.0f}{sum(v.losses) / len(v.losses):11.5f}",
            flush=True,
        )


def reward_variants(pairs: list[TokenPair], folder: Path) -> list[Variant]:
    """Return the rows of the reward table."""
    head = ScoreHead.seeded(CONFIG.hidden_size, seed=0)
    return [
        trl_reward("TRL default", pairs, folder, head),
        trl_reward("TRL without checkpointing", pairs, folder, head, gradient_checkpointing=False),
        our_reward("ours, like for like", pairs, head, recompute=True, autocast=True),
        our_reward("ours, float32, no checkpointing", pairs, head),
        our_reward("ours, bfloat16 base, no checkpointing", pairs, head, dtype=torch.bfloat16),
        our_reward("ours, bfloat16 base, checkpointing", pairs, head, dtype=torch.bfloat16, recompute=True),
    ]


def dpo_variants(pairs: list[TokenPair], folder: Path) -> list[Variant]:
    """Return the rows of the DPO table."""
    return [
        trl_dpo("TRL default", pairs, folder, compact=False),
        trl_dpo("TRL compact", pairs, folder, compact=True),
        trl_dpo(
            "TRL best: compact, precomputed, no ckpt",
            pairs,
            folder,
            compact=True,
            gradient_checkpointing=False,
            precompute_ref_log_probs=True,
        ),
        our_dpo("ours, like for like (reference each step)", pairs, recompute=True, autocast=True, live=True),
        our_dpo("ours, float32, reference once, no ckpt", pairs),
        our_dpo("ours, bfloat16, reference once, no ckpt", pairs, dtype=torch.bfloat16),
        our_dpo("ours, bfloat16, reference once, ckpt", pairs, dtype=torch.bfloat16, recompute=True),
    ]


def trl_reward(name: str, pairs: list[TokenPair], folder: Path, head: ScoreHead, **changes: Any) -> Variant:
    """Return TRL's RewardTrainer as a row."""
    from trl import RewardConfig as TRLConfig
    from trl import RewardTrainer as TRLTrainer

    torch.manual_seed(0)
    plain = AutoModelForSequenceClassification.from_config(_with_label(), dtype=torch.float32)
    with torch.no_grad():
        plain.score.weight.copy_(head.weight)
    _same_backbone(plain)
    rows = [{"chosen_ids": [*p.prompt, *p.chosen], "rejected_ids": [*p.prompt, *p.rejected]} for p in pairs]
    trainer = TRLTrainer(
        model=_lora(plain, task_type=None),
        args=TRLConfig(**_arguments(folder, **changes)),
        train_dataset=Dataset.from_list(rows[:2]),
        processing_class=tiny_tokenizer(),
    )
    return _trl_variant(name, trainer, rows)


def trl_dpo(name: str, pairs: list[TokenPair], folder: Path, *, compact: bool, **changes: Any) -> Variant:
    """Return TRL's DPOTrainer as a row; compact scores answer tokens only, as TRL does on a GPU."""
    import trl.trainer.utils as trl_utils
    from trl import DPOConfig as TRLConfig
    from trl import DPOTrainer as TRLTrainer

    precompute = changes.pop("precompute_ref_log_probs", False)
    trainer = TRLTrainer(
        model=_lora(_causal(torch.float32), task_type="CAUSAL_LM"),
        args=TRLConfig(**_arguments(folder, beta=BETA, **changes)),
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
        processing_class=tiny_tokenizer(),
    )
    rows: list[dict[str, Any]] = [
        {"prompt_ids": list(p.prompt), "chosen_ids": list(p.chosen), "rejected_ids": list(p.rejected)}
        for p in pairs
    ]
    variant = _trl_variant(name, trainer, rows)
    step = variant.step

    def with_head(batch: list[int]) -> float:
        before = trl_utils._use_triton
        trl_utils._use_triton = lambda device: compact
        try:
            return step(batch)
        finally:
            trl_utils._use_triton = before

    variant.step = with_head
    if precompute:
        start = time.process_time()
        trl_utils_before, trl_utils._use_triton = trl_utils._use_triton, lambda device: compact
        for at in range(0, len(rows), 8):
            inputs = trainer.data_collator(rows[at : at + 8])
            with torch.no_grad(), trainer.compute_loss_context_manager():
                chosen, rejected = trainer.compute_ref_log_probs(trainer.model, inputs)
            for row, one, other in zip(rows[at : at + 8], chosen.tolist(), rejected.tolist(), strict=True):
                row |= {"ref_chosen_logps": one, "ref_rejected_logps": other}
        trl_utils._use_triton = trl_utils_before
        variant.once = time.process_time() - start
        trainer.precompute_ref_logps = True
    return variant


def our_reward(
    name: str,
    pairs: list[TokenPair],
    head: ScoreHead,
    *,
    dtype: torch.dtype = torch.float32,
    recompute: bool = False,
    autocast: bool = False,
) -> Variant:
    """Return our reward step as a row."""
    model = _lora(_causal(dtype), task_type="CAUSAL_LM")
    parts = _parts(model, recompute=recompute)
    trainer = RewardTrainer(parts, head, RewardConfig(center_rewards_coefficient=0.0))
    return _our_variant(name, trainer.loss, parts, pairs, autocast=autocast)


def our_dpo(
    name: str,
    pairs: list[TokenPair],
    *,
    dtype: torch.dtype = torch.float32,
    recompute: bool = False,
    autocast: bool = False,
    live: bool = False,
) -> Variant:
    """Return our DPO step as a row; `live` computes the reference in each step instead of once."""
    model = _lora(_causal(dtype), task_type="CAUSAL_LM")
    parts = _parts(model, recompute=recompute)
    head = OutputHead.of(model, backbone=backbone(model))
    reference = {side: torch.zeros(len(pairs)) for side in ("chosen", "rejected")}
    trainer = DPOTrainer(parts, head, DPOConfig(beta=BETA), reference)

    @torch.no_grad()
    def fill(numbers: list[int]) -> None:
        with parts.running():
            for batch in make_batches(pairs, numbers, max_tokens=8192, packed=True):
                logps = trainer.logps(batch)
                reference["chosen"][batch.numbers] = logps[batch.chosen].float()
                reference["rejected"][batch.numbers] = logps[batch.rejected].float()

    start = time.process_time()
    if not live:
        fill(list(range(len(pairs))))
    once = time.process_time() - start
    variant = _our_variant(name, trainer.loss, parts, pairs, autocast=autocast)
    if live:
        step = variant.step

        def both(batch: list[int]) -> float:
            with _autocast(autocast):
                fill(batch)
            return step(batch)

        variant.step = both
    variant.once = once
    return variant


def _our_variant(
    name: str, loss: Callable[[Any], Any], parts: PairModel, pairs: list[TokenPair], *, autocast: bool
) -> Variant:
    def step(numbers: list[int]) -> float:
        total = 0.0
        with parts.running():
            for batch in make_batches(pairs, numbers, max_tokens=8192, packed=True):
                with _autocast(autocast):
                    output = loss(batch)
                output.loss.backward()
                total += float(output.loss)
        return total

    return Variant(name, step, lambda: parts.model.zero_grad(set_to_none=True))


def _trl_variant(name: str, trainer: Any, rows: list[dict[str, Any]]) -> Variant:
    trainer.model.train()
    if trainer.args.gradient_checkpointing:
        trainer.model.gradient_checkpointing_enable(trainer.args.gradient_checkpointing_kwargs)
        trainer.model.enable_input_require_grads()
    else:
        trainer.model.gradient_checkpointing_disable()
    trainer.current_gradient_accumulation_steps = 1

    def step(numbers: list[int]) -> float:
        inputs = trainer.data_collator([rows[number] for number in numbers])
        return float(trainer.training_step(trainer.model, inputs))

    return Variant(name, step, lambda: trainer.model.zero_grad(set_to_none=True))


def _parts(model: PeftModel, *, recompute: bool) -> PairModel:
    model.eval()
    switch = AdapterSwitch(model)
    if recompute:
        enable_checkpointing(model, switch)
        recompute_layers(causal_lm_of(model))
    return PairModel(model, switch, None, None, None, None)  # type: ignore[arg-type]


def _arguments(folder: Path, **changes: Any) -> dict[str, Any]:
    shared = {"output_dir": str(folder), "report_to": "none", "use_cpu": True, "bf16": True}
    return {**shared, "logging_strategy": "no", **changes}


def _causal(dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIG, dtype=torch.float32).to(dtype)


def _with_label() -> LlamaConfig:
    config = LlamaConfig(**CONFIG.to_dict())
    config.num_labels = 1
    return config


def _same_backbone(model: Any) -> None:
    """Give a classifier the weights of the causal model."""
    model.model.load_state_dict(_causal(torch.float32).model.state_dict())


def _lora(model: Any, *, task_type: str | None) -> PeftModel:
    """Add adapters whose weights depend on the seed only, the same in every variant."""
    config = LoraConfig(
        r=16,
        lora_alpha=32,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        task_type=task_type,
    )
    made = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, parameter in sorted(made.named_parameters()):
            parameter.requires_grad_(".lora_" in key)
            if ".lora_" in key:
                scale = 0.02 if ".lora_A." in key else 0.01
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return made


def _autocast(on: bool) -> Any:
    return torch.autocast("cpu", dtype=torch.bfloat16) if on else nullcontext()


def read_pairs(count: int) -> tuple[list[TokenPair], str]:
    """Return pairs of hh-rlhf as token ids of a 16k vocabulary of their own, or pairs of such lengths."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "realdata"
    places = [
        Path(os.environ.get("TRIPTYCH_REALDATA", beside)),
        beside,
        beside.parents[2] / "shared" / "realdata",
    ]
    found = [place / "hh-rlhf" / "harmless-base-test.jsonl.gz" for place in places]
    path = next((place for place in found if place.exists()), None)
    rng = random.Random(0)
    if path is None:
        return [_like_real(rng) for _ in range(count)], "lengths drawn like hh-rlhf's"
    from reward.preferences.pairs import load_pairs
    from reward.preferences.records import prompt_text

    pairs = load_pairs(path).pairs
    texts = [text for p in pairs for text in (prompt_text(p.prompt), p.chosen, p.rejected)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    specials = ["<pad>", "<bos>", "<unk>", "<eos>"]
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=specials))
    chosen = rng.sample(pairs, min(count, len(pairs)))
    encoded = [
        TokenPair(
            (1, *tokenizer.encode(prompt_text(p.prompt)).ids[-800:]),
            (*tokenizer.encode(p.chosen).ids, STOP),
            (*tokenizer.encode(p.rejected).ids, STOP),
        )
        for p in chosen
    ]
    return encoded, path.name


def _like_real(rng: random.Random) -> TokenPair:
    """Draw a pair with log-normal lengths: medians 94, 30 and 38 tokens, as hh-rlhf has."""
    sizes = [
        min(800, max(2, round(rng.lognormvariate(*shape)))) for shape in ((4.54, 0.8), (3.4, 0.8), (3.6, 0.8))
    ]
    prompt, one, other = (tuple(rng.randrange(4, VOCABULARY) for _ in range(size)) for size in sizes)
    return TokenPair(prompt, (*one, STOP), (*other, STOP))


def length(pair: TokenPair) -> int:
    """Return the longer of the pair's two sequences."""
    return len(pair.prompt) + max(len(pair.chosen), len(pair.rejected))


def describe(pairs: list[TokenPair], batches: list[list[int]], source: str) -> None:
    """Print how many tokens each way of batching computes."""
    real = sum(2 * len(p.prompt) + len(p.chosen) + len(p.rejected) for p in pairs)
    shared = sum(len(p.prompt) + len(p.chosen) + len(p.rejected) for p in pairs)
    padded = sum(2 * len(batch) * max(length(pairs[n]) for n in batch) for batch in batches)
    print(f"{len(pairs)} pairs of {source}, {len(batches[0])} a batch")
    print(
        f"tokens: {padded} padded, {real} real, {shared} with shared prompts ({padded / shared:.2f} x fewer)"
    )


if __name__ == "__main__":
    main()
