"""Time and memory of `triptych data check` on many rows like those of hh-rlhf.

    python -m tests.benchmarks.bench_data_check [--rows 100000] [--file FILE] [--alike 100]

Rows are made from a seed: turns and words follow the quantiles of the public harmless-base test file,
words are drawn from a Zipf distribution. `--file` repeats a real file in place of made rows, with the
words of each turn in another order so that no row repeats another. `--alike` makes so many rows of each
prompt, one word of it changed: near-duplicates. One line of JSON is printed: CPU and wall
seconds, rows a CPU second, and the peak resident memory of the process that checked.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
import time
from bisect import bisect
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from random import Random

# Measured on hh-rlhf harmless-base test: number of turns, and words at each 5 % of the turns.
TURNS = {2: 662, 4: 580, 6: 589, 8: 354, 10: 68, 12: 19, 14: 16, 16: 7, 18: 4}
USER_WORDS = (1, 3, 4, 5, 6, 6, 7, 8, 9, 9, 10, 11, 12, 13, 14, 15, 17, 19, 23, 30, 149)
ASSISTANT_WORDS = (1, 5, 7, 8, 10, 12, 14, 16, 18, 20, 23, 26, 29, 34, 38, 45, 52, 61, 74, 102, 348)
RESPONSE_WORDS = (1, 4, 6, 8, 10, 12, 14, 16, 18, 21, 24, 27, 30, 35, 41, 46, 53, 63, 76, 101, 463)
FREQUENT = (  # noqa: SIM905
    "to the you a I and of that is in are be can it for do have or about with not think want what your "
    "like me would if people on but some they this get could my an how just so more as know don’t from "
    "them really make help might their was there at all who by has one out when up any"
).split()
NUM_WORDS = 120_000
SYLLABLES = "ba e mi o ka lu ne i so di ve a ra po che st ing er on al men or y n t s".split()  # noqa: SIM905


class Writer:
    """Makes dialogues with the lengths of the real ones."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.words = list(FREQUENT)
        while len(self.words) < NUM_WORDS:
            number = len(self.words)
            digits = []
            while number:
                number, place = divmod(number, len(SYLLABLES))
                digits.append(SYLLABLES[place])
            self.words.append("".join(digits))
        self.weights = list(accumulate(1 / (rank + 5) for rank in range(NUM_WORDS)))

    def text(self, quantiles: tuple[int, ...]) -> str:
        """Return a text whose number of words follows the quantiles."""
        place = self.random.random() * (len(quantiles) - 1)
        low, share = int(place), place % 1
        # The last twentieth is a long tail: most of it lies near its lower end.
        share = share**4 if low == len(quantiles) - 2 else share
        length = round(quantiles[low] + share * (quantiles[low + 1] - quantiles[low]))
        total, draw = self.weights[-1], self.random.random
        chosen = [self.words[bisect(self.weights, draw() * total)] for _ in range(max(length, 1))]
        for place in range(9, len(chosen), 11):
            chosen[place] += "." if place % 2 else ","
        return " ".join(chosen) + "."

    def rows(self, num_rows: int) -> Iterator[dict[str, str]]:
        """Yield rows of the hh-rlhf form."""
        turns = self.random.choices(list(TURNS), list(TURNS.values()), k=num_rows)
        for count in turns:
            parts = []
            for turn in range(count - 1):
                mark, words = ("Human", USER_WORDS) if turn % 2 == 0 else ("Assistant", ASSISTANT_WORDS)
                parts.append(f"\n\n{mark}: {self.text(words)}")
            prompt = "".join(parts) + "\n\nAssistant: "
            yield {side: prompt + self.text(RESPONSE_WORDS) for side in ("chosen", "rejected")}

    def alike(self, num_rows: int, copies: int) -> Iterator[dict[str, str]]:
        """Yield rows of which `copies` share a prompt but for one word."""
        stems = list(self.rows(max(1, num_rows // copies)))
        for number in range(num_rows):
            row = stems[number % len(stems)]
            prompt, mark, _ = row["chosen"].rpartition("\n\nAssistant: ")
            words = prompt.split(" ")
            place = self.random.randrange(1, len(words))
            if "\n" not in words[place]:
                words[place] += f"x{number}"
            yield {
                side: " ".join(words) + mark + row[side].rpartition(mark)[2] + f" {number}" for side in row
            }


def repeated(path: Path, num_rows: int) -> Iterator[dict[str, str]]:
    """Yield the rows of a real file again and again, each time with other prompts."""
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open() as stream:
        lines = list(stream)
    shuffled = Random(0)
    for number in range(num_rows):
        row = json.loads(lines[number % len(lines)])
        if number < len(lines):
            yield row
            continue
        # Words of each turn change places, the same way on both sides: no prompt is nearly another one.
        seed = shuffled.random()
        yield {side: "\n\n".join(_turned(turn, seed) for turn in row[side].split("\n\n")) for side in row}


def _turned(turn: str, seed: float) -> str:
    mark, words = turn.split(" ")[:1], turn.split(" ")[1:]
    Random(seed).shuffle(words)
    return " ".join(mark + words)


# Runs in a process of its own, so that its memory is its own.
MEASURED = """
import resource, sys, time
from pipeline.cli.main import main
begin = time.perf_counter()
code = main(sys.argv[1:])
wall = time.perf_counter() - begin
used = resource.getrusage(resource.RUSAGE_SELF)
print(code, wall, used.ru_utime + used.ru_stime, used.ru_maxrss, file=sys.stderr)
"""


def measure(path: Path, folder: Path, num_rows: int) -> dict[str, float]:
    """Check one file in a new process and return what it took."""
    command = [sys.executable, "-c", MEASURED, "data", "check", str(path), "--out", str(folder / "report")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    code, wall, cpu, peak_kib = (float(word) for word in run.stderr.split()[-4:])
    report = json.loads((folder / "report" / "report.json").read_text("utf-8"))
    if report["rows"]["read"] != num_rows:
        raise SystemExit(f"{report['rows']} rows were read, not {num_rows}")
    return {
        "rows": num_rows,
        "file_mib": round(path.stat().st_size / 2**20, 1),
        "wall_seconds": round(wall, 2),
        "cpu_seconds": round(cpu, 2),
        "rows_per_cpu_second": round(num_rows / cpu),
        "peak_mib": round(peak_kib / 1024, 1),
        "rejected": report["rows"]["rejected"],
        "exit_code": int(code),
    }


def main() -> None:
    """Make the rows, check them, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--file", type=Path, help="a real file whose rows are repeated")
    parser.add_argument("--alike", type=int, default=1, help="rows that share a nearly equal prompt")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "pairs.jsonl"
        begin = time.perf_counter()
        writer = Writer(options.seed)
        made_rows = (
            writer.alike(options.rows, options.alike) if options.alike > 1 else writer.rows(options.rows)
        )
        rows = repeated(options.file, options.rows) if options.file else made_rows
        with path.open("w", encoding="utf-8") as stream:
            stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        made = time.perf_counter() - begin
        figures = measure(path, folder, options.rows)
    print(json.dumps({**figures, "making_seconds": round(made, 1)}))


if __name__ == "__main__":
    main()
