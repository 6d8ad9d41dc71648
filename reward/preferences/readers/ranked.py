"""Rows that rank several responses: Nectar, OASST trees, NeMo-RL, qa-feedback, HelpSteer preferences."""

from __future__ import annotations

import itertools
from typing import Any

from reward.preferences.dialogue import read_messages, read_prompt
from reward.preferences.notes import RowNotes, RowRejected
from reward.preferences.readers import fields
from reward.preferences.readers.build import comparison, outcome_of_sign, ranked_vote, vote_of
from reward.preferences.readers.format import Format, Options, Row, has
from reward.preferences.records import Message, PreferenceRecord, Vote

MAX_TREE_DEPTH = 100


def read_nectar(row: Row, notes: RowNotes, _: Options) -> list[PreferenceRecord]:
    """Read up to seven ranked answers; rank 1 is the best."""
    texts: dict[str, str] = {}
    ranks: dict[str, float] = {}
    sources: dict[str, str | None] = {}
    for number, item in enumerate(fields.items(row, "answers")):
        name = f"answers[{number}]"
        item = fields.record(item, name)
        texts[name] = fields.text(item, "answer")
        sources[name] = fields.optional_text(item, "model")
        ranks[name] = fields.number(item, "rank", low=1)
    prompt = read_prompt(fields.text(row, "prompt"), "prompt")
    vote = ranked_vote(ranks)
    return [comparison(prompt, texts, [vote] if vote else [], notes, sources=sources)]


def read_oasst(row: Row, notes: RowNotes, _: Options) -> list[PreferenceRecord]:
    """Read every prompter turn of a tree that has two or more replies; rank 0 is the best."""
    root = fields.record(row.get("prompt"), "prompt")
    found: list[PreferenceRecord] = []
    waiting: list[tuple[Row, list[Message]]] = [(root, [])]
    while waiting:
        node, path = waiting.pop()
        if len(path) > MAX_TREE_DEPTH:
            raise RowRejected("wrong_type", "prompt.replies", f"the tree is deeper than {MAX_TREE_DEPTH}")
        if node.get("deleted"):
            continue
        asked = [*path, {"role": "user", "content": fields.text(node, "text")}]
        replies = [fields.record(item, "replies") for item in node.get("replies") or []]
        replies = [reply for reply in replies if not reply.get("deleted")]
        if len(replies) > 1:
            found.append(_tree_comparison(asked, replies, notes))
        for reply in replies:
            answered = [*asked, {"role": "assistant", "content": fields.text(reply, "text")}]
            waiting += [(fields.record(item, "replies"), answered) for item in reply.get("replies") or []]
    return found


def _tree_comparison(asked: list[Message], replies: list[Row], notes: RowNotes) -> PreferenceRecord:
    texts = {
        str(reply.get("message_id", f"reply[{n}]")): fields.text(reply, "text")
        for n, reply in enumerate(replies)
    }
    if len(texts) < len(replies):
        raise RowRejected("rank_invalid", "message_id", "two replies have one message_id")
    ranks = {
        name: rank
        for name, reply in zip(texts, replies, strict=True)
        if (rank := fields.optional_number(reply, "rank")) is not None
    }
    vote = ranked_vote(ranks)
    return comparison(asked, texts, [vote] if vote else [], notes)


def read_nemo_rl(row: Row, notes: RowNotes, _: Options) -> list[PreferenceRecord]:
    """Read ranked completions of one context; the lower rank is better."""
    context = read_messages(row.get("context"), "context")
    texts: dict[str, str] = {}
    ranks: dict[str, float] = {}
    for number, item in enumerate(fields.items(row, "completions")):
        name = f"completions[{number}]"
        item = fields.record(item, name)
        messages = read_messages(item.get("completion"), f"{name}.completion")
        if len(messages) != 1:
            raise RowRejected("wrong_type", name, f"one message is expected, not {len(messages)}")
        texts[name] = messages[0]["content"]
        ranks[name] = fields.number(item, "rank")
    vote = ranked_vote(ranks)
    return [comparison(context, texts, [vote] if vote else [], notes)]


