"""The PPO stage on a tiny model: what must hold exactly, run end to end through the card."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from pipeline.config.run import ModelConfig
from pipeline.contract import ArtifactKind, StageCheck
from pipeline.errors import ConfigError, DataError, HandOverError, Interrupted, ModelError, StageFailed
from stages.ppo import SPEC, PPOConfig
from stages.runtime.adapters import named_adapter_parameters
from stages.runtime.saving.checkpoints import CheckpointFolder, checkpoint_key
from stages.trainers.ppo import loop as trainer
from stages.trainers.ppo import update as ppo_update
from stages.trainers.ppo.loop import gather
from stages.trainers.ppo.plan import learning_rate_factor, minibatches, prompts_of
from stages.trainers.ppo.roles import POLICY, REFERENCE, REWARD, VALUE, load_roles
from stages.trainers.ppo.setting import open_setting
from tests.ppo_setup import TUNING, chain, config, largest_difference, one_update, without, written
from tests.tiny import MODEL_TYPES, ManualStop, as_checkpoint, stage_context

FLOAT32 = ModelConfig(dtype="float32")
BFLOAT16 = ModelConfig(dtype="bfloat16")
CHECKPOINTING = TUNING.model_copy(update={"gradient_checkpointing": True})


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return chain(tmp_path_factory.mktemp("chain"))


@pytest.mark.parametrize(
    "tuning", [pytest.param(TUNING, id="plain"), pytest.param(CHECKPOINTING, id="recomputed")]
)
@pytest.mark.parametrize("model", [pytest.param(FLOAT32, id="fp32"), pytest.param(BFLOAT16, id="bf16")])
def test_at_step_zero_the_reference_is_the_policy_and_the_ratio_is_one(inputs, tmp_path, model, tuning):
    ctx = stage_context(tmp_path, config(model=model, tuning=tuning, total_iterations=1), inputs)

    SPEC.run(ctx)

    line = ctx.logger.lines[0]
    assert line["objective/kl"] == 0.0
    assert line["ppo/kl_k3"] == 0.0
    assert line["ppo/first_ratio_error"] == 0.0
    assert line["policy/approxkl_avg"] > 0.0
    assert line["ppo/logprob_mismatch_max"] < (1e-5 if model is FLOAT32 else 5e-2)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_family_trains_and_its_sampler_agrees_with_the_training_path(tmp_path, model_type):
    inputs = chain(tmp_path / "chain", model_type=model_type)
    ctx = stage_context(tmp_path, config(total_iterations=1, temperature=0.7), inputs)

    SPEC.run(ctx)

    assert ctx.logger.series("ppo/logprob_mismatch_max")[0] < 1e-5
    assert ctx.logger.series("ppo/first_ratio_error") == [0.0]
    assert ctx.logger.series("objective/kl") == [0.0]


def test_a_temperature_that_differs_between_sampler_and_training_shows_as_a_mismatch(
    inputs, tmp_path, monkeypatch
):
    sample = trainer.sample_rollouts
    hotter = config(temperature=1.4)
    monkeypatch.setattr(
        trainer, "sample_rollouts", lambda roles, prompts, _config, **o: sample(roles, prompts, hotter, **o)
    )
    ctx = stage_context(tmp_path, config(total_iterations=1, temperature=0.7), inputs)

    SPEC.run(ctx)

    assert ctx.logger.series("ppo/logprob_mismatch")[0] > 1e-2


def test_training_moves_the_policy_and_the_value_function_and_nothing_else(inputs, tmp_path):
    setting, before, after, _ = one_update(inputs, tmp_path)

    moved = {name for name in before if not torch.equal(before[name], after[name])}
    policy = dict(named_adapter_parameters(setting.roles.model, POLICY))
    value = dict(named_adapter_parameters(setting.roles.model, VALUE))
    assert moved == {*policy, *value, "head.weight"}


def test_each_loss_gives_gradients_to_its_own_role_only(inputs, tmp_path):
    roles = open_setting(stage_context(tmp_path, config(), inputs)).roles
    rollouts, _ = gather(open_setting(stage_context(tmp_path, config(), inputs)), 0)
    batch = roles.batch(rollouts.take([0, 1]))

    def owners():
        graded = {
            n for n, p in roles.model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0
        }
        graded |= {"head" for p in roles.value_head.parameters() if p.grad is not None}
        roles.model.zero_grad()
        roles.value_head.zero_grad()
        return {next((r for r in (POLICY, REFERENCE, REWARD, VALUE) if f".{r}." in n), n) for n in graded}

    with roles.reading():
        roles.read_policy(batch).logprobs.sum().backward()
        after_policy = owners()
        roles.values(batch).sum().backward()
        after_value = owners()

    assert after_policy == {POLICY}
    assert after_value == {VALUE, "head"}


def test_what_is_trainable_never_changes(inputs, tmp_path):
    setting, *_ = one_update(inputs, tmp_path)
    now = {name for name, p in setting.roles.model.named_parameters() if p.requires_grad}

    fresh = load_roles(inputs, config())

    assert now == {name for name, p in fresh.model.named_parameters() if p.requires_grad}
    assert {n.rsplit(".", 2)[1] for n in now} == {POLICY, VALUE}


def test_the_base_alone_and_the_frozen_roles_answer_as_before_training(inputs, tmp_path):
    ids = torch.arange(5, 25)[None]
    plain = AutoModelForCausalLM.from_pretrained(inputs["base"].path).eval()
    fresh = load_roles(inputs, config())

    setting, *_ = one_update(inputs, tmp_path)
    roles = setting.roles

    with torch.no_grad():
        with roles.switch.on(None):
            assert torch.equal(roles.model(input_ids=ids).logits, plain(input_ids=ids).logits)
        for role in (REFERENCE, REWARD):
            with roles.switch.on(role), fresh.switch.on(role):
                assert torch.equal(roles.model(input_ids=ids).logits, fresh.model(input_ids=ids).logits)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_the_update_does_not_depend_on_the_size_of_a_micro_batch(inputs, tmp_path, size):
    # One step: Adam turns rounding in a gradient near zero into a step of full size.
    options = {"num_mini_batches": 1, "num_ppo_epochs": 1, "adam_epsilon": 1e-2, "max_grad_norm": 1e3}
    _, _, expected, _ = one_update(inputs, tmp_path / "a", per_device_train_batch_size=2, **options)

    _, _, got, _ = one_update(inputs, tmp_path / "b", per_device_train_batch_size=size, **options)

    assert largest_difference(expected, got) < 1e-6


def test_packed_and_padded_rows_give_the_same_update(inputs, tmp_path, monkeypatch):
    options = {"num_mini_batches": 1, "num_ppo_epochs": 1, "adam_epsilon": 1e-2, "max_grad_norm": 1e3}
    packed_setting, _, packed, _ = one_update(inputs, tmp_path / "a", **options)
    monkeypatch.setattr("stages.trainers.ppo.roles.supports_segments", lambda *a, **o: "asked by the test")

    padded_setting, _, padded, _ = one_update(inputs, tmp_path / "b", **options)

    assert packed_setting.roles.unpacked_because is None
    assert padded_setting.roles.unpacked_because is not None
    assert largest_difference(packed, padded) < 1e-6


def test_recomputing_activations_changes_no_bit_of_the_update(inputs, tmp_path):
    _, _, plain, _ = one_update(inputs, tmp_path / "a")

    setting, _, recomputed, _ = one_update(inputs, tmp_path / "b", tuning=CHECKPOINTING)

    assert any(getattr(part, "gradient_checkpointing", False) for part in setting.roles.model.modules())
    assert largest_difference(plain, recomputed) == 0.0


def test_recomputing_really_recomputes(inputs, tmp_path):
    setting = open_setting(stage_context(tmp_path, config(tuning=CHECKPOINTING), inputs))
    roles, calls = setting.roles, []
    layer = roles.model.get_base_model().model.layers[0].mlp
    layer.register_forward_pre_hook(lambda *_: calls.append(roles.switch.current))
    rollouts, _ = gather(setting, 0)
    batch = roles.batch(rollouts.take([0]))
    calls.clear()

    with roles.reading(), roles.recomputing():
        policy = roles.read_policy(batch).logprobs.sum()
        value = roles.values(batch).sum()
        (policy + value).backward()

    # Forward of both, then each again in backward under its own adapter.
    assert calls[:2] == [POLICY, VALUE]
    assert sorted(calls[2:]) == [POLICY, VALUE]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="plain"),
        pytest.param({"normalize_scores": True, "kl_target": 0.5, "kl_horizon": 20.0}, id="carried state"),
    ],
)
def test_four_iterations_equal_two_and_two(inputs, tmp_path, changes):
    settings = config(total_iterations=4, save_steps=100, **changes)
    straight = stage_context(tmp_path / "straight", settings, inputs)
    whole = SPEC.run(straight)

    stopped = stage_context(tmp_path / "parts", settings, inputs, stop=ManualStop(after=1))
    with pytest.raises(Interrupted, match="after iteration 2 of 4"):
        SPEC.run(stopped)
    resumed = stage_context(tmp_path / "parts", settings, inputs)
    parts = SPEC.run(resumed)

    for role in ("adapter", "value"):
        file = "adapter_model.safetensors"
        assert (whole.outputs[role] / file).read_bytes() == (parts.outputs[role] / file).read_bytes()
    assert whole.metrics == parts.metrics
    timed = ("eps", "tokens_per_second")
    timeless = [{k: v for k, v in line.items() if k not in timed} for line in straight.logger.lines]
    joined = [*stopped.logger.lines, *resumed.logger.lines]
    assert timeless == [{k: v for k, v in line.items() if k not in timed} for line in joined]
    assert len(resumed.logger.lines) == 2


def test_a_damaged_checkpoint_is_passed_over_and_the_result_is_the_same(inputs, tmp_path):
    settings = config(total_iterations=3, save_steps=1)
    whole = SPEC.run(stage_context(tmp_path / "straight", settings, inputs))
    stopped = stage_context(tmp_path / "parts", settings, inputs, stop=ManualStop(after=1))
    with pytest.raises(Interrupted):
        SPEC.run(stopped)
    newest = CheckpointFolder(stopped.scratch_dir / "checkpoints", checkpoint_key(stopped)).latest()
    file = newest.path / "policy.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"!")

    parts = SPEC.run(stage_context(tmp_path / "parts", settings, inputs))

    file = "adapter_model.safetensors"
    assert (whole.outputs["adapter"] / file).read_bytes() == (parts.outputs["adapter"] / file).read_bytes()
    assert any("policy.safetensors" in note for note in parts.notes)


def test_the_outputs_open_with_plain_peft_and_answer_as_the_trained_roles(inputs, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(trainer, "open_setting", lambda ctx: opened.append(open_setting(ctx)) or opened[-1])
    result = SPEC.run(stage_context(tmp_path, config(), inputs))
    roles = opened[0].roles
    ids = torch.arange(5, 25)[None]

    base = AutoModelForCausalLM.from_pretrained(inputs["base"].path)
    policy = PeftModel.from_pretrained(base, result.outputs["adapter"]).eval()
    base = AutoModelForSequenceClassification.from_pretrained(
        inputs["base"].path, num_labels=1, pad_token_id=0
    )
    value = PeftModel.from_pretrained(base, result.outputs["value"]).eval()

    with torch.no_grad():
        with roles.switch.on(POLICY):
            assert torch.equal(policy(input_ids=ids).logits, roles.model(input_ids=ids).logits)
        with roles.switch.on(VALUE):
            hidden = roles.model.get_base_model().model(input_ids=ids).last_hidden_state
        assert torch.allclose(value(input_ids=ids).logits[0], roles.value_head(hidden[:, -1]), atol=1e-6)


def test_a_larger_rank_starts_from_the_same_policy(inputs, tmp_path):
    wider = TUNING.model_copy(update={"lora_r": 8})
    ctx = stage_context(tmp_path, config(tuning=wider, total_iterations=1), inputs)

    SPEC.run(ctx)

    assert abs(ctx.logger.series("objective/kl")[0]) < 1e-4
    assert ctx.logger.series("ppo/kl_k3")[0] < 1e-6


def test_every_pass_over_a_rollout_counts_its_tokens(inputs, tmp_path):
    ctx = stage_context(tmp_path, config(), inputs)

    SPEC.run(ctx)

    lengths = []
    for iteration in (0, 1):
        setting = open_setting(stage_context(tmp_path, config(), inputs))
        rows = prompts_of(iteration, num_prompts=6, batch_size=8, seed=7)
        lengths.append(sum(len(setting.prompts[row].ids) for row in rows))
    responses = [8 * line["ppo/response_length"] for line in ctx.logger.lines]
    # Sampled, read by policy, reference, reward and value, then two epochs of policy and value: 1 + 4 + 4.
    first, second = (9 * (a + b) for a, b in zip(lengths, responses, strict=True))
    assert ctx.logger.series("num_tokens") == pytest.approx([first, first + second])


def test_a_reward_function_alone_is_enough_and_the_value_function_starts_at_zero(inputs, tmp_path):
    ctx = stage_context(tmp_path, config(total_iterations=1), without(inputs, "reward"))

    SPEC.run(ctx)

    assert ctx.logger.series("ppo/value_mean") == [0.0]
    assert "ppo/model_score" not in ctx.logger.lines[0]


def test_scores_are_mixed_by_their_weights(inputs, tmp_path):
    settings = config(total_iterations=1, reward_weight=0.25, function_weight=-3.0)
    ctx = stage_context(tmp_path, settings, inputs)

    SPEC.run(ctx)

    line = ctx.logger.lines[0]
    expected = 0.25 * line["ppo/model_score"] - 3.0 * line["ppo/function_score"]
    assert line["objective/scores"] == pytest.approx(expected, abs=1e-6)


def test_the_reward_model_is_read_at_the_last_token_of_each_response(inputs, tmp_path):
    setting = open_setting(stage_context(tmp_path, config(), inputs))
    rollouts, readings = gather(setting, 0)
    base = AutoModelForSequenceClassification.from_pretrained(
        inputs["base"].path, num_labels=1, pad_token_id=0
    )
    reward = PeftModel.from_pretrained(base, inputs["reward"].path).eval()

    with torch.no_grad():
        expected = [
            float(reward(input_ids=torch.tensor([[*e.prompt, *e.response]])).logits[0, 0])
            for e in rollouts.episodes
        ]

    assert readings.model_scores.tolist() == pytest.approx(expected, abs=1e-5)


def test_ppo_learns_what_the_reward_function_pays_for(inputs, tmp_path):
    # Share of a rare byte token: one in 261 at random; the score counts it in 12 tokens.
    settings = config(
        total_iterations=24,
        rollout_batch_size=32,
        per_device_train_batch_size=32,
        learning_rate=2e-2,
        kl_coef=0.01,
        missing_eos_penalty=0.0,
        max_new_tokens=8,
    )
    function = written(tmp_path / "letters.py", PAYS_FOR_LETTERS, ArtifactKind.FUNCTION)
    ctx = stage_context(tmp_path, settings, {**without(inputs, "reward"), "reward_function": function})

    SPEC.run(ctx)

    scores = ctx.logger.series("objective/scores")
    first, last = sum(scores[:3]) / 3, sum(scores[-3:]) / 3
    assert first > 0.2
    assert last >= 1.5 * first
    assert ctx.logger.series("objective/kl")[-1] > 0.1


PAYS_FOR_LETTERS = (
    "def score(prompt, response, row):\n    return float(sum('a' <= c <= 'm' for c in response))\n"
)


def test_the_update_ends_early_once_the_policy_has_moved_too_far(inputs, tmp_path):
    ctx = stage_context(tmp_path, config(total_iterations=1, learning_rate=0.1, target_kl=1e-6), inputs)

    SPEC.run(ctx)

    # The first minibatch moves nothing yet; the second sees the move and is not applied.
    assert ctx.logger.series("ppo/optimizer_steps") == [1.0]
    assert ctx.logger.series("ppo/stopped_early") == [1.0]


def test_during_value_warm_up_the_policy_stays(inputs, tmp_path):
    setting, before, after, _ = one_update(inputs, tmp_path, value_warmup_iterations=1)

    policy = dict(named_adapter_parameters(setting.roles.model, POLICY))
    value = dict(named_adapter_parameters(setting.roles.model, VALUE))
    assert all(torch.equal(before[name], after[name]) for name in policy)
    assert any(not torch.equal(before[name], after[name]) for name in value)


def test_a_changed_reference_is_refused_before_any_step(inputs, tmp_path, monkeypatch):
    def other_reference(ctx):
        setting = open_setting(ctx)
        with torch.no_grad():
            for _, parameter in named_adapter_parameters(setting.roles.model, REFERENCE):
                parameter.add_(0.01)
        return setting

    monkeypatch.setattr(trainer, "open_setting", other_reference)

    with pytest.raises(HandOverError, match="the reference is not the policy"):
        SPEC.run(stage_context(tmp_path, config(), inputs))


def test_a_policy_with_dropout_is_refused_by_its_ratio(inputs, tmp_path, monkeypatch):
    def noisy(ctx):
        setting = open_setting(ctx)
        layer = setting.roles.model.get_base_model().model.layers[1]
        layer.register_forward_hook(lambda _m, _i, output: output + 1e-2 * torch.randn_like(output))
        return setting

    monkeypatch.setattr(trainer, "open_setting", noisy)
    monkeypatch.setattr(trainer, "prove_start", lambda *_: {})
    monkeypatch.setattr(trainer, "prove_reference_on", lambda *_: None)

    with pytest.raises(HandOverError, match="ratio to itself"):
        SPEC.run(stage_context(tmp_path, config(), inputs))


def test_a_loss_that_is_not_finite_stops_the_stage(inputs, tmp_path, monkeypatch):
    targets = ppo_update.make_targets

    def broken(*arguments, **named):
        made = targets(*arguments, **named)
        made.returns.fill_(float("inf"))
        return made

    monkeypatch.setattr(trainer, "make_targets", broken)

    with pytest.raises(StageFailed, match="value loss is"):
        SPEC.run(stage_context(tmp_path, config(), inputs))


def test_without_any_reward_the_stage_says_what_to_give(inputs, tmp_path):
    ctx = stage_context(tmp_path, config(value_init="reward"), without(inputs, "reward", "reward_function"))

    with pytest.raises(ConfigError) as caught:
        SPEC.run(ctx)

    assert [finding.code for finding in caught.value.findings] == ["no-reward", "no-reward"]


def test_plan_finds_a_missing_reward_a_bad_function_and_bad_prompts_without_running_anything(
    inputs, tmp_path
):
    ran = tmp_path / "ran"
    text = f"open({str(ran)!r}, 'w')\ndef other(): pass\n"
    function = written(tmp_path / "none.py", text, ArtifactKind.FUNCTION)
    broken = written(tmp_path / "broken.py", "x = 1\ndef score(:\n", ArtifactKind.FUNCTION)
    prompts = written(tmp_path / "bad.jsonl", '{"prompt": ""}\n', ArtifactKind.PROMPTS)
    roles = ("base", "policy", "prompts")

    def codes(inputs, *more):
        return [f.code for f in SPEC.check(StageCheck("ppo", config(), inputs, (*roles, *more)))]

    assert codes({}) == ["no-reward"]
    assert codes({"reward_function": function}, "reward_function") == ["score-function"]
    assert codes({"reward_function": broken}, "reward_function") == ["score-function"]
    assert codes({"prompts": prompts}, "reward") == ["empty_prompt"]
    assert codes({"prompts": inputs["prompts"]}, "reward") == []
    assert not ran.exists()


def test_a_reward_model_of_another_chat_template_is_refused(inputs, tmp_path):
    folder = shutil.copytree(inputs["reward"].path, tmp_path / "reward")
    contract = json.loads((folder / "text.json").read_text())
    (folder / "text.json").write_text(json.dumps({**contract, "chat_template_sha256": "0" * 64}))
    other = as_checkpoint(folder, ArtifactKind.REWARD_MODEL)

    with pytest.raises(HandOverError, match="chat template"):
        open_setting(stage_context(tmp_path, config(), {**inputs, "reward": other}))


def test_responses_longer_than_the_bases_positions_are_refused(inputs, tmp_path):
    with pytest.raises(ModelError, match="positions for 512"):
        open_setting(stage_context(tmp_path, config(max_new_tokens=500, max_length=900), inputs))


def test_prompts_that_are_too_long_are_counted_and_left_out(inputs, tmp_path):
    lengths = [len(p.ids) for p in open_setting(stage_context(tmp_path, config(), inputs)).prompts]
    limit = sorted(lengths)[2]
    settings = config(total_iterations=1, max_new_tokens=4, max_length=limit + 4)

    result = SPEC.run(stage_context(tmp_path / "run", settings, inputs))

    assert result.metrics["ppo/dropped_prompts"] == len([n for n in lengths if n > limit])
    assert any("too long" in note for note in result.notes)
    with pytest.raises(DataError, match="no prompt has"):
        open_setting(stage_context(tmp_path / "none", config(max_new_tokens=4, max_length=6), inputs))


def test_every_pass_over_the_prompts_uses_each_once_in_a_new_order():
    chosen = [row for i in range(5) for row in prompts_of(i, num_prompts=10, batch_size=4, seed=1)]

    assert sorted(chosen[:10]) == list(range(10))
    assert sorted(chosen[10:]) == list(range(10))
    assert chosen[:10] != chosen[10:]
    assert set(prompts_of(0, num_prompts=3, batch_size=7, seed=1)[:3]) == {0, 1, 2}


def test_minibatches_hold_each_row_once_and_do_not_depend_on_the_micro_batch_size():
    lengths = [5, 9, 2, 7, 7, 1, 4, 8, 3, 6]

    def rows(size, epoch=0):
        plan = minibatches(
            lengths, config(per_device_train_batch_size=size, num_mini_batches=3), iteration=2, epoch=epoch
        )
        return [sorted(row for micro in part for row in micro) for part in plan]

    assert sorted(row for part in rows(2) for row in part) == list(range(10))
    assert rows(2) == rows(1) == rows(100)
    assert rows(2) != rows(2, epoch=1)
    assert [len(part) for part in rows(2)] == [4, 3, 3]


def test_the_learning_rate_rises_then_falls_to_one_last_step():
    settings = PPOConfig(total_iterations=10, warmup_ratio=0.2)

    factors = [learning_rate_factor(i, settings) for i in range(10)]

    # warm-up over two iterations: 1/2, 2/2; linear: 1 - i / 10
    assert factors[:3] == pytest.approx([0.5, 0.9, 0.8])
    assert factors[-1] == pytest.approx(0.1)
    assert learning_rate_factor(
        5, PPOConfig(total_iterations=10, lr_scheduler_type="cosine")
    ) == pytest.approx(0.5)
    assert learning_rate_factor(9, PPOConfig(total_iterations=10, lr_scheduler_type="constant")) == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param(
            {"num_mini_batches": 9, "rollout_batch_size": 8}, "num_mini_batches is 9", id="minibatches"
        ),
        pytest.param({"max_length": 64, "max_new_tokens": 64}, "no prompt room", id="lengths"),
        pytest.param({"learnig_rate": 1.0}, "learnig_rate", id="unknown key"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        PPOConfig(**changes)


def test_episodes_are_rounded_up_to_whole_iterations():
    assert PPOConfig(total_episodes=65, rollout_batch_size=64).iterations == 2
    assert PPOConfig(total_iterations=7).iterations == 7
    assert PPOConfig(learning_rate=1e-5).value_peak_learning_rate == pytest.approx(2e-5)
