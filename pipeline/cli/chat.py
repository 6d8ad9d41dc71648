"""`triptych chat`: talk to what a stage made, line by line."""

from __future__ import annotations

import argparse
import os
import stat
import sys
from typing import TYPE_CHECKING

from pipeline.cli import arguments, voices
from pipeline.errors import DataError, UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stages.evaluation.speaker import Conversation

HELP = "/reset forgets the conversation, /quit or Ctrl-D ends it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("model", metavar="RUN:STAGE", help="such as demo:ppo")
    parser.add_argument("--system", default="", help="a system message before the conversation")
    voices.add_voice(parser, temperature=0.7)
    arguments.add_store(parser)
    parser.epilog = f"In the conversation {HELP}. Lines can also be piped in, one message each."


def main(args: argparse.Namespace) -> int:
    """Read messages from standard input and print the answers."""
    _require_input()
    committed = voices.committed_of(arguments.open_store(args), args.model, args.base)
    from stages.evaluation.speaker import Conversation, Speaker

    voice = voices.voice_of(args)
    speaker = Speaker(committed)
    print(f"{committed.name}; {HELP}", file=sys.stderr)
    if not speaker.chat.has_template:
        print("this model has no chat template: it reads each message alone, as plain text", file=sys.stderr)
    _talk(Conversation(speaker, voice, system=args.system))
    return 0


def _talk(conversation: Conversation) -> None:
    for text in _messages():
        if text == "/quit":
            return
        if text == "/reset":
            conversation.reset()
            print("(forgotten)", file=sys.stderr)
            continue
        if text.startswith("/"):
            print(f"{text.split()[0]} is no command: {HELP}", file=sys.stderr)
            continue
        try:
            said = conversation.say(text)
        except DataError as error:
            print(f"error: {error}", file=sys.stderr)
            continue
        print(said.text + ("" if said.finished else " [cut]"), flush=True)


def _messages() -> Iterator[str]:
    """Yield lines without blanks around them; Ctrl-D and Ctrl-C end them."""
    while True:
        try:
            text = input("> ") if sys.stdin.isatty() else next(sys.stdin)
        except (EOFError, StopIteration, KeyboardInterrupt):
            return
        if text.strip():
            yield text.strip()


def _require_input() -> None:
    """Refuse a standard input from which no message can come.

    Raises:
        UserError: it is closed, or neither a terminal, a pipe nor a file.
    """
    hint = "run it in a terminal, or: echo 'a message' | triptych chat RUN:STAGE"
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (AttributeError, OSError, ValueError):
        mode = 0
    piped = stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)
    if not piped and not (mode and sys.stdin.isatty()):
        raise UserError(
            "there is no terminal to talk in, and nothing is piped in", hint=hint, code="no-terminal"
        )
