"""What trust costs: full verification against hashing alone, and a commit against a plain save.

python -m tests.benchmarks.bench_store                 one stage of 512 MiB
python -m tests.benchmarks.bench_store --mib 64        as large as an adapter with its tokenizer

Both sides run in turn in one process, on files that the page cache holds. CPU seconds and wall
seconds, the least of five rounds. Commit means: check names and headers, protect, flush and hash
every file, write the record, publish by one rename.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.contract import ArtifactKind
from pipeline.fingerprint import file_digest, recipe, stage_key
from pipeline.record import StageRecord, environment, timestamp
from pipeline.seal import seal
from pipeline.store import Store
from pipeline.verify import verify_store

ROUNDS = 5
SHARDS = 4


def write_weights(path: Path, num_bytes: int, fill: int) -> None:
    """Write a safetensors file of one tensor of bytes."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [num_bytes], "data_offsets": [0, num_bytes]}})
    block = bytes((fill + i) % 251 for i in range(2**16)) * 16
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(header)) + header.encode())
        left = num_bytes
        while left > 0:
            left -= stream.write(block[:left])


def write_model(folder: Path, num_bytes: int) -> None:
    """Write a model folder in shards, as `save_pretrained` would."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    for shard in range(SHARDS):
        write_weights(folder / f"model-{shard}.safetensors", num_bytes // SHARDS, shard)


def committed(store: Store, source: Path, number: int) -> None:
    """Seal and commit a copy of a model as the output of a stage."""
    made_by = recipe("bench", 1, inputs={}, config={"number": number})
    key = stage_key(made_by)
    output = store.work_folder(key) / "output"
    output.parent.mkdir(parents=True)
    output.mkdir()
    source.rename(output / "model")
    kinds = {"model": ArtifactKind.FULL_MODEL}
    sealed = seal(store.disk, output, declared=kinds, given={"model": output / "model"})
    now = timestamp()
    record = StageRecord(
        key=key,
        stage="bench",
        kind="bench",
        recipe=made_by,
        settings={},
        inputs={},
        outputs=dict(sealed.outputs),
        metrics={},
        environment=environment(),
        attempts=(),
        started=now,
        ended=now,
        seconds=0,
    )
    store.commit(record)


def timed(task: Callable[[], object]) -> tuple[float, float]:
    """Return CPU and wall seconds of a task."""
    cpu, wall = time.process_time(), time.perf_counter()
    task()
    return time.process_time() - cpu, time.perf_counter() - wall


def hash_all(store: Store) -> None:
    """Hash the same files and nothing else: the floor of any verification."""
    for path in sorted(store.root.glob("stages/*/*/model/*")):
        with path.open("rb") as stream:
            hashlib.file_digest(stream, "sha256").hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--mib", type=int, default=512, help="size of the stage's model")
    parser.add_argument("--folder", type=Path, help="where to write; default: the system's temporary folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as place:
        folder = Path(place)
        store = Store(folder / "store")
        store.create()
        plain, commit, hashing, verifying = [], [], [], []
        for number in range(ROUNDS):
            plain.append(timed(lambda: write_model(folder / "plain", args.mib * 2**20)))
            commit.append(timed(lambda number=number: committed(store, folder / "plain", number)))
            hashing.append(timed(lambda: hash_all(store)))
            verifying.append(timed(lambda: verify_store(store, hash_file=file_digest, show=lambda _: None)))
            shutil.rmtree(store.root / "stages")
    rows = {"plain save": plain, "commit, on top": commit, "hashing alone": hashing, "full verify": verifying}
    least = {name: tuple(map(min, zip(*found, strict=True))) for name, found in rows.items()}
    for name, (cpu, wall) in least.items():
        sys.stdout.write(f"{name:<16} {cpu:8.3f} s CPU  {wall:8.3f} s wall\n")
    speed = least["hashing alone"][0] / least["full verify"][0]
    sys.stdout.write(f"verify runs at {speed:.0%} of the speed of hashing alone (CPU)\n")
    cost = least["commit, on top"][0] - least["hashing alone"][0]
    sys.stdout.write(f"commit costs one hash of every byte and {cost:.3f} s CPU more\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
