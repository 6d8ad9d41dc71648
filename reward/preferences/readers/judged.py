"""Rows where a judge names the better of two: Chatbot Arena, MT-Bench, PandaLM, LLMBar, AlpacaEval,
summarisation feedback, PKU-SafeRLHF, BeaverTails."""

from __future__ import annotations

import json
import re
from typing import Any

from reward.preferences.dialogue import cut_sides, read_messages
from reward.preferences.notes import RowNotes, RowRejected
from reward.preferences.readers import fields
from reward.preferences.readers.build import (
    comparison,
    outcome_of_word,
    unknown_choice,
    unpaired,
    vote_of,
)
from reward.preferences.readers.format import Format, Options, Row, has
from reward.preferences.records import Message, PreferenceRecord, Rating, Response

_ANNOTATOR_COLUMN = re.compile(r"annotator\d+")


def read_arena(row: Row, notes: RowNotes, _: Options) -> list[PreferenceRecord]:
    """Read two conversations and a winner; both bad is kept apart from a tie."""
    outcome = outcome_of_word(fields.text(row, "winner"), ("model_a", "a"), ("model_b", "b"))
    if outcome is None or outcome == "skip":
        raise unknown_choice(row["winner"], "winner")
    turn = fields.optional_number(row, "turn") or 1
    is_bench = str(row.get("judge", "")).startswith(("expert_", "author_", "gpt4"))
    sides = {
        name: read_messages(row.get(name), name)[: 2 * int(turn) if is_bench else None]
        for name in ("conversation_a", "conversation_b")
    }
    cut = cut_sides(sides, notes)
    if cut is None:
        return []
    sources = {f"conversation_{s}": fields.optional_text(row, f"model_{s}") for s in "ab"}
    judge = fields.optional_text(row, "judge")
    vote = vote_of(outcome, "conversation_a", "conversation_b", annotator=judge)
    name = str(row.get("question_id", ""))
    return [comparison(cut[0], cut[1], [vote], notes, sources=sources, id=name)]


def read_arena_one_hot(row: Row, notes: RowNotes, _: Options) -> list[PreferenceRecord]:
    """Read texts that are JSON lists of turns, and three columns of which exactly one is 1."""
    marks = {
        "first": fields.whole(row, "winner_model_a", (0, 1)),
        "second": fields.whole(row, "winner_model_b", (0, 1)),
        "tie": fields.whole(row, "winner_tie", (0, 1)),
    }
    if sum(marks.values()) != 1:
        raise RowRejected(
            "label_out_of_range", "winner_model_a", f"{sum(marks.values())} of the three winner columns are 1"
        )
    asked = _turns(row, "prompt")
    sides = {name: _interleaved(asked, _turns(row, name), name) for name in ("response_a", "response_b")}
    cut = cut_sides(sides, notes)
    if cut is None:
        return []
    outcome = next(name for name, mark in marks.items() if mark)
    sources = {f"response_{s}": fields.optional_text(row, f"model_{s}") for s in "ab"}
    return [
        comparison(cut[0], cut[1], [vote_of(outcome, "response_a", "response_b")], notes, sources=sources)
    ]


def _turns(row: Row, name: str) -> list[str]:
    text = fields.text(row, name)
    if not text.lstrip().startswith("["):
        return [text]
    try:
        turns = json.loads(text)
    except json.JSONDecodeError as error:
        raise RowRejected("parse_error", name, f"{name!r} is not a JSON list: {error.msg}") from error
    if not all(isinstance(turn, str) for turn in turns):
        raise RowRejected("wrong_type", name, f"a turn in {name!r} is not text")
    return list(turns)


def _interleaved(asked: list[str], answered: list[str], name: str) -> list[Message]:
    if len(asked) != len(answered):
        raise RowRejected("missing_field", name, f"{len(answered)} answers to {len(asked)} questions")
    messages: list[Message] = []
    for question, answer in zip(asked, answered, strict=True):
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return messages


def _with_input(row: Row) -> str:
    extra = fields.optional_text(row, "input")
    instruction = fields.optional_text(row, "instruction")
    return f"{instruction}\n\n{extra}" if instruction and extra else instruction or extra or ""


