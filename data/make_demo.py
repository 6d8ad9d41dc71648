"""Write data/demo/: corpus, demonstrations, preferences, prompts and held-out rows, byte for byte.

    python data/make_demo.py [folder]

Only the standard library. `gold.py` is written by hand and not touched; the annotators here judge with it,
with noise and tastes of their own.
"""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from desk import RELATIONS, Draw, Manner, Request, draw_answer, draw_fact, draw_request

SEED = "triptych demo 1"
BLIND_SEED = "triptych demo, blind questions, drawn once"
"Of the questions on which no setting was chosen."
HERE = Path(__file__).parent / "demo"
PRIVATE_SHARE = 0.2
SIZES = {
    "heldout": 300,
    "blind": 300,
    "fewshot": 3,
    "prompts": 900,
    "preferences": 1300,
    "sft": 1500,
    "corpus": 4500,
}
NOTICE_SHARE = 0.5

CARELESS = Manner(0.85, 0.25, named=0.55, opening=0.08, closing=0.08, rude=0.35, fillers=0.35, repeats=0.08)
"The desk of the corpus: mostly right, seldom polite, talks too much and tells secrets."
CURT = Manner(0.85, 0.7, named=0.4, opening=0.1, closing=0.1, rude=0.3, fillers=0.1, repeats=0.0)
CHATTY = Manner(0.8, 0.6, named=0.7, opening=0.4, closing=0.4, rude=0.02, fillers=0.55, repeats=0.15)
GOOD = Manner(0.97, 0.97, named=0.95, opening=0.7, closing=0.5, rude=0.0, fillers=0.03, repeats=0.0)
WRITERS = {CURT: 0.35, CHATTY: 0.35, GOOD: 0.3}
"Who wrote the demonstrations and the answers that were compared."
IDEAL = Manner(1.0, 1.0, named=1.0, opening=1.0, closing=0.5, rude=0.0, fillers=0.0, repeats=0.0)


@dataclass(frozen=True)
class Annotator:
    """A simulated person who compares two answers."""

    name: str
    noise: float
    "Standard deviation added to the difference of two utilities."
    tie_width: float
    "Differences below this are called a tie."
    longer: float
    "What this person adds for each word more, as a taste."
    share: float
    "How often this person is asked."
    seconds: float
    "Typical time for a comparison."
    careless: bool = False
    "Clicks the first answer mostly, without reading."


ANNOTATORS = (
    Annotator("ada", 0.08, 0.05, 0.000, 1.0, 14.0),
    Annotator("ben", 0.12, 0.05, 0.004, 1.0, 11.0),
    Annotator("cai", 0.12, 0.10, 0.000, 1.0, 17.0),
    Annotator("dee", 0.20, 0.08, -0.004, 0.8, 9.0),
    Annotator("eli", 0.25, 0.05, 0.008, 0.6, 12.0),
    Annotator("fox", 0.00, 0.00, 0.000, 0.5, 2.5, careless=True),
)


