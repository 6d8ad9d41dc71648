"""Rows as other trainers want them: LLaMA-Factory, axolotl, ms-swift, NeMo-Aligner, TRL stepwise."""

from __future__ import annotations

import re

from reward.preferences.dialogue import cut_sides, note_prompt_order, read_messages, read_prompt
from reward.preferences.notes import RowNotes, RowRejected
from reward.preferences.readers import fields
from reward.preferences.readers.build import unpaired
from reward.preferences.readers.format import Format, Options, Row, has
from reward.preferences.readers.trl import pair_record
from reward.preferences.records import Message, PreferenceRecord, Prompt, Rating, Response, vote_from_scores

_NEMO_TURN = re.compile(r"<extra_id_[01]>(System|User|Assistant)\n")
_NEMO_END = re.compile(r"\s*<extra_id_[12]>\s*\Z")
_NEMO_AXES = (None, None, None, None, "helpfulness", "correctness", "coherence", "complexity", "verbosity")
_QUESTION_FIELDS = ("instruction", "question", "input")


def read_named_prompt(row: Row, notes: RowNotes, _: Options) -> list[PreferenceRecord]:
    """Read a row whose prompt is called instruction (with input, system, history), question or input."""
    prompt = note_prompt_order(_instruction(row), "prompt", notes)
    names = ("chosen_response", "rejected_response") if "chosen_response" in row else ("chosen", "rejected")
    chosen, rejected = (fields.text_or_messages(row, name) for name in names)
    return [pair_record(prompt, chosen, rejected)]


def _instruction(row: Row) -> Prompt:
    parts = [fields.optional_text(row, name) for name in _QUESTION_FIELDS]
    asked = "\n\n".join(part for part in parts if part)
    if not asked:
        raise RowRejected("missing_field", "instruction", "there is no instruction, question or input")
    system = fields.optional_text(row, "system")
    history = row.get("history") or []
    if not system and not history:
        return asked
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    for number, turn in enumerate(history):
        if not isinstance(turn, list) or len(turn) != 2:
            raise RowRejected("wrong_type", f"history[{number}]", "a question and an answer are expected")
        messages += [
            {"role": "user", "content": str(turn[0])},
            {"role": "assistant", "content": str(turn[1])},
        ]
    return [*messages, {"role": "user", "content": asked}]


def read_shared_messages(row: Row, notes: RowNotes, _: Options) -> list[PreferenceRecord]:
    """Read a dialogue that both sides go on from, with one message a side."""
    name = "conversations" if "conversations" in row else "messages"
    messages = read_messages(row.get(name), name)
    if isinstance(row.get("system"), str) and row["system"]:
        messages = [{"role": "system", "content": row["system"]}, *messages]
    prompt = note_prompt_order(messages, name, notes)
    chosen, rejected = (fields.text_or_messages(row, side) for side in ("chosen", "rejected"))
    return [pair_record(prompt, chosen, rejected)]


def read_tagged_messages(row: Row, notes: RowNotes, _: Options) -> list[PreferenceRecord]:
    """Read a dialogue whose last turn is judged good or bad."""
    name = "conversations" if "conversations" in row else "messages"
    tag = "kto_tag" if "kto_tag" in row else "label"
    cut = cut_sides({name: read_messages(row.get(name), name)}, notes)
    if cut is None:
        return []
    return [unpaired(cut[0], cut[1][name], fields.truth(row, tag), notes)]


def read_two_dialogues(row: Row, notes: RowNotes, _: Options) -> list[PreferenceRecord]:
    """Read a whole dialogue a side, under chosen_messages and rejected_messages."""
    names = ("chosen_messages", "rejected_messages")
    cut = cut_sides({name: read_messages(row.get(name), name) for name in names}, notes)
    return [] if cut is None else [pair_record(cut[0], cut[1][names[0]], cut[1][names[1]])]


