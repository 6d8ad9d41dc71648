"""Losses, forgetting, classification and best of n in the evaluate stage, against plain transformers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.contract import ArtifactKind
from pipeline.errors import DataError
from stages.evaluation.labelled_texts import read_labelled_texts
from tests.evaluation.test_evaluate import adapter, evaluate, write_rows
from tests.tiny import as_checkpoint

ANSWERS = [{"prompt": f"say {i}", "completion": f"it is {i}"} for i in range(3)]
TRAINED = [{"prompt": f"tell {i}", "completion": f"well, {i}"} for i in range(4)]
PROBE = "The sea is wide.\n\nA long line of plain words that is cut into pieces when the limit is small.\n"
TASK = [{"text": f"Is {word} good?", "label": "yes" if word in "bdf" else "no"} for word in "abcdef"]
CHAT = {"max_new_tokens": 8, "max_length": 200, "bootstrap_draws": 100, "seed": 3}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory, tiny_base):
    folder = tmp_path_factory.mktemp("shelf")
    (folder / "probe.txt").write_text(PROBE)
    (folder / "gold.py").write_text("def score(prompt, response, row):\n    return float(len(response))\n")
    rows = {
        "prompts": [{"prompt": f"say {i}"} for i in range(3)],
        "demonstrations": ANSWERS,
        "train": TRAINED,
        "fewshot": [{"prompt": "say 9", "completion": "nine"}],
        "classification": TASK,
    }
    kinds = {"prompts": ArtifactKind.PROMPTS}
    files = {
        name: as_checkpoint(
            write_rows(folder / f"{name}.jsonl", found), kinds.get(name, ArtifactKind.DEMONSTRATIONS)
        )
        for name, found in rows.items()
    }
    head = {"weight": torch.linspace(-1, 1, 32)[None]}
    return {
        "base": tiny_base,
        **files,
        "probe": as_checkpoint(folder / "probe.txt", ArtifactKind.TEXT),
        "gold": as_checkpoint(folder / "gold.py", ArtifactKind.FUNCTION),
        "reward": adapter(folder / "reward", tiny_base, seed=4, head=head),
        "sft": adapter(folder / "sft", tiny_base, seed=1),
    }


@pytest.fixture(scope="module")
def measured(shelf, tmp_path_factory):
    """One evaluation with everything in it."""
    return evaluate(tmp_path_factory.mktemp("run"), shelf, **CHAT, reference="base", samples_per_prompt=4)


@pytest.fixture(scope="module")
def plain(tiny_base):
    """The base, opened by transformers alone."""
    return AutoModelForCausalLM.from_pretrained(tiny_base.path).eval(), AutoTokenizer.from_pretrained(
        tiny_base.path
    )


def loss_of(plain, prompt_ids, ids):
    """Summed loss of `ids` after `prompt_ids`, from transformers' own logits."""
    model, _ = plain
    with torch.no_grad():
        logits = model(torch.tensor([prompt_ids + ids])).logits[0]
    logprobs = torch.log_softmax(logits, -1)
    return -sum(float(logprobs[len(prompt_ids) - 1 + at, token]) for at, token in enumerate(ids))


def chat_ids(plain, prompt, answer):
    _, tokenizer = plain
    turns = [{"role": "user", "content": prompt}]
    before = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    prompt_ids = tokenizer(before, add_special_tokens=False)["input_ids"]
    return prompt_ids, tokenizer(answer + "<|im_end|>", add_special_tokens=False)["input_ids"]


def test_held_out_loss_is_that_of_transformers(measured, plain):
    metrics, _, _ = measured
    pairs = [chat_ids(plain, row["prompt"], row["completion"]) for row in ANSWERS]
    expected = sum(loss_of(plain, *pair) for pair in pairs) / sum(len(ids) for _, ids in pairs)

    assert metrics["loss/base"] == pytest.approx(expected, abs=1e-4)
    assert metrics["perplexity/base"] == pytest.approx(np.exp(expected), rel=1e-4)


def test_the_prompted_base_has_a_loss_too(measured, plain):
    metrics, _, _ = measured

    assert metrics["loss/base_few-shot"] != metrics["loss/base"]
    assert "probe_loss/base_few-shot" not in metrics


def test_probe_loss_is_that_of_plain_text_and_forgetting_its_rise_over_the_base(measured, plain):
    metrics, _, _ = measured
    _, tokenizer = plain
    documents = [
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in PROBE.strip().split("\n\n")
    ]
    expected = sum(loss_of(plain, ids[:1], ids[1:]) for ids in documents) / sum(len(d) - 1 for d in documents)

    assert metrics["probe_loss/base"] == pytest.approx(expected, abs=1e-4)
    assert metrics["probe_perplexity/base"] == pytest.approx(np.exp(expected), rel=1e-4)
    assert metrics["forgetting/base"] == 0
    rise = metrics["probe_loss/sft"] - metrics["probe_loss/base"]
    assert metrics["forgetting/sft"] == pytest.approx(rise)
    assert rise != 0


