"""The reward stage from files to files: what it learns, stores, resumes and says."""

from __future__ import annotations

import json
from itertools import combinations

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from pipeline.contract import ArtifactKind
from pipeline.errors import DataError, Interrupted
from reward.model import ScoreHead
from reward.preferences.exchange.tasks import cmp_id_of
from reward.preferences.records import PreferenceRecord, Response
from reward.scoring import score
from stages.reward import SPEC, RewardConfig
from stages.runtime.adapters import load_head
from stages.runtime.ensemble import members_of
from stages.runtime.loading import backbone, load_tokenizer
from stages.runtime.text.chat import ChatText
from stages.trainers.pair_data import load_pair_data
from stages.trainers.reward import reward_metrics
from stages.trainers.reward_measure import margins_of, open_reward_model
from tests.pair_fixtures import FP32, TUNING, preference_file, reopen, sft_adapter, toy_rows
from tests.tiny import ManualStop, as_checkpoint, stage_context, tiny_model

SETTINGS = {
    "model": FP32,
    "tuning": TUNING,
    "learning_rate": 2e-2,
    "per_device_train_batch_size": 8,
    "max_steps": 30,
    "logging_steps": 5,
    "eval_share": 0.25,
    "seed": 1,
}


@pytest.fixture(scope="module")
def sft(tiny_base, tmp_path_factory):
    return sft_adapter(tiny_base, tmp_path_factory.mktemp("sft") / "adapter")


def context(root, base, adapter, rows, *, stop=None, **changes):
    preferences = preference_file(root / "pairs.jsonl", rows)
    inputs = {"base": base, "policy": adapter, "preferences": preferences}
    return stage_context(root, RewardConfig(**{**SETTINGS, **changes}), inputs, stop=stop)


@pytest.fixture(scope="module")
def trained(tiny_base, sft, tmp_path_factory):
    ctx = context(tmp_path_factory.mktemp("reward"), tiny_base, sft, toy_rows(120))
    return ctx, SPEC.run(ctx)


def test_a_rule_that_can_be_learned_is_learned(trained):
    ctx, result = trained

    assert result.metrics["accuracy"] > 0.9
    assert result.metrics["accuracy_low"] > 0.7
    assert result.metrics["num_pairs"] >= 25
    assert ctx.logger.series("rewards/accuracies")[-1] > 0.9
    assert ctx.logger.series("loss")[-1] < 0.3 < ctx.logger.series("loss")[0]


def test_labels_by_a_coin_teach_nothing_that_holds(tiny_base, sft, tmp_path):
    ctx = context(tmp_path, tiny_base, sft, toy_rows(240, shuffled=True), eval_share=0.5, max_steps=15)

    result = SPEC.run(ctx)

    # 120 held-out pairs: three standard deviations of a coin are 0.14
    assert abs(result.metrics["accuracy"] - 0.5) < 0.14
    assert any("floor" in note for note in result.notes)


def test_the_first_loss_is_near_ln_2_and_the_start_is_proven(trained):
    ctx, result = trained

    assert result.metrics["handover/logit_difference"] < 1e-5
    assert result.metrics["handover/num_trainable"] > 0
    assert ctx.logger.series("loss")[0] < 1.2


def test_the_card_lies_beside_the_weights_and_agrees_with_the_metrics(trained):
    _, result = trained
    card = json.loads((result.outputs["reward_model"] / "card.json").read_text())

    assert card["accuracy"] == result.metrics["accuracy"]
    assert card["floors"]["length"] == result.metrics["length_floor"]
    assert set(SPEC.metrics) <= result.metrics.keys()
    assert card["probes"]["empty"]["num_rows"] == min(64, result.metrics["num_pairs"])
    assert set(card["probes"]) >= {"empty", "repeated three times", "a line break added"}
    table = json.loads((result.outputs["card"] / "table.json").read_text())
    assert table["rows"][0][:2] == ["accuracy", f"{card['accuracy']:.3f}"]


