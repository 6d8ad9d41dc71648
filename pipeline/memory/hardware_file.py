"""Reads the shipped cards, and a person's own file over them: every mistake with its line and key."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from pipeline.config.mistakes import number_given_as_boolean, translate
from pipeline.config.source import Source, read
from pipeline.config.strict import StrictModel
from pipeline.config.suggest import Homes
from pipeline.errors import ConfigError, Finding
from pipeline.memory.hardware import SHIPPED, Card, Hardware, Offer, folded


class OwnCard(StrictModel):
    """A card of a person's own, or what is different of a shipped one."""

    name: str
    "As `--gpu` names it."
    memory_mib: int | None = Field(None, gt=0)
    "What nvidia-smi reports in all; a new card needs it."
    bf16_tflops: float | None = Field(None, gt=0)
    "Dense matrix products with float32 sums."
    bandwidth_gbs: float | None = Field(None, gt=0)
    "Memory bandwidth, GB/s."
    price_usd: float | None = Field(None, ge=0)
    "An hour."


class OwnHardware(StrictModel):
    """A hardware file of a person's own; each part may be left out."""

    shipped: bool = True
    "Keep the shipped cards beside these."
    prices: Offer | None = None
    "Whose prices these are; with it, shipped prices no longer count."
    utilisation: float | None = Field(None, gt=0, le=1)
    "Share of bf16_tflops that training reaches."
    cards: tuple[OwnCard, ...] = ()
    "Further cards, or the name of a shipped one and what is different."


def read_hardware(path: Path | None = None) -> Hardware:
    """Return the shipped cards, with those of a person's own file over them.

    Raises:
        ConfigError: the file cannot be read, or every wrong key with its line.
    """
    shipped = Hardware.model_validate(read(SHIPPED).values)
    if path is None:
        return shipped
    source = _read(path)
    findings = _as_findings(source)
    if findings:
        raise ConfigError.from_findings(list(findings.values()))
    own = OwnHardware.model_validate(source.values)
    wrong = _contradictions(own, shipped, source)
    if wrong:
        raise ConfigError.from_findings(wrong)
    return _merged(own, shipped)


_HINT = "keys as in pipeline/memory/hardware.yaml"


def _read(path: Path) -> Source:
    try:
        source = read(path)
    except ConfigError as error:
        own = [replace(one, hint=one.hint if one.code == "missing-file" else _HINT) for one in error.findings]
        raise ConfigError.from_findings([replace(one, code="bad-hardware") for one in own]) from None
    if source.findings:
        raise ConfigError.from_findings(source.findings)
    return source


def _as_findings(source: Source) -> dict[Any, Finding]:
    """Return what is wrong with single keys."""
    try:
        own = OwnHardware.model_validate(source.values)
    except ValidationError as error:
        return translate(
            error, model=OwnHardware, values=source.values, prefix=(), source=source, homes=Homes({})
        )
    found: dict[Any, Finding] = {}
    for number, card in enumerate(own.cards):
        values = source.values["cards"][number]
        found |= number_given_as_boolean(card, values, prefix=("cards", number), source=source)
    return found | number_given_as_boolean(own, source.values, prefix=(), source=source)


def _contradictions(own: OwnHardware, shipped: Hardware, source: Source) -> list[Finding]:
    """Return what is wrong between keys: a new card without a size, a name twice, prices of nobody."""
    known = {folded(card.name) for card in shipped.cards} if own.shipped else set()
    findings, seen = [], set[str]()
    for number, card in enumerate(own.cards):
        where, name = source.place(("cards", number)).value, folded(card.name)
        if name not in known and card.memory_mib is None:
            message = f"card {card.name!r} is not a shipped one, so it needs memory_mib"
            findings.append(
                Finding(message, where, "memory_mib: what nvidia-smi reports in all", "missing-key")
            )
        if name in seen:
            findings.append(
                Finding(f"card {card.name!r} stands here a second time", where, "", "bad-hardware")
            )
        seen.add(name)
    if own.prices is None and any(card.price_usd is not None for card in own.cards):
        message = "cards have prices, and nothing says whose they are"
        hint = "prices: {offer: ..., date: ..., source: ...}"
        findings.append(Finding(message, source.place(("cards",)).key, hint, "missing-key"))
    if not own.cards and not own.shipped:
        message = "shipped is false, and the file holds no card"
        findings.append(Finding(message, source.place(("shipped",)).value, "cards: [...]", "bad-hardware"))
    return findings


def _merged(own: OwnHardware, shipped: Hardware) -> Hardware:
    """Return the cards of both files; prices of two offers are never mixed."""
    cards = {folded(card.name): card for card in shipped.cards} if own.shipped else {}
    if own.prices is not None:
        cards = {name: card.model_copy(update={"price_usd": None}) for name, card in cards.items()}
    for card in own.cards:
        given = card.model_dump(exclude_unset=True, exclude_none=True)
        name = folded(card.name)
        before = cards[name].model_dump(exclude={"name"}) if name in cards else {}
        cards[name] = Card.model_validate({**before, **given})
    return Hardware(
        prices=own.prices or shipped.prices,
        utilisation=own.utilisation or shipped.utilisation,
        cards=tuple(cards.values()),
    )
