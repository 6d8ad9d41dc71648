"""Which card holds a base, and which base a card holds: every stage and tuning tried in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline import registry
from pipeline.config.run import TuningConfig
from pipeline.contract import StageCheck
from pipeline.memory.bases import KnownBase
from pipeline.memory.cost import Cost, cost_of
from pipeline.memory.estimate import estimate
from pipeline.memory.hardware import Card, Hardware
from pipeline.memory.shape import ModelShape
from pipeline.memory.work import Workload

STAGES = ("sft", "reward", "dpo", "ppo")
TUNINGS = {
    "lora": TuningConfig(gradient_checkpointing=True),
    "8bit": TuningConfig(method="8bit", gradient_checkpointing=True),
    "qlora": TuningConfig(method="qlora", gradient_checkpointing=True),
}
"The tunings that are compared; layers are recomputed in all of them."
_ROLES = ("base", "policy", "reward", "prompts")


@dataclass(frozen=True, slots=True)
class CardChoice:
    """The smallest card for one stage and tuning."""

    stage: str
    tuning: str
    needs_bytes: float
    card: Card | None
    "None when no card of the list is large enough."
    cost: Cost | None


def workload(stage: str, tuning: str, *, batch: int, max_length: int) -> Workload:
    """Return what a stage holds with every other setting at its default."""
    spec = registry.find(stage)
    if spec.memory is None:
        raise ValueError(f"{stage} has no memory plan")
    settings = {
        "tuning": TUNINGS[tuning],
        "per_device_train_batch_size": batch,
        "generation_batch_size": 8 * batch,
        "max_length": max_length,
        "max_new_tokens": max(1, max_length // 4),
    }
    known = {key: value for key, value in settings.items() if key in spec.config_type.model_fields}
    return spec.memory(StageCheck(stage, spec.config_type(**known), {}, _ROLES))


def smallest_cards(shape: ModelShape, hardware: Hardware, *, batch: int, max_length: int) -> list[CardChoice]:
    """Return the smallest card for each stage and tuning; of equal size, the cheaper one."""
    cards = sorted(hardware.cards, key=lambda card: (card.memory_mib, card.price_usd or float("inf")))
    found = []
    for stage in STAGES:
        for tuning in TUNINGS:
            work = workload(stage, tuning, batch=batch, max_length=max_length)
            needs = estimate(work, shape).total.expected
            card = next((card for card in cards if card.memory_bytes >= needs), None)
            cost = None if card is None else cost_of(work, shape, card, utilisation=hardware.utilisation)
            found.append(CardChoice(stage, tuning, needs, card, cost))
    return found


def largest_base(
    bases: Sequence[KnownBase], memory_bytes: int, *, stage: str, tuning: str, batch: int, max_length: int
) -> KnownBase | None:
    """Return the largest base whose expected peak a card holds, or None."""
    work = workload(stage, tuning, batch=batch, max_length=max_length)
    fitting = [base for base in bases if estimate(work, base.shape).total.expected <= memory_bytes]
    return max(fitting, key=lambda base: base.parameters, default=None)
