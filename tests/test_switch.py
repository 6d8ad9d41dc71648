"""The adapter switch: what is in effect, what it never touches, and gradients under checkpointing."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel

from pipeline.config.run import ModelConfig, TuningConfig
from pipeline.contract import Checkpoint
from pipeline.errors import ModelError
from stages.runtime.adapters import named_adapter_parameters, new_adapter
from stages.runtime.handover import probe_ids, probe_logits
from stages.runtime.loading import load_base
from stages.runtime.switch import AdapterSwitch, enable_checkpointing

NAMES = ("policy", "ref", "value")


@pytest.fixture
def model(tiny_base: Checkpoint) -> PeftModel:
    """Three different adapters; policy and value learn, ref does not."""
    model = load_base(tiny_base, ModelConfig(dtype="float32"))
    for seed, name in enumerate(NAMES):
        model = new_adapter(model, TuningConfig(lora_r=4, lora_alpha=8), name=name, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for key, parameter in named_adapter_parameters(model, name):
                if ".lora_B." in key:
                    parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
                parameter.requires_grad_(name != "ref")
    return model


def test_each_name_computes_its_own_and_none_is_the_base(model: PeftModel, tiny_base: Checkpoint) -> None:
    switch, ids = AdapterSwitch(model), probe_ids(model)
    seen = {}
    for name in (None, *NAMES):
        switch.use(name)
        assert switch.current == name
        seen[name] = probe_logits(model, ids)

    alone = probe_logits(load_base(tiny_base, ModelConfig(dtype="float32")), ids)
    assert torch.equal(seen[None], alone)
    for name in NAMES:
        model.set_adapter(name)
        assert torch.equal(probe_logits(model, ids), seen[name])
        assert float((seen[name] - alone).abs().max()) > 0.1
    assert float((seen["policy"] - seen["value"]).abs().max()) > 0.1


def test_requires_grad_never_moves(model: PeftModel) -> None:
    before = [value.requires_grad for value in model.parameters()]
    switch = AdapterSwitch(model)

    for name in (*NAMES, None, "policy"):
        switch.use(name)
        with switch.on("value"), switch.on(None):
            pass

    assert [value.requires_grad for value in model.parameters()] == before


def test_on_puts_the_adapter_before_back_also_after_an_error(model: PeftModel) -> None:
    switch = AdapterSwitch(model)
    switch.use(None)

    def fail() -> None:
        with switch.on("value"), switch.on("policy"):
            assert switch.current == "policy"
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert switch.current is None


def test_an_unknown_name_is_refused_and_nothing_changes(model: PeftModel) -> None:
    switch = AdapterSwitch(model)
    switch.use("ref")

    with pytest.raises(KeyError, match="policy, ref, value"):
        switch.use("reward")

    assert switch.current == "ref"


def test_an_adapter_added_later_is_found(model: PeftModel) -> None:
    switch = AdapterSwitch(model)
    new_adapter(model, TuningConfig(lora_r=2), name="late", seed=0)

    switch.use("late")

    assert switch.current == "late"
    assert switch.names == (*NAMES, "late")


def test_the_self_test_passes_and_changes_nothing(model: PeftModel) -> None:
    switch = AdapterSwitch(model)
    switch.use("ref")

    switch.self_test()

    assert switch.current == "ref"


def test_the_self_test_notices_a_library_that_ignores_the_switch(
    model: PeftModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft.tuners.lora import Linear

    forward = Linear.forward

    def deaf(self, x, *args, **kwargs):
        self._disable_adapters, self._active_adapter = False, ["policy"]
        return forward(self, x, *args, **kwargs)

    monkeypatch.setattr(Linear, "forward", deaf)

    with pytest.raises(ModelError, match="self-test") as error:
        AdapterSwitch(model).self_test()
    assert "peft>=0.21,<0.22" in error.value.findings[0].hint


def _gradients(model: PeftModel, name: str) -> list[torch.Tensor]:
    return [value.grad.clone() for _, value in named_adapter_parameters(model, name)]


def _joint_backward(model: PeftModel, switch: AdapterSwitch, *, checkpointing: bool) -> dict[str, list]:
    """Two forwards under two adapters, one backward afterwards, while no adapter is in effect."""
    model.zero_grad()
    model.train()
    ids = probe_ids(model)
    if checkpointing:
        enable_checkpointing(model, switch)
    else:
        model.gradient_checkpointing_disable()
    losses = []
    for name in ("policy", "value"):
        switch.use(name)
        losses.append(model(input_ids=ids, use_cache=False).logits.square().mean())
    switch.use(None)
    (losses[0] + 3 * losses[1]).backward()
    return {name: _gradients(model, name) for name in ("policy", "value")}


def test_checkpointed_gradients_equal_plain_ones_after_the_adapter_was_switched(model: PeftModel) -> None:
    switch = AdapterSwitch(model)

    plain = _joint_backward(model, switch, checkpointing=False)
    recomputed = _joint_backward(model, switch, checkpointing=True)

    for name in ("policy", "value"):
        assert all(torch.equal(a, b) for a, b in zip(plain[name], recomputed[name], strict=True))
        assert any(float(a.abs().max()) > 0 for a in plain[name])
    assert switch.current is None
    assert all(value.grad is None for _, value in named_adapter_parameters(model, "ref"))


def test_without_the_pin_the_gradients_would_be_wrong(model: PeftModel) -> None:
    # The reason for enable_checkpointing: shows that the test above can fail.
    switch = AdapterSwitch(model)
    plain = _joint_backward(model, switch, checkpointing=False)
    model.zero_grad()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    switch.use("policy")
    loss = model(input_ids=probe_ids(model), use_cache=False).logits.square().mean()
    switch.use("value")
    loss.backward()

    grads = [value.grad for _, value in named_adapter_parameters(model, "policy")]
    same = all(
        grad is not None and torch.equal(grad, want)
        for grad, want in zip(grads, plain["policy"], strict=True)
    )
    assert not same


def test_a_graph_can_be_walked_twice(model: PeftModel) -> None:
    switch = AdapterSwitch(model)
    model.train()
    enable_checkpointing(model, switch)
    switch.use("policy")
    loss = model(input_ids=probe_ids(model), use_cache=False).logits.square().mean()
    switch.use("value")

    loss.backward(retain_graph=True)
    once = _gradients(model, "policy")
    loss.backward()

    for a, b in zip(once, _gradients(model, "policy"), strict=True):
        assert torch.allclose(2 * a, b)
