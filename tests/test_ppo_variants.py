"""The PPO loop with other advantages and another place for the value function, on a tiny model."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from pipeline.errors import Interrupted
from stages.ppo import SPEC, PPOConfig
from stages.runtime.adapters import named_adapter_parameters
from stages.trainers.ppo import loop as trainer
from stages.trainers.ppo.batches import Episode, packed_batch, padded_batch
from stages.trainers.ppo.plan import minibatches, prompts_of
from stages.trainers.ppo.roles import POLICY, REFERENCE, REWARD, VALUE, load_roles
from stages.trainers.ppo.setting import open_setting
from tests import ppo_setup as setup
from tests.ppo_setup import chain, config, largest_difference, one_update
from tests.tiny import ManualStop, stage_context

RLOO = {"advantage": "rloo", "num_generations": 4}
GRPO = {"advantage": "grpo", "num_generations": 2}
TRUNK = {"value": "trunk"}
VARIANTS = [
    pytest.param(RLOO, id="rloo"),
    pytest.param(GRPO, id="grpo"),
    pytest.param(TRUNK, id="value on the trunk"),
]
FILE = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return chain(tmp_path_factory.mktemp("chain"))


@pytest.mark.parametrize("changes", VARIANTS)
def test_four_iterations_equal_two_and_two_and_the_first_ratio_is_one(inputs, tmp_path, changes):
    settings = config(total_iterations=4, save_steps=100, **changes)
    straight = stage_context(tmp_path / "straight", settings, inputs)
    whole = SPEC.run(straight)

    with pytest.raises(Interrupted):
        SPEC.run(stage_context(tmp_path / "parts", settings, inputs, stop=ManualStop(after=1)))
    parts = SPEC.run(stage_context(tmp_path / "parts", settings, inputs))

    assert straight.logger.series("ppo/first_ratio_error") == [0.0] * 4
    assert straight.logger.series("objective/kl")[0] == 0.0
    assert set(whole.outputs) == set(SPEC.outputs_with(settings)) == set(parts.outputs)
    for role in whole.outputs:
        assert (whole.outputs[role] / FILE).read_bytes() == (parts.outputs[role] / FILE).read_bytes()
    assert whole.metrics == parts.metrics


@pytest.mark.parametrize("changes", [pytest.param(RLOO, id="rloo"), pytest.param(GRPO, id="grpo")])
def test_without_a_value_function_none_is_loaded_trained_logged_or_given(inputs, tmp_path, changes):
    roles = load_roles(inputs, config(**changes))
    ctx = stage_context(tmp_path, config(**changes), inputs)

    result = SPEC.run(ctx)

    assert tuple(roles.model.peft_config) == (POLICY, REFERENCE, REWARD)
    assert roles.value_head is None
    assert roles.value_parameters() == {}
    assert set(result.outputs) == {"adapter"}
    assert not {"loss/value_avg", "ppo/explained_variance"} & set(ctx.logger.lines[0])


def test_each_prompt_of_a_group_iteration_is_answered_several_times_side_by_side():
    chosen = prompts_of(3, num_prompts=5, batch_size=12, seed=1, group_size=4)

    assert [chosen[i] for i in range(12)] == [p for p in chosen[::4] for _ in range(4)]
    # Four groups an epoch of five prompts: all prompts come equally often in the long run.
    many = [
        row for i in range(5) for row in prompts_of(i, num_prompts=5, batch_size=12, seed=1, group_size=4)
    ]
    assert set(Counter(many).values()) == {12}


def test_the_responses_to_a_prompt_stay_together_in_every_minibatch():
    lengths = [9, 2, 4, 4, 7, 1, 3, 3]

    plan = minibatches(lengths, config(**GRPO, num_mini_batches=2), iteration=0, epoch=1)

    for part in plan:
        rows = [row for micro in part for row in micro]
        assert all(b == a + 1 and a % 2 == 0 for a, b in zip(rows[::2], rows[1::2], strict=True))
    assert sorted(row for part in plan for micro in part for row in micro) == list(range(8))


def test_a_prompt_that_neighbours_share_is_computed_once_and_read_as_if_it_were_not(inputs):
    roles = load_roles(inputs, config(**RLOO))
    first, second = tuple(range(10, 30)), tuple(range(40, 49))
    responses = [[50, 51, 52], [60], [61, 62, 63, 64], [70, 71]]
    episodes = [
        Episode(prompt, r) for prompt, r in zip((first, first, first, second), responses, strict=True)
    ]
    shared, padded = (make(episodes, roles.device) for make in (packed_batch, padded_batch))

    with torch.no_grad():
        with roles.reading():
            ours = roles.read_policy(shared).logprobs
            ours_scores = roles.scores(shared)
        roles = load_roles(inputs, config(**RLOO))
        plain = roles.read_policy(padded).logprobs
        plain_scores = roles.scores(padded)

    # 20 + 3 + 1 + 4 and 9 + 2 tokens; padded it would be 4 rows of 24.
    assert shared.input_ids.shape == (1, 39)
    assert padded.input_ids.shape == (4, 24)
    assert torch.allclose(ours, plain, atol=1e-5)
    assert torch.allclose(ours_scores, plain_scores, atol=1e-5)


def test_with_shared_prompts_the_update_is_that_of_padded_rows(inputs, tmp_path, monkeypatch):
    options = {"num_mini_batches": 1, "num_ppo_epochs": 1, "adam_epsilon": 1e-2, "max_grad_norm": 1e3, **RLOO}
    options["per_device_train_batch_size"] = 8
    _, _, packed, _ = one_update(inputs, tmp_path / "a", **options)
    monkeypatch.setattr("stages.trainers.ppo.roles.supports_segments", lambda *a, **o: "asked by the test")

    setting, _, padded, _ = one_update(inputs, tmp_path / "b", **options)

    assert setting.roles.unpacked_because == "asked by the test"
    assert largest_difference(packed, padded) < 1e-6


def test_a_value_head_on_the_trunk_learns_with_the_policy_in_one_pass(inputs, tmp_path):
    setting, before, after, sums = one_update(inputs, tmp_path, **TRUNK)

    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {*dict(named_adapter_parameters(setting.roles.model, POLICY)), "head.weight"}
    assert VALUE not in setting.roles.model.peft_config
    assert sums.means()["loss/value_avg"] > 0


def test_on_the_trunk_the_value_loss_reaches_the_policys_adapter(inputs, tmp_path):
    # Without advantages the policy loss has no gradient: what moves the adapter is the value loss.
    roles = open_setting(stage_context(tmp_path, config(**TRUNK), inputs)).roles
    batch = roles.batch([Episode((5, 6, 7), [8, 9])])
    with torch.no_grad():
        roles.value_head.weight.fill_(0.1)

    with roles.reading():
        roles.read_policy(batch).values.sum().backward()

    norms = [float(p.grad.norm()) for p in roles.policy_parameters().values() if p.grad is not None]
    assert max(norms) > 0


def test_the_value_function_of_a_trunk_opens_with_plain_peft(inputs, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(trainer, "open_setting", lambda ctx: opened.append(open_setting(ctx)) or opened[-1])
    result = SPEC.run(stage_context(tmp_path, config(**TRUNK), inputs))
    roles, ids = opened[0].roles, torch.arange(5, 25)[None]
    base = AutoModelForSequenceClassification.from_pretrained(
        inputs["base"].path, num_labels=1, pad_token_id=0
    )

    value = PeftModel.from_pretrained(base, result.outputs["value"]).eval()

    with torch.no_grad(), roles.switch.on(POLICY):
        hidden = roles.model.get_base_model().model(input_ids=ids).last_hidden_state
        assert torch.allclose(value(input_ids=ids).logits[0], roles.value_head(hidden[:, -1]), atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({**RLOO, "rollout_batch_size": 10}, "whole groups of 4", id="broken group"),
        pytest.param({**RLOO, "num_mini_batches": 3}, "more than the 2 groups", id="too many minibatches"),
        pytest.param({**TRUNK, "value_init": "reward"}, "head of zeros", id="trunk from the reward model"),
    ],
)
def test_settings_of_variants_that_cannot_work_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_the_estimator_says_where_the_value_function_lives():
    assert PPOConfig().value_on == "adapter"
    assert PPOConfig(value="trunk").value_on == "trunk"
    assert PPOConfig(advantage="rloo", value="trunk").value_on is None


def test_importance_weights_leave_an_exact_generator_alone_and_are_capped_for_another(
    inputs, tmp_path, monkeypatch
):
    options = {"num_mini_batches": 1, "num_ppo_epochs": 1, "adam_epsilon": 1e-2, "max_grad_norm": 1e3}
    _, _, plain, _ = one_update(inputs, tmp_path / "a", **options)
    _, _, weighed, _ = one_update(inputs, tmp_path / "b", importance_cap=2.0, **options)

    take = setup.gather

    def colder(setting, iteration):
        rollouts, readings = take(setting, iteration)
        shifted = replace(rollouts, sampled_logprobs=rollouts.sampled_logprobs - math.log(3.0))
        return shifted, readings

    monkeypatch.setattr(setup, "gather", colder)
    *_, sums = one_update(inputs, tmp_path / "c", importance_cap=2.0, **options)
    *_, plain_sums = one_update(inputs, tmp_path / "d", **options)

    assert largest_difference(plain, weighed) < 1e-6
    # Every token was three times likelier here; the weight stops at 2.
    assert sums.means()["loss/policy_avg"] == pytest.approx(
        2 * plain_sums.means()["loss/policy_avg"], abs=1e-6
    )
    assert sums.means()["ppo/policy_grad_norm"] == pytest.approx(
        2 * plain_sums.means()["ppo/policy_grad_norm"], rel=1e-4
    )