def read_swift(row: Row, notes: RowNotes, _: Options) -> list[PreferenceRecord]:
    """Read messages that end in the chosen answer, and the rejected answer or dialogue beside them."""
    chosen = read_messages(row.get("messages"), "messages")
    if "rejected_messages" in row:
        sides = {
            "messages": chosen,
            "rejected_messages": read_messages(row["rejected_messages"], "rejected_messages"),
        }
    else:
        answer = {"role": "assistant", "content": fields.text(row, "rejected_response")}
        sides = {"messages": chosen, "rejected_response": [*chosen[:-1], answer]}
    cut = cut_sides(sides, notes)
    return [] if cut is None else [pair_record(cut[0], *(cut[1][name] for name in sides))]


def read_nemo_aligner(row: Row, notes: RowNotes, _: Options) -> list[PreferenceRecord]:
    """Read a prompt in NeMo's turn marks; the mark that ends a response is taken off."""
    prompt = fields.text(row, "prompt")
    parsed = _nemo_messages(prompt, "prompt", open_end=True) if _NEMO_TURN.match(prompt) else None
    chosen, rejected = (
        _NEMO_END.sub("", fields.text(row, name)).strip() for name in ("chosen_response", "rejected_response")
    )
    shown = read_prompt(prompt, "prompt") if parsed is None else parsed
    return [pair_record(note_prompt_order(shown, "prompt", notes), chosen, rejected)]


def read_nemo_lines(rows: list[Row], notes: RowNotes, _: Options) -> list[PreferenceRecord]:
    """Read two lines as one pair: the first is better."""
    if len(rows) != 2:
        raise RowRejected("missing_field", "text", "the line has no partner: chosen and rejected alternate")
    sides = {
        name: _nemo_messages(fields.text(row, "text"), f"text ({name})")
        for name, row in zip(("chosen", "rejected"), rows, strict=True)
    }
    cut = cut_sides(sides, notes)
    return [] if cut is None else [pair_record(cut[0], cut[1]["chosen"], cut[1]["rejected"])]


def _read_nemo_line(row: Row, notes: RowNotes, options: Options) -> list[PreferenceRecord]:
    return read_nemo_lines([row], notes, options)


def read_nemo_ratings(rows: list[Row], notes: RowNotes, _: Options) -> list[PreferenceRecord]:
    """Read neighbouring dialogues of one prompt with nine numbers each; helpfulness decides, -100 is none."""
    responses: list[Response] = []
    ratings: list[Rating] = []
    prompt: list[Message] = []
    for number, row in enumerate(rows):
        cut = cut_sides({"text": _nemo_messages(fields.text(row, "text"), "text")}, notes)
        if cut is None:
            return []
        prompt, name = cut[0], f"response[{number}]"
        responses.append(Response(name, cut[1]["text"]))
        for axis, value in zip(_NEMO_AXES, fields.items(row, "label"), strict=False):
            if axis and value != -100:
                ratings.append(
                    Rating(name, fields.number({"label": value}, "label", low=0, high=4), (0.0, 4.0), axis)
                )
    helpful = {rating.response: rating.value for rating in ratings if rating.axis == "helpfulness"}
    votes = (vote_from_scores(helpful, higher_is_better=True),) if len(helpful) > 1 else ()
    return [PreferenceRecord(prompt, tuple(responses), votes, tuple(ratings))]


def _read_nemo_rating(row: Row, notes: RowNotes, options: Options) -> list[PreferenceRecord]:
    return read_nemo_ratings([row], notes, options)


def _nemo_prompt(row: Row) -> str:
    return str(row.get("text", "")).rpartition("<extra_id_1>Assistant\n")[0]


def _nemo_messages(text: str, field: str, *, open_end: bool = False) -> list[Message]:
    pieces = _NEMO_TURN.split(text)
    if pieces[0].strip() or len(pieces) < 3:
        raise RowRejected("no_dialogue_marks", field, "the text does not begin with a turn mark")
    messages = [
        {"role": role.lower(), "content": _NEMO_END.sub("", content).strip()}
        for role, content in zip(pieces[1::2], pieces[2::2], strict=True)
    ]
    if open_end and messages[-1]["role"] == "assistant" and not messages[-1]["content"]:
        messages.pop()
    return [message for message in messages if message["content"] or message["role"] != "system"]


