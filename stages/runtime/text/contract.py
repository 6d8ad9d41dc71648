"""The text contract: what must stay equal from a stage to its children for token ids to mean the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rfc8785

from pipeline.contract import Checkpoint
from pipeline.errors import Finding, HandOverError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FILE_NAME = "text.json"
_TYPE = "text-contract/1"
_PROBES = ("Hello, world! 123\n\n\tx", " leading blank", "Größe 漢字 🙂", "<tag> {}[]()")


@dataclass(frozen=True, slots=True)
class TextContract:
    """Template, special ids, vocabulary and stop ids of a model folder, as its text.json holds them."""

    chat_template_sha256: str | None
    bos_token_id: int | None
    eos_token_id: int | None
    pad_token_id: int | None
    vocabulary_size: int
    "len(tokenizer): added tokens included, padding rows of the embedding not."
    tokenizer_sha256: str
    "Digest of the vocabulary, the added tokens and the ids of a few probe texts."
    stop_token_ids: tuple[int, ...]
    base_fingerprint: str | None = None
    "Content digest of the base model that the folder's weights belong to."

    @classmethod
    def from_tokenizer(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        *,
        base: Checkpoint | None = None,
        generation_eos: Sequence[int] = (),
    ) -> TextContract:
        """Read the contract off a tokenizer.

        Raises:
            ModelError: the template fails, or no stop token can be found.
        """
        from stages.runtime.text.chat import ChatText  # chat.py offers this class too, so it is imported late

        template = tokenizer.chat_template
        text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
        return cls(
            chat_template_sha256=_sha256(text.encode()) if template else None,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            vocabulary_size=len(tokenizer),
            tokenizer_sha256=tokenizer_digest(tokenizer),
            stop_token_ids=ChatText(tokenizer, generation_eos=generation_eos).stop_token_ids,
            base_fingerprint=base.fingerprint if base else None,
        )

    @classmethod
    def read(cls, folder: Path) -> TextContract | None:
        """Return the contract of a folder; None when it has none, as a model from elsewhere.

        Raises:
            ModelError: text.json is there but cannot be read.
        """
        path = folder / FILE_NAME
        if not path.is_file():
            return None
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            if held.pop("type") != _TYPE:
                raise ValueError("another type of document")
            return cls(**{**held, "stop_token_ids": tuple(held["stop_token_ids"])})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ModelError(
                f"{FILE_NAME} is not a text contract: {error}", where=str(path), code="bad-text-contract"
            ) from error

    def write(self, folder: Path) -> Path:
        """Write text.json into a folder that is not yet published."""
        path = folder / FILE_NAME
        path.write_bytes(rfc8785.dumps({"type": _TYPE, **_plain(self)}) + b"\n")
        return path

    def differences(
        self, other: TextContract, *, where: str = "", other_name: str = "parent"
    ) -> list[Finding]:
        """Return one finding for each part in which two contracts differ, with both values.

        The base is compared only where both contracts name one. Stop ids may be a part of the other's:
        the generation config of a base adds to those of its tokenizer.
        """
        return [
            Finding(
                f"{_LABELS[part.name]} is {mine!r} here and {theirs!r} in the {other_name}",
                where,
                "use the parent's tokenizer and chat template, or run the parent again with this one",
                f"text-{part.name.replace('_', '-')}",
            )
            for part in fields(self)
            if (mine := getattr(self, part.name)) != (theirs := getattr(other, part.name))
            and not (part.name == "base_fingerprint" and None in (mine, theirs))
            and not (part.name == "stop_token_ids" and (set(mine) <= set(theirs) or set(mine) >= set(theirs)))
        ]


_LABELS = {
    "chat_template_sha256": "the chat template (sha256)",
    "bos_token_id": "the bos token id",
    "eos_token_id": "the eos token id",
    "pad_token_id": "the pad token id",
    "vocabulary_size": "the vocabulary size",
    "tokenizer_sha256": "the tokenizer (sha256)",
    "stop_token_ids": "the list of stop token ids",
    "base_fingerprint": "the base model (fingerprint)",
}


def check_same_text(
    parent_folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    base: Checkpoint | None = None,
    generation_eos: Sequence[int] = (),
    where: str = "",
) -> TextContract:
    """Check that a stage makes token ids as its parent did, and return the stage's own contract.

    A parent without text.json, such as a model from the Hub, is taken as it is.

    Raises:
        HandOverError: template, special ids, vocabulary, stop ids or base differ; every difference is named.
    """
    own = TextContract.from_tokenizer(tokenizer, base=base, generation_eos=generation_eos)
    parent = TextContract.read(parent_folder)
    found = own.differences(parent, where=where or str(parent_folder)) if parent else []
    if found:
        raise HandOverError.from_findings(found)
    return own


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the sha256 of what a tokenizer does: its vocabulary, added tokens and some encodings."""
    added = [[int(i), str(token), bool(token.special)] for i, token in tokenizer.added_tokens_decoder.items()]
    probes = [list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in _PROBES]
    held = json.dumps([sorted(tokenizer.get_vocab().items()), sorted(added), probes], ensure_ascii=True)
    return _sha256(held.encode())


def _plain(contract: TextContract) -> dict[str, Any]:
    return {**asdict(contract), "stop_token_ids": list(contract.stop_token_ids)}


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
