"""Says what a user's file or folder is: a base model, an adapter, a reward model, or data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pipeline.contract import ArtifactKind
from pipeline.errors import ConfigError

MODEL_KINDS = (
    *(ArtifactKind.FULL_MODEL, ArtifactKind.ADAPTER),
    *(ArtifactKind.REWARD_MODEL, ArtifactKind.VALUE_MODEL),
)
_KIND_OF_SUFFIX = {".py": (ArtifactKind.FUNCTION,), ".txt": (ArtifactKind.TEXT,)}


def kind_of_path(path: Path, allowed: Sequence[ArtifactKind]) -> ArtifactKind:
    """Say what a user's file or folder is, among the kinds that an input takes.

    Raises:
        ConfigError: it is none of them.
    """
    data_kinds = [kind for kind in allowed if kind not in MODEL_KINDS]
    if path.is_dir():
        found = kind_of_model_folder(path)
        if found in allowed and found is not None:
            return found
        if found is None and data_kinds:
            return data_kinds[0]
        what = f"is a {found}" if found else "holds neither config.json nor adapter_config.json"
        raise ConfigError(
            f"the folder {str(path)!r} {what}, and this input takes {said_kinds(allowed)}",
            code="wrong-model-path",
        )
    if not data_kinds:
        raise ConfigError(
            f"{str(path)!r} is a file; a model is a folder with config.json and safetensors weights",
            code="wrong-model-path",
        )
    likely = _KIND_OF_SUFFIX.get(path.suffix, ())
    return next((kind for kind in likely if kind in data_kinds), data_kinds[0])


def kind_of_model_folder(path: Path) -> ArtifactKind | None:
    """Say what kind of model a folder holds, or None when it holds none.

    Raises:
        ConfigError: its adapter_config.json cannot be read.
    """
    if (path / "adapter_config.json").is_file():
        try:
            task = json.loads((path / "adapter_config.json").read_text()).get("task_type")
        except (ValueError, AttributeError, OSError) as error:
            raise ConfigError(
                f"{path / 'adapter_config.json'} is not readable JSON", code="wrong-model-path"
            ) from error
        return ArtifactKind.REWARD_MODEL if task == "SEQ_CLS" else ArtifactKind.ADAPTER
    return ArtifactKind.FULL_MODEL if (path / "config.json").is_file() else None


def said_kinds(kinds: Sequence[ArtifactKind]) -> str:
    """Return the kinds that an input takes, in words."""
    return " or ".join(kinds) or "no extra inputs"
