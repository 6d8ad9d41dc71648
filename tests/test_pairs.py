"""Packing and scheduling of pairs: the same step whatever its cut, and equal to separate sequences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from pipeline.contract import Checkpoint
from pipeline.errors import DataError
from reward.loss import bradley_terry_loss
from reward.model import ScoreHead
from stages.dpo import DPOConfig
from stages.ops.preference_losses import PairLogps, preference_loss
from stages.reward import RewardConfig
from stages.runtime.adapters import named_adapter_parameters
from stages.runtime.loading import backbone
from stages.runtime.output_head import OutputHead
from stages.runtime.switch import AdapterSwitch, enable_checkpointing
from stages.runtime.text.chat import ChatText
from stages.trainers.dpo import DPOTrainer
from stages.trainers.pair_data import TokenPair, load_pair_data
from stages.trainers.pair_model import PairModel, recompute_layers
from stages.trainers.pairs import PairSchedule, make_batches
from stages.trainers.reward import RewardTrainer
from tests.pair_fixtures import preference_file, reopen, sft_adapter, token_pairs, toy_rows
from tests.tiny import tiny_tokenizer

PAIRS = token_pairs(9)


@pytest.fixture(scope="module")
def model(tiny_base: Checkpoint, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("sft")
    return reopen(tiny_base, sft_adapter(tiny_base, folder / "adapter"))


def parts(model, *, packed: bool) -> PairModel:
    return PairModel(model, AdapterSwitch(model), None, None, None, None if packed else "asked to")


def reward_trainer(model, *, packed: bool = True, **changes) -> RewardTrainer:
    return RewardTrainer(parts(model, packed=packed), ScoreHead.seeded(32, seed=5), RewardConfig(**changes))


def dpo_trainer(model, pairs, *, packed: bool = True, **changes) -> DPOTrainer:
    reference = {
        "chosen": torch.linspace(-30, -10, len(pairs)),
        "rejected": torch.linspace(-9, -33, len(pairs)),
    }
    head = OutputHead.of(model, backbone=backbone(model))
    return DPOTrainer(parts(model, packed=packed), head, DPOConfig(**changes), reference)


def step_gradients(trainer, pairs, *, max_tokens: int) -> tuple[float, list[torch.Tensor]]:
    """Return the loss and the adapter's gradients of one step over all pairs."""
    model = trainer.parts.model
    model.zero_grad(set_to_none=True)
    total = 0.0
    with trainer.parts.running():
        for batch in make_batches(
            pairs, range(len(pairs)), max_tokens=max_tokens, packed=trainer.parts.packed
        ):
            output = trainer.loss(batch)
            output.loss.backward()
            total += float(output.loss)
    return total, [p.grad.clone() for _, p in named_adapter_parameters(model, "default")]


def close(got, expected, *, tolerance=1e-6):
    """Compare gradients relative to the largest entry of all."""
    scale = max(float(g.abs().max()) for g in expected)
    assert scale > 1e-4, "a vanishing gradient proves nothing"
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance * scale, rtol=0)


