"""Stages that give a random adapter on a base, or a whole random model, in a second and without training."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from pipeline.config.run import ModelConfig, TuningConfig
from pipeline.config.strict import StrictModel
from pipeline.contract import ArtifactKind, InputSlot, StageContext, StageResult, StageSpec
from stages.runtime.adapters import new_adapter, save_adapter
from stages.runtime.loading import load_base, load_tokenizer


class PolicyConfig(StrictModel):
    """Settings of a policy that nobody trained."""

    seed: int = 1
    "Another seed gives another adapter."
    model: ModelConfig = ModelConfig()
    "The base."
    tuning: TuningConfig = TuningConfig()
    "Its method and rank."
    note: str = ""
    "Enters the key and nothing else: equal weights under two keys."


def run(ctx: StageContext) -> StageResult:
    """Write an adapter whose lora_B is random, so that it changes the model."""
    base, config = ctx.inputs["base"], ctx.config
    tokenizer = load_tokenizer(base, config.model)
    model = new_adapter(load_base(base, config.model), config.tuning, seed=config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "lora_B" in name:
                parameter.normal_(std=0.3, generator=generator)
    folder = ctx.output_dir / "policy"
    return StageResult({"policy": save_adapter(model, folder, name="policy", base=base, tokenizer=tokenizer)})


def run_whole(ctx: StageContext) -> StageResult:
    """Copy the base: a full model that a stage gave."""
    folder = ctx.output_dir / "model"
    folder.mkdir()
    for file in Path(ctx.inputs["base"].path).iterdir():
        shutil.copyfile(file, folder / file.name)
    return StageResult({"model": folder})


SPEC = StageSpec(
    kind="tests.fakes.policy",
    version=1,
    config_type=PolicyConfig,
    inputs={"base": InputSlot((ArtifactKind.FULL_MODEL,))},
    outputs={"policy": ArtifactKind.ADAPTER},
    run=run,
    summary="makes a random adapter",
)
