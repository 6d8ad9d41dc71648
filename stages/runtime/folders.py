"""What a model folder must hold, decided from names and JSON alone. No torch here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.errors import Finding, ModelError

CONFIG_FILE = "config.json"
ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_WEIGHTS_FILE = "adapter_model.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tokenizer_config.json")
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
_SAVE_AGAIN = "load it once with transformers where you trust it, and save_pretrained() it as safetensors"


def model_findings(folder: Path) -> list[Finding]:
    """List what stops a folder from being opened as a base model."""
    if not (folder / CONFIG_FILE).is_file():
        if (folder / ADAPTER_CONFIG_FILE).is_file():
            hint = "give the adapter's base model here; the adapter itself is the input of a stage"
            return [Finding("the folder is an adapter, not a model", str(folder), hint, "adapter-as-model")]
        hint = "a folder written by save_pretrained(), or a Hub id"
        return [Finding(f"the folder holds no {CONFIG_FILE}", str(folder), hint, "no-config")]
    return _weights_findings(folder, "*.safetensors")


def adapter_findings(folder: Path) -> list[Finding]:
    """List what stops a folder from being opened as an adapter."""
    if not folder.is_dir():
        hint = "run the stage that makes it, or give a folder with adapter_config.json"
        return [Finding("there is no such adapter folder", str(folder), hint, "missing-adapter")]
    if not (folder / ADAPTER_CONFIG_FILE).is_file():
        hint = "a folder written by a stage or by peft's save_pretrained()"
        return [Finding(f"the folder holds no {ADAPTER_CONFIG_FILE}", str(folder), hint, "no-adapter-config")]
    return _weights_findings(folder, ADAPTER_WEIGHTS_FILE)


def tokenizer_findings(folder: Path) -> list[Finding]:
    """List what stops a folder's tokenizer from being used with its model."""
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        hint = "save the tokenizer into the same folder: tokenizer.save_pretrained(folder)"
        return [Finding("the folder holds no tokenizer", str(folder), hint, "no-tokenizer")]
    largest, rows = _largest_id(folder / "tokenizer.json"), _embedding_rows(folder)
    if largest is None or rows is None or largest < rows:
        return []
    message = f"the tokenizer makes ids up to {largest}, but the model's embedding has {rows} rows"
    hint = "use the tokenizer that came with the model; added tokens need a resized embedding"
    return [Finding(message, str(folder), hint, "vocabulary-too-large")]


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object of a model or adapter folder.

    Raises:
        ModelError: the file is absent, not JSON, or not an object.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        hint = "copy the folder again from where it was made"
        raise ModelError(
            f"the file cannot be read: {error}", where=str(file), hint=hint, code="bad-json"
        ) from error
    if not isinstance(content, dict):
        raise ModelError("the file does not hold a JSON object", where=str(file), code="bad-json")
    return content


def _weights_findings(folder: Path, pattern: str) -> list[Finding]:
    if any(folder.glob(pattern)):
        return []
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLE_SUFFIXES)
    if pickles:
        message = (
            f"the folder holds its weights only as pickle ({pickles[0]}), which can run code when opened"
        )
        return [Finding(message, str(folder), _SAVE_AGAIN, "pickle-weights")]
    return [Finding(f"the folder holds no {pattern}", str(folder), "copy the weights there", "no-weights")]


def _largest_id(file: Path) -> int | None:
    """Return the largest id of a tokenizer.json, None when the file is absent or of another form."""
    if not file.is_file():
        return None
    content = read_json(file)
    ids = [token["id"] for token in content.get("added_tokens") or () if isinstance(token.get("id"), int)]
    vocabulary = (content.get("model") or {}).get("vocab")
    if isinstance(vocabulary, dict):
        ids += [i for i in vocabulary.values() if isinstance(i, int)]
    elif isinstance(vocabulary, list):
        ids.append(len(vocabulary) - 1)
    return max(ids, default=None)


def _embedding_rows(folder: Path) -> int | None:
    """Return vocab_size of the folder's config.json, None for an adapter or a nested config."""
    if not (folder / CONFIG_FILE).is_file():
        return None
    rows = read_json(folder / CONFIG_FILE).get("vocab_size")
    return rows if isinstance(rows, int) else None
