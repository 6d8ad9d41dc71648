"""The evaluate stage on tiny random models: same prompts, same random numbers, numbers by hand."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from pipeline.config.run import ModelConfig, TuningConfig
from pipeline.contract import ArtifactKind, StageCheck
from pipeline.errors import DataError, HandOverError, Interrupted, ModelError
from stages.data import Demonstration
from stages.evaluate import SPEC, EvaluateConfig, check, run
from stages.evaluation.answers import with_examples
from stages.runtime.adapters import new_adapter, save_adapter
from stages.runtime.loading import load_base, load_tokenizer
from stages.runtime.text.chat import ChatText
from tests.tiny import ManualStop, as_checkpoint, stage_context, tiny_model

PROMPTS = [{"id": f"p{i}", "prompt": f"say {i}", "wanted": str(i)} for i in range(6)]
GOLD = "def score(prompt, response, row):\n    return len(response) + 100.0 * row['finished']\n"
SETTINGS = {"reference": "sft", "max_new_tokens": 8, "max_length": 200, "bootstrap_draws": 100, "seed": 3}


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def adapter(folder, base, *, seed, head=None):
    """Write an adapter whose lora_B is random, so that it changes the model."""
    tokenizer = load_tokenizer(base, ModelConfig())
    model = new_adapter(load_base(base, ModelConfig()), TuningConfig(lora_r=2), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "lora_B" in name:
                parameter.normal_(std=0.3, generator=generator)
    save_adapter(model, folder, name="policy", base=base, tokenizer=tokenizer, head=head)
    kind = ArtifactKind.ADAPTER if head is None else ArtifactKind.REWARD_MODEL
    return as_checkpoint(folder, kind, producer=folder.name)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory, tiny_base):
    """Inputs that every test may use."""
    folder = tmp_path_factory.mktemp("shelf")
    head = {"weight": torch.linspace(-1, 1, 32)[None]}
    gold = folder / "gold.py"
    gold.write_text(GOLD)
    prompts = write_rows(folder / "prompts.jsonl", PROMPTS)
    shots = write_rows(folder / "shots.jsonl", [{"prompt": "say 9", "completion": "nine"}])
    return {
        "base": tiny_base,
        "prompts": as_checkpoint(prompts, ArtifactKind.PROMPTS),
        "gold": as_checkpoint(gold, ArtifactKind.FUNCTION),
        "fewshot": as_checkpoint(shots, ArtifactKind.DEMONSTRATIONS),
        "sft": adapter(folder / "sft", tiny_base, seed=1),
        "dpo": adapter(folder / "dpo", tiny_base, seed=2),
        "reward": adapter(folder / "reward", tiny_base, seed=4, head=head),
    }


def evaluate(root, inputs, **changes):
    context = stage_context(root, EvaluateConfig(**{**SETTINGS, **changes}), inputs)
    result = run(context)
    table = json.loads((result.outputs["table"] / "table.json").read_text())
    samples = [json.loads(line) for line in (result.outputs["samples"] / "samples.jsonl").open()]
    return result.metrics, table, samples


def some(shelf, *names):
    return {name: shelf[name] for name in ("base", "prompts", *names)}


def test_every_model_is_a_row_and_every_measure_a_column(tmp_path, shelf):
    metrics, table, samples = evaluate(tmp_path, shelf)

    assert [row[0] for row in table["rows"]] == ["base", "base few-shot", "sft", "dpo"]
    assert table["columns"] == [
        "model",
        "gold utility",
        "gold - sft",
        "win rate vs sft",
        "at equal length",
        "proxy reward",
        "KL to sft",
        "length",
        "EOS rate",
        "distinct-2",
    ]
    assert {"gold/dpo", "win_rate/base", "kl/base_few-shot", "proxy_low/sft"} <= metrics.keys()
    assert "win_rate/sft" not in metrics
    assert [line["id"] for line in samples] == [row["id"] for row in PROMPTS]
    assert samples[0]["by"].keys() == {"base", "base few-shot", "sft", "dpo"}


def test_gold_is_the_mean_of_what_the_function_gave(tmp_path, shelf):
    metrics, _, samples = evaluate(tmp_path, some(shelf, "sft", "gold"))

    expected = sum(line["by"]["sft"]["scores"]["gold"] for line in samples) / len(samples)
    assert metrics["gold/sft"] == pytest.approx(expected, abs=1e-3)
    assert metrics["gold_low/sft"] <= metrics["gold/sft"] <= metrics["gold_high/sft"]


def test_two_copies_of_a_checkpoint_are_equal_in_everything(tmp_path, shelf):
    inputs = {**some(shelf, "sft", "gold"), "copy": shelf["sft"]}
    metrics, _, samples = evaluate(tmp_path, inputs)

    assert all(line["by"]["sft"] == line["by"]["copy"] for line in samples)
    assert metrics["win_rate/copy"] == 0.5
    assert metrics["gold_gain/copy"] == 0.0
    assert metrics["kl/copy"] == pytest.approx(0.0, abs=1e-5)
    assert metrics["length/copy"] == metrics["length/sft"]


def test_the_same_seed_gives_the_same_answers_and_another_one_others(tmp_path, shelf):
    inputs = some(shelf, "sft")

    first, second, other = (
        evaluate(tmp_path / str(i), inputs, seed=seed)[2] for i, seed in enumerate((1, 1, 2))
    )

    assert first == second
    assert first != other


def test_kl_is_the_log_ratio_of_the_two_models_on_the_first_ones_samples(tmp_path, shelf):
    metrics, _, samples = evaluate(tmp_path, some(shelf, "sft"), reference="base", temperature=0.7)

    model = new_adapter(load_base(shelf["base"], ModelConfig()), TuningConfig(lora_r=2), seed=0)
    state = load_file(shelf["sft"].path / "adapter_model.safetensors")
    own = dict(model.named_parameters())
    with torch.no_grad():
        for key, value in state.items():
            own[key.replace(".weight", ".policy.weight")].copy_(value)
    # The tiny tokenizer has one token a byte, so a text that is pure ASCII gives its ids back.
    ratios = []
    context = stage_context(tmp_path / "again", EvaluateConfig(**SETTINGS), some(shelf, "sft"))
    for prompt, response in responses_of(context, temperature=0.7):
        ids = torch.tensor([prompt + response])
        targets = ids[0, len(prompt) :]
        with torch.no_grad():
            policy = (model(ids).logits[0, len(prompt) - 1 : -1] / 0.7).log_softmax(-1)
            with model.disable_adapter():
                base = (model(ids).logits[0, len(prompt) - 1 : -1] / 0.7).log_softmax(-1)
        gap = (policy - base).gather(1, targets[:, None]).sum()
        ratios.append(float(gap))
    assert metrics["kl/sft"] == pytest.approx(sum(ratios) / len(ratios), abs=1e-4)
    assert len(samples) == len(ratios)


def responses_of(context, *, temperature):
    """Sample the SFT model's responses again, as token ids."""
    from stages.evaluation.answers import read_task
    from stages.evaluation.contestants import open_panel

    config = context.config.model_copy(update={"temperature": temperature})
    panel = open_panel(context.inputs, config)
    task = read_task(context.inputs, config, panel.chat)
    panel.use("sft")
    rollout = panel.sample(task.prompts, seed=config.seed)
    return list(zip(task.prompts, rollout.responses, strict=True))


