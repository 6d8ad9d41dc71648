"""The known facts of the public files, as `triptych data check` itself reports them."""

from __future__ import annotations

import gzip
import io
import json
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.main import main
from reward.preferences.aggregation import Rule, aggregate
from reward.preferences.agreement import gold_agreement
from reward.preferences.agreement_summary import summarise_agreement
from reward.preferences.inspection import Inspection, inspect_file
from reward.preferences.writers import read_records
from tests.realdata import find_realdata

TIERS = {"a": [["a"], ["b"]], "b": [["b"], ["a"]], "tie": [["a", "b"]]}


def check(path: Path, folder: Path, *words: str) -> dict[str, Any]:
    """Run the command as a person does and return what it printed as JSON."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        main(["data", "check", str(path), "--json", "--out", str(folder), *words])
    return json.loads(printed.getvalue())


def result(report: dict[str, Any], name: str) -> dict[str, Any]:
    return next(check for check in report["checks"] if check["id"] == name)


@pytest.fixture(scope="module")
def harmless(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = find_realdata("hh-rlhf", "harmless-base-test.jsonl.gz")
    folder = tmp_path_factory.mktemp("harmless")
    (folder / "settings.yaml").write_text("num_examples: 20\n")
    return check(path, folder, "--settings", str(folder / "settings.yaml"))


def test_hh_rlhf_every_bad_line_is_named(harmless: dict[str, Any]) -> None:
    lines: dict[str, list[int]] = {}
    for reject in harmless["rejects"]:
        lines.setdefault(reject["check"], []).append(reject["line"])

    assert lines == {
        "empty_response": [87, 517, 926, 1104],
        "prompt_mismatch": [1255, 1689, 1951, 1953, 2037],
    }
    assert (harmless["rows"]["read"], harmless["rows"]["accepted"]) == (2312, 2303)
    assert harmless["format"] == "hh-rlhf"


def test_hh_rlhf_lines_with_a_broken_role_order_are_shown(harmless: dict[str, Any]) -> None:
    order = result(harmless, "role_order")

    expected = [668, 764, 1255, 1320, 1689, 1850, 1951, 1953, 2037]
    assert [example["line"] for example in order["examples"]] == expected
    assert order["count"] == 9


def test_hh_rlhf_the_longer_side_is_preferred_in_44_5_percent(harmless: dict[str, Any]) -> None:
    length = result(harmless, "length_bias")

    assert round(harmless["longer_share"], 3) == 0.445
    # Pairs of equal length prefer neither: 2,303 valid pairs less those.
    assert 2250 < length["of"] <= 2303
    assert length["count"] / length["of"] == pytest.approx(harmless["longer_share"], abs=1e-9)


def read_lines(name: str) -> Iterator[dict[str, Any]]:
    with gzip.open(find_realdata("ukpconvarg1", f"ukp_{name}.jsonl.gz"), "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


@pytest.fixture(scope="module")
def ukp(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The 84,445 votes as comparisons, and the authors' gold labels as comparisons.

    Some arguments stand in the data twice under two names. People judged them as two, so each text
    gets its argument's name at the end; names are equally long, so that no text overtakes another.
    """
    texts = {row["id"]: f"{row['text']} [{row['id'][-9:]:>9}]" for row in read_lines("arguments")}
    topics = {row["id"]: row["topic"] for row in read_lines("arguments")}
    votes: dict[str, list[dict[str, Any]]] = {}
    for vote in read_lines("votes"):
        votes.setdefault(vote["pair"], []).append(
            {
                "annotator": vote["annotator"],
                "tiers": TIERS[vote["choice"]],
                "kind": "tie" if vote["choice"] == "tie" else "strict",
                "seconds": vote["seconds"],
                "submitted_at": vote["submitted_at"],
            }
        )
    folder = tmp_path_factory.mktemp("ukp")
    people, gold = folder / "people.jsonl", folder / "gold.jsonl"
    with people.open("w") as by_people, gold.open("w") as by_authors:
        for pair in read_lines("pairs"):
            responses = [{"id": side, "text": texts[pair[side]]} for side in ("a", "b")]
            record = {"id": pair["id"], "prompt": topics[pair["a"]], "responses": responses}
            by_people.write(json.dumps({**record, "votes": votes[pair["id"]]}) + "\n")
            if pair["gold"] in ("a", "b"):
                choice = {"tiers": TIERS[pair["gold"]], "kind": "strict"}
                by_authors.write(json.dumps({**record, "votes": [choice]}) + "\n")
    return people, gold


