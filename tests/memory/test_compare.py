"""The table of docs/memory.md: the plan within a tenth of live tensors, nearer than the usual estimate."""

from __future__ import annotations

import pytest

from pipeline.config.run import TuningConfig
from pipeline.memory.families import shape_of
from tests.benchmarks.compare_estimators import CONFIG, estimates
from tests.gpu.steps import STAGES


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", ["lora", "qlora"])
@pytest.mark.parametrize("stage", STAGES)
def test_the_whole_peak_is_within_a_tenth_of_the_plan(stage, method, checkpointing):
    tuning = TuningConfig(method=method, lora_r=16, gradient_checkpointing=checkpointing)

    measured, plan, accelerate, *_ = estimates(stage, tuning, shape_of(CONFIG))

    assert plan == pytest.approx(measured, rel=0.1)
    assert abs(plan - measured) < abs(accelerate - measured)
