"""The sampler: exact log-probs, rows that do not depend on each other, every family of cache."""

from __future__ import annotations

import logging

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from stages.runtime import generation
from stages.runtime.generation import Rollout, sample
from tests.tiny import MODEL_TYPES, tiny_config

PAD = 0
PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14], [20], [30, 31, 32, 33, 34]]


def random_model(config, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "embed" not in name:
                torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.fixture(scope="module")
def llama():
    return random_model(tiny_config("llama", vocab_size=48))


def draw(model, prompts=PROMPTS, *, seed=3, stops=(3, 4), temperature=1.0, **options) -> Rollout:
    generator = torch.Generator().manual_seed(seed)
    options = {"max_new_tokens": 24, **options}
    return sample(
        model,
        prompts,
        stop_token_ids=stops,
        temperature=temperature,
        generator=generator,
        pad_token_id=PAD,
        **options,
    )


def full_forward_logprobs(model, prompt, response, temperature=1.0):
    ids = torch.tensor([[*prompt, *response]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0].float() / temperature
    logprobs = torch.log_softmax(logits, -1)
    first = len(prompt) - 1
    return [float(logprobs[first + i, token]) for i, token in enumerate(response)]


def worst_difference(model, prompts, rollout, temperature=1.0):
    worst = 0.0
    for prompt, response, logprobs in zip(prompts, rollout.responses, rollout.logprobs, strict=True):
        expected = full_forward_logprobs(model, prompt, response, temperature)
        worst = max(worst, *(abs(a - b) for a, b in zip(expected, logprobs, strict=True)))
    return worst


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
def test_logprobs_equal_a_full_forward_of_each_row_alone(llama, temperature):
    rollout = draw(llama, temperature=temperature)

    assert sum(map(len, rollout.responses)) > 20
    assert worst_difference(llama, PROMPTS, rollout, temperature or 1.0) < 1e-5


@pytest.mark.parametrize("model_type", [*MODEL_TYPES, "gemma3_text"])
def test_families_with_other_caches_give_exact_logprobs_and_lose_rows_safely(model_type):
    # gemma2, gemma3 and mistral: a window of 6 tokens, shorter than the sequences.
    changes = {"sliding_window": 6} if model_type in ("gemma2", "gemma3_text", "mistral") else {}
    if model_type == "gemma3_text":
        changes |= {"layer_types": ["sliding_attention", "full_attention"]}
    model = random_model(tiny_config(model_type, vocab_size=48, **changes))

    rollout = draw(model, stops=tuple(range(40, 46)))

    assert len({len(response) for response in rollout.responses}) > 1
    assert worst_difference(model, PROMPTS, rollout) < 1e-5


@pytest.mark.parametrize("model_type", ["qwen3_next", "mamba"])
def test_a_model_with_a_recurrent_state_is_sampled_without_padding_and_says_so(model_type, caplog):
    sizes = {"vocab_size": 48, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 0}
    if model_type == "qwen3_next":
        sizes |= {"layer_types": ["linear_attention", "full_attention"], "head_dim": 8, "num_experts": 0}
        sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64}
        sizes |= {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8}
        sizes |= {"linear_value_head_dim": 8, "mlp_only_layers": [0, 1]}
    model = random_model(AutoConfig.for_model(model_type, **sizes))

    with caplog.at_level(logging.WARNING):
        rollout = draw(model, [*PROMPTS, [4, 4, 4]], max_new_tokens=8)

    assert "cannot be padded" in caplog.text
    assert worst_difference(model, [*PROMPTS, [4, 4, 4]], rollout) < 1e-4


def test_every_stop_token_ends_a_response_and_is_its_last_token(llama):
    stops = (7, 19, 33)

    rollout = draw(llama, [[9, 9]] * 16, stops=stops, max_new_tokens=40)

    endings = {
        response[-1] for response, done in zip(rollout.responses, rollout.finished, strict=True) if done
    }
    assert len(endings) > 1
    assert endings <= set(stops)
    for response, done in zip(rollout.responses, rollout.finished, strict=True):
        assert not set(response[:-1]) & set(stops)
        assert done or len(response) == 40


def test_a_row_gets_the_same_response_alone_in_small_batches_and_beside_others(llama):
    together = draw(llama)

    two_by_two = draw(llama, batch_size=2)
    never_compacted = draw_with_compaction_at(0.0, llama)

    assert two_by_two.responses == together.responses
    assert never_compacted.responses == together.responses


def draw_with_compaction_at(share, model):
    before = generation.COMPACT_AT
    generation.COMPACT_AT = share
    try:
        return draw(model)
    finally:
        generation.COMPACT_AT = before


def test_finished_rows_leave_the_batch(llama, monkeypatch):
    widths = []
    forward = llama.forward

    def counted(*args, **kwargs):
        widths.append(kwargs["input_ids"].shape[0])
        return forward(*args, **kwargs)

    monkeypatch.setattr(llama, "forward", counted)
    rollout = draw(llama, [[9, 9]] * 8, stops=tuple(range(12)), max_new_tokens=30)

    rows_needed = sum(len(response) for response in rollout.responses)
    assert widths[0] == 8
    assert widths[-1] < 8
    assert sum(widths) < rows_needed / generation.COMPACT_AT + 8


def test_the_same_generator_state_gives_the_same_rollout_and_global_state_is_untouched(llama):
    before = torch.get_rng_state()

    first, second, other = draw(llama), draw(llama), draw(llama, seed=4)

    assert first == second
    assert first.responses != other.responses
    assert torch.equal(torch.get_rng_state(), before)


def test_greedy_takes_the_most_likely_token_of_a_full_forward(llama):
    rollout = sample(
        llama,
        PROMPTS,
        max_new_tokens=6,
        stop_token_ids=(),
        temperature=0,
        generator=None,
        pad_token_id=PAD,
    )

    for prompt, response in zip(PROMPTS, rollout.responses, strict=True):
        ids = list(prompt)
        for token in response:
            with torch.no_grad():
                assert token == int(llama(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            ids.append(token)


def test_sampled_frequencies_follow_the_softmax(llama):
    # 6000 draws of one token: each count is binomial, so 5 standard errors of the largest share
    # (sqrt(0.25 / 6000) = 0.0065) bound every difference.
    rollout = draw(llama, [[5, 6]] * 6000, stops=(), max_new_tokens=1, batch_size=6000)
    with torch.no_grad():
        expected = torch.softmax(llama(input_ids=torch.tensor([[5, 6]])).logits[0, -1], -1)

    counts = torch.bincount(torch.tensor([row[0] for row in rollout.responses]), minlength=48) / 6000

    assert float((counts - expected).abs().max()) < 5 * 0.0065


def test_top_p_draws_only_from_the_nucleus(llama):
    with torch.no_grad():
        probabilities = torch.softmax(llama(input_ids=torch.tensor([[5, 6]])).logits[0, -1], -1)
    ordered, tokens = probabilities.sort(descending=True)
    size = int((ordered.cumsum(0) < 0.5).sum()) + 1
    nucleus = set(tokens[:size].tolist())

    rollout = draw(llama, [[5, 6]] * 500, stops=(), max_new_tokens=1, top_p=0.5, batch_size=500)

    assert {row[0] for row in rollout.responses} == nucleus


def test_the_active_adapter_of_a_peft_model_is_the_one_that_speaks(llama):
    model = random_model(tiny_config("llama", vocab_size=48))
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    model.train()

    rollout = draw(model)

    model.eval()
    assert worst_difference(model, PROMPTS, rollout) < 1e-5
    assert worst_difference(llama, PROMPTS, rollout) > 0.1


def test_sampling_leaves_the_mode_of_every_module_as_it_was(llama):
    layers = list(llama.model.layers)
    for layer in layers:
        layer.training = True

    draw(llama, max_new_tokens=2)

    assert [part for part in llama.modules() if part.training] == layers
    llama.eval()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"prompts": [[]]}, "no tokens", id="empty prompt"),
        pytest.param({"max_new_tokens": 0}, "max_new_tokens", id="no room"),
        pytest.param({"temperature": -1.0}, "out of range", id="temperature"),
        pytest.param({"top_p": 0.0}, "out of range", id="top_p"),
    ],
)
def test_calls_that_cannot_be_answered_are_refused(llama, changes, message):
    with pytest.raises(ValueError, match=message):
        draw(llama, **changes)


def test_a_sampled_call_without_a_generator_is_refused(llama):
    with pytest.raises(ValueError, match="Generator"):
        sample(
            llama,
            PROMPTS,
            max_new_tokens=1,
            stop_token_ids=(),
            temperature=1.0,
            generator=None,
            pad_token_id=PAD,
        )
