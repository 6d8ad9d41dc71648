"""The README tells the truth about the tree and the commands."""

from __future__ import annotations

import pytest

from tests.readme_tree import ROOT, documented_commands, tree_paths


def test_every_path_of_the_tree_exists() -> None:
    missing = [path for path in tree_paths() if not (ROOT / path).exists()]

    assert not missing


@pytest.mark.parametrize("package", ["pipeline", "reward", "stages", "configs"])
def test_the_tree_names_every_file_of_the_package(package: str) -> None:
    files = {
        str(path.relative_to(ROOT))
        for path in (ROOT / package).rglob("*")
        if path.suffix in {".py", ".yaml"} and path.name != "__init__.py"
    }

    unnamed = sorted(files - set(tree_paths()))

    assert not unnamed


def test_every_line_of_the_tree_has_a_remark() -> None:
    assert not [path for path, remark in tree_paths().items() if not remark]


def test_the_readme_says_where_the_ppo_loop_is() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")

    assert "stages/trainers/ppo/loop.py" in text


def test_every_documented_make_target_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {command.split()[1] for _, command in documented_commands() if command.startswith("make ")}

    assert targets
    assert all(f"\n{target}:" in makefile for target in targets)
