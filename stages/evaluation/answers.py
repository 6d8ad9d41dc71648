"""What every model said to the same prompts, and how likely the model and the reference found it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.contract import Checkpoint, StageContext
from pipeline.errors import DataError, Interrupted
from stages.data import Demonstration, PromptRow, read_demonstrations, read_prompts
from stages.evaluate import EvaluateConfig
from stages.evaluation.contestants import (
    BASE,
    FEWSHOT,
    Contestant,
    Panel,
    Reader,
    check_reference,
    contestants,
    open_full_model,
    open_panel,
)
from stages.evaluation.harness import Harness, HarnessResult
from stages.evaluation.labelled_texts import LabelledText, read_labelled_texts
from stages.evaluation.likelihood import Likelihoods, answer_loss, likeliest_labels, text_loss
from stages.runtime.text.chat import ChatText, Prompt
from stages.runtime.text.documents import read_documents

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Task:
    """What all models are asked."""

    rows: list[PromptRow]
    prompts: list[list[int]]
    "Token ids of each prompt, in the order of the rows."
    shots: list[Demonstration] = field(default_factory=list)
    held_out: list[Demonstration] = field(default_factory=list)
    trained_on: list[Demonstration] = field(default_factory=list)
    probe: list[str] = field(default_factory=list)
    "General text, on which forgetting shows."
    labelled: list[LabelledText] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    notes: tuple[str, ...] = ()
    computing: Mapping[str, str] = field(default_factory=dict)
    "How the base was held and computed."


@dataclass(frozen=True, slots=True)
class Answers:
    """The responses of one model: samples of a prompt stand together, prompts in order."""

    name: str
    responses: list[list[int]]
    texts: list[str]
    finished: list[bool]
    logps: list[float]
    "Log-probability of each response under the model itself, at the sampling temperature."
    likelihoods: Likelihoods = field(default_factory=Likelihoods)
    ref_logps: list[float] | None = None
    proxy: list[float] | None = None
    harness: HarnessResult | None = None
    "What it scored on the tasks of the lm-evaluation-harness."


def collect(ctx: StageContext) -> tuple[Task, list[Answers]]:
    """Let every model answer, then read all answers with the reward model and the reference.

    Raises:
        DataError: prompts or demonstrations cannot be used.
        ModelError: the reference is not among the models, or a model cannot be opened.
        ConfigError: tasks of the lm-evaluation-harness are asked for, and it is not installed.
        Interrupted: the stage was asked to stop.
    """
    config: EvaluateConfig = ctx.config
    found = contestants(ctx.inputs)
    check_reference(found, config.reference)
    panel = open_panel(ctx.inputs, config)
    harness = open_harness(ctx.inputs, config)
    exam = _Exam(panel, read_task(ctx.inputs, config, panel.chat), config, harness)
    given: list[Answers] = []
    for number, contestant in enumerate(found):
        _stop_if_asked(ctx)
        ctx.logger.progress(number, len(found) + 1, contestant.name)
        given += exam.take(contestant)
    _stop_if_asked(ctx)
    ctx.logger.progress(len(found), len(found) + 1, "scores")
    reference = next(contestant for contestant in found if contestant.name == config.reference)
    given = exam.read_again(given, reference)
    return replace(exam.task, computing=panel.computing()), given


def open_harness(inputs: Mapping[str, Checkpoint], config: EvaluateConfig) -> Harness | None:
    """Find the tasks of the lm-evaluation-harness; None when none are asked for."""
    if config.harness is None:
        return None
    return Harness(config, inputs["harness"].path if "harness" in inputs else None)


def read_task(inputs: Mapping[str, Checkpoint], config: EvaluateConfig, chat: ChatText) -> Task:
    """Read prompts, examples and held-out demonstrations, and encode the prompts.

    Raises:
        DataError: a file cannot be used, or no prompt is short enough.
    """
    rows = read_prompts(inputs["prompts"].path)[: config.max_prompts]
    encoded = [chat.prompt_ids(row.prompt) for row in rows]
    fits = [len(ids) + config.max_new_tokens <= config.max_length for ids in encoded]
    kept = [row for row, fit in zip(rows, fits, strict=True) if fit]
    if not kept:
        raise DataError(
            f"no prompt leaves room for max_new_tokens {config.max_new_tokens} in max_length "
            f"{config.max_length}",
            where=str(inputs["prompts"].path),
            hint="raise max_length",
            code="too-long",
        )
    notes = [f"{len(rows) - len(kept)} prompts were too long and set aside."] if len(kept) < len(rows) else []
    labelled, labels = (
        read_labelled_texts(inputs["classification"].path) if "classification" in inputs else ([], [])
    )
    return Task(
        kept,
        [ids for ids, fit in zip(encoded, fits, strict=True) if fit],
        shots=_demonstrations(inputs, "fewshot", notes),
        held_out=_demonstrations(inputs, "demonstrations", notes),
        trained_on=_demonstrations(inputs, "train", notes),
        probe=_probe(inputs),
        labelled=labelled,
        labels=labels,
        notes=tuple(notes),
    )


def with_examples(prompt: Prompt, shots: Sequence[Demonstration], *, has_template: bool) -> Prompt:
    """Put worked examples before a prompt: as earlier turns, or as plain text without a chat template."""
    if not has_template:
        said = [f"{_plain(shot.prompt)}{shot.response}" for shot in shots]
        return "\n\n".join([*said, _plain(prompt)])
    turns: list[Mapping[str, Any]] = []
    for shot in shots:
        turns += [*_turns(shot.prompt), {"role": "assistant", "content": shot.response}]
    own = _turns(prompt)
    system = [turn for turn in own[:1] if turn["role"] == "system"]
    return [*system, *turns, *own[len(system) :]]


def prompt_text(prompt: Prompt) -> str:
    """Return a prompt as text for people."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)


