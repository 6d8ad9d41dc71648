"""Preparation steps: each a config class and a function from records to records, repeatable to the byte."""

from __future__ import annotations

import importlib.util
import random
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.config.strict import StrictModel
from pipeline.errors import DataError
from reward.preferences.checks.pii import mask_pii
from reward.preferences.pairs import comparison_key
from reward.preferences.records import PreferenceRecord, Prompt, Response, Vote, digest, prompt_words
from reward.preferences.significance import median

_INVISIBLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u200b\u2060\ufeff\u202a-\u202e]")
Records = Sequence[PreferenceRecord]


class Clean(StrictModel):
    """Unify line ends, compose characters, take off invisible characters and outer blanks."""

    step: Literal["clean"]

    def apply(self, records: Records, seed: int) -> Iterator[PreferenceRecord]:
        """Clean every text."""
        return (_with_texts(record, _clean) for record in records)


class MaskPii(StrictModel):
    """Replace personal data by its kind in brackets."""

    step: Literal["mask_pii"]

    def apply(self, records: Records, seed: int) -> Iterator[PreferenceRecord]:
        """Mask every text."""
        return map(masked, records)


class Dedupe(StrictModel):
    """Keep the first of equal judgements; comparisons with other judgements stay."""

    step: Literal["dedupe"]

    def apply(self, records: Records, seed: int) -> Iterator[PreferenceRecord]:
        """Drop votes that repeat an earlier one, and comparisons that have nothing left."""
        seen: set[tuple[object, ...]] = set()
        for record in records:
            key = comparison_key(record)
            votes = []
            for vote in record.votes:
                named = (key, vote.annotator, vote.kind, _texts_of(record, vote))
                if named not in seen:
                    seen.add(named)
                    votes.append(vote)
            if votes or (not record.votes and (key, "without votes") not in seen):
                seen.add((key, "without votes"))
                yield replace(record, votes=tuple(votes))


class Fill(StrictModel):
    """Fill an empty field by a rule."""

    step: Literal["fill"]
    field: Literal["annotator", "guideline", "batch", "seconds", "strength", "source"]
    "Field of a vote, or `source` of a response."
    value: str | float | None = None
    "What to write; leave out for rule."
    rule: Literal["median"] | None = None
    "median: the median of the filled values, for seconds and strength."

    def apply(self, records: Records, seed: int) -> Iterator[PreferenceRecord]:
        """Fill what is empty and leave what is there.

        Raises:
            DataError: neither value nor rule, or a rule that does not fit the field.
        """
        value = self._value(records)
        for record in records:
            if self.field == "source":
                responses = tuple(
                    response if response.source is not None else replace(response, source=str(value))
                    for response in record.responses
                )
                yield replace(record, responses=responses)
            else:
                votes = tuple(self._filled(vote, value) for vote in record.votes)
                yield replace(record, votes=votes)

    def _filled(self, vote: Vote, value: str | float) -> Vote:
        if getattr(vote, self.field) is not None:
            return vote
        change: dict[str, Any] = {self.field: value}
        return replace(vote, **change)

    def _value(self, records: Records) -> str | float:
        is_number = self.field in ("seconds", "strength")
        if self.rule == "median" and is_number:
            known = [
                number
                for record in records
                for vote in record.votes
                if (number := vote.seconds if self.field == "seconds" else vote.strength) is not None
            ]
            if not known:
                raise DataError(f"fill: no {self.field} is known, so there is no median", code="bad-step")
            return median(known)
        if self.value is None or self.rule is not None or isinstance(self.value, str) == is_number:
            raise DataError(f"fill: give a value that fits {self.field!r}", code="bad-step")
        return self.value


class Length(StrictModel):
    """Drop comparisons whose texts are too short or too long; nothing is cut."""

    step: Literal["length"]
    min_words: int = Field(0, ge=0)
    "Smallest number of words of a response."
    max_words: int | None = Field(None, ge=1)
    "Largest number of words of a response."
    max_prompt_words: int | None = Field(None, ge=1)
    "Largest number of words of a prompt."
    max_ratio: float | None = Field(None, gt=1)
    "Largest ratio of the lengths of two responses."

    def apply(self, records: Records, seed: int) -> Iterator[PreferenceRecord]:
        """Keep the comparisons that fit."""
        return (record for record in records if self._fits(record))

    def _fits(self, record: PreferenceRecord) -> bool:
        lengths = [len(response.text.split()) for response in record.responses]
        asked = len(prompt_words(record.prompt).split())
        return (
            min(lengths) >= self.min_words
            and (self.max_words is None or max(lengths) <= self.max_words)
            and (self.max_prompt_words is None or asked <= self.max_prompt_words)
            and (self.max_ratio is None or max(lengths) <= self.max_ratio * max(min(lengths), 1))
        )


