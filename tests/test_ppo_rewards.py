"""Where PPO's rewards come from: adapter, functions, an outside reward model, and their mix."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from pipeline.config.run import ModelConfig
from pipeline.contract import ArtifactKind, StageCheck
from pipeline.errors import DataError, ModelError
from stages.ppo import SPEC
from stages.trainers.ppo.loop import gather
from stages.trainers.ppo.outside import load_outside_reward
from stages.trainers.ppo.setting import open_setting
from tests.ppo_setup import adapter, chain, config, without, written
from tests.tiny import as_checkpoint, stage_context, tiny_config, tiny_tokenizer


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return chain(tmp_path_factory.mktemp("chain"))


def judge(folder, *, num_labels=1, chat=True, **changes):
    """Write a reward model that shares nothing with the policy's base: other width, other weights."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(5)
    shape = tiny_config("llama", hidden_size=48, head_dim=12, num_labels=num_labels, **changes)
    model = AutoModelForSequenceClassification.from_config(shape)
    model.save_pretrained(folder)
    tiny_tokenizer(chat=chat).save_pretrained(folder)
    return as_checkpoint(folder, ArtifactKind.FULL_MODEL)


def test_every_source_is_paid_by_its_weight(inputs, tmp_path):
    settings = config(
        total_iterations=1,
        reward_weight=0.25,
        function_weight=-3.0,
        outside_weight=2.0,
        extra_weights={"brevity": 0.5},
    )
    brevity = written(
        tmp_path / "b.py",
        "def score(prompt, response, row):\n    return -len(response)\n",
        ArtifactKind.FUNCTION,
    )
    ctx = stage_context(
        tmp_path, settings, {**inputs, "outside_reward": judge(tmp_path / "judge"), "brevity": brevity}
    )

    SPEC.run(ctx)

    line = ctx.logger.lines[0]
    expected = 0.25 * line["ppo/model_score"] - 3.0 * line["ppo/function_score"]
    expected += 2.0 * line["ppo/outside_score"] + 0.5 * line["ppo/brevity_score"]
    assert line["ppo/brevity_score"] < 0
    assert line["objective/scores"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("chat", [True, False])
def test_an_outside_reward_model_reads_the_text_in_its_own_tokens(tmp_path, chat):
    source = judge(tmp_path / "judge", chat=chat)
    outside = load_outside_reward(source, ModelConfig(dtype="float32"), batch_size=2)
    prompts = ["Say a.", [{"role": "user", "content": "Why?"}], "What is it?"]
    responses = ["a", "because of this and that", ""]

    scores = outside(prompts, responses)

    tokenizer = AutoTokenizer.from_pretrained(source.path)
    model = AutoModelForSequenceClassification.from_pretrained(source.path).eval()
    expected = []
    for prompt, response in zip(("Say a.", "Why?", "What is it?"), responses, strict=True):
        if chat:
            text = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n{response}<|im_end|>\n"
            ids = tokenizer(text, return_tensors="pt")["input_ids"]
        else:
            ids = tokenizer(prompt, response, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            expected.append(float(model(input_ids=ids).logits[0, 0]))
    assert scores == pytest.approx(expected, abs=1e-5)


def test_an_outside_model_that_names_no_pad_pads_as_its_tokenizer_does(tmp_path):
    outside = load_outside_reward(judge(tmp_path / "named"), ModelConfig(dtype="float32"), batch_size=2)
    silent = judge(tmp_path / "silent", pad_token_id=None)
    other = load_outside_reward(silent, ModelConfig(dtype="float32"), batch_size=2)

    texts = (["p", "a longer prompt"], ["r", "s"])

    assert other(*texts) == pytest.approx(outside(*texts), abs=1e-6)


def test_an_outside_reward_model_alone_is_enough(inputs, tmp_path):
    alone = without(inputs, "reward", "reward_function")
    ctx = stage_context(
        tmp_path, config(total_iterations=1), {**alone, "outside_reward": judge(tmp_path / "judge")}
    )

    SPEC.run(ctx)

    line = ctx.logger.lines[0]
    assert line["objective/scores"] == line["ppo/outside_score"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param({"num_labels": 3}, "gives 3 numbers a text", id="a classifier"),
        pytest.param({"weights": False}, "no \\*.safetensors|safetensors", id="no weights"),
        pytest.param({"headless": True}, "weights are missing, such as score.weight", id="no head"),
    ],
)
def test_what_is_no_reward_model_is_refused(inputs, tmp_path, damage, message):
    source = judge(tmp_path / "judge", num_labels=damage.get("num_labels", 1))
    if not damage.get("weights", True):
        (source.path / "model.safetensors").unlink()
    if damage.get("headless"):
        source = inputs["base"]

    with pytest.raises(ModelError, match=message):
        load_outside_reward(source, ModelConfig(dtype="float32"), batch_size=2)


def test_a_text_that_is_too_long_for_the_outside_model_is_said(tmp_path):
    source = judge(tmp_path / "judge", max_position_embeddings=16)
    outside = load_outside_reward(source, ModelConfig(dtype="float32"), batch_size=2)

    with pytest.raises(ModelError, match="which has positions for 16"):
        outside(["a long enough prompt"], ["and its answer"])


def test_a_reward_function_that_fails_stops_the_stage_with_one_clear_error(inputs, tmp_path):
    text = "def score(prompt, response, row):\n    raise KeyError('label')\n"
    broken = written(tmp_path / "broken.py", text, ArtifactKind.FUNCTION)

    with pytest.raises(DataError, match=r"score\(\) raised KeyError: 'label'") as caught:
        SPEC.run(stage_context(tmp_path, config(), {**inputs, "reward_function": broken}))

    assert len(caught.value.findings) == 1


def test_plan_reads_further_functions_and_knows_whom_weights_name(inputs, tmp_path):
    broken = written(tmp_path / "broken.py", "def score(:\n", ArtifactKind.FUNCTION)
    roles = ("base", "policy", "prompts", "reward")

    def codes(changes, given, *more):
        check = StageCheck("ppo", config(**changes), given, (*roles, *more))
        return [finding.code for finding in SPEC.check(check)]

    assert codes({}, {"brevity": broken}, "brevity") == ["score-function"]
    assert codes({"extra_weights": {"brevty": 1.0}}, {}, "brevity") == ["unknown-reward"]
    assert codes({"extra_weights": {"brevity": 1.0}}, {}, "brevity") == []


def test_a_run_file_names_further_functions_and_the_outside_model(inputs, tmp_path):
    import yaml

    from tests.chain import triptych

    judge(tmp_path / "judge")
    written(tmp_path / "b.py", "def score(prompt, response, row):\n    return 1.0\n", ArtifactKind.FUNCTION)
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "Hi"}) + "\n")
    stage = {
        "kind": "ppo",
        "inputs": {
            "base": str(inputs["base"].path),
            "policy": str(inputs["policy"].path),
            "outside_reward": "judge",
            "brevity": "b.py",
            "prompts": "p.jsonl",
        },
        "extra_weights": {"brevity": 0.5},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"name": "r", "stages": {"ppo": stage}}))

    planned = triptych("plan", "run.yaml", folder=tmp_path)

    assert planned.returncode == 0, planned.stdout + planned.stderr


def test_a_reward_model_of_several_members_pays_their_mean_less_their_doubt(inputs, tmp_path):
    folder = shutil.copytree(inputs["reward"].path, tmp_path / "ensemble")
    second = adapter(tmp_path / "second", inputs["base"], seed=9, scored=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / "members" / "1").mkdir(parents=True, exist_ok=True)
        shutil.copy(second.path / name, folder / "members" / "1" / name)
    both = {**inputs, "reward": as_checkpoint(folder, ArtifactKind.REWARD_MODEL)}

    def scores(given, **changes):
        setting = open_setting(stage_context(tmp_path, config(**changes), given))
        return gather(setting, 0)[1].model_scores

    first, other = scores(inputs), scores({**inputs, "reward": second})

    # Mean (a + b) / 2, population deviation |a - b| / 2.
    mean, doubt = (first + other) / 2, (first - other).abs() / 2
    assert torch.allclose(scores(both), mean, atol=1e-5)
    assert torch.allclose(scores(both, ensemble_penalty=0.5), mean - 0.5 * doubt, atol=1e-5)
