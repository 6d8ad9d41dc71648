"""Base models and tokenizers: opened frozen, in 4 bits when asked, refused with one clear error."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from pipeline.config.run import ModelConfig, TuningConfig
from pipeline.contract import ArtifactKind, Checkpoint
from pipeline.errors import ModelError, UserError
from stages.runtime.adapters import load_adapter, named_adapter_parameters, new_adapter, save_adapter
from stages.runtime.handover import probe_ids, probe_logits, prove_hand_over
from stages.runtime.loading import (
    backbone,
    base_of,
    load_base,
    load_tokenizer,
    output_embedding,
    vocabulary_findings,
)
from tests.tiny import MODEL_TYPES, as_checkpoint, tiny_model

MODEL = ModelConfig()
QLORA = TuningConfig(method="qlora", lora_r=4, lora_alpha=8)


def _given(path: Path) -> Checkpoint:
    return Checkpoint(ArtifactKind.FULL_MODEL, path, "f" * 64, None, str(path))


def test_a_base_is_frozen_in_eval_and_says_what_it_is(tiny_base: Checkpoint) -> None:
    model = load_base(tiny_base, MODEL)

    assert not model.training
    assert not any(value.requires_grad for value in model.parameters())
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    assert base_of(model) is tiny_base
    adapted = new_adapter(model, TuningConfig(lora_r=2), seed=0)
    assert base_of(adapted) is tiny_base


def test_a_model_opened_in_another_way_does_not_pass_for_a_base(tiny_base: Checkpoint) -> None:
    with pytest.raises(ValueError, match="load_base"):
        base_of(AutoModelForCausalLM.from_pretrained(tiny_base.path))


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_backbone_and_output_embedding_make_the_logits(model_type: str, tmp_path: Path) -> None:
    model = load_base(tiny_model(tmp_path / "m", model_type, seed=2), MODEL)
    adapted = new_adapter(model, TuningConfig(lora_r=2), seed=0)
    ids = probe_ids(model)

    with torch.no_grad():
        hidden = backbone(adapted)(input_ids=ids).last_hidden_state
    logits = hidden @ output_embedding(adapted).T

    bias, cap = getattr(model.lm_head, "bias", None), getattr(model.config, "final_logit_softcapping", None)
    logits = logits if bias is None else logits + bias
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    assert float((logits - probe_logits(adapted, ids)).abs().max()) < 1e-5


def test_a_bfloat16_base_is_held_in_bfloat16(tiny_base: Checkpoint) -> None:
    model = load_base(tiny_base, ModelConfig(dtype="bfloat16"))

    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}
    adapted = new_adapter(model, TuningConfig(lora_r=2), seed=0)
    assert {value.dtype for _, value in named_adapter_parameters(adapted, "policy")} == {torch.float32}


@pytest.fixture(scope="module")
def wide_base(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Blocks of 64 numbers are what nf4 quantises together."""
    return tiny_model(tmp_path_factory.mktemp("wide") / "llama", hidden_size=64, intermediate_size=128)


@pytest.mark.parametrize("model_type", ["llama", "phi"])
def test_qlora_holds_linear_layers_in_4_bits_and_head_and_embedding_as_they_are(
    model_type: str, tmp_path: Path
) -> None:
    from bitsandbytes.nn import Linear4bit

    model = load_base(tiny_model(tmp_path / "m", model_type, hidden_size=64), MODEL, QLORA)

    packed = [module for module in model.modules() if isinstance(module, Linear4bit)]
    # Two blocks: llama has q, k, v, o, gate, up, down; phi has q, k, v, dense, fc1, fc2.
    assert len(packed) == 2 * {"llama": 7, "phi": 6}[model_type]
    for module in packed:
        assert module.weight.quant_state.quant_type == "nf4"
        assert module.weight.quant_state.nested
        assert module.support_avx512bf16_for_cpu is False
    assert type(model.get_output_embeddings()) is nn.Linear
    assert output_embedding(model).dtype == torch.float32
    assert model.get_input_embeddings().weight.dtype == torch.float32


def test_a_4_bit_base_computes_the_same_in_train_in_eval_and_after_a_save(
    wide_base: Checkpoint, tmp_path: Path
) -> None:
    # On CPUs with AVX512-BF16, bitsandbytes repacks weights in the first eval forward and unpacks
    # them with loss in state_dict(): the three would differ by some 0.05.
    model = new_adapter(load_base(wide_base, MODEL, QLORA), QLORA, seed=0)
    ids = probe_ids(model)

    training = model.train()(input_ids=ids).logits.detach()
    evaluated = probe_logits(model, ids)
    tokenizer = load_tokenizer(wide_base, MODEL)
    save_adapter(model, tmp_path / "saved", name="policy", base=wide_base, tokenizer=tokenizer)
    model.state_dict()
    after = probe_logits(model, ids)

    assert torch.equal(training, evaluated)
    assert torch.equal(evaluated, after)


