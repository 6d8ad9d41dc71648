"""Reads prompts and demonstrations from JSON Lines, for every stage. No torch here.

A row that cannot be used is set aside with its line and the reason; nothing is lost in silence.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import DataError, Finding
from reward.preferences.lines import RawRow, TableForm, text_rows
from reward.preferences.notes import RowFinding, RowRejected
from reward.preferences.records import Prompt, prompt_group
from reward.preferences.textfile import data_suffix

MAX_SHOWN = 20
"Findings of one file that are shown; the rest is counted."
_ANSWER_FIELDS = ("completion", "response")
_ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class PromptRow:
    """One prompt of a file."""

    id: str
    "The row's own id, else a digest of the prompt; unique in the file."
    prompt: Prompt
    line: int
    meta: Mapping[str, Any] = field(default_factory=dict)
    "The row's other fields; `reference` is the answer of a row that had one."


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A prompt and the answer to learn."""

    prompt: Prompt
    response: str
    line: int

    @property
    def group(self) -> str:
        """Name that all demonstrations of one prompt share."""
        return prompt_group(self.prompt)


@dataclass(frozen=True, slots=True)
class RejectedRow:
    """A row that was set aside, and why."""

    line: int
    check: str
    "Stable name of the reason, such as empty_response."
    field: str
    message: str
    text: str
    "The row as the file holds it."

    def as_json(self) -> str:
        """Return one line of rejected_rows.jsonl."""
        row = {"line": self.line, "check": self.check, "field": self.field, "message": self.message}
        return json.dumps({**row, "row": self.text.encode("utf-8", "replace").decode()}, ensure_ascii=False)


def read_prompts(path: Path) -> list[PromptRow]:
    """Read a file of prompts: `{"prompt": text or messages}`, or `{"messages": [...]}`.

    Of messages that end with an assistant turn that turn is left out and kept as meta["reference"].

    Raises:
        DataError: the file cannot be read, holds no prompt, or rows cannot be used; each is named by line.
    """
    rows: list[PromptRow] = []
    rejects: list[RejectedRow] = []
    seen: Counter[str] = Counter()
    for raw in _raw_rows(path):
        try:
            rows.append(_prompt_row(raw, seen))
        except RowRejected as error:
            rejects.append(_rejected(raw, error.finding))
    if rejects:
        raise DataError.from_findings(findings_of(rejects, path))
    if not rows:
        raise DataError(f"{path.name} holds no prompt", where=str(path), code="empty-file")
    return rows


def read_demonstrations(path: Path) -> tuple[list[Demonstration], list[RejectedRow]]:
    """Read a file of demonstrations, and the rows of it that cannot be used.

    A row is `{"prompt": ..., "completion" or "response": ...}`, each text or messages, or
    `{"messages": [...]}` whose last turn is the answer.

    Raises:
        DataError: the file is missing, not text, or holds no usable row.
    """
    rows: list[Demonstration] = []
    rejects: list[RejectedRow] = []
    for raw in _raw_rows(path):
        try:
            prompt, response = _conversation(raw)
            if response is None:
                raise RowRejected("missing_response", "completion", "the row has no completion or response")
            rows.append(Demonstration(prompt, response, raw.line))
        except RowRejected as error:
            rejects.append(_rejected(raw, error.finding))
    if not rows:
        found = findings_of(rejects, path)
        raise DataError.from_findings(
            [Finding(f"{path.name} holds no usable row", str(path), _ROW_HINT, "no-usable-row"), *found]
        )
    return rows, rejects


def findings_of(rejects: Sequence[RejectedRow], path: Path) -> list[Finding]:
    """Turn rejected rows into findings with file and line, at most MAX_SHOWN and a count of the rest."""
    found = [Finding(row.message, f"{path}:{row.line}", _ROW_HINT, row.check) for row in rejects[:MAX_SHOWN]]
    if len(rejects) > MAX_SHOWN:
        found.append(Finding(f"and {len(rejects) - MAX_SHOWN} more rows", str(path), "", "more"))
    return found


def split_by_prompt(
    rows: Sequence[Demonstration], *, share: float, seed: int
) -> tuple[list[Demonstration], list[Demonstration]]:
    """Divide demonstrations into training and held-out, all rows of one prompt on one side.

    Which prompts are held out depends on the prompts and the seed, not on the order of the rows.
    At least one prompt is held out when there are two, unless share is 0.
    """
    sizes = Counter(row.group for row in rows)
    ranked = sorted(sizes, key=lambda group: hashlib.sha256(f"{seed}:{group}".encode()).hexdigest())
    wanted, held_out = share * len(rows), set[str]()
    for group in ranked[:-1]:
        if wanted <= 0:
            break
        held_out.add(group)
        wanted -= sizes[group]
    train = [row for row in rows if row.group not in held_out]
    return train, [row for row in rows if row.group in held_out]