def read_qa_feedback(row: Row, notes: RowNotes, _: Options) -> list[PreferenceRecord]:
    """Read four predictions and six judgements in the order 12, 13, 14, 23, 24, 34; 0 is a tie."""
    names = [f"prediction {number}" for number in (1, 2, 3, 4)]
    texts = {name: fields.text(row, name) for name in names}
    judged = fields.items(row, "preference")
    if len(judged) != 6:
        raise RowRejected("rank_invalid", "preference", f"six judgements are expected, not {len(judged)}")
    votes: list[Vote] = []
    for number, (first, second) in enumerate(itertools.combinations(names, 2)):
        value = fields.whole({f"preference[{number}]": judged[number]}, f"preference[{number}]", (0, 1, 2))
        votes.append(vote_of(("tie", "first", "second")[value], first, second))
    return [comparison(fields.text(row, "question"), texts, votes, notes)]


def read_helpsteer2_preference(row: Row, notes: RowNotes, _: Options) -> list[PreferenceRecord]:
    """Read two responses and a strength from -3 to 3; a negative one prefers response_1."""
    texts = {name: fields.text(row, name) for name in ("response_1", "response_2")}
    strength = fields.whole(row, "preference_strength", tuple(range(-3, 4)))
    vote = vote_of(
        outcome_of_sign(strength, positive="second"), "response_1", "response_2", strength=abs(strength)
    )
    prompt = read_prompt(fields.text(row, "prompt"), "prompt")
    return [comparison(prompt, texts, [vote], notes)]


def read_helpsteer3(row: Row, notes: RowNotes, _: Options) -> list[PreferenceRecord]:
    """Read the single judgements of a comparison; a negative score prefers response1."""
    texts = {name: fields.text(row, name) for name in ("response1", "response2")}
    overall = fields.whole(row, "overall_preference", tuple(range(-3, 4)))
    single = row.get("individual_preference") or [{"score": overall}]
    votes = [
        _signed_vote(fields.record(item, f"individual_preference[{n}]")) for n, item in enumerate(single)
    ]
    context = read_messages(row.get("context"), "context")
    return [comparison(context, texts, votes, notes, meta={"overall_preference": overall})]


def _signed_vote(item: Row) -> Vote:
    score = fields.whole(item, "score", tuple(range(-3, 4)))
    outcome = outcome_of_sign(score, positive="second")
    reason = fields.optional_text(item, "reasoning")
    return vote_of(outcome, "response1", "response2", strength=float(abs(score)), reason=reason)


def _first_has(items: Any, *names: str) -> bool:
    return isinstance(items, list) and bool(items) and isinstance(items[0], dict) and has(items[0], *names)


FORMATS = (
    Format(
        "nectar",
        "Nectar, answers ranked from 1",
        lambda row: has(row, "prompt", "answers") and _first_has(row["answers"], "answer", "rank"),
        read_nectar,
        "the answer with the lower rank is better: rank 1 is the best",
        specificity=4,
    ),
    Format(
        "oasst",
        "Open Assistant message trees",
        lambda row: has(row, "message_tree_id", "prompt") and isinstance(row["prompt"], dict),
        read_oasst,
        "the reply with the lower rank is better: rank 0 is the best",
        specificity=4,
    ),
    Format(
        "nemo-rl",
        "NeMo-RL ranked completions",
        lambda row: (
            has(row, "context", "completions") and _first_has(row["completions"], "rank", "completion")
        ),
        read_nemo_rl,
        "the completion with the lower rank is better",
        specificity=4,
    ),
    Format(
        "qa-feedback",
        "qa-feedback (fine-grained RLHF), six judgements of four predictions",
        lambda row: has(row, "question", "prediction 1", "prediction 4", "preference"),
        read_qa_feedback,
        "1 prefers the first prediction of a pair, 2 the second, 0 is a tie",
        specificity=4,
    ),
    Format(
        "helpsteer2-preference",
        "HelpSteer2-Preference",
        lambda row: has(row, "prompt", "response_1", "response_2", "preference_strength"),
        read_helpsteer2_preference,
        "a negative preference_strength means that response_1 is better",
        specificity=4,
        ask="other files with these fields count the other way round: nothing in the file says "
        "whether a positive preference_strength prefers response_1 or response_2",
    ),
    Format(
        "helpsteer3",
        "HelpSteer3 preferences",
        lambda row: has(row, "context", "response1", "response2", "overall_preference"),
        read_helpsteer3,
        "a negative score means that response1 is better",
        specificity=4,
    ),
)
