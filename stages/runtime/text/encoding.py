"""Text to token ids in which only the template writes control tokens. Imports no torch.

Text that a person typed may hold the spelling of a control token, such as `<|im_end|>`. It is
marked before the template is rendered and encoded as ordinary text, so it never becomes the id.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARK = "\U000f5a17"
"A private-use character: opens and closes the number of a marked spelling."
_MARKED = re.compile(f"{_MARK}(\\d+){_MARK}")
_THOUGHT = re.compile(r"^</?(think|thinking|thought|reasoning)>$")
_ANCHOR_CHARACTERS = 32
"Characters of the prompt that a response is encoded behind, to see the right left neighbour."


class TextEncoder:
    """Encodes rendered conversations; control tokens come from the template alone."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._added = {str(token): int(index) for index, token in tokenizer.added_tokens_decoder.items()}
        special = {*tokenizer.all_special_tokens}
        special |= {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        self._control = {text: tokenizer.convert_tokens_to_ids(text) for text in special if text}
        self._compile()

    def _compile(self) -> None:
        def pattern(spellings: Sequence[str]) -> re.Pattern[str]:
            longest_first = sorted(spellings, key=lambda text: (-len(text), text))
            return re.compile("|".join(re.escape(text) for text in [*longest_first, _MARK]))

        self._typed = pattern([*self._control])
        self._answered = pattern([text for text in self._control if not _THOUGHT.match(text)])
        self._control_ids = frozenset(self._control.values())

    @property
    def control_ids(self) -> frozenset[int]:
        """Ids that only a template may write."""
        return self._control_ids

    @property
    def added_ids(self) -> frozenset[int]:
        """Ids of every token that was added to the vocabulary, special or not."""
        return frozenset(self._added.values())

    def reserve(self, token_ids: Sequence[int]) -> None:
        """Count further ids, such as stop tokens that are not marked special, among the control tokens."""
        for index in token_ids:
            self._control[self._tokenizer.convert_ids_to_tokens(index)] = index
        self._compile()

    def mark(self, text: str, found: list[str], *, answer: bool = False) -> str:
        """Replace each spelling of a control token by a numbered mark and note it in `found`.

        In an answer the think tags stay: there they are the model's own words, and templates look for them.
        """

        def numbered(match: re.Match[str]) -> str:
            found.append(match.group())
            return f"{_MARK}{len(found) - 1}{_MARK}"

        return (self._answered if answer else self._typed).sub(numbered, text)

    def encode(self, rendered: str, found: Sequence[str] = ()) -> list[int]:
        """Return the ids of rendered text; marked spellings become ordinary text again."""
        return self.encode_after("", rendered, found)

    def encode_after(self, before: str, rendered: str, found: Sequence[str] = ()) -> list[int]:
        """Return the ids of `rendered` as they follow `before`, whose ids stay as they are.

        Tokenizers that put a blank before the first word would change the text otherwise.
        """
        ids: list[int] = []
        before = before[before.rfind(_MARK) + 1 :]
        for position, piece in enumerate(_MARKED.split(rendered)):
            typed = bool(position % 2)
            text = found[int(piece)] if typed else piece
            ids += self._literal(before, text) if typed else self._follow(before, text)
            # The end of a typed spelling is an anchor only in part: whole, it would be the control token.
            before = text[-2:] if typed else (before + text)[-_ANCHOR_CHARACTERS:]
        return ids

    def _follow(self, before: str, text: str, *, typed: bool = False) -> list[int]:
        """Return the ids that `text` adds after the end of `before`."""
        anchor = before[-_ANCHOR_CHARACTERS:]
        if anchor:
            lead, both = self._ids(anchor, typed=typed), self._ids(anchor + text, typed=typed)
            if both[: len(lead)] == lead:
                return both[len(lead) :]
        return self._ids(text, typed=typed)

    def _ids(self, text: str, *, typed: bool = False) -> list[int]:
        if not text:
            return []
        ids = self._tokenizer(text, add_special_tokens=False, split_special_tokens=typed)["input_ids"]
        return list(ids)

    def _literal(self, before: str, spelling: str) -> list[int]:
        ids = self._follow(before, spelling, typed=True)
        if self._control_ids.isdisjoint(ids):
            return ids
        letters = [index for letter in spelling for index in self._ids(letter)]
        if self._control_ids.isdisjoint(letters):
            return letters
        raise DataError(
            f"the text holds {spelling!r}, which this tokenizer can only write as a control token",
            hint="remove it from the row",
            code="control-token",
        )
