"""Reads the file tree of the README, so that tests can hold it against the checkout."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def tree_paths() -> dict[str, str]:
    """Return every path of the README's tree and its remark.

    Every ```text block is a tree: two spaces a level, a name, two or more spaces, a remark. A folder's
    name ends in a slash.
    """
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = [body for language, body in FENCE.findall(text) if language == "text"]
    return {path: remark for block in blocks for path, remark in _tree(block).items()}


def _tree(block: str) -> dict[str, str]:
    paths: dict[str, str] = {}
    parents: list[str] = []
    for line in filter(str.strip, block.splitlines()):
        depth = (len(line) - len(line.lstrip(" "))) // 2
        names, _, remark = line.strip().partition("  ")
        del parents[depth:]
        prefix = "".join(parents)
        paths[prefix + names] = remark.strip()
        if names.endswith("/"):
            parents.append(names)
    return paths


def documented_commands() -> list[tuple[str, str]]:
    """Return every `triptych` and `make` command in the ```bash blocks of README and docs, with its file."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    commands: list[tuple[str, str]] = []
    for page in pages:
        for language, body in FENCE.findall(page.read_text(encoding="utf-8")):
            if language != "bash":
                continue
            for line in body.replace("\\\n", " ").splitlines():
                command = line.split(" #")[0].strip()
                if command.startswith(("triptych ", "make ", "python ")):
                    commands.append((page.name, command))
    return commands
