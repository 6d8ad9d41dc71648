"""Sampling from a causal model on one device, with one log-prob a token.

The batch is left-padded and shrinks as rows finish; no tensor holds a vocabulary a step.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from stages.runtime.modes import evaluating

LOGGER = logging.getLogger(__name__)

COMPACT_AT = 0.75
"Drop finished rows from the batch when the live share falls to this: copying the cache costs a step or so."


@dataclass(frozen=True, slots=True)
class Rollout:
    """What was sampled, in the order of the prompts."""

    responses: list[list[int]]
    "Token ids after each prompt; a finished one ends in exactly one stop token."
    logprobs: list[list[float]]
    "Log-probability of each token at the sampling temperature (at 1 when greedy)."
    finished: list[bool]
    "True where a stop token ended the response, False where the length limit cut it."


def sample(
    model: nn.Module,
    prompt_ids: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_token_ids: Sequence[int],
    temperature: float,
    generator: torch.Generator | None,
    pad_token_id: int,
    top_p: float = 1.0,
    batch_size: int = 64,
    only: Sequence[int] | None = None,
) -> Rollout:
    """Sample one response for each prompt with the adapter that is active now.

    Every row draws from its own row of uniform numbers, taken from `generator` at the
    start: what one row gets does not depend on which other rows are still live.

    Args:
        model: a causal language model, plain or wrapped by peft.
        prompt_ids: token ids of each prompt, without padding, at least one token each.
        max_new_tokens: longest response in tokens, the stop token included.
        stop_token_ids: tokens that end a response; may be empty.
        temperature: divides the logits; 0 takes the most likely token.
        generator: source of randomness; only a greedy call may leave it out.
        pad_token_id: any valid id; padding is masked by position, never by this value.
        top_p: smallest share of probability to draw from; log-probs stay those of the whole softmax.
        batch_size: most rows decoded at once.
        only: rows to sample, with the random numbers they have among all; the others stay empty.

    Raises:
        ValueError: an empty prompt, no generator for a sampled call, or a number out of range.
    """
    _check(prompt_ids, max_new_tokens, temperature, generator, top_p)
    rows = len(prompt_ids)
    pick = _picker(temperature, top_p, _uniforms(generator, rows, max_new_tokens, temperature))
    responses: list[list[int]] = [[] for _ in range(rows)]
    logprobs: list[list[float]] = [[] for _ in range(rows)]
    stops = frozenset(stop_token_ids)
    traits = _Traits.of(model)
    with torch.no_grad(), evaluating(model):
        for batch in _batches(prompt_ids, batch_size, padded=traits.pads, only=only):
            decoder = traits.decoder(model, [list(prompt_ids[row]) for row in batch], pad_token_id)
            _decode(
                decoder,
                batch,
                pick,
                stops=stops,
                max_new_tokens=max_new_tokens,
                pad_token_id=pad_token_id,
                responses=responses,
                logprobs=logprobs,
            )
    finished = [bool(response) and response[-1] in stops for response in responses]
    return Rollout(responses, logprobs, finished)


class _Decoder(Protocol):
    """A batch of sequences that grows by one token a step."""

    def start(self) -> Tensor:
        """Return the logits after the prompts, (rows, vocabulary)."""

    def advance(self, tokens: Tensor) -> Tensor:
        """Append one token a row and return the next logits."""

    def keep(self, rows: Tensor) -> None:
        """Drop every row that is not named."""

    @property
    def compacts(self) -> bool:
        """True when rows can be dropped."""


Pick = Callable[[Tensor, Sequence[int], int], tuple[Tensor, Tensor]]


def _decode(
    decoder: _Decoder,
    batch: Sequence[int],
    pick: Pick,
    *,
    stops: frozenset[int],
    max_new_tokens: int,
    pad_token_id: int,
    responses: list[list[int]],
    logprobs: list[list[float]],
) -> None:
    """Decode one batch to its end, appending to the lists of the caller's rows."""
    slots = list(batch)
    "The caller's row in each row of the batch."
    live = set(slots)
    logits = decoder.start()
    for step in range(max_new_tokens):
        tokens, token_logprobs = pick(logits, slots, step)
        for row, token, logprob in zip(slots, tokens.tolist(), token_logprobs.tolist(), strict=True):
            if row not in live:
                continue
            responses[row].append(token)
            logprobs[row].append(logprob)
            if token in stops:
                live.discard(row)
        if not live or step + 1 == max_new_tokens:
            return
        if len(live) < len(slots):
            on_device = torch.tensor([row in live for row in slots], device=tokens.device)
            tokens = torch.where(on_device, tokens, pad_token_id)
            if decoder.compacts and len(live) <= COMPACT_AT * len(slots):
                kept = on_device.nonzero().squeeze(1)
                decoder.keep(kept)
                tokens = tokens[kept]
                slots = [row for row in slots if row in live]
        logits = decoder.advance(tokens)


class _CachedRows:
    """Decodes with the model's key-value cache: one new column a step."""

    def __init__(
        self, model: nn.Module, prompts: list[list[int]], traits: _Traits, *, pad_token_id: int
    ) -> None:
        device = next(model.parameters()).device
        width = max(map(len, prompts))
        padded = [[pad_token_id] * (width - len(prompt)) + prompt for prompt in prompts]
        self._model = model
        self._traits = traits
        self._tokens = torch.tensor(padded, device=device)
        self._mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        self._cache = DynamicCache(config=_plain(model).config)
        self.compacts = traits.compacts

    def start(self) -> Tensor:
        positions = (self._mask.cumsum(1) - 1).clamp_min(0)
        return self._forward(self._tokens, positions)

    def advance(self, tokens: Tensor) -> Tensor:
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        return self._forward(tokens[:, None], self._mask.sum(1, keepdim=True) - 1)

    def keep(self, rows: Tensor) -> None:
        self._cache.batch_select_indices(rows)
        self._mask = self._mask[rows]

    def _forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        options = self._traits.options(positions)
        output = self._model(
            input_ids=tokens,
            attention_mask=self._mask,
            past_key_values=self._cache,
            use_cache=True,
            **options,
        )
        return output.logits[:, -1]


