"""How the report writes numbers, sizes, times and digests."""

from __future__ import annotations

import math
import re
from typing import Any

_INTERVAL = re.compile(r"([+\-−]?[0-9][0-9.\u202f]*(?:e[\-−]?[0-9]+)?(?: ?%)?)(?: (\[[^\]]*\]))?")
_SIZES = ("B", "KiB", "MiB", "GiB", "TiB")


def short(value: Any) -> str:
    """Return a cell's text: numbers with four significant digits, None as a dash.

    A list of three numbers is a value with its interval.
    """
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f")
    if isinstance(value, float):
        return _float(value)
    if isinstance(value, (list, tuple)) and len(value) == 3 and all(map(is_number, value)):
        return f"{short(value[0])} [{short(value[1])}, {short(value[2])}]"
    return str(value)


def is_number(value: Any) -> bool:
    """Tell whether a value is a number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_amount(value: Any) -> bool:
    """Tell whether a cell is to be set as a number: it is one, or its text begins like one."""
    return is_number(value) or isinstance(value, (list, tuple)) or _INTERVAL.fullmatch(str(value)) is not None


def value_and_interval(value: Any) -> tuple[str, str]:
    """Return a cell's text in two parts, the second its interval in brackets, if it has one."""
    text = short(value).replace("-", "−") if is_amount(value) and isinstance(value, str) else short(value)
    found = _INTERVAL.fullmatch(text)
    return (found[1], found[2] or "") if found else (text, "")


def size(num_bytes: int) -> str:
    """Return a number of bytes as text, such as 1.5 MiB."""
    amount, unit = float(num_bytes), _SIZES[0]
    for unit in _SIZES:
        if amount < 1024 or unit == _SIZES[-1]:
            break
        amount /= 1024
    return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"


def amount(price: float) -> str:
    """Return a price as a number: cents from 1 on, else four digits that count."""
    return f"{price:.2f}" if price >= 1 else short(price)


def duration(seconds: float | None) -> str:
    """Return a time span as text, such as 3 min 52 s."""
    if seconds is None:
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def digest(text: str) -> str:
    """Return the first twelve signs of a digest."""
    return text[:12]


def _float(value: float) -> str:
    if not math.isfinite(value):
        return {math.inf: "∞", -math.inf: "−∞"}.get(value, "not a number")
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if -4 <= magnitude < 6:
        text = f"{value:.{max(0, 3 - magnitude)}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
    else:
        mantissa, exponent = f"{value:.2e}".split("e")
        text = f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return text.replace("-", "−")
