"""What may be published: allowed files inside the output folder, whole weights, no secrets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.contract import ArtifactKind
from pipeline.disk import Disk
from pipeline.errors import StoreError
from pipeline.seal import Sealed, check_weights, damages, seal
from tests.fakes.source import write_model


def _seal(folder: Path, **given: Path) -> Sealed:
    declared = {"model": ArtifactKind.FULL_MODEL}
    return seal(Disk(), folder, declared=declared, given=given or {"model": folder / "model"})


def _header(entries: dict[str, object], payload: bytes = b"") -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + payload


def test_a_sealed_folder_is_read_only_and_listed_in_full(tmp_path: Path) -> None:
    write_model(tmp_path / "model", 1.5)
    (tmp_path / "model" / "model.safetensors").chmod(0o600)

    sealed = _seal(tmp_path)

    files = [file.path for file in sealed.outputs["model"].files]
    assert files == ["model/config.json", "model/model.safetensors"]
    assert (tmp_path / "model" / "model.safetensors").stat().st_mode & 0o777 == 0o444
    assert damages(tmp_path, sealed.outputs) == []


def test_files_of_other_kinds_are_left_out_and_named(tmp_path: Path) -> None:
    write_model(tmp_path / "model", 1.5)
    foreign = ["training_args.bin", "optimizer.pt", "rng_state.pth", "modeling.py", "events.tfevents"]
    for name in foreign:
        (tmp_path / "model" / name).write_bytes(b"\x80")
    (tmp_path / "notes.txt").write_text("no output holds this")

    sealed = _seal(tmp_path)

    assert sorted(sealed.left_out) == sorted(["notes.txt", *(f"model/{name}" for name in foreign)])
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["config.json", "model.safetensors"]


def test_weights_in_a_pickle_alone_are_no_weights(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(b"\x80\x04.")

    with pytest.raises(StoreError, match="no safetensors weights"):
        _seal(tmp_path)


def test_outputs_that_are_missing_unknown_or_outside_are_all_named(tmp_path: Path) -> None:
    folder = tmp_path / "output"
    folder.mkdir()
    (tmp_path / "elsewhere").mkdir()
    declared = {"model": ArtifactKind.FULL_MODEL, "table": ArtifactKind.TABLE, "text": ArtifactKind.TEXT}

    given = {"model": tmp_path / "elsewhere", "text": folder, "odd": folder}

    with pytest.raises(StoreError) as caught:
        seal(Disk(), folder, declared=declared, given=given)

    messages = sorted(finding.message for finding in caught.value.findings)
    assert messages == [
        "output 'model' is missing or lies outside the output folder",
        "output 'text' must be inside the output folder, not the folder itself",
        "the stage gave no output 'table'",
        "the stage's card declares no output 'odd'",
    ]


def test_a_link_among_the_outputs_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path / "model", 1.5)
    (tmp_path / "model" / "extra.json").symlink_to("/etc/passwd")

    with pytest.raises(StoreError, match="link"):
        _seal(tmp_path)


@pytest.mark.parametrize(
    "secret",
    [
        "hf_" + "a" * 34,
        "ghp_" + "b" * 36,
        "sk-" + "c" * 40,
        "AKIA" + "D" * 16,
        "-----BEGIN RSA PRIVATE KEY-----",
    ],
    ids=lambda secret: secret[:4],
)
def test_a_token_in_a_config_is_not_published(tmp_path: Path, secret: str) -> None:
    write_model(tmp_path / "model", 1.5)
    (tmp_path / "model" / "config.json").write_text(json.dumps({"hub_token": secret}))

    with pytest.raises(StoreError, match="secret") as caught:
        _seal(tmp_path)

    assert secret not in str(caught.value)


TENSOR = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}
LATER = {**TENSOR, "data_offsets": [2, 6]}


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\x80\x04.", id="pickle"),
        pytest.param((2**40).to_bytes(8, "little") + b"{}", id="header bomb"),
        pytest.param(_header({"a": TENSOR}, b"123"), id="truncated"),
        pytest.param(_header({"a": TENSOR}, b"12345"), id="trailing bytes"),
        pytest.param(
            _header({"a": TENSOR, "b": LATER}, b"123456"),
            id="overlap",
        ),
        pytest.param(_header({"a": LATER}, b"123456"), id="hole"),
        pytest.param(
            _header({"a": TENSOR}, b"1234").replace(b'{"a"', b'{"a": 1, "a"'),
            id="header length wrong",
        ),
        pytest.param(_header({"a": 3}), id="no tensor entry"),
    ],
)
def test_a_weights_file_that_is_not_whole_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)

    with pytest.raises(StoreError, match="not a whole safetensors file"):
        check_weights(path)


def test_two_tensors_of_one_name_are_refused(tmp_path: Path) -> None:
    entry = '{"dtype":"U8","shape":[4],"data_offsets":[0,4]}'
    text = f'{{"a":{entry},"a":{entry}}}'.encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"1234")

    with pytest.raises(StoreError, match="twice"):
        check_weights(path)


def test_a_changed_byte_after_sealing_is_named(tmp_path: Path) -> None:
    write_model(tmp_path / "model", 1.5)
    sealed = _seal(tmp_path)
    path = tmp_path / "model" / "model.safetensors"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")

    assert damages(tmp_path, sealed.outputs) == ["model/model.safetensors changed"]