def test_long_probe_text_is_read_in_pieces_of_the_limit(shelf, plain, tmp_path):
    metrics, _, _ = evaluate(
        tmp_path,
        {name: shelf[name] for name in ("base", "prompts", "probe")},
        **{**CHAT, "max_length": 60, "max_new_tokens": 4},
        reference="base",
    )
    _, tokenizer = plain
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in PROBE.strip().split("\n\n")]
    pieces = [piece[start : start + 60] for piece in ids for start in range(0, len(piece), 60)]
    pieces = [piece for piece in pieces if len(piece) > 1]
    expected = sum(loss_of(plain, piece[:1], piece[1:]) for piece in pieces)

    assert len(pieces) > 2
    assert metrics["probe_loss/base"] == pytest.approx(expected / sum(len(p) - 1 for p in pieces), abs=1e-4)


def test_the_overfitting_gap_is_held_out_loss_minus_training_loss(measured, plain):
    metrics, _, _ = measured
    pairs = [chat_ids(plain, row["prompt"], row["completion"]) for row in TRAINED]
    trained = sum(loss_of(plain, *pair) for pair in pairs) / sum(len(ids) for _, ids in pairs)

    assert metrics["overfitting_gap/base"] == pytest.approx(metrics["loss/base"] - trained, abs=1e-4)


def test_a_label_is_chosen_by_its_likelihood_and_scored_as_scikit_learn_does(measured, plain):
    metrics, table, _ = measured
    labels = ["no", "yes"]
    truth = [row["label"] for row in TASK]
    said = [
        min(labels, key=lambda label, text=row["text"]: loss_of(plain, *chat_ids(plain, text, label)))
        for row in TASK
    ]

    precision, recall, f1, _ = precision_recall_fscore_support(truth, said, average="macro", zero_division=0)
    assert metrics["accuracy/base"] == pytest.approx(
        np.mean([a == b for a, b in zip(truth, said, strict=True)])
    )
    assert metrics["precision/base"] == pytest.approx(precision)
    assert metrics["recall/base"] == pytest.approx(recall)
    assert metrics["f1/base"] == pytest.approx(f1)
    confusion = next(item for item in table["more"] if item["title"] == "Confusion of base")
    assert [row[1:] for row in confusion["rows"]] == confusion_matrix(truth, said, labels=labels).tolist()


def test_best_of_one_is_the_mean_and_best_of_all_what_the_judge_likes_best(measured):
    metrics, table, _ = measured

    for model in ("base", "sft"):
        assert metrics[f"best_of_1/{model}"] == pytest.approx(metrics[f"gold/{model}"])
        assert f"best_of_4/{model}" in metrics
    curve = next(item for item in table["more"] if item["title"].startswith("Best of n"))
    assert curve["columns"] == ["model", "n = 1", "n = 2", "n = 4"]


def test_the_table_shows_what_was_measured(measured):
    _, table, _ = measured

    assert {"perplexity", "over-fitting gap", "forgetting", "accuracy", "F1"} <= set(table["columns"])


def test_what_was_not_given_is_not_in_the_metrics(shelf, tmp_path):
    metrics, table, _ = evaluate(
        tmp_path, {name: shelf[name] for name in ("base", "prompts", "sft")}, **CHAT, reference="base"
    )

    families = {name.partition("/")[0] for name in metrics}
    assert not families & {"loss", "probe_loss", "forgetting", "accuracy", "f1", "best_of_1", "win_rate"}
    assert table["more"] == []


def test_every_bad_row_of_a_task_is_named(tmp_path):
    path = tmp_path / "task.jsonl"
    path.write_text('{"text": "a", "label": "x"}\nnonsense\n{"text": "b"}\n{"label": "y"}\n[1]\n')

    with pytest.raises(DataError) as caught:
        read_labelled_texts(path)

    assert [finding.where.rpartition(":")[2] for finding in caught.value.findings] == ["2", "3", "4", "5"]


def test_one_label_is_no_classification(tmp_path):
    path = write_rows(tmp_path / "task.jsonl", [{"text": "a", "label": 1}, {"text": "b", "label": 1}])

    with pytest.raises(DataError, match="2 to 100 labels, the file has 1"):
        read_labelled_texts(path)


def test_a_task_is_read_from_a_run_file(tmp_path):
    from pipeline.config.load import load_run
    from pipeline.fingerprint import file_digest
    from pipeline.inputs import wire

    for name, rows in (("p.jsonl", [{"prompt": "a"}]), ("c.jsonl", TASK)):
        write_rows(tmp_path / name, rows)
    (tmp_path / "probe.txt").write_text(PROBE)
    (tmp_path / "run.yaml").write_text(
        json.dumps(
            {
                "name": "r",
                "stages": {
                    "base": {"kind": "pretrain", "inputs": {"text": "probe.txt"}},
                    "eval": {
                        "kind": "evaluate",
                        "inputs": {
                            "base": "base",
                            "prompts": "p.jsonl",
                            "probe": "probe.txt",
                            "classification": "c.jsonl",
                        },
                    },
                },
            }
        )
    )

    stages = {stage.name: stage for stage in wire(load_run(tmp_path / "run.yaml"), file_digest).require()}

    assert stages["eval"].inputs["probe"].kind is ArtifactKind.TEXT
