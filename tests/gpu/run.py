"""Runs every GPU check on one card, prints tables and writes JSON: python -m tests.gpu.run [--cpu].

Under nine minutes on one data-centre card. `--cpu` rehearses the same code on tiny shapes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from tests.gpu.bases import FULL_SIZE
from tests.gpu.measure import Measured, measure
from tests.gpu.steps import STAGES, Sizes

BUDGET_SECONDS = 520.0
"No new case starts after this."
TOLERANCE = 0.10
"Share by which the planned peak may miss the measured one."
SMALL_7B_PPO = 12 * 2**30
"A 7B base in nf4 must do PPO in less."


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print, write; return 1 when a check fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("gpu-report.json"))
    parser.add_argument("--cpu", action="store_true", help="rehearse on the CPU with tiny shapes")
    parser.add_argument("--only", choices=["peaks", "checks"], help="one half of it")
    args = parser.parse_args(argv)
    if not args.cpu and not torch.cuda.is_available():
        print("there is no CUDA device; --cpu rehearses on tiny shapes")
        return 2
    report = collect(cpu=args.cpu, only=args.only)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    show(report)
    print(f"written to {args.out}")
    return 0 if report["holds"] else 1


def collect(*, cpu: bool, only: str | None = None) -> dict[str, Any]:
    """Return the report: device, cases, checks, and whether everything holds."""
    began = time.perf_counter()
    device = torch.device("cpu" if cpu else "cuda")
    report: dict[str, Any] = {
        "device": "cpu rehearsal" if cpu else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cases": [],
        "checks": [],
        "left_out": [],
    }
    if only != "peaks":
        report["checks"] = _checks(device)
    if only != "checks":
        for name, case in _cases(device):
            if time.perf_counter() - began > BUDGET_SECONDS:
                report["left_out"].append(name)
                continue
            report["cases"].append({**case().plain()})
    report["seconds"] = time.perf_counter() - began
    report["holds"] = all(check["holds"] for check in report["checks"]) and not report["left_out"]
    if not cpu:
        report["holds"] = report["holds"] and all(map(_holds, report["cases"]))
    return report


def show(report: dict[str, Any]) -> None:
    """Print the report."""
    print(f"{report['device']}, torch {report['torch']}, {report['seconds']:.0f} s")
    print(f"{'base':<14} {'held':<5} {'stage':<7} {'planned':>9} {'seen':>9} {'ratio':>6} {'tokens/s':>9}")
    for case in report["cases"]:
        planned, seen = (f"{case[name] / 2**30:.2f}" for name in ("planned", "seen"))
        print(
            f"{case['base']:<14} {case['held']:<5} {case['stage']:<7} {planned:>9} {seen:>9} "
            f"{case['ratio']:>6.3f} {case['tokens_a_second']:>9.0f}"
        )
    for check in report["checks"]:
        print(f"{'holds' if check['holds'] else 'FAILS'}  {check['check']}")
    for name in report["left_out"]:
        print(f"left out for time: {name}")


def _cases(device: torch.device) -> list[tuple[str, Callable[[], Measured]]]:
    bases = FULL_SIZE if device.type == "cuda" else ("tiny",)
    sizes = Sizes() if device.type == "cuda" else Sizes(rows=2, prompt=24, answer=8)

    def case(base: str, stage: str, four_bits: bool) -> Callable[[], Measured]:
        return lambda: measure(base, stage, four_bits=four_bits, device=device, sizes=sizes)

    return [
        (f"{base} {'nf4' if four_bits else 'bf16'} {stage}", case(base, stage, four_bits))
        for base in bases
        for four_bits in (False, True)
        for stage in STAGES
    ]


def _checks(device: torch.device) -> list[dict[str, Any]]:
    from tests.gpu.checks import nf4_check, offload_check, resume_checks, start_checks

    dtype = "bfloat16" if device.type == "cuda" else "float32"
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        checks = [nf4_check(device), offload_check(root, device, dtype), *start_checks(root, dtype)]
        if device.type == "cuda":
            checks += resume_checks(root, dtype)
    return checks


def _holds(case: dict[str, Any]) -> bool:
    small = case["base"] != "Qwen2.5-7B" or case["held"] != "nf4" or case["stage"] != "ppo"
    return abs(case["ratio"] - 1) <= TOLERANCE and (small or case["seen"] < SMALL_7B_PPO)


if __name__ == "__main__":
    sys.exit(main())
