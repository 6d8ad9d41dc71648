"""`triptych`: finds the command, imports only its module, shows mistakes without a traceback."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from pipeline.errors import ExitCode, UserError

COMMANDS = {
    "run": ("pipeline.cli.run", "run every stage that is not in the store yet"),
    "init": ("pipeline.cli.init", "write a commented run file to start from"),
    "plan": ("pipeline.cli.plan", "say what run would do, and why"),
    "models": ("pipeline.cli.models", "for a base model, the smallest card for each stage"),
    "gpus": ("pipeline.cli.gpus", "for a card, the largest base model for each stage"),
    "status": ("pipeline.cli.status", "show the runs of a store and their stages"),
    "doctor": ("pipeline.cli.doctor", "say what on this machine would stop a run"),
    "summary": ("pipeline.cli.summary", "show what each stage of a run gave and cost"),
    "verify": ("pipeline.cli.verify", "compare committed files with their records"),
    "lineage": ("pipeline.cli.lineage", "show what a result was made from"),
    "report": ("pipeline.cli.report", "write one HTML page about a run"),
    "compare": ("pipeline.cli.compare", "set two runs, or what two stages answer, side by side"),
    "worth": ("pipeline.cli.worth", "show what PPO and DPO gave beside what they cost"),
    "chat": ("pipeline.cli.chat", "talk to what a stage made"),
    "samples": ("pipeline.cli.samples", "let a stage's model answer a file of prompts"),
    "track": ("pipeline.cli.track", "send a finished run to W&B, TensorBoard, MLflow or Trackio"),
    "gc": ("pipeline.cli.gc", "show or delete what no run and no pin needs"),
    "export-run": ("pipeline.cli.export_run", "copy a run and all it was made from into a folder"),
    "import-run": ("pipeline.cli.import_run", "take in such a folder; nothing in it is trusted"),
    "provenance": ("pipeline.cli.provenance", "state how files came to be, in in-toto's words"),
    "data": ("pipeline.cli.data", "check and describe preference files"),
    "reward": ("pipeline.cli.reward", "show what a reward model is worth"),
    "schema": ("pipeline.cli.schema", "print the JSON schema of run files, for editors"),
}
"Command -> module and one line of help. A module has add_arguments(parser) and main(args) -> int."

_EPILOG = """\
examples:
  triptych run configs/demo.yaml                 run it, or go on with it
  triptych run configs/demo.yaml ppo.kl_coef=0.1 the same with one setting changed
  triptych plan configs/demo.yaml                what would run, and why
  triptych <command> --help                      all about one command

exit codes: 0 done, 1 a stage failed or files are damaged, 2 a mistake to mend,
3 a gate is closed, 4 busy, 5 out of memory, 6 disk full, 7 killed, 75 interrupted after saving
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser, commands = _parser()
    chosen = next((word for word in arguments if not word.startswith("-")), None)
    module = None
    if chosen in COMMANDS:
        module = importlib.import_module(COMMANDS[chosen][0])
        module.add_arguments(commands[chosen])
    args, rest = parser.parse_known_args(arguments)
    args.own_process = argv is None
    # Overrides may stand behind options, where argparse no longer takes them.
    if hasattr(args, "overrides"):
        args.overrides += [word for word in rest if "=" in word and not word.startswith("-")]
        rest = [word for word in rest if word not in args.overrides]
    if rest:
        (commands[chosen] if chosen in COMMANDS else parser).error(f"unknown words: {' '.join(rest)}")
    if module is None:
        parser.print_help()
        return ExitCode.USER_ERROR if arguments else ExitCode.OK
    try:
        return int(module.main(args))
    except UserError as error:
        show_findings(error)
        return error.exit_code
    except BrokenPipeError:
        # The reader of a pipe, such as `head`, has seen enough.
        sys.stderr.close()
        return ExitCode.OK


def show_findings(error: UserError) -> None:
    """Print every finding of an error on standard error."""
    for finding in error.findings:
        print(f"error: {finding}", file=sys.stderr)
    if len(error.findings) > 1:
        print(f"{len(error.findings)} mistakes", file=sys.stderr)


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    parser = argparse.ArgumentParser(
        prog="triptych",
        description="SFT, a reward model from preferences, PPO and DPO: one file, one command.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    chooser = parser.add_subparsers(dest="command", metavar="<command>", title="commands")
    commands = {
        name: chooser.add_parser(
            name, help=text, description=text, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        for name, (_, text) in COMMANDS.items()
    }
    return parser, commands


if __name__ == "__main__":
    sys.exit(main())