def test_a_greedy_evaluation_has_no_kl(tmp_path, shelf):
    metrics, table, _ = evaluate(tmp_path, some(shelf, "sft"), temperature=0.0)

    assert not any(name.startswith("kl/") for name in metrics)
    assert "KL to sft" not in table["columns"]


def test_without_gold_the_reward_model_is_the_judge(tmp_path, shelf):
    metrics, table, samples = evaluate(tmp_path, some(shelf, "sft", "dpo", "reward"))

    wins = [(line["by"]["dpo"]["scores"]["proxy"] > line["by"]["sft"]["scores"]["proxy"]) for line in samples]
    assert metrics["win_rate/dpo"] == pytest.approx(sum(wins) / len(wins))
    assert any("judged by the reward score" in note for note in table["notes"])
    assert "gold utility" not in table["columns"]


def test_the_proxy_reward_is_what_plain_peft_computes(tmp_path, shelf):
    metrics, _, _ = evaluate(tmp_path / "run", some(shelf, "sft", "reward"), temperature=0.7)

    model = AutoModelForSequenceClassification.from_pretrained(shelf["base"].path, num_labels=1)
    model = PeftModel.from_pretrained(model, shelf["reward"].path).eval()
    context = stage_context(tmp_path / "again", EvaluateConfig(**SETTINGS), some(shelf, "sft"))
    with torch.no_grad():
        scores = [
            float(model(torch.tensor([prompt + response])).logits[0, 0])
            for prompt, response in responses_of(context, temperature=0.7)
        ]
    assert metrics["proxy/sft"] == pytest.approx(sum(scores) / len(scores), abs=1e-4)


def test_samples_of_one_prompt_share_its_place(tmp_path, shelf):
    metrics, _, samples = evaluate(tmp_path, some(shelf, "sft", "gold"), samples_per_prompt=3)

    assert len(samples) == len(PROMPTS)
    assert 0 < metrics["length/sft"] <= 8


def test_a_full_model_is_compared_like_an_adapter(tmp_path, shelf):
    copy = tmp_path / "copy"
    shutil.copytree(shelf["base"].path, copy)
    inputs = {**some(shelf, "gold"), "copy": as_checkpoint(copy, ArtifactKind.FULL_MODEL)}

    metrics, table, samples = evaluate(tmp_path / "run", inputs, reference="copy")

    assert [row[0] for row in table["rows"]] == ["base", "copy"]
    assert all(line["by"]["base"] == line["by"]["copy"] for line in samples)
    assert metrics["kl/base"] == pytest.approx(0.0, abs=1e-5)


