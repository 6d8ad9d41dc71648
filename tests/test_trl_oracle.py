"""TRL's own trainers as oracles: the same pairs give the same loss and the same adapter gradients."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from peft import PeftConfig, PeftModel
from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig

from pipeline.config.run import TuningConfig
from reward.model import ScoreHead
from stages.dpo import DPOConfig
from stages.reward import RewardConfig
from stages.runtime.loading import backbone, load_base
from stages.runtime.output_head import OutputHead
from stages.runtime.segment_check import supports_segments
from stages.runtime.switch import AdapterSwitch
from stages.trainers.dpo import DPOTrainer
from stages.trainers.pair_data import TokenPair
from stages.trainers.pair_model import PairModel
from stages.trainers.pairs import make_batches
from stages.trainers.reward import RewardTrainer
from tests.pair_fixtures import FP32, TUNING, reopen, sft_adapter, token_pairs
from tests.tiny import tiny_model, tiny_tokenizer

MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "decoder_sparse_step": 1}
ARCHITECTURES = {
    "llama": {},
    "llama-tied": {"tie_word_embeddings": True},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": 6},
    "gemma2": {"sliding_window": 6},
    "phi": {},
    "gpt2": {},
    "gpt_neox": {},
    "qwen3_moe": MOE,
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.0},
    "gpt_oss": {"num_local_experts": 2, "num_experts_per_tok": 1},
    "bloom": {"n_head": 4, "n_layer": 2},
}
"Sliding windows, tied embeddings, fewer key than query heads, learned positions, experts."
UNPACKED = ("gpt_oss", "bloom")
"Attention with sinks or a position bias: rows are padded, and the numbers are the same."
METHODS = ("lora", "qlora")
TOLERANCE = 1e-5
FOUR_BITS = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.float32,
    llm_int8_skip_modules=["score"],
)
"What the stages load a 4-bit base with; the score head stays as it is."


def hard_pairs(margin: float | None = None) -> list[TokenPair]:
    """Pairs as TRL can express them: certain labels, equal weights."""
    return [
        TokenPair(p.prompt, p.chosen, p.rejected, margin=p.margin if margin is None else margin)
        for p in token_pairs(8, seed=4)
    ]


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Return (base, adapter) of an architecture, made once."""
    made = {}

    def open_one(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            base = tiny_model(folder / "base", name.split("-")[0], **ARCHITECTURES[name])
            tuning = (
                TUNING.model_copy(update={"target_modules": ("q_proj", "o_proj")})
                if has_experts(name)
                else TUNING
            )
            made[name] = base, sft_adapter(base, folder / "adapter", scale=0.1, tuning=tuning)
        return made[name]

    return open_one


def options(tmp_path, **changes):
    shared = {"output_dir": str(tmp_path), "report_to": "none", "use_cpu": True, "bf16": False}
    return {**shared, "gradient_checkpointing": False, "logging_strategy": "no", **changes}


def has_experts(name: str) -> bool:
    return "moe" in name or name in ("mixtral", "gpt_oss")


def our_parts(model) -> PairModel:
    reason = supports_segments(model, backbone=backbone(model))
    return PairModel(model, AdapterSwitch(model), None, None, None, reason)


def our_step(trainer, pairs, *, max_tokens=70):
    """Return loss and adapter gradients, packed where the model can be."""
    with trainer.parts.running():
        total = 0.0
        for batch in make_batches(
            pairs, range(len(pairs)), max_tokens=max_tokens, packed=trainer.parts.packed
        ):
            output = trainer.loss(batch)
            output.loss.backward()
            total += float(output.loss)
    return total, gradients(trainer.parts.model)


def gradients(model):
    found = {n: p.grad for n, p in model.named_parameters() if ".default." in n and p.grad is not None}
    return {name.split("base_model.model.")[-1]: grad for name, grad in found.items()}


def assert_same(ours, theirs):
    loss, grads = ours
    expected_loss, expected = theirs
    assert loss == pytest.approx(float(expected_loss), rel=TOLERANCE, abs=1e-6)
    assert grads.keys() == expected.keys()
    one, other = (torch.cat([g[key].flatten() for key in sorted(g)]) for g in (grads, expected))
    assert float(other.norm()) > 1e-3
    assert float((one - other).norm() / other.norm()) < TOLERANCE


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_reward_loss_and_gradients_are_trls(opened, tmp_path, name, method):
    from trl import RewardConfig as TRLRewardConfig
    from trl import RewardTrainer as TRLRewardTrainer

    base, adapter = opened(name)
    pairs = hard_pairs()
    head = ScoreHead.seeded(32, seed=5)
    tuning = TuningConfig(method=method)
    mine = reopen(base, adapter, tuning=tuning)
    ours = RewardTrainer(our_parts(mine), head, RewardConfig(center_rewards_coefficient=0.01))
    assert ours.parts.packed == (name not in UNPACKED)
    assert in_four_bits(mine) == (method == "qlora")
    four_bits = {"quantization_config": FOUR_BITS} if method == "qlora" else {}
    with_score = AutoModelForSequenceClassification.from_pretrained(
        base.path, num_labels=1, dtype=torch.float32, **four_bits
    )
    keep_4bit_unpacked(with_score)
    with_score.config.pad_token_id = 0
    with torch.no_grad():
        with_score.score.weight.copy_(head.weight)
    config = PeftConfig.from_pretrained(adapter.path)
    config.task_type = None  # a causal adapter, on a backbone with a score head
    theirs = PeftModel.from_pretrained(with_score, adapter.path, config=config, is_trainable=True)
    rows = [
        {"chosen_ids": [*p.prompt, *p.chosen], "rejected_ids": [*p.prompt, *p.rejected], "margin": p.margin}
        for p in pairs
    ]
    trainer = TRLRewardTrainer(
        model=theirs,
        args=TRLRewardConfig(**options(tmp_path, center_rewards_coefficient=0.01)),
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny_tokenizer(),
    )
    restore(trainer.model, mine)
    trainer.model.eval()
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    loss.backward()

    assert_same(our_step(ours, pairs), (loss, gradients(trainer.model)))


@pytest.mark.parametrize(
    ("name", "loss_type", "method"),
    [
        *(("llama", loss_type, "lora") for loss_type in ("ipo", "hinge", "robust", "sigmoid_norm")),
        *((name, "sigmoid", method) for name in ARCHITECTURES for method in METHODS),
    ],
)
def test_dpo_loss_and_gradients_are_trls(opened, tmp_path, name, loss_type, method):
    from trl import DPOConfig as TRLDPOConfig
    from trl import DPOTrainer as TRLDPOTrainer

    base, adapter = opened(name)
    pairs, smoothing = hard_pairs(), 0.1 if loss_type == "robust" else 0.0
    # The router is frozen here, so its balance loss has nothing to train.
    extra = {"label_smoothing": smoothing} | ({"router_aux_loss_coef": 0.0} if has_experts(name) else {})
    tuning = TuningConfig(method=method)
    plain = load_base(base, FP32, tuning)
    theirs = PeftModel.from_pretrained(plain, adapter.path, is_trainable=True)
    trainer = TRLDPOTrainer(
        model=theirs,
        args=TRLDPOConfig(**options(tmp_path, loss_type=[loss_type], beta=0.3, **extra)),
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
        processing_class=tiny_tokenizer(),
    )
    mine = reopen(base, adapter, tuning=tuning)
    assert in_four_bits(mine) == (method == "qlora")
    restore(trainer.model, mine)
    for model in (trainer.model, mine):
        shift(model)
    rows = [
        {"prompt_ids": list(p.prompt), "chosen_ids": list(p.chosen), "rejected_ids": list(p.rejected)}
        for p in pairs
    ]
    trainer.model.eval()
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    loss.backward()

    reference = reference_logps(reopen(base, adapter, tuning=tuning), pairs)
    config = DPOConfig(loss_type=loss_type, beta=0.3, label_smoothing=smoothing)
    head = OutputHead.of(mine, backbone=backbone(mine))
    ours = DPOTrainer(our_parts(mine), head, config, reference)
    assert_same(our_step(ours, pairs), (loss, gradients(trainer.model)))


def in_four_bits(model) -> bool:
    return any(type(module).__name__ == "Linear4bit" for module in model.modules())


def keep_4bit_unpacked(model) -> None:
    """Keep bitsandbytes from repacking the base on some CPUs, as load_base does."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def restore(theirs, mine) -> None:
    """Give TRL's policy and reference the stored weights again: 4-bit bases get theirs cast to bfloat16."""
    stored = {
        name: parameter.detach().clone() for name, parameter in mine.named_parameters() if ".lora_" in name
    }
    for name, parameter in theirs.named_parameters():
        if ".lora_" in name:
            parameter.data = stored[name.replace(".ref.", ".default.")].clone()


def shift(model) -> None:
    """Move the policy off its reference, the same way in every model."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if ".default." in name and "lora_B" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)


def reference_logps(model, pairs) -> dict[str, torch.Tensor]:
    """Return the reference's sums from plain full logits, one sequence at a time."""
    sums = {"chosen": [], "rejected": []}
    with torch.no_grad():
        for pair in pairs:
            for side, found in sums.items():
                answer = getattr(pair, side)
                ids = torch.tensor([[*pair.prompt, *answer]])
                logprobs = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
                found.append(logprobs[-len(answer) :].sum())
    return {side: torch.stack(found) for side, found in sums.items()}
