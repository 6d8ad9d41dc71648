"""The one way from messages to token ids and back, shared by every stage. Imports no torch.

A prompt string is one user turn when the tokenizer has a chat template, and plain text when it has none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.errors import DataError, ModelError
from stages.runtime.text.contract import TextContract, check_same_text
from stages.runtime.text.encoding import TextEncoder
from stages.runtime.text.templates import Message, render, resolve_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["ChatText", "Prompt", "TextContract", "check_same_text", "generation_eos", "resolve_template"]

Prompt = str | Sequence[Message]

_ROLE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")
_QUESTION, _ANSWER = "Sentinelquestion", "Sentinelanswer"


class ChatText:
    """Makes prompt and response ids exactly as generation sees them.

    Args:
        tokenizer: with or without a chat template.
        generation_eos: further ids that end a response, as the model's generation config lists them.

    Raises:
        ModelError: the template fails on a plain question and answer, or no stop token can be found.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, generation_eos: Sequence[int] = ()) -> None:
        self.tokenizer = tokenizer
        self.has_template = bool(tokenizer.chat_template)
        self.notes: tuple[str, ...] = ()
        "Plain sentences on what the template does not do and what is done in its place."
        self._encoder = TextEncoder(tokenizer)
        self._between = ""
        "What the template writes between an answer and its stop token."
        eos = tokenizer.eos_token_id
        candidates = {*generation_eos} | (set() if eos is None else {eos})
        self.end_of_turn_id: int = self._probe(candidates) if self.has_template else self._only_eos()
        "The token that ends a trained response."
        self.stop_token_ids: tuple[int, ...] = tuple(sorted(candidates | {self.end_of_turn_id}))
        "Every id that ends a response: eos, the generation config's, the template's end of turn."
        self._encoder.reserve(self.stop_token_ids)
        self._stop_texts = [_squeezed(t) for t in tokenizer.convert_ids_to_tokens(list(self.stop_token_ids))]

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Return the ids of a prompt, generation prompt included, tokenised once.

        Raises:
            DataError: the prompt is empty, ends in an answer, or the template cannot write it.
        """
        found: list[str] = []
        text = self._prompt_text(prompt, found)
        if self.has_template:
            return self._encoder.encode(text, found)
        return self._plain_start() + self._encoder.encode(text, found)

    def response_ids(self, prompt: Prompt, response: str) -> list[int]:
        """Return the ids of an answer as they follow the prompt, ending in exactly one stop token.

        The text is what the template writes after the generation prompt. A template that writes the
        conversation differently once it is answered gets the answer's own text and its end of turn.

        Raises:
            DataError: the answer cannot be written, or holds a stop token before its end.
        """
        found: list[str] = []
        before = self._prompt_text(prompt, found)
        answer = self._encoder.mark(response, found, answer=True)
        tail = self._answer_text(prompt, before, response, answer) if self.has_template else None
        ids = self._encoder.encode_after(before, answer if tail is None else tail, found)
        if tail is None and self._between:
            ids += self._encoder.encode(self._between)
        return self._ended(ids)

    def decode(self, response_ids: Sequence[int]) -> str:
        """Return the text of a response up to its first stop token, control tokens left out."""
        stop = frozenset(self.stop_token_ids)
        end = next((i for i, index in enumerate(response_ids) if index in stop), len(response_ids))
        return str(
            self.tokenizer.decode(
                list(response_ids[:end]), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    def _prompt_text(self, prompt: Prompt, found: list[str]) -> str:
        if not self.has_template:
            return self._encoder.mark(_plain_prompt(prompt), found)
        return render(self.tokenizer, self._marked(_messages(prompt), found), add_generation_prompt=True)

    def _marked(self, messages: Sequence[Message], found: list[str]) -> list[Message]:
        return [
            {
                key: text
                if key == "role"
                else self._encoder.mark(text, found, answer=m["role"] == "assistant")
                for key, text in m.items()
            }
            for m in messages
        ]

    def _answer_text(self, prompt: Prompt, before: str, response: str, answer: str) -> str | None:
        """Return what the template writes after the generation prompt.

        None when it rewrote the generation prompt or left out a part of the answer, such as its thoughts.
        """
        turns = [*_messages(prompt), {"role": "assistant", "content": response}]
        full = render(self.tokenizer, self._marked(turns, []), add_generation_prompt=False)
        tail = full[len(before) :]
        start = _squeezed(tail).find(_squeezed(answer))
        if start < 0 or not full.startswith(before):
            return None
        written = _squeezed(tail)[: start + len(_squeezed(answer))]
        for text in self._stop_texts:
            if text in written:
                raise DataError(
                    f"the chat template writes the stop token {text} before the end of the answer",
                    hint="set model.chat_template to a template that fits this model",
                    code="template-failed",
                )
        return tail

    def _ended(self, ids: list[int]) -> list[int]:
        stop = frozenset(self.stop_token_ids)
        end = next((i for i, index in enumerate(ids) if index in stop), len(ids))
        return [*ids[:end], self.end_of_turn_id]

    def _probe(self, candidates: set[int]) -> int:
        """Find the token that the template writes after an answer, or fall back on eos."""
        try:
            before = render(self.tokenizer, _messages(_QUESTION), add_generation_prompt=True)
            turns = [*_messages(_QUESTION), {"role": "assistant", "content": _ANSWER}]
            full = render(self.tokenizer, turns, add_generation_prompt=False)
        except DataError as error:
            raise ModelError(
                f"the chat template fails on one question and its answer: {error.findings[0].message}",
                hint="set model.chat_template to a template that fits this model",
                code="template-failed",
            ) from error
        if _QUESTION not in before or _ANSWER not in full:
            raise ModelError(
                "the chat template leaves out the text of a plain question or its answer",
                hint="set model.chat_template to a template that fits this model",
                code="template-failed",
            )
        if not full.startswith(before):
            self.notes += (
                "the chat template writes an answered conversation differently from its generation prompt; "
                "answers are trained as their own text after the generation prompt, then the end of turn",
            )
        return self._first_stop(full.rsplit(_ANSWER, 1)[1], candidates)

    def _first_stop(self, after: str, candidates: set[int]) -> int:
        ids = self._encoder.encode(after)
        known = candidates | self._encoder.control_ids
        position = next((i for i, index in enumerate(ids) if index in known), None)
        if position is None:
            position = next((i for i, index in enumerate(ids) if index in self._encoder.added_ids), None)
        if position is not None:
            text = self.tokenizer.convert_ids_to_tokens(ids[position])
            self._between = after.split(text, 1)[0] if text in after else ""
            return ids[position]
        self.notes += ("the chat template writes no end of turn; answers end in the tokenizer's eos token",)
        return self._only_eos()

    def _only_eos(self) -> int:
        if self.tokenizer.eos_token_id is None:
            raise ModelError(
                "no stop token: the chat template writes none and the tokenizer has no eos token",
                hint="set model.chat_template to a template that ends its turns",
                code="no-stop-token",
            )
        return int(self.tokenizer.eos_token_id)

    def _plain_start(self) -> list[int]:
        """Return the bos token that this tokenizer puts before plain text, if any."""
        bos = self.tokenizer.bos_token_id
        return [bos] if bos is not None and self.tokenizer("a")["input_ids"][:1] == [bos] else []


def generation_eos(model: Any) -> tuple[int, ...]:
    """Return the ids that end a response by a model's generation config and config, sorted."""
    ids: set[int] = set()
    for config in (getattr(model, "generation_config", None), getattr(model, "config", None)):
        eos = getattr(config, "eos_token_id", None)
        ids |= {eos} if isinstance(eos, int) else set(eos or ())
    return tuple(sorted(ids))


