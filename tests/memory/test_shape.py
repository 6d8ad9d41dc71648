"""Every weight is counted: held against transformers' own models on the meta device."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from pipeline.errors import ModelError
from pipeline.memory.families import read_shape, shape_of
from tests.memory.shapes import FAMILIES, keys_of


def _on_meta(name):
    config = AutoConfig.for_model(FAMILIES[name][0], **keys_of(name))
    with torch.device("meta"):
        return config, AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_class_of_weights_has_the_size_that_transformers_gives_it(name, tmp_path):
    config, model = _on_meta(name)
    config.save_pretrained(tmp_path)

    shape = read_shape(tmp_path)

    head = model.get_output_embeddings()
    linears = {
        module.weight: module
        for module in model.modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head
    }
    tables = {module.weight for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    own_head = set(head.parameters()) - tables
    assert shape.num_linear == sum(weight.numel() for weight in linears)
    assert shape.num_embedding == sum(weight.numel() for weight in tables)
    assert shape.num_head == sum(weight.numel() for weight in own_head)
    assert shape.num_parameters == sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_the_linear_maps_of_a_layer_have_their_names_and_sizes(name, tmp_path):
    config, model = _on_meta(name)
    head = model.get_output_embeddings()

    found = sorted(
        (path, tuple(sorted(module.weight.shape)), module.bias is not None)
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head and ".0." in path
    )

    shape = shape_of(config.to_dict())
    expected = [
        (shape.path(0, one), tuple(sorted((one.inputs, one.outputs))), one.bias) for one in shape.linears
    ]
    assert found == sorted(expected)


# Parameters as the model cards and papers give them, from the published config.json of each.
PUBLISHED = {
    "Llama-3.1-8B": (
        {
            "model_type": "llama",
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
            "tie_word_embeddings": False,
        },
        8_030_261_248,
    ),
    "Qwen2.5-0.5B": (
        {
            "model_type": "qwen2",
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
        },
        494_032_768,
    ),
    "Mixtral-8x7B": (
        {
            "model_type": "mixtral",
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 32000,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "tie_word_embeddings": False,
        },
        46_702_792_704,
    ),
    "Qwen3-30B-A3B": (
        {
            "model_type": "qwen3_moe",
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "moe_intermediate_size": 768,
            "num_hidden_layers": 48,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "vocab_size": 151936,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "tie_word_embeddings": False,
        },
        30_532_122_624,
    ),
    "gpt2": (
        {
            "model_type": "gpt2",
            "n_embd": 768,
            "n_layer": 12,
            "n_head": 12,
            "n_positions": 1024,
            "vocab_size": 50257,
        },
        124_439_808,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_public_models_have_their_published_number_of_parameters(name):
    config, published = PUBLISHED[name]

    assert shape_of(config).num_parameters == published


def test_experts_whose_blocks_are_not_known_are_refused_in_words():
    with pytest.raises(ModelError, match="experts of model_type 'gpt_oss'") as caught:
        shape_of({"model_type": "gpt_oss", "num_local_experts": 8})

    assert caught.value.findings[0].code == "experts-not-planned"
    assert "mixtral" in caught.value.findings[0].hint


@pytest.mark.parametrize("changes", [{"mlp_only_layers": [0]}, {"decoder_sparse_step": 2}])
def test_experts_in_some_layers_only_are_refused_in_words(changes):
    config = {**keys_of("qwen3_moe"), "model_type": "qwen3_moe", **changes}

    with pytest.raises(ModelError, match="only some of its layers have experts"):
        shape_of(config)


def test_an_unknown_family_is_refused_with_the_known_ones():
    with pytest.raises(ModelError, match="'rwkv'") as caught:
        shape_of({"model_type": "rwkv"})

    assert "llama" in caught.value.findings[0].hint


def test_a_missing_size_is_named():
    with pytest.raises(ModelError, match="needs hidden_size"):
        shape_of({"model_type": "llama"})


def test_the_text_part_of_a_larger_model_is_read(tmp_path):
    inner = keys_of("llama, tied") | {"model_type": "llama", "tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "other", "text_config": inner}))

    assert read_shape(tmp_path) == shape_of(inner)