class DropAnnotators(StrictModel):
    """Drop the votes of the people named, and comparisons that have none left."""

    step: Literal["drop_annotators"]
    names: tuple[str, ...] = Field(min_length=1)
    "Names as they stand in the file."

    def apply(self, records: Records, seed: int) -> Iterator[PreferenceRecord]:
        """Keep the votes of everybody else."""
        for record in records:
            votes = tuple(vote for vote in record.votes if vote.annotator not in self.names)
            if votes or not record.votes:
                yield replace(record, votes=votes)


class SwapOrder(StrictModel):
    """Turn the order of the responses round in a share of the comparisons."""

    step: Literal["swap_order"]
    share: float = Field(0.5, ge=0, le=1)
    "Share of comparisons, chosen by seed and content."

    def apply(self, records: Records, seed: int) -> Iterator[PreferenceRecord]:
        """Reverse the responses; votes name them by id and stay right."""
        for record in records:
            turned = _draw(seed, "swap", comparison_key(record)) < self.share
            margin = -record.margin if turned and record.margin is not None else record.margin
            share = 1 - record.share if turned and record.share is not None else record.share
            other = replace(record, responses=record.responses[::-1], margin=margin, share=share)
            yield other if turned else record


class Paraphrase(StrictModel):
    """Add copies of comparisons whose prompt a function of yours words anew."""

    step: Literal["paraphrase"]
    function: str = Field(pattern=r"^.+\.py:[A-Za-z_]\w*$")
    "FILE.py:NAME of a function from text to text. You named it, so it is run."
    share: float = Field(1.0, gt=0, le=1)
    "Share of comparisons that get a copy."

    def apply(self, records: Records, seed: int) -> Iterator[PreferenceRecord]:
        """Yield every comparison, and its copy when the prompt changed."""
        reword = _load_function(self.function)
        for record in records:
            yield record
            if _draw(seed, "paraphrase", comparison_key(record)) < self.share:
                prompt = _with_prompt_texts(record.prompt, reword)
                if prompt != record.prompt:
                    meta = {**record.meta, "paraphrase_of": record.id or comparison_key(record)[:16]}
                    yield replace(record, prompt=prompt, id=f"{record.id}-p" if record.id else "", meta=meta)


Step = Annotated[
    Clean | MaskPii | Dedupe | Fill | Length | DropAnnotators | SwapOrder | Paraphrase,
    Field(discriminator="step"),
]


def masked(record: PreferenceRecord) -> PreferenceRecord:
    """Return a record with personal data masked: in texts, in reasons, and in the names of sources."""
    record = _with_texts(record, mask_pii)
    responses = tuple(
        response if response.source is None else replace(response, source=mask_pii(response.source))
        for response in record.responses
    )
    votes = tuple(
        vote if vote.reason is None else replace(vote, reason=mask_pii(vote.reason)) for vote in record.votes
    )
    return replace(record, responses=responses, votes=votes)


def draw_weighted(records: Records, weight: float, seed: int) -> Iterator[PreferenceRecord]:
    """Yield each record floor(weight) times, and the rest of the weight as a seeded share of them."""
    whole, share = int(weight), weight - int(weight)
    for record in records:
        for _ in range(whole + (_draw(seed, "mix", comparison_key(record)) < share)):
            yield record


def _draw(seed: int, purpose: str, key: str) -> float:
    """Return a number in [0, 1) that depends on seed and content only, not on the order of rows."""
    return random.Random(f"{seed}:{purpose}:{key}").random()


def _texts_of(record: PreferenceRecord, vote: Vote) -> tuple[tuple[str, ...], ...]:
    names = {response.id: digest(response.text) for response in record.responses}
    return tuple(tuple(sorted(names[name] for name in tier)) for tier in vote.tiers)


def _clean(text: str) -> str:
    unified = text.replace("\r\n", "\n").replace("\r", "\n")
    return unicodedata.normalize("NFC", _INVISIBLE.sub("", unified)).strip()


def _with_texts(record: PreferenceRecord, change: Callable[[str], str]) -> PreferenceRecord:
    responses: Iterable[Response] = (
        replace(response, text=change(response.text)) for response in record.responses
    )
    prompt = _with_prompt_texts(record.prompt, change)
    return replace(record, prompt=prompt, responses=tuple(responses))


def _with_prompt_texts(prompt: Prompt, change: Callable[[str], str]) -> Prompt:
    if isinstance(prompt, str):
        return change(prompt)
    return [{"role": message["role"], "content": change(message["content"])} for message in prompt]


def _load_function(named: str) -> Callable[[str], str]:
    """Import a function from a file that the user named.

    Raises:
        DataError: no such file or function.
    """
    file, _, name = named.rpartition(":")
    path = Path(file)
    spec = importlib.util.spec_from_file_location(path.stem, path) if path.is_file() else None
    if spec is None or spec.loader is None:
        raise DataError(f"there is no Python file {file!r}", code="missing-file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = vars(module).get(name)
    if not callable(found):
        raise DataError(f"{file} has no function {name!r}", code="missing-function")
    return lambda text: str(found(text))
