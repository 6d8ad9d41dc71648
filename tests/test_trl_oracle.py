"""TRL's own trainers as oracles: the same pairs give the same loss and the same adapter gradients."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from peft import PeftConfig, PeftModel
from transformers import AutoModelForSequenceClassification

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
    "llama-nf4": {},
    "llama-tied": {"tie_word_embeddings": True},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": 6},
    "gemma2": {"sliding_window": 6},
    "phi": {},
    "gpt2": {},
    "gpt_neox": {},
    "qwen3_moe": MOE,
}
TOLERANCE = 1e-5


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
                if "moe" in name
                else TUNING
            )
            made[name] = base, sft_adapter(base, folder / "adapter", scale=0.1, tuning=tuning)
        return made[name]

    return open_one


def options(tmp_path, **changes):
    shared = {"output_dir": str(tmp_path), "report_to": "none", "use_cpu": True, "bf16": False}
    return {**shared, "gradient_checkpointing": False, "logging_strategy": "no", **changes}


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


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "llama-nf4"])
def test_reward_loss_and_gradients_are_trls(opened, tmp_path, name):
    from trl import RewardConfig as TRLRewardConfig
    from trl import RewardTrainer as TRLRewardTrainer

    base, adapter = opened(name)
    pairs = hard_pairs()
    head = ScoreHead.seeded(32, seed=5)
    ours = RewardTrainer(
        our_parts(reopen(base, adapter)), head, RewardConfig(center_rewards_coefficient=0.01)
    )
    with_score = AutoModelForSequenceClassification.from_pretrained(
        base.path, num_labels=1, dtype=torch.float32
    )
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
    trainer.model.eval()
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    loss.backward()

    assert_same(our_step(ours, pairs), (loss, gradients(trainer.model)))


@pytest.mark.parametrize(
    ("name", "loss_type"),
    [
        ("llama", "sigmoid"),
        ("llama", "ipo"),
        ("llama", "hinge"),
        ("llama", "robust"),
        ("llama", "sigmoid_norm"),
        ("llama-nf4", "sigmoid"),
        *((name, "sigmoid") for name in ARCHITECTURES if name not in ("llama", "llama-nf4")),
    ],
)
def test_dpo_loss_and_gradients_are_trls(opened, tmp_path, name, loss_type):
    from trl import DPOConfig as TRLDPOConfig
    from trl import DPOTrainer as TRLDPOTrainer

    base, adapter = opened(name)
    pairs, smoothing = hard_pairs(), 0.1 if loss_type == "robust" else 0.0
    # The router is frozen here, so its balance loss has nothing to train.
    extra = {"label_smoothing": smoothing} | ({"router_aux_loss_coef": 0.0} if "moe" in name else {})
    tuning = TuningConfig(method="qlora") if name.endswith("nf4") else None
    plain = load_base(base, FP32, tuning)
    theirs = PeftModel.from_pretrained(plain, adapter.path, is_trainable=True)
    trainer = TRLDPOTrainer(
        model=theirs,
        args=TRLDPOConfig(**options(tmp_path, loss_type=[loss_type], beta=0.3, **extra)),
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
        processing_class=tiny_tokenizer(),
    )
    mine = reopen(base, adapter, tuning=tuning)
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
