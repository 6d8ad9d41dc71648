"""Asks an OpenAI-compatible service, once for each different question: replies are kept by content."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.canonical import digest
from pipeline.errors import DataError, UserError
from stages.judge_config import JudgeConfig

TRIES = 4
RETRY_SECONDS = 1.0
"Wait before the second try; doubles with each."
RETRIED = (408, 409, 425, 429, 500, 502, 503, 504)
MAX_REPLY_BYTES = 1_000_000
VERSION = 1
"Raise it when the same question is asked in another way."


@dataclass(frozen=True, slots=True)
class Reply:
    """What the judge wrote, and what it took."""

    text: str
    input_tokens: int
    output_tokens: int
    cached: bool


class JudgeClient:
    """One service, one model, temperature 0."""

    def __init__(self, config: JudgeConfig, cache: Path) -> None:
        """Read the key from the environment.

        Raises:
            UserError: the address is not safe, or the environment variable is not set.
        """
        if found := config.findings():
            raise UserError.from_findings(found)
        self._config, self._cache = config, cache
        self._key = _key(config)
        self._open = urllib.request.build_opener(_NoRedirect).open
        cache.mkdir(parents=True, exist_ok=True)

    def ask(self, question: str) -> Reply:
        """Return the judge's reply, from the cache or from the service.

        Raises:
            DataError: the service does not answer, or not as an OpenAI-compatible one does.
        """
        messages = [
            {"role": "system", "content": self._config.instruction},
            {"role": "user", "content": question},
        ]
        body = {
            "model": self._config.model,
            "messages": messages,
            "temperature": 0,
            "max_tokens": self._config.max_tokens,
        }
        file = self._cache / f"{digest({'what': f'judge {VERSION}', 'url': self._config.url, **body})}.json"
        kept = _read(file)
        if kept is not None:
            return kept
        reply = _reply(self._send(body), where=self._config.url)
        document = {"text": reply.text, "input": reply.input_tokens, "output": reply.output_tokens}
        text = json.dumps({**document, "sha256": _sum(document)})
        draft = file.with_suffix(f".{threading.get_ident()}.draft")
        draft.write_text(text, encoding="utf-8")
        draft.replace(file)
        return reply

    def _send(self, body: Mapping[str, Any]) -> bytes:
        """Post a request; a busy service is asked again."""
        request = urllib.request.Request(
            self._config.url.rstrip("/") + "/chat/completions",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json", **self._authorization()},
        )
        for number in range(TRIES):
            try:
                with self._open(request, timeout=self._config.timeout_seconds) as response:
                    return bytes(response.read(MAX_REPLY_BYTES))
            except urllib.error.HTTPError as error:
                problem, again = f"{error.code} {error.reason}", error.code in RETRIED
                hint = "judge.api_key: env:NAME" if error.code in (401, 403) else "judge.url and judge.model"
            except OSError as error:
                problem, again, hint = (
                    str(getattr(error, "reason", error)),
                    True,
                    "start it, or mend judge.url",
                )
            if not again or number == TRIES - 1:
                break
            time.sleep(RETRY_SECONDS * 2**number)
        raise DataError(
            f"the judge does not answer: {self._without_key(problem)}",
            where=self._config.url,
            hint=hint,
            code="judge-failed",
        )

    def _authorization(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._key}"} if self._key else {}

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows nothing: the key must not travel to another address."""

    def redirect_request(self, *_: Any) -> None:
        """Refuse."""
        return


def _key(config: JudgeConfig) -> str | None:
    if config.api_key is None:
        return None
    name = config.api_key.removeprefix("env:")
    if not os.environ.get(name):
        raise UserError(
            f"the environment variable {name} that judge.api_key names is not set",
            where="judge.api_key",
            hint=f"export {name}=...",
            code="missing-key",
        )
    return os.environ[name]


def _reply(raw: bytes, *, where: str) -> Reply:
    try:
        content = json.loads(raw)
        usage = content.get("usage") or {}
        text = content["choices"][0]["message"]["content"]
        if not isinstance(text, str):
            raise TypeError("the message has no text")
        return Reply(text, int(usage.get("prompt_tokens", 0)), int(usage.get("completion_tokens", 0)), False)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise DataError(
            f"the judge's reply is not that of an OpenAI-compatible service: {type(error).__name__}",
            where=where,
            hint="judge.url ends before /chat/completions, often in /v1",
            code="judge-failed",
        ) from error


def _read(file: Path) -> Reply | None:
    """Return a kept reply; a damaged one counts as none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if found.pop("sha256") != _sum(found):
            return None
        return Reply(found["text"], found["input"], found["output"], cached=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _sum(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
