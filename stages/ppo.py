"""The ppo stage: improve the SFT policy against a reward, held near it by a KL price.

The card only: settings and slots. The loop is stages/trainers/ppo/loop.py.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from importlib.util import find_spec
from typing import Literal

from pydantic import Field, model_validator

from pipeline.config.run import ModelConfig, TuningConfig
from pipeline.config.strict import NOT_IN_KEY, StrictModel
from pipeline.contract import ArtifactKind, InputSlot, StageCheck, StageContext, StageResult, StageSpec
from pipeline.errors import Finding
from pipeline.memory.work import Decoding, Workload
from stages import rewarded
from stages.tuning import parts_findings, refuse_full

REWARD, FUNCTION, OUTSIDE = "reward", "reward_function", "outside_reward"
"Roles of what pays a response; functions under other names pay too."


class PPOConfig(StrictModel):
    """Settings of PPO. Names follow TRL and the papers."""

    seed: int = 42
    "Seed of sampling, prompt order and minibatches; the run's seed unless the stage sets its own."
    model: ModelConfig = ModelConfig()
    "The run's base model, with keys of the stage's own."
    tuning: TuningConfig = TuningConfig()
    "The run's tuning, with keys of the stage's own."

    total_iterations: int = Field(100, ge=1)
    "Rounds of sampling and updating."
    total_episodes: int | None = Field(None, ge=1)
    "Responses to sample in all, rounded up to whole iterations; replaces total_iterations."
    rollout_batch_size: int = Field(64, ge=1)
    "Responses sampled an iteration. More gives steadier updates."
    num_mini_batches: int = Field(2, ge=1)
    "Optimizer steps into which one pass over the rollout batch is cut."
    num_ppo_epochs: int = Field(2, ge=1)
    "Passes over each rollout batch. More learns more from a sample and drifts further from it."
    per_device_train_batch_size: int = Field(8, ge=1)
    "Responses a micro-batch: sets memory and speed; the update is the same but for rounding."

    learning_rate: float = Field(1e-5, gt=0)
    "Peak learning rate of the policy adapter."
    value_learning_rate: float | None = Field(None, gt=0)
    "Peak learning rate of the value adapter and head; None is twice the policy's."
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "linear"
    "How the learning rates fall after warm-up, an iteration at a time; linear and cosine end at 0."
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    "Share of the iterations over which the learning rates rise from 0."
    adam_epsilon: float = Field(1e-5, gt=0)
    "AdamW epsilon. Larger damps the first steps, when second moments are small."
    max_grad_norm: float = Field(1.0, gt=0)
    "Gradients of the policy and of the value function are each scaled down to this norm."

    max_length: int = Field(1024, ge=2)
    "Tokens of prompt and response together; a prompt that leaves no room for max_new_tokens is set aside."
    max_new_tokens: int = Field(128, ge=1)
    "Longest response in tokens, the stop token included."
    temperature: float = Field(1.0, gt=0)
    "Divides the logits, in sampling and in every log-prob."
    generation_batch_size: int = Field(64, ge=1)
    "Responses decoded at once; bounds the memory of the key-value cache."
    generation_backend: Literal["sampler", "transformers", "vllm"] = "sampler"
    "What samples: the sampler here, exact on resume; transformers' continuous batching; or vLLM."
    vllm_memory_share: float = Field(0.3, gt=0, lt=1)
    "Share of a GPU's memory for vLLM's own copy of the base and its cache."

    reward_weight: float = 1.0
    "Factor of the reward model's score in the mix."
    ensemble_penalty: float = Field(0.0, ge=0)
    "Deviations of its members that a reward model of several takes off a score: doubt is not paid."
    function_weight: float = 1.0
    "Factor of the reward function's score in the mix."
    outside_weight: float = 1.0
    "Factor of the outside reward model's score in the mix."
    extra_weights: dict[str, float] = Field(default_factory=dict)
    "Factors of further reward functions in the mix, by the role they are given under; 1 if not named."
    missing_eos_penalty: float = Field(1.0, ge=0)
    "Taken off the score of a response that the length limit cut."
    length_penalty: float = Field(0.0, ge=0)
    "Taken off at max_new_tokens, falling linearly to nothing over length_penalty_buffer tokens."
    length_penalty_buffer: int = Field(32, ge=1)
    "Tokens before the limit over which length_penalty grows."
    normalize_scores: bool = False
    "Divide scores by their running standard deviation after taking off their running mean."
    score_clip: float | None = Field(None, gt=0)
    "Bound on the absolute score, after normalisation; None is off."
    whiten_rewards: bool = False
    "Scale the rewards of tokens to variance 1 over the rollout batch; the mean is not shifted."

    kl_coef: float = Field(0.05, ge=0)
    "Price of a nat of KL to the reference, paid token by token. Larger stays nearer to the SFT policy."
    kl_target: float | None = Field(None, gt=0)
    "Mean KL of a response, nats, to which kl_coef is steered; None keeps kl_coef fixed."
    kl_horizon: float = Field(10_000, gt=0)
    "Responses over which kl_coef can move by a fifth. Smaller steers harder."
    advantage: Literal["gae", "rloo", "grpo"] = "gae"
    "What a response is judged against: a learned value function, or the other responses to its prompt."
    num_generations: int = Field(4, ge=2)
    "Responses sampled for a prompt in rloo and grpo; gae samples one."
    gamma: float = Field(1.0, gt=0, le=1)
    "Discount of a token, in gae."
    lam: float = Field(0.95, ge=0, le=1)
    "GAE lambda: 1 trusts the rewards alone, 0 the value function alone."
    value_lam: float | None = Field(None, ge=0, le=1)
    "Lambda of the returns that the value function learns; None is lam. 1 learns without bias."
    whiten_advantages: bool = True
    "Shift and scale advantages to mean 0 and variance 1 over the tokens of the rollout batch."
    cliprange: float = Field(0.2, gt=0, lt=1)
    "How far the probability ratio of a token may move from 1 before its gradient stops."
    cliprange_high: float | None = Field(None, gt=0)
    "The same upwards; None is cliprange."
    dual_clip: float | None = Field(None, gt=1)
    "Bound on the weight of a bad token that became likely; None is off."
    importance_cap: float | None = Field(None, ge=1)
    "Weigh tokens by how much likelier they were here than to the generator, at most so much; None is off."
    cliprange_value: float | None = Field(0.2, gt=0)
    "How far a value may move in one iteration, in units of the score; None is off."
    vf_coef: float = Field(0.5, gt=0)
    "Factor of the value loss; its own learning rate and clipping make it matter little."
    target_kl: float | None = Field(0.05, gt=0)
    "An iteration's updates end once the policy is this far, nats a token, from the one that sampled."
    value: Literal["adapter", "trunk"] = "adapter"
    "Where the value function lives: on an adapter of its own, or on the policy's, for a cheaper update."
    value_init: Literal["auto", "reward", "policy"] = "auto"
    "Start of the value function: reward model and head, or policy and zero head. auto: reward if given."
    value_warmup_iterations: int = Field(0, ge=0)
    "First iterations in which only the value function learns."

    on_alarm: Literal["warn", "stop"] = "warn"
    "When the monitor finds that training goes wrong: say so and go on, or end with the best policy so far."
    alarm_kl: float = Field(30.0, gt=0)
    "KL of a response to the reference, nats, from which the monitor raises an alarm."
    rollout_prompts: int = Field(0, ge=0)
    "Prompts, the first of the file, whose every response is published with its scores; 0 is none."
    keep: Literal["last", "best"] = "last"
    "Which policy to give: the last, or the one with the best watched score (else the best reward)."

    logging_steps: int = Field(1, ge=1, json_schema_extra=NOT_IN_KEY)
    "Iterations between two lines of metrics."
    save_steps: int = Field(10, ge=1, json_schema_extra=NOT_IN_KEY)
    "Iterations between two checkpoints inside the stage."

    @model_validator(mode="after")
    def _fits_together(self) -> PPOConfig:
        if self.num_mini_batches > self.rollout_batch_size:
            raise ValueError(
                f"num_mini_batches is {self.num_mini_batches}, more than the "
                f"{self.rollout_batch_size} responses of rollout_batch_size"
            )
        if self.rollout_batch_size % self.group_size:
            raise ValueError(
                f"rollout_batch_size {self.rollout_batch_size} does not hold whole groups of "
                f"{self.group_size} responses (num_generations)"
            )
        if self.num_mini_batches > self.rollout_batch_size // self.group_size:
            raise ValueError(
                f"num_mini_batches is {self.num_mini_batches}, more than the "
                f"{self.rollout_batch_size // self.group_size} groups of rollout_batch_size"
            )
        if self.value == "trunk" and self.value_init == "reward":
            raise ValueError(
                "value: trunk starts with a head of zeros on the policy, not from the reward model"
            )
        if self.max_new_tokens >= self.max_length:
            raise ValueError(
                f"max_new_tokens {self.max_new_tokens} leaves no prompt room in max_length {self.max_length}"
            )
        return self

    @property
    def iterations(self) -> int:
        """Rounds of sampling and updating in all."""
        if self.total_episodes is None:
            return self.total_iterations
        return math.ceil(self.total_episodes / self.rollout_batch_size)

    def weight_of(self, role: str) -> float:
        """Return the factor of a reward source in the mix, by its role."""
        fixed = {REWARD: self.reward_weight, FUNCTION: self.function_weight, OUTSIDE: self.outside_weight}
        return fixed[role] if role in fixed else self.extra_weights.get(role, 1.0)

    @property
    def group_size(self) -> int:
        """Responses sampled for a prompt of an iteration."""
        return 1 if self.advantage == "gae" else self.num_generations

    @property
    def value_on(self) -> Literal["adapter", "trunk"] | None:
        """Where the value function lives; None when there is none."""
        return self.value if self.advantage == "gae" else None

    @property
    def value_peak_learning_rate(self) -> float:
        """Peak learning rate of the value function."""
        return 2 * self.learning_rate if self.value_learning_rate is None else self.value_learning_rate

    @property
    def max_prompt_length(self) -> int:
        """Longest prompt in tokens."""
        return self.max_length - self.max_new_tokens


def run(ctx: StageContext) -> StageResult:
    """Train the policy of role `policy` against its rewards."""
    from stages.trainers.ppo.loop import train_ppo

    return train_ppo(ctx)


def absent_outputs(config: PPOConfig) -> Sequence[str]:
    """Name what these settings give none of: a value function, or rollouts."""
    return [*([] if config.value_on else ["value"]), *([] if config.rollout_prompts else ["rollouts"])]


def check(stage: StageCheck) -> Sequence[Finding]:
    """Read prompts and reward function without running anything, and see that there is a reward."""
    findings = reward_findings(stage.name, stage.config, stage.roles)
    findings += refuse_full(stage, "policy, reference, reward and value share one frozen base")
    findings += backend_findings(stage.name, stage.config)
    findings += parts_findings(stage)
    findings += ranks_findings(stage)
    findings += rewarded.function_findings(stage)
    if (prompts := stage.inputs.get("prompts")) is not None:
        findings += rewarded.count_prompts(prompts)[1]
    return findings


def backend_findings(name: str, config: PPOConfig) -> list[Finding]:
    """Say whether the generation backend can be used with these settings, without importing it."""
    if config.generation_backend != "vllm":
        return []
    where, findings = f"stages.{name}.generation_backend", []
    if find_spec("vllm") is None:
        hint = "pip install 'triptych-rlhf[vllm]', or generation_backend: sampler"
        findings.append(
            Finding("generation_backend is vllm, and vLLM is not installed", where, hint, "no-vllm")
        )
    if config.tuning.method == "qlora":
        message = "vLLM would sample from a base that is not quantised as the one that is trained"
        findings.append(Finding(message, where, "generation_backend: sampler", "vllm-qlora"))
    return findings


def ranks_findings(stage: StageCheck) -> list[Finding]:
    """Say whether several processes can sample: each samples its own rows, with their own random numbers."""
    backend = stage.config.generation_backend
    if not stage.accelerate.is_many or backend == "sampler":
        return []
    message = f"generation_backend is {backend}, which cannot share rows among processes"
    hint = "generation_backend: sampler, or accelerate: {num_processes: 1}"
    return [Finding(message, "generation_backend", hint, "not-for-many")]


def reward_findings(name: str, config: PPOConfig, roles: Collection[str]) -> list[Finding]:
    """Say whether the roles hold a reward and what the value function is to start from."""
    findings = []
    further = set(roles) - set(SPEC.inputs)
    if not ({REWARD, FUNCTION, OUTSIDE} & set(roles) or further):
        findings.append(rewarded.no_reward(name))
    for role in sorted(set(config.extra_weights) - further):
        message = f"extra_weights names {role!r}, which is no further reward function of the inputs"
        hint = f"inputs: {{{role}: <a Python file>}}"
        findings.append(Finding(message, f"stages.{name}.extra_weights", hint, "unknown-reward"))
    if config.value_init == "reward" and "reward" not in roles:
        message = "value_init is reward, but no reward model is given"
        findings.append(Finding(message, f"stages.{name}.value_init", "value_init: policy", "no-reward"))
    return findings


def memory(stage: StageCheck) -> Workload:
    """Say what the four roles hold, in sampling and in the update."""
    config: PPOConfig = stage.config
    return Workload(
        config.model,
        config.tuning,
        rewarded.sampled_pass(config),
        trained=2 if config.value_on == "adapter" else 1,
        frozen=2 if "reward" in stage.roles else 1,
        heads=1 if config.value_on else 0,
        with_entropy=True,
        decoding=Decoding(
            min(config.generation_batch_size, config.rollout_batch_size),
            max(1, config.max_prompt_length),
            config.max_new_tokens,
        ),
    )


SPEC = StageSpec(
    kind="ppo",
    version=2,
    config_type=PPOConfig,
    inputs={
        "base": InputSlot((ArtifactKind.FULL_MODEL,), help="the frozen base of every role"),
        "policy": rewarded.POLICY,
        "reward": rewarded.REWARD_MODEL,
        "reward_function": rewarded.REWARD_FUNCTION,
        "outside_reward": InputSlot(
            (ArtifactKind.FULL_MODEL,),
            required=False,
            help="a whole reward model of any family, with its own tokenizer; given the text",
        ),
        "watch": rewarded.WATCH,
        "prompts": rewarded.PROMPTS,
    },
    extra_inputs=(ArtifactKind.FUNCTION,),
    outputs={
        "adapter": ArtifactKind.ADAPTER,
        "value": ArtifactKind.VALUE_MODEL,
        "rollouts": ArtifactKind.SAMPLES,
    },
    absent_outputs=absent_outputs,
    run=run,
    memory=memory,
    check=check,
    backends=("ddp", "fsdp2"),
    summary="PPO on one frozen base: policy, reference, reward and value are adapters of it",
    metrics=(
        "objective/kl",
        "objective/scores",
        "ppo/iterations",
        "ppo/eos_rate",
        "ppo/response_length",
        "ppo/alarms",
    ),
)
