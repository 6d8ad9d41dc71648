"""Every tuning through every stage: it trains, hands on exactly, and trains as many weights as planned."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from pipeline import registry
from pipeline.config.run import ModelConfig, TuningConfig
from pipeline.contract import ArtifactKind, StageCheck
from pipeline.errors import Interrupted
from pipeline.memory.estimate import estimate
from pipeline.memory.families import read_shape
from stages.runtime.loading import load_base
from stages.runtime.output_head import OutputHead
from stages.runtime.trained_head import TrainedHead
from tests.pair_fixtures import FP32, preference_file, toy_rows
from tests.ppo_setup import COUNTING_A, PROMPTS, written
from tests.sft_setup import demonstrations
from tests.tiny import ManualStop, as_checkpoint, stage_context, tiny_model

SMALL = {"lora_r": 4, "lora_alpha": 8}
TUNINGS = {
    "lora": TuningConfig(**SMALL),
    "qlora": TuningConfig(method="qlora", **SMALL),
    "8bit": TuningConfig(method="8bit", **SMALL),
    "dora": TuningConfig(use_dora=True, **SMALL),
    "rslora": TuningConfig(use_rslora=True, lora_init="orthogonal", optimizer="adamw_8bit", **SMALL),
    "frozen": TuningConfig(frozen_layers=1, frozen_modules=("*.mlp.*",), lora_init="principal", **SMALL),
    "full": TuningConfig(method="full", gradient_checkpointing=True),
    "full, frozen": TuningConfig(method="full", frozen_layers=1, frozen_modules=("*.embed_tokens",)),
    "qdora": TuningConfig(method="qlora", use_dora=True, gradient_checkpointing=True, **SMALL),
}
QUICK = {"model": FP32, "seed": 3, "learning_rate": 5e-3, "warmup_ratio": 0.0, "logging_steps": 1}
SETTINGS = {
    "sft": {"max_steps": 4, "per_device_train_batch_size": 4, "eval_share": 0.0},
    "reward": {"max_steps": 4, "num_probes": 0, "eval_share": 0.25},
    "dpo": {"max_steps": 4, "eval_share": 0.25},
    "ppo": {
        "total_iterations": 2,
        "rollout_batch_size": 4,
        "per_device_train_batch_size": 2,
        "max_new_tokens": 8,
        "max_length": 128,
        "target_kl": None,
    },
}
GIVES = {"sft": "adapter", "reward": "reward_model", "dpo": "adapter", "ppo": "adapter"}
WHOLE = {"sft": "model", "reward": "full_reward_model", "dpo": "model"}


def gives(name, kind):
    """Return the output that holds what a stage trained."""
    return WHOLE[kind] if name.startswith("full") else GIVES[kind]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    # Wide enough for blocks of 64 weights.
    sizes = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    return tiny_model(tmp_path_factory.mktemp("base") / "llama", **sizes)


@contextmanager
def counted_optimizers():
    """Count the weights that each optimizer made inside the block is given."""
    counts = []
    made = torch.optim.Optimizer.__init__

    def counting(self, params, defaults):
        made(self, params, defaults)
        counts.append(sum(p.numel() for group in self.param_groups for p in group["params"]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.Optimizer, "__init__", counting)
        yield counts


class Chain:
    """The four stages of one tuning, each made from the ones before when it is first asked for."""

    def __init__(self, root, base, tuning, *, model=FP32):
        self.root, self.base, self.tuning, self.model = root, base, tuning, model
        root.mkdir(exist_ok=True)
        self.results = {}
        prompts = "".join(f'{{"prompt": "{prompt}"}}\n' for prompt in PROMPTS)
        self.data = {
            "demonstrations": demonstrations(root),
            "preferences": preference_file(root / "pairs.jsonl", toy_rows(24)),
            "prompts": written(root / "prompts.jsonl", prompts, ArtifactKind.PROMPTS),
            "reward_function": written(root / "gold.py", COUNTING_A, ArtifactKind.FUNCTION),
        }

    def inputs(self, kind):
        wanted = registry.find(kind).inputs
        inputs = {"base": self.base} | {k: v for k, v in self.data.items() if k in wanted}
        if kind != "sft":
            whole = self.tuning.method == "full"
            role = "model" if whole else "adapter"
            kind_given = ArtifactKind.FULL_MODEL if whole else ArtifactKind.ADAPTER
            inputs["policy"] = self.output("sft", role, kind_given)
        if kind == "ppo":
            inputs["reward"] = self.output("reward", "reward_model", ArtifactKind.REWARD_MODEL)
        return inputs

    def output(self, kind, role, artifact):
        return as_checkpoint(self.run(kind).result.outputs[role], artifact, producer=kind)

    def context(self, kind, folder, *, stop=None):
        spec = registry.find(kind)
        settings = {**QUICK, **SETTINGS[kind], "tuning": self.tuning, "model": self.model}
        config = spec.config_type(**settings)
        return spec, stage_context(self.root / folder, config, self.inputs(kind), stop=stop)

    def run(self, kind):
        if kind not in self.results:
            spec, ctx = self.context(kind, kind)
            with counted_optimizers() as counts:
                result = spec.run(ctx)
            self.results[kind] = SimpleNamespace(ctx=ctx, result=result, spec=spec, counts=counts)
        return self.results[kind]

    def planned(self, kind):
        spec, ctx = self.run(kind).spec, self.run(kind).ctx
        work = spec.memory(StageCheck(kind, ctx.config, {}, tuple(ctx.inputs)))
        return estimate(work, read_shape(self.base.path)).num_trained


@pytest.fixture(scope="module")
def chains(base, tmp_path_factory):
    root = tmp_path_factory.mktemp("chains")
    return {name: Chain(root / name, base, tuning) for name, tuning in TUNINGS.items()}


SLOW = ("qdora", "full, frozen")
MATRIX = [
    pytest.param(name, kind, id=f"{name}-{kind}", marks=[pytest.mark.slow] if name in SLOW else [])
    for name in TUNINGS
    for kind in SETTINGS
    # Four whole models on one card are refused by plan.
    if not (name.startswith("full") and kind == "ppo")
]


def _weights(folder):
    (file,) = (name for name in ("adapter_model", "model") if (folder / f"{name}.safetensors").exists())
    return load_file(folder / f"{file}.safetensors")


@pytest.mark.parametrize(("name", "kind"), MATRIX)
def test_it_trains_and_starts_exactly_where_its_parent_ended(chains, name, kind):
    made = chains[name].run(kind)

    metrics = made.result.metrics
    folder = made.result.outputs[gives(name, kind)]
    if kind == "ppo":
        assert made.ctx.logger.lines[0]["objective/kl"] == 0.0
        assert made.ctx.logger.series("ppo/first_ratio_error") == [0.0, 0.0]
    else:
        assert metrics["handover/logit_difference"] < 1e-4
    if kind == "dpo":
        assert metrics["handover/kl"] < 1e-6
        assert metrics["handover/loss_minus_ln2"] < 1e-4
    if kind != "sft":
        parent = _weights(chains[name].run("sft").result.outputs[gives(name, "sft")])
        child = _weights(folder)
        moved = {key for key in parent if not torch.equal(parent[key], child[key])}
        assert moved
        if name == "full, frozen":
            assert not any(".layers.0." in key or "embed_tokens" in key for key in moved)
        if name == "frozen":
            assert all(".layers.1.self_attn." in key for key in moved)


@pytest.mark.parametrize(("name", "kind"), MATRIX)
def test_it_trains_as_many_weights_as_the_plan_says(chains, name, kind):
    chain = chains[name]

    counts = chain.run(kind).counts

    assert counts == [chain.planned(kind)]


@pytest.mark.parametrize("name", [name for name in TUNINGS if name not in SLOW and name != "full"])
def test_plain_peft_opens_what_it_wrote_and_computes_the_same(chains, base, name):
    chain = chains[name]
    folder = chain.run("dpo").result.outputs["adapter"]
    plain = PeftModel.from_pretrained(load_base(base, FP32, chain.tuning), folder).eval()
    ids = torch.arange(5, 25)[None]

    from stages.runtime.adapters import load_adapter

    checkpoint = as_checkpoint(folder, ArtifactKind.ADAPTER)
    ours = load_adapter(
        load_base(base, FP32, chain.tuning), checkpoint, name="policy", trainable=False, tuning=chain.tuning
    )

    with torch.no_grad():
        assert torch.equal(plain(input_ids=ids).logits, ours.eval()(input_ids=ids).logits)


@pytest.mark.parametrize("name", ["full", pytest.param("full, frozen", marks=pytest.mark.slow)])
def test_transformers_opens_a_whole_policy_and_it_is_what_was_trained(chains, name):
    folder = chains[name].run("dpo").result.outputs["model"]

    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)

    assert not report["missing_keys"]
    stored = _weights(folder)
    assert all(torch.equal(dict(model.named_parameters())[key], stored[key]) for key in stored)


def test_plan_refuses_whole_models_in_ppo_and_forms_that_do_not_fit():
    def codes(kind, kinds, **tuning):
        spec = registry.find(kind)
        config = spec.config_type(tuning=TuningConfig(**tuning))
        roles = ("policy", "reward")
        return {f.code for f in spec.check(StageCheck(kind, config, {}, roles, kinds))}

    whole, adapter = {"policy": ArtifactKind.FULL_MODEL}, {"policy": ArtifactKind.ADAPTER}
    for kind in ("ppo", "kto", "grpo", "rloo"):
        if kind != "kto":
            assert codes(kind, whole, method="full") == {"no-full"}
    for kind in ("sft", "reward", "dpo"):
        assert codes(kind, whole, method="full") == set()
        assert codes(kind, adapter) == set()
        assert codes(kind, adapter, method="full") == {"other-form"}
        assert codes(kind, whole, method="qlora") == {"other-form"}


def test_a_trained_head_gives_the_same_log_probs_and_the_gradients_of_plain_autograd():
    torch.manual_seed(0)
    hidden = torch.randn(70, 8, requires_grad=True)
    weight, bias = torch.randn(300_000, 8, requires_grad=True), torch.randn(300_000, requires_grad=True)
    targets = torch.randint(0, 300_000, (70,))
    head = TrainedHead(OutputHead(weight, bias, softcap=5.0, scale=0.5))

    # 2**22 logits at once are 16 rows of this vocabulary: five chunks.
    got, entropy = head.logprobs(hidden, targets, temperature=0.7, with_entropy=True)
    mine = torch.autograd.grad(got.sum(), (hidden, weight, bias))

    logits = 5.0 * torch.tanh((hidden @ weight.T + bias) / 5.0) * 0.5 / 0.7
    shares = logits.log_softmax(-1)
    want = shares[torch.arange(70), targets]
    assert torch.allclose(got, want, atol=1e-5)
    assert torch.allclose(entropy, -(shares.exp() * shares).sum(-1), atol=1e-4)
    for one, other in zip(mine, torch.autograd.grad(want.sum(), (hidden, weight, bias)), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), MATRIX)
def test_stopped_and_continued_it_gives_the_same_bytes(chains, name, kind):
    chain = chains[name]
    whole = chain.run(kind).result.outputs[gives(name, kind)]

    spec, ctx = chain.context(kind, f"{kind}-parts", stop=ManualStop(after=0 if kind == "ppo" else 1))
    with pytest.raises(Interrupted):
        spec.run(ctx)
    spec, ctx = chain.context(kind, f"{kind}-parts")
    parts = spec.run(ctx).outputs[gives(name, kind)]

    files = [file.name for file in whole.glob("*.safetensors")]
    assert files
    for file in files:
        assert (whole / file).read_bytes() == (parts / file).read_bytes()


@pytest.mark.parametrize("name", ["lora", "rslora", "dora"])
def test_a_larger_rank_computes_what_the_smaller_one_did(chains, base, name):
    from stages.runtime.adapters import load_adapter

    chain = chains[name]
    checkpoint = as_checkpoint(chain.run("sft").result.outputs["adapter"], ArtifactKind.ADAPTER)
    wider = chain.tuning.model_copy(update={"lora_r": 7})
    ids = torch.arange(5, 25)[None]

    def logits(tuning):
        model = load_base(base, ModelConfig(dtype="float32"), chain.tuning)
        model = load_adapter(model, checkpoint, name="policy", trainable=True, tuning=tuning).eval()
        with torch.no_grad():
            return model(input_ids=ids).logits

    assert (logits(wider) - logits(chain.tuning)).abs().max() < 1e-5
