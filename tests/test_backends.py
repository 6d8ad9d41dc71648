"""Generators of rollouts: each answers with the policy's adapter and says its log-probs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import pytest
import torch

from pipeline.contract import StageCheck
from pipeline.errors import ModelError, StageFailed
from stages.ppo import SPEC, backend_findings
from stages.runtime.backends import ContinuousBatching, as_rollout
from stages.runtime.vllm_backend import VllmBackend
from stages.trainers.ppo.setting import open_setting
from tests.ppo_setup import TUNING, chain, config
from tests.tiny import stage_context

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return chain(tmp_path_factory.mktemp("chain"), eos_token_id=[3, *range(200, 220)])


def test_a_response_ends_at_its_first_stop_token():
    made = as_rollout([[5, 9, 7], [5, 6]], [[-1.0, -2.0, -3.0], [-0.5, -0.25]], stop_token_ids=(9,))

    assert made.responses == [[5, 9], [5, 6]]
    assert made.logprobs == [[-1.0, -2.0], [-0.5, -0.25]]
    assert made.finished == [True, False]


@pytest.mark.parametrize(("tokens", "numbers"), [([], []), ([5, 6], [-1.0])])
def test_a_generator_that_loses_tokens_or_log_probs_is_refused(tokens, numbers):
    with pytest.raises(StageFailed, match="tokens and"):
        as_rollout([tokens], [numbers], stop_token_ids=())


def test_continuous_batching_trains_and_agrees_with_the_training_path(inputs, tmp_path):
    settings = config(total_iterations=2, generation_backend="transformers", temperature=0.8)
    ctx = stage_context(tmp_path, settings, inputs)

    SPEC.run(ctx)

    # The second iteration samples with an adapter that was updated in between.
    assert max(ctx.logger.series("ppo/logprob_mismatch_max")) < 1e-4
    assert ctx.logger.series("ppo/first_ratio_error") == [0.0, 0.0]
    assert 0 < ctx.logger.series("ppo/eos_rate")[0] <= 1


def test_continuous_batching_says_when_prompts_got_no_answer(inputs, tmp_path, monkeypatch):
    setting = open_setting(stage_context(tmp_path, config(), inputs))
    backend = ContinuousBatching(setting.roles.model, 0, 8)
    lost = {"1": SimpleNamespace(error="out of pages", generated_tokens=[], logprobs=[])}
    monkeypatch.setattr(setting.roles.model.get_base_model(), "generate_batch", lambda *a, **o: lost)

    with pytest.raises(StageFailed, match="answered 0 of 2 prompts: out of pages"):
        backend.sample(
            [[5], [6]], max_new_tokens=3, stop_token_ids=(3,), temperature=1.0, generator=torch.Generator()
        )


class FakeEngine:
    """Takes what vLLM's LLM takes, and answers every prompt with one token and a stop."""

    made: ClassVar[list[FakeEngine]] = []

    def __init__(self, **options):
        self.options, self.requests = options, []
        FakeEngine.made.append(self)

    def generate(self, prompts, sampling, *, lora_request, use_tqdm):
        adapter = Path(lora_request.path)
        self.requests.append((sampling, lora_request, sorted(file.name for file in adapter.iterdir())))
        answers = []
        for _ in prompts:
            tokens = [50, 3, 7]
            steps = [{token: SimpleNamespace(logprob=-float(token))} for token in tokens]
            answers.append(SimpleNamespace(outputs=[SimpleNamespace(token_ids=tokens, logprobs=steps)]))
        return answers


@pytest.fixture
def fake_vllm(monkeypatch):
    engine, lora = ModuleType("vllm"), ModuleType("vllm.lora.request")
    engine.LLM, engine.SamplingParams = FakeEngine, lambda **options: SimpleNamespace(**options)
    lora.LoRARequest = lambda name, number, path: SimpleNamespace(name=name, number=number, path=path)
    monkeypatch.setitem(sys.modules, "vllm", engine)
    monkeypatch.setitem(sys.modules, "vllm.lora", ModuleType("vllm.lora"))
    monkeypatch.setitem(sys.modules, "vllm.lora.request", lora)
    FakeEngine.made.clear()


def test_vllm_gets_the_adapter_of_each_iteration_under_a_number_of_its_own(inputs, tmp_path, fake_vllm):
    ctx = stage_context(tmp_path, config(generation_backend="vllm", temperature=0.5), inputs)

    SPEC.run(ctx)

    (engine,) = FakeEngine.made
    assert engine.options["model"] == str(inputs["base"].path)
    assert engine.options["logprobs_mode"] == "processed_logprobs"
    assert engine.options["max_lora_rank"] == 8
    first, second = engine.requests
    assert (first[1].number, second[1].number) == (1, 2)
    assert "adapter_model.safetensors" in first[2]
    seeds = [sampling.seed for sampling in (*first[0], *second[0])]
    assert len(set(seeds)) == len(seeds) == 16
    assert {sampling.temperature for sampling in first[0]} == {0.5}
    # The stand-in's log-probs are not the policy's: the mismatch is measured and logged.
    assert ctx.logger.series("ppo/logprob_mismatch")[0] > 1.0
    assert ctx.logger.series("ppo/first_ratio_error") == [0.0, 0.0]
    assert ctx.logger.series("ppo/response_length") == [2.0, 2.0]


def test_without_vllm_plan_and_stage_say_how_to_get_it(inputs, tmp_path):
    settings = config(generation_backend="vllm", tuning=TUNING.model_copy(update={"method": "qlora"}))

    codes = [finding.code for finding in backend_findings("ppo", settings)]
    told = SPEC.check(StageCheck("ppo", config(generation_backend="vllm"), {}, ("reward",)))

    if "vllm" not in sys.modules and not _installed():
        assert codes == ["no-vllm", "vllm-qlora"]
        assert [finding.hint for finding in told] == [
            "pip install 'triptych-rlhf[vllm]', or generation_backend: sampler"
        ]
        with pytest.raises(ModelError, match="vLLM cannot be imported"):
            open_setting(stage_context(tmp_path, config(generation_backend="vllm"), inputs))


def _installed():
    from importlib.util import find_spec

    return find_spec("vllm") is not None


def test_the_adapter_of_an_iteration_is_gone_after_it_was_used(tmp_path, fake_vllm):
    def write(folder):
        folder.mkdir(parents=True)
        (folder / "adapter_model.safetensors").write_bytes(b"")
        return folder

    backend = VllmBackend(
        "base",
        write_adapter=write,
        scratch=tmp_path,
        rank=4,
        dtype="float32",
        max_length=64,
        batch_size=4,
        memory_share=0.3,
    )

    for _ in range(3):
        backend.sample(
            [[5, 6]], max_new_tokens=3, stop_token_ids=(3,), temperature=1.0, generator=torch.Generator()
        )

    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_real_vllm_samples_with_the_adapter_of_each_iteration(tmp_path):
    python = os.environ.get("TRIPTYCH_VLLM_PYTHON")
    if not python:
        pytest.skip("TRIPTYCH_VLLM_PYTHON names no interpreter with vLLM")

    done = subprocess.run(
        [python, "-m", "tests.vllm_exercise"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
