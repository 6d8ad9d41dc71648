"""`triptych init`: a commented run file to start from."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "file", type=Path, nargs="?", default=Path("run.yaml"), help="where to write it (run.yaml)"
    )
    parser.add_argument("--model", help="Hub id or local folder of the base model")
    parser.add_argument("--stages", default="", help="kinds, in order, such as sft,reward,ppo")


def main(args: argparse.Namespace) -> int:
    """Write the file, never over another one."""
    from pipeline.config.starter import DEFAULT_STAGES, starter
    from pipeline.errors import ConfigError

    stages = [kind.strip() for kind in args.stages.split(",") if kind.strip()] or list(DEFAULT_STAGES)
    name = "".join(
        sign if sign.isascii() and (sign.isalnum() or sign in "._-") else "-" for sign in args.file.stem
    )
    model = args.model or (None if "pretrain" in stages else "Qwen/Qwen3-0.6B")
    text = starter(name=name.strip("._-") or "run", model=model, stages=stages)
    try:
        with args.file.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(
            f"{args.file} is there already", hint="triptych init another-name.yaml", code="file-exists"
        ) from None
    except OSError as error:
        raise ConfigError(f"cannot write {args.file}: {error.strerror}", code="unwritable-file") from None
    print(f"{args.file}: name your data under inputs, then: triptych plan {args.file}")
    return 0