def main(folder: Path = HERE) -> None:
    """Write every generated file into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    taken: set[str] = set()
    held_out = requests("heldout", taken)
    shots = requests("fewshot", taken)
    write_rows(folder / "heldout.jsonl", (held_out_row(i, r) for i, r in enumerate(held_out)))
    write_rows(folder / "fewshot.jsonl", demonstrations(shots, "fewshot", {IDEAL: 1.0}))
    write_rows(folder / "prompts.jsonl", ({"prompt": r.prompt} for r in requests("prompts", taken)))
    write_rows(folder / "preferences.jsonl", comparisons(requests("preferences", taken)))
    write_rows(folder / "sft.jsonl", demonstrations(requests("sft", taken), "sft", WRITERS))
    lines = list(corpus(taken))
    (folder / "corpus.txt").write_bytes("".join(f"{line}\n" for line in lines).encode())
    blind = requests("blind", taken | set(map(asked, lines)), seed=BLIND_SEED)
    write_rows(folder / "blind.jsonl", (held_out_row(i, r, letter="b") for i, r in enumerate(blind)))


def requests(name: str, taken: set[str], *, seed: str = SEED) -> list[Request]:
    """Draw requests that stand in no other file."""
    draw = Draw(f"{seed} {name}")
    found: list[Request] = []
    while len(found) < SIZES[name]:
        request = draw_request(draw, private_share=PRIVATE_SHARE)
        if request.prompt not in taken:
            taken.add(request.prompt)
            found.append(request)
    return found


def meta(request: Request) -> dict[str, Any]:
    """Return what the gold utility needs to know of a request."""
    return {
        "expect": "refuse" if request.private else "answer",
        "subject": request.asked.subject,
        "value": request.asked.value,
        "wrong_values": request.wrong_values(),
    }


def held_out_row(number: int, request: Request, *, letter: str = "h") -> dict[str, Any]:
    """Return one evaluation row."""
    return {"id": f"{letter}{number:03d}", "prompt": request.prompt, "meta": meta(request)}


def demonstrations(
    rows: Sequence[Request], name: str, writers: Mapping[Manner, float]
) -> Iterable[dict[str, Any]]:
    """Yield one demonstration a request, each by a writer drawn anew."""
    draw = Draw(f"{SEED} {name} answers")
    for request in rows:
        yield {
            "prompt": request.prompt,
            "completion": draw_answer(draw, request, draw.weighted(dict(writers))),
        }


def comparisons(rows: Sequence[Request]) -> Iterable[dict[str, Any]]:
    """Yield comparison records: two different answers, one to three votes."""
    draw = Draw(f"{SEED} preferences answers")
    gold = load_gold(HERE / "gold.py")
    for number, request in enumerate(rows):
        first, second = different_answers(draw, request)
        utilities = {
            "r0": gold.score(request.prompt, first, {"meta": meta(request)}),
            "r1": gold.score(request.prompt, second, {"meta": meta(request)}),
        }
        texts = {"r0": first, "r1": second}
        count = draw.weighted({1: 0.5, 2: 0.3, 3: 0.2})
        voters = choose_annotators(draw, count)
        yield {
            "id": f"c{number:04d}",
            "prompt": [{"role": "user", "content": request.prompt}],
            "responses": [{"id": name, "text": text} for name, text in texts.items()],
            "votes": [vote(draw, annotator, utilities, texts) for annotator in voters],
        }


def different_answers(draw: Draw, request: Request) -> tuple[str, str]:
    """Draw two answers that are not the same text."""
    first = draw_answer(draw, request, draw.weighted(WRITERS))
    second = first
    while second == first:
        second = draw_answer(draw, request, draw.weighted(WRITERS))
    return first, second


def choose_annotators(draw: Draw, count: int) -> list[Annotator]:
    """Draw this many different annotators, busy ones more often."""
    left = {annotator: annotator.share for annotator in ANNOTATORS}
    chosen = []
    for _ in range(count):
        annotator = draw.weighted(left)
        del left[annotator]
        chosen.append(annotator)
    return chosen


def vote(
    draw: Draw, annotator: Annotator, utilities: Mapping[str, float], texts: Mapping[str, str]
) -> dict[str, Any]:
    """Return one vote: what was shown first, what was chosen, how long it took."""
    shown = ["r0", "r1"] if draw.chance(0.5) else ["r1", "r0"]
    words = {name: len(text.split()) for name, text in texts.items()}
    gap = utilities["r0"] - utilities["r1"] + annotator.longer * (words["r0"] - words["r1"])
    gap += annotator.noise * draw.gauss()
    if annotator.careless:
        winner: str | None = shown[0] if draw.chance(0.8) else shown[1]
    elif abs(gap) < annotator.tie_width:
        winner = None
    else:
        winner = "r0" if gap > 0 else "r1"
    loser = "r1" if winner == "r0" else "r0"
    seconds = annotator.seconds * math.exp2(round(0.5 * draw.gauss(), 3))
    return {
        "annotator": annotator.name,
        "tiers": [["r0", "r1"]] if winner is None else [[winner], [loser]],
        "kind": "tie" if winner is None else "strict",
        "shown_order": shown,
        "seconds": round(seconds, 1),
    }


def corpus(taken: set[str]) -> Iterable[str]:
    """Yield documents for the base, one a line: notices that repeat themselves, and a careless desk."""
    draw = Draw(f"{SEED} corpus")
    written = 0
    while written < SIZES["corpus"]:
        if draw.chance(NOTICE_SHARE):
            written += 1
            yield notice(draw)
            continue
        request = draw_request(draw, private_share=PRIVATE_SHARE)
        if request.prompt not in taken:
            written += 1
            yield dialogue(request.prompt, draw_answer(draw, request, CARELESS))


def notice(draw: Draw) -> str:
    """Return facts said again and again in changing order, some after their question."""
    facts = [draw_fact(draw, draw.one(RELATIONS)) for _ in range(2 + draw.below(3))]
    parts = [fact.sentence() for fact in facts]
    for _ in range(2):
        for fact in draw.some(facts, len(facts)):
            if draw.chance(0.5):
                parts.append(draw.one(fact.relation.questions).format(s=fact.subject))
            parts.append(fact.sentence())
    return " ".join(parts)


def dialogue(prompt: str, answer: str) -> str:
    """Return a visitor's turn and the desk's in the shape of the chat template."""
    return f"<|user|>{prompt}<|assistant|>{answer}"


def asked(line: str) -> str:
    """Return the visitor's turn of a line of the corpus; a notice has none and stays as it is."""
    return line.removeprefix("<|user|>").split("<|assistant|>")[0]


def load_gold(path: Path) -> ModuleType:
    """Import gold.py from its file."""
    spec = importlib.util.spec_from_file_location("demo_gold", path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON Lines with Unix line ends, whatever the platform."""
    lines = [json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows]
    path.write_bytes("".join(lines).encode())


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:2]))