def plain_rows(pairs):
    return [
        (pair, side, torch.tensor([[*pair.prompt, *side]]))
        for pair in pairs
        for side in (pair.chosen, pair.rejected)
    ]


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_reward_loss_and_gradients_equal_those_of_separate_sequences(model, packed):
    trainer = reward_trainer(model, packed=packed, label_smoothing=0.1)
    loss, gradients = step_gradients(trainer, PAIRS, max_tokens=60)

    model.zero_grad(set_to_none=True)
    scores = [
        trainer.head(backbone(model)(input_ids=ids).last_hidden_state[0, -1])
        for _, _, ids in plain_rows(PAIRS)
    ]
    weights = torch.tensor([pair.weight for pair in PAIRS])
    losses = bradley_terry_loss(
        torch.stack(scores[::2]),
        torch.stack(scores[1::2]),
        labels=torch.tensor([pair.label for pair in PAIRS]),
        margins=torch.tensor([pair.margin for pair in PAIRS]),
        label_smoothing=0.1,
        centering=0.01,
    )
    expected = (losses * weights).sum() / weights.sum()
    expected.backward()

    assert loss == pytest.approx(expected.item(), abs=1e-6)
    close(gradients, [p.grad for _, p in named_adapter_parameters(model, "default")], tolerance=1e-5)


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo", "simpo"])
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_dpo_loss_and_gradients_equal_those_of_separate_sequences(model, packed, loss_type):
    trainer = dpo_trainer(model, PAIRS, packed=packed, loss_type=loss_type, sft_coef=0.1)
    loss, gradients = step_gradients(trainer, PAIRS, max_tokens=60)

    model.zero_grad(set_to_none=True)
    logps = []
    for _, side, ids in plain_rows(PAIRS):
        logits = model(ids).logits[0, :-1].log_softmax(-1)
        logps.append(logits.gather(1, ids[0, 1:, None]).squeeze(1)[-len(side) :].sum())
    both = PairLogps(
        torch.stack(logps[::2]),
        torch.stack(logps[1::2]),
        torch.tensor([len(pair.chosen) for pair in PAIRS]),
        torch.tensor([len(pair.rejected) for pair in PAIRS]),
        trainer.reference["chosen"],
        trainer.reference["rejected"],
    )
    weights = torch.tensor([pair.weight for pair in PAIRS])
    losses = preference_loss(
        loss_type, both, beta=0.1, labels=torch.tensor([p.label for p in PAIRS]), sft_coef=0.1
    )
    expected = (losses * weights).sum() / weights.sum()
    expected.backward()

    assert loss == pytest.approx(expected.item(), rel=1e-5)
    close(gradients, [p.grad for _, p in named_adapter_parameters(model, "default")], tolerance=1e-5)


@pytest.mark.parametrize(
    "make", [reward_trainer, lambda m, **k: dpo_trainer(m, PAIRS, **k)], ids=["reward", "dpo"]
)
def test_the_token_budget_changes_nothing(model, make):
    _, whole = step_gradients(make(model), PAIRS, max_tokens=10_000)

    for max_tokens in (1, 30, 45, 90):
        _, gradients = step_gradients(make(model), PAIRS, max_tokens=max_tokens)
        close(gradients, whole, tolerance=2e-6)


def test_packed_and_padded_give_the_same_step(model):
    packed, padded = (
        step_gradients(reward_trainer(model, packed=p), PAIRS, max_tokens=80) for p in (True, False)
    )

    assert packed[0] == pytest.approx(padded[0], abs=1e-6)
    close(packed[1], padded[1], tolerance=2e-6)


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(len(PAIRS))), st.integers(1, 120))
def test_neither_order_nor_cut_changes_a_pairs_scores(model, numbers, max_tokens):
    trainer = reward_trainer(model, micro_batch_tokens=max(16, max_tokens))
    with trainer.parts.running():
        straight = trainer.score_pairs(PAIRS)
        turned = trainer.score_pairs([PAIRS[number] for number in numbers])

    for one, other in zip(straight, turned, strict=True):
        assert other == pytest.approx([one[number] for number in numbers], abs=1e-5)


def test_gradient_checkpointing_gives_the_same_gradients(tiny_base, tmp_path):
    fresh = reopen(tiny_base, sft_adapter(tiny_base, tmp_path / "adapter"))
    trainer = reward_trainer(fresh)
    _, plain = step_gradients(trainer, PAIRS, max_tokens=80)
    enable_checkpointing(fresh, trainer.parts.switch)
    recompute_layers(fresh.get_base_model())
    _, recomputed = step_gradients(trainer, PAIRS, max_tokens=80)

    close(recomputed, plain, tolerance=1e-6)


def test_a_shared_prompt_and_a_shared_answer_are_computed_once():
    first = TokenPair((1, 2, 3), (4, 5), (6,))
    second = TokenPair((1, 2, 3), (6,), (7, 8))

    (batch,) = make_batches([first, second], [0, 1], max_tokens=100, packed=True)

    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8]]
    # positions 0-4, then each further answer goes on after the prompt of three
    assert batch.options["position_ids"].tolist() == [[0, 1, 2, 3, 4, 3, 3, 4]]
    assert batch.chosen.tolist() == [0, 1]
    assert batch.rejected.tolist() == [1, 2]
    assert batch.last.tolist() == [4, 5, 7]
    # each first answer token is predicted at the last prompt token, position 2
    assert batch.before.tolist() == [2, 3, 2, 2, 6]
    assert batch.targets.tolist() == [4, 5, 6, 7, 8]
    assert batch.owner.tolist() == [0, 0, 1, 2, 2]


