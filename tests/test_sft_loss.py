"""The loss of fine-tuning, on every family and layout, is the cross-entropy of answer tokens."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D
from trl.trainer.sft_trainer import SFTTrainer

from pipeline.config.run import ModelConfig, TuningConfig
from pipeline.contract import ArtifactKind
from pipeline.errors import ModelError
from stages.runtime.adapters import named_adapter_parameters
from stages.runtime.loading import load_tokenizer
from stages.sft import SftConfig
from stages.trainers import sft, sft_layout, sft_trainer
from stages.trainers.sft_rows import IGNORED
from tests.sft_setup import QUICK, demonstrations, hand_made_loss, run_sft, weights
from tests.tiny import as_checkpoint, stage_context, tiny_model, tiny_tokenizer

FAMILIES = ("llama", "qwen2", "gemma2", "mistral", "phi", "gpt2")


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_and_gradient_are_the_cross_entropy_of_answer_tokens(tmp_path, family, packing):
    base = tiny_model(tmp_path / "base", family)
    data = demonstrations(tmp_path, rows=4)
    inputs = {"base": base, "demonstrations": data}
    ctx = stage_context(tmp_path, SftConfig(**QUICK, packing=packing), inputs)
    prepared = sft.prepare(ctx)
    model, _ = sft.start_model(ctx, prepared.tokenizer)
    with torch.no_grad():
        for index, (_, parameter) in enumerate(named_adapter_parameters(model, "policy")):
            parameter.add_(torch.sin(torch.arange(parameter.numel()) + index).reshape(parameter.shape) * 0.1)
    layout = sft_layout.choose_layout(model, ctx.config, prepared.tokenizer)
    trainer = sft_trainer.make_trainer(
        model, prepared.train.rows, ctx.config, layout, prepared.tokenizer, folder=tmp_path / "trainer"
    )
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    num_answer_tokens = int((batch["labels"] != IGNORED).sum())

    with layout.attention(model):
        loss = trainer.compute_loss(model, batch, num_items_in_batch=torch.tensor(num_answer_tokens))
        got = torch.autograd.grad(loss, [p for _, p in named_adapter_parameters(model, "policy")])

    want_loss = hand_made_loss(model, prepared.tokenizer, data.path)
    want = torch.autograd.grad(want_loss, [p for _, p in named_adapter_parameters(model, "policy")])
    assert isinstance(trainer.data_collator, sft_layout.JoinedRows) == packing
    assert layout.notes == ()
    assert float(loss) == pytest.approx(float(want_loss), abs=1e-5)
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_step_on_every_family_learns_and_reopens_with_plain_peft(tmp_path, family):
    base = tiny_model(tmp_path / "base", family)

    ctx, result = run_sft(tmp_path, base, max_steps=2)

    tokenizer = load_tokenizer(base, ModelConfig())
    plain = AutoModelForCausalLM.from_pretrained(base.path)
    before = hand_made_loss(plain, tokenizer, ctx.inputs["demonstrations"].path)
    after = hand_made_loss(
        PeftModel.from_pretrained(plain, result.outputs["adapter"]),
        tokenizer,
        ctx.inputs["demonstrations"].path,
    )
    assert float(after) < float(before)
    assert ctx.logger.series("loss")
    assert result.metrics["handover/logit_difference"] < 1e-5
    base_model = AutoModelForCausalLM.from_pretrained(base.path)
    linear = [name for name, layer in base_model.named_modules() if isinstance(layer, nn.Linear | Conv1D)]
    assert len(weights(result)) == 2 * (len(linear) - 1)  # lora_A and lora_B of each but the output head


def test_packed_training_gives_the_weights_of_padded_training(tmp_path, tiny_base):
    runs = [
        run_sft(
            tmp_path / str(packing), tiny_base, max_steps=6, packing=packing, data=demonstrations(tmp_path)
        )
        for packing in (True, False)
    ]

    packed, padded = (ctx.logger.series("loss") for ctx, _ in runs)
    assert packed == pytest.approx(padded, abs=1e-5)
    for key, value in weights(runs[0][1]).items():
        torch.testing.assert_close(value, weights(runs[1][1])[key], rtol=1e-3, atol=1e-5)


def test_training_equals_trls_own_trainer_on_the_same_rows(tmp_path, tiny_base):
    settings = {"max_steps": 4, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, "seed": 3}
    ctx, result = run_sft(tmp_path / "ours", tiny_base, data=demonstrations(tmp_path), **settings)
    prepared = sft.prepare(ctx)
    model, _ = sft.start_model(ctx, prepared.tokenizer)
    args = sft_trainer.trainer_arguments(
        ctx.config, num_rows=len(prepared.train.rows), folder=tmp_path / "trl"
    )
    from datasets import Dataset

    rows = prepared.train.rows
    data = Dataset.from_dict({"input_ids": [r.input_ids for r in rows], "labels": [r.labels for r in rows]})
    theirs = SFTTrainer(model, args=args, train_dataset=data, processing_class=prepared.tokenizer)

    theirs.train()

    losses = [line["loss"] for line in theirs.state.log_history if "loss" in line]
    assert ctx.logger.series("loss") == pytest.approx(losses, abs=1e-5)
    accuracies = [line["mean_token_accuracy"] for line in theirs.state.log_history if "loss" in line]
    assert ctx.logger.series("mean_token_accuracy") == pytest.approx(accuracies, abs=1e-6)
    tokens = [line["num_tokens"] for line in theirs.state.log_history if "loss" in line]
    assert ctx.logger.series("num_tokens") == tokens
    entropies = [line["entropy"] for line in theirs.state.log_history if "loss" in line]
    assert ctx.logger.series("entropy") == pytest.approx(entropies, abs=1e-4)
    trained = {
        key.replace(".policy.", "."): value for key, value in named_adapter_parameters(model, "policy")
    }
    for key, value in weights(result).items():
        torch.testing.assert_close(value, trained[key].detach(), rtol=1e-3, atol=1e-5)


def test_a_micro_batch_split_changes_nothing_but_rounding(tmp_path, tiny_base):
    data = demonstrations(tmp_path)
    whole = run_sft(tmp_path / "a", tiny_base, max_steps=4, data=data)
    split = run_sft(
        tmp_path / "b",
        tiny_base,
        max_steps=4,
        data=data,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
    )

    assert whole[0].logger.series("loss") == pytest.approx(split[0].logger.series("loss"), abs=1e-5)


def test_going_on_from_a_parent_adapter_starts_at_its_loss(tmp_path, tiny_base):
    data = demonstrations(tmp_path)
    _, first = run_sft(tmp_path / "first", tiny_base, max_steps=6, data=data)
    parent = as_checkpoint(first.outputs["adapter"], ArtifactKind.ADAPTER, producer="first")

    ctx, second = run_sft(
        tmp_path / "second", tiny_base, policy=parent, data=data, max_steps=1, per_device_train_batch_size=12
    )

    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base.path), parent.path)
    tokenizer = load_tokenizer(tiny_base, ModelConfig())
    assert ctx.logger.series("loss")[0] == pytest.approx(
        float(hand_made_loss(plain, tokenizer, data.path)), abs=1e-5
    )
    assert second.metrics["handover/logit_difference"] < 1e-5


def test_the_held_out_loss_is_the_cross_entropy_of_held_out_prompts_without_dropout(tmp_path, tiny_base):
    tuning = TuningConfig(lora_r=4, lora_dropout=0.5)
    ctx, result = run_sft(
        tmp_path, tiny_base, max_steps=3, eval_share=0.3, per_device_train_batch_size=2, tuning=tuning
    )

    prepared = sft.prepare(ctx)
    adapted = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_base.path), result.outputs["adapter"]
    )
    total, count = 0.0, 0
    for row in prepared.held_out.rows:
        logits = adapted(torch.tensor([row.input_ids])).logits[0, row.num_prompt - 1 : -1]
        answer = torch.tensor(row.input_ids[row.num_prompt :])
        total += float(functional.cross_entropy(logits, answer, reduction="sum"))
        count += len(answer)
    assert (len(prepared.train.rows), len(prepared.held_out.rows)) == (8, 4)
    assert result.metrics["eval_loss"] == pytest.approx(total / count, abs=1e-5)
    assert ctx.logger.series("eval_loss")[0] > ctx.logger.series("eval_loss")[-1]


def test_dropout_of_a_frozen_base_is_off_and_said(tmp_path):
    base = tiny_model(tmp_path / "base", "gpt2", resid_pdrop=0.2, attn_pdrop=0.2, embd_pdrop=0.2)

    ctx, result = run_sft(tmp_path, base, max_steps=1, per_device_train_batch_size=12)

    plain = AutoModelForCausalLM.from_pretrained(base.path)
    want = hand_made_loss(plain, tiny_tokenizer(), ctx.inputs["demonstrations"].path)
    assert ctx.logger.series("loss")[0] == pytest.approx(float(want), abs=1e-5)
    assert any("dropout of the base" in note for note in result.notes)


def test_a_head_that_is_not_known_gives_the_same_loss_the_long_way(tmp_path, tiny_base, monkeypatch):
    data = demonstrations(tmp_path)
    short = run_sft(tmp_path / "a", tiny_base, max_steps=3, data=data)
    monkeypatch.setattr(
        sft_layout.OutputHead,
        "of",
        classmethod(lambda *a, **k: (_ for _ in ()).throw(ModelError("odd head"))),
    )

    long = run_sft(tmp_path / "b", tiny_base, max_steps=3, data=data)

    for name in ("loss", "entropy", "mean_token_accuracy"):
        assert short[0].logger.series(name) == pytest.approx(long[0].logger.series(name), abs=1e-4)
    assert any("odd head" in note for note in long[1].notes)


def test_gradient_checkpointing_changes_nothing(tmp_path, tiny_base):
    data = demonstrations(tmp_path)
    plain, checkpointed = (
        run_sft(
            tmp_path / str(on),
            tiny_base,
            max_steps=3,
            data=data,
            tuning=TuningConfig(lora_r=4, gradient_checkpointing=on),
        )[0].logger.series("loss")
        for on in (False, True)
    )

    assert plain == pytest.approx(checkpointed, abs=1e-6)


def test_a_base_in_4_bits_trains_an_adapter_in_float32_that_goes_on_exactly(tmp_path, tiny_base):
    data = demonstrations(tmp_path)
    tuning = TuningConfig(method="qlora", lora_r=4)
    ctx, first = run_sft(tmp_path / "first", tiny_base, data=data, max_steps=4, tuning=tuning)
    parent = as_checkpoint(first.outputs["adapter"], ArtifactKind.ADAPTER, producer="first")

    _, second = run_sft(tmp_path / "second", tiny_base, policy=parent, data=data, max_steps=2, tuning=tuning)

    losses = ctx.logger.series("loss")
    assert losses[-1] < losses[0]
    assert second.metrics["handover/logit_difference"] < 1e-5
    assert {value.dtype for value in weights(second).values()} == {torch.float32}
    # Values that bfloat16 cannot hold: the adapter was not rounded on its way.
    assert any(not torch.equal(value, value.bfloat16().float()) for value in weights(first).values())


@pytest.mark.parametrize("bf16", [True, False])
def test_mixed_precision_reaches_the_loss_when_it_is_asked_for(tmp_path, tiny_base, monkeypatch, bf16):
    seen = []
    arguments, logprobs = sft_trainer.shared_arguments, sft_trainer.answer_logprobs

    def noting(*given):
        seen.append(torch.is_autocast_enabled("cpu"))
        return logprobs(*given)

    monkeypatch.setattr(sft_trainer, "shared_arguments", lambda *a, **k: {**arguments(*a, **k), "bf16": bf16})
    monkeypatch.setattr(sft_trainer, "answer_logprobs", noting)

    run_sft(tmp_path, tiny_base, max_steps=1)

    assert seen == [bf16]
