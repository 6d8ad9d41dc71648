"""A stage that gives a full model: a copy of its base."""

from __future__ import annotations

from dataclasses import replace

from pipeline.contract import ArtifactKind
from tests.fakes import policy

SPEC = replace(
    policy.SPEC,
    kind="tests.fakes.whole_policy",
    outputs={"model": ArtifactKind.FULL_MODEL},
    run=policy.run_whole,
)
