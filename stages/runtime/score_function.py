"""A reward or utility written by the user as a Python file: `def score(prompt, response, row) -> float`."""

from __future__ import annotations

import ast
import importlib.util
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from pipeline.contract import Checkpoint
from pipeline.errors import DataError, Finding

FUNCTION_NAME = "score"
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
            value = self.function(prompt, response, row)
        except Exception as error:
            message = f"{FUNCTION_NAME}() raised {type(error).__name__}: {error}"
            raise DataError(message, where=str(self.path), hint=_HINT, code="score-function") from error
        if isinstance(value, Real) and math.isfinite(value):
            return float(value)
        message = f"{FUNCTION_NAME}() gave {value!r} for the response {response[:40]!r}"
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
    except Exception as error:
        message = f"{where} cannot be run: {type(error).__name__}: {error}"
        raise DataError(message, where=where, hint=_HINT, code="score-function") from error
    function = getattr(module, FUNCTION_NAME, None)
    if not callable(function):
        message = f"{where} defines no function {FUNCTION_NAME}"
        raise DataError(message, where=where, hint=_HINT, code="score-function")
    return ScoreFunction(function, path)
