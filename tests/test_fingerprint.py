"""Digests of files and folders, and what may and may not change the key of a stage."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import pytest
from pydantic import Field

from pipeline.config.strict import BY_CONTENT, NOT_IN_KEY, StrictModel
from pipeline.errors import StoreError
from pipeline.fingerprint import (
    DigestCache,
    content_digest,
    defaults_digest,
    file_digest,
    key_settings,
    list_folder,
    listing,
    model_digest,
    recipe,
    stage_key,
    tree_digest,
)
from pipeline.paths import check_distinct, check_relative


class Inner(StrictModel):
    """Nested settings."""

    rank: int = 16
    dropout: float = 0.0


class Settings(StrictModel):
    """Settings of a stage in these tests."""

    beta: float = 0.1
    steps: int | None = None
    save_steps: int = Field(100, json_schema_extra=NOT_IN_KEY)
    template: str | None = Field(None, json_schema_extra=BY_CONTENT)
    inner: Inner = Inner(rank=8)


def _old(path: Path) -> Path:
    past = time.time() - 60
    os.utime(path, (past, past))
    return path


def test_a_folder_digest_is_the_hash_of_its_written_listing(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.txt").write_bytes(b"hi")
    (tmp_path / "a.txt").write_bytes(b"")
    # The listing written by hand: sorted by path, keys in order, no spaces.
    empty, hi = hashlib.sha256(b"").hexdigest(), hashlib.sha256(b"hi").hexdigest()
    by_hand = (
        f'{{"files":[{{"path":"a.txt","sha256":"{empty}","size":0}},'
        f'{{"path":"b/x.txt","sha256":"{hi}","size":2}}],"type":"tree/1"}}'
    )

    assert tree_digest(listing(tmp_path)) == hashlib.sha256(by_hand.encode()).hexdigest()


def test_a_renamed_file_changes_the_digest_and_its_times_do_not(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("same")
    before = content_digest(tmp_path)

    _old(tmp_path / "a.txt")
    (tmp_path / "empty").mkdir()
    assert content_digest(tmp_path) == before

    (tmp_path / "a.txt").rename(tmp_path / "b.txt")
    assert content_digest(tmp_path) != before


def test_a_link_in_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("x")
    (tmp_path / "link").symlink_to("real")

    with pytest.raises(StoreError, match="link"):
        list_folder(tmp_path)
    with pytest.raises(StoreError, match="link"):
        file_digest(tmp_path / "link")


@pytest.mark.parametrize(
    "path",
    [
        *("", "/etc/passwd", "../up", "a/../b", "a//b", "./a", "a\\b", "c:x", "nul", "LPT1.txt", "a\0b"),
        *("a\nb", "name ", " name", "dot.", "e\u0301", "x" * 256, "a/" * 600 + "b", "what?", "\ud800"),
    ],
)
def test_names_that_escape_or_fit_no_other_system_are_refused(path: str) -> None:
    with pytest.raises(StoreError, match="refused"):
        check_relative(path)


@pytest.mark.parametrize("path", ["adapter_model.safetensors", "a/b/c.json", ".gitattributes", "naïve.txt"])
def test_ordinary_names_pass(path: str) -> None:
    assert check_relative(path) == path


def test_two_names_that_differ_only_in_case_are_refused() -> None:
    with pytest.raises(StoreError, match="only in case"):
        check_distinct(["Model.json", "model.json"])


def test_a_model_folder_counts_by_weights_and_tokenizer_only(tmp_path: Path) -> None:
    for name in ("model.safetensors", "config.json", "tokenizer.json", "README.md", "training_args.bin"):
        (tmp_path / name).write_text(name)
    before = model_digest(tmp_path)

    (tmp_path / "README.md").write_text("other words")
    (tmp_path / "training_args.bin").write_text("other pickle")
    assert model_digest(tmp_path) == before

    (tmp_path / "config.json").write_text("other config")
    assert model_digest(tmp_path) != before


def test_a_model_folder_of_links_has_the_digest_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "blob").write_text("weights")
    (tmp_path / "plain" / "model.safetensors").write_text("weights")
    (tmp_path / "snapshot" / "model.safetensors").symlink_to("../blob")

    assert model_digest(tmp_path / "snapshot") == model_digest(tmp_path / "plain")


def test_a_setting_at_its_default_stays_out_of_the_key() -> None:
    assert key_settings(Settings()) == {}
    assert key_settings(Settings(beta=0.1, inner=Inner(rank=8))) == {}


def test_only_what_differs_from_the_default_enters_the_key() -> None:
    assert key_settings(Settings(beta=0.2, inner=Inner(rank=8, dropout=0.5))) == {
        "beta": 0.2,
        "inner": {"dropout": 0.5},
    }


def test_a_nested_default_that_the_outer_class_replaces_counts_as_a_change_when_put_back() -> None:
    # Inner's own default rank is 16; Settings says 8, so 16 is the user's choice here.
    assert key_settings(Settings(inner=Inner())) == {"inner": {"rank": 16}}


def test_a_setting_marked_not_in_key_never_changes_the_key() -> None:
    assert key_settings(Settings(save_steps=7)) == {}


def test_a_named_file_counts_by_its_content(tmp_path: Path) -> None:
    first, second = tmp_path / "a.jinja", tmp_path / "b.jinja"
    first.write_text("same")
    second.write_text("same")

    assert key_settings(Settings(template=str(first))) == key_settings(Settings(template=str(second)))
    second.write_text("different")
    assert key_settings(Settings(template=str(first))) != key_settings(Settings(template=str(second)))
    assert key_settings(Settings(template="chatml")) == {"template": "chatml"}


def test_a_new_option_with_a_default_voids_no_key() -> None:
    class WithOption(Settings):
        margin: float = 0.0

    assert key_settings(WithOption(beta=0.3)) == key_settings(Settings(beta=0.3))


def test_a_changed_default_changes_the_digest_of_the_defaults() -> None:
    class Changed(Settings):
        beta: float = 0.2

    class NotInKey(Settings):
        save_steps: int = Field(50, json_schema_extra=NOT_IN_KEY)

    assert defaults_digest(Changed) != defaults_digest(Settings)
    assert defaults_digest(NotInKey) == defaults_digest(Settings)


def test_the_key_depends_on_inputs_by_content_and_on_the_version() -> None:
    one = stage_key(recipe("dpo", 1, inputs={"policy": "a" * 64}, config={"beta": 0.2}))

    assert one == stage_key(
        json.loads(json.dumps(recipe("dpo", 1, inputs={"policy": "a" * 64}, config={"beta": 0.2})))
    )
    assert one != stage_key(recipe("dpo", 2, inputs={"policy": "a" * 64}, config={"beta": 0.2}))
    assert one != stage_key(recipe("dpo", 1, inputs={"policy": "b" * 64}, config={"beta": 0.2}))


def test_a_file_that_did_not_change_is_hashed_once(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_text("one")
    _old(path)
    store = tmp_path / "digests.json"
    # ctime cannot be set back, so the file counts as young unless the clock is moved on.
    cache = DigestCache(store)
    first = cache(path)
    cache.save()

    assert first == hashlib.sha256(b"one").hexdigest()
    assert not store.exists(), "a young file must not be trusted"


def test_the_cache_trusts_an_old_file_and_notices_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights"
    path.write_text("one")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 60)
    cache = DigestCache(tmp_path / "digests.json")
    cache(path)
    cache.save()

    again = DigestCache(tmp_path / "digests.json")
    known = dict(again._known)
    path.write_text("two")

    assert len(known) == 1
    assert again(path) == hashlib.sha256(b"two").hexdigest()
