"""Supervised fine-tuning: loss on the answer only, on every family, and a start at the parent."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D
from trl.trainer.sft_trainer import SFTTrainer

from pipeline.config.run import ModelConfig, TuningConfig
from pipeline.contract import ArtifactKind, StageCheck
from pipeline.errors import DataError, HandOverError, ModelError
from stages.runtime.adapters import named_adapter_parameters
from stages.runtime.chat import ChatText, TextContract
from stages.runtime.loading import load_tokenizer
from stages.runtime.seal import SealedSearch
from stages.sft import SPEC, SftConfig, check, run
from stages.trainers import sft, sft_trainer
from stages.trainers.sft_rows import IGNORED, TokenRow, encode_rows, prove_stop_is_trained
from tests.tiny import as_checkpoint, stage_context, tiny_model, tiny_tokenizer

FAMILIES = ("llama", "qwen2", "gemma2", "mistral", "phi", "gpt2")
QUICK = {
    "per_device_train_batch_size": 4,
    "logging_steps": 1,
    "learning_rate": 1e-2,
    "eval_share": 0.0,
    "warmup_ratio": 0.0,
    "tuning": TuningConfig(lora_r=4),
}


def demonstrations(folder, rows=12):
    """Write answers of different lengths, so that padding and packing differ."""
    path = folder / "demonstrations.jsonl"
    lines = [
        {"prompt": f"say {i}" + "?" * (i % 4), "completion": f"it is {i}" + "!" * (5 * i % 9)}
        for i in range(rows)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return as_checkpoint(path, ArtifactKind.DEMONSTRATIONS)


def run_sft(folder, base, *, policy=None, data=None, **settings):
    inputs = {"base": base, "demonstrations": data or demonstrations(folder)}
    if policy is not None:
        inputs["policy"] = policy
    ctx = stage_context(folder, SftConfig(**{**QUICK, **settings}), inputs)
    return ctx, run(ctx)


def weights(result):
    return load_file(result.outputs["adapter"] / "adapter_model.safetensors")


def hand_made_loss(model, tokenizer, path):
    """Return the mean cross-entropy of answer tokens, row by row, from the model's own logits."""
    total, count = 0.0, 0
    for line in path.read_text().splitlines():
        row = json.loads(line)
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": row["prompt"]}], add_generation_prompt=True, return_dict=False
        )
        answer = tokenizer(row["completion"] + "<|im_end|>")["input_ids"]
        logits = model(torch.tensor([prompt + answer])).logits[0]
        predicting = logits[len(prompt) - 1 : -1]
        total = total + functional.cross_entropy(predicting, torch.tensor(answer), reduction="sum")
        count += len(answer)
    return total / count


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
    layout = sft_trainer.choose_layout(model, ctx.config, prepared.tokenizer)
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
    assert isinstance(trainer.data_collator, sft_trainer.JoinedRows) == packing
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


def test_the_trained_rows_end_in_the_stop_token_and_the_prompt_is_not_learned(tmp_path, tiny_base):
    ctx = stage_context(
        tmp_path, SftConfig(**QUICK), {"base": tiny_base, "demonstrations": demonstrations(tmp_path)}
    )

    rows = sft.prepare(ctx).train.rows

    tokenizer = tiny_tokenizer()
    for row in rows:
        assert tokenizer.decode(row.input_ids[: row.num_prompt]).endswith("<|im_start|>assistant\n")
        learned = [label for label in row.labels if label != IGNORED]
        assert tokenizer.decode(learned).startswith("it is ")
        assert learned[-1] == tokenizer.eos_token_id
        assert row.labels[: row.num_prompt] == [IGNORED] * row.num_prompt


def test_an_answer_without_its_stop_token_is_found_before_training(tmp_path, tiny_base, monkeypatch):
    whole = ChatText.response_ids
    monkeypatch.setattr(ChatText, "response_ids", lambda *a: whole(*a)[:-1])

    with pytest.raises(DataError, match="never learn to stop"):
        run_sft(tmp_path, tiny_base, max_steps=1)


def test_a_collator_that_masks_the_stop_token_is_found_before_training(tmp_path, tiny_base, monkeypatch):
    whole = sft_trainer.JoinedRows.__call__

    def masking(self, rows):
        batch = whole(self, rows)
        batch["labels"][batch["labels"] == 3] = IGNORED
        return batch

    monkeypatch.setattr(sft_trainer.JoinedRows, "__call__", masking)

    with pytest.raises(DataError, match="no stop token counts"):
        run_sft(tmp_path, tiny_base, max_steps=1)


