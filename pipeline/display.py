"""What shows a run to a person. The engine prints nothing itself."""

from __future__ import annotations

from typing import Protocol


class Display(Protocol):
    """Shows lines, stage states and progress; the command line and tests each have one."""

    def say(self, text: str) -> None:
        """Show one line."""

    def stage(self, name: str, state: str, text: str = "") -> None:
        """Show that a stage is reused, running, complete, failed, blocked or interrupted."""

    def progress(self, name: str, step: int, total: int, *, text: str) -> None:
        """Show how far the running stage is."""