def test_padded_rows_name_the_same_tokens():
    pair = TokenPair((1, 2, 3), (4, 5), (6,))

    (batch,) = make_batches([pair], [0], max_tokens=100, packed=False)

    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5], [1, 2, 3, 6, 0]]
    flat = batch.input_ids.flatten()
    assert flat[batch.last].tolist() == [5, 6]
    assert flat[batch.before].tolist() == [3, 4, 3]
    assert batch.options == {}


def test_micro_batches_stay_within_the_budget_and_their_weights_sum_to_one():
    batches = make_batches(PAIRS, range(len(PAIRS)), max_tokens=40, packed=True)

    assert len(batches) > 2
    assert all(batch.input_ids.numel() <= 40 or len(batch.numbers) == 1 for batch in batches)
    assert sorted(int(n) for batch in batches for n in batch.numbers) == list(range(len(PAIRS)))
    assert sum(float(batch.weights.sum()) for batch in batches) == pytest.approx(1.0)


def test_a_step_is_a_function_of_the_seed_and_its_number():
    config = RewardConfig(per_device_train_batch_size=2, seed=3)
    schedule, again = (PairSchedule(PAIRS, config, packed=True) for _ in range(2))

    steps = [schedule.pairs_of(step) for step in range(10)]

    assert again.pairs_of(7) == steps[7]
    assert sorted(number for step in steps[:5] for number in step) == list(range(9))
    assert [len(step) for step in steps] == [2, 2, 2, 2, 1] * 2
    assert steps[:5] != steps[5:]
    assert schedule.total_steps == 5


def test_accumulation_does_not_change_which_pairs_a_step_holds():
    straight = PairSchedule(PAIRS, RewardConfig(per_device_train_batch_size=4), packed=True)
    split = PairSchedule(
        PAIRS, RewardConfig(per_device_train_batch_size=1, gradient_accumulation_steps=4), packed=True
    )

    assert [straight.pairs_of(step) for step in range(3)] == [split.pairs_of(step) for step in range(3)]


def test_the_pairs_of_one_ranking_stay_together():
    pairs = [
        TokenPair((1, number), (2,), (3, other), unit=number) for number in range(4) for other in range(3)
    ]
    schedule = PairSchedule(pairs, RewardConfig(per_device_train_batch_size=3), packed=True)

    assert all(len({pairs[n].unit for n in schedule.pairs_of(step)}) == 1 for step in range(4))


def test_long_and_equal_pairs_are_dropped_and_counted(tmp_path: Path):
    rows = toy_rows(12)
    rows.append({"prompt": "a very special prompt here", "chosen": "y" * 300, "rejected": "n"})
    rows.append(
        {
            "prompt": "another quite different one",
            "chosen": "same",
            "rejected": "same\u200b".replace("\u200b", ""),
        }
    )
    file = preference_file(tmp_path / "pairs.jsonl", rows)
    config = RewardConfig(max_length=200, eval_share=0.25, seed=1, max_rejected_share=0.1)

    data = load_pair_data(file.path, config, ChatText(tiny_tokenizer()))

    assert len(data.train) + len(data.held_out) == 12
    assert data.held_out
    assert data.counts["num_read"] == 14
    assert data.counts["num_too_long"] == 1
    assert data.counts["num_rejected"] + data.counts["num_identical"] == 1
    assert any("max_length 200" in note for note in data.notes)
    assert not {pair.prompt for pair in data.train} & {pair.prompt for pair in data.held_out}


def _judged(name: str, responses: list[str], *tiers: list[list[str]]) -> dict[str, Any]:
    votes = [{"annotator": f"a{n}", "tiers": said, "kind": "strict"} for n, said in enumerate(tiers)]
    answers = [{"id": f"r{n}", "text": text} for n, text in enumerate(responses)]
    return {"id": name, "prompt": f"question of {name}", "responses": answers, "votes": votes}


