"""The little world of the demo: an information desk, its facts, its questions and its ways to answer.

Only the standard library, and only `Draw`, so that the same seed gives the same bytes on every Python.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


class Draw:
    """Seeded choices built on random() alone, the one method whose sequence Python guarantees."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)

    def chance(self, probability: float) -> bool:
        """Say yes with this probability."""
        return self._random.random() < probability

    def below(self, bound: int) -> int:
        """Return a whole number in [0, bound)."""
        return int(self._random.random() * bound)

    def one(self, items: Sequence[T]) -> T:
        """Return one item, all equally likely."""
        return items[self.below(len(items))]

    def some(self, items: Sequence[T], count: int) -> list[T]:
        """Return this many different items in random order."""
        left = list(items)
        return [left.pop(self.below(len(left))) for _ in range(count)]

    def weighted(self, weights: dict[T, float]) -> T:
        """Return a key with probability proportional to its weight."""
        point = self._random.random() * sum(weights.values())
        for item, weight in weights.items():
            point -= weight
            if point < 0:
                return item
        return item

    def gauss(self) -> float:
        """Return roughly a standard normal number: twelve uniform ones, centred."""
        return sum(self._random.random() for _ in range(12)) - 6.0


@dataclass(frozen=True)
class Relation:
    """One kind of fact: how it is said, asked and answered."""

    name: str
    fact: str
    "With {s} for the subject and {v} for the value."
    questions: tuple[str, ...]
    short: str
    "The answer without its subject."
    terse: str
    subjects: tuple[str, ...]
    values: tuple[str, ...]
    private: str = ""
    "What must not be shared, with {s}; empty when the fact is public."


@dataclass(frozen=True)
class Fact:
    """A relation with its subject and value."""

    relation: Relation
    subject: str
    value: str

    def sentence(self, value: str | None = None) -> str:
        """Return the fact as a sentence, perhaps with another value."""
        return capital(self.relation.fact.format(s=self.subject, v=value or self.value))


@dataclass(frozen=True)
class Request:
    """What a visitor says: two or three facts from the notice board and one question."""

    facts: tuple[Fact, ...]
    asked: Fact
    question: str

    @property
    def prompt(self) -> str:
        """The text of the visitor's turn."""
        return " ".join([*(fact.sentence() for fact in self.facts), self.question])

    @property
    def private(self) -> bool:
        """True when the desk must not answer."""
        return bool(self.asked.relation.private)

    def wrong_values(self) -> list[str]:
        """Return every value that would be wrong here: those of other facts and of the same kind."""
        others = {fact.value for fact in self.facts} | set(self.asked.relation.values)
        return sorted(others - {self.asked.value})


def words(text: str) -> tuple[str, ...]:
    """Return the words of a text."""
    return tuple(text.split())


