"""The plan of reward_encoder, held against live encoders: weights, what learns, what autograd keeps."""

from __future__ import annotations

import pytest
import torch

from pipeline.config.run import ModelConfig, TuningConfig
from pipeline.contract import StageCheck
from pipeline.memory.activations import Pass, Precision, saved_bytes
from pipeline.memory.estimate import estimate
from pipeline.memory.families import read_shape, shape_of
from pipeline.memory.trained import Trained
from stages.reward_encoder import SPEC, EncoderRewardConfig
from stages.runtime.encoder import open_encoder
from stages.trainers.pairs import make_batches
from stages.trainers.reward_encoder import EncoderParts, EncoderTrainer
from tests.memory.saved import counting
from tests.pair_fixtures import token_pairs
from tests.test_reward_encoder import tiny_encoder

ENCODERS = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert")
TUNING = TuningConfig(lora_r=8, lora_alpha=8)
WIDE = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4}
DISTIL = {"dim": 128, "hidden_dim": 384, "n_layers": 4, "n_heads": 4}


def _open(root, name, *, tuning=TUNING, dtype="float32"):
    base = tiny_encoder(root / "base", name, sizes=DISTIL if name == "distilbert" else WIDE)
    return base, open_encoder(base, ModelConfig(dtype=dtype), tuning, seed=0)


def _planned(base, **settings):
    work = SPEC.memory(StageCheck("reward", EncoderRewardConfig(**settings), {}, ()))
    return estimate(work, read_shape(base.path))


@pytest.mark.parametrize("targets", ["all-linear", ("query", "value"), ("dense",)])
@pytest.mark.parametrize("name", ENCODERS)
def test_weights_and_what_learns_are_those_of_the_encoder(name, targets, tmp_path):
    if name == "distilbert" and targets != "all-linear":
        targets = ("q_lin", "lin2")
    tuning = TUNING.model_copy(update={"target_modules": targets})
    base, encoder = _open(tmp_path, name, tuning=tuning)

    planned = _planned(base, tuning=tuning, model=ModelConfig(dtype="float32"))

    live = dict(encoder.model.named_parameters())
    learning = sum(value.numel() for value in live.values() if value.requires_grad)
    frozen = sum(value.numel() for value in live.values() if not value.requires_grad)
    assert planned.num_trained == learning
    assert planned.terms["base"].expected == 4 * frozen == 4 * read_shape(base.path).num_parameters
    assert planned.terms["adapters and heads"].expected == 4 * learning


def test_bert_has_its_published_number_of_parameters():
    config = {"model_type": "bert", "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
    config |= {"num_attention_heads": 12, "vocab_size": 30522, "max_position_embeddings": 512}

    # BERT base has 109,482,240 with its pooler; a head of one row and its offset come on top.
    assert shape_of(config).num_parameters == 109_482_240 + 768 + 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert"])
def test_the_plan_is_within_a_tenth_of_what_hooks_see(name, dtype, tmp_path):
    base, encoder = _open(tmp_path, name, dtype=dtype)
    trainer = EncoderTrainer(EncoderParts(encoder), None, EncoderRewardConfig(tuning=TUNING))
    pairs = [pair for pair in token_pairs(24) if len(pair.prompt) >= 7]
    (batch,) = make_batches(pairs, range(len(pairs)), max_tokens=10_000, packed=False)

    with counting(encoder.model) as found:
        loss = trainer.loss(batch)
        seen = sum(found.values())

    assert loss.loss.requires_grad
    rows, length = batch.input_ids.shape
    precision = Precision(torch.finfo(getattr(torch, dtype)).bits // 8)
    trained = Trained(read_shape(base.path), rank=8)
    planned = saved_bytes(trained, precision, Pass(rows * length, length, 0))
    assert sum(planned.values()) == pytest.approx(seen, rel=0.1)