@pytest.fixture(scope="module")
def judged(ukp: tuple[Path, Path]) -> Inspection:
    return inspect_file(ukp[0])


def test_ukp_agreement_of_84445_votes_is_exact(ukp: tuple[Path, Path], tmp_path: Path) -> None:
    report = check(ukp[0], tmp_path)
    agreement = report["agreement"]

    assert (agreement["votes"], agreement["items"]) == (84_445, 16_927)
    assert report["rows"]["rejected"] == 0
    assert agreement["alpha_nominal"]["value"] == pytest.approx(0.2667578, abs=1e-7)
    assert agreement["alpha_interval"]["value"] == pytest.approx(0.3696107, abs=1e-7)
    assert agreement["alpha_decisive"]["value"] == pytest.approx(0.4349598, abs=1e-7)
    assert round(agreement["vote_mix"]["tie"], 3) == 0.226
    assert round(agreement["unanimous"], 3) == 0.197


def test_ukp_every_agreement_statistic_takes_less_than_a_second(judged: Inspection) -> None:
    before = time.process_time()
    found = summarise_agreement(judged.votes, seed=0)
    seconds = time.process_time() - before

    assert found["alpha_nominal"]["value"] == pytest.approx(0.2667578, abs=1e-7)
    # CPU seconds, the intervals of 1,000 draws included.
    assert seconds < 1, f"{seconds:.2f} s"


def test_ukp_majority_of_votes_agrees_with_the_gold_labels(judged: Inspection) -> None:
    gold = [row["gold"] for row in read_lines("pairs")]
    known = [place for place, label in enumerate(gold) if label]

    # Tallies are votes for the first response, for neither and for the second.
    share = gold_agreement(judged.votes.tallies()[known], [("a", "tie", "b").index(gold[n]) for n in known])

    assert round(share, 3) == 0.890


def test_ukp_labels_by_dawid_skene_meet_the_authors_more_often_than_majorities(
    ukp: tuple[Path, Path],
) -> None:
    # The authors made their labels by another estimate of who errs (MACE), so this compares like with like.
    gold = {row["id"]: row["gold"] for row in read_lines("pairs")}
    records, _ = read_records(ukp[0])
    met = {rule: 0 for rule in (Rule.MAJORITY, Rule.DAWID_SKENE)}
    for rule in met:
        for record, pair in zip(records, aggregate(records, rule), strict=True):
            said = "tie" if pair.tie else next(r.id for r in record.responses if r.text == pair.chosen)
            # Two leaders of a majority are nobody's answer.
            met[rule] += said == gold[record.id] and (pair.label != 0.5 or pair.tie)
    known = sum(label is not None for label in gold.values())

    assert known == 16_081
    assert met[Rule.MAJORITY] / known == pytest.approx(0.84, abs=0.03)
    assert met[Rule.DAWID_SKENE] / known > 0.91


def test_ukp_circles_and_lengths_of_the_gold_labels(ukp: tuple[Path, Path], tmp_path: Path) -> None:
    report = check(ukp[1], tmp_path)
    cycle, length = result(report, "cycle"), result(report, "length_bias")

    assert (cycle["of"], cycle["measured"]["components"], cycle["count"]) == (12_792, 33, 9_522)
    assert round(length["count"] / 12_792, 3) == 0.744
