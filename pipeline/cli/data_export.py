"""`triptych data export`: comparisons as tasks for people, with overlap, probes and hidden order."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli import arguments, voices
from pipeline.cli.data_arguments import add_reading, mapping_of
from pipeline.errors import DataError

if TYPE_CHECKING:
    from reward.preferences.records import PreferenceRecord

TOOLS = ("labelstudio", "argilla", "csv", "xlsx")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "file",
        type=Path,
        metavar="FILE",
        help="comparisons, prompts with completions, prompts, or RUN:STAGE of a sample stage",
    )
    add_reading(parser)
    asked = parser.add_argument_group("prompts only: let a policy answer them first")
    asked.add_argument("--policy", metavar="RUN:STAGE", help="whose answers are judged, such as demo:sft")
    asked.add_argument("--n", type=int, default=4, help="answers drawn to each prompt (default: 4)")
    asked.add_argument("--keep", type=int, default=2, help="answers of a comparison (default: 2, a pair)")
    voices.add_voice(asked, temperature=1.0, seed=False)
    arguments.add_store(parser)
    parser.add_argument("--to", choices=TOOLS, required=True, help="the annotation tool")
    parser.add_argument("--annotators", type=int, default=1, help="people who judge")
    parser.add_argument("--overlap", type=int, default=2, help="people who judge an overlapped comparison")
    parser.add_argument("--overlap-share", type=float, default=0.2, help="share of overlapped comparisons")
    parser.add_argument("--probes", type=Path, metavar="FILE", help="comparisons whose answer is known")
    parser.add_argument("--probe-share", type=float, default=0.05, help="probes in each list")
    parser.add_argument("--repeat-share", type=float, default=0.02, help="comparisons judged twice, swapped")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other orders and lists")
    parser.add_argument("--out", type=Path, default=Path("annotation"), help="folder to write")


def main(args: argparse.Namespace) -> int:
    """Write the tasks and the key."""
    from reward.preferences.exchange.assignment import Overlap
    from reward.preferences.exchange.outgoing import export
    from reward.preferences.exchange.probes import read_probes
    from reward.preferences.exchange.tasks import Plan

    if args.annotators < 1 or not 0 <= args.overlap_share <= 1:
        raise DataError(
            "--annotators is at least 1 and --overlap-share lies between 0 and 1", code="bad-value"
        )
    records = _sampled(args) if args.policy else _read(args)
    overlap = Overlap(args.annotators, min(args.overlap, args.annotators), args.overlap_share)
    plan = Plan(overlap, args.probe_share, args.repeat_share, args.seed)
    probes = read_probes(args.probes) if args.probes else []
    written = export(records, args.out, tool=args.to, plan=plan, probes=probes)
    for path in written.files:
        print(path)
    print(f"{written.tasks:,} tasks; two people share at least {written.least_shared} comparisons")
    for item in written.dropped:
        print(f"left out {item.cmp_id}: {item.reason}")
    for note in written.notes:
        print(f"note: {note}")
    print(f"keep {written.key} to yourself: it names the sources and the order")
    return 0


def _read(args: argparse.Namespace) -> list[PreferenceRecord]:
    """Read comparisons of a file or of a sample stage, and say which rows are left out.

    Raises:
        DataError: the file cannot be read, or holds prompts without completions.
    """
    from reward.preferences.writers import read_records

    path = args.file if args.file.exists() or ":" not in str(args.file) else _committed(args)
    try:
        records, num_rejected = read_records(path, mapping_of(args))
    except DataError as error:
        if _holds_prompts(args.file):
            raise DataError(
                "the file holds prompts and nothing to compare",
                where=str(args.file),
                hint="--policy RUN:STAGE lets a policy answer them",
                code="no-responses",
            ) from error
        raise
    if num_rejected:
        rows = "row" if num_rejected == 1 else "rows"
        print(f"{num_rejected:,} {rows} left out; triptych data check {args.file} says why")
    return records


def _committed(args: argparse.Namespace) -> Path:
    """Return the comparisons that RUN:STAGE gave.

    Raises:
        UserError: no such stage, not finished, or it gives no comparisons.
    """
    from pipeline.contract import ArtifactKind
    from pipeline.manifest import read_manifest

    store = arguments.open_store(args)
    run, stage = arguments.split_stage(str(args.file))
    status = read_manifest(store, run).stages.get(stage or "")
    record = store.find(status.key) if status is not None and status.key else None
    outputs = record.outputs.items() if record else ()
    roles = [role for role, output in outputs if output.kind == ArtifactKind.PREFERENCES]
    if record is None or len(roles) != 1:
        raise DataError(
            f"{args.file} is no file and no finished stage with one file of comparisons",
            hint=f"triptych status {run}",
            code="missing-file",
        )
    return store.checkpoint(record, roles[0]).path


def _holds_prompts(path: Path) -> bool:
    from stages.data import read_prompts

    try:
        return bool(read_prompts(path))
    except DataError:
        return False


def _sampled(args: argparse.Namespace) -> list[PreferenceRecord]:
    """Let a committed policy answer the prompts, and say what came of it.

    Raises:
        UserError: no such policy, no usable prompt, or a number out of range.
    """
    from reward.preferences.exchange.completions import Completion, comparisons
    from stages.data import read_prompts

    if args.n < 2 or not 2 <= args.keep <= args.n or args.temperature == 0:
        raise DataError(
            "--n and --keep are at least 2, --keep at most --n, and greedy answers are all equal",
            hint="--n 4 --keep 2 --temperature 1",
            code="bad-value",
        )
    voice = voices.voice_of(args)
    committed = voices.committed_of(arguments.open_store(args), args.policy, args.base)
    rows = read_prompts(args.file)
    from stages.evaluation.speaker import Speaker

    answers = Speaker(committed).answer([row.prompt for row in rows], voice, per_prompt=args.n)
    found = comparisons(
        ((row.id, row.prompt) for row in rows),
        ([Completion(said.text, said.finished) for said in given] for given in answers),
        source=f"{committed.name}@{committed.weights.fingerprint[:12]}",
        most=args.keep,
    )
    left = ", ".join(f"{count:,} {reason}" for reason, count in sorted(found.left_out.items()))
    print(f"{len(rows):,} prompts, {args.n} answers each; left out: {left or 'none'}")
    for name in found.unusable:
        print(f"left out {name}: fewer than two answers that people could judge")
    return found.records
