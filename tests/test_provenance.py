"""The statement names every published file, what it was made from and how, and no machine."""

from __future__ import annotations

import json
import os
from base64 import b64decode, b64encode
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_public_key,
)

from pipeline.cli.main import main
from pipeline.errors import ExitCode
from pipeline.fingerprint import file_digest
from tests.fakes.engine import VALUES, Engine


def test_a_statement_names_files_recipe_and_parents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = Engine(tmp_path / "work")
    engine.run_here()
    monkeypatch.chdir(engine.folder)

    main(["provenance", "chain", "--store", "store"])

    text = capsys.readouterr().out
    first, second, _ = map(json.loads, text.splitlines())
    record = engine.store.load(engine.stage_folders()["second"].name)
    assert first["_type"] == "https://in-toto.io/Statement/v1"
    assert first["predicateType"] == "https://slsa.dev/provenance/v1"
    subjects = {subject["name"]: subject["digest"]["sha256"] for subject in second["subject"]}
    assert sorted(subjects) == ["model/config.json", "model/model.safetensors", "table/table.json"]
    folder = engine.stage_folders()["second"]
    assert subjects["model/model.safetensors"] == file_digest(folder / "model" / "model.safetensors")
    definition = second["predicate"]["buildDefinition"]
    assert definition["externalParameters"]["recipe"] == record.recipe
    (parent,) = definition["resolvedDependencies"]
    assert parent["annotations"]["key"] == engine.stage_folders()["first"].name
    assert first["predicate"]["buildDefinition"]["resolvedDependencies"][0]["name"] == "corpus.txt"
    assert str(engine.folder) not in text
    assert os.uname().nodename not in text


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """A private key and its public half."""
    key = Ed25519PrivateKey.generate()
    private, public = tmp_path / "key.pem", tmp_path / "key.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture
def signed(
    keys: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Engine:
    """A finished run with the signed statements of its stages in signed.jsonl."""
    engine = Engine(tmp_path / "work")
    engine.run_here()
    monkeypatch.chdir(engine.folder)
    assert main(["provenance", "chain", "--sign", str(keys[0]), "--store", "store"]) == ExitCode.OK
    (engine.folder / "signed.jsonl").write_text(capsys.readouterr().out)
    return engine


def _verify(key: Path) -> int:
    return main(["verify", "chain", "--signatures", "signed.jsonl", "--key", str(key), "--store", "store"])


def test_signed_statements_hold_and_another_program_can_check_them(
    signed: Engine, keys: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert _verify(keys[1]) == ExitCode.OK
    assert "all as recorded" in capsys.readouterr().out

    # The envelope by hand: a signature over "DSSEv1 <len> <type> <len> <payload>".
    line = json.loads((signed.folder / "signed.jsonl").read_text().splitlines()[0])
    kind, payload = line["payloadType"].encode(), b64decode(line["payload"])
    text = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
    load_pem_public_key(keys[1].read_bytes()).verify(b64decode(line["signatures"][0]["sig"]), text)
    assert json.loads(payload)["_type"] == "https://in-toto.io/Statement/v1"


def test_a_statement_that_was_changed_is_not_signed_any_more(
    signed: Engine, keys: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = signed.folder / "signed.jsonl"
    first, *others = path.read_text().splitlines()
    line = json.loads(first)
    line["payload"] = b64encode(b64decode(line["payload"]).replace(b"corpus.txt", b"virtue.txt")).decode()
    path.write_text("\n".join([json.dumps(line), *others]))

    assert _verify(keys[1]) == ExitCode.STAGE_FAILED
    assert "signed.jsonl:1: not signed by this key" in capsys.readouterr().out


def test_a_forged_record_contradicts_the_signed_statement(
    signed: Engine, keys: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    store = signed.store
    record = store.load(signed.stage_folders()["second"].name)
    path = store.stage_folder(record.key) / "record.json"
    path.chmod(0o644)
    # A forger who knows the format gives the changed record a right seal of its own.
    path.write_bytes(record.model_copy(update={"notes": ("trust me",), "ended": record.started}).to_bytes())

    assert _verify(keys[1]) == ExitCode.STAGE_FAILED
    assert "statement of stage second says something else" in capsys.readouterr().out


def test_another_key_a_missing_key_and_a_missing_line_are_told_apart(
    signed: Engine, keys: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Ed25519PrivateKey.generate().public_key()
    (tmp_path / "other.pub").write_bytes(other.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))

    assert _verify(tmp_path / "other.pub") == ExitCode.STAGE_FAILED
    assert capsys.readouterr().out.count("not signed by this key") == len(VALUES)
    assert _verify(tmp_path / "nothing.pub") == ExitCode.USER_ERROR
    assert _verify(keys[0]) == ExitCode.USER_ERROR
    assert "not a usable public key" in capsys.readouterr().err

    path = signed.folder / "signed.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[1:]))
    assert _verify(keys[1]) == ExitCode.STAGE_FAILED
    assert "stage first has no signed statement" in capsys.readouterr().out


def test_a_key_with_a_password_needs_it(
    signed: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    form = BestAvailableEncryption(b"open sesame")
    (tmp_path / "locked.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, form))
    words = ["provenance", "chain", "--sign", str(tmp_path / "locked.pem"), "--store", "store"]

    assert main(words) == ExitCode.USER_ERROR
    assert "TRIPTYCH_KEY_PASSWORD" in capsys.readouterr().err
    monkeypatch.setenv("TRIPTYCH_KEY_PASSWORD", "open sesame")
    assert main(words) == ExitCode.OK
    assert "open sesame" not in capsys.readouterr().out
