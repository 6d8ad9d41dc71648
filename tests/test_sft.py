"""The fine-tuning stage: rows, rejects, held-out prompts, proofs, notes."""

from __future__ import annotations

import json

import pytest
import torch

from pipeline.config.run import ModelConfig, TuningConfig
from pipeline.contract import ArtifactKind, StageCheck
from pipeline.errors import DataError, HandOverError, ModelError
from stages.runtime.adapters import named_adapter_parameters
from stages.runtime.saving.seal import SealedSearch
from stages.runtime.text.chat import ChatText, TextContract
from stages.sft import SPEC, SftConfig, check
from stages.trainers import sft, sft_layout
from stages.trainers.sft_rows import IGNORED, TokenRow, encode_rows, prove_stop_is_trained
from tests.sft_setup import QUICK, demonstrations, run_sft, weights
from tests.tiny import as_checkpoint, stage_context, tiny_model, tiny_tokenizer


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
    whole = sft_layout.JoinedRows.__call__

    def masking(self, rows):
        batch = whole(self, rows)
        batch["labels"][batch["labels"] == 3] = IGNORED
        return batch

    monkeypatch.setattr(sft_layout.JoinedRows, "__call__", masking)

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


def test_a_model_that_cannot_be_packed_is_padded_and_says_so(tmp_path, tiny_base, monkeypatch):
    monkeypatch.setattr(sft_layout, "supports_segments", lambda *a, **k: "its attention is odd")

    _, result = run_sft(tmp_path, tiny_base, max_steps=1)

    assert "packing is off: its attention is odd" in result.notes


def test_the_card_says_what_it_takes_and_gives():
    assert SPEC.kind == "sft"
    assert set(SPEC.inputs) == {"base", "policy", "demonstrations"}
    assert not SPEC.inputs["policy"].required
    assert SPEC.outputs_with(SftConfig()) == {"adapter": ArtifactKind.ADAPTER}
    whole = SftConfig(tuning=TuningConfig(method="full"))
    assert SPEC.outputs_with(whole) == {"model": ArtifactKind.FULL_MODEL}
