"""Flips one random bit at a time in the committed files of a store; `verify` must name the file.

python -m tests.faults.bit_flips                          500 flips in the demo's chain, cut down
python -m tests.faults.bit_flips --store store            in a copy of this store
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from pathlib import Path

from pipeline.errors import StoreError
from pipeline.fingerprint import file_digest
from pipeline.manifest import CONFIG_NAME, LOCK_NAME, MANIFEST_NAME
from pipeline.store import Store
from pipeline.verify import verify_store
from tests.chain import small_demo


def committed(store: Store) -> list[Path]:
    """Return every file that the store promises to keep as it is."""
    files = [path for path in sorted((store.root / "stages").rglob("*")) if path.is_file()]
    names = (MANIFEST_NAME, CONFIG_NAME, LOCK_NAME)
    files += [path for name in names for path in sorted((store.root / "runs").glob(f"*/{name}"))]
    return [*files, store.root / "STORE.json"]


def findings(store: Store) -> str:
    """Return everything that a full verification says."""
    try:
        store.check()
    except StoreError as error:
        return str(error)
    return "\n".join(map(str, verify_store(store, hash_file=file_digest, show=lambda _: None).findings))


def unnoticed(store: Store, *, flips: int, seed: int = 7) -> list[str]:
    """Flip bits, every file in turn, each flip undone before the next; return what was not named."""
    chance = random.Random(seed)
    files = committed(store)
    missed = []
    for number in range(flips):
        path = files[number % len(files)]
        bit = chance.randrange(path.stat().st_size * 8)
        flip(path, bit)
        if path.name not in findings(store):
            missed.append(f"bit {bit} of {path}")
        flip(path, bit)
    after = findings(store)
    return [*missed, *([f"after all flips were undone: {after}"] if after else [])]


def flip(path: Path, bit: int) -> None:
    """Change one bit of a file, read-only or not."""
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.chmod(0o644)
    path.write_bytes(data)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--store", type=Path, help="a store; it is copied first")
    parser.add_argument("--flips", type=int, default=500)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if args.store is not None:
            shutil.copytree(args.store, folder / "store")
        elif (ended := small_demo("tracking.wandb=off", folder=folder)).returncode != 0:
            sys.stdout.write(ended.stdout + ended.stderr)
            return 1
        store = Store(folder / "store")
        number = len(committed(store))
        missed = unnoticed(store, flips=args.flips)
    for line in missed:
        sys.stdout.write(f"{line}\n")
    sys.stdout.write(f"{args.flips} flips in {number} files, {len(missed)} not named\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