def test_held_out_loss_is_transformers_loss_on_the_answer(tmp_path, shelf):
    rows = [{"prompt": "say 1", "completion": "one"}, {"prompt": "say 22", "completion": "twenty"}]
    held_out = as_checkpoint(write_rows(tmp_path / "rows.jsonl", rows), ArtifactKind.DEMONSTRATIONS)

    metrics, _, _ = evaluate(tmp_path, {**some(shelf), "demonstrations": held_out}, reference="base")

    model, total, count = load_base(shelf["base"], ModelConfig()), 0.0, 0
    chat = ChatText(load_tokenizer(shelf["base"], ModelConfig()))
    for row in rows:
        prompt = chat.prompt_ids(row["prompt"])
        answer = chat.response_ids(row["prompt"], row["completion"])
        ids = torch.tensor([prompt + answer])
        labels = torch.tensor([[-100] * len(prompt) + answer])
        with torch.no_grad():
            total += float(model(ids, labels=labels).loss) * len(answer)
        count += len(answer)
    assert metrics["loss/base"] == pytest.approx(total / count, abs=1e-5)


def test_an_adapter_of_another_base_is_refused(tmp_path, shelf):
    other = tiny_model(tmp_path / "other", seed=9)
    inputs = {**some(shelf, "sft"), "stray": adapter(tmp_path / "stray", other, seed=1)}

    with pytest.raises((HandOverError, ModelError), match="base"):
        evaluate(tmp_path, inputs)


def test_an_adapter_with_another_template_is_refused(tmp_path, shelf):
    folder = tmp_path / "sft"
    shutil.copytree(shelf["sft"].path, folder)
    contract = json.loads((folder / "text.json").read_text())
    (folder / "text.json").write_text(json.dumps({**contract, "chat_template_sha256": "0" * 64}))
    inputs = {**some(shelf), "sft": as_checkpoint(folder, ArtifactKind.ADAPTER)}

    with pytest.raises(HandOverError, match="chat template"):
        evaluate(tmp_path, inputs)


def test_a_reward_model_without_a_head_is_refused(tmp_path, shelf):
    folder = tmp_path / "reward"
    shutil.copytree(shelf["reward"].path, folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(
        {key: value for key, value in tensors.items() if "score" not in key},
        folder / "adapter_model.safetensors",
    )
    inputs = {**some(shelf, "sft"), "reward": as_checkpoint(folder, ArtifactKind.REWARD_MODEL)}

    with pytest.raises(HandOverError, match="head"):
        evaluate(tmp_path, inputs)


def test_a_reference_that_is_no_model_is_refused_with_the_names(tmp_path, shelf):
    with pytest.raises(ModelError, match="'stf'") as caught:
        evaluate(tmp_path, some(shelf, "sft"), reference="stf")

    assert caught.value.findings[0].hint == "one of base, sft"


def test_a_plan_finds_a_reference_that_is_no_model():
    config = EvaluateConfig(reference="stf")
    roles = ("base", "prompts", "gold", "sft")

    found = check(StageCheck("evaluate", config, {}, roles))

    assert [finding.code for finding in found] == ["unknown-model"]
    assert found[0].hint == "one of base, sft"
    assert not check(StageCheck("evaluate", EvaluateConfig(reference="sft"), {}, roles))


def test_prompts_without_room_are_set_aside_and_counted(tmp_path, shelf):
    long = [*PROMPTS, {"id": "long", "prompt": "x" * 300}]
    prompts = as_checkpoint(write_rows(tmp_path / "long.jsonl", long), ArtifactKind.PROMPTS)

    _, table, samples = evaluate(tmp_path / "run", {**some(shelf, "sft"), "prompts": prompts})

    assert len(samples) == len(PROMPTS)
    assert "1 prompts were too long and set aside." in table["notes"]
    with pytest.raises(DataError, match="leaves room"):
        evaluate(tmp_path / "none", {**some(shelf, "sft"), "prompts": prompts}, max_length=10)


def test_a_stop_is_obeyed(tmp_path, shelf):
    context = stage_context(
        tmp_path, EvaluateConfig(**SETTINGS), some(shelf, "sft"), stop=ManualStop(after=1)
    )

    with pytest.raises(Interrupted):
        run(context)


def test_examples_become_earlier_turns_behind_the_system_turn():
    shots = [Demonstration("2+2?", "4", 1)]
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "3+3?"}]

    assert with_examples(prompt, shots, has_template=True) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "3+3?"},
    ]
    assert with_examples("3+3=", [Demonstration("2+2=", "4", 1)], has_template=False) == "2+2=4\n\n3+3="


def test_the_card_names_what_it_needs():
    assert {role for role, slot in SPEC.inputs.items() if slot.required} == {"base", "prompts"}
