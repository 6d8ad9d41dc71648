"""Argilla: records, and the settings of their dataset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reward.preferences.exchange.tasks import Task

QUESTION = "preference"


def record_rows(tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """Return records in the nested form that `rg.Dataset.records.from_json` reads."""
    return [
        {
            "id": task.task_id,
            "fields": {
                "prompt": task.prompt,
                **{f"response_{number}": text for number, text in enumerate(task.texts, start=1)},
            },
            "metadata": {"cmp_id": task.cmp_id, "task_id": task.task_id},
            "suggestions": {},
            "responses": {},
            "vectors": {},
            "status": "pending",
        }
        for task in tasks
    ]


def settings(tasks: Sequence[Task], per_item: int) -> dict[str, Any]:
    """Return the dataset settings: a choice for pairs, a ranking for more answers."""
    num_texts = max((len(task.texts) for task in tasks), default=2)
    names = [f"response_{number}" for number in range(1, num_texts + 1)]
    return {
        "guidelines": "Choose the better answer. Say tie, both bad or skip when neither is better.",
        "allow_extra_metadata": True,
        "distribution": {"strategy": "overlap", "min_submitted": per_item},
        "fields": [
            {"name": name, "title": name.replace("_", " "), "required": True, "settings": {"type": "text"}}
            for name in ("prompt", *names)
        ],
        "questions": [_question(names), _margin(), _reason()],
    }


def _question(names: Sequence[str]) -> dict[str, Any]:
    if len(names) > 2:
        options = [{"value": name, "text": name.replace("_", " ")} for name in names]
        kind: dict[str, Any] = {"type": "ranking", "options": options}
    else:
        choices = [*names, "tie", "both_bad", "skip"]
        options = [{"value": name, "text": name.replace("_", " ")} for name in choices]
        kind = {"type": "label_selection", "options": options, "visible_options": len(choices)}
    return {"name": QUESTION, "title": "Which answer is better?", "required": True, "settings": kind}


def _margin() -> dict[str, Any]:
    options = [{"value": number} for number in range(1, 4)]
    return {
        "name": "margin",
        "title": "By how much? 1 a little, 3 a lot",
        "required": False,
        "settings": {"type": "rating", "options": options},
    }


def _reason() -> dict[str, Any]:
    return {"name": "reason", "title": "Why?", "required": False, "settings": {"type": "text"}}
