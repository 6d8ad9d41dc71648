"""Tasks of the lm-evaluation-harness: equal to likelihoods computed by hand, for every model of a table."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.config.run import ModelConfig
from pipeline.contract import ArtifactKind, StageCheck
from pipeline.errors import ConfigError, DataError
from pipeline.fingerprint import key_settings
from stages import harness_config
from stages.evaluate import EvaluateConfig, check, run
from stages.evaluation.harness import HarnessResult, read_results
from stages.evaluation.tables import harness_tables
from stages.harness_config import HarnessConfig
from stages.runtime.adapters import load_adapter
from stages.runtime.loading import load_base, load_tokenizer
from tests.evaluation.test_evaluate import adapter, write_rows
from tests.readme_tree import ROOT
from tests.tiny import as_checkpoint, stage_context

SETTINGS: dict[str, Any] = {"max_new_tokens": 3, "max_length": 200, "bootstrap_draws": 100, "seed": 3}
CHOICES = ["red", "green", "a very long blue"]
FP32 = ModelConfig(dtype="float32")
DATA = "dataset_path: json\ndataset_kwargs: {data_files: {test: %s.jsonl}}\ntest_split: test\n"
COLOURS = f"""
task: tiny_colours
{DATA % "colours"}
output_type: multiple_choice
doc_to_text: "Colour of {{{{thing}}}}?"
doc_to_choice: {json.dumps(CHOICES)}
doc_to_target: answer
target_delimiter: " "
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
metadata: {{version: 7}}
"""
REPEAT = f"""
task: tiny_repeat
{DATA % "repeat"}
output_type: generate_until
doc_to_text: "Repeat {{{{thing}}}}"
doc_to_target: wanted
generation_kwargs: {{until: ["~~"], max_gen_toks: 4, do_sample: false}}
metric_list: [{{metric: exact_match}}]
metadata: {{version: 1}}
"""
GUESS = f"""
task: tiny_guess
{DATA % "colours"}
output_type: loglikelihood
doc_to_text: "Colour of {{{{thing}}}}?"
doc_to_target: " red"
metric_list: [{{metric: perplexity}}, {{metric: acc}}]
metadata: {{version: 1}}
"""
TASKS = ("tiny_colours", "tiny_repeat", "tiny_guess")
THINGS = [f"thing {number}" for number in range(12)]


def _open(base, policy=None):
    model = load_base(base, FP32)
    return model if policy is None else load_adapter(model, policy, name="policy", trainable=False)


@torch.no_grad()
def _logp(model, tokenizer, text: str, answer: str) -> float:
    """The log-probability of an answer after a text, token by token from the model's own logits."""
    start, ids = len(tokenizer(text)["input_ids"]), tokenizer(text + answer)["input_ids"]
    logprobs = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return sum(float(logprobs[at - 1, ids[at]]) for at in range(start, len(ids)))


@torch.no_grad()
def _greedy(model, tokenizer, text: str, length: int) -> str:
    ids = tokenizer(text)["input_ids"]
    for _ in range(length):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return tokenizer.decode(ids[-length:], skip_special_tokens=True)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory, tiny_base):
    """A base, an adapter, prompts and a folder of three tasks."""
    folder = tmp_path_factory.mktemp("harness")
    policy = adapter(folder / "sft", tiny_base, seed=5)
    tasks = folder / "tasks"
    tasks.mkdir()
    for name, text in (("colours", COLOURS), ("repeat", REPEAT), ("guess", GUESS)):
        (tasks / f"{name}.yaml").write_text(text)
    write_rows(tasks / "colours.jsonl", [{"thing": thing, "answer": n % 3} for n, thing in enumerate(THINGS)])
    tokenizer, base = load_tokenizer(tiny_base, FP32), _open(tiny_base)
    # The base says what is wanted in the first nine rows of twelve.
    said = [_greedy(base, tokenizer, f"Repeat {thing}", 4) for thing in THINGS]
    write_rows(
        tasks / "repeat.jsonl",
        [
            {"thing": thing, "wanted": said[n] if n < 9 else "no such answer"}
            for n, thing in enumerate(THINGS)
        ],
    )
    prompts = write_rows(folder / "prompts.jsonl", [{"prompt": "say 1"}, {"prompt": "say 2"}])
    return {
        "base": tiny_base,
        "sft": policy,
        "prompts": as_checkpoint(prompts, ArtifactKind.PROMPTS),
        "harness": as_checkpoint(tasks, ArtifactKind.TEXT),
    }


