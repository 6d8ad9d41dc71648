"""The walls of the house: who may import whom, and what must not be loaded at start-up."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("pipeline", "reward", "stages")
MAY_IMPORT = {
    "pipeline": {"pipeline"},
    "reward": {"pipeline", "reward"},
    "stages": {"pipeline", "reward", "stages"},
}
HEAVY = {"torch", "transformers", "trl", "peft", "datasets", "accelerate", "bitsandbytes", "wandb"}
START_UP = [["--help"], ["run", "--help"], ["plan", "--help"], ["status", "--help"], ["verify", "--help"]]


def _sources() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def _imports(nodes: Iterator[ast.AST]) -> set[str]:
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            names.add(node.module or "")
    return names


def _at_module_level(tree: ast.Module) -> Iterator[ast.AST]:
    """Every node that runs when the module is imported; TYPE_CHECKING blocks and functions do not."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        for child in ast.iter_child_nodes(node):
            is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            if is_function or (isinstance(child, ast.If) and _is_type_checking(child.test)):
                continue
            waiting.append(child)


def _is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _must_stay_light(relative: Path) -> bool:
    parts = relative.parts
    is_card = parts[0] == "stages" and len(parts) == 2
    return parts[0] == "pipeline" or is_card or parts[:2] == ("reward", "preferences")


@pytest.mark.parametrize("path", _sources(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_package_imports_only_itself_and_what_is_above_it(path: Path) -> None:
    relative = path.relative_to(ROOT)
    allowed = MAY_IMPORT[relative.parts[0]]
    if relative.parts[:2] == ("pipeline", "cli"):
        allowed = set(PACKAGES)
    tree = ast.parse(path.read_text())

    ours = {name.split(".")[0] for name in _imports(ast.walk(tree))} & {*PACKAGES, "tests"}

    assert ours <= allowed


@pytest.mark.parametrize(
    "path",
    [path for path in _sources() if _must_stay_light(path.relative_to(ROOT))],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_a_light_module_loads_nothing_heavy_when_imported(path: Path) -> None:
    tree = ast.parse(path.read_text())

    loaded = {name.split(".")[0] for name in _imports(_at_module_level(tree))}

    assert not loaded & HEAVY


@pytest.mark.parametrize("path", _sources(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_file_stays_short_enough_to_be_read(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_file_holds_a_docstring_only(package: str) -> None:
    for path in (ROOT / package).rglob("__init__.py"):
        body = ast.parse(path.read_text()).body

        assert len(body) <= 1, path
        assert all(isinstance(node, ast.Expr) for node in body), path


def test_vague_file_names_are_not_used() -> None:
    vague = {"utils.py", "common.py", "helpers.py", "misc.py", "util.py"}

    assert [path for path in _sources() if path.name in vague] == []


@pytest.mark.skipif(not (ROOT / "pipeline/cli/main.py").exists(), reason="the command line is not there yet")
@pytest.mark.parametrize("arguments", START_UP, ids=" ".join)
def test_the_command_line_starts_without_heavy_packages(arguments: list[str]) -> None:
    program = (
        "import sys\n"
        "from pipeline.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "print('LOADED', *sorted({name.split('.')[0] for name in sys.modules}))\n"
    )

    answer = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True, cwd=ROOT
    )

    loaded = set(answer.stdout.rpartition("LOADED")[2].split())
    assert "pipeline" in loaded
    assert not loaded & {*HEAVY, "numpy"}