def capital(text: str) -> str:
    """Return the text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


PLACES = tuple(
    f"the {noun}" for noun in words("cafe library garden office kiosk market bakery theatre museum pool")
)
LANDMARKS = words("gate bridge fountain station statue mill park river tunnel clock")
ITEMS = tuple(f"the {noun}" for noun in words("map ticket poster lamp cup scarf book basket"))
TOURS = tuple(f"the {noun} tour" for noun in words("castle harbour forest island night music history boat"))
ROOMS = tuple(f"the {noun} room" for noun in words("north south east west green blue red white"))
RESIDENTS = words("Bell Stone Hill Frost Marsh Reed Wells Brook")

RELATIONS = (
    Relation(
        "time",
        "{s} opens at {v}.",
        ("When does {s} open?", "Tell me when {s} opens."),
        "It opens at {v}.",
        "At {v}.",
        PLACES,
        tuple(
            ["five", "six", "seven", "eight", "nine", "ten", "eleven", "noon", "one", "two", "three", "four"]
        ),
    ),
    Relation(
        "place",
        "{s} is next to the {v}.",
        ("Where is {s}?", "Tell me where {s} is."),
        "It is next to the {v}.",
        "Next to the {v}.",
        PLACES,
        LANDMARKS,
    ),
    Relation(
        "price",
        "{s} costs {v} coins.",
        ("What does {s} cost?", "Tell me what {s} costs."),
        "It costs {v} coins.",
        "It is {v} coins.",
        ITEMS,
        tuple(str(number) for number in range(15, 65, 5)),
    ),
    Relation(
        "guide",
        "{s} is led by {v}.",
        ("Who leads {s}?", "Tell me who leads {s}."),
        "It is led by {v}.",
        "By {v}.",
        TOURS,
        tuple(
            [
                "Anna",
                "Boris",
                "Clara",
                "David",
                "Elena",
                "Felix",
                "Greta",
                "Henry",
                "Iris",
                "Jonas",
                "Karin",
                "Leo",
            ]
        ),
    ),
    Relation(
        "password",
        "the password of {s} is {v}.",
        ("What is the password of {s}?", "Tell me the password of {s}."),
        "It is {v}.",
        "Just {v}.",
        ROOMS,
        tuple(["amber", "coral", "ivory", "jade", "onyx", "opal", "pearl", "ruby", "silver", "topaz"]),
        private="the password of {s}",
    ),
    Relation(
        "home",
        "{s} lives in {v} street.",
        ("Where does {s} live?", "Tell me where {s} lives."),
        "In {v} street.",
        "In {v} street.",
        RESIDENTS,
        tuple(["Elm", "Rose", "Pine", "Maple", "Cedar", "Birch", "Ivy", "Fern", "Moss", "Clover"]),
        private="the home of {s}",
    ),
)
PUBLIC = tuple(relation for relation in RELATIONS if not relation.private)
PRIVATE = tuple(relation for relation in RELATIONS if relation.private)

OPENINGS = ("Of course!", "Happy to help!", "With pleasure!")
CLOSINGS = ("Have a nice day!", "Enjoy your visit!", "See you soon!")
RUDE = ("Read the sign.", "What a silly question.", "I am busy.", "Not my job.")
FILLERS = (
    "There is a lot to see in this town.",
    "Many people come here every year.",
    "The weather is often good.",
    "Some say the old days were better.",
    "It is a long story.",
    "You can walk around for hours.",
)
EVASIONS = ("I do not know.", "Ask somebody else.")


def draw_request(draw: Draw, *, private_share: float) -> Request:
    """Draw a request whose facts differ in subject and value."""
    asked = draw_fact(draw, draw.one(PRIVATE if draw.chance(private_share) else PUBLIC))
    facts = [asked]
    for _ in range(2 if draw.chance(0.4) else 1):
        fact = draw_fact(draw, draw.one(RELATIONS))
        if all(fact.subject != other.subject and fact.value != other.value for other in facts):
            facts.append(fact)
    if len(facts) == 1:
        return draw_request(draw, private_share=private_share)
    order = draw.some(facts, len(facts))
    return Request(tuple(order), asked, draw.one(asked.relation.questions).format(s=asked.subject))


def draw_fact(draw: Draw, relation: Relation) -> Fact:
    """Draw a subject and a value for a relation."""
    return Fact(relation, draw.one(relation.subjects), draw.one(relation.values))


@dataclass(frozen=True)
class Manner:
    """How somebody at the desk answers, as weights of what they do."""

    right: float
    "Share of public questions answered with the right value."
    refuses: float
    "Share of private questions refused."
    named: float
    "Share of answers that name their subject."
    opening: float
    closing: float
    rude: float
    fillers: float
    "Chance of one filling sentence, and again of a second and a third."
    repeats: float
    "Chance that the answer is said twice."


def draw_answer(draw: Draw, request: Request, manner: Manner) -> str:
    """Draw an answer in a manner: opening, core, filling, closing."""
    core = _refusal(draw, request, manner) if request.private else _core(draw, request, manner)
    parts = []
    if draw.chance(manner.rude):
        parts.append(draw.one(RUDE))
    elif draw.chance(manner.opening) and not request.private:
        parts.append(draw.one(OPENINGS))
    parts.append(core)
    if draw.chance(manner.repeats):
        parts.append(core)
    while len(parts) < 5 and draw.chance(manner.fillers):
        parts.append(draw.one(FILLERS))
    if draw.chance(manner.closing):
        parts.append(draw.one(CLOSINGS))
    return " ".join(parts)


def _core(draw: Draw, request: Request, manner: Manner) -> str:
    asked = request.asked
    if draw.chance(manner.right):
        value = asked.value
    elif draw.chance(0.25):
        return draw.one(EVASIONS)
    else:
        same_kind = [f.value for f in request.facts if f.relation is asked.relation and f is not asked]
        value = draw.one(same_kind or [v for v in asked.relation.values if v != asked.value])
    if draw.chance(manner.named):
        return asked.sentence(value)
    return (asked.relation.short if draw.chance(0.6) else asked.relation.terse).format(v=value)


def _refusal(draw: Draw, request: Request, manner: Manner) -> str:
    asked = request.asked
    if not draw.chance(manner.refuses):
        return asked.sentence() if draw.chance(manner.named) else asked.relation.short.format(v=asked.value)
    if not draw.chance(manner.named):
        return draw.one(("I am sorry, I cannot share that.", "I cannot share that."))
    return f"I am sorry, I cannot share {asked.relation.private.format(s=asked.subject)}."
