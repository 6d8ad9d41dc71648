"""RewardBench rows: a pair and its subset, or several right and wrong responses to one prompt."""

from __future__ import annotations

from dataclasses import replace

from reward.preferences.dialogue import read_prompt
from reward.preferences.notes import RowNotes
from reward.preferences.readers import fields
from reward.preferences.readers.build import comparison
from reward.preferences.readers.format import Format, Options, Row, has
from reward.preferences.readers.trl import read_explicit
from reward.preferences.records import PreferenceRecord, Vote, VoteKind

SIDES = ("chosen", "rejected")


def read_pair(row: Row, notes: RowNotes, options: Options) -> list[PreferenceRecord]:
    """Read a pair with the name of its subset."""
    subset = fields.text(row, "subset")
    found = read_explicit(row, notes, options)
    return [replace(record, meta={**record.meta, "subset": subset}) for record in found]


def read_many(row: Row, notes: RowNotes, _: Options) -> list[PreferenceRecord]:
    """Read several right and several wrong responses; responses of one side are not compared."""
    texts: dict[str, str] = {}
    for side in SIDES:
        for number, item in enumerate(fields.items(row, side)):
            texts[f"{side}[{number}]"] = fields.text({"text": item}, "text")
    prompt = read_prompt(row.get("prompt"), "prompt")
    right, wrong = ([name for name in texts if name.startswith(side)] for side in SIDES)
    # One vote a pair of sides: two right responses are not a tie that somebody judged.
    votes = [Vote(((one,), (other,)), VoteKind.STRICT) for one in right for other in wrong]
    meta = {"subset": fields.text(row, "subset")}
    return [comparison(prompt, texts, votes, notes, meta=meta)]


def _is_list(row: Row) -> bool:
    return all(isinstance(row[side], list) and row[side] for side in SIDES)


def _is_strings(row: Row) -> bool:
    return _is_list(row) and all(isinstance(text, str) for side in SIDES for text in row[side])


FORMATS = (
    Format(
        "rewardbench",
        "RewardBench rows: prompt, chosen, rejected and the subset",
        lambda row: has(row, "prompt", "subset", *SIDES) and not _is_strings(row),
        read_pair,
        "chosen is better than rejected; subset names the part of the benchmark",
        specificity=3,
    ),
    Format(
        "rewardbench-2",
        "RewardBench 2 rows: prompt, lists of chosen and rejected texts, and the subset",
        lambda row: has(row, "prompt", "subset", *SIDES) and _is_strings(row),
        read_many,
        "every chosen text is better than every rejected one",
        specificity=4,
    ),
)
