"""Input slots and checks of the stages that sample responses and pay for them. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.contract import ArtifactKind, Checkpoint, InputSlot, StageCheck
from pipeline.errors import Finding, UserError
from pipeline.memory.activations import Pass

POLICY = InputSlot((ArtifactKind.ADAPTER,), help="the SFT adapter: start and reference")
REWARD_MODEL = InputSlot((ArtifactKind.REWARD_MODEL,), required=False, help="the reward model")
REWARD_FUNCTION = InputSlot(
    (ArtifactKind.FUNCTION,),
    required=False,
    help="a Python file with score(prompt, response, row) -> float",
)
WATCH = InputSlot(
    (ArtifactKind.FUNCTION,),
    required=False,
    help="a Python file with score(prompt, response, row), watched and never trained on",
)
PROMPTS = InputSlot((ArtifactKind.PROMPTS,), help="prompts to answer")


def sampled_pass(config: Any) -> Pass:
    """Return the pass with gradients of one micro-batch of responses, for the memory plan."""
    rows = config.per_device_train_batch_size
    return Pass(
        rows * config.max_length,
        config.max_length,
        rows * config.max_new_tokens,
        checkpointing=config.tuning.gradient_checkpointing,
    )


def no_reward(stage: str) -> Finding:
    """Say that a stage was given nothing that pays its responses."""
    message = "there is nothing to reward: neither a reward model nor a reward function is given"
    hint = "inputs: {reward: <a reward stage>} or {reward_function: <a Python file>}"
    return Finding(message, f"stages.{stage}.inputs", hint, "no-reward")


def function_findings(stage: StageCheck) -> list[Finding]:
    """Read every function of a stage's inputs without running it."""
    from stages.runtime.score_function import score_function_findings

    functions = [given for given in stage.inputs.values() if given.kind == ArtifactKind.FUNCTION]
    return [finding for function in functions for finding in score_function_findings(function)]


def count_prompts(prompts: Checkpoint) -> tuple[int, Sequence[Finding]]:
    """Return how many prompts a file holds, or what is wrong with it."""
    from stages.data import read_prompts

    try:
        return len(read_prompts(prompts.path)), ()
    except UserError as error:
        return 0, error.findings
