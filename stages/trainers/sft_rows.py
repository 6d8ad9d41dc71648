"""Demonstrations as token rows: prompt and answer ids, loss on the answer, one trained stop token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from pipeline.errors import DataError
from stages.data import Demonstration, RejectedRow
from stages.runtime.text.chat import ChatText

IGNORED = -100
"The label of a token that does not count, as torch's cross-entropy and TRL know it."


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One demonstration as ids."""

    input_ids: list[int]
    num_prompt: int
    "Leading tokens that are given, not learned."

    @property
    def labels(self) -> list[int]:
        """The ids to learn; IGNORED on the prompt."""
        return [IGNORED] * self.num_prompt + self.input_ids[self.num_prompt :]


@dataclass(slots=True)
class TokenRows:
    """What became of a list of demonstrations."""

    rows: list[TokenRow] = field(default_factory=list)
    rejects: list[RejectedRow] = field(default_factory=list)
    "Rows that the chat template or the tokenizer cannot write, and rows that are too long to keep."
    num_too_long: int = 0
    num_cut: int = 0


def encode_rows(
    demonstrations: Sequence[Demonstration],
    chat: ChatText,
    *,
    max_length: int,
    truncation: Literal["drop", "keep_start"],
) -> TokenRows:
    """Turn demonstrations into token rows; nothing is cut unless `truncation` says so."""
    made = TokenRows()
    for row in demonstrations:
        try:
            prompt = chat.prompt_ids(row.prompt)
            ids = [*prompt, *chat.response_ids(row.prompt, row.response)]
        except DataError as error:
            first = error.findings[0]
            made.rejects.append(RejectedRow(row.line, first.code, "", first.message, row.response))
            continue
        if len(ids) <= max_length:
            made.rows.append(TokenRow(ids, len(prompt)))
        elif truncation == "keep_start" and len(prompt) < max_length:
            made.num_cut += 1
            made.rows.append(TokenRow(ids[:max_length], len(prompt)))
        else:
            made.num_too_long += 1
            message = f"the row has {len(ids)} tokens, more than max_length {max_length}"
            made.rejects.append(RejectedRow(row.line, "too_long", "", message, row.response))
    return made


def prove_stop_is_trained(
    rows: Sequence[TokenRow], stop_token_ids: Sequence[int], *, num_cut: int = 0
) -> None:
    """Check that every answer that was not cut ends in a stop token, and that its label counts.

    A model that never learns to stop writes until it is stopped.

    Raises:
        DataError: answers without a trained stop token.
    """
    stop = frozenset(stop_token_ids)
    num_without = sum(not stop.intersection(row.labels[-1:]) for row in rows)
    if num_without > num_cut or (rows and num_without == len(rows)):
        raise DataError(
            f"{num_without} of {len(rows)} answers train no stop token; the model would never learn to stop",
            hint="a larger max_length, or a chat template that ends its turns",
            code="no-trained-stop",
        )