@pytest.fixture(scope="module")
def evaluated(shelf, tmp_path_factory):
    pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install 'triptych-rlhf[harness]'")
    where = Path.cwd()
    ctx = stage_context(
        tmp_path_factory.mktemp("run"), EvaluateConfig(**SETTINGS, harness={"tasks": TASKS}), shelf
    )
    result = run(ctx)
    assert Path.cwd() == where
    return ctx, result


@pytest.mark.parametrize("name", ["base", "sft"])
def test_every_model_scores_what_its_own_likelihoods_say(shelf, evaluated, name) -> None:
    _, result = evaluated
    tokenizer = load_tokenizer(shelf["base"], FP32)
    model = _open(shelf["base"], shelf["sft"] if name == "sft" else None)
    logps = [[_logp(model, tokenizer, f"Colour of {t}?", f" {c}") for c in CHOICES] for t in THINGS]

    # acc: the likeliest choice is the answer. acc_norm: after dividing by the choice's letters.
    argmax = lambda row: max(range(3), key=row.__getitem__)  # noqa: E731
    acc = sum(argmax(row) == n % 3 for n, row in enumerate(logps)) / 12
    by_letter = [[logp / len(choice) for logp, choice in zip(row, CHOICES, strict=True)] for row in logps]
    acc_norm = sum(argmax(row) == n % 3 for n, row in enumerate(by_letter)) / 12
    perplexity = torch.tensor([row[0] for row in logps]).mean().neg().exp()
    said = [_greedy(model, tokenizer, f"Repeat {thing}", 4) for thing in THINGS]
    wanted = [json.loads(line)["wanted"] for line in (shelf["harness"].path / "repeat.jsonl").open()]
    exact = sum(a == b for a, b in zip(said, wanted, strict=True)) / 12
    metrics = result.metrics

    assert metrics[f"harness/tiny_colours/acc/{name}"] == pytest.approx(acc)
    assert metrics[f"harness/tiny_colours/acc_norm/{name}"] == pytest.approx(acc_norm)
    assert metrics[f"harness/tiny_guess/perplexity/{name}"] == pytest.approx(float(perplexity), rel=1e-4)
    assert metrics[f"harness/tiny_repeat/exact_match/{name}"] == pytest.approx(exact)
    assert exact == (0.75 if name == "base" else exact)


def test_each_model_takes_the_tasks_with_its_own_adapter(evaluated) -> None:
    _, result = evaluated

    guesses = {name: result.metrics[f"harness/tiny_guess/perplexity/{name}"] for name in ("base", "sft")}
    assert abs(guesses["base"] - guesses["sft"]) > 1
    assert result.metrics["harness/tiny_repeat/exact_match/sft"] < 0.75


def test_the_table_and_the_notes_name_tasks_versions_and_rows(evaluated) -> None:
    _, result = evaluated
    tables = json.loads((result.outputs["table"] / "table.json").read_text())["more"]
    table = next(table for table in tables if "lm-evaluation-harness" in table["title"])

    assert [row[0] for row in table["rows"]] == ["base", "sft"]
    assert "tiny_colours (version 7, 12 rows, 0-shot)" in table["notes"][0]
    assert any(note.startswith("lm_eval ") and "tiny_guess" in note for note in result.notes)


def test_asking_for_the_tasks_leaves_everything_else_as_it_was(shelf, evaluated, tmp_path) -> None:
    _, result = evaluated
    plain = run(
        stage_context(
            tmp_path, EvaluateConfig(**SETTINGS), {r: s for r, s in shelf.items() if r != "harness"}
        )
    )

    assert {k: v for k, v in result.metrics.items() if not k.startswith("harness/")} == plain.metrics


def test_limit_and_examples_reach_the_tasks(shelf, tmp_path) -> None:
    pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install 'triptych-rlhf[harness]'")
    setting = HarnessConfig(tasks=("tiny_colours",), limit=5, num_fewshot=2)

    result = run(stage_context(tmp_path, EvaluateConfig(**SETTINGS, harness=setting), shelf))

    assert any("tiny_colours (version 7, 5 rows, 2-shot)" in note for note in result.notes)


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        pytest.param(lambda folder: (folder / "colours.jsonl").unlink(), "colours.jsonl", id="no-data"),
        pytest.param(lambda folder: (folder / "colours.yaml").unlink(), "tiny_colours", id="no-task"),
    ],
)
def test_a_task_that_cannot_be_loaded_is_said_before_any_model_samples(
    shelf, tmp_path, break_it, said
) -> None:
    pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install 'triptych-rlhf[harness]'")
    folder = tmp_path / "tasks"
    folder.mkdir()
    for path in shelf["harness"].path.iterdir():
        (folder / path.name).write_text(path.read_text())
    break_it(folder)
    inputs = {**shelf, "harness": as_checkpoint(folder, ArtifactKind.TEXT)}
    ctx = stage_context(tmp_path, EvaluateConfig(**SETTINGS, harness={"tasks": ("tiny_colours",)}), inputs)

    with pytest.raises(DataError) as raised:
        run(ctx)

    assert raised.value.findings[0].code == "harness-task"
    assert said in str(raised.value)
    assert not list(ctx.output_dir.iterdir())


