"""What can be made of preference records besides pairs: dialogues, demonstrations, prompts. No torch here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from reward.preferences.pairs import pairs_of
from reward.preferences.records import Message, PreferenceRecord, Prompt
from reward.preferences.split import split_groups
from reward.preferences.writers import write_records

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Derived:
    """Every derived file as rows; `held_out_*` share no prompt with the others."""

    text: list[Row]
    demonstrations: list[Row]
    prompts: list[Row]
    preferences: list[PreferenceRecord]
    held_out_demonstrations: list[Row]
    held_out_prompts: list[Row]
    held_out_preferences: list[PreferenceRecord]

    def counts(self) -> dict[str, float]:
        """Return the number of rows of each file."""
        return {f"num_{name}": float(len(getattr(self, name))) for name in self.__slots__}


def derive(records: Sequence[PreferenceRecord], *, held_out_share: float, seed: int) -> Derived:
    """Split records by prompt and derive every file.

    Text is each dialogue with each of its responses, so that a base model learns the language but
    not what people prefer. Demonstrations are the preferred responses.

    Raises:
        DataError: there are too few prompts to split.
    """
    train_rows, held_out_rows = split_groups(records, held_out_share, seed)
    train, held_out = [records[i] for i in train_rows], [records[i] for i in held_out_rows]
    if not train or not held_out:
        raise DataError(
            f"{len(records)} comparisons cannot be split by prompt into two parts",
            hint="give more prompts, or change held_out_share",
            code="too-few-prompts",
        )
    return Derived(
        text=[dialogue(record.prompt, response.text) for record in train for response in record.responses],
        demonstrations=demonstrations(train),
        prompts=prompts(train),
        preferences=train,
        held_out_demonstrations=demonstrations(held_out),
        held_out_prompts=prompts(held_out),
        held_out_preferences=held_out,
    )


def dialogue(prompt: Prompt, response: str) -> Row:
    """Return a document of a prompt and one response, as messages."""
    turns: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [*prompt]
    return {"text": [*turns, {"role": "assistant", "content": response}]}


def demonstrations(records: Iterable[PreferenceRecord]) -> list[Row]:
    """Return the response that people preferred to every other; a record without one gives none."""
    rows: list[Row] = []
    for record in records:
        best = _preferred(record)
        if best is not None:
            rows.append({"prompt": record.prompt, "completion": best})
    return rows


def prompts(records: Iterable[PreferenceRecord]) -> list[Row]:
    """Return each prompt once, in the order of the file."""
    first: dict[str, Prompt] = {}
    for record in records:
        first.setdefault(record.group, record.prompt)
    return [{"prompt": prompt} for prompt in first.values()]


def write_derived(derived: Derived, folder: Path) -> dict[str, Path]:
    """Write every file as JSON Lines; return its path by role."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{name}.jsonl" for name in derived.__slots__}
    for name, path in paths.items():
        if name.endswith("preferences"):
            write_records(path, getattr(derived, name))
        else:
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in getattr(derived, name)]
            path.write_text("".join(lines), encoding="utf-8")
    return paths


def _preferred(record: PreferenceRecord) -> str | None:
    pairs = list(pairs_of(record))
    beaten: dict[str, int] = {}
    for pair in pairs:
        if pair.label > 0.5:
            beaten[pair.chosen] = beaten.get(pair.chosen, 0) + 1
    others = len({response.text for response in record.responses}) - 1
    return next((text for text, wins in beaten.items() if wins == others > 0), None)