def test_the_stored_head_and_adapter_give_the_same_scores_to_1e_6(trained, tiny_base):
    _, result = trained
    stored = as_checkpoint(result.outputs["reward_model"], ArtifactKind.REWARD_MODEL)
    rows = [([5 + i % 200, 6, 7], [8, 9 + i % 100] * (1 + i % 5)) for i in range(64)]
    prompts, responses = zip(*rows, strict=True)

    def scores():
        model = reopen(tiny_base, stored, name="reward")
        return score(backbone(model), ScoreHead.from_tensors(load_head(stored)), prompts, responses)

    first = scores()
    torch.testing.assert_close(scores(), first, atol=1e-6, rtol=0)
    assert first.std() > 0.01

    plain = AutoModelForSequenceClassification.from_pretrained(
        tiny_base.path, num_labels=1, dtype=torch.float32
    )
    plain = PeftModel.from_pretrained(plain, stored.path).eval()
    for row, (prompt, response) in enumerate(rows[:8]):
        logits = plain(torch.tensor([[*prompt, *response]])).logits
        torch.testing.assert_close(logits[0, 0], first[row], atol=1e-5, rtol=0)


def test_the_stored_model_is_the_one_that_the_card_measured(trained, tiny_base):
    ctx, result = trained
    stored = as_checkpoint(result.outputs["reward_model"], ArtifactKind.REWARD_MODEL)
    head = ScoreHead.from_tensors(load_head(stored))
    chat = ChatText(load_tokenizer(stored, FP32))
    held_out = load_pair_data(ctx.inputs["preferences"].path, ctx.config, chat).held_out
    model = reopen(tiny_base, stored, name="reward")

    chosen, rejected = (
        score(backbone(model), head, [p.prompt for p in held_out], [getattr(p, side) for p in held_out])
        for side in ("chosen", "rejected")
    )

    assert (chosen - rejected).mean().item() == pytest.approx(result.metrics["margin_mean"], abs=1e-5)
    assert len(held_out) == result.metrics["num_pairs"]
    assert not torch.equal(head.weight, ScoreHead.seeded(32, seed=ctx.config.seed).weight)


def test_four_steps_equal_two_and_two_bit_for_bit(tiny_base, sft, tmp_path):
    rows, changes = toy_rows(40), {"max_steps": 4, "logging_steps": 1}
    straight = SPEC.run(context(_made(tmp_path / "a"), tiny_base, sft, rows, **changes))
    with pytest.raises(Interrupted):
        SPEC.run(context(_made(tmp_path / "b"), tiny_base, sft, rows, stop=ManualStop(after=1), **changes))

    continued = SPEC.run(context(tmp_path / "b", tiny_base, sft, rows, **changes))

    one, other = (
        load_file(result.outputs["reward_model"] / "adapter_model.safetensors")
        for result in (straight, continued)
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert straight.metrics["accuracy"] == continued.metrics["accuracy"]


def test_only_the_adapter_and_the_head_are_trained(trained, sft):
    _, result = trained
    before = load_file(sft.path / "adapter_model.safetensors")
    after = load_file(result.outputs["reward_model"] / "adapter_model.safetensors")

    assert after.keys() - before.keys() == {"base_model.model.score.weight"}
    assert all(not torch.equal(before[key], after[key]) for key in before)


def test_soft_labels_margins_and_ties_reach_the_loss(tiny_base, sft, tmp_path):
    rows = [{**row, "margin": 2.0} for row in toy_rows(16)]

    def first_loss(name, **changes):
        ctx = context(
            _made(tmp_path / name),
            tiny_base,
            sft,
            rows,
            max_steps=1,
            logging_steps=1,
            eval_share=0,
            **changes,
        )
        SPEC.run(ctx)
        return ctx.logger.series("loss")[0]

    plain = first_loss("plain", use_margins=False, center_rewards_coefficient=0.0)
    assert first_loss("margin", center_rewards_coefficient=0.0) > plain + 0.5
    assert first_loss("centred", use_margins=False, center_rewards_coefficient=1.0) != plain
    assert (
        first_loss("smoothed", use_margins=False, center_rewards_coefficient=0.0, label_smoothing=0.3)
        != plain
    )


def test_a_model_that_cannot_be_packed_is_padded_and_says_so(tmp_path):
    base = tiny_model(tmp_path / "bloom", "bloom", n_layer=2, n_head=4, hidden_size=32)
    adapter = sft_adapter(base, tmp_path / "adapter")

    result = SPEC.run(context(_made(tmp_path / "r"), base, adapter, toy_rows(24), max_steps=2))

    assert any("rows are padded" in note for note in result.notes)


def test_padded_rows_give_the_same_model(tiny_base, sft, tmp_path):
    rows, weights = toy_rows(24), []
    for name, shared in (("a", True), ("b", False)):
        ctx = context(
            _made(tmp_path / name),
            tiny_base,
            sft,
            rows,
            max_steps=2,
            shared_prompts=shared,
            learning_rate=1e-3,
        )
        result = SPEC.run(ctx)
        weights.append(load_file(result.outputs["reward_model"] / "adapter_model.safetensors"))

    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, atol=2e-5, rtol=0)


