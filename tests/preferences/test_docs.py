"""Every command of docs/preferences.md runs, on files as the page describes them."""

from __future__ import annotations

import argparse
import csv
import re
import shlex
from pathlib import Path

import pytest
import yaml

from pipeline.cli import data
from pipeline.cli.main import main
from pipeline.registry import find
from reward.preferences.exchange.tasks import cmp_id_of
from reward.preferences.writers import read_records
from tests.preferences.planted import clean_rows, write_jsonl
from tests.preferences.test_round_trip import fill_sheet

PAGE = Path(__file__).resolve().parents[2] / "docs" / "preferences.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)


def write_inputs() -> None:
    votes = clean_rows()
    write_jsonl(Path("votes.jsonl"), votes)
    write_jsonl(Path("older.jsonl"), clean_rows(seed=9))
    broken = {**votes[0], "_line": 1, "_row": 1, "_checks": "empty_response", "_message": "r0"}
    write_jsonl(Path("mended.jsonl"), [broken])
    write_jsonl(Path("eval.jsonl"), [{"prompt": "Something else altogether, in other words?"}])
    Path("thresholds.yaml").write_text("max_reject_share: 0.02\n")
    samples = [{"prompt": f"Question {n}?", "completions": [f"one {n}", f"two {n}"]} for n in range(20)]
    write_jsonl(Path("samples.jsonl"), samples)
    write_jsonl(Path("probes.jsonl"), [{"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}])
    records, _ = read_records(Path("samples.jsonl"))
    rows = [{"cmp_id": cmp_id_of(record), "margins": [1.0, -1.0]} for record in records]
    write_jsonl(Path("margins.jsonl"), rows)
    with Path("table.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["question", "answer_a", "answer_b", "preference", "rater"])
        writer.writerows([[f"q {n}?", f"yes {n}.", f"no {n}.", n % 7 - 3, f"p{n % 3}"] for n in range(30)])
    mapping, recipe, run_file = blocks("yaml")
    stage = yaml.safe_load(run_file)["stages"]["ask"]
    assert find(stage["kind"]).config_type(samples_per_prompt=stage["samples_per_prompt"])
    assert yaml.safe_load(mapping)
    Path("table.yaml").write_text(mapping)
    Path("recipe.yaml").write_text(recipe)


def test_every_command_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_inputs()
    commands = [line for block in blocks("sh") for line in block.strip().splitlines()]
    assert len(commands) >= 10

    for command in commands:
        words = shlex.split(command)
        assert words[:2] == ["triptych", "data"]
        if any("my-run:" in word for word in words):
            # Needs a finished run: tests/evaluation/test_sample.py runs these two on one.
            parser = argparse.ArgumentParser()
            data.add_arguments(parser)
            assert parser.parse_args(words[2:]).action == "export"
            continue
        if words[2] == "import":
            fill_sheet(Path("round1/tasks-a01.csv"), "x").rename("round1/done.csv")

        assert main(words[1:]) in (0, 2) if words[2] == "check" else main(words[1:]) == 0, command

    for name in ("data-report/report.html", "second/report.json", "pairs.jsonl", "sides/train.jsonl",
                 "prepared.jsonl", "mixed.provenance.json",
                 "round1/key.json", "judged.jsonl", "next.jsonl"):  # fmt: skip
        assert Path(name).is_file(), name
