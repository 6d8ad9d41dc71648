"""A committed checkpoint, opened to be talked to. Shared by chat, samples and compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.errors import DataError
from stages.committed import Committed
from stages.runtime.adapters import load_adapter
from stages.runtime.computing import computing_of
from stages.runtime.generation import sample
from stages.runtime.loading import causal_lm_of, load_base, load_tokenizer
from stages.runtime.switch import AdapterSwitch
from stages.runtime.text.chat import ChatText, Prompt, generation_eos

ADAPTER = "policy"


@dataclass(frozen=True, slots=True)
class Voice:
    """How a model is asked."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    "0 takes the most likely token each time."
    top_p: float = 1.0
    seed: int = 0
    batch_size: int = 16


@dataclass(frozen=True, slots=True)
class Said:
    """One response."""

    text: str
    finished: bool
    "False where the length limit cut it."
    num_tokens: int


class Speaker:
    """One policy in memory, with the text rules it was trained under."""

    def __init__(self, committed: Committed) -> None:
        """Open base, adapter and tokenizer.

        Raises:
            ModelError: a part cannot be read.
            HandOverError: the adapter belongs to another base.
        """
        tokenizer = load_tokenizer(committed.weights, committed.model)
        adapter = committed.adapter
        self._model: Any = load_base(committed.base, committed.model, committed.tuning if adapter else None)
        if adapter is not None:
            self._model = load_adapter(self._model, adapter, name=ADAPTER, trainable=False)
            AdapterSwitch(self._model).use(ADAPTER)
        self.name = committed.name
        self._settings = committed.model
        self.chat = ChatText(tokenizer, generation_eos=generation_eos(causal_lm_of(self._model)))
        self._pad_token_id = int(tokenizer.pad_token_id)
        config = causal_lm_of(self._model).config.get_text_config()
        self._positions: int | None = getattr(config, "max_position_embeddings", None)

    def computing(self) -> dict[str, str]:
        """Return how the model is held and computes, for the record."""
        return computing_of(self._model, self._settings, None)

    def answer(self, prompts: Sequence[Prompt], voice: Voice, *, per_prompt: int = 1) -> list[list[Said]]:
        """Return responses to each prompt, in order.

        Raises:
            DataError: a prompt cannot be written, or leaves no room for an answer.
        """
        ids = [self._prompt_ids(prompt, voice.max_new_tokens) for prompt in prompts]
        rollout = sample(
            self._model,
            [row for row in ids for _ in range(per_prompt)],
            max_new_tokens=voice.max_new_tokens,
            stop_token_ids=self.chat.stop_token_ids,
            temperature=voice.temperature,
            generator=torch.Generator().manual_seed(voice.seed),
            pad_token_id=self._pad_token_id,
            top_p=voice.top_p,
            batch_size=voice.batch_size,
        )
        said = [
            Said(self.chat.decode(tokens), finished, len(tokens))
            for tokens, finished in zip(rollout.responses, rollout.finished, strict=True)
        ]
        return [said[start : start + per_prompt] for start in range(0, len(said), per_prompt)]

    def _prompt_ids(self, prompt: Prompt, max_new_tokens: int) -> list[int]:
        ids = self.chat.prompt_ids(prompt)
        if self._positions is not None and len(ids) + max_new_tokens > self._positions:
            raise DataError(
                f"{len(ids)} tokens of prompt and {max_new_tokens} of answer are more than the model's "
                f"{self._positions} positions",
                hint="a shorter prompt (in a chat: /reset), or fewer --max-new-tokens",
                code="too-long",
            )
        return ids


class Conversation:
    """Turns that a speaker remembers; without a chat template it remembers none."""

    def __init__(self, speaker: Speaker, voice: Voice, *, system: str = "") -> None:
        self._speaker, self._voice = speaker, voice
        self._system: list[Mapping[str, Any]] = [{"role": "system", "content": system}] if system else []
        self._turns: list[Mapping[str, Any]] = []

    def say(self, text: str) -> Said:
        """Return the answer to the next message; a message that cannot be answered is not remembered.

        Raises:
            DataError: the conversation has grown too long, or the template refuses it.
        """
        turns = [*self._turns, {"role": "user", "content": text}]
        prompt: Prompt = [*self._system, *turns] if self._speaker.chat.has_template else text
        ((said,),) = self._speaker.answer([prompt], self._voice)
        if self._speaker.chat.has_template:
            self._turns = [*turns, {"role": "assistant", "content": said.text}]
        return said

    def reset(self) -> None:
        """Forget every turn; the system message stays."""
        self._turns = []
