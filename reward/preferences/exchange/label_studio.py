"""Label Studio: tasks as JSON and a label config with tie, both-bad and skip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reward.preferences.exchange.tasks import Task

PAIR_CONFIG = """\
<View>
  <Header value="Which answer is better?"/>
  <Text name="prompt" value="$prompt"/>
  <Pairwise name="comparison" toName="answer1,answer2" leftClass="left" rightClass="right"/>
  <View style="display: grid; grid-template-columns: 1fr 1fr; gap: 1em">
    <Text name="answer1" value="$answer1"/>
    <Text name="answer2" value="$answer2"/>
  </View>
  <Header size="5" value="If neither is better, leave the comparison empty and say why"/>
  <Choices name="tie" toName="prompt" choice="single" showInline="true">
    <Choice value="tie" hint="both are equally good"/>
    <Choice value="both_bad" hint="both are bad"/>
    <Choice value="skip" hint="I cannot judge this"/>
  </Choices>
  <Header size="5" value="How sure are you?"/>
  <Rating name="confidence" toName="prompt" maxRating="5"/>
  <Header size="5" value="Why?"/>
  <TextArea name="why" toName="prompt" rows="2" maxSubmissions="1"/>
</View>
"""
RANK_CONFIG = """\
<View>
  <Header value="Put the answers in order, the best first"/>
  <Text name="prompt" value="$prompt"/>
  <List name="answers" value="$items" title="Answers"/>
  <Ranker name="rank" toName="answers"/>
  <Choices name="tie" toName="prompt" choice="single" showInline="true">
    <Choice value="tie" hint="all are equally good"/>
    <Choice value="both_bad" hint="all are bad"/>
    <Choice value="skip" hint="I cannot judge this"/>
  </Choices>
  <Rating name="confidence" toName="prompt" maxRating="5"/>
  <TextArea name="why" toName="prompt" rows="2" maxSubmissions="1"/>
</View>
"""


def label_config(tasks: Sequence[Task]) -> str:
    """Return the label config for pairs, or for rankings when a task has more than two answers."""
    return RANK_CONFIG if any(len(task.texts) > 2 for task in tasks) else PAIR_CONFIG


def task_rows(tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """Return tasks to import; they name neither sources nor the right answer."""
    ranked = any(len(task.texts) > 2 for task in tasks)
    return [{"data": _ranked(task) if ranked else _pair(task)} for task in tasks]


def _pair(task: Task) -> dict[str, Any]:
    first, second = task.texts
    return {
        "prompt": task.prompt,
        "answer1": first,
        "answer2": second,
        "cmp_id": task.cmp_id,
        "task_id": task.task_id,
    }


def _ranked(task: Task) -> dict[str, Any]:
    items = [
        {"id": f"m{number}", "title": f"Answer {number}", "body": text}
        for number, text in enumerate(task.texts, start=1)
    ]
    return {"prompt": task.prompt, "items": items, "cmp_id": task.cmp_id, "task_id": task.task_id}
