"""Guesses the language of a text of some length: by its script, and by common small words."""

from __future__ import annotations

import itertools
import re
from collections import Counter

_SCRIPTS = {
    "ja": re.compile("[\u3040-\u30ff]"),
    "ko": re.compile("[\uac00-\ud7af]"),
    "zh": re.compile("[\u4e00-\u9fff]"),
    "ru": re.compile("[\u0400-\u04ff]"),
    "ar": re.compile("[\u0600-\u06ff]"),
    "he": re.compile("[\u0590-\u05ff]"),
    "hi": re.compile("[\u0900-\u097f]"),
    "el": re.compile("[\u0370-\u03ff]"),
    "th": re.compile("[\u0e00-\u0e7f]"),
}
_OTHER_SCRIPT = re.compile("[\u0370-\u1fff\u3040-\ud7af]")
_SMALL_WORDS = {
    "en": "the of and to in is you that it for on with as are was this be have not they at but from or what",
    "de": "der die und das ist nicht ein eine zu den mit sich auf für von dem im wie auch als wird sind",
    "fr": "le la les et des est une dans que pour pas vous qui sur avec ce sont au plus ne se du cette",
    "es": "el la los las y que en un una es por con para no se del como más pero su está son lo este",
    "it": "il la di che è un una per non con sono del della le gli si come più ma questo nel anche",
    "pt": "o a os as e que em um uma é não para com por se do da mais como mas no na são você isso",
    "nl": "de het een en van is dat niet te met voor op zijn er aan ook als bij je wordt naar maar",
}
_CODES = {
    word: tuple(code for code, words in _SMALL_WORDS.items() if word in words.split())
    for word in " ".join(_SMALL_WORDS.values()).split()
}
_WORD = re.compile(r"[^\W\d_]+")
MAX_CHARS = 400
MIN_SHARE = 0.15
MIN_LEAD = 1.5


def language_of(text: str) -> str | None:
    """Return a language code, or None when the text does not say clearly."""
    head = text[:MAX_CHARS]
    if not head.isascii() and _OTHER_SCRIPT.search(head):
        by_script = _language_of_script(head)
        if by_script is not None:
            return by_script
    words = _WORD.findall(head.lower())
    if len(words) < 8:
        return None
    counts = Counter(itertools.chain.from_iterable(filter(None, map(_CODES.get, words)))).most_common(2)
    if not counts:
        return None
    code, best = counts[0]
    second = counts[1][1] if len(counts) > 1 else 0
    return code if best >= MIN_SHARE * len(words) and best >= MIN_LEAD * second else None


def _language_of_script(text: str) -> str | None:
    """Return the language of the script that a third of the letters belong to; kana decides over kanji."""
    num_letters = sum(char.isalpha() for char in text) or 1
    counts = {code: len(script.findall(text)) for code, script in _SCRIPTS.items()}
    if counts["ja"] * 20 > num_letters:
        return "ja"
    best = max(counts, key=lambda code: counts[code])
    return best if counts[best] * 3 > num_letters else None
