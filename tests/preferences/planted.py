"""A clean file of judged comparisons, and faults planted into it one at a time."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NUM_ROWS = 60
PLANTED_ROW = 30
"Place of the row that a fault is planted in; its line is one more."

THINGS = [
    "bridge",
    "kettle",
    "violin",
    "garden",
    "ladder",
    "window",
    "candle",
    "basket",
    "anchor",
    "blanket",
    "compass",
    "lantern",
]
PLACES = [
    "harbour",
    "kitchen",
    "station",
    "library",
    "workshop",
    "museum",
    "orchard",
    "balcony",
    "cellar",
    "market",
]
ENDS = (
    "without any tools",
    "before the rain comes",
    "when nobody helps",
    "on a small budget",
    "in one evening",
)


def clean_rows(count: int = NUM_ROWS, *, seed: int = 0) -> list[dict[str, Any]]:
    """Return judged comparisons of this project's own form in which no check finds anything.

    Six annotators, two votes a row from different people, both orders on the screen equally often,
    no length, source or position advantage, different prompts and responses throughout.
    """
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        thing, place, end = rng.choice(THINGS), rng.choice(PLACES), rng.choice(ENDS)
        prompt = f"Item {number * 7919 % 10007}: how would you mend a {thing} at the {place} {end}?"
        texts = [_answer(rng, number, side) for side in range(2)]
        better = number % 2
        people = rng.sample([f"rater-{who}" for who in range(6)], 2)
        votes = [
            _vote(rng, person, better if rng.random() < 0.8 else 1 - better, first=(number + place_) % 2)
            for place_, person in enumerate(people)
        ]
        rows.append(
            {
                "id": f"c-{number}",
                "prompt": [{"role": "user", "content": prompt}],
                "responses": [
                    {"id": f"r{side}", "text": text, "source": f"model-{(number // 2 + side) % 2}"}
                    for side, text in enumerate(texts)
                ],
                "votes": votes,
            }
        )
    return rows


def _answer(rng: random.Random, number: int, side: int) -> str:
    words = [rng.choice(THINGS + PLACES) for _ in range(12)]
    return f"Answer {number}-{side}: first look at the {' then the '.join(words)}."


def _vote(rng: random.Random, person: str, better: int, *, first: int) -> dict[str, Any]:
    return {
        "annotator": person,
        "tiers": [[f"r{better}"], [f"r{1 - better}"]],
        "kind": "strict",
        "shown_order": [f"r{first}", f"r{1 - first}"],
        "seconds": round(rng.uniform(15, 40), 1),
    }


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    """Write rows; a string is written as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogatepass")
    return path


@dataclass(frozen=True)
class Plant:
    """A fault in one row, and what must be said of it."""

    name: str
    check: str
    field: str
    change: Callable[[dict[str, Any]], Any]
    rejects: bool = True


def _set(*path: Any, value: Any) -> Callable[[dict[str, Any]], Any]:
    def change(row: dict[str, Any]) -> Any:
        place: Any = row
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value
        return row

    return change


def _drop(*path: Any) -> Callable[[dict[str, Any]], Any]:
    def change(row: dict[str, Any]) -> Any:
        place: Any = row
        for step in path[:-1]:
            place = place[step]
        del place[path[-1]]
        return row

    return change


def _text(value: str) -> Callable[[dict[str, Any]], Any]:
    return _set("responses", 1, "text", value=value)


def _add(suffix: str) -> Callable[[dict[str, Any]], Any]:
    def change(row: dict[str, Any]) -> Any:
        row["responses"][1]["text"] += suffix
        return row

    return change


def _twin(row: dict[str, Any], *, text: Callable[[str], str] = str) -> Any:
    row["responses"][1]["text"] = text(row["responses"][0]["text"])
    return row


def _turns(*roles: str) -> Callable[[dict[str, Any]], Any]:
    return _set("prompt", value=[{"role": role, "content": f"{role} says something"} for role in roles])


LONG_ENGLISH = (
    "You should look at the handle and see what it is that is not right, and then it is time to "
    "ask for the parts that you have to buy, as they are not in the box that was sent to you."
)
LONG_GERMAN = (
    "Man muss sich zuerst den Griff ansehen, und dann ist es nicht schwer, die Teile für das Gerät zu "
    "finden, die auch mit dem alten Werkzeug passen, wie es auf der Seite von dem Laden steht."
)


def _german(row: dict[str, Any]) -> Any:
    row["prompt"][0]["content"] = LONG_ENGLISH
    row["responses"][1]["text"] = LONG_GERMAN
    return row


