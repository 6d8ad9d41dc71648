"""Rows that rate or score each response: UltraFeedback, HelpSteer2, WebGPT, SHP."""

from __future__ import annotations

from reward.preferences.dialogue import read_prompt
from reward.preferences.notes import RowNotes, RowRejected
from reward.preferences.readers import fields
from reward.preferences.readers.build import comparison
from reward.preferences.readers.format import Format, Options, Row, has
from reward.preferences.readers.trl import pair_record, read_explicit
from reward.preferences.records import PreferenceRecord, Rating, Response, vote_from_scores

HELPSTEER_AXES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")


def read_ultrafeedback(row: Row, notes: RowNotes, _: Options) -> list[PreferenceRecord]:
    """Rank completions by the mean of their axis ratings; `N/A` is no rating.

    The file's own overall_score is not used: in the published file it is known to hold wrong values.
    """
    texts: dict[str, str] = {}
    sources: dict[str, str | None] = {}
    ratings: list[Rating] = []
    for number, item in enumerate(fields.items(row, "completions")):
        item = fields.record(item, f"completions[{number}]")
        name = f"completions[{number}]"
        texts[name] = fields.text(item, "response")
        sources[name] = fields.optional_text(item, "model")
        annotations = fields.record(item.get("annotations"), f"{name}.annotations")
        for axis, answer in annotations.items():
            value = _rating_text(answer)
            if value is not None:
                ratings.append(Rating(name, value, (1.0, 5.0), axis))
    means = {name: _mean([rating.value for rating in ratings if rating.response == name]) for name in texts}
    scored = {name: mean for name, mean in means.items() if mean is not None}
    votes = [vote_from_scores(scored, higher_is_better=True)] if len(scored) > 1 else []
    prompt = fields.text(row, "instruction")
    return [comparison(prompt, texts, votes, notes, sources=sources, ratings=tuple(ratings))]


def _rating_text(answer: object) -> float | None:
    value = answer.get("Rating") if isinstance(answer, dict) else None
    if value is None or (isinstance(value, str) and value.strip().upper() in ("N/A", "")):
        return None
    return fields.number({"Rating": value}, "Rating", low=1, high=5)


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def read_scored_pair(row: Row, notes: RowNotes, options: Options) -> list[PreferenceRecord]:
    """Read chosen and rejected with a score each; equal scores are a tie, whatever the names say."""
    names = (
        ("score_chosen", "score_rejected") if "score_chosen" in row else ("chosen_rating", "rejected_rating")
    )
    chosen, rejected = fields.number(row, names[0]), fields.number(row, names[1])
    found = read_explicit(row, notes, options)
    if chosen < rejected:
        notes.reject(
            "label_out_of_range", names[0], f"chosen scores {chosen:g}, below rejected with {rejected:g}"
        )
    scores = {"chosen": chosen, "rejected": rejected}
    strength = abs(chosen - rejected)
    votes = (vote_from_scores(scores, higher_is_better=True, strength=strength),)
    return [
        PreferenceRecord(record.prompt, record.responses, votes, id=str(row.get("prompt_id", "")))
        for record in found
    ]


def read_helpsteer2(rows: list[Row], notes: RowNotes, _: Options) -> list[PreferenceRecord]:
    """Read two neighbouring rows of one prompt; helpfulness decides, the other axes are kept."""
    responses: list[Response] = []
    ratings: list[Rating] = []
    for number, row in enumerate(rows):
        name = f"response[{number}]"
        responses.append(Response(name, fields.text(row, "response")))
        ratings += [
            Rating(name, fields.number(row, axis, low=0, high=4), (0.0, 4.0), axis) for axis in HELPSTEER_AXES
        ]
    helpful = {rating.response: rating.value for rating in ratings if rating.axis == "helpfulness"}
    votes = (vote_from_scores(helpful, higher_is_better=True),) if len(rows) > 1 else ()
    prompt = read_prompt(fields.text(rows[0], "prompt"), "prompt")
    return [PreferenceRecord(prompt, tuple(responses), votes, tuple(ratings))]


