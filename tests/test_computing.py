"""What was chosen for the device stands in the record of every stage that opens a model."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from pipeline.config.run import ModelConfig, TuningConfig
from pipeline.record import EnvironmentRecord, environment
from stages.runtime import computing
from stages.runtime.computing import computing_of
from stages.runtime.loading import load_base
from tests.memory.saved_by_trl import open_trainer
from tests.test_tunings import Chain
from tests.tiny import stage_context, tiny_model

SMALL = {"lora_r": 4, "lora_alpha": 8}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    sizes = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    return tiny_model(tmp_path_factory.mktemp("base") / "llama", **sizes)


@pytest.mark.parametrize(
    ("tuning", "weights", "layers"),
    [
        ({}, "float32", "kept"),
        ({"method": "qlora", "gradient_checkpointing": True}, "nf4, the rest float32", "recomputed"),
        pytest.param({"method": "8bit"}, "8 bits, the rest float32", "kept", marks=pytest.mark.slow),
    ],
)
def test_every_stage_says_how_it_computed(tuning, weights, layers, base, tmp_path):
    chain = Chain(tmp_path, base, TuningConfig(**tuning, **SMALL))

    for kind in ("sft", "reward", "dpo", "ppo"):
        assert chain.run(kind).result.computing == {
            "weights": weights,
            "products": "float32",
            "attention": "packed rows, sdpa elsewhere",
            "layers": layers,
            "activations": "on the device",
        }


def test_what_the_run_file_asks_for_is_what_is_recorded(base):
    asked = ModelConfig(dtype="bfloat16", attn_implementation="eager")

    found = computing_of(load_base(base, asked), asked, None)

    assert found == {"weights": "bfloat16", "products": "bfloat16", "attention": "eager"}


def test_on_a_card_autocast_and_offloading_are_said(base, monkeypatch):
    model = load_base(base, ModelConfig(dtype="float32"))
    monkeypatch.setattr(computing, "device", lambda: torch.device("cuda"))
    tuning = TuningConfig(activation_offloading=True)

    whole = computing_of(model, ModelConfig(), tuning, autocast=True)
    exact = computing_of(model, ModelConfig(dtype="float32"), tuning, autocast=True)

    assert (whole["weights"], whole["products"], whole["activations"]) == (
        "float32",
        "bfloat16",
        "on the host",
    )
    assert exact["products"] == "float32"


@pytest.mark.parametrize("kind", ["kto", pytest.param("grpo", marks=pytest.mark.slow)])
def test_stages_of_trl_say_it_too(kind, base, tmp_path):
    from stages.trainers.trl_policy import policy_result

    trainer = open_trainer(kind, tmp_path, base, TuningConfig(**SMALL))
    config = SimpleNamespace(model=ModelConfig(dtype="float32"), tuning=TuningConfig(**SMALL))
    ctx = stage_context(tmp_path / "out", config, {"base": base})

    result = policy_result(trainer, ctx, SimpleNamespace(metrics=dict), {}, ())

    assert result.computing["attention"] == "sdpa"
    assert result.computing["weights"] == result.computing["products"] == "float32"


def test_records_of_before_hold_nothing_of_it_and_can_be_read():
    before = environment("cpu").model_dump()
    del before["computing"]

    assert EnvironmentRecord.model_validate(before).computing == {}
    assert environment("cpu", computing={"weights": "nf4"}).computing == {"weights": "nf4"}
