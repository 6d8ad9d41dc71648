"""Responses of training, kept for people: one line a response while it goes on, one a prompt at the end."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.ops.kl import k1
from stages.runtime.text.chat import ChatText
from stages.trainers.ppo.rollout import EncodedPrompt, Readings, Rollouts
from stages.trainers.ppo.scores import Scores

RESPONSES = "responses.jsonl"
SAMPLES = "samples.jsonl"


class RolloutFile:
    """Appends what the kept prompts were answered, and gives it as samples at the end.

    Args:
        folder: lasting; holds the responses of the iterations so far.
        prompts: whose responses are kept.
        finished: iterations that are in the checkpoint; what the file holds of later ones is
            dropped, for these iterations run again.
    """

    def __init__(self, folder: Path, prompts: Sequence[EncodedPrompt], *, finished: int) -> None:
        self._path = folder / RESPONSES
        self._kept = {id(prompt): number for number, prompt in enumerate(prompts)}
        self._keep_before(finished)

    def append(
        self, iteration: int, rollouts: Rollouts, readings: Readings, *, scores: Scores, chat: ChatText
    ) -> None:
        """Add the kept prompts' responses of an iteration, from before its update."""
        rows = [row for row, prompt in enumerate(rollouts.prompts) if id(prompt) in self._kept]
        if not rows:
            return
        kl = k1(readings.logprobs, readings.ref_logprobs).masked_fill(~rollouts.mask, 0.0).sum(1)
        numbers = {"score": scores.mixed, "reward": scores.shaped, "kl": kl}
        numbers |= {f"score_{role}": said for role, said in scores.parts.items()}
        if readings.model_scores is not None:
            numbers["score_model"] = readings.model_scores
        if scores.watched is not None:
            numbers["watched"] = scores.watched
        with self._path.open("a", encoding="utf-8") as file:
            for row in rows:
                prompt, tokens = rollouts.prompts[row], rollouts.episodes[row].response
                line = {
                    "iteration": iteration + 1,
                    "number": self._kept[id(prompt)],
                    "id": prompt.row.id,
                    "prompt": prompt.row.prompt,
                    "text": chat.decode(tokens),
                    "tokens": len(tokens),
                    "finished": bool(rollouts.finished[row]),
                    "scores": {name: float(values[row]) for name, values in numbers.items()},
                }
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def write_samples(self, folder: Path) -> Path:
        """Write samples.jsonl: a prompt a line, with its responses by iteration."""
        folder.mkdir(parents=True, exist_ok=True)
        prompts: dict[int, dict[str, Any]] = {}
        for line in self._lines():
            sample = prompts.setdefault(
                line["number"], {"id": line["id"], "prompt": line["prompt"], "by": {}}
            )
            name = f"iteration {line['iteration']}"
            again = sum(known == name or known.startswith(f"{name} (") for known in sample["by"])
            kept = {key: line[key] for key in ("text", "scores", "tokens", "finished")}
            sample["by"][f"{name} ({again + 1})" if again else name] = kept
        with (folder / SAMPLES).open("w", encoding="utf-8") as file:
            for number in sorted(prompts):
                file.write(json.dumps(prompts[number], ensure_ascii=False) + "\n")
        return folder

    def _keep_before(self, finished: int) -> None:
        kept = [line for line in self._lines() if line["iteration"] <= finished]
        replacement = self._path.with_suffix(".new")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        replacement.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))
        replacement.replace(self._path)

    def _lines(self) -> Iterator[Mapping[str, Any]]:
        """Yield the lines so far; a last one that a crash cut off is left out."""
        if not self._path.exists():
            return
        with self._path.open(encoding="utf-8") as file:
            for line in file:
                if line.endswith("\n"):
                    yield json.loads(line)
