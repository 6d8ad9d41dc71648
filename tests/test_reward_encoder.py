"""Encoders as reward models: no causal mask, head and adapter saved and restored, refusals."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from pipeline.config.run import TuningConfig
from pipeline.contract import ArtifactKind, StageCheck
from pipeline.errors import ConfigError, HandOverError, Interrupted, ModelError
from stages.reward_encoder import SPEC, EncoderRewardConfig
from stages.runtime.encoder import EncoderText, load_encoder, open_encoder, save_encoder
from stages.trainers.pairs import make_batches
from stages.trainers.reward_encoder import EncoderTrainer, measure_encoder
from tests.pair_fixtures import FP32, preference_file, token_pairs, toy_rows
from tests.tiny import BOS, EOS, ManualStop, as_checkpoint, stage_context, tiny_model, tiny_tokenizer

TUNING = TuningConfig(lora_r=4, lora_alpha=8)
SETTINGS = {
    "model": FP32,
    "tuning": TUNING,
    "learning_rate": 1e-2,
    "per_device_train_batch_size": 8,
    "max_steps": 25,
    "logging_steps": 1,
    "eval_share": 0.25,
    "num_probes": 8,
    "max_length": 128,
    "seed": 1,
}
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def tiny_encoder(folder, model_type="bert", *, seed=0, sizes=None):
    """Write a random encoder without a head; of two layers where no sizes are given."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {"distilbert": {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4}}
    sizes = {
        **(sizes or names.get(model_type, SIZES)),
        "vocab_size": 261,
        "pad_token_id": 0,
        "max_position_embeddings": 160,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModel.from_config(AutoConfig.for_model(model_type, **sizes))
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(folder)
    tokenizer = tiny_tokenizer(chat=False)
    tokenizer.cls_token, tokenizer.sep_token = BOS, EOS
    tokenizer.save_pretrained(folder)
    return as_checkpoint(folder, ArtifactKind.FULL_MODEL)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_encoder(tmp_path_factory.mktemp("bert") / "base")


def context(root, base, rows, *, stop=None, **changes):
    root.mkdir(parents=True, exist_ok=True)
    inputs = {"base": base, "preferences": preference_file(root / "pairs.jsonl", rows)}
    return stage_context(root, EncoderRewardConfig(**{**SETTINGS, **changes}), inputs, stop=stop)


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    ctx = context(tmp_path_factory.mktemp("stage"), base, toy_rows(120))
    return ctx, SPEC.run(ctx)


def stored_of(result):
    return as_checkpoint(result.outputs["reward_model"], ArtifactKind.REWARD_MODEL)


def test_an_encoder_learns_a_rule_and_gets_its_card(trained):
    ctx, result = trained
    card = json.loads((result.outputs["reward_model"] / "card.json").read_text())

    assert result.metrics["accuracy"] > 0.9
    assert ctx.logger.series("loss")[-1] < 0.4 < ctx.logger.series("loss")[0]
    assert card["accuracy"] == result.metrics["accuracy"]
    assert card["probes"]


def test_scores_equal_separate_unpadded_rows_and_see_what_follows(trained, base):
    ctx, result = trained
    encoder = load_encoder(base, stored_of(result), FP32, TUNING)
    pairs = token_pairs(6, seed=3)
    trainer = EncoderTrainer(_parts(encoder), None, ctx.config)

    chosen, _ = trainer.score_pairs(pairs)

    for pair, score in zip(pairs, chosen, strict=True):
        ids = torch.tensor([[*pair.prompt, *pair.chosen]])
        types = torch.tensor([[0] * len(pair.prompt) + [1] * len(pair.chosen)])
        with torch.no_grad():
            alone = encoder.model(input_ids=ids, token_type_ids=types).logits[0, 0]
        assert score == pytest.approx(float(alone), abs=1e-5)
    # another last token changes the state of the first: there is no causal mask
    bert = encoder.model.base_model.model.bert
    one, other = (bert(torch.tensor([[5, 6, 7, last]])).last_hidden_state[0, 0] for last in (8, 9))
    assert not torch.allclose(one, other, atol=1e-4)


def _parts(encoder):
    from stages.trainers.reward_encoder import EncoderParts

    return EncoderParts(encoder)


def test_sixty_four_rows_score_the_same_to_1e_6_after_saving_and_in_plain_peft(trained, base):
    _, result = trained
    stored = stored_of(result)
    rows = [[1, 5 + i % 200, 6, 4, 8, 9 + i % 100, 4][: 4 + i % 4] for i in range(64)]

    def scores(model):
        with torch.no_grad():
            return torch.stack([model(input_ids=torch.tensor([row])).logits[0, 0] for row in rows])

    first = scores(load_encoder(base, stored, FP32, TUNING).model)
    again = scores(load_encoder(base, stored, FP32, TUNING).model)
    plain = AutoModelForSequenceClassification.from_pretrained(base.path, num_labels=1, dtype=torch.float32)
    exported = scores(PeftModel.from_pretrained(plain, stored.path).eval())

    torch.testing.assert_close(again, first, atol=1e-6, rtol=0)
    torch.testing.assert_close(exported, first, atol=1e-6, rtol=0)
    assert first.std() > 1e-3


def test_four_steps_equal_two_and_two_bit_for_bit(base, tmp_path):
    rows = toy_rows(40)
    straight = SPEC.run(context(tmp_path / "a", base, rows, max_steps=4))
    with pytest.raises(Interrupted):
        SPEC.run(context(tmp_path / "b", base, rows, max_steps=4, stop=ManualStop(after=1)))

    continued = SPEC.run(context(tmp_path / "b", base, rows, max_steps=4))

    one, other = (
        load_file(r.outputs["reward_model"] / "adapter_model.safetensors") for r in (straight, continued)
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_recomputed_activations_train_the_same_model(base, tmp_path):
    rows = toy_rows(40)
    plain = SPEC.run(context(tmp_path / "a", base, rows, max_steps=3))
    less = TuningConfig(lora_r=4, lora_alpha=8, gradient_checkpointing=True)
    recomputed = SPEC.run(context(tmp_path / "b", base, rows, max_steps=3, tuning=less))

    one, other = (
        load_file(r.outputs["reward_model"] / "adapter_model.safetensors") for r in (plain, recomputed)
    )
    assert all(torch.allclose(one[key], other[key], atol=1e-6) for key in one)


def test_the_card_can_be_measured_on_another_file(trained, base, tmp_path):
    ctx, result = trained
    path = tmp_path / "other.jsonl"
    preference_file(path, toy_rows(20, seed=9))

    card = measure_encoder(base, stored_of(result), ctx.config, path)

    assert card["num_pairs"] == 20
    assert card["accuracy"] > 0.8


def test_padding_and_order_change_no_score(trained, base):
    ctx, result = trained
    trainer = EncoderTrainer(_parts(load_encoder(base, stored_of(result), FP32, TUNING)), None, ctx.config)
    pairs = token_pairs(8, seed=5)

    together = trainer.score_pairs(pairs)[1]
    backwards = trainer.score_pairs(pairs[::-1])[1][::-1]
    alone = [trainer.score_pairs([pair])[1][0] for pair in pairs]

    assert len(make_batches(pairs, range(8), max_tokens=10_000, packed=False)) == 1
    assert together == pytest.approx(backwards, abs=1e-5)
    assert together == pytest.approx(alone, abs=1e-5)


def test_the_text_of_a_pair_is_start_prompt_end_response_end():
    tokenizer = tiny_tokenizer(chat=False)
    tokenizer.cls_token, tokenizer.sep_token = BOS, EOS
    text = EncoderText(tokenizer)
    start, end = tokenizer.cls_token_id, tokenizer.sep_token_id

    assert text.prompt_ids("ab") == [start, *tokenizer("ab")["input_ids"], end]
    assert text.response_ids("ab", "c") == [*tokenizer("c")["input_ids"], end]


def test_what_is_no_encoder_or_another_one_is_refused(trained, base, tmp_path):
    _, result = trained
    other = tiny_encoder(tmp_path / "other", seed=5)
    broken = tiny_model(tmp_path / "llama")
    (broken.path / "config.json").write_text('{"model_type": "nothing"}')

    with pytest.raises(HandOverError, match="was trained on"):
        load_encoder(other, stored_of(result), FP32, TUNING)
    with pytest.raises(ModelError, match="cannot be opened"):
        SPEC.run(context(tmp_path / "x", broken, toy_rows(20)))


def test_four_bits_and_too_few_positions_are_refused(base, tmp_path):
    qlora = context(tmp_path / "a", base, toy_rows(20), tuning=TuningConfig(method="qlora"))
    (finding,) = SPEC.check(StageCheck("rm", qlora.config, qlora.inputs))

    assert finding.code == "tuning-of-encoder"
    with pytest.raises(ConfigError, match="an encoder has lora only"):
        SPEC.run(qlora)
    long = [{**row, "prompt": row["prompt"] + " x" * 90} for row in toy_rows(20)]
    with pytest.raises(ModelError, match="positions for 160"):
        SPEC.run(context(tmp_path / "b", base, long, max_length=400))


@pytest.mark.parametrize("model_type", ["roberta", "distilbert", "modernbert", "deberta-v2"])
def test_the_heads_of_other_families_are_stored_and_restored(tmp_path, model_type):
    base = tiny_encoder(tmp_path / "base", model_type)
    encoder = open_encoder(base, FP32, TUNING, seed=3)
    with torch.no_grad():
        for _, parameter in encoder.parameters():
            parameter.add_(torch.linspace(-0.1, 0.1, parameter.numel()).view_as(parameter))
    folder = save_encoder(encoder, tmp_path / "stored", base=base)
    stored = as_checkpoint(folder, ArtifactKind.REWARD_MODEL)
    ids, mask = torch.tensor([[1, 7, 8, 4, 9, 4]]), torch.ones(1, 6, dtype=torch.bool)
    types = torch.tensor([[0, 0, 0, 0, 1, 1]])

    with torch.no_grad():
        given = encoder.scores(ids, mask, types)
        loaded = load_encoder(base, stored, FP32, TUNING).scores(ids, mask, types)
        fresh = open_encoder(base, FP32, TUNING, seed=3).scores(ids, mask, types)

    torch.testing.assert_close(loaded, given, atol=1e-6, rtol=0)
    assert not torch.allclose(fresh, given, atol=1e-3)


def test_training_that_ends_early_gives_the_best_weights(base, tmp_path):
    # A coin says which side is better, so there is nothing to learn that holds for other pairs.
    early = {"eval_steps": 2, "patience": 2}
    rows = toy_rows(60, shuffled=True)
    ctx = context(tmp_path, base, rows, early_stopping=early, eval_share=0.3, max_steps=40)

    result = SPEC.run(ctx)

    lines = {line["step"]: line for line in ctx.logger.lines if "overfitting_gap" in line}
    best = min(lines, key=lambda step: lines[step]["eval_loss"])
    assert result.metrics["best_step"] == best < max(lines)
    assert result.metrics["margin_mean"] == pytest.approx(lines[best]["eval_rewards/margins"], abs=1e-5)


def test_a_head_on_a_half_precision_encoder_takes_steps_that_bfloat16_would_lose(base):
    encoder = open_encoder(base, FP32.model_copy(update={"dtype": "bfloat16"}), TUNING, seed=3)
    (weight,) = [
        value for name, value in encoder.parameters() if name.endswith("default.weight") and len(value) == 1
    ]
    ids, mask = torch.tensor([[5, 6, 7]]), torch.ones(1, 3, dtype=torch.bool)
    before = weight.detach().clone()

    encoder.scores(ids, mask, mask.long() * 0).sum().backward()
    # A millionth of the weights' own size: eight bits of mantissa hold no such step.
    with torch.no_grad():
        weight -= 1e-6 * before.abs() * weight.grad.sign()

    assert weight.dtype == torch.float32
    assert not torch.equal(weight, before)
    assert bool(encoder.scores(ids, mask, mask.long() * 0).isfinite())
