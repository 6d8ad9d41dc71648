"""Cards and their prices: what a plan may choose from, and the one that a person names."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

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
    bf16_tflops: float | None = Field(None, gt=0)
    "Dense matrix products with float32 sums; None gives no hours."
    bandwidth_gbs: float | None = Field(None, gt=0)
    "Memory bandwidth, GB/s; None gives no hours."
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


def find_card(text: str, hardware: Hardware) -> CardSize:
    """Return the card that a person names, by its name or its size.

    Raises:
        UserError: it is neither a known card nor a size.
        ConfigError: it looks like the name of a card, and no card has it.
    """
    names = {folded(card.name): card for card in hardware.cards}
    card = names.get(folded(text))
    if card is not None:
        return CardSize(card.name, card.memory_bytes)
    if text.strip()[:1].isdigit():
        return parse_size(text)
    near = close(text, [one.name for one in hardware.cards]) or ", ".join(one.name for one in hardware.cards)
    raise ConfigError(f"no card {text!r} is known", where="--gpu", hint=f"24GiB, or {near}", code="bad-gpu")


def folded(name: str) -> str:
    """Return a card's name without case, spaces and hyphens: how names are compared."""
    return "".join(name.lower().split()).replace("-", "")
