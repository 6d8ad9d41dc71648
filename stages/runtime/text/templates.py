"""Chat templates: found by name or file, rendered in transformers' sandbox. Imports no torch."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2.exceptions import TemplateError

from pipeline.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, Any]

MAX_RENDERED_CHARACTERS = 64 * 1024 * 1024
"A template that writes more than this for one conversation is refused."


def template_names() -> list[str]:
    """Return the names of the chat templates that the installed trl package ships, sorted."""
    return sorted(path.stem for path in _folder().glob("*.jinja"))


def resolve_template(name: str) -> str:
    """Return the text of a chat template given as a Jinja file or as the name of one that trl ships.

    trl itself is not imported.

    Raises:
        ConfigError: neither a file nor a known name; the message names the closest one.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return _read(path)
    if path.suffix in {".jinja", ".jinja2", ".j2"} and len(path.parts) > 1:
        raise ConfigError(
            f"the chat template file {name} does not exist", where="model.chat_template", code="missing-file"
        )
    known = template_names()
    stem = name.removesuffix(".jinja")
    if stem in known:
        return _read(_folder() / f"{stem}.jinja")
    close = difflib.get_close_matches(stem, known, n=3)
    raise ConfigError(
        f"there is no chat template {name!r}: no such file, and trl ships none of that name",
        where="model.chat_template",
        hint=" or ".join(close) if close else f"a Jinja file, or one of {', '.join(known)}",
        code="unknown-template",
    )


def render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, add_generation_prompt: bool
) -> str:
    """Write a conversation as text with the tokenizer's chat template.

    Raises:
        DataError: the template refuses or cannot write these messages.
    """
    try:
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
    except (TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
        roles = ", ".join(str(message.get("role")) for message in messages)
        raise DataError(
            f"the chat template cannot write a conversation of {roles}: {error}",
            hint="check the order of the roles, or set model.chat_template to a template that takes them",
            code="template-failed",
        ) from error
    if len(text) > MAX_RENDERED_CHARACTERS:
        raise DataError(
            f"the chat template wrote {len(text)} characters for one conversation", code="template-failed"
        )
    return text


def _folder() -> Path:
    spec = importlib.util.find_spec("trl")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            "named chat templates come with the trl package, which is not installed",
            where="model.chat_template",
            hint="pip install trl, or give a Jinja file",
            code="missing-package",
        )
    return Path(spec.submodule_search_locations[0]) / "chat_templates"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the chat template {path} cannot be read: {error}",
            where="model.chat_template",
            code="unreadable",
        ) from error
