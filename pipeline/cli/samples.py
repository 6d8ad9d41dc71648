"""`triptych samples`: what a stage's model answers to a file of prompts, as JSON Lines."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from pipeline.cli import arguments, voices
from pipeline.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("model", metavar="RUN:STAGE", help="such as demo:ppo")
    parser.add_argument(
        "--prompts", type=Path, required=True, metavar="FILE", help="JSON Lines with a prompt"
    )
    parser.add_argument("--n", type=int, default=1, help="answers to each prompt (default: 1)")
    parser.add_argument("--max-prompts", type=int, help="only the first so many prompts")
    parser.add_argument("--out", type=Path, help="file to write; default: standard output")
    voices.add_voice(parser, temperature=1.0)
    arguments.add_store(parser)


def main(args: argparse.Namespace) -> int:
    """Write one line a prompt: {id, prompt, completions: [{id, text, source, finish}]}."""
    if args.n < 1 or (args.max_prompts is not None and args.max_prompts < 1):
        raise UserError("--n and --max-prompts are at least 1", code="bad-value")
    if args.n > 1 and args.temperature == 0:
        raise UserError(
            f"{args.n} greedy answers to a prompt are one answer", hint="--temperature 1", code="bad-value"
        )
    from stages.data import read_prompts

    committed = voices.committed_of(arguments.open_store(args), args.model, args.base)
    rows = read_prompts(args.prompts)[: args.max_prompts]
    from stages.evaluation.speaker import Speaker

    voice = voices.voice_of(args)
    answers = Speaker(committed).answer([row.prompt for row in rows], voice, per_prompt=args.n)
    lines = []
    for row, given in zip(rows, answers, strict=True):
        completions = [
            {
                "id": f"{committed.stage}-{number}",
                "text": said.text,
                "source": committed.name,
                "finish": "stop" if said.finished else "length",
            }
            for number, said in enumerate(given, start=1)
        ]
        line = {"id": row.id, "prompt": row.prompt, "completions": completions}
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    if args.out is None:
        sys.stdout.writelines(lines)
        return 0
    args.out.write_text("".join(lines), encoding="utf-8")
    print(f"{len(lines)} prompts, {args.n} answers each, written to {args.out}")
    return 0
