"""Settings of tasks of the lm-evaluation-harness inside an evaluation. No torch here."""

from __future__ import annotations

from collections.abc import Collection
from importlib.util import find_spec

from pydantic import Field

from pipeline.config.strict import StrictModel
from pipeline.errors import Finding

PACKAGE = "lm_eval"
HINT = "pip install 'triptych-rlhf[harness]', or leave harness out"


class HarnessConfig(StrictModel):
    """Tasks of EleutherAI's lm-evaluation-harness that every model of the evaluation takes."""

    tasks: tuple[str, ...] = Field(min_length=1)
    "Names of tasks or groups: of the input `harness`, a folder of YAML tasks, or of the package itself."
    num_fewshot: int | None = Field(None, ge=0)
    "Worked examples before each question; None leaves it to the task."
    limit: int | None = Field(None, ge=1)
    "Only the first so many rows of each task; None takes all."
    apply_chat_template: bool = False
    "Ask through the model's chat template; published scores of base models are without."


def harness_findings(config: HarnessConfig | None, *, roles: Collection[str], where: str) -> list[Finding]:
    """Say what keeps the tasks from being run, without importing the package.

    Args:
        config: the setting; None asks for no task.
        roles: the inputs of the stage.
        where: the setting's place in the run file.
    """
    if config is None:
        if "harness" not in roles:
            return []
        message = "the input harness holds tasks, and the setting harness names none of them"
        return [Finding(message, where, "harness: {tasks: [...]}", "no-harness-tasks")]
    if find_spec(PACKAGE) is None:
        return [
            Finding("harness needs the package lm_eval, which is not installed", where, HINT, "no-harness")
        ]
    return []