PLANTS = [
    Plant("cut line", "parse_error", "", lambda row: json.dumps(row)[:-20]),
    Plant("not JSON at all", "parse_error", "", lambda row: "id;prompt;chosen"),
    Plant("NaN", "parse_error", "", lambda row: json.dumps(row)[:-1] + ', "margin": NaN}'),
    Plant("a list for a row", "wrong_type", "", lambda row: [1, 2]),
    Plant("no prompt", "missing_field", "prompt", _drop("prompt")),
    Plant("no responses", "missing_field", "responses", _drop("responses")),
    Plant("an empty list of responses", "missing_field", "responses",
          lambda row: {**row, "responses": [], "votes": []}),
    Plant("response without text", "missing_field", "text", _drop("responses", 1, "text")),
    Plant("response is a number", "wrong_type", "text", _text(7)),  # type: ignore[arg-type]
    Plant("response is true", "wrong_type", "text", _text(True)),  # type: ignore[arg-type]
    Plant("prompt is a number", "wrong_type", "prompt", _set("prompt", value=3)),
    Plant("content is an image", "wrong_type", "prompt[0].content",
          _set("prompt", 0, "content", value=[{"type": "image"}])),
    Plant("empty response", "empty_response", "r1", _text("")),
    Plant("blank response", "empty_response", "r1", _text(" \n\t ")),
    Plant("two equal responses", "identical_responses", "r1", _twin),
    Plant("equal but for blanks", "identical_responses", "r1",
          lambda row: _twin(row, text=lambda text: text.replace(" ", "  ") + " ")),
    Plant("equal but for full-width letters", "identical_responses", "r1",
          lambda row: _twin(row, text=lambda text: text.replace("A", "Ａ"))),
    Plant("nearly equal responses", "near_identical_responses", "r1",
          lambda row: _twin(row, text=lambda text: text.replace("first", "once")), rejects=False),
    Plant("chat token", "special_token", "r1", _add(" <|im_end|>")),
    Plant("end of sequence token", "special_token", "r1", _add("</s>")),
    Plant("control token in the prompt", "special_token", "prompt[0]",
          _set("prompt", 0, "content", value="Say [INST] twice, please, and mend it.")),
    Plant("half a character", "lone_surrogate", "r1", lambda row: _half(row)),
    Plant("control character", "control_or_zero_width", "r1", _add("\x07"), rejects=False),
    Plant("zero-width space", "control_or_zero_width", "r1", _add("\u200b"), rejects=False),
    Plant("text direction override", "control_or_zero_width", "r1", _add("\u202e"), rejects=False),
    Plant("decoded wrongly", "mojibake", "r1", _add(" cafÃ© again."), rejects=False),
    Plant("replacement character", "mojibake", "r1", _add(" caf\ufffd again."), rejects=False),
    Plant("turn pasted into a turn", "role_token_in_text", "r1", _add(" Human: and then?"), rejects=False),
    Plant("assistant begins", "role_order", "prompt", _turns("assistant", "user")),
    Plant("system in the middle", "role_order", "prompt", _turns("user", "system", "user")),
    Plant("unknown role", "role_order", "prompt[0].role", _turns("robot")),
    Plant("no user", "role_order", "prompt", _turns("system")),
    Plant("user twice", "role_order", "prompt", _turns("user", "user"), rejects=False),
    Plant("stopped at the limit", "truncated", "r1", _set("responses", 1, "finish", value="length"),
          rejects=False),
    Plant("cell of 32,767 characters", "truncated", "r1", lambda row: _text(_long(32_767))(row),
          rejects=False),
    Plant("cell of 50,000 characters", "truncated", "r1", lambda row: _text(_long(50_000))(row),
          rejects=False),
    Plant("unknown response in a vote", "rank_invalid", "votes[0].tiers",
          _set("votes", 0, "tiers", value=[["r1"], ["r7"]])),
    Plant("a response ranked twice", "rank_invalid", "votes[0].tiers",
          _set("votes", 0, "tiers", value=[["r1"], ["r0", "r1"]])),
    Plant("strict without an order", "rank_invalid", "votes[0].tiers",
          _set("votes", 0, "tiers", value=[["r1", "r0"]])),
    Plant("two responses with one id", "rank_invalid", "responses", _set("responses", 1, "id", value="r0")),
    Plant("unknown kind of vote", "label_out_of_range", "votes[1].kind",
          _set("votes", 1, "kind", value="hm")),
    Plant("shown order names a stranger", "rank_invalid", "votes[0].shown_order",
          _set("votes", 0, "shown_order", value=["r0", "x"])),
    Plant("seconds in words", "wrong_type", "seconds", _set("votes", 0, "seconds", value="a minute")),
    Plant("rating off its scale", "label_out_of_range", "value",
          _set("ratings", value=[{"response": "r0", "value": 9, "scale": [1, 5]}])),
    Plant("rating without a direction", "direction_undeclared", "ratings[0].scale",
          _set("ratings", value=[{"response": "r0", "value": 3, "scale": [5]}])),
    Plant("e-mail address", "pii", "r1", _add(" Write to jo.doe@example.org now."), rejects=False),
    Plant("phone number", "pii", "r1", _add(" Call (415) 555-0134 now."), rejects=False),
    Plant("card number", "pii", "r1", _add(" Pay with 4539 1488 0343 6467 now."), rejects=False),
    Plant("bank account", "pii", "r1", _add(" To DE89 3704 0044 0532 0130 00 now."), rejects=False),
    Plant("address on the net", "pii", "r1", _add(" At 192.168.17.4 it runs."), rejects=False),
    Plant("access key", "pii", "r1", _add(" Use ghp_" + "a1B2" * 9 + " now."), rejects=False),
    Plant("social security number", "pii", "r1", _add(" Mine is 512-44-1289 now."), rejects=False),
    Plant("another language", "language_mix", "r1", _german, rejects=False),
]  # fmt: skip


def _half(row: dict[str, Any]) -> str:
    row["responses"][1]["text"] += " \ud83d"
    return json.dumps(row, ensure_ascii=True)


def _long(count: int) -> str:
    return ("mend it well " * 5000)[: count - 1] + "."
