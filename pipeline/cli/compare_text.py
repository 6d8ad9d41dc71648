"""`triptych compare RUN:STAGE RUN:STAGE`: what two models answer to the same prompts."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli import arguments, voices
from pipeline.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stages.committed import Committed
    from stages.data import PromptRow
    from stages.evaluation.speaker import Said, Voice


def compare_text(args: argparse.Namespace) -> int:
    """Print the answers side by side, or write them for raters who must not know which is whose."""
    if args.prompts is None:
        raise UserError("two stages are compared on prompts", hint="--prompts FILE", code="missing-argument")
    from stages.data import read_prompts

    store = arguments.open_store(args)
    models = [voices.committed_of(store, text, args.base) for text in (args.first, args.second)]
    rows = read_prompts(args.prompts)[: args.max_prompts]
    voice = voices.voice_of(args)
    first, second = (_answers(model, rows, voice) for model in models)
    names = _names(models)
    if args.blind is not None:
        return _write_blind(args.blind, rows, {names[0]: first, names[1]: second}, seed=args.seed)
    if args.json:
        for row, one, two in zip(rows, first, second, strict=True):
            by = {names[0]: {"text": one.text}, names[1]: {"text": two.text}}
            print(json.dumps({"id": row.id, "prompt": row.prompt, "by": by}, ensure_ascii=False))
        return 0
    if args.html is not None:
        return _write_html(args.html, rows, {names[0]: first, names[1]: second})
    return _show(rows, names, first, second)


def _answers(model: Committed, rows: Sequence[PromptRow], voice: Voice) -> list[Said]:
    """Let one model answer, and let go of it before the next one is opened."""
    from stages.evaluation.speaker import Speaker

    return [said for (said,) in Speaker(model).answer([row.prompt for row in rows], voice)]


def _names(models: Sequence[Committed]) -> list[str]:
    names = [model.name for model in models]
    return names if len(set(names)) == 2 else [f"{names[0]} (a)", f"{names[1]} (b)"]


def _show(rows: Sequence[PromptRow], names: Sequence[str], first: list[Said], second: list[Said]) -> int:
    from pipeline.cli import tables
    from reward.preferences.exchange.tasks import shown_prompt

    cells = [
        (shown_prompt(row.prompt), _shown(one), _shown(two) if two.text != one.text else "(the same)")
        for row, one, two in zip(rows, first, second, strict=True)
    ]
    tables.show(["prompt", *names], cells)
    print(_summary(first, second))
    return 0


def _summary(first: list[Said], second: list[Said]) -> str:
    same = sum(one.text == two.text for one, two in zip(first, second, strict=True))
    lengths = [sum(said.num_tokens for said in given) / max(len(given), 1) for given in (first, second)]
    return f"{same} of {len(first)} answers are the same; mean tokens {lengths[0]:.1f} and {lengths[1]:.1f}"


def _write_html(path: Path, rows: Sequence[PromptRow], by: dict[str, list[Said]]) -> int:
    """Write the answers side by side as one page."""
    from pipeline.report.answers_page import render_answers
    from pipeline.report.view import Answer, SampleView
    from reward.preferences.exchange.tasks import shown_prompt

    samples = [
        SampleView(
            shown_prompt(row.prompt),
            [Answer(name, _shown(given[number])) for name, given in by.items()],
        )
        for number, row in enumerate(rows)
    ]
    first, second = by.values()
    path.write_text(
        render_answers(list(by), samples, summary=f"{_summary(first, second)}."), encoding="utf-8"
    )
    print(path)
    return 0


def _shown(said: Said) -> str:
    return said.text if said.finished else f"{said.text} [cut]"


def _write_blind(path: Path, rows: Sequence[PromptRow], by: dict[str, list[Said]], *, seed: int) -> int:
    """Write a sheet in a random order for raters, and the key that says which answer is whose.

    Raises:
        UserError: the file's name says no known form, or no pair is left.
    """
    from reward.preferences.exchange.assignment import Overlap
    from reward.preferences.exchange.sheets import write_csv, write_xlsx
    from reward.preferences.exchange.tasks import Plan, make_key, make_tasks, usable, write_key
    from reward.preferences.records import PreferenceRecord, Response

    writers = {".csv": write_csv, ".xlsx": write_xlsx}
    if path.suffix not in writers:
        raise UserError(
            f"raters get .csv or .xlsx, not {path.name!r}", hint="--blind pairs.csv", code="bad-name"
        )
    records = [
        PreferenceRecord(
            row.prompt,
            tuple(Response(name, given[number].text, name) for name, given in by.items()),
            id=row.id,
        )
        for number, row in enumerate(rows)
    ]
    kept, dropped = usable(records)
    if not kept:
        raise UserError(f"no pair is worth judging: {dropped[0].reason}", code="nothing-to-judge")
    tasks = make_tasks(kept, [], Plan(Overlap(1, 1, 0.0), 0.0, 0.0, seed))
    key = path.with_suffix(".key.json")
    writers[path.suffix](tasks, path)
    write_key(make_key(tasks, kept), key)
    print(f"{path}: {len(tasks)} pairs for raters; {key}: the key, to keep from them")
    for item in dropped:
        print(f"left out {item.cmp_id}: {item.reason}")
    print(f"when they are judged: triptych data import {path} --key {key}")
    return 0
