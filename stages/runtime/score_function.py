"""A reward or utility written by the user as a Python file: `def score(prompt, response, row) -> float`."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from pipeline.contract import Checkpoint
from pipeline.errors import DataError, Finding

FUNCTION_NAME = "score"
LARGEST = 3.4e38
"Largest absolute score: what a float32 can hold."
_HINT = f"def {FUNCTION_NAME}(prompt, response, row): return a finite number"


@dataclass(frozen=True, slots=True)
class ScoreFunction:
    """Calls the user's function and refuses what is not a finite number."""

    function: Callable[[Any, str, Mapping[str, Any]], float]
    path: Path

    def __call__(self, prompt: Any, response: str, row: Mapping[str, Any]) -> float:
        """Return the score of one response.

        Args:
            prompt: as the prompt file holds it, text or messages.
            response: text, control tokens left out.
            row: the other fields of the prompt's row.

        Raises:
            DataError: the function raised, or gave something other than a finite number.
        """
        try:
            # Copies: what a function does to its arguments must not reach the next iteration.
            value = self.function(deepcopy(prompt), response, deepcopy(dict(row)))
        except (Exception, SystemExit) as error:
            message = f"{FUNCTION_NAME}() raised {_said(error)} for the response {response[:40]!r}"
            raise DataError(message, where=str(self.path), hint=_HINT, code="score-function") from error
        if isinstance(value, Real) and abs(value) <= LARGEST:
            return float(value)
        message = f"{FUNCTION_NAME}() gave {_cut(repr(value))} for the response {response[:40]!r}"
        raise DataError(message, where=str(self.path), hint=_HINT, code="score-function")


def score_function_findings(source: Checkpoint) -> list[Finding]:
    """Say what is wrong with a file as far as reading it can tell; nothing in it is run."""
    where = source.source or str(source.path)
    try:
        tree = ast.parse(source.path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        return [Finding(f"{where} cannot be read: {error}", where, _HINT, "score-function")]
    except SyntaxError as error:
        return [Finding(f"{error.msg}", f"{where}:{error.lineno}", _HINT, "score-function")]
    if FUNCTION_NAME in _top_level_names(tree):
        return []
    return [Finding(f"{where} defines no function {FUNCTION_NAME}", where, _HINT, "score-function")]


def _top_level_names(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.alias):
            names.add((node.asname or node.name).split(".")[0])
    return names


def load_score_function(source: Checkpoint) -> ScoreFunction:
    """Run a Python file that the user named and return its `score`.

    Raises:
        DataError: the file is missing, cannot be run, or defines no function of that name.
    """
    path = source.path
    where = source.source or str(path)
    spec = importlib.util.spec_from_file_location(f"score_function_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise DataError(f"{where} is not a Python file", where=where, hint=_HINT, code="score-function")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        message = f"{where} cannot be run: {_said(error)}"
        raise DataError(message, where=where, hint=_HINT, code="score-function") from error
    function = getattr(module, FUNCTION_NAME, None)
    if not callable(function):
        message = f"{where} defines no function {FUNCTION_NAME}"
        raise DataError(message, where=where, hint=_HINT, code="score-function")
    return ScoreFunction(function, path)


def _said(error: BaseException) -> str:
    return _cut(f"{type(error).__name__}: {error}")


def _cut(text: str) -> str:
    """Return the first line of a text, at most 200 characters of it."""
    line = (text.splitlines() or [""])[0]
    return line if len(line) <= 200 else f"{line[:200]} ..."