def test_only_a_cut_row_may_lack_the_stop_token():
    row, cut = TokenRow([1, 2, 3], 1), TokenRow([1, 2, 7], 1)

    prove_stop_is_trained([row, row], [3])
    prove_stop_is_trained([row, cut], [3], num_cut=1)
    prove_stop_is_trained([], [3])
    for rows, num_cut in (([row, cut], 0), ([cut, cut], 2)):
        with pytest.raises(DataError):
            prove_stop_is_trained(rows, [3], num_cut=num_cut)


@pytest.mark.parametrize(("truncation", "num_rows", "num_cut"), [("drop", 1, 0), ("keep_start", 2, 1)])
def test_a_row_that_is_too_long_is_counted_and_never_cut_in_silence(truncation, num_rows, num_cut):
    from stages.data import Demonstration

    chat = ChatText(tiny_tokenizer())
    short, long = Demonstration("a", "b", 1), Demonstration("a", "b" * 90, 2)
    hopeless = Demonstration("a" * 90, "b", 3)

    made = encode_rows([short, long, hopeless], chat, max_length=60, truncation=truncation)

    assert (len(made.rows), made.num_cut, made.num_too_long) == (num_rows, num_cut, 3 - num_rows)
    assert all(len(row.input_ids) <= 60 for row in made.rows)
    assert {row.check for row in made.rejects} == {"too_long"}


def test_rejected_rows_stand_beside_the_adapter_with_line_and_reason(tmp_path, tiny_base):
    path = tmp_path / "d.jsonl"
    good = [json.dumps({"prompt": f"q{i}", "completion": "a"}) for i in range(20)]
    path.write_text("\n".join([*good[:7], '{"prompt": "x"}', *good[7:]]) + "\n")
    data = as_checkpoint(path, ArtifactKind.DEMONSTRATIONS)

    _, result = run_sft(tmp_path, tiny_base, data=data, max_steps=1)

    (line,) = (result.outputs["adapter"] / "rejected_rows.jsonl").read_text().splitlines()
    assert json.loads(line)["line"] == 8
    assert json.loads(line)["check"] == "missing_response"
    assert result.metrics["num_rejected_rows"] == 1
    assert result.metrics["num_train_rows"] == 20


def test_too_many_bad_rows_stop_the_plan_and_the_stage(tmp_path, tiny_base):
    path = tmp_path / "d.jsonl"
    path.write_text('{"prompt": "q", "completion": "a"}\n' * 9 + "{\n")
    data = as_checkpoint(path, ArtifactKind.DEMONSTRATIONS)

    findings = check(StageCheck("sft", SftConfig(), {"demonstrations": data}))

    assert [finding.code for finding in findings] == ["too-many-rejected-rows", "parse_error"]
    assert findings[1].where == f"{path}:10"
    assert check(StageCheck("sft", SftConfig(max_rejected_share=0.1), {"demonstrations": data})) == []
    with pytest.raises(DataError, match="1 of 10 rows"):
        run_sft(tmp_path, tiny_base, data=data)


def test_a_missing_file_is_found_by_the_plan(tmp_path):
    absent = as_checkpoint(demonstrations(tmp_path).path, ArtifactKind.DEMONSTRATIONS)
    absent.path.unlink()

    (finding,) = check(StageCheck("sft", SftConfig(), {"demonstrations": absent}))

    assert finding.code == "missing-file"
    assert check(StageCheck("sft", SftConfig(), {})) == []


def test_an_adapter_on_the_output_head_is_refused_by_the_plan():
    config = SftConfig(tuning=TuningConfig(target_modules=("q_proj", "lm_head")))

    (finding,) = check(StageCheck("sft", config, {}))

    assert finding.code == "adapter-on-head"


def test_the_held_out_loss_is_the_cross_entropy_of_held_out_prompts(tmp_path, tiny_base):
    ctx, result = run_sft(tmp_path, tiny_base, max_steps=3, eval_share=0.3, per_device_train_batch_size=2)

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


def test_evaluation_does_not_move_training(tmp_path, tiny_base):
    data = demonstrations(tmp_path)
    settings = {
        "max_steps": 4,
        "eval_share": 0.3,
        "tuning": TuningConfig(lora_r=4, lora_dropout=0.2),
        "data": data,
    }

    often, seldom = (
        run_sft(tmp_path / str(every), tiny_base, eval_steps=every, **settings)[1] for every in (1, None)
    )

    assert all(torch.equal(value, weights(seldom)[key]) for key, value in weights(often).items())


def test_the_same_run_gives_the_same_bytes(tmp_path, tiny_base):
    data = demonstrations(tmp_path)

    folders = [
        run_sft(tmp_path / name, tiny_base, data=data, max_steps=3)[1].outputs["adapter"] for name in "ab"
    ]

    files = sorted(path.name for path in folders[0].iterdir())
    assert files == sorted(path.name for path in folders[1].iterdir())
    for name in files:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
        assert str(tmp_path).encode() not in (folders[0] / name).read_bytes()


