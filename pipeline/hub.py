"""Models of the Hugging Face Hub: what the local cache holds, read without loading anything."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ModelError
from pipeline.fingerprint import hub_digest

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?$", re.ASCII)
_COMMIT = re.compile(r"^[0-9a-f]{40}$")
_NEEDED_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.tiktoken")


@dataclass(frozen=True, slots=True)
class HubModel:
    """A Hub repository at one revision, and its files when the cache has them."""

    model_id: str
    revision: str
    "Branch, tag or commit as asked for."
    commit: str | None = None
    "40-hex commit that the cache resolved the revision to; None when it is not there."
    path: Path | None = None
    "Snapshot folder in the cache."

    @property
    def fingerprint(self) -> str | None:
        """Digest of id and commit; None until the commit is known."""
        return hub_digest(self.model_id, self.commit) if self.commit else None

    @property
    def source(self) -> str:
        """The id with its commit, as records show it."""
        return f"{self.model_id}@{self.commit or self.revision}"


def looks_like_hub_id(text: str) -> bool:
    """Say whether a text may be a Hub id, with or without an owner."""
    return _HUB_ID.match(text) is not None and ".." not in text


def look_up(model_id: str, revision: str | None = None) -> HubModel:
    """Return a Hub model as far as the local cache knows it."""
    wanted = revision or "main"
    folder = cache_folder() / f"models--{model_id.replace('/', '--')}"
    if _COMMIT.match(wanted):
        commit: str | None = wanted
    else:
        reference = folder / "refs" / wanted
        commit = reference.read_text().strip() if reference.is_file() else None
    snapshot = folder / "snapshots" / (commit or "")
    if commit is None or not _COMMIT.match(commit) or not (snapshot / "config.json").exists():
        return HubModel(model_id, wanted)
    return HubModel(model_id, wanted, commit, snapshot)


def download(model: HubModel) -> HubModel:
    """Fetch a model's configuration, tokenizer and safetensors weights into the cache.

    Raises:
        ModelError: the Hub does not have it, or cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        snapshot_download(model.model_id, revision=model.revision, allow_patterns=list(_NEEDED_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ModelError(
            f"cannot fetch {model.model_id!r} from the Hub: {type(error).__name__}",
            hint="check the name and the network, or give a local folder",
            code="model-not-found",
        ) from error
    found = look_up(model.model_id, model.revision)
    if found.path is None:
        raise ModelError(f"{model.model_id!r} on the Hub has no config.json", code="model-not-found")
    return found


def cache_folder() -> Path:
    """Return the folder of the Hub's local cache, as huggingface_hub itself chooses it."""
    if explicit := os.environ.get("HF_HUB_CACHE"):
        return Path(explicit).expanduser()
    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"
    return Path(os.environ.get("HF_HOME", str(default))).expanduser() / "hub"


def is_offline() -> bool:
    """Say whether the user forbade network access to the Hub."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
