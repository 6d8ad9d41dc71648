"""Packed rows against separate sequences: values, gradients, windows, soft caps and models that cannot."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from stages.runtime.segment_check import supports_segments
from stages.runtime.segments import Segments, pack_row, segment_model
from tests.tiny import tiny_config

GROUPS = [
    ([5, 6, 7, 8], [[9, 10, 11], [12, 13], [14]]),
    ([20, 21], [[22], [23, 24, 25, 26]]),
]


def build(model_type="llama", *, seed=0, **changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(tiny_config(model_type, **changes)).eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.15)
    return model


def packed_hidden(model, groups):
    row, segments = pack_row(groups)
    with segment_model(model):
        out = model.base_model(
            input_ids=row, position_ids=segments.position_ids(), segments=segments, use_cache=False
        )
    return out.last_hidden_state[0].split(segments.query_lengths)


def separate_hidden(model, groups):
    rows = [prompt + answer for prompt, answers in groups for answer in answers]
    return [model.base_model(torch.tensor([row])).last_hidden_state[0] for row in rows]


def assert_equal(model, groups, atol=1e-5):
    packed, separate = packed_hidden(model, groups), separate_hidden(model, groups)
    for block, whole in zip(packed, separate, strict=True):
        torch.testing.assert_close(block, whole[-len(block) :], atol=atol, rtol=1e-5)


def test_lengths_and_positions_worked_by_hand():
    _, segments = pack_row(GROUPS)

    assert segments.query_lengths == [7, 2, 1, 3, 4]
    assert segments.key_lengths == [7, 6, 5, 3, 6]
    # p1 c1 | r1 goes on at 4 | third answer too | p2 c2 | r2 goes on at 2
    expected = [0, 1, 2, 3, 4, 5, 6, 4, 5, 4, 0, 1, 2, 2, 3, 4, 5]
    assert segments.position_ids().tolist() == [expected]
    assert segments.total == 17


def test_the_mask_of_an_answer_sees_its_prompt_and_its_own_past():
    mask = Segments.of([(2, [1, 2])]).mask(2, 4, None, torch.zeros(1))

    assert mask.isinf().tolist() == [[False, False, False, True], [False, False, False, False]]


def test_a_window_of_two_sees_itself_and_one_before():
    mask = Segments.of([(2, [1, 2])]).mask(2, 4, 2, torch.zeros(1))

    assert mask.isinf().tolist() == [[True, False, False, True], [True, True, False, False]]


@pytest.mark.parametrize(
    "model_type", ["llama", "qwen2", "mistral", "phi", "gpt2", "gemma2", "gpt_neox", "qwen3"]
)
def test_packed_equals_separate_on_real_architectures(model_type):
    assert_equal(build(model_type), GROUPS)


def test_a_sliding_window_shorter_than_the_prompt_is_kept():
    model = build("mistral", sliding_window=3)

    assert_equal(model, GROUPS)
    wide = build("mistral", sliding_window=None)
    assert not torch.allclose(packed_hidden(model, GROUPS)[0], packed_hidden(wide, GROUPS)[0], atol=1e-3)


def test_soft_capped_scores_are_kept():
    model = build("gemma2", attn_logit_softcapping=0.5, sliding_window=3, attn_implementation="eager")

    assert_equal(model, GROUPS)


def test_gradients_equal_those_of_separate_sequences():
    model = build("llama")
    weights = [torch.linspace(-1, 1, 32 * len(block)).view(-1, 32) for block in packed_hidden(model, GROUPS)]

    def gradients(hidden):
        # The first block of a prompt carries it; the others count their own answer only.
        loss = sum((h[-len(w) :] * w).sum() for h, w in zip(hidden, weights, strict=True))
        return torch.autograd.grad(loss, [p for p in model.base_model.parameters() if p.requires_grad])

    row, segments = pack_row(GROUPS)
    with segment_model(model):
        hidden = model.base_model(
            input_ids=row, position_ids=segments.position_ids(), segments=segments
        ).last_hidden_state[0]
        packed = gradients(hidden.split(segments.query_lengths))
    separate = gradients(separate_hidden(model, GROUPS))

    for got, expected in zip(packed, separate, strict=True):
        torch.testing.assert_close(
            got, expected, atol=1e-5 * max(1.0, float(expected.abs().max())), rtol=1e-5
        )


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 6), st.lists(st.integers(1, 5), min_size=1, max_size=3)),
        min_size=1,
        max_size=3,
    )
)
def test_any_layout_equals_separate_sequences(lengths):
    ids = iter(range(5, 261))
    take = lambda n: [next(ids) for _ in range(n)]  # noqa: E731
    groups = [(take(prompt), [take(n) for n in answers]) for prompt, answers in lengths]

    assert_equal(build("llama"), groups)


def test_the_order_of_answers_changes_nothing():
    model = build("llama")
    prompt, answers = GROUPS[0]

    first = packed_hidden(model, [(prompt, answers)])
    swapped = packed_hidden(model, [(prompt, answers[::-1])])

    torch.testing.assert_close(first[0][-3:], swapped[2], atol=1e-5, rtol=0)
    torch.testing.assert_close(first[2], swapped[0][-1:], atol=1e-5, rtol=0)


def test_the_attention_of_before_comes_back_after_an_error():
    model = build("llama")
    before = model.config._attn_implementation

    with pytest.raises(ZeroDivisionError), segment_model(model):
        _ = 1 / 0

    assert model.config._attn_implementation == before


def test_a_forward_without_segments_is_refused():
    model = build("llama")

    with segment_model(model), pytest.raises(NotImplementedError, match="segments"):
        model(torch.tensor([[1, 2]]))


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2", "qwen3_moe"])
def test_the_self_test_accepts_what_can_be_packed(model_type):
    extra = (
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
        if "moe" in model_type
        else {}
    )
    model = build(model_type, **extra)

    assert supports_segments(model, backbone=model.base_model) is None


@pytest.mark.parametrize("model_type", ["gpt_oss", "bloom", "mamba"])
def test_the_self_test_names_why_a_model_cannot_be_packed(model_type):
    sizes = {
        "gpt_oss": {"num_local_experts": 2, "num_experts_per_tok": 1},
        "bloom": {"n_head": 4, "n_layer": 2},
    }
    model = build(model_type, **sizes.get(model_type, {}))

    reason = supports_segments(model, backbone=model.base_model)

    assert reason
    assert "packed" in reason


def test_the_self_test_sees_a_wrong_mask(monkeypatch):
    model = build("llama")
    monkeypatch.setattr(
        Segments, "gather", lambda self, states: list(states.split(self.query_lengths, dim=2))
    )
    monkeypatch.setattr(Segments, "mask", lambda *_: None)

    assert "differ" in supports_segments(model, backbone=model.base_model)


def test_a_group_without_an_answer_is_refused():
    with pytest.raises(ValueError, match="answers"):
        Segments.of([(3, [])])
