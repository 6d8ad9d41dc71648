"""`triptych data check`: one pass over each file, a report for people and one for machines.

Exit codes: 0 sound, 1 warnings with --strict, 2 too many rejects or a failed check, 3 unreadable.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli.data_arguments import add_reading, mapping_of
from pipeline.errors import UserError

if TYPE_CHECKING:
    from reward.preferences.checks.settings import CheckSettings
    from reward.preferences.checks.tokens import TokenIds
    from reward.preferences.writers import Change

SOUND, WARNINGS, FAILED, UNREADABLE = 0, 1, 2, 3
MARKS = {"fail": "FAIL", "warn": "warn", "info": "info"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    add_reading(parser)
    parser.add_argument("--out", type=Path, default=Path("data-report"), help="folder of the results")
    parser.add_argument(
        "--against", type=Path, nargs="+", default=[], metavar="FILE", help="evaluation files, for leakage"
    )
    parser.add_argument(
        "--settings", type=Path, metavar="YAML", help="thresholds that differ from the defaults"
    )
    parser.add_argument(
        "--previous", type=Path, metavar="REPORT", help="report.json of the submission before"
    )
    parser.add_argument("--max-length", type=int, help="tokens that prompt and response may have together")
    parser.add_argument("--tokenizer", help="folder or Hub id of the tokenizer for --max-length")
    parser.add_argument("--show-annotators", action="store_true", help="write names instead of hashes")
    parser.add_argument("--salt", default="", help="mixed into the hashes of names; one per project")
    parser.add_argument(
        "--redact",
        action="store_true",
        help="hide names and mask personal data in everything but the rejects, to hand it on",
    )
    parser.add_argument("--strict", action="store_true", help="exit 1 when there are warnings")
    parser.add_argument("--json", action="store_true", help="print the report as JSON instead of a table")


def main(args: argparse.Namespace) -> int:
    """Check every file; the exit code is that of the worst one."""
    if args.redact and args.show_annotators:
        raise UserError("--redact hides the names that --show-annotators shows", code="bad-value")
    settings = load_settings(args.settings, args.max_length)
    token_ids = _token_ids(args.tokenizer, args.max_length)
    reports: list[dict[str, Any]] = []
    folders: list[Path] = []
    worst = SOUND
    for path in args.files:
        folder = args.out if len(args.files) == 1 else args.out / path.name
        try:
            report = check_one(path, folder, args, settings=settings, token_ids=token_ids)
        except UserError as error:
            print(f"{path} was not checked:\n{error}", file=sys.stderr)
            worst = max(worst, UNREADABLE)
            continue
        reports.append(report)
        folders.append(folder)
        worst = max(worst, exit_code(report, strict=args.strict))
    if reports:
        _write_page(args.out, reports)
    if args.json:
        print(json.dumps(reports if len(reports) != 1 else reports[0], allow_nan=False))
    else:
        for report, folder in zip(reports, folders, strict=True):
            print_report(report)
            _print_next(report, folder)
        if reports:
            print(f"\nreport: {args.out / 'report.html'}")
    return worst


def check_one(
    path: Path,
    folder: Path,
    args: argparse.Namespace,
    *,
    settings: CheckSettings,
    token_ids: TokenIds | None,
) -> dict[str, Any]:
    """Check one file and write what belongs to it into a folder.

    Raises:
        DataError: the file cannot be read.
    """
    from reward.preferences.inspection import inspect_file
    from reward.preferences.report import to_json
    from reward.preferences.resubmission import compare
    from reward.preferences.writers import AcceptedWriter, RejectsWriter, RowSink

    mapping = mapping_of(args)
    folder.mkdir(parents=True, exist_ok=True)
    sinks: list[RowSink] = [
        RejectsWriter(folder, path, delimiter=mapping.delimiter),
        AcceptedWriter(folder, path, change=_change(args)),
    ]
    try:
        found = inspect_file(
            path, mapping=mapping, settings=settings, against=args.against, token_ids=token_ids, sinks=sinks
        )
    except UserError:
        for sink in sinks:
            sink.discard()
        raise
    for sink in sinks:
        sink.close()
    before = compare(args.previous, found.rejects, found.mended_rows) if args.previous else None
    report = to_json(found, resubmission=before, show_annotators=args.show_annotators, salt=args.salt)
    if args.redact:
        from reward.preferences.redaction import redact_values

        report = redact_values(report)
    text = json.dumps(report, ensure_ascii=False, indent=1, allow_nan=False)
    (folder / "report.json").write_text(text + "\n", encoding="utf-8", errors="replace")
    return report


def _change(args: argparse.Namespace) -> Change | None:
    """Return what is done to accepted rows: with --redact, masks and hashed names."""
    if not args.redact:
        return None
    from reward.preferences.redaction import redact

    return lambda record: redact(record, salt=args.salt)


def load_settings(path: Path | None, max_length: int | None = None) -> CheckSettings:
    """Read a settings file.

    Raises:
        DataError: unknown keys or values out of range.
    """
    from reward.preferences.checks.settings import CheckSettings
    from reward.preferences.mapping import read_yaml_model

    settings = read_yaml_model(path, CheckSettings) if path else CheckSettings()
    return settings.model_copy(update={"max_length": max_length}) if max_length else settings


def exit_code(report: Mapping[str, Any], *, strict: bool) -> int:
    """Return the exit code of one report."""
    if report["verdict"] == "fail":
        return FAILED
    return WARNINGS if strict and report["verdict"] == "warn" else SOUND


def print_report(report: Mapping[str, Any]) -> None:
    """Print a short table."""
    rows = report["rows"]
    sure = "as declared" if report["declared"] else f"{report['confidence']:.0%} of the sampled rows"
    print(f"{report['file']}: read as {report['format_title']} ({sure})")
    print(f"  {report['reads_as']}")
    for example in report["examples"]:
        better, worse = (_line(example[side]) for side in ("better", "worse"))
        print(f"  line {example['line']}: {better!r} is better than {worse!r}")
    counts = ", ".join(f"{count:,} {name}" for name, count in rows.items())
    print(f"  rows: {counts}")
    if report["resubmission"]:
        before = report["resubmission"]
        print(
            f"  since the last submission: {before['fixed']} of {before['before']} fixed,"
            f" {before['remaining']} remain, {before['new']} new"
        )
    for check in sorted(
        report["checks"], key=lambda check: ["fail", "warn", "info", "ok"].index(check["verdict"])
    ):
        if check["verdict"] in ("fail", "warn"):
            print(f"  {MARKS[check['verdict']]}  {check['id']}: {check['count']:,} of {check['of']:,}")
            for example in check["examples"][:3]:
                place = f"line {example['line']}" if example["line"] else ""
                field = f" {example['field']}" if example["field"] else ""
                print(f"        {place}{field}: {_line(example['text'])}")
    alpha = report["agreement"]["alpha_nominal"]
    if alpha:
        print(f"  agreement: alpha {alpha['value']:.3f} ({alpha['low']:.3f} to {alpha['high']:.3f})")


def _print_next(report: Mapping[str, Any], folder: Path) -> None:
    """Say where the rejected rows are and how to send them again."""
    rejects = next(folder.glob("rejects.*"), None) if report["rows"]["rejected"] else None
    if rejects is not None:
        print(f"  to mend: {rejects}; mended, check it with --previous {folder / 'report.json'}")


def _line(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 70 else flat[:67] + "..."


def _write_page(folder: Path, reports: list[dict[str, Any]]) -> None:
    from reward.preferences.page import render

    (folder / "report.html").write_text(render(reports), encoding="utf-8", errors="replace")


def _token_ids(tokenizer: str | None, max_length: int | None) -> TokenIds | None:
    """Load the tokenizer that --max-length counts with.

    Raises:
        UserError: one of the two is missing.
    """
    if tokenizer is None and max_length is None:
        return None
    if tokenizer is None or max_length is None:
        raise UserError("--max-length and --tokenizer belong together", code="missing-argument")
    from transformers import AutoTokenizer

    from stages.runtime.text.chat import ChatText

    chat = ChatText(AutoTokenizer.from_pretrained(tokenizer))
    return lambda prompt, response: (chat.prompt_ids(prompt), chat.response_ids(prompt, response))
