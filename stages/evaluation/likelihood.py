"""How likely a model finds texts that others wrote: held-out answers, general text, the labels of a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stages.data import Demonstration
from stages.evaluation.labelled_texts import LabelledText
from stages.runtime.text.chat import Prompt

if TYPE_CHECKING:
    from stages.evaluation.contestants import Reader

PROBE_TOKENS = 256
"Longest stretch of general text that is read at once; shorter when max_length is."


@dataclass(frozen=True, slots=True)
class Likelihoods:
    """What a model makes of the texts of an evaluation; None where there are none."""

    held_out: float | None = None
    "Nats a token of held-out answers, stop token included."
    train: float | None = None
    "Nats a token of answers that were trained on."
    probe: float | None = None
    "Nats a token of general text."
    predicted: list[str] = field(default_factory=list)
    "The likeliest label of each row of the classification task."


def answer_loss(
    reader: Reader, rows: Sequence[Demonstration], *, prompts: Sequence[Prompt] | None = None
) -> float | None:
    """Return the mean loss of the answers' tokens, stop token included; None without rows.

    Args:
        reader: the model.
        rows: prompts and answers.
        prompts: what stands before the answers in place of the rows' own prompts.
    """
    if not rows:
        return None
    asked = [row.prompt for row in rows] if prompts is None else prompts
    responses = [
        reader.chat.response_ids(prompt, row.response) for prompt, row in zip(asked, rows, strict=True)
    ]
    return _loss(reader, [reader.chat.prompt_ids(prompt) for prompt in asked], responses)


def text_loss(reader: Reader, documents: Sequence[str], *, max_length: int) -> float | None:
    """Return the mean loss of plain text, no template around it; None without documents.

    A document longer than the limit is read in pieces. The first token of a piece is given, not predicted.
    """
    if not documents:
        return None
    size = min(max_length, PROBE_TOKENS)
    pieces: list[list[int]] = []
    for document in documents:
        ids = reader.chat.tokenizer(document, add_special_tokens=False)["input_ids"]
        pieces += [ids[start : start + size] for start in range(0, len(ids), size)]
    whole = [piece for piece in pieces if len(piece) > 1]
    return _loss(reader, [piece[:1] for piece in whole], [piece[1:] for piece in whole]) if whole else None


def likeliest_labels(reader: Reader, rows: Sequence[LabelledText], labels: Sequence[str]) -> list[str]:
    """Return for each row the label that the model finds most likely as its answer.

    The log-probability of a label is summed over its tokens and the stop token after it; the first of
    equally likely labels is taken.
    """
    prompts = [reader.chat.prompt_ids(row.text) for row in rows for _ in labels]
    responses = [reader.chat.response_ids(row.text, label) for row in rows for label in labels]
    logps = reader.logps(prompts, responses, temperature=1.0)
    found = []
    for start in range(0, len(logps), len(labels)):
        of_row = logps[start : start + len(labels)]
        found.append(labels[max(range(len(labels)), key=of_row.__getitem__)])
    return found


def _loss(reader: Reader, prompts: list[list[int]], responses: list[list[int]]) -> float:
    total = sum(reader.logps(prompts, responses, temperature=1.0))
    return -total / sum(map(len, responses))
