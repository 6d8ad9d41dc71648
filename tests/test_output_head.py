"""The output head: log-probs from hidden states equal the model's own, for every family."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.errors import ModelError
from stages.runtime.output_head import OutputHead
from tests.tiny import MODEL_TYPES, tiny_config

CHANGES = {
    "gemma2": {"final_logit_softcapping": 2.0},
    "granite": {"logits_scaling": 3.0},
    "cohere": {"logit_scale": 0.25},
}


def random_model(model_type):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(tiny_config(model_type, **CHANGES.get(model_type, {})))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model.requires_grad_(False).eval()


@pytest.mark.parametrize("model_type", [*MODEL_TYPES, "granite", "cohere"])
def test_logprobs_from_hidden_states_equal_the_models_own_logits(model_type):
    model = random_model(model_type)
    ids = torch.tensor([[5, 9, 17, 200, 33]])
    body = getattr(model, model.base_model_prefix)
    hidden = body(input_ids=ids).last_hidden_state[0]
    embedded = model.get_input_embeddings()(ids).detach()
    logits = model(inputs_embeds=embedded).logits[0] / 0.7
    expected = logits.log_softmax(-1)[torch.arange(4), ids[0, 1:]]

    logprobs, _ = OutputHead.of(model, backbone=body).logprobs(hidden[:-1], ids[0, 1:], temperature=0.7)

    assert torch.allclose(logprobs, expected, atol=1e-5)


def test_a_model_that_makes_its_logits_in_another_way_is_refused():
    model = random_model("llama")
    body = model.model
    model.lm_head.register_forward_hook(lambda module, inputs, output: output * 1.1)

    with pytest.raises(ModelError, match="not known here"):
        OutputHead.of(model, backbone=body)