def _read_helpsteer2_row(row: Row, notes: RowNotes, options: Options) -> list[PreferenceRecord]:
    return read_helpsteer2([row], notes, options)


def read_webgpt(row: Row, notes: RowNotes, _: Options) -> list[PreferenceRecord]:
    """Read two answers with a score each; the higher is better, equal is a tie."""
    question = row.get("question")
    prompt = (
        fields.text(question, "full_text") if isinstance(question, dict) else fields.text(row, "question")
    )
    texts = {name: fields.text(row, name) for name in ("answer_0", "answer_1")}
    scores = {f"answer_{n}": fields.number(row, f"score_{n}") for n in (0, 1)}
    strength = abs(scores["answer_0"] - scores["answer_1"])
    vote = vote_from_scores(scores, higher_is_better=True, strength=strength)
    return [comparison(prompt, texts, [vote], notes)]


def read_shp(row: Row, notes: RowNotes, _: Options) -> list[PreferenceRecord]:
    """Read a post with two replies; `labels` 1 means that A is preferred."""
    texts = {name: fields.text(row, name) for name in ("human_ref_A", "human_ref_B")}
    prefers_a = fields.whole(row, "labels", (0, 1)) == 1
    score_a, score_b = fields.optional_number(row, "score_A"), fields.optional_number(row, "score_B")
    if (
        score_a is not None
        and score_b is not None
        and (score_a > score_b) != prefers_a
        and score_a != score_b
    ):
        raise RowRejected(
            "label_out_of_range",
            "labels",
            f"labels says {'A' if prefers_a else 'B'}, the scores say the other",
        )
    record = pair_record(
        fields.text(row, "history"),
        texts["human_ref_A" if prefers_a else "human_ref_B"],
        texts["human_ref_B" if prefers_a else "human_ref_A"],
        id=str(row.get("post_id", "")),
    )
    return [record]


FORMATS = (
    Format(
        "ultrafeedback",
        "UltraFeedback with axis ratings",
        lambda row: has(row, "instruction", "completions") and _first_has(row["completions"], "annotations"),
        read_ultrafeedback,
        "the completion with the higher mean rating (1 to 5) is better",
        specificity=4,
    ),
    Format(
        "ultrafeedback-binarized",
        "chosen and rejected with a score each (UltraFeedback binarized, distilabel)",
        lambda row: (
            has(row, "prompt", "chosen", "rejected")
            and (has(row, "score_chosen", "score_rejected") or has(row, "chosen_rating", "rejected_rating"))
        ),
        read_scored_pair,
        "chosen is better than rejected; equal scores are a tie",
        specificity=4,
    ),
    Format(
        "helpsteer2",
        "HelpSteer2 ratings, neighbouring rows of one prompt",
        lambda row: has(row, "prompt", "response", *HELPSTEER_AXES),
        _read_helpsteer2_row,
        "the response with the higher helpfulness (0 to 4) is better",
        specificity=4,
        span=lambda row: row.get("prompt"),
        join=read_helpsteer2,
        max_span=2,
    ),
    Format(
        "webgpt",
        "WebGPT comparisons",
        lambda row: has(row, "question", "answer_0", "answer_1", "score_0", "score_1"),
        read_webgpt,
        "the answer with the higher score is better; equal scores are a tie",
        specificity=4,
    ),
    Format(
        "shp",
        "Stanford Human Preferences",
        lambda row: has(row, "history", "human_ref_A", "human_ref_B", "labels"),
        read_shp,
        "labels 1 means that human_ref_A is better, 0 that human_ref_B is",
        specificity=4,
    ),
)


def _first_has(items: object, name: str) -> bool:
    return isinstance(items, list) and bool(items) and isinstance(items[0], dict) and name in items[0]