@pytest.mark.parametrize(("soft", "label"), [(True, 2 / 3), (False, 1.0)])
def test_a_label_is_the_share_of_votes_or_the_majority(tmp_path: Path, soft: bool, label: float):
    better, worse = [["r0"], ["r1"]], [["r1"], ["r0"]]
    file = preference_file(tmp_path / "p.jsonl", [_judged("c0", ["good", "bad"], better, worse, better)])
    config = RewardConfig(eval_share=0, soft_labels=soft)

    (pair,) = load_pair_data(file.path, config, ChatText(tiny_tokenizer())).train

    assert pair.label == pytest.approx(label)
    # The report card compares with people, whatever the label became.
    assert (pair.share, pair.votes) == (pytest.approx(2 / 3), 3)


def test_the_pairs_of_a_ranking_share_the_weight_of_one_pair(tmp_path: Path):
    ranked = _judged("c0", ["best", "good", "bad"], [["r0"], ["r1"], ["r2"]])
    file = preference_file(tmp_path / "p.jsonl", [ranked, _judged("c1", ["yes", "no"], [["r0"], ["r1"]])])

    data = load_pair_data(file.path, RewardConfig(eval_share=0), ChatText(tiny_tokenizer()))

    assert [pair.weight for pair in data.train] == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1])
    assert len({pair.unit for pair in data.train[:3]}) == 1


def test_a_prompt_with_many_pairs_stands_on_one_side_only(tmp_path: Path):
    rows = [{**row, "chosen": f"{row['chosen']} {n}"} for n in range(5) for row in toy_rows(12)]
    file = preference_file(tmp_path / "pairs.jsonl", rows)

    data = load_pair_data(file.path, RewardConfig(eval_share=0.25, seed=1), ChatText(tiny_tokenizer()))

    sides = [{pair.prompt for pair in side} for side in (data.train, data.held_out)]
    assert (len(sides[0]), len(sides[1])) == (9, 3)
    assert not sides[0] & sides[1]


def test_responses_end_in_the_stop_token_and_prompts_in_the_generation_prompt(tmp_path: Path):
    file = preference_file(tmp_path / "pairs.jsonl", toy_rows(3))
    tokenizer = tiny_tokenizer()

    data = load_pair_data(file.path, RewardConfig(eval_share=0), ChatText(tokenizer))

    first = data.train[0]
    assert tokenizer.decode(first.prompt).endswith("<|im_start|>assistant\n")
    assert first.chosen[-1] == first.rejected[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(first.chosen[:-1]).startswith("yes")


def test_a_file_without_a_usable_pair_says_why(tmp_path: Path):
    file = preference_file(tmp_path / "pairs.jsonl", [{"prompt": "p", "chosen": "y" * 99, "rejected": "n"}])

    with pytest.raises(DataError, match="1 pairs longer than max_length 20"):
        load_pair_data(file.path, RewardConfig(max_length=20), ChatText(tiny_tokenizer()))


def test_the_dpo_start_is_ln_2_under_the_own_log_probabilities(model):
    trainer = dpo_trainer(model, PAIRS)
    with trainer.parts.running():
        (batch,) = make_batches(PAIRS, range(9), max_tokens=10_000, packed=True)
        logps = trainer.logps(batch).detach()
        own = {side: torch.zeros(9) for side in ("chosen", "rejected")}
        own["chosen"][batch.numbers], own["rejected"][batch.numbers] = (
            logps[batch.chosen],
            logps[batch.rejected],
        )
        started = DPOTrainer(trainer.parts, trainer.output_head, trainer.config, own)

        assert float(started.loss(batch).loss) == pytest.approx(
            -functional.logsigmoid(torch.zeros(())).item(), abs=1e-7
        )


def test_a_held_out_file_is_measured_on_and_everything_else_trained_on(tmp_path):
    rows = [{"prompt": f"ask {word}", "chosen": "yes", "rejected": "no"} for word in ("one", "two", "six")]
    trained, measured = tmp_path / "train.jsonl", tmp_path / "held_out.jsonl"
    trained.write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    measured.write_text(json.dumps(rows[2]) + "\n")
    chat = ChatText(tiny_tokenizer())

    data = load_pair_data(trained, RewardConfig(), chat, held_out=measured)

    assert (len(data.train), len(data.held_out)) == (2, 1)
    measured.write_text("".join(json.dumps(row) + "\n" for row in rows[1:]))
    with pytest.raises(DataError, match="1 held-out pairs have a prompt that is trained on, lines 1"):
        load_pair_data(trained, RewardConfig(), chat, held_out=measured)