def read_pandalm(row: Row, notes: RowNotes, _: Options) -> list[PreferenceRecord]:
    """Read annotators that stand in columns; 1 and 2 name the response, 0 is a tie."""
    columns = sorted(name for name in row if _ANNOTATOR_COLUMN.fullmatch(name))
    votes = [
        vote_of(
            ("tie", "first", "second")[fields.whole(row, name, (0, 1, 2))],
            "response1",
            "response2",
            annotator=name,
        )
        for name in columns
    ]
    texts = {name: fields.text(row, name) for name in ("response1", "response2")}
    models = str(row.get("cmp_key", "")).split("_")
    sources = dict(zip(texts, models, strict=True)) if len(models) == 2 else None
    return [comparison(_with_input(row), texts, votes, notes, sources=sources, id=str(row.get("idx", "")))]


def read_llmbar(row: Row, notes: RowNotes, _: Options) -> list[PreferenceRecord]:
    """Read two outputs and the number, 1 or 2, of the better one."""
    texts = {name: fields.text(row, name) for name in ("output_1", "output_2")}
    outcome = {1: "first", 2: "second"}[fields.whole(row, "label", (1, 2))]
    return [comparison(_with_input(row), texts, [vote_of(outcome, "output_1", "output_2")], notes)]


def read_alpaca_eval(row: Row, notes: RowNotes, _: Options) -> list[PreferenceRecord]:
    """Read a preference between 1 (output_1) and 2 (output_2); 1.5 is a tie, and so is 0."""
    texts = {name: fields.text(row, name) for name in ("output_1", "output_2")}
    value = fields.optional_number(row, "preference")
    annotator = fields.optional_text(row, "annotator")
    if value is None:
        vote = vote_of("skip", "output_1", "output_2", annotator=annotator)
    elif value == 0 or value == 1.5:
        vote = vote_of("tie", "output_1", "output_2", annotator=annotator)
    else:
        fields.number(row, "preference", low=1, high=2)
        outcome = "first" if value < 1.5 else "second"
        strength = abs(value - 1.5) * 2
        vote = vote_of(outcome, "output_1", "output_2", annotator=annotator, strength=strength)
    sources = {f"output_{n}": fields.optional_text(row, f"generator_{n}") for n in (1, 2)}
    return [comparison(_with_input(row), texts, [vote], notes, sources=sources)]


def read_summaries(row: Row, notes: RowNotes, _: Options) -> list[PreferenceRecord]:
    """Read two summaries of a post and the index, 0 or 1, of the better one."""
    texts: dict[str, str] = {}
    sources: dict[str, str | None] = {}
    for number, item in enumerate(fields.items(row, "summaries")):
        item = fields.record(item, f"summaries[{number}]")
        texts[f"summaries[{number}]"] = fields.text(item, "text")
        sources[f"summaries[{number}]"] = fields.optional_text(item, "policy")
    if len(texts) != 2:
        raise RowRejected("missing_field", "summaries", f"two summaries are expected, not {len(texts)}")
    outcome = ("first", "second")[fields.whole(row, "choice", (0, 1))]
    extra = row.get("extra") if isinstance(row.get("extra"), dict) else {}
    vote = vote_of(
        outcome,
        *texts,
        annotator=fields.optional_text(row, "worker"),
        batch=fields.optional_text(row, "batch"),
        confidence=fields.optional_number(extra or {}, "confidence"),
    )
    info = fields.record(row.get("info"), "info")
    return [comparison(_post(info), texts, [vote], notes, sources=sources, id=str(info.get("id", "")))]


def read_summary_axes(row: Row, _: RowNotes, __: Options) -> list[PreferenceRecord]:
    """Read the ratings from 1 to 7 of one summary."""
    summary = fields.record(row.get("summary"), "summary")
    axes = fields.record(summary.get("axes"), "summary.axes")
    worker = fields.optional_text(row, "worker")
    ratings = tuple(
        Rating("summary", fields.number(axes, axis, low=1, high=7), (1.0, 7.0), axis, worker)
        for axis in axes
        if axes[axis] is not None
    )
    response = Response("summary", fields.text(summary, "text"), fields.optional_text(summary, "policy"))
    prompt = _post(fields.record(row.get("info"), "info"))
    return [PreferenceRecord(prompt, (response,), ratings=ratings)]


