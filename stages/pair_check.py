"""What can be said of a pair stage's files before anything runs: no tokenizer, no weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.contract import StageCheck
from pipeline.errors import Finding, UserError
from reward.preferences.pairs import PairSet, load_pairs
from stages.early_stopping import PAIR_METRICS, early_stopping_findings
from stages.pair_config import PairTrainingConfig
from stages.runtime.packing import packing_note
from stages.tuning import tuning_findings

LARGEST_FILE_BYTES = 16 * 2**20
"Files above this size are read when the stage runs, so that a plan stays quick."
MAX_SHOWN = 20
"Rows of one file that are named."


def check_pairs(stage: StageCheck) -> Sequence[Finding]:
    """Read the preference files and say what would stop the stage."""
    mapping = stage.inputs.get("mapping")
    findings = tuning_findings(stage)
    if stage.config.tuning.method == "full" and getattr(stage.config, "ensemble", 1) > 1:
        message = "an ensemble is made of adapters, and tuning.method is full"
        findings.append(Finding(message, "ensemble", "ensemble: 1, or tuning.method: lora", "other-form"))
    config, where = stage.config, f"stages.{stage.name}.early_stopping"
    held_out = config.eval_share > 0 or "held_out" in (*stage.roles, *stage.inputs)
    findings += early_stopping_findings(
        config.early_stopping, measured=PAIR_METRICS, held_out=held_out, where=where
    )
    sets: dict[str, PairSet] = {}
    for role in ("preferences", "held_out"):
        source = stage.inputs.get(role)
        if source is None or not _quick(source.path):
            continue
        try:
            sets[role] = load_pairs(source.path, mapping=mapping.path if mapping else None)
        except UserError as error:
            findings += error.findings
            continue
        findings += set_findings(sets[role], stage.config, source.path)
    if len(sets) == 2:
        findings += leak_findings(sets["preferences"], sets["held_out"], stage.inputs["held_out"].path)
    return findings


def pair_outlook(stage: StageCheck) -> Sequence[str]:
    """Say when the rows of this stage will be padded."""
    if not stage.config.shared_prompts or "base" not in stage.inputs:
        return []
    note = packing_note(stage.inputs["base"].path)
    return [note] if note else []


def set_findings(found: PairSet, config: PairTrainingConfig, path: Path) -> list[Finding]:
    """Return a finding when a file gives no pair, or sets too many rows aside."""
    findings = []
    rejected, read = len(found.rejects), found.report.read
    if rejected > config.max_rejected_share * read:
        allowed = f"{rejected / read:.1%}, allowed {config.max_rejected_share:.1%}"
        hint = "triptych data check lists every row; mend them, or raise max_rejected_share"
        message = f"{rejected} of {read} rows cannot be used ({allowed})"
        findings.append(Finding(message, str(path), hint, "too-many-rejected-rows"))
        findings += [Finding(r.message, f"{path}:{r.line}", "", r.check) for r in found.rejects[:MAX_SHOWN]]
    elif not found.pairs:
        hint = "triptych data check says how each row was read"
        findings.append(Finding("the file holds no pair with a preference", str(path), hint, "no-pairs"))
    return findings


def leak_findings(pairs: PairSet, held_out: PairSet, path: Path) -> list[Finding]:
    """Return a finding when prompts of the held-out file are trained on."""
    trained = {pair.group for pair in pairs.pairs}
    lines = [str(pair.line) for pair in held_out.pairs if pair.group in trained]
    if not lines:
        return []
    message = f"{len(lines)} held-out pairs have a prompt that is trained on, lines {', '.join(lines[:10])}"
    return [Finding(message, str(path), "take these prompts out of one of the files", "leak")]


def _quick(path: Path) -> bool:
    return not path.is_file() or path.stat().st_size <= LARGEST_FILE_BYTES
