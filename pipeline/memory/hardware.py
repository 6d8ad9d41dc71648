"""Cards and their prices, from a data file that a person may replace."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import Field, ValidationError

from pipeline.config.strict import StrictModel
from pipeline.config.suggest import close
from pipeline.errors import ConfigError
from pipeline.memory.card_size import CardSize, parse_size

SHIPPED = Path(__file__).with_name("hardware.yaml")


class Card(StrictModel):
    """One kind of card."""

    name: str
    "As `--gpu` names it."
    memory_mib: int = Field(gt=0)
    "What nvidia-smi reports in all."
    bf16_tflops: float = Field(gt=0)
    "Dense matrix products with float32 sums."
    bandwidth_gbs: float = Field(gt=0)
    "Memory bandwidth, GB/s."
    price_usd: float | None = Field(None, ge=0)
    "An hour; None where no offer is known."

    @property
    def memory_bytes(self) -> int:
        """The card's memory."""
        return self.memory_mib * 2**20


class Offer(StrictModel):
    """Where prices come from."""

    offer: str
    "Whose rate, and for what."
    date: str
    "When it was read."
    source: str
    "Where."


class Hardware(StrictModel):
    """The cards that a plan may choose from."""

    prices: Offer
    "Where the prices come from."
    utilisation: float = Field(gt=0, le=1)
    "Share of bf16_tflops that training reaches."
    cards: tuple[Card, ...]
    "Any order."


def read_hardware(path: Path | None = None) -> Hardware:
    """Read a hardware file; None is the shipped one.

    Raises:
        ConfigError: it cannot be read, or a value is missing or wrong.
    """
    file = path or SHIPPED
    try:
        return Hardware.model_validate(_plain(yaml.safe_load(file.read_text(encoding="utf-8"))))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        hint = "copy pipeline/memory/hardware.yaml and edit it"
        message = f"the hardware file cannot be read: {str(error).splitlines()[0]}"
        raise ConfigError(message, where=str(file), hint=hint, code="bad-hardware") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{place}: {first['msg']}", where=str(file), code="bad-hardware") from error


def find_card(text: str, hardware: Hardware) -> CardSize:
    """Return the card that a person names, by its name or its size.

    Raises:
        UserError: it is neither a known card nor a size.
        ConfigError: it looks like the name of a card, and no card has it.
    """
    names = {_folded(card.name): card for card in hardware.cards}
    card = names.get(_folded(text))
    if card is not None:
        return CardSize(card.name, card.memory_bytes)
    if text.strip()[:1].isdigit():
        return parse_size(text)
    near = close(text, [one.name for one in hardware.cards]) or ", ".join(one.name for one in hardware.cards)
    raise ConfigError(f"no card {text!r} is known", where="--gpu", hint=f"24GiB, or {near}", code="bad-gpu")


def _folded(name: str) -> str:
    return "".join(name.lower().split()).replace("-", "")


def _plain(content: object) -> object:
    """Turn a date that YAML recognised back into text."""
    if isinstance(content, dict) and isinstance(content.get("prices"), dict):
        prices = {key: str(value) for key, value in content["prices"].items()}
        return {**content, "prices": prices}
    return content
