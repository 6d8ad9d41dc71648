"""What PPO on one base costs beside SFT, in exact bytes of live tensors."""

from __future__ import annotations

import gc

import pytest
import torch

from pipeline.config.run import ModelConfig
from stages.runtime.loading import load_base
from stages.trainers.ppo.roles import load_roles
from tests.benchmarks.bench_ppo_memory import bytes_of, measure
from tests.ppo_setup import chain, config

SMALL = {
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 4096,
}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_peak_of_ppo_is_at_most_a_quarter_above_that_of_sft(tmp_path, checkpointing):
    peaks = measure(tmp_path, batch=4, checkpointing=checkpointing, lora_r=4, **SMALL)

    assert peaks.base < peaks.sft
    assert peaks.ratio <= 1.25


def test_four_roles_share_one_copy_of_the_base(tmp_path):
    inputs = chain(tmp_path, vocab_size=777)
    alone = bytes_of(load_base(inputs["base"], ModelConfig(dtype="float32")))
    gc.collect()

    roles = load_roles(inputs, config())

    base = [p for name, p in roles.model.named_parameters() if "lora_" not in name]
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in base}
    assert sum(storages.values()) == alone
    # No second table of the vocabulary is alive anywhere: one embedding, one head.
    tables = {
        t.untyped_storage().data_ptr()
        for t in gc.get_objects()
        if isinstance(t, torch.Tensor) and t.shape == (777, 32)
    }
    assert len(tables) == 2
