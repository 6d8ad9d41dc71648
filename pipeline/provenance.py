"""States how a stage's files came to be, in the words of in-toto and SLSA. Unsigned."""

from __future__ import annotations

from typing import Any

from pipeline.record import InputRecord, StageRecord

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "https://triptych.invalid/stage/v1"
BUILDER_ID = "https://triptych.invalid/local"
"Names only. A statement made by the machine that trained is SLSA Build level 1 at best."


def statement(record: StageRecord) -> dict[str, Any]:
    """Return an in-toto statement about every published file of a stage."""
    outputs = [file for output in record.outputs.values() for file in output.files]
    versions = record.environment.packages
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": file.path, "digest": {"sha256": file.sha256}} for file in outputs],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"stage": record.stage, "recipe": record.recipe},
                "internalParameters": {
                    "settings": record.settings,
                    "environment": record.environment.model_dump(mode="json"),
                },
                "resolvedDependencies": [
                    _dependency(role, given) for role, given in sorted(record.inputs.items())
                ],
            },
            "runDetails": {
                "builder": {"id": BUILDER_ID, "version": {"triptych": versions.get("triptych-rlhf", "")}},
                "metadata": {
                    "invocationId": f"{record.key}/{len(record.attempts)}",
                    "startedOn": record.started,
                    "finishedOn": record.ended,
                },
                "byproducts": [
                    {"name": file.path, "digest": {"sha256": file.sha256}} for file in record.files
                ],
            },
        },
    }


def _dependency(role: str, given: InputRecord) -> dict[str, Any]:
    annotations: dict[str, Any] = {"role": role, "kind": given.kind}
    if given.producer_key is not None:
        annotations |= {"stage": given.producer, "key": given.producer_key}
    # The digest of a folder is that of its listing; of a Hub model, of its id and commit.
    return {"name": given.source, "digest": {"sha256": given.fingerprint}, "annotations": annotations}
