"""Opens a text file of any common encoding and compression as a stream of text."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TextIO, cast

import zstandard

from pipeline.errors import DataError

READ_ERRORS: tuple[type[Exception], ...] = (EOFError, OSError, zlib.error, zstandard.ZstdError)
"What reading a damaged or cut archive raises."
SAMPLE_BYTES = 1 << 18
COMPRESSED = (".gz", ".zst")
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True, slots=True)
class TextForm:
    """How the bytes of a file become text."""

    encoding: str
    bom: bool
    newline: str
    "The character that ends a line: a line feed, or a carriage return in old files."
    mixed_newlines: bool
    "True when some lines end in CR LF and others in LF."

    @property
    def is_utf8(self) -> bool:
        """True for UTF-8 with or without a byte order mark."""
        return self.encoding in ("utf-8", "utf-8-sig")


def data_suffix(path: Path) -> str:
    """Return the suffix that tells the format: `.jsonl` of `x.jsonl.gz`."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    while suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


@contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """Open a plain, gzip or zstd file for reading bytes.

    Raises:
        DataError: the file is missing or is a folder.
    """
    if not path.exists():
        raise DataError(f"there is no file {str(path)!r}", where=str(path), code="missing-file")
    if path.is_dir():
        raise DataError(f"{str(path)!r} is a folder", where=str(path), hint="name a file", code="not-a-file")
    try:
        with path.open("rb") as raw:
            magic = raw.read(4)
            raw.seek(0)
            if magic[:2] == b"\x1f\x8b":
                with gzip.open(raw, "rb") as stream:
                    yield cast(BinaryIO, stream)
            elif magic == b"\x28\xb5\x2f\xfd":
                with zstandard.open(raw, "rb") as stream:
                    yield cast(BinaryIO, stream)
            else:
                yield raw
    except PermissionError as error:
        raise DataError(f"{str(path)!r} may not be read: {error.strerror}", where=str(path)) from error


def inspect(path: Path, *, encoding: str | None = None) -> TextForm:
    """Decide the encoding and line ends of a file from its first 256 KiB.

    Raises:
        DataError: the bytes are of no known encoding.
    """
    with open_bytes(path) as stream:
        sample = read_some(stream, SAMPLE_BYTES)
    bom = next((name for mark, name in _BOMS if sample.startswith(mark)), None)
    chosen = encoding or bom or _encoding_of(sample, path)
    try:
        codecs.lookup(chosen)
    except LookupError as error:
        raise DataError(
            f"there is no encoding {chosen!r}", where=str(path), hint="encoding: utf-8"
        ) from error
    text = codecs.getincrementaldecoder(chosen)("replace").decode(sample)
    num_feeds, num_pairs = text.count("\n"), text.count("\r\n")
    newline = "\r" if num_feeds == 0 and "\r" in text.rstrip("\r\n") else "\n"
    return TextForm(chosen, bom is not None, newline, 0 < num_pairs < num_feeds)


@contextmanager
def open_text(path: Path, form: TextForm) -> Iterator[TextIO]:
    """Open a file as text; bytes that do not decode become lone surrogates, never nothing."""
    utf8_or_8_bit = not form.encoding.startswith(("utf-16", "utf-32"))
    errors = "surrogateescape" if utf8_or_8_bit else "replace"
    with open_bytes(path) as stream:
        text = io.TextIOWrapper(stream, encoding=form.encoding, errors=errors, newline=form.newline)
        try:
            yield text
        finally:
            text.detach()


def read_some(stream: BinaryIO, num_bytes: int) -> bytes:
    """Read up to num_bytes; a damaged archive gives what can be read."""
    parts: list[bytes] = []
    remaining = num_bytes
    while remaining:
        try:
            part = stream.read(remaining)
        except READ_ERRORS:
            break
        if not part:
            break
        parts.append(part)
        remaining -= len(part)
    return b"".join(parts)


def _encoding_of(sample: bytes, path: Path) -> str:
    wide = _wide_without_mark(sample)
    if wide is not None:
        return wide
    try:
        codecs.getincrementaldecoder("utf-8")("strict").decode(sample)
    except UnicodeDecodeError:
        pass
    else:
        return "utf-8"
    if _mostly_utf8(sample):
        return "utf-8"
    if _is_western(sample):
        return "cp1252"
    from charset_normalizer import from_bytes

    best = from_bytes(sample[:65536]).best()
    if best is None:
        raise DataError(
            f"{path.name} is not text in any known encoding", where=str(path), code="unknown-encoding"
        )
    return best.encoding


def _is_western(sample: bytes) -> bool:
    """True for text in Windows-1252: letters with accents, but few, and between plain ones.

    Statistics of letters guess this badly on short files, so the commonest case comes first.
    """
    try:
        text = sample.decode("cp1252")
    except UnicodeDecodeError:
        return False
    letters = sum(char.isalpha() for char in text) or 1
    accented = sum(char > "\x7f" and char.isalpha() for char in text)
    return accented < 0.35 * letters


def _mostly_utf8(sample: bytes) -> bool:
    """True when a few stray bytes stand in text that is otherwise UTF-8 beyond doubt."""
    decoded = sample.decode("utf-8", "surrogateescape")
    num_bad = sum(1 for char in decoded if "\udc80" <= char <= "\udcff")
    num_good = sum(1 for char in decoded if char > "\x7f") - num_bad
    return num_good > 0 and num_good >= 3 * num_bad


def _wide_without_mark(sample: bytes) -> str | None:
    """Return the name of UTF-16 or UTF-32 text that has no byte order mark, by where its zeros stand."""
    head = sample[: len(sample) // 4 * 4]
    if head.count(0) * 4 < len(head) or not head:
        return None
    shares = [head[start::4].count(0) * 4 / len(head) for start in range(4)]
    wide = [share > 0.8 for share in shares]
    names = {
        (False, True, True, True): "utf-32-le",
        (True, True, True, False): "utf-32-be",
        (False, True, False, True): "utf-16-le",
        (True, False, True, False): "utf-16-be",
    }
    return names.get((wide[0], wide[1], wide[2], wide[3]))
