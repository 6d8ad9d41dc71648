"""The run file as types: what a YAML may hold at its top level."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from pipeline.config.accelerate import AccelerateConfig
from pipeline.config.strict import BY_CONTENT, NOT_IN_KEY, StrictModel

RUN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"What may be a run's name: safe as the name of a folder everywhere."


class ModelConfig(StrictModel):
    """The base model that every stage shares. A stage may override single keys."""

    base: str | None = Field(None, json_schema_extra=NOT_IN_KEY)
    "Hub id or local folder of a causal language model; leave out when a pretrain stage makes it."
    revision: str | None = Field(None, json_schema_extra=NOT_IN_KEY)
    "Hub branch, tag or commit; pinned to a commit in the record."
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    "Precision of the frozen base. auto: bfloat16 on a GPU, float32 on a CPU."
    attn_implementation: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    "Attention kernel. auto: sdpa."
    chat_template: str | None = Field(None, json_schema_extra=BY_CONTENT)
    "A Jinja file, or the name of a template that TRL ships; None keeps the tokenizer's own."
    trust_remote_code: bool = False
    "Run Python code that the model repository carries. Off unless you read that code."


class TuningConfig(StrictModel):
    """What is trained. One block for all stages; a stage may override single keys."""

    method: Literal["lora", "qlora", "8bit", "full"] = "lora"
    "lora trains low-rank adapters; qlora holds the base in 4 bits (nf4), 8bit in 8; full trains all weights."

    @field_validator("method", mode="before")
    @classmethod
    def _can_be_handed_on(cls, method: object) -> object:
        if isinstance(method, str) and method.lower() in _OTHER_METHODS:
            raise ValueError(f"method {method!r}: {_OTHER_METHODS[method.lower()]}")
        return method

    use_dora: bool = False
    "DoRA: also train the length of each output's weights. Learns a little more, keeps more activations."
    use_rslora: bool = False
    "Scale by lora_alpha / sqrt(lora_r) in place of lora_alpha / lora_r, for large ranks."
    lora_init: Literal["uniform", "orthogonal", "principal"] = "uniform"
    "Start of lora_A; lora_B starts at 0. principal: the main directions of each weight, as in PiSSA."
    lora_r: int = Field(16, ge=1)
    "Rank of the adapters. Larger learns more and costs more memory."
    lora_alpha: float = Field(32, gt=0)
    "Scale of the adapters: the update is multiplied by lora_alpha / lora_r."
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    "Dropout on the adapters' input, in SFT only: ratios and references need it off elsewhere."
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    "Linear layers that get an adapter, by name suffix."
    frozen_layers: int = Field(0, ge=0)
    "The first so many layers keep what they have: neither they nor their adapters are trained."
    frozen_modules: tuple[str, ...] = ()
    "Patterns of module paths that keep what they have, such as '*.mlp.*'."
    gradient_checkpointing: bool = Field(False, json_schema_extra=NOT_IN_KEY)
    "Recompute activations in the backward pass: less memory, about a third more time."
    activation_offloading: bool = Field(False, json_schema_extra=NOT_IN_KEY)
    "What the backward pass needs waits in the host's memory: less on the card, more time for the copies."
    optimizer: Literal["adamw", "paged_adamw", "adamw_8bit", "paged_adamw_8bit"] = "adamw"
    "paged: its state may move to the host's memory; 8bit: a quarter of the state, a little less exact."


_MOVES_BASE = "it moves the base's weights, so its adapter fits no other copy; lora_init: principal"
_NO_LORA = "only LoRA forms can be stacked on one base and widened exactly; method: lora"
_OTHER_METHODS = {
    "dora": "write method: lora and use_dora: true",
    "qdora": "write method: qlora and use_dora: true",
    "rslora": "write method: lora and use_rslora: true",
    **dict.fromkeys(("pissa", "olora", "loftq", "corda"), _MOVES_BASE),
    **dict.fromkeys(
        ("ia3", "adalora", "loha", "lokr", "oft", "boft", "vera", "prefix", "prompt", "p_tuning"), _NO_LORA
    ),
    "freeze": "write method: full with frozen_layers or frozen_modules",
}
"What peft and other tools call a tuning -> what to write here, or why there is none."


class TrackingConfig(StrictModel):
    """Dashboards that read metrics.jsonl. None of them can stop or slow a run."""

    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    "auto: online when WANDB_API_KEY is set, else offline."
    project: str = "triptych"
    "Project name in W&B and experiment name in MLflow."
    entity: str | None = None
    "W&B team or user; None is the account's default."
    tensorboard: bool = False
    "Also write TensorBoard event files beside the run's manifest."
    trackio: bool = False
    "Also write a local Trackio database beside the run's manifest."
    mlflow: str | None = None
    "MLflow tracking address; None is off."


class StageEntry(StrictModel):
    """One stage of a run, before its own settings are checked by its card."""

    kind: str
    "Stage kind: prepare, pretrain, sft, reward, reward_encoder, dpo, kto, grpo, rloo, ppo, evaluate."
    inputs: dict[str, str] = Field(default_factory=dict)
    "Role -> stage name (or stage.output), or a path relative to the run file."
    gate: dict[str, float] = Field(default_factory=dict)
    "min_NAME / max_NAME -> bound on a final metric; children do not start when it is missed."
    accelerate: AccelerateConfig = AccelerateConfig()
    "Several processes for this stage; keys that are left out are the run's. Not in the stage's key."
    settings: dict[str, Any] = Field(default_factory=dict)
    "Everything else the stage's block holds; typed by the card's config_type."


class RunConfig(StrictModel):
    """A whole run: one YAML file."""

    name: str = Field(pattern=RUN_NAME)
    "Name of the run: its folder in the store and its group in W&B."
    seed: int = Field(42, ge=0, le=2**32 - 1)
    "Seed of every stage that does not set its own."
    store: str = Field("store", json_schema_extra=NOT_IN_KEY)
    "Folder of committed stages, shared by all runs that name it; relative to the working directory."
    model: ModelConfig = ModelConfig()
    "The base model of every stage that does not say otherwise."
    tuning: TuningConfig = TuningConfig()
    "What is trained, in every stage that does not say otherwise."
    accelerate: AccelerateConfig = Field(AccelerateConfig(), json_schema_extra=NOT_IN_KEY)
    "Several processes for every stage that can use them; a stage's own block says otherwise."
    stages: dict[str, StageEntry] = Field(min_length=1)
    "The stages by name, in any order; inputs decide which runs first."
    tracking: TrackingConfig = TrackingConfig()
    "Dashboards that follow the run."
    price_per_hour: float | None = Field(None, ge=0, json_schema_extra=NOT_IN_KEY)
    "Price of the machine an hour, in `currency`: the report and the summary show what each stage cost."
    currency: str = Field("USD", pattern=r"^[A-Z]{3}$", json_schema_extra=NOT_IN_KEY)
    "What prices of this run are in, as three capital letters (ISO 4217): only shown, nothing is converted."