def test_an_adapter_of_a_4_bit_base_is_handed_over_exactly(wide_base: Checkpoint, tmp_path: Path) -> None:
    model = new_adapter(load_base(wide_base, MODEL, QLORA), QLORA, seed=0)
    with torch.no_grad():
        for key, parameter in named_adapter_parameters(model, "policy"):
            if ".lora_B." in key:
                parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(len(key)))
    tokenizer = load_tokenizer(wide_base, MODEL)
    save_adapter(model, tmp_path / "sft", name="policy", base=wide_base, tokenizer=tokenizer)
    sft = as_checkpoint(tmp_path / "sft", ArtifactKind.ADAPTER, producer="sft")
    ids = probe_ids(model)

    again = load_adapter(load_base(wide_base, MODEL, QLORA), sft, name="policy", trainable=True)
    again = load_adapter(again, sft, name="ref", trainable=False)

    assert torch.equal(probe_logits(again, ids), probe_logits(model, ids))
    proof = prove_hand_over(again, sft, policy="policy", reference="ref", has_reference=True)
    assert proof.logit_difference < 1e-5
    assert abs(proof.kl) < 1e-12
    assert (tmp_path / "sft" / "adapter_model.safetensors").stat().st_size < 100_000


def _without(pattern: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        for path in folder.glob(pattern):
            path.unlink()

    return damage


def _as_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _cut(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:1000])


def _lacking(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _config(**changes: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return damage


def _as_adapter(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


@pytest.mark.parametrize(
    ("damage", "code", "message"),
    [
        pytest.param(shutil.rmtree, "missing-model", "there is no folder", id="missing folder"),
        pytest.param(_without("config.json"), "no-config", "holds no config.json", id="no config"),
        pytest.param(_without("*.safetensors"), "no-weights", r"holds no \*\.safetensors", id="no weights"),
        pytest.param(_as_pickle, "pickle-weights", r"only as pickle \(pytorch_model.bin\)", id="pickle"),
        pytest.param(_as_adapter, "adapter-as-model", "is an adapter, not a model", id="adapter"),
        pytest.param(_cut, "unreadable-model", "cannot be opened", id="truncated"),
        pytest.param(
            _lacking, "incomplete-weights", "lacks 1 weights of its model, first model.layers.1", id="lacking"
        ),
        pytest.param(_config(model_type="lama"), "unreadable-model", "lama", id="unknown model type"),
        pytest.param(
            _config(hidden_size=64), "incomplete-weights", "another shape", id="weights of another size"
        ),
    ],
)
def test_a_folder_that_is_no_model_is_refused_with_a_remedy(
    tiny_base: Checkpoint, tmp_path: Path, damage: Callable[[Path], None], code: str, message: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_base.path, folder)
    damage(folder)

    with pytest.raises(ModelError, match=message) as error:
        load_base(_given(folder), MODEL)

    assert error.value.findings[0].code == code
    assert error.value.findings[0].hint


def test_code_of_a_repository_is_never_run_unasked(tiny_base: Checkpoint, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_base.path, folder)
    _config(model_type="own", auto_map={"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"})(
        folder
    )
    (folder / "own.py").write_text("raise SystemExit('this code ran')\n")

    with pytest.raises(ModelError, match="cannot be opened") as error:
        load_base(_given(folder), MODEL)

    assert "trust_remote_code" in error.value.findings[0].hint


def test_a_hub_id_that_cannot_be_reached_is_one_error() -> None:
    source = Checkpoint(ArtifactKind.FULL_MODEL, Path("nobody/no-model"), "f" * 64, None, "nobody/no-model")

    with pytest.raises(ModelError, match="nobody/no-model: the model cannot be opened") as error:
        load_base(source, MODEL)

    assert "local folder" in error.value.findings[0].hint


def test_a_folder_without_a_tokenizer_is_refused(tiny_base: Checkpoint, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_base.path, folder, ignore=shutil.ignore_patterns("tokenizer*"))

    with pytest.raises(ModelError, match="holds no tokenizer"):
        load_tokenizer(_given(folder), MODEL)


def test_a_vocabulary_larger_than_the_embedding_is_refused(tmp_path: Path) -> None:
    small = tiny_model(tmp_path / "small", vocab_size=260)

    with pytest.raises(ModelError, match="ids up to 260, but the model's embedding has 260 rows"):
        load_tokenizer(small, MODEL)


def test_tokens_added_by_hand_are_noticed(tiny_base: Checkpoint) -> None:
    tokenizer, model = load_tokenizer(tiny_base, MODEL), load_base(tiny_base, MODEL)
    assert vocabulary_findings(tokenizer, model) == []

    tokenizer.add_tokens(["<new>"])

    assert "ids up to 261" in vocabulary_findings(tokenizer, model)[0].message


def test_a_missing_pad_token_becomes_a_reserved_one_that_is_not_eos(
    tiny_base: Checkpoint, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_base.path, folder)
    file = folder / "tokenizer_config.json"
    held = {key: value for key, value in json.loads(file.read_text()).items() if key != "pad_token"}
    file.write_text(json.dumps(held))

    tokenizer = load_tokenizer(_given(folder), MODEL)

    assert tokenizer.pad_token == "<|pad|>"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_a_template_is_taken_from_a_file_or_by_the_name_of_one_that_trl_ships(
    tiny_base: Checkpoint, tmp_path: Path
) -> None:
    file = tmp_path / "own.jinja"
    file.write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")

    own = load_tokenizer(tiny_base, ModelConfig(chat_template=str(file)))
    shipped = load_tokenizer(tiny_base, ModelConfig(chat_template="qwen2_5"))

    assert own.chat_template == file.read_text()
    assert "<|im_start|>" in shipped.chat_template
    with pytest.raises(UserError, match="qwen2_six"):
        load_tokenizer(tiny_base, ModelConfig(chat_template="qwen2_six"))