def test_the_task_of_the_documentation_runs(shelf, tmp_path) -> None:
    pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install 'triptych-rlhf[harness]'")
    page = (ROOT / "docs" / "look.md").read_text(encoding="utf-8")
    (text,) = [block for block in page.split("```yaml\n") if block.startswith("task: my_quiz")]
    (tmp_path / "my_quiz.yaml").write_text(text.split("```")[0])
    rows = [{"question": f"Is it {n}?", "choices": ["a", "b"], "answer": n % 2} for n in range(4)]
    write_rows(tmp_path / "quiz.jsonl", rows)
    inputs = {**shelf, "harness": as_checkpoint(tmp_path, ArtifactKind.TEXT)}
    config = EvaluateConfig(**SETTINGS, harness={"tasks": ("my_quiz",)})

    result = run(stage_context(tmp_path / "run", config, inputs))

    assert result.metrics["harness/my_quiz/acc/base"] in (0, 0.25, 0.5, 0.75, 1)
    assert any("my_quiz (version 1, 4 rows, 0-shot)" in note for note in result.notes)


RAW = {
    "results": {
        "quiz": {
            "name": "quiz",
            "alias": "- quiz",
            "sample_len": 12,
            "acc,none": 0.5,
            "acc_stderr,none": 0.1,
            "exact_match,strict-match": 0.25,
            "exact_match_stderr,strict-match": "N/A",
        }
    },
    "groups": {"all": {"alias": "all", "acc,none": 0.75}},
    "versions": {"quiz": 3.0},
    "n-shot": {"quiz": 2},
    "n-samples": {"quiz": {"original": 40, "effective": 12}},
}


def test_the_package_s_results_become_metrics_with_stable_names() -> None:
    result = read_results(RAW, version="0.4.13")

    assert result.metrics("base few-shot") == {
        "harness/quiz/acc/base_few-shot": 0.5,
        "harness/quiz/acc_stderr/base_few-shot": 0.1,
        "harness/quiz/exact_match.strict-match/base_few-shot": 0.25,
        "harness/all/acc/base_few-shot": 0.75,
    }
    assert result.tasks == {"quiz": {"version": 3.0, "num_fewshot": 2, "num_rows": 12}}
    assert result.said == "lm_eval 0.4.13: quiz (version 3.0, 12 rows, 2-shot)."


def test_the_table_shows_standard_errors_beside_their_values() -> None:
    first = HarnessResult({"a.b/acc.x": 0.5, "a.b/acc_stderr.x": 0.125, "a.b/f1": 1 / 3}, {}, "1")
    second = HarnessResult({"a.b/f1": 1.0}, {}, "1")

    (table,) = harness_tables({"base": first, "sft": second})

    assert table["columns"] == ["model", "a.b/acc.x", "a.b/f1"]
    assert table["rows"] == [["base", "0.500 (0.125)", "0.333"], ["sft", None, "1.000"]]
    assert harness_tables({}) == []


class _FakeManager:
    def __init__(self, include_path: str | None = None) -> None:
        self.include_path = include_path

    def load(self, names: list[str]) -> dict[str, Any]:
        if names == ["none"]:
            return {"tasks": {}}
        if not Path("colours.jsonl").is_file():
            raise FileNotFoundError(f"colours.jsonl is not in {Path.cwd()}")
        return {"tasks": dict.fromkeys(names)}


@pytest.fixture
def package(monkeypatch):
    """A stand-in for lm_eval that notes what it is asked and draws from the random state."""
    asked: list[dict[str, Any]] = []

    def evaluate(*, model, **settings):
        torch.manual_seed(settings["torch_random_seed"])
        torch.rand(3)
        parameter = float(model.pretrained(torch.tensor([[5, 6]])).logits.sum())
        asked.append(
            {**settings, "logits": parameter, "cwd": Path.cwd(), "pad_token": model.tokenizer.pad_token}
        )
        model.tokenizer.pad_token = None
        return RAW

    modules: dict[str, Any] = {
        "lm_eval": {"__version__": "9.9", "simple_evaluate": evaluate},
        "lm_eval.models": {},
        "lm_eval.models.huggingface": {"HFLM": lambda **given: SimpleNamespace(**given)},
        "lm_eval.tasks": {"TaskManager": _FakeManager},
    }
    for name, content in modules.items():
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return asked


