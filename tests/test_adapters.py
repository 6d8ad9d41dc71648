"""Named adapters: loaded whole or refused, saved with the same bytes, opened by plain peft."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from pipeline.config.run import ModelConfig, TuningConfig
from pipeline.contract import ArtifactKind, Checkpoint
from pipeline.errors import HandOverError, ModelError
from stages.runtime.adapters import (
    AdapterSwitch,
    load_adapter,
    load_head,
    named_adapter_parameters,
    new_adapter,
    save_adapter,
)
from stages.runtime.handover import probe_ids, probe_logits
from stages.runtime.loading import backbone, load_base, load_tokenizer
from tests.tiny import MODEL_TYPES, as_checkpoint, tiny_model

MODEL = ModelConfig(dtype="float32")
TUNING = TuningConfig(lora_r=4, lora_alpha=8)


def _trained(base: Checkpoint, *, seed: int = 1, tuning: TuningConfig = TUNING) -> PeftModel:
    """An adapter named policy whose lora_B is random, so that it changes the logits clearly."""
    model = new_adapter(load_base(base, MODEL, tuning), tuning, name="policy", seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in named_adapter_parameters(model, "policy"):
            if ".lora_B." in key:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def _save(model: PeftModel, base: Checkpoint, folder: Path, head: bool = False) -> Checkpoint:
    hidden = model.config.hidden_size
    weights = {"weight": torch.randn(1, hidden, generator=torch.Generator().manual_seed(5))} if head else None
    tokenizer = load_tokenizer(base, MODEL)
    save_adapter(model, folder, name="policy", base=base, tokenizer=tokenizer, head=weights)
    return as_checkpoint(folder, ArtifactKind.REWARD_MODEL if head else ArtifactKind.ADAPTER, producer="sft")


@pytest.fixture(scope="module")
def sft(tiny_base: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return _save(_trained(tiny_base), tiny_base, tmp_path_factory.mktemp("sft") / "adapter")


def test_a_new_adapter_changes_nothing_and_depends_on_its_seed_alone(tiny_base: Checkpoint) -> None:
    base = load_base(tiny_base, MODEL)
    ids = probe_ids(base)
    want = probe_logits(base, ids)
    torch.manual_seed(1)
    before = torch.get_rng_state()

    model = new_adapter(base, TUNING, name="policy", seed=7)

    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(probe_logits(model, ids), want)
    first = dict(named_adapter_parameters(model, "policy"))
    torch.manual_seed(2)
    same = dict(named_adapter_parameters(new_adapter(load_base(tiny_base, MODEL), TUNING, seed=7), "policy"))
    other = dict(named_adapter_parameters(new_adapter(load_base(tiny_base, MODEL), TUNING, seed=8), "policy"))
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first if ".lora_A." in key)


def test_a_new_adapter_starts_within_the_bounds_of_lora(tiny_base: Checkpoint) -> None:
    model = new_adapter(load_base(tiny_base, MODEL), TuningConfig(lora_r=64), name="policy", seed=0)

    for key, parameter in named_adapter_parameters(model, "policy"):
        if ".lora_B." in key:
            assert not parameter.any()
        else:
            # Uniform in +-1/sqrt(n): 64 n draws come within 1 % of the bound; deviation bound/sqrt(3).
            bound = parameter.shape[1] ** -0.5
            assert 0.99 * bound < float(parameter.abs().max()) <= bound
            assert float(parameter.std()) == pytest.approx(bound / 3**0.5, rel=0.05)


def test_the_base_is_frozen_and_only_the_adapter_learns(tiny_base: Checkpoint) -> None:
    model = new_adapter(load_base(tiny_base, MODEL), TUNING, name="policy", seed=0)

    learning = {key for key, value in model.named_parameters() if value.requires_grad}

    assert learning == {key for key, _ in named_adapter_parameters(model, "policy")}
    assert not model.training


def test_target_modules_that_no_layer_has_are_refused(tiny_base: Checkpoint) -> None:
    tuning = TUNING.model_copy(update={"target_modules": ("query",)})

    with pytest.raises(ModelError) as error:
        new_adapter(load_base(tiny_base, MODEL), tuning, seed=0)

    assert error.value.findings[0].where == "tuning.target_modules"


def test_two_saves_give_the_same_bytes(tiny_base: Checkpoint, tmp_path: Path) -> None:
    first = _save(_trained(tiny_base), tiny_base, tmp_path / "a")
    second = _save(_trained(tiny_base), tiny_base, tmp_path / "b")

    names = sorted(path.name for path in first.path.iterdir())
    assert names == sorted(path.name for path in second.path.iterdir())
    assert {"adapter_model.safetensors", "adapter_config.json", "text.json", "tokenizer.json"} <= set(names)
    assert first.fingerprint == second.fingerprint


def test_the_config_holds_sorted_lists_and_no_path(tiny_base: Checkpoint, sft: Checkpoint) -> None:
    text = (sft.path / "adapter_config.json").read_text()
    config = json.loads(text)

    assert config["target_modules"] == sorted(config["target_modules"])
    assert config["base_model_name_or_path"] == f"base:{tiny_base.fingerprint[:16]}"
    assert config["inference_mode"] is True
    assert str(tiny_base.path) not in text


def test_a_base_from_the_hub_is_named_by_its_id_and_commit(tiny_base: Checkpoint, tmp_path: Path) -> None:
    source = f"owner/model@{'a' * 40}"
    base = Checkpoint(ArtifactKind.FULL_MODEL, tiny_base.path, "b" * 64, None, source)

    saved = _save(_trained(base), base, tmp_path / "adapter")

    config = json.loads((saved.path / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("owner/model", "a" * 40)
    assert load_adapter(load_base(base, MODEL), saved, name="policy", trainable=True)


def test_only_the_named_adapter_is_written(tiny_base: Checkpoint, sft: Checkpoint, tmp_path: Path) -> None:
    model = load_adapter(load_base(tiny_base, MODEL), sft, name="ref", trainable=False)
    model = load_adapter(model, sft, name="policy", trainable=True)

    written = _save(model, tiny_base, tmp_path / "policy")

    tensors = load_file(written.path / "adapter_model.safetensors")
    # Seven linear layers in each of two blocks, A and B.
    assert len(tensors) == 28
    assert all(".lora_" in key and ".policy." not in key for key in tensors)
    assert written.fingerprint == sft.fingerprint


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_plain_peft_opens_an_adapter_with_the_same_logits(model_type: str, tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base", model_type)
    model = _trained(base)
    saved = _save(model, base, tmp_path / "adapter")
    ids = probe_ids(model)

    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base.path), saved.path)
    again = load_adapter(load_base(base, MODEL), saved, name="again", trainable=False)

    want = probe_logits(model, ids)
    assert float((want - probe_logits(model.get_base_model(), ids)).abs().max()) == 0.0
    assert float((probe_logits(plain, ids) - want).abs().max()) < 1e-5
    assert float((probe_logits(again, ids) - want).abs().max()) < 1e-5


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gpt2"])
def test_plain_peft_opens_a_reward_model_with_the_same_scores(model_type: str, tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base", model_type)
    model = _trained(base)
    saved = _save(model, base, tmp_path / "reward", head=True)
    ids = probe_ids(model, rows=5, tokens=9) % 250 + 5  # no pad token among them

    classifier = AutoModelForSequenceClassification.from_pretrained(base.path, num_labels=1)
    plain = PeftModel.from_pretrained(classifier, saved.path).eval()
    ours = load_adapter(load_base(base, MODEL), saved, name="reward", trainable=False)

    with torch.no_grad():
        want = plain(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, 0]
        hidden = backbone(ours)(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        got = hidden[:, -1] @ load_head(saved)["weight"][0]
    assert float(want.std()) > 0.1
    assert float((want - got).abs().max()) < 1e-6


def test_a_missing_head_is_an_error(sft: Checkpoint) -> None:
    with pytest.raises(HandOverError, match="holds no score head"):
        load_head(sft)


@pytest.mark.parametrize("rank", [4, 5, 16])
def test_a_wider_adapter_computes_the_same_and_its_new_rows_can_learn(
    tiny_base: Checkpoint, sft: Checkpoint, rank: int
) -> None:
    want = _trained(tiny_base)
    ids = probe_ids(want)

    tuning = TUNING.model_copy(update={"lora_r": rank})
    wide = load_adapter(load_base(tiny_base, MODEL), sft, name="policy", trainable=True, tuning=tuning)

    assert float((probe_logits(wide, ids) - probe_logits(want, ids)).abs().max()) < 5e-6
    wide(input_ids=ids).logits.square().sum().backward()
    for key, parameter in named_adapter_parameters(wide, "policy"):
        if ".lora_B." in key:
            assert parameter.shape[1] == rank
            assert bool((parameter.grad.abs().sum(0) > 0).all())


def test_a_rank_that_would_cut_the_parent_is_refused(tiny_base: Checkpoint, sft: Checkpoint) -> None:
    tuning = TUNING.model_copy(update={"lora_r": 2})

    with pytest.raises(HandOverError, match="lora_r: 2 would cut"):
        load_adapter(load_base(tiny_base, MODEL), sft, name="policy", trainable=True, tuning=tuning)


def test_an_adapter_of_another_base_is_refused_and_both_are_named(sft: Checkpoint, tmp_path: Path) -> None:
    other = tiny_model(tmp_path / "other", seed=9)

    with pytest.raises(HandOverError) as error:
        load_adapter(load_base(other, MODEL), sft, name="policy", trainable=True)

    recorded = json.loads((sft.path / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert recorded in str(error.value)
    assert f"base:{other.fingerprint[:16]}" in str(error.value)


def _changed(source: Checkpoint, folder: Path, change: Callable[[Path], None]) -> Checkpoint:
    shutil.copytree(source.path, folder)
    change(folder)
    return as_checkpoint(folder, source.kind)


def _tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        file = folder / "adapter_model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)

    return damage


def _config(**changes: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return damage


KEY = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(_tensors(lambda t: t.pop(KEY)), f"lacks 1 weights, first {KEY}", id="missing key"),
        pytest.param(
            _tensors(lambda t: t.update({KEY.replace("layers.0", "layers.7"): torch.ones(4, 32)})),
            r"beyond what the model has, 1 weights, first .*layers\.7",
            id="unexpected key",
        ),
        pytest.param(_tensors(lambda t: t.update({KEY: torch.ones(4, 31)})), r"shape \(4, 31\)", id="shape"),
        pytest.param(
            _tensors(lambda t: t.update({KEY: torch.full((4, 32), torch.nan)})), "not finite", id="nan"
        ),
        pytest.param(_config(use_dora=True), "lacks 14 weights", id="dora"),
        pytest.param(_config(bias="all"), "trains biases", id="bias"),
        pytest.param(_config(modules_to_save=["embed_tokens"]), "replaces whole modules", id="modules"),
        pytest.param(_config(peft_type="IA3"), "is a IA3 adapter", id="ia3"),
        pytest.param(_config(r=3), "has shape", id="rank of the config"),
        pytest.param(
            lambda f: (f / "adapter_model.safetensors").write_bytes(b"\x10"), "cannot be read", id="truncated"
        ),
        pytest.param(
            lambda f: (f / "adapter_config.json").unlink(), "no adapter_config.json", id="no config"
        ),
        pytest.param(
            lambda f: (f / "adapter_model.safetensors").rename(f / "adapter_model.bin"), "pickle", id="pickle"
        ),
        pytest.param(shutil.rmtree, "there is no such adapter folder", id="no folder"),
    ],
)
def test_a_damaged_or_foreign_adapter_is_refused_in_one_sentence(
    tiny_base: Checkpoint, sft: Checkpoint, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(sft.path, folder)
    damage(folder)
    source = Checkpoint(ArtifactKind.ADAPTER, folder, "0" * 64, "sft", "sft")

    with pytest.raises(ModelError, match=message):
        load_adapter(load_base(tiny_base, MODEL), source, name="policy", trainable=True)


def test_an_adapter_from_elsewhere_loads_when_it_names_the_base(
    tiny_base: Checkpoint, sft: Checkpoint, tmp_path: Path
) -> None:
    def foreign(folder: Path) -> None:
        (folder / "text.json").unlink()
        _config(base_model_name_or_path="somebody/model")(folder)

    source = _changed(sft, tmp_path / "foreign", foreign)
    pinned = f"somebody/model@{'0' * 40}"
    named = Checkpoint(ArtifactKind.FULL_MODEL, tiny_base.path, tiny_base.fingerprint, None, pinned)

    model = load_adapter(load_base(named, MODEL), source, name="policy", trainable=True)

    assert AdapterSwitch(model).names == ("policy",)
    with pytest.raises(HandOverError, match="trained on somebody/model"):
        load_adapter(load_base(tiny_base, MODEL), source, name="policy", trainable=True)


def test_dropout_is_off_unless_it_is_asked_for(tiny_base: Checkpoint, tmp_path: Path) -> None:
    tuning = TUNING.model_copy(update={"lora_dropout": 0.5})
    source = _save(_trained(tiny_base, tuning=tuning), tiny_base, tmp_path / "dropout")

    off = load_adapter(load_base(tiny_base, MODEL), source, name="policy", trainable=True, tuning=tuning)
    on = load_adapter(load_base(tiny_base, MODEL), source, name="policy", trainable=True, dropout=0.5)

    def rates(model: PeftModel) -> set[float]:
        return {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}

    assert rates(off) == set()
    assert rates(on) == {0.5}


def test_two_adapters_learn_apart(tiny_base: Checkpoint, sft: Checkpoint) -> None:
    model = load_adapter(load_base(tiny_base, MODEL), sft, name="policy", trainable=True)
    model = load_adapter(model, sft, name="value", trainable=True)
    model = load_adapter(model, sft, name="ref", trainable=False)
    switch = AdapterSwitch(model)

    with switch.on("value"):
        model(input_ids=probe_ids(model)).logits.sum().backward()

    def touched(name: str) -> bool:
        return any(value.grad is not None for _, value in named_adapter_parameters(model, name))

    assert [touched(name) for name in ("policy", "value", "ref")] == [False, True, False]
    assert {key for key, value in model.named_parameters() if value.requires_grad} == {
        key for name in ("policy", "value") for key, _ in named_adapter_parameters(model, name)
    }