def test_another_chat_template_than_the_parent_adapters_stops_before_weights(tmp_path, tiny_base):
    data = demonstrations(tmp_path)
    _, first = run_sft(tmp_path / "first", tiny_base, max_steps=1, data=data)
    parent = as_checkpoint(first.outputs["adapter"], ArtifactKind.ADAPTER, producer="first")

    with pytest.raises(HandOverError, match="chat template") as caught:
        run_sft(
            tmp_path / "b", tiny_base, policy=parent, data=data, model=ModelConfig(chat_template="qwen2_5")
        )
    assert "first" in str(caught.value)


def test_a_first_fine_tuning_may_choose_the_template_of_its_base(tmp_path):
    base = tiny_model(tmp_path / "base")
    TextContract.from_tokenizer(tiny_tokenizer()).write(base.path)

    _, result = run_sft(tmp_path, base, max_steps=1, model=ModelConfig(chat_template="qwen2_5"))

    contract = TextContract.read(result.outputs["adapter"])
    assert contract.base_fingerprint == base.fingerprint
    assert contract.chat_template_sha256 != TextContract.read(base.path).chat_template_sha256


def test_a_base_with_other_special_ids_than_its_contract_is_refused(tmp_path):
    base = tiny_model(tmp_path / "base")
    other = tiny_tokenizer()
    other.pad_token = "<|endoftext|>"
    TextContract.from_tokenizer(other).write(base.path)

    with pytest.raises(HandOverError, match="pad token id"):
        run_sft(tmp_path, base, max_steps=1)


def test_rows_longer_than_the_bases_positions_are_refused_with_the_limit(tmp_path):
    base = tiny_model(tmp_path / "base", "gpt2", n_positions=32)

    with pytest.raises(ModelError, match="positions for 32") as caught:
        run_sft(tmp_path, base, max_steps=1)
    assert caught.value.findings[0].hint == "max_length: 32"


def test_an_adapter_that_learned_nothing_is_an_error(tmp_path, tiny_base, monkeypatch):
    monkeypatch.setattr(sft, "train_sealed", lambda *_, **__: SealedSearch(None, 0, ()))

    with pytest.raises(HandOverError, match="learned nothing"):
        run_sft(tmp_path, tiny_base, max_steps=1)


def test_a_trainer_that_resets_the_parent_is_found(tmp_path, tiny_base, monkeypatch):
    data = demonstrations(tmp_path)
    _, first = run_sft(tmp_path / "first", tiny_base, max_steps=3, data=data)
    parent = as_checkpoint(first.outputs["adapter"], ArtifactKind.ADAPTER, producer="first")
    make = sft.make_trainer

    def resetting(model, *arguments, **options):
        with torch.no_grad():
            for name, parameter in named_adapter_parameters(model, "policy"):
                if ".lora_B." in name:
                    parameter.zero_()
        return make(model, *arguments, **options)

    monkeypatch.setattr(sft, "make_trainer", resetting)

    with pytest.raises(HandOverError, match="was reset"):
        run_sft(tmp_path / "second", tiny_base, policy=parent, data=data, max_steps=1)


def test_dropout_of_a_frozen_base_is_off_and_said(tmp_path):
    base = tiny_model(tmp_path / "base", "gpt2", resid_pdrop=0.2, attn_pdrop=0.2, embd_pdrop=0.2)

    ctx, result = run_sft(tmp_path, base, max_steps=1, per_device_train_batch_size=12)

    plain = AutoModelForCausalLM.from_pretrained(base.path)
    want = hand_made_loss(plain, tiny_tokenizer(), ctx.inputs["demonstrations"].path)
    assert ctx.logger.series("loss")[0] == pytest.approx(float(want), abs=1e-5)
    assert any("dropout of the base" in note for note in result.notes)


def test_a_model_that_cannot_be_packed_is_padded_and_says_so(tmp_path, tiny_base, monkeypatch):
    monkeypatch.setattr(sft_trainer, "supports_segments", lambda *a, **k: "its attention is odd")

    _, result = run_sft(tmp_path, tiny_base, max_steps=1)

    assert "packing is off: its attention is odd" in result.notes


def test_a_head_that_is_not_known_gives_the_same_loss_the_long_way(tmp_path, tiny_base, monkeypatch):
    data = demonstrations(tmp_path)
    short = run_sft(tmp_path / "a", tiny_base, max_steps=3, data=data)
    monkeypatch.setattr(
        sft_trainer.OutputHead,
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


def test_the_card_says_what_it_takes_and_gives():
    assert SPEC.kind == "sft"
    assert set(SPEC.inputs) == {"base", "policy", "demonstrations"}
    assert not SPEC.inputs["policy"].required
    assert SPEC.outputs == {"adapter": ArtifactKind.ADAPTER}
