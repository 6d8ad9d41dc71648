"""The sample stage: a policy answers prompts; what is worth judging becomes comparisons. No torch here."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from pipeline.config.run import ModelConfig, TuningConfig
from pipeline.config.strict import NOT_IN_KEY, StrictModel
from pipeline.contract import ArtifactKind, InputSlot, StageCheck, StageContext, StageResult, StageSpec
from pipeline.errors import DataError, Finding
from pipeline.memory.work import Decoding, Workload


class SampleConfig(StrictModel):
    """Settings of sampling for annotation."""

    seed: int = 42
    "Another seed draws other answers; the run's seed unless the stage sets its own."
    model: ModelConfig = ModelConfig()
    "The run's base model, with keys of the stage's own."
    tuning: TuningConfig = TuningConfig()
    "Only its method is read: qlora holds the base in 4 bits here too."

    max_prompts: int | None = Field(None, ge=1)
    "Only the first so many prompts; None takes all."
    samples_per_prompt: int = Field(4, ge=2)
    "Answers drawn to each prompt. More leave enough when some are equal, empty or cut."
    responses_per_prompt: int = Field(2, ge=2)
    "Answers of a comparison at most: 2 gives pairs, more give rankings."
    temperature: float = Field(1.0, gt=0)
    "Divides the logits. Smaller draws answers that are more alike."
    top_p: float = Field(1.0, gt=0, le=1)
    "Smallest share of probability to draw from."
    max_new_tokens: int = Field(128, ge=1)
    "Longest answer in tokens, the stop token included; a longer one is cut and left out."
    max_length: int = Field(1024, ge=2)
    "Tokens of prompt and answer together; longer prompts are set aside and counted."
    generation_batch_size: int = Field(64, ge=1, json_schema_extra=NOT_IN_KEY)
    "Answers decoded at once; bounds memory."


def check(stage: StageCheck) -> Sequence[Finding]:
    """Read the prompts and say what would stop the stage."""
    from stages.data import read_prompts

    config: SampleConfig = stage.config
    findings = []
    if config.responses_per_prompt > config.samples_per_prompt:
        message = f"responses_per_prompt {config.responses_per_prompt} is more than samples_per_prompt"
        findings.append(
            Finding(message, "responses_per_prompt", f"at most {config.samples_per_prompt}", "bad-value")
        )
    if "prompts" in stage.inputs:
        try:
            read_prompts(stage.inputs["prompts"].path)
        except DataError as error:
            findings += error.findings
    return findings


def run(ctx: StageContext) -> StageResult:
    """Draw answers and write those that people can judge, one comparison a prompt."""
    from stages.evaluation.sampling import sample_comparisons

    return sample_comparisons(ctx)


def memory(stage: StageCheck) -> Workload:
    """Say what sampling holds: the base, the policy's adapter and the cache."""
    config: SampleConfig = stage.config
    prompt_tokens = max(1, config.max_length - config.max_new_tokens)
    decoding = Decoding(config.generation_batch_size, prompt_tokens, config.max_new_tokens)
    return Workload(config.model, config.tuning, frozen=int("policy" in stage.roles), decoding=decoding)


SPEC = StageSpec(
    kind="sample",
    version=1,
    config_type=SampleConfig,
    inputs={
        "base": InputSlot((ArtifactKind.FULL_MODEL,), help="the frozen base"),
        "policy": InputSlot(
            (ArtifactKind.ADAPTER,), required=False, help="whose answers are judged; without it the base's"
        ),
        "prompts": InputSlot((ArtifactKind.PROMPTS,), help="prompts to be answered"),
    },
    outputs={"comparisons": ArtifactKind.PREFERENCES},
    run=run,
    memory=memory,
    summary="answers of a policy as comparisons to be judged: triptych data export sends them to people",
    check=check,
    metrics=("num_prompts", "num_comparisons", "num_unusable", "num_too_long"),
)
