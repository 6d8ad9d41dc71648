"""The text contract: what a stage must have in common with its parent, and how a difference is shown."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from pipeline.contract import ArtifactKind, Checkpoint
from pipeline.errors import ExitCode, HandOverError, ModelError
from stages.runtime.text.chat import TextContract, check_same_text, resolve_template
from tests.chat_tokenizers import blank_first_tokenizer, chat_tokenizer, merging_tokenizer
from tests.tiny import CHAT_TEMPLATE, tiny_tokenizer


def base_of(path, fingerprint):
    return Checkpoint(ArtifactKind.FULL_MODEL, path, fingerprint)


@pytest.mark.parametrize(
    "make",
    [tiny_tokenizer, merging_tokenizer, blank_first_tokenizer, lambda: chat_tokenizer("llama3")],
    ids=["bytes", "merges", "blanks", "llama3"],
)
def test_a_saved_and_reopened_tokenizer_keeps_its_contract(make, tmp_path):
    tokenizer = make()
    contract = TextContract.from_tokenizer(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    tokenizer(["some", "texts that pad"], padding=True, truncation=True, max_length=4)

    assert TextContract.from_tokenizer(AutoTokenizer.from_pretrained(tmp_path)) == contract
    assert TextContract.from_tokenizer(tokenizer) == contract


def test_a_contract_is_read_back_as_it_was_written(tmp_path):
    contract = TextContract.from_tokenizer(tiny_tokenizer(), base=base_of(tmp_path, "ab" * 32))
    contract.write(tmp_path)

    assert TextContract.read(tmp_path) == contract
    assert contract.vocabulary_size == 261
    assert (contract.bos_token_id, contract.eos_token_id, contract.pad_token_id) == (1, 3, 0)
    assert contract.stop_token_ids == (3,)
    assert json.loads((tmp_path / "text.json").read_text())["base_fingerprint"] == "ab" * 32


def test_a_folder_without_a_contract_is_taken_as_it_is(tmp_path):
    assert TextContract.read(tmp_path) is None
    assert check_same_text(tmp_path, tiny_tokenizer()).vocabulary_size == 261


@pytest.mark.parametrize("text", ["{", "[]", '{"type": "other"}', '{"type": "text-contract/1"}'])
def test_a_damaged_contract_is_named(tmp_path, text):
    (tmp_path / "text.json").write_text(text)

    with pytest.raises(ModelError, match=r"text\.json"):
        TextContract.read(tmp_path)


def with_other_template(tokenizer):
    tokenizer.chat_template = CHAT_TEMPLATE + " "


def with_other_pad(tokenizer):
    tokenizer.pad_token = "<|endoftext|>"


def with_other_eos(tokenizer):
    tokenizer.eos_token = "<|endoftext|>"


def with_more_tokens(tokenizer):
    tokenizer.add_tokens(["<new>"])


@pytest.mark.parametrize(
    ("change", "codes"),
    [
        (with_other_template, ["text-chat-template-sha256"]),
        (with_other_pad, ["text-pad-token-id"]),
        (with_other_eos, ["text-eos-token-id"]),
        (with_more_tokens, ["text-vocabulary-size", "text-tokenizer-sha256"]),
    ],
)
def test_a_stage_whose_text_differs_from_its_parents_exits_2_with_both_values(tmp_path, change, codes):
    parent = TextContract.from_tokenizer(tiny_tokenizer())
    parent.write(tmp_path)
    tokenizer = tiny_tokenizer()
    change(tokenizer)

    with pytest.raises(HandOverError) as caught:
        check_same_text(tmp_path, tokenizer, where="dpo")

    assert [finding.code for finding in caught.value.findings] == codes
    assert caught.value.exit_code == ExitCode.USER_ERROR
    own = TextContract.from_tokenizer(tokenizer)
    for finding in caught.value.findings:
        name = finding.code.removeprefix("text-").replace("-", "_")
        assert finding.where == "dpo"
        assert repr(getattr(own, name)) in finding.message
        assert repr(getattr(parent, name)) in finding.message


def test_two_tokenizers_that_differ_in_two_swapped_ids_differ():
    tokenizer = tiny_tokenizer()
    held = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = held["model"]["vocab"]
    vocabulary["q"], vocabulary["Q"] = vocabulary["Q"], vocabulary["q"]
    swapped = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(held)),
        pad_token="<|pad|>",
        bos_token="<|bos|>",
        eos_token="<|im_end|>",
        chat_template=CHAT_TEMPLATE,
    )

    (finding,) = TextContract.from_tokenizer(swapped).differences(TextContract.from_tokenizer(tokenizer))
    assert finding.code == "text-tokenizer-sha256"


def test_another_base_is_a_difference_only_when_both_are_known(tmp_path):
    TextContract.from_tokenizer(tiny_tokenizer(), base=base_of(tmp_path, "a" * 64)).write(tmp_path)

    check_same_text(tmp_path, tiny_tokenizer())
    with pytest.raises(HandOverError, match="base model"):
        check_same_text(tmp_path, tiny_tokenizer(), base=base_of(tmp_path, "b" * 64))


def test_stop_ids_of_a_generation_config_are_no_difference_but_other_stop_ids_are():
    own = TextContract.from_tokenizer(tiny_tokenizer())

    assert not own.differences(replace(own, stop_token_ids=(3, 4)))
    assert not replace(own, stop_token_ids=(3, 4)).differences(own)
    assert own.differences(replace(own, stop_token_ids=(4,)))


def test_a_template_from_trl_changes_the_contract():
    tokenizer = tiny_tokenizer()
    before = TextContract.from_tokenizer(tokenizer)
    tokenizer.chat_template = resolve_template("qwen2_5")

    (finding,) = TextContract.from_tokenizer(tokenizer).differences(before)
    assert finding.code == "text-chat-template-sha256"
