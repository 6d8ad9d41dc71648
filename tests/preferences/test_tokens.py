"""Token counts of preference files: worked by hand, by a tokenizer, estimated, and on real pairs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from pipeline.cli.main import main
from pipeline.errors import ExitCode
from reward.preferences.tokens import PairTokens, estimated_tokens, token_table
from tests.preferences.planted import write_jsonl
from tests.realdata import find_realdata
from tests.tiny import tiny_tokenizer


def lengths(number, prompt, first, second, *, chosen=None, rejected=None):
    return PairTokens(
        unit=number,
        prompt=f"p{number}",
        chosen=chosen or f"c{number}",
        rejected=rejected or f"r{number}",
        prompt_tokens=prompt,
        chosen_tokens=first,
        rejected_tokens=second,
    )


def test_one_batch_by_hand():
    # sequences 10+2, 10+4, 1+3, 1+1: padded 4 * 14; real 14+12+4+2; shared 10+2+4 + 1+3+1
    (row,) = token_table([lengths(0, 10, 2, 4), lengths(1, 1, 3, 1)], [2])

    assert (row.padded, row.real, row.shared) == (56, 32, 21)
    assert row.gain == pytest.approx(56 / 21)


def test_a_batch_of_one_pads_the_shorter_answer_only():
    (row,) = token_table([lengths(0, 10, 2, 4), lengths(1, 1, 3, 1)], [1])

    # 2 * 14 + 2 * 4
    assert (row.padded, row.grouped) == (36, 36)


def test_pairs_of_like_length_share_a_batch_when_grouped():
    long, short = [lengths(n, 10, 2, 2) for n in (0, 2)], [lengths(n, 1, 1, 1) for n in (1, 3)]
    (row,) = token_table([long[0], short[0], long[1], short[1]], [2])

    # 4 * 12 + 4 * 2
    assert row.grouped == 56
    assert row.padded >= 56


def test_three_pairs_of_one_ranking_share_prompt_and_answers():
    sides = [("a", "b", 2, 3), ("a", "c", 2, 4), ("b", "c", 3, 4)]
    pairs = [lengths(0, 10, c, r, chosen=x, rejected=y) for x, y, c, r in sides]

    (row,) = token_table(pairs, [3])

    # the prompt once, and a, b and c once each: 10 + 2 + 3 + 4
    assert row.shared == 19


def test_the_same_answer_to_another_prompt_is_computed_again():
    pairs = [lengths(n, 5, 1, 2, chosen="yes", rejected="no") for n in (0, 1)]

    (row,) = token_table(pairs, [2])

    assert row.shared == 2 * (5 + 1 + 2)


def test_the_estimate_is_words_and_marks_or_a_quarter_of_the_bytes():
    # "Hello", ",", "world", "!" | 40 letters are one word but ten quarters | 6 bytes of 2 characters
    assert estimated_tokens(["Hello, world!", "x" * 40, "漢字", ""]) == [4, 10, 2, 0]


@pytest.fixture
def pairs_file(tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"q {n}" * n, "chosen": "yes", "rejected": "n" * n} for n in range(1, 9)]
    write_jsonl(path, rows)
    return path


def test_a_tokenizer_folder_counts_tokens_exactly(tmp_path, pairs_file, capsys):
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")

    code = main(["data", "tokens", str(pairs_file), "--tokenizer", str(tmp_path / "tokenizer"), "--json"])

    found = json.loads(capsys.readouterr().out)
    assert code == ExitCode.OK
    # one token a byte: prompts 3n, chosen 3 + stop, rejected n + stop; n = 1 .. 8
    assert found["rows"][0]["real"] == sum(2 * 3 * n + 4 + n + 1 for n in range(1, 9))
    assert found["rows"][0]["shared"] == sum(3 * n + 4 + n + 1 for n in range(1, 9))
    assert found["lengths"]["prompt"][-1] == 24


def test_long_pairs_are_left_out_and_counted(pairs_file, capsys):
    main(["data", "tokens", str(pairs_file), "--max-length", "8", "--batch", "4"])

    text = capsys.readouterr().out
    assert "pairs above 8 tokens left out" in text
    assert "estimated" in text


def test_a_folder_without_a_tokenizer_is_said_so(tmp_path, pairs_file, capsys):
    code = main(["data", "tokens", str(pairs_file), "--tokenizer", str(tmp_path)])

    assert code == ExitCode.USER_ERROR
    assert "tokenizer.json" in capsys.readouterr().err


def test_it_loads_neither_torch_nor_transformers(tmp_path, pairs_file):
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    script = (
        "import sys; from pipeline.cli.main import main; "
        f"main(['data', 'tokens', {str(pairs_file)!r}, '--tokenizer', {str(tmp_path / 'tokenizer')!r}]); "
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )

    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert ran.stdout.splitlines()[-1] == "[]"


def test_the_ratios_of_the_real_file(capsys):
    path = find_realdata("hh-rlhf", "harmless-base-test.jsonl.gz")

    main(["data", "tokens", str(path), "--json"])

    rows = {row["batch"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    # With a 16k tokenizer of its own: real / shared 1.574, padded / shared 4.00 at 8 pairs a batch.
    assert rows[8]["real"] / rows[8]["shared"] == pytest.approx(1.574, abs=0.05)
    assert rows[8]["gain"] == pytest.approx(4.0, abs=0.3)
