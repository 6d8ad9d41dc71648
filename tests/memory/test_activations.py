"""What autograd keeps, held against saved-tensor hooks on the project's own trainers."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.config.run import TuningConfig
from pipeline.memory.activations import Pass, Precision, logits_bytes, peak_bytes, saved_bytes
from pipeline.memory.families import read_shape
from pipeline.memory.trained import Trained
from tests.memory.saved import counting, saved_by_dpo, saved_by_ppo, saved_by_reward, saved_by_sft
from tests.tiny import tiny_model

SIZES = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "head_dim": 32,
    "vocab_size": 1024,
    "max_position_embeddings": 512,
}
SHAPES = {
    "grouped heads": ("llama", {"num_key_value_heads": 1}),
    "tied": ("qwen2", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "untied": ("mistral", {"num_key_value_heads": 4, "tie_word_embeddings": False}),
    "large vocabulary": ("llama", {"num_key_value_heads": 2, "vocab_size": 20_000}),
    "norms of queries and keys": ("qwen3", {"num_key_value_heads": 2}),
    "learned positions": ("gpt2", {}),
}
TRAINERS = {"sft": saved_by_sft, "reward": saved_by_reward, "dpo": saved_by_dpo, "ppo": saved_by_ppo}


def sizes_of(name):
    """Return the model type of a shape and the keys of its config."""
    model_type, changes = SHAPES[name]
    if model_type == "gpt2":
        sizes = {"n_embd": 128, "n_layer": 4, "n_head": 4, "n_positions": 512, "vocab_size": 1024}
        return model_type, sizes
    return model_type, {**SIZES, **changes}


# Every shape in float32, and one in bfloat16: half precision adds casts to each trained map's input.
# Every shape through every trainer; of the pair trainers two shapes run always, the rest with the slow tests.
ALWAYS = ("grouped heads", "large vocabulary")
CASES = [
    pytest.param(
        name, stage, "float32", marks=[] if stage in ("sft", "ppo") or name in ALWAYS else [pytest.mark.slow]
    )
    for name in SHAPES
    for stage in TRAINERS
]
CASES += [pytest.param("tied", stage, "bfloat16", marks=[]) for stage in TRAINERS]


@pytest.mark.parametrize(("name", "stage", "dtype"), CASES)
def test_the_plan_is_within_a_tenth_of_what_hooks_see(name, stage, dtype, tmp_path):
    model_type, sizes = sizes_of(name)

    seen = TRAINERS[stage](tmp_path, model_type, sizes, dtype=dtype)

    shape = read_shape(seen.base)
    precision = Precision(torch.finfo(getattr(torch, dtype)).bits // 8)
    step = Pass(seen.tokens, seen.row_tokens, seen.answers, key_share=seen.key_share)
    planned = sum(saved_bytes(Trained(shape, rank=8), precision, step).values())
    assert planned == pytest.approx(seen.bytes, rel=0.1)


@pytest.mark.parametrize("name", ["grouped heads", "norms of queries and keys", "learned positions"])
def test_under_autocast_the_plan_is_within_a_tenth_too(name, tmp_path):
    model_type, sizes = sizes_of(name)

    seen = saved_by_sft(tmp_path, model_type, sizes, dtype="bfloat16", autocast=True)

    step = Pass(seen.tokens, seen.row_tokens, seen.answers)
    planned = saved_bytes(Trained(read_shape(seen.base), rank=8), Precision(2, autocast=True), step)
    assert sum(planned.values()) == pytest.approx(seen.bytes, rel=0.1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("changes", "trained"),
    [
        pytest.param({"use_dora": True}, {"magnitudes": True}, id="lengths"),
        pytest.param({"frozen_layers": 2}, {"frozen_layers": 2}, id="frozen layers"),
        pytest.param({"target_modules": ("q_proj", "v_proj")}, {"targets": ("q_proj", "v_proj")}, id="two"),
        pytest.param({"frozen_modules": ("*.mlp.*",)}, {"frozen": ("*.mlp.*",)}, id="frozen feed-forward"),
    ],
)
def test_other_tunings_are_within_a_tenth_too(changes, trained, dtype, tmp_path):
    tuning = TuningConfig(lora_r=8, lora_alpha=8, **changes)

    seen = saved_by_sft(tmp_path, "llama", {**SIZES, "num_key_value_heads": 2}, dtype=dtype, tuning=tuning)

    step = Pass(seen.tokens, seen.row_tokens, seen.answers)
    precision = Precision(torch.finfo(getattr(torch, dtype)).bits // 8)
    planned = saved_bytes(Trained(read_shape(seen.base), rank=8, **trained), precision, step)
    assert sum(planned.values()) == pytest.approx(seen.bytes, rel=0.1)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("stage", TRAINERS)
def test_the_peak_of_a_backward_pass_is_within_a_tenth_of_the_live_tensors(stage, checkpointing, tmp_path):
    tuning = TuningConfig(lora_r=8, lora_alpha=8, gradient_checkpointing=checkpointing)
    wide = {**SIZES, "hidden_size": 256, "intermediate_size": 768, "num_key_value_heads": 2}

    seen = TRAINERS[stage](tmp_path, "llama", wide, dtype="bfloat16", tuning=tuning, peak=True)

    trained = Trained(read_shape(seen.base), rank=8)
    # All rows of the head fit at once: 2**22 logits on a CPU, 1024 tokens.
    logits = logits_bytes(trained.shape, seen.answers, with_entropy=stage == "sft")
    step = Pass(seen.tokens, seen.row_tokens, seen.answers, seen.key_share, checkpointing=checkpointing)
    planned = peak_bytes(trained, Precision(2), step, logits=logits)
    assert planned == pytest.approx(seen.bytes, rel=0.1)


def _full(root, model_type, sizes, *, autocast):
    """All weights train: the logits of every position, as in pretraining."""
    base = tiny_model(root / "base", model_type, **sizes)
    model = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
    ids = torch.arange(192).reshape(2, 96) % 250
    with counting(model) as found:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            logits = model(input_ids=ids, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids.flatten())
        seen = sum(found.values())
    assert loss.requires_grad
    return base.path, seen


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_training_every_weight_is_within_a_tenth_too(name, autocast, tmp_path):
    model_type, sizes = sizes_of(name)

    base, seen = _full(tmp_path, model_type, sizes, autocast=autocast)

    step = Pass(192, 96, 0, all_logits=True)
    planned = saved_bytes(Trained(read_shape(base), rank=0), Precision(4, autocast=autocast), step)
    assert sum(planned.values()) == pytest.approx(seen, rel=0.1)
