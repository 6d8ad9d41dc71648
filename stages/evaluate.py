"""The evaluate stage: every checkpoint answers the same held-out prompts, side by side in one table.

The card only: settings and slots. The work is in stages/evaluation/.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from pipeline.config.run import ModelConfig, TuningConfig
from pipeline.config.strict import NOT_IN_KEY, StrictModel
from pipeline.contract import ArtifactKind, InputSlot, StageCheck, StageContext, StageResult, StageSpec
from pipeline.errors import Finding
from pipeline.memory.work import Decoding, Workload
from stages.harness_config import HarnessConfig, harness_findings
from stages.judge_config import JudgeConfig

FIXED_ROLES = (
    *("prompts", "gold", "reward", "demonstrations", "fewshot"),
    *("train", "probe", "classification", "harness"),
)
"Inputs that are not models to be compared."


class EvaluateConfig(StrictModel):
    """Settings of an evaluation."""

    seed: int = 42
    "Seed of sampling and of the intervals; the run's seed unless the stage sets its own."
    model: ModelConfig = ModelConfig()
    "The run's base model, with keys of the stage's own."
    tuning: TuningConfig = TuningConfig()
    "Only its method is read: qlora holds the base in 4 bits here too."

    reference: str = "base"
    "The model that win rates and KL are measured against: an input's name, or base."
    max_prompts: int | None = Field(None, ge=1)
    "Only the first so many prompts; None takes all."
    samples_per_prompt: int = Field(1, ge=1)
    "Responses to each prompt. More narrows the intervals up to what the prompts allow."
    temperature: float = Field(1.0, ge=0)
    "Divides the logits; 0 takes the most likely token, and then there is no KL."
    max_new_tokens: int = Field(128, ge=1)
    "Longest response in tokens, the stop token included."
    max_length: int = Field(1024, ge=2)
    "Tokens of prompt and response together; longer prompts are set aside and counted."
    generation_batch_size: int = Field(64, ge=1, json_schema_extra=NOT_IN_KEY)
    "Responses decoded at once; bounds memory."
    confidence: float = Field(0.95, gt=0, lt=1)
    "Coverage of the bootstrap intervals."
    bootstrap_draws: int = Field(2000, ge=100)
    "Resamples of the prompts behind each interval."
    judge: JudgeConfig | None = None
    "A language model that also says who wins; None asks nobody."
    harness: HarnessConfig | None = None
    "Tasks of the lm-evaluation-harness that every model takes too; None runs none."
    num_samples_shown: int = Field(24, ge=0)
    "Prompts whose responses are kept for the report, all models side by side."


def check(stage: StageCheck) -> Sequence[Finding]:
    """Say what can be known before anything runs: the reference is among the models."""
    findings = stage.config.judge.findings() if stage.config.judge else []
    where = f"stages.{stage.name}.harness"
    findings += harness_findings(stage.config.harness, roles=(*stage.roles, *stage.inputs), where=where)
    names = {"base", *(role for role in stage.roles if role not in FIXED_ROLES)}
    if not stage.roles or stage.config.reference in names:
        return findings
    message = f"reference is {stage.config.reference!r}, which is not a model of this evaluation"
    return [*findings, Finding(message, "reference", f"one of {', '.join(sorted(names))}", "unknown-model")]


def run(ctx: StageContext) -> StageResult:
    """Sample from every model and write the table and the samples."""
    from stages.evaluation.compare import evaluate

    return evaluate(ctx)


def memory(stage: StageCheck) -> Workload:
    """Say what sampling holds: the base, and an adapter for every model that is compared."""
    config: EvaluateConfig = stage.config
    decoding = Decoding(
        config.generation_batch_size,
        max(1, config.max_length - config.max_new_tokens),
        config.max_new_tokens,
    )
    adapters = len([role for role in stage.roles if role not in (*FIXED_ROLES, "base") or role == "reward"])
    return Workload(config.model, config.tuning, frozen=adapters, decoding=decoding)


SPEC = StageSpec(
    kind="evaluate",
    version=2,
    config_type=EvaluateConfig,
    inputs={
        "base": InputSlot((ArtifactKind.FULL_MODEL,), help="the frozen base of every adapter"),
        "prompts": InputSlot((ArtifactKind.PROMPTS,), help="held-out prompts"),
        "gold": InputSlot(
            (ArtifactKind.FUNCTION,),
            required=False,
            help="a Python file with score(prompt, response, row) -> float, larger is better",
        ),
        "reward": InputSlot((ArtifactKind.REWARD_MODEL,), required=False, help="gives the proxy reward"),
        "demonstrations": InputSlot(
            (ArtifactKind.DEMONSTRATIONS,), required=False, help="held-out answers, for loss and perplexity"
        ),
        "train": InputSlot(
            (ArtifactKind.DEMONSTRATIONS,),
            required=False,
            help="answers that were trained on: their loss beside the held-out one is the over-fitting gap",
        ),
        "probe": InputSlot(
            (ArtifactKind.TEXT,), required=False, help="general text, on which forgetting shows"
        ),
        "classification": InputSlot(
            (ArtifactKind.DEMONSTRATIONS,),
            required=False,
            help="a classification task: JSON Lines with text and label",
        ),
        "fewshot": InputSlot(
            (ArtifactKind.DEMONSTRATIONS,),
            required=False,
            help="examples put before each prompt for the base",
        ),
        "harness": InputSlot(
            (ArtifactKind.TEXT,),
            required=False,
            help="a folder of YAML tasks for the lm-evaluation-harness, with their data",
        ),
    },
    outputs={"table": ArtifactKind.TABLE, "samples": ArtifactKind.SAMPLES},
    run=run,
    memory=memory,
    summary="compare every checkpoint on held-out prompts: gold, win rate, proxy reward, KL, length",
    extra_inputs=(ArtifactKind.ADAPTER, ArtifactKind.FULL_MODEL),
    check=check,
)
