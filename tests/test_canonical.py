"""Canonical JSON and documents that know whether they were changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.canonical import canonical_json, digest, finite, parse, read_sealed, sealed
from pipeline.errors import StoreError

TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
SCALARS = st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(-1e15, 1e15) | TEXT
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        # RFC 8785, section 3.2.2: numbers, escapes and literals.
        (
            {"numbers": [333333333.33333329, 1e30, 4.50, 2e-3, 0.000000000000000000000000001]},
            b'{"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27]}',
        ),
        ({"literals": [None, True, False]}, b'{"literals":[null,true,false]}'),
        # Whole floats lose their point, and minus zero its sign.
        ([1.0, -0.0, 1e16], b"[1,0,10000000000000000]"),
        # Keys are ordered by UTF-16 code units: the surrogate pair D83D DE00 stands before FB33.
        ({"\ufb33": 1, "\U0001f600": 2}, b'{"\xf0\x9f\x98\x80":2,"\xef\xac\xb3":1}'),
    ],
)
def test_canonical_json_follows_rfc_8785(value: object, expected: bytes) -> None:
    assert canonical_json(value) == expected


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**53, {1: 2}, "\ud800", {"a": object()}])
def test_what_has_no_canonical_form_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="canonical"):
        canonical_json(value)


@settings(max_examples=50, deadline=None)
@given(VALUES)
def test_a_value_read_back_has_the_same_digest(value: object) -> None:
    assert digest(json.loads(canonical_json(value))) == digest(value)


def test_numbers_that_json_cannot_hold_become_words() -> None:
    assert [finite(float("nan")), finite(float("inf")), finite(float("-inf")), finite(2.5)] == [
        "nan",
        "inf",
        "-inf",
        2.5,
    ]


def test_every_single_bit_flip_of_a_sealed_document_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "document.json"
    data = sealed({"type": "sample", "version": 1, "text": "ä\n", "rows": [1, 2.5]})
    path.write_bytes(data)
    assert read_sealed(path, type_name="sample", version=1)["rows"] == [1, 2.5]

    unnoticed = []
    for bit in range(len(data) * 8):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        try:
            read_sealed(path, type_name="sample", version=1)
            unnoticed.append(bit)
        except StoreError:
            pass

    assert unnoticed == []


def test_a_document_that_was_only_laid_out_anew_is_noticed_too(tmp_path: Path) -> None:
    path = tmp_path / "document.json"
    path.write_bytes(json.dumps(json.loads(sealed({"type": "sample", "version": 1}))).encode())

    with pytest.raises(StoreError, match="the bytes changed"):
        read_sealed(path, type_name="sample", version=1)


def test_a_document_of_a_newer_version_says_so(tmp_path: Path) -> None:
    path = tmp_path / "document.json"
    path.write_bytes(sealed({"type": "sample", "version": 2}))

    with pytest.raises(StoreError, match="newer") as caught:
        read_sealed(path, type_name="sample", version=1)

    assert caught.value.findings[0].code == "newer-version"


@pytest.mark.parametrize(
    "data",
    [
        b'{"a": 1, "a": 2}',
        b'{"a": NaN}',
        b"[]",
        b"{",
        b'{"a":' * 40 + b"1" + b"}" * 40,
        b"[" * 100_000,
        b"\xff",
    ],
    ids=["duplicate key", "NaN", "list", "torn", "deep", "very deep", "not UTF-8"],
)
def test_hostile_documents_are_refused(data: bytes) -> None:
    with pytest.raises(StoreError, match="not a readable document"):
        parse(data, where="x")