def _made(path):
    path.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture(scope="module")
def ensemble(tiny_base, sft, tmp_path_factory):
    changes = {"ensemble": 3, "max_steps": 6, "logging_steps": 1, "num_probes": 4}
    ctx = context(tmp_path_factory.mktemp("ensemble"), tiny_base, sft, toy_rows(60), **changes)
    return ctx, SPEC.run(ctx)


def test_the_first_member_is_the_model_that_is_trained_without_an_ensemble(
    ensemble, tiny_base, sft, tmp_path
):
    changes = {"max_steps": 6, "logging_steps": 1, "num_probes": 4}
    alone = SPEC.run(context(tmp_path, tiny_base, sft, toy_rows(60), **changes))

    one, other = (
        load_file(r.outputs["reward_model"] / "adapter_model.safetensors") for r in (ensemble[1], alone)
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_members_differ_and_their_mean_scores(ensemble, tiny_base):
    ctx, result = ensemble
    stored = as_checkpoint(result.outputs["reward_model"], ArtifactKind.REWARD_MODEL)

    model = open_reward_model(tiny_base, stored, ctx.config)
    held_out = load_pair_data(
        ctx.inputs["preferences"].path, ctx.config, model.members[0].parts.chat
    ).held_out
    with model.members[0].parts.running():
        scores = model.score_members(held_out)
        chosen, rejected = model.score_pairs(held_out)
    gaps = scores[:, 0] - scores[:, 1]

    assert len(members_of(stored)) == 3
    assert float((gaps[0] - gaps[1]).abs().max()) > 1e-2
    assert float((gaps[0] - gaps[2]).abs().max()) > 1e-2
    expected = gaps.mean(0)
    assert (torch.tensor(chosen) - torch.tensor(rejected)).tolist() == pytest.approx(
        expected.tolist(), abs=1e-6
    )
    assert expected.mean().item() == pytest.approx(result.metrics["margin_mean"], abs=1e-5)


def test_every_member_trains_an_adapter_of_its_own(ensemble, sft):
    parent = load_file(sft.path / "adapter_model.safetensors")
    stored = as_checkpoint(ensemble[1].outputs["reward_model"], ArtifactKind.REWARD_MODEL)

    members = [load_file(member.path / "adapter_model.safetensors") for member in members_of(stored)]

    def distance(one, other):
        return max(float((one[key] - other[key]).abs().max()) for key in parent)

    # Six steps of AdamW at 2e-2 move a weight by about that much each.
    assert all(distance(member, parent) > 1e-3 for member in members)
    assert all(distance(one, other) > 1e-3 for one, other in combinations(members, 2))


def test_equal_scores_are_half_a_win():
    found = reward_metrics(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 2.0, 4.0]))

    # One win, one tie, one loss: 1.5 of 3. Margins 1, 0 and -1.
    assert found["rewards/accuracies"] == (1.5, 3.0)
    assert found["rewards/margins"] == (0.0, 3.0)
    assert found["rewards/chosen"] == (6.0, 3.0)