def _messages(prompt: Prompt) -> list[Message]:
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if not prompt:
        raise DataError("a prompt needs at least one message", code="empty-prompt")
    for message in prompt:
        _check_message(message)
    if prompt[-1]["role"] == "assistant":
        raise DataError(
            "the prompt ends with an assistant turn; the answer is not part of the prompt", code="bad-message"
        )
    return list(prompt)


def _check_message(message: Message) -> None:
    if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
        raise DataError(
            f"a message must hold a role and a content, not {str(message)[:80]!r}", code="bad-message"
        )
    for key, value in message.items():
        if not isinstance(value, str):
            raise DataError(f"{key} of a message must be text, not {str(value)[:80]!r}", code="bad-message")
    if not _ROLE.fullmatch(message["role"]):
        raise DataError(
            f"{message['role'][:80]!r} is not a role", hint="system, user or assistant", code="bad-message"
        )


def _plain_prompt(prompt: Prompt) -> str:
    if isinstance(prompt, str):
        return prompt
    turns = _messages(prompt)
    if len(turns) > 1:
        raise DataError(
            "the tokenizer has no chat template, so a conversation of several turns cannot be written",
            hint="set model.chat_template, for example: qwen2_5",
            code="no-template",
        )
    return str(turns[0]["content"])


def _squeezed(text: str) -> str:
    return "".join(text.split())
