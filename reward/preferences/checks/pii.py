"""Finds and masks personal data: e-mail, phone, IPv4, US social security, IBAN, cards, access keys."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_EMAIL = re.compile(
    r"\b[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){0,4}\.[A-Za-z]{2,24}\b"
)
_IPV4 = re.compile(r"(?<![\d.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\d.])")
_SSN = re.compile(r"(?<![\d-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d-])")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?\b")
_CARD = re.compile(r"(?<![\d-])(?:\d[ -]?){12,18}\d(?![\d-])")
_PHONE = re.compile(
    r"(?<![\w.+-])(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{2,4}(?:[ .-]?\d{2,4}){2,3}"
    r"|\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}[.-]\d{3}[.-]\d{4}|\d{3} \d{3} \d{4})(?![\w-])"
)
_KEY = re.compile(
    r"\b(?:sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{36,}|AKIA[0-9A-Z]{16}|hf_[A-Za-z0-9]{30,})\b"
)
_KEY_STARTS = ("sk-", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "AKIA", "hf_")
_DIGIT = re.compile(r"\d")


@dataclass(frozen=True, slots=True)
class Pii:
    """One piece of personal data in a text."""

    kind: str
    start: int
    end: int


def find_pii(text: str) -> list[Pii]:
    """Return what looks like personal data, in order, without overlaps."""
    found = sorted(_candidates(text), key=lambda item: (item.start, -item.end))
    kept: list[Pii] = []
    for item in found:
        if not kept or item.start >= kept[-1].end:
            kept.append(item)
    return kept


def mask_pii(text: str) -> str:
    """Replace personal data by its kind in brackets."""
    pieces: list[str] = []
    position = 0
    for item in find_pii(text):
        pieces += [text[position : item.start], f"[{item.kind}]"]
        position = item.end
    return "".join([*pieces, text[position:]])


def _candidates(text: str) -> Iterator[Pii]:
    if "@" in text:
        yield from _matches("email", _EMAIL, text)
    if any(map(text.__contains__, _KEY_STARTS)):
        yield from _matches("key", _KEY, text)
    if _DIGIT.search(text) is None:
        return
    num_digits = len(_DIGIT.findall(text))
    if num_digits < 7:
        if num_digits >= 4 and text.count(".") >= 3:
            yield from _matches("ipv4", _IPV4, text)
        return
    yield from _matches("ipv4", _IPV4, text)
    yield from _matches("ssn", _SSN, text)
    yield from _matches("phone", _PHONE, text)
    yield from (item for item in _matches("iban", _IBAN, text) if is_iban(text[item.start : item.end]))
    yield from (item for item in _matches("card", _CARD, text) if is_card(text[item.start : item.end]))


def _matches(kind: str, pattern: re.Pattern[str], text: str) -> Iterator[Pii]:
    for match in pattern.finditer(text):
        yield Pii(kind, match.start(), match.end())


def is_iban(text: str) -> bool:
    """True when the check digits of an IBAN are right (ISO 7064, mod 97)."""
    plain = text.replace(" ", "")
    if not 15 <= len(plain) <= 34:
        return False
    turned = plain[4:] + plain[:4]
    return int("".join(str(int(char, 36)) for char in turned)) % 97 == 1


def is_card(text: str) -> bool:
    """True when the check digit of a card number is right (Luhn)."""
    digits = [int(char) for char in text if char.isdigit()]
    if not 13 <= len(digits) <= 19 or len(set(digits)) == 1:
        return False
    doubled = [digit * 2 - 9 * (digit > 4) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0