def test_the_card_shows_the_spread_and_metrics_name_the_member(ensemble):
    ctx, result = ensemble
    card = json.loads((result.outputs["reward_model"] / "card.json").read_text())
    table = json.loads((result.outputs["card"] / "table.json").read_text())

    assert card["ensemble"]["members"] == 3
    assert card["ensemble"]["spread"] > 0
    assert ["members", "3"] in [row[:2] for row in table["rows"]]
    assert len(ctx.logger.series("loss")) == len(ctx.logger.series("member_2/loss")) == 6
    assert ctx.logger.series("loss") != ctx.logger.series("member_1/loss")
    assert any("paid by their mean" in note for note in result.notes)


def test_a_stopped_ensemble_goes_on_with_the_member_it_was_at(tiny_base, sft, tmp_path, ensemble):
    changes = {"ensemble": 3, "max_steps": 6, "logging_steps": 1, "num_probes": 4, "save_steps": 6}
    _made(tmp_path / "x")
    # the stop flag is read once a step that is not the last: 5 of each member
    stopped = context(tmp_path / "x", tiny_base, sft, toy_rows(60), stop=ManualStop(after=7), **changes)
    with pytest.raises(Interrupted):
        SPEC.run(stopped)

    ctx = context(tmp_path / "x", tiny_base, sft, toy_rows(60), **changes)
    continued = SPEC.run(ctx)

    assert ctx.logger.series("loss") == []
    assert len(ctx.logger.series("member_1/loss")) == 3
    for name in ("adapter_model.safetensors", "members/1/adapter_model.safetensors"):
        one, other = (load_file(r.outputs["reward_model"] / name) for r in (ensemble[1], continued))
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_margins_of_unjudged_comparisons_are_one_a_member(ensemble, tiny_base):
    ctx, result = ensemble
    stored = as_checkpoint(result.outputs["reward_model"], ArtifactKind.REWARD_MODEL)
    responses = (Response("a", "yes"), Response("b", "no"))
    records = [PreferenceRecord(f"q {n}", responses) for n in range(3)]
    three = PreferenceRecord("q", (*responses, Response("c", "maybe")))
    same = PreferenceRecord("q", (Response("a", "yes"), Response("b", "yes")))

    found = margins_of(tiny_base, stored, ctx.config, [*records, three, same])

    assert list(found) == [cmp_id_of(record) for record in records]
    assert all(len(margins) == 3 and len(set(margins)) == 3 for margins in found.values())
    with pytest.raises(DataError, match="two responses"):
        margins_of(tiny_base, stored, ctx.config, [three])


def test_a_ranking_of_four_gets_a_best_of_n_curve(tiny_base, sft, tmp_path):
    texts = ["yes yes yes", "yes yes", "yes", "no"]
    rows = [
        {**row, "responses": texts, "votes": [{"tiers": [[f"r{n}"] for n in range(4)], "annotator": "ann"}]}
        for row in ({"prompt": pair["prompt"], "meta": {"subset": "toy"}} for pair in toy_rows(24))
    ]
    result = SPEC.run(context(tmp_path, tiny_base, sft, rows, max_steps=20, num_probes=0))

    card = json.loads((result.outputs["reward_model"] / "card.json").read_text())
    curve = [point["gold"] for point in card["best_of"]["curve"]]
    assert card["best_of"]["chance"] == 0.25
    assert len(curve) == 4
    assert curve[0] == pytest.approx(0.5)
    assert card["best_of"]["top_accuracy"] > 0.5
    assert curve[3] > 0.6
    assert card["by_subset"]["toy"]["num_pairs"] == card["num_pairs"]
    assert card["by_annotator"]["ann"]["num_pairs"] == card["num_pairs"]
