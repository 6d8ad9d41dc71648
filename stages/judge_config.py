"""Settings of a judge behind an OpenAI-compatible address. No torch here."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from pydantic import Field

from pipeline.config.strict import NOT_IN_KEY, StrictModel
from pipeline.errors import Finding

INSTRUCTION = (
    "You compare two answers to one prompt. Judge only which answer helps the person more: correct, "
    "relevant, clear, no longer than needed. Reply with one word: A, B or TIE."
)


class JudgeConfig(StrictModel):
    """A language model that says which of two answers is better. Every pair is shown in both orders."""

    url: str = Field(json_schema_extra=NOT_IN_KEY)
    "Address of the service up to and without /chat/completions, such as http://localhost:8000/v1."
    model: str
    "The judge's name at that service."
    api_key: str | None = Field(None, pattern=r"^env:[A-Za-z_][A-Za-z0-9_]*$", json_schema_extra=NOT_IN_KEY)
    "Where the key is, as env:NAME of an environment variable; the key itself is never recorded."
    instruction: str = INSTRUCTION
    "What the judge is told; it must ask for A, B or TIE."
    max_prompts: int | None = Field(100, ge=1)
    "Only the first so many prompts are judged; None judges all."
    max_tokens: int = Field(16, ge=1)
    "Longest reply in tokens."
    timeout_seconds: float = Field(60.0, gt=0, json_schema_extra=NOT_IN_KEY)
    "How long one reply may take."
    parallel: int = Field(4, ge=1, le=64, json_schema_extra=NOT_IN_KEY)
    "Requests under way at once."
    input_price: float = Field(0.0, ge=0, json_schema_extra=NOT_IN_KEY)
    "Price of a million tokens that the judge reads."
    output_price: float = Field(0.0, ge=0, json_schema_extra=NOT_IN_KEY)
    "Price of a million tokens that the judge writes."

    def findings(self) -> list[Finding]:
        """Say what is wrong with the address; a key goes over https, or to this machine."""
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            return [Finding(f"judge.url {self.url!r} is no http address", "judge.url", _EXAMPLE, "bad-url")]
        if parts.username or parts.password or parts.query or parts.fragment:
            message = "judge.url holds a user, a query or a fragment, where keys hide"
            return [Finding(message, "judge.url", "judge.api_key: env:NAME", "secret")]
        if self.api_key and parts.scheme == "http" and not _is_here(parts.hostname):
            message = f"the key would go to {parts.hostname} unencrypted"
            return [Finding(message, "judge.url", "an https address", "insecure")]
        return []


_EXAMPLE = "http://localhost:8000/v1"


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