def too_many_rejects(
    rejects: Sequence[RejectedRow], num_rows: int, max_share: float, path: Path
) -> list[Finding]:
    """Return nothing while rejected rows are at most max_share of all rows, else what is wrong with them."""
    share = len(rejects) / max(1, len(rejects) + num_rows)
    if share <= max_share:
        return []
    total = len(rejects) + num_rows
    message = f"{len(rejects)} of {total} rows cannot be used ({share:.1%}, allowed {max_share:.1%})"
    hint = "mend the rows, or raise max_rejected_share"
    return [Finding(message, str(path), hint, "too-many-rejected-rows"), *findings_of(rejects, path)]


def write_rejects(rejects: Sequence[RejectedRow], path: Path) -> Path:
    """Write rejected rows as JSON Lines."""
    path.write_text("".join(row.as_json() + "\n" for row in rejects), encoding="utf-8")
    return path


_ROW_HINT = (
    '{"prompt": "...", "completion": "..."} or {"messages": [{"role": "user", "content": "..."}, ...]}'
)


def _raw_rows(path: Path) -> Iterator[RawRow]:
    _, rows = text_rows(path, data_suffix(path), TableForm())
    yield from rows


def _rejected(raw: RawRow, finding: RowFinding) -> RejectedRow:
    return RejectedRow(raw.line, finding.check, finding.field, finding.message, raw.text)


def _prompt_row(raw: RawRow, seen: Counter[str]) -> PromptRow:
    prompt, answer = _conversation(raw)
    row = raw.value
    own = row.get("id")
    name = str(own) if isinstance(own, str | int) and str(own) else prompt_group(prompt)
    seen[name] += 1
    meta = {key: value for key, value in row.items() if key not in ("id", "prompt", "messages")}
    if answer is not None:
        meta["reference"] = answer
    return PromptRow(name if seen[name] == 1 else f"{name}-{seen[name]}", prompt, raw.line, meta)


def _conversation(raw: RawRow) -> tuple[Prompt, str | None]:
    """Split a row into its prompt and its answer, None where it has none."""
    if raw.problem is not None:
        raise RowRejected(raw.problem.check, raw.problem.field, raw.problem.message)
    row = raw.value
    if not isinstance(row, dict):
        raise RowRejected("not_an_object", "", f"a row must be an object, not {_shown(row)}")
    if "prompt" in row:
        return _prompt(row["prompt"]), _answer(row)
    if "messages" not in row:
        raise RowRejected("missing_prompt", "prompt", f"no prompt and no messages among {sorted(row)[:8]}")
    turns = _messages(row["messages"], "messages")
    if turns[-1]["role"] != "assistant":
        return _prompt(turns, "messages"), None
    if len(turns) == 1:
        raise RowRejected("missing_prompt", "messages", "the answer has no turn before it")
    return _prompt(turns[:-1], "messages"), _checked_answer(turns[-1]["content"], "messages")


def _prompt(value: Any, name: str = "prompt") -> Prompt:
    if isinstance(value, str):
        if not value.strip():
            raise RowRejected("empty_prompt", name, "the prompt is empty")
        return value
    turns = _messages(value, name)
    if turns[-1]["role"] == "assistant":
        raise RowRejected("bad_role", name, "the prompt ends with an assistant turn")
    if not turns[-1]["content"].strip():
        raise RowRejected("empty_prompt", name, "the last turn of the prompt is empty")
    return turns


def _answer(row: Mapping[str, Any]) -> str | None:
    given = [name for name in _ANSWER_FIELDS if name in row]
    if not given:
        return None
    if len(given) > 1:
        raise RowRejected("two_responses", given[1], "the row has both completion and response")
    value = row[given[0]]
    if isinstance(value, str):
        return _checked_answer(value, given[0])
    turns = _messages(value, given[0])
    if len(turns) != 1 or turns[0]["role"] != "assistant":
        raise RowRejected("bad_role", given[0], f"{given[0]} must be one assistant turn")
    return _checked_answer(turns[0]["content"], given[0])


def _checked_answer(text: str, name: str) -> str:
    if not text.strip():
        raise RowRejected("empty_response", name, "the answer is empty")
    return text


def _messages(value: Any, name: str) -> list[dict[str, str]]:
    if not isinstance(value, list | tuple) or not value:
        raise RowRejected(
            "wrong_type", name, f"{name} must be text or a list of messages, not {_shown(value)}"
        )
    for number, turn in enumerate(value, start=1):
        if not isinstance(turn, dict) or not isinstance(turn.get("content"), str):
            raise RowRejected(
                "wrong_type", name, f"message {number} has no content that is text: {_shown(turn)}"
            )
        if turn.get("role") not in _ROLES:
            message = f"message {number} has the role {turn.get('role')!r}, not one of {', '.join(_ROLES)}"
            raise RowRejected("bad_role", name, message)
        if turn.get("tool_calls"):
            raise RowRejected("tool_calls", name, f"message {number} calls tools, which no stage trains")
    return [{"role": turn["role"], "content": turn["content"]} for turn in value]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