def _post(info: Row) -> str:
    title = fields.optional_text(info, "title")
    body = fields.optional_text(info, "post") or fields.optional_text(info, "article")
    if body is None:
        raise RowRejected("missing_field", "info.post", "the field 'info.post' is missing")
    return f"{title}\n\n{body}" if title else body


def read_pku(row: Row, notes: RowNotes, options: Options) -> list[PreferenceRecord]:
    """Read two responses with a helpfulness label and a safety label that may disagree.

    The option `axis` (better or safer) says which one to use.
    """
    texts = {name: fields.text(row, name) for name in ("response_0", "response_1")}
    better = fields.whole(row, "better_response_id", (0, 1))
    safer = fields.whole(row, "safer_response_id", (0, 1)) if "safer_response_id" in row else better
    axis = options.get("axis")
    if axis is None and better != safer:
        raise RowRejected(
            "direction_undeclared",
            "better_response_id",
            "the better and the safer response differ; map `axis: better` or `axis: safer`",
        )
    if axis not in (None, "better", "safer"):
        raise RowRejected("direction_undeclared", "axis", f"there is no axis {axis!r}; better or safer")
    chosen = safer if axis == "safer" else better
    vote = vote_of(("first", "second")[chosen], "response_0", "response_1")
    return [comparison(fields.text(row, "prompt"), texts, [vote], notes)]


def read_beavertails(row: Row, notes: RowNotes, _: Options) -> list[PreferenceRecord]:
    """Read one response and whether it is safe."""
    safe = fields.truth(row, "is_safe")
    return [unpaired(fields.text(row, "prompt"), fields.text(row, "response"), safe, notes)]


def _annotators(row: Row) -> bool:
    return any(_ANNOTATOR_COLUMN.fullmatch(name) for name in row)


def _has_axes(value: Any) -> bool:
    return isinstance(value, dict) and "axes" in value


FORMATS = (
    Format(
        "arena",
        "Chatbot Arena and MT-Bench conversations",
        lambda row: has(row, "winner", "conversation_a", "conversation_b"),
        read_arena,
        "winner names the better conversation; tie (bothbad) is kept apart from tie",
        specificity=4,
    ),
    Format(
        "arena-one-hot",
        "Chatbot Arena with three winner columns",
        lambda row: has(row, "response_a", "response_b", "winner_model_a", "winner_model_b", "winner_tie"),
        read_arena_one_hot,
        "the winner column that is 1 names the better side or a tie",
        specificity=4,
    ),
    Format(
        "pandalm",
        "PandaLM, annotators in columns",
        lambda row: has(row, "response1", "response2") and _annotators(row),
        read_pandalm,
        "1 means that response1 is better, 2 that response2 is, 0 a tie",
        specificity=4,
    ),
    Format(
        "llmbar",
        "LLMBar",
        lambda row: has(row, "input", "output_1", "output_2", "label"),
        read_llmbar,
        "label 1 means that output_1 is better, 2 that output_2 is",
        specificity=3,
    ),
    Format(
        "alpaca-eval",
        "AlpacaEval annotations",
        lambda row: has(row, "instruction", "output_1", "output_2", "preference"),
        read_alpaca_eval,
        "a preference below 1.5 means that output_1 is better; 1.5 and 0 are ties",
        specificity=4,
    ),
    Format(
        "summarize",
        "summarize-from-feedback comparisons",
        lambda row: has(row, "info", "summaries", "choice"),
        read_summaries,
        "choice is the index, counted from 0, of the better summary",
        specificity=4,
    ),
    Format(
        "summarize-axes",
        "summarize-from-feedback axis ratings",
        lambda row: has(row, "info", "summary") and _has_axes(row["summary"]),
        read_summary_axes,
        "ratings from 1 (worst) to 7 (best) of single summaries; no pairs",
        specificity=4,
    ),
    Format(
        "pku-saferlhf",
        "PKU-SafeRLHF",
        lambda row: has(row, "prompt", "response_0", "response_1", "better_response_id"),
        read_pku,
        "better_response_id is the index, counted from 0, of the better response",
        specificity=4,
    ),
    Format(
        "beavertails",
        "BeaverTails",
        lambda row: has(row, "prompt", "response", "is_safe"),
        read_beavertails,
        "is_safe true is a good response",
        specificity=4,
    ),
)
