"""Tasks of the lm-evaluation-harness, taken by a model that is already in memory."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import chdir, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError, DataError
from stages.evaluate import EvaluateConfig
from stages.harness_config import HINT
from stages.runtime.loading import causal_lm_of
from stages.runtime.modes import evaluating
from stages.trainers.loop import unchanged_random_state

if TYPE_CHECKING:
    from stages.evaluation.contestants import Reader

FAMILY = "harness"
_UNFILTERED = "none"


@dataclass(frozen=True, slots=True)
class HarnessResult:
    """What one model scored."""

    scores: Mapping[str, float]
    "`task/metric` -> value; a metric behind an answer filter is `metric.filter`."
    tasks: Mapping[str, Mapping[str, Any]]
    "Task -> version, num_fewshot and num_rows, as they were in effect."
    package_version: str

    @property
    def said(self) -> str:
        """Which tasks these are, for people."""
        tasks = (
            f"{name} (version {of['version']}, {of['num_rows']} rows, {of['num_fewshot']}-shot)"
            for name, of in self.tasks.items()
        )
        return f"lm_eval {self.package_version}: {', '.join(tasks)}."

    def metrics(self, model: str) -> dict[str, float]:
        """Return the scores under `harness/task/metric/model`."""
        key = model.replace(" ", "_")
        return {f"{FAMILY}/{name}/{key}": value for name, value in self.scores.items()}


class Harness:
    """The tasks of an evaluation, found and loaded once before any model is asked.

    Args:
        config: settings of the evaluation; its harness setting is not None.
        folder: YAML tasks of the user; paths in them are relative to it. None: the package's own only.

    Raises:
        ConfigError: the package is not installed.
        DataError: a task is unknown or its data cannot be read.
    """

    def __init__(self, config: EvaluateConfig, folder: Path | None) -> None:
        if config.harness is None:
            raise ValueError("no task is named")
        self._config, self._setting, self._folder = config, config.harness, folder
        self._package = _Package.find()
        with self._inside():
            self._manager = self._package.manager(folder)
        self._check()

    def run(self, reader: Reader) -> HarnessResult:
        """Let a model take every task. Random state is put back, and so is the working folder."""
        model, tokenizer = causal_lm_of(reader.model), copy.deepcopy(reader.chat.tokenizer)
        setting, seed = self._setting, self._config.seed
        with self._inside(), unchanged_random_state(), evaluating(model):
            found = self._package.evaluate(
                model=self._package.wrap(
                    pretrained=model,
                    backend="causal",
                    tokenizer=tokenizer,
                    max_length=self._config.max_length,
                    batch_size=self._config.generation_batch_size,
                ),
                tasks=list(setting.tasks),
                task_manager=self._manager,
                num_fewshot=setting.num_fewshot,
                limit=setting.limit,
                apply_chat_template=setting.apply_chat_template,
                bootstrap_iters=self._config.bootstrap_draws,
                log_samples=False,
                random_seed=seed,
                numpy_random_seed=seed,
                torch_random_seed=seed,
                fewshot_random_seed=seed,
            )
        return read_results(found, version=self._package.version)

    def _check(self) -> None:
        """Load every task once: a mistake in a YAML or a missing file ends here, not after sampling."""
        with self._inside():
            try:
                loaded = self._manager.load(list(self._setting.tasks))
            except Exception as error:
                reason = " ".join(str(error).split())[:400] or type(error).__name__
                where = str(self._folder) if self._folder else "harness.tasks"
                hint = (
                    "`lm_eval ls tasks` lists the tasks of the package; paths in a YAML count from its folder"
                )
                message = f"the tasks {', '.join(self._setting.tasks)} cannot be loaded: {reason}"
                raise DataError(message, where=where, hint=hint, code="harness-task") from error
        if not loaded["tasks"]:
            message = f"no task is called {', '.join(self._setting.tasks)}"
            raise DataError(message, where="harness.tasks", code="harness-task")

    def _inside(self) -> Any:
        return nullcontext() if self._folder is None else chdir(self._folder)


@dataclass(frozen=True, slots=True)
class _Package:
    """The three things of lm_eval that are used here."""

    version: str
    wrap: Any
    evaluate: Any
    task_manager: Any

    @classmethod
    def find(cls) -> _Package:
        """Import the package.

        Raises:
            ConfigError: it is not installed.
        """
        try:
            from lm_eval import __version__, simple_evaluate
            from lm_eval.models.huggingface import HFLM
            from lm_eval.tasks import TaskManager
        except ImportError as error:
            message = f"harness needs the package lm_eval: {error}"
            raise ConfigError(message, where="harness", hint=HINT, code="no-harness") from error
        return cls(__version__, HFLM, simple_evaluate, TaskManager)

    def manager(self, folder: Path | None) -> Any:
        """Return the index of all tasks."""
        return self.task_manager(include_path=None if folder is None else str(folder))


def read_results(found: Mapping[str, Any], *, version: str) -> HarnessResult:
    """Take the numbers out of lm_eval's results: `metric,filter` keys of every task and group."""
    scores: dict[str, float] = {}
    for task, values in {**found["results"], **found.get("groups", {})}.items():
        for key, value in values.items():
            metric, comma, filtered = key.partition(",")
            if not comma or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            name = metric if filtered == _UNFILTERED else f"{metric}.{filtered}"
            scores[f"{task}/{name}"] = float(value)
    shots, rows = found.get("n-shot", {}), found.get("n-samples", {})
    tasks = {
        task: {"version": of, "num_fewshot": shots.get(task), "num_rows": rows.get(task, {}).get("effective")}
        for task, of in found.get("versions", {}).items()
    }
    return HarnessResult(dict(sorted(scores.items())), dict(sorted(tasks.items())), version)