def read_stepwise(row: Row, notes: RowNotes, _: Options) -> list[PreferenceRecord]:
    """Read labelled steps as one completion that is good when every step is."""
    steps = [
        fields.content(step, f"completions[{n}]") for n, step in enumerate(fields.items(row, "completions"))
    ]
    labels = [
        fields.truth({f"labels[{n}]": x}, f"labels[{n}]") for n, x in enumerate(fields.items(row, "labels"))
    ]
    if len(steps) != len(labels):
        raise RowRejected("missing_field", "labels", f"{len(labels)} labels for {len(steps)} steps")
    prompt = read_prompt(row.get("prompt"), "prompt")
    return [unpaired(prompt, "\n".join(steps), all(labels), notes, meta={"steps": len(steps)})]


def _nemo_text(row: Row) -> bool:
    return isinstance(row.get("text"), str) and bool(_NEMO_TURN.match(row["text"]))


def _message_side(row: Row) -> bool:
    return isinstance(row.get("chosen"), dict) and isinstance(row.get("rejected"), dict)


def _dialogue(row: Row) -> bool:
    return isinstance(row.get("conversations", row.get("messages")), list)


FORMATS = (
    Format(
        "llama-factory",
        "instruction with chosen and rejected texts (LLaMA-Factory alpaca, axolotl chatml)",
        lambda row: (
            any(name in row for name in _QUESTION_FIELDS)
            and (has(row, "chosen", "rejected") or has(row, "chosen_response", "rejected_response"))
            and "prompt" not in row
        ),
        read_named_prompt,
        "chosen is better than rejected",
        specificity=2,
    ),
    Format(
        "llama-factory-sharegpt",
        "a dialogue with a chosen and a rejected message (LLaMA-Factory sharegpt, axolotl)",
        lambda row: _dialogue(row) and _message_side(row),
        read_shared_messages,
        "chosen is better than rejected",
        specificity=3,
    ),
    Format(
        "llama-factory-kto",
        "a dialogue with a true or false tag (LLaMA-Factory KTO, ms-swift KTO)",
        lambda row: _dialogue(row) and ("kto_tag" in row or ("label" in row and "chosen" not in row)),
        read_tagged_messages,
        "a true tag is a good last turn",
        specificity=3,
    ),
    Format(
        "llama-factory-v1",
        "chosen_messages and rejected_messages (LLaMA-Factory v1)",
        lambda row: has(row, "chosen_messages", "rejected_messages"),
        read_two_dialogues,
        "chosen_messages is better than rejected_messages",
        specificity=4,
    ),
    Format(
        "ms-swift",
        "messages with a rejected response (ms-swift)",
        lambda row: "messages" in row and ("rejected_response" in row or "rejected_messages" in row),
        read_swift,
        "the last turn of messages is better than the rejected response",
        specificity=4,
    ),
    Format(
        "nemo-aligner",
        "prompt, chosen_response, rejected_response (NeMo-Aligner)",
        lambda row: has(row, "prompt", "chosen_response", "rejected_response"),
        read_nemo_aligner,
        "chosen_response is better than rejected_response",
        specificity=3,
    ),
    Format(
        "nemo-aligner-ratings",
        "dialogues with nine ratings (NeMo-Aligner regression reward model)",
        lambda row: _nemo_text(row) and isinstance(row.get("label"), list),
        _read_nemo_rating,
        "the response with the higher helpfulness (0 to 4) is better",
        specificity=4,
        span=_nemo_prompt,
        join=read_nemo_ratings,
        max_span=2,
    ),
    Format(
        "nemo-aligner-lines",
        "alternating chosen and rejected lines (NeMo-Aligner reward model)",
        lambda row: _nemo_text(row) and "label" not in row,
        _read_nemo_line,
        "the first line of each two is better than the second",
        specificity=3,
        span=lambda row: "text" in row,
        join=read_nemo_lines,
        max_span=2,
    ),
    Format(
        "trl-stepwise",
        "TRL stepwise supervision",
        lambda row: has(row, "prompt", "completions", "labels") and isinstance(row["labels"], list),
        read_stepwise,
        "a completion is good when all its steps are labelled true; no pairs",
        specificity=3,
    ),
)
