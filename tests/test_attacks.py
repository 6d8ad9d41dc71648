"""Hostile files of every kind, given where a user would give them: each is refused in clear words."""

from __future__ import annotations

import gzip
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.cli.main import main
from pipeline.errors import ExitCode, ModelError
from reward.preferences.lines import MAX_ROW_CHARS
from stages.runtime.text.template_guard import check_template
from stages.runtime.text.templates import resolve_template, template_names
from tests.tiny import CHAT_TEMPLATE, tiny_model

RUN = """\
name: attacked
tracking: {wandb: "off"}
model: {base: base, dtype: float32}
stages:
  sft: {kind: sft, inputs: {demonstrations: rows.jsonl}}
"""
ROW = {"prompt": "Which is better?", "chosen": "This one.", "rejected": "That one."}


class Exploit:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        import os

        return os.system, (f"touch {self._mark}",)


def test_a_pickled_model_is_refused_and_never_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    base = tiny_model(tmp_path / "base").path
    (base / "model.safetensors").unlink()
    (base / "pytorch_model.bin").write_bytes(pickle.dumps(Exploit(tmp_path / "mark")))
    (tmp_path / "rows.jsonl").write_text('{"prompt": "p", "completion": "c"}\n')
    (tmp_path / "run.yaml").write_text(RUN)

    code = main(["run", "run.yaml"])

    assert code == ExitCode.USER_ERROR
    assert "pytorch_model.bin" in capsys.readouterr().err
    assert not (tmp_path / "mark").exists()


def _billion_laughs(folder: Path) -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [
        f"{here}: &{here} [{', '.join([f'*{above}'] * 9)}]"
        for above, here in zip("abcdefg", "bcdefgh", strict=True)
    ]
    (folder / "run.yaml").write_text("\n".join(lines) + "\n")


def _python_tag(folder: Path) -> None:
    (folder / "run.yaml").write_text("name: !!python/object/apply:os.system ['touch mark']\n")


def _deep_yaml(folder: Path) -> None:
    (folder / "run.yaml").write_text("a: " + "[" * 5000 + "]" * 5000)


def _huge_yaml(folder: Path) -> None:
    (folder / "run.yaml").write_text("a: " + "x" * 2_000_000)


@pytest.mark.parametrize("attack", [_billion_laughs, _python_tag, _deep_yaml, _huge_yaml])
def test_a_hostile_run_file_is_refused_in_a_few_lines(
    attack: Callable[[Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    attack(tmp_path)

    code = main(["run", "run.yaml"])

    said = capsys.readouterr().err
    assert code == ExitCode.USER_ERROR
    assert "run.yaml" in said
    assert len(said.splitlines()) < 10
    assert "Traceback" not in said
    assert not (tmp_path / "mark").exists()


def _endless_line(folder: Path) -> None:
    text = json.dumps({**ROW, "chosen": "x" * (MAX_ROW_CHARS + 1)})
    (folder / "pairs.jsonl").write_text(f"{json.dumps(ROW)}\n{text}\n{json.dumps(ROW)}\n")


def _deep_row(folder: Path) -> None:
    deep = '{"prompt": "p", "chosen": ' + "[" * 100_000 + "]" * 100_000 + ', "rejected": "r"}'
    (folder / "pairs.jsonl").write_text(f"{json.dumps(ROW)}\n{deep}\n{json.dumps(ROW)}\n")


def _giant_number(folder: Path) -> None:
    row = json.dumps(ROW).replace('"This one."', "1" * 1_000_000)
    (folder / "pairs.jsonl").write_text(f"{json.dumps(ROW)}\n{row}\n{json.dumps(ROW)}\n")


@pytest.mark.parametrize("attack", [_endless_line, _deep_row, _giant_number])
def test_a_hostile_row_is_set_aside_with_its_line_and_the_others_are_read(
    attack: Callable[[Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    attack(tmp_path)

    main(["data", "check", "pairs.jsonl", "--out", "out"])

    rows = json.loads(next(tmp_path.glob("out/**/*report.json")).read_text())["rows"]
    assert (rows["read"], rows["accepted"], rows["rejected"]) == (3, 2, 1)
    assert "Traceback" not in capsys.readouterr().err


def test_an_archive_that_unpacks_to_one_endless_line_costs_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tracemalloc

    monkeypatch.chdir(tmp_path)
    with gzip.open(tmp_path / "pairs.jsonl.gz", "wb") as stream:
        for _ in range(192):
            stream.write(b" " * 2**20)
        stream.write(b"\n" + json.dumps(ROW).encode() + b"\n")

    tracemalloc.start()
    main(["data", "check", "pairs.jsonl.gz", "--out", "out"])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert (tmp_path / "pairs.jsonl.gz").stat().st_size < 2**20
    assert peak < 160 * 2**20


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'x' * 1000000000 }}",
        "{{ '%1000000000d' % 1 }}",
        "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "{% for i in range(99999) %}{{ 'abcdefgh' * 9999 }}{% endfor %}",
        "{% generation %}{{ 'x' * 1000000000 }}{% endgeneration %}",
    ],
)
def test_a_template_that_writes_without_end_is_refused(template: str) -> None:
    with pytest.raises(ModelError, match="too much memory"):
        check_template(template)


def test_a_template_that_never_ends_is_stopped() -> None:
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"

    with pytest.raises(ModelError, match="too much time"):
        check_template(loop)


def test_templates_in_use_pass_the_trial() -> None:
    for name in ("llama3", "qwen3", "gemma", template_names()[0]):
        check_template(resolve_template(name))
    check_template(CHAT_TEMPLATE)
    # A template that fails by itself is judged where it is used, with the conversation at hand.
    check_template("{{ undefined.thing }}")
    check_template("{% for")
