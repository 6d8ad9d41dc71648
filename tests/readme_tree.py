"""Reads the file tree of the README, so that tests can hold it against the checkout.

`python -m tests.readme_tree` writes the tree of every file anew.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
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


def _remark(path: Path, kept: dict[str, str]) -> str:
    if not path.suffix and not (path / "__init__.py").exists():
        return kept.get(f"{path.relative_to(ROOT)}/", "")
    path = path if path.suffix else path / "__init__.py"
    if path.suffix == ".yaml":
        comments = (line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
        return next(comments, "").lstrip("# ").rstrip(".")
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    return (docstring or "").split("\n")[0].rstrip(".")


def _holds_source(folder: Path) -> bool:
    return any(path.suffix in (".py", ".yaml") for path in folder.rglob("*"))


def _lines(folder: Path, depth: int, kept: dict[str, str]) -> Iterator[str]:
    indent = "  " * depth
    files = (p for p in folder.iterdir() if p.suffix in (".py", ".yaml") and p.name != "__init__.py")
    for path in sorted(files):
        yield f"{indent}{path.name}".ljust(28) + f"  {_remark(path, kept)}"
    for inner in sorted(p for p in folder.iterdir() if p.is_dir() and _holds_source(p)):
        yield f"{indent}{inner.name}/".ljust(28) + f"  {_remark(inner, kept)}"
        yield from _lines(inner, depth + 1, kept)


def write_tree() -> None:
    """Write the README's last section anew: every source file, with the first line of its docstring.

    A folder without Python of its own keeps the remark it has.
    """
    readme, kept = ROOT / "README.md", tree_paths()
    above = readme.read_text(encoding="utf-8").split("## Every file\n")[0]
    lines: list[str] = []
    for name in ("pipeline", "reward", "stages", "configs", "data"):
        lines.append(f"{name}/".ljust(28) + f"  {_remark(ROOT / name, kept)}")
        lines.extend(_lines(ROOT / name, 1, kept))
    readme.write_text(f"{above}## Every file\n\n```text\n" + "\n".join(lines) + "\n```\n", encoding="utf-8")


if __name__ == "__main__":
    write_tree()