class _RecomputedRows:
    """Runs the whole sequence again for each token: for models whose state we do not know."""

    compacts = True

    def __init__(self, model: nn.Module, prompts: list[list[int]], traits: _Traits) -> None:
        self._model = model
        self._traits = traits
        self._tokens = torch.tensor(prompts, device=next(model.parameters()).device)

    def start(self) -> Tensor:
        positions = torch.arange(self._tokens.shape[1], device=self._tokens.device).expand_as(self._tokens)
        output = self._model(input_ids=self._tokens, use_cache=False, **self._traits.options(positions))
        return output.logits[:, -1]

    def advance(self, tokens: Tensor) -> Tensor:
        self._tokens = torch.cat([self._tokens, tokens[:, None]], dim=1)
        return self.start()

    def keep(self, rows: Tensor) -> None:
        self._tokens = self._tokens[rows]


@dataclass(frozen=True, slots=True)
class _Traits:
    """What a model's forward and cache allow."""

    takes_cache: bool
    compacts: bool
    pads: bool
    takes_positions: bool
    takes_logits_to_keep: bool

    @classmethod
    def of(cls, model: nn.Module) -> _Traits:
        plain = _plain(model)
        names = inspect.signature(plain.forward).parameters
        takes_cache = "past_key_values" in names and "attention_mask" in names
        compacts = pads = False
        if takes_cache:
            layers = DynamicCache(config=plain.config).layers
            compacts = all(hasattr(layer, "batch_select_indices") for layer in layers)
            # A recurrent state would run over the pads, so such models get rows of one length only.
            pads = compacts and not getattr(plain, "_is_stateful", False)
        if not pads:
            LOGGER.warning(
                "%s keeps a state that cannot be padded: rows are sampled in groups of one prompt length%s",
                type(plain).__name__,
                "" if takes_cache else ", without a cache",
            )
        return cls(takes_cache, compacts, pads, "position_ids" in names, "logits_to_keep" in names)

    def decoder(self, model: nn.Module, prompts: list[list[int]], pad_token_id: int) -> _Decoder:
        if self.takes_cache:
            return _CachedRows(model, prompts, self, pad_token_id=pad_token_id)
        return _RecomputedRows(model, prompts, self)

    def options(self, positions: Tensor) -> dict[str, Tensor | int]:
        options: dict[str, Tensor | int] = {}
        if self.takes_positions:
            options["position_ids"] = positions
        if self.takes_logits_to_keep:
            options["logits_to_keep"] = 1
        return options


def _picker(temperature: float, top_p: float, uniforms: Tensor | None) -> Pick:
    """Return the function that turns logits into tokens and their log-probs."""

    def pick(logits: Tensor, slots: Sequence[int], step: int) -> tuple[Tensor, Tensor]:
        logprobs = torch.log_softmax(logits.float() / (temperature or 1.0), dim=-1)
        if uniforms is None:
            tokens = logprobs.argmax(-1)
        else:
            tokens = _invert(logprobs, uniforms[list(slots), step].to(logits.device), top_p)
        return tokens, logprobs.gather(1, tokens[:, None]).squeeze(1)

    return pick


def _invert(logprobs: Tensor, uniforms: Tensor, top_p: float) -> Tensor:
    """Return the token at which the cumulative probability passes each uniform number.

    A token without probability adds nothing to the sum, so it can never be the first to pass.
    """
    probabilities = logprobs.double().exp()
    if top_p < 1.0:
        ordered, tokens = probabilities.sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered
        ordered = ordered * (before < top_p)
        probabilities = torch.zeros_like(probabilities).scatter(1, tokens, ordered)
    cumulative = probabilities.cumsum(-1)
    threshold = uniforms[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(1)


def _uniforms(
    generator: torch.Generator | None, rows: int, max_new_tokens: int, temperature: float
) -> Tensor | None:
    """Draw every random number of the call at once, (rows, max_new_tokens); None when greedy."""
    if generator is None or temperature == 0:
        return None
    shape = (rows, max_new_tokens)
    return torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64)


def _batches(
    prompts: Sequence[Sequence[int]], batch_size: int, *, padded: bool, only: Sequence[int] | None
) -> Iterator[list[int]]:
    """Yield row numbers by prompt length; without padding, a batch holds one length only."""
    batch: list[int] = []
    rows = range(len(prompts)) if only is None else only
    for row in sorted(rows, key=lambda row: len(prompts[row])):
        other_length = not padded and batch and len(prompts[row]) != len(prompts[batch[0]])
        if len(batch) == batch_size or other_length:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _plain(model: nn.Module) -> nn.Module:
    """Return the transformers model inside a peft wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _check(
    prompt_ids: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float,
    generator: torch.Generator | None,
    top_p: float,
) -> None:
    if any(len(prompt) == 0 for prompt in prompt_ids):
        raise ValueError("a prompt has no tokens")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}, it must be at least 1")
    if temperature < 0 or not 0 < top_p <= 1:
        raise ValueError(f"temperature {temperature} or top_p {top_p} is out of range")
    if temperature > 0 and generator is None:
        raise ValueError("sampling at a temperature above 0 needs a torch.Generator")