class _Exam:
    """One task for every model, on one panel."""

    def __init__(self, panel: Panel, task: Task, config: EvaluateConfig, harness: Harness | None) -> None:
        self.task = task
        self._panel, self._config, self._harness = panel, config, harness

    def take(self, contestant: Contestant) -> list[Answers]:
        """Return a model's answers; for the base also those behind worked examples."""
        reader = self._reader(contestant)
        given = [self._answers(reader, contestant.name)]
        if contestant.name == BASE and self.task.shots:
            given.append(self._answers(reader, FEWSHOT, shots=self.task.shots))
        return given

    def read_again(self, given: Sequence[Answers], reference: Contestant) -> list[Answers]:
        """Add the reward model's scores and the reference's log-probabilities to every answer."""
        prompts = self._repeated(self.task.prompts)
        scored = [replace(one, proxy=self._panel.proxy(prompts, one.responses)) for one in given]
        temperature = self._config.temperature
        if temperature == 0:
            return scored
        reader = self._reader(reference)
        return [
            replace(
                one,
                ref_logps=one.logps
                if one.name == reference.name
                else reader.logps(prompts, one.responses, temperature=temperature),
            )
            for one in scored
        ]

    def _answers(self, reader: Reader, name: str, *, shots: Sequence[Demonstration] = ()) -> Answers:
        prompts = self.task.prompts
        if shots:
            template = reader.chat.has_template
            prompts = [
                reader.chat.prompt_ids(with_examples(row.prompt, shots, has_template=template))
                for row in self.task.rows
            ]
        rollout = reader.sample(self._repeated(prompts), seed=self._config.seed)
        return Answers(
            name,
            rollout.responses,
            [reader.chat.decode(response) for response in rollout.responses],
            rollout.finished,
            [sum(logprobs) for logprobs in rollout.logprobs],
            self._likelihoods(reader, shots),
            harness=self._harness.run(reader) if self._harness and not shots else None,
        )

    def _likelihoods(self, reader: Reader, shots: Sequence[Demonstration]) -> Likelihoods:
        """Read the texts of the task; behind worked examples only held-out answers make sense."""
        task = self.task
        if shots:
            has_template = reader.chat.has_template
            prompts = [with_examples(row.prompt, shots, has_template=has_template) for row in task.held_out]
            return Likelihoods(held_out=answer_loss(reader, task.held_out, prompts=prompts))
        return Likelihoods(
            held_out=answer_loss(reader, task.held_out),
            train=answer_loss(reader, task.trained_on),
            probe=text_loss(reader, task.probe, max_length=self._config.max_length),
            predicted=likeliest_labels(reader, task.labelled, task.labels) if task.labelled else [],
        )

    def _reader(self, contestant: Contestant) -> Reader:
        """Return the panel with the contestant's adapter in effect, or its own model opened now."""
        if contestant.is_full_model:
            return open_full_model(contestant, self._config, like=self._panel)
        self._panel.use(contestant.name if contestant.is_adapter else None)
        return self._panel

    def _repeated(self, prompts: Sequence[list[int]]) -> list[list[int]]:
        return [prompt for prompt in prompts for _ in range(self._config.samples_per_prompt)]


def _demonstrations(inputs: Mapping[str, Checkpoint], role: str, notes: list[str]) -> list[Demonstration]:
    if role not in inputs:
        return []
    rows, rejects = read_demonstrations(inputs[role].path)
    if rejects:
        notes.append(f"{len(rejects)} rows of {role} cannot be used, first line {rejects[0].line}.")
    return rows


def _probe(inputs: Mapping[str, Checkpoint]) -> list[str]:
    """Return the general texts; rows that hold a conversation are left to other inputs."""
    if "probe" not in inputs:
        return []
    return [text for text in read_documents(inputs["probe"].path) if isinstance(text, str)]


def _stop_if_asked(ctx: StageContext) -> None:
    if ctx.stop.requested:
        raise Interrupted("stopped before the evaluation was finished", hint="run the same command again")


def _turns(prompt: Prompt) -> list[Mapping[str, Any]]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def _plain(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
