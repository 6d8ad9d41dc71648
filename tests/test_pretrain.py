"""Pretraining: documents, blocks, the tokenizer, training from scratch and from a base."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.config.run import ModelConfig
from pipeline.contract import ArtifactKind, Checkpoint, StageCheck
from pipeline.errors import DataError, Interrupted, ModelError
from stages.pretrain import SPEC, PretrainConfig
from stages.runtime.text.blocks import IGNORED, collate, pack
from stages.runtime.text.byte_tokenizer import train_tokenizer
from stages.runtime.text.contract import TextContract, tokenizer_digest
from stages.runtime.text.documents import read_documents, split
from tests.tiny import ManualStop, as_checkpoint, stage_context, tiny_config

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
SENTENCES = [
    f"The {animal} eats {food} in the {place}."
    for animal in ("cat", "dog", "owl", "fox")
    for food in ("fish", "bread", "grass")
    for place in ("garden", "house", "wood", "river", "town")
]


def _text(tmp_path: Path, documents: list[str] | None = None) -> Checkpoint:
    file = tmp_path / "corpus.txt"
    file.write_text("\n\n".join(documents or SENTENCES * 4))
    return as_checkpoint(file, ArtifactKind.TEXT)


def _config(**changes: Any) -> PretrainConfig:
    settings = {
        "architecture": LLAMA,
        "vocab_size": 320,
        "max_steps": 12,
        "max_length": 32,
        "learning_rate": 1e-2,
        "logging_steps": 4,
        **changes,
    }
    return PretrainConfig(**settings)


def _run(root: Path, config: PretrainConfig, inputs: dict[str, Checkpoint], **options: Any):
    root.mkdir(parents=True, exist_ok=True)
    ctx = stage_context(root, config, inputs, **options)
    result = SPEC.run(ctx)
    return result, ctx


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Checkpoint]:
    root = tmp_path_factory.mktemp("scratch")
    text = _text(root)
    result, ctx = _run(root / "run", _config(), {"text": text})
    return result, ctx, as_checkpoint(result.outputs["model"], ArtifactKind.FULL_MODEL, producer="base")


def test_a_model_from_scratch_learns_the_text(trained) -> None:
    result, ctx, _ = trained

    # An untrained model guesses among all tokens; a trained one among the few that can follow.
    assert result.metrics["initial_perplexity"] > 150
    assert result.metrics["perplexity"] < 0.5 * result.metrics["initial_perplexity"]
    assert result.metrics["perplexity"] == pytest.approx(math.exp(result.metrics["eval_loss"]))
    assert {"loss", "grad_norm", "learning_rate", "tokens_per_second"} <= ctx.logger.lines[-1].keys()


def test_the_folder_is_what_from_pretrained_opens(trained) -> None:
    result, _, _ = trained
    folder = result.outputs["model"]

    opened = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)

    assert opened.config.vocab_size == len(tokenizer) <= 320
    assert opened.generation_config.eos_token_id == [tokenizer.eos_token_id]
    assert tokenizer.eos_token == "<|end|>"
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    contract = TextContract.read(folder)
    assert contract.stop_token_ids == (tokenizer.eos_token_id,)
    assert contract.vocabulary_size == len(tokenizer)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|user|>hi<|assistant|>"
    files = {path.name for path in folder.iterdir()}
    assert "model.safetensors" in files
    assert not {name for name in files if name.endswith((".bin", ".pt"))}


def test_the_reported_perplexity_is_that_of_the_saved_model(trained, tmp_path: Path) -> None:
    result, _, _ = trained
    folder = result.outputs["model"]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    held_out = split(read_documents(_text(tmp_path).path), fraction=0.05, seed=42).held_out

    # The same stream, cut by hand into blocks of 32 that share one token.
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in _in_order(held_out)]
    stream = [token for row in ids for token in (*row, tokenizer.eos_token_id)]
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(stream) - 1, 31):
            block = torch.tensor([stream[start : start + 32]])
            total += float(model(input_ids=block, labels=block).loss) * (block.shape[1] - 1)

    assert result.metrics["eval_loss"] == pytest.approx(total / (len(stream) - 1), abs=1e-5)


def _in_order(documents: tuple[Any, ...]) -> list[Any]:
    from stages.trainers.order import order

    return [documents[row] for row in order(42, 0, len(documents))]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(trained, tmp_path: Path) -> None:
    _, _, model = trained
    text = _text(tmp_path)

    again, _ = _run(tmp_path / "again", _config(), {"text": text})
    other, _ = _run(tmp_path / "other", _config(seed=1), {"text": text})

    assert as_checkpoint(again.outputs["model"], ArtifactKind.FULL_MODEL).fingerprint == model.fingerprint
    assert as_checkpoint(other.outputs["model"], ArtifactKind.FULL_MODEL).fingerprint != model.fingerprint


def test_a_stopped_run_goes_on_to_the_same_bytes(trained, tmp_path: Path) -> None:
    _, _, model = trained
    text = _text(tmp_path)

    with pytest.raises(Interrupted, match="after step 5 of 12"):
        _run(tmp_path / "run", _config(), {"text": text}, stop=ManualStop(after=4))
    result, _ = _run(tmp_path / "run", _config(), {"text": text})

    assert as_checkpoint(result.outputs["model"], ArtifactKind.FULL_MODEL).fingerprint == model.fingerprint


def test_a_base_is_adapted_and_its_tokenizer_is_kept(trained, tmp_path: Path) -> None:
    _, _, base = trained
    text = _text(tmp_path, ["Ships sail on the sea at night."] * 60 + ["Sailors sing of the sea."] * 60)
    config = _config(architecture=None, learning_rate=3e-3)

    result, _ = _run(tmp_path / "run", config, {"text": text, "base": base})

    folder = result.outputs["model"]
    assert result.metrics["perplexity"] < 0.5 * result.metrics["initial_perplexity"]
    kept, parent = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(base.path)
    assert tokenizer_digest(kept) == tokenizer_digest(parent)
    assert TextContract.read(folder).differences(TextContract.read(base.path)) == []
    before, after = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (base.path, folder))
    assert not any(torch.equal(before[name], after[name]) for name in before if "weight" in name)


def test_a_template_of_the_run_file_goes_into_the_model_from_scratch(tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    file.write_text(
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}<|end|>{% endfor %}[assistant]"
    )
    config = _config(max_steps=1, model=ModelConfig(chat_template=str(file)))

    result, _ = _run(tmp_path / "run", config, {"text": _text(tmp_path)})

    assert AutoTokenizer.from_pretrained(result.outputs["model"]).chat_template == file.read_text()


@pytest.mark.parametrize("model_type", ["qwen2", "gpt2", "mistral"])
def test_other_families_keep_their_tokens_over_save_and_load(model_type: str, tmp_path: Path) -> None:
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2} if model_type == "gpt2" else LLAMA
    config = _config(architecture={**sizes, "model_type": model_type}, max_steps=1)

    result, _ = _run(tmp_path / "run", config, {"text": _text(tmp_path)})

    tokenizer = AutoTokenizer.from_pretrained(result.outputs["model"])
    ids = tokenizer(SENTENCES[0], add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == SENTENCES[0]
    assert len(ids) < 20  # merges were learned: the sentence has 32 letters
    assert TextContract.read(result.outputs["model"]).tokenizer_sha256 == tokenizer_digest(tokenizer)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        pytest.param({"model_type": "lama"}, "no model type 'lama'", id="family"),
        pytest.param({**LLAMA, "hiden_size": 3}, "llama has no setting 'hiden_size'", id="key"),
        pytest.param(
            {**LLAMA, "max_position_embeddings": 16}, "architecture has 16 positions", id="positions"
        ),
    ],
)
def test_an_architecture_that_cannot_be_is_refused_with_the_closest_name(
    tmp_path: Path, architecture: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message) as error:
        _run(tmp_path / "run", _config(architecture=architecture), {"text": _text(tmp_path)})

    assert error.value.findings[0].hint in ("model_type: llama", "hidden_size", "max_length: 16")


def test_neither_base_nor_architecture_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="neither an architecture nor a base"):
        _run(tmp_path / "run", _config(architecture=None), {"text": _text(tmp_path)})


def test_the_card_finds_contradictions_before_anything_runs(trained) -> None:
    _, _, base = trained

    both = SPEC.check(StageCheck("base", _config(), {"base": base}))
    nameless = SPEC.check(StageCheck("base", _config(architecture={"hidden_size": 8}), {}))

    assert [finding.code for finding in both] == ["base-and-architecture"]
    assert [finding.code for finding in nameless] == ["no-model-type"]
    assert list(SPEC.check(StageCheck("base", _config(), {}))) == []


def test_blocks_predict_every_token_once() -> None:
    # 1 2 E 3 4 5 E (E = 9) in blocks of 4 that share one token: 1 2 E 3 | 3 4 5 E.
    blocks = pack([[1, 2], [3, 4, 5]], end_token_id=9, max_length=4)

    assert blocks == [[1, 2, 9, 3], [3, 4, 5, 9]]
    assert [token for block in blocks for token in block[1:]] == [2, 9, 3, 4, 5, 9]


@pytest.mark.parametrize("max_length", [2, 3, 5, 8, 100])
def test_packing_drops_nothing_whatever_the_length(max_length: int) -> None:
    documents = [[10 * row + i for i in range(row)] for row in range(1, 8)]
    stream = [token for row in documents for token in (*row, 0)]

    blocks = pack(documents, end_token_id=0, max_length=max_length)

    assert [token for block in blocks for token in block[1:]] == stream[1:]
    assert all(2 <= len(block) <= max_length for block in blocks)


def test_a_batch_leaves_out_what_has_no_next_token() -> None:
    batch = collate([[1, 2, 3], [4, 5]], pad_token_id=0)

    assert batch.input_ids.tolist() == [[1, 2, 3], [4, 5, 0]]
    assert batch.labels.tolist() == [[2, 3, IGNORED], [5, IGNORED, IGNORED]]
    assert batch.num_labels == 3


@pytest.mark.parametrize(
    ("name", "content", "documents"),
    [
        pytest.param("a.txt", "one\ntwo\n\n\nthree\n", ["one\ntwo", "three"], id="blank lines"),
        pytest.param("a.txt", "one\r\ntwo\r\n \r\nthree", ["one\ntwo", "three"], id="windows"),
        pytest.param("a.txt", "one\ntwo\n", ["one", "two"], id="a document a line"),
        pytest.param(
            "a.jsonl", '{"text": "one\\n\\nmore"}\n{"text": "two"}\n', ["one\n\nmore", "two"], id="rows"
        ),
    ],
)
def test_documents_are_read(tmp_path: Path, name: str, content: str, documents: list[str]) -> None:
    (tmp_path / name).write_bytes(content.encode())

    assert read_documents(tmp_path / name) == documents


def test_rows_without_text_are_named_by_line(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "one"}\n{"body": "two"}\n{"text": 3}\n')

    with pytest.raises(DataError) as error:
        read_documents(file)

    assert [finding.where for finding in error.value.findings] == [f"{file}:2", f"{file}:3"]
    assert error.value.findings[0].hint == "text_field: one of body"


def test_an_empty_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\n")

    with pytest.raises(DataError, match="holds no text"):
        read_documents(tmp_path / "a.txt")


def test_equal_documents_never_stand_on_both_sides_of_the_split() -> None:
    documents = [str(i % 40) for i in range(200)]

    corpus = split(documents, fraction=0.1, seed=0)

    # A tenth of 40 different documents, five copies each.
    assert len(corpus.held_out) == 20
    assert not set(corpus.held_out) & set(corpus.training)
    assert len(corpus.training) + len(corpus.held_out) == 200
    assert split(documents, fraction=0.0, seed=0).held_out == ()
    assert split(["a", "b"], fraction=0.01, seed=0).held_out in (("a",), ("b",))


def test_control_tokens_in_text_stay_text_unless_the_text_is_ones_own(tmp_path: Path) -> None:
    from stages.trainers.pretrain import _encoding

    tokenizer = train_tokenizer(SENTENCES, vocab_size=300, model_config=tiny_config().to_dict())
    user, end = tokenizer.convert_tokens_to_ids(["<|user|>", "<|end|>"])

    typed = _encoding(tokenizer, special_tokens_in_text=False)("<|user|>hi<|end|>")
    own = _encoding(tokenizer, special_tokens_in_text=True)("<|user|>hi<|end|>")

    assert not {user, end} & set(typed)
    assert tokenizer.decode(typed) == "<|user|>hi<|end|>"
    assert (own[0], own[-1]) == (user, end)


def test_a_conversation_is_written_with_the_chat_template(tmp_path: Path) -> None:
    from stages.trainers.pretrain import _encoding

    tokenizer = train_tokenizer(SENTENCES, vocab_size=300, model_config=tiny_config().to_dict())
    row = {"text": [{"role": "user", "content": "who?"}, {"role": "assistant", "content": "me"}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))

    (document,) = read_documents(tmp_path / "a.jsonl")
    ids = _encoding(tokenizer, special_tokens_in_text=False)(document)

    # The end token is left to pack().
    assert tokenizer.decode(ids) == "<|user|>who?<|assistant|>me"