def test_the_settings_reach_the_package_and_each_model_is_asked_as_itself(shelf, package, tmp_path) -> None:
    setting = {"tasks": ("quiz", "other"), "limit": 4, "num_fewshot": 1, "apply_chat_template": True}
    config = EvaluateConfig(**SETTINGS, harness=setting)

    result = run(stage_context(tmp_path, config, shelf))

    assert len(package) == 2
    assert package[0]["tasks"] == ["quiz", "other"]
    assert (package[0]["limit"], package[0]["num_fewshot"]) == (4, 1)
    assert package[0]["apply_chat_template"] is True
    assert {package[0][f"{of}random_seed"] for of in ("", "numpy_", "torch_", "fewshot_")} == {3}
    assert package[0]["task_manager"].include_path == str(shelf["harness"].path)
    assert package[0]["cwd"] == shelf["harness"].path
    # What it does to one model's tokenizer, the next model does not see.
    assert [row["pad_token"] for row in package] == ["<|pad|>"] * 2
    with torch.no_grad():
        for row, policy in zip(package, (None, shelf["sft"]), strict=True):
            logits = _open(shelf["base"], policy)(torch.tensor([[5, 6]])).logits
            assert row["logits"] == pytest.approx(float(logits.sum()), abs=1e-3)
    assert result.metrics["harness/quiz/acc/base"] == result.metrics["harness/quiz/acc/sft"] == 0.5
    assert result.notes == ("lm_eval 9.9: quiz (version 3.0, 12 rows, 2-shot).",)


def test_the_package_cannot_move_random_state_tokenizer_or_answers(shelf, package, tmp_path) -> None:
    inputs = {role: source for role, source in shelf.items() if role != "harness"}
    plain = run(stage_context(tmp_path / "plain", EvaluateConfig(**SETTINGS), inputs))
    torch.manual_seed(77)
    expected = torch.rand(2)
    torch.manual_seed(77)

    asked = run(
        stage_context(tmp_path / "asked", EvaluateConfig(**SETTINGS, harness={"tasks": ("quiz",)}), shelf)
    )

    assert torch.equal(torch.rand(2), expected)
    assert {k: v for k, v in asked.metrics.items() if not k.startswith("harness/")} == plain.metrics


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        pytest.param(("none",), "no task is called none", id="unknown"),
        pytest.param(("quiz",), "cannot be loaded: colours.jsonl is not in", id="no-data"),
    ],
)
def test_a_mistake_in_the_tasks_names_them(shelf, package, tmp_path, tasks, said) -> None:
    (tmp_path / "empty").mkdir()
    inputs = {**shelf, "harness": as_checkpoint(tmp_path / "empty", ArtifactKind.TEXT)}

    with pytest.raises(DataError, match=said):
        run(stage_context(tmp_path, EvaluateConfig(**SETTINGS, harness={"tasks": tasks}), inputs))

    assert package == []


def test_without_the_package_plan_and_run_say_what_to_install(shelf, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(harness_config, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    config = EvaluateConfig(harness={"tasks": ("quiz",)})

    (finding,) = check(StageCheck("evaluate", config, {}))
    with pytest.raises(ConfigError) as raised:
        run(stage_context(tmp_path, EvaluateConfig(**SETTINGS, harness={"tasks": ("quiz",)}), shelf))

    assert finding.code == raised.value.findings[0].code == "no-harness"
    assert "triptych-rlhf[harness]" in finding.hint
    assert finding.where == "stages.evaluate.harness"


def test_tasks_without_a_setting_are_a_finding() -> None:
    (finding,) = check(StageCheck("e", EvaluateConfig(), {}, roles=("harness",)))

    assert finding.code == "no-harness-tasks"


def test_off_it_leaves_the_key_as_it_was() -> None:
    assert "harness" not in key_settings(EvaluateConfig())
    keys = [
        str(key_settings(EvaluateConfig(harness={"tasks": ("quiz",), **change})))
        for change in ({}, {"limit": 1}, {"num_fewshot": 0}, {"apply_chat_template": True})
    ]
    assert len(set(keys)) == 4
