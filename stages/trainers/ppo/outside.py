"""A reward model of another family: a whole classifier with a tokenizer of its own, given text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase

from pipeline.config.run import ModelConfig
from pipeline.contract import Checkpoint
from pipeline.errors import ModelError
from stages.runtime.folders import model_findings
from stages.runtime.loading import base_dtype, device

HINT = "a folder that AutoModelForSequenceClassification opens: one label, a tokenizer, safetensors weights"


@dataclass(frozen=True, slots=True)
class OutsideReward:
    """Writes prompt and response as the model's own tokenizer does, and reads its one logit."""

    model: torch.nn.Module
    tokenizer: PreTrainedTokenizerBase
    batch_size: int
    most_tokens: int | None
    "Positions that the model has; None when it does not say."

    @torch.no_grad()
    def __call__(self, prompts: Sequence[object], responses: Sequence[str]) -> list[float]:
        """Return one score a response, in fp32.

        Raises:
            ModelError: a text is longer than the model's positions, or a score is not finite.
        """
        ids = [self._ids(prompt, text) for prompt, text in zip(prompts, responses, strict=True)]
        scores: list[float] = []
        for start in range(0, len(ids), self.batch_size):
            batch = self.tokenizer.pad(
                {"input_ids": ids[start : start + self.batch_size]}, return_tensors="pt"
            )
            batch = batch.to(next(self.model.parameters()).device)
            logits = self.model(**batch).logits[:, 0]
            scores.extend(logits.float().tolist())
        wrong = next((row for row, score in enumerate(scores) if not abs(score) < float("inf")), None)
        if wrong is not None:
            raise ModelError(
                f"the outside reward model gave {scores[wrong]} for the response {responses[wrong][:40]!r}",
                hint="model.dtype: float32, or another reward model",
                code="outside-reward",
            )
        return scores

    def _ids(self, prompt: object, response: str) -> list[int]:
        messages = prompt if isinstance(prompt, list) else [{"role": "user", "content": str(prompt)}]
        if self.tokenizer.chat_template:
            dialogue = [*messages, {"role": "assistant", "content": response}]
            ids = self.tokenizer.apply_chat_template(dialogue, tokenize=True, return_dict=True)["input_ids"]
        else:
            text = "\n".join(str(message["content"]) for message in messages)
            ids = self.tokenizer(text, response)["input_ids"]
        if self.most_tokens is not None and len(ids) > self.most_tokens:
            raise ModelError(
                f"a prompt and its response have {len(ids)} tokens for the outside reward model, "
                f"which has positions for {self.most_tokens}",
                hint="a smaller max_length, or a reward model with more positions",
                code="outside-reward",
            )
        return list(ids)


def load_outside_reward(source: Checkpoint, model: ModelConfig, *, batch_size: int) -> OutsideReward:
    """Open the classifier, frozen, in eval(), on the device.

    Args:
        source: a folder, or a Hub id in `source.source`.
        model: precision and trust come from here.
        batch_size: texts computed at once.

    Raises:
        ModelError: it cannot be opened, gives more than one number, or its tokenizer cannot pad.
    """
    where = str(source.path) if source.path.is_dir() else source.source
    findings = model_findings(source.path) if source.path.is_dir() else []
    if findings:
        raise ModelError.from_findings(findings)
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=model.trust_remote_code)
        loaded, report = AutoModelForSequenceClassification.from_pretrained(
            where,
            dtype=base_dtype(model),
            use_safetensors=True,
            trust_remote_code=model.trust_remote_code,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"{where} cannot be opened: {first}", hint=HINT, code="outside-reward") from error
    _check(loaded, tokenizer, sorted(report["missing_keys"]), where=where)
    loaded.requires_grad_(False)
    most = getattr(loaded.config, "max_position_embeddings", None)
    return OutsideReward(loaded.eval().to(device()), tokenizer, batch_size, most)


def _check(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, missing: Sequence[str], *, where: str
) -> None:
    wrong = []
    if model.config.num_labels != 1:
        wrong.append(f"it gives {model.config.num_labels} numbers a text, not one")
    if missing:
        wrong.append(f"weights are missing, such as {missing[0]}: is it a reward model?")
    if tokenizer.pad_token_id is None:
        wrong.append("its tokenizer has no pad token")
    elif model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    if wrong:
        raise ModelError(f"{where}: {'; '.join(wrong)}", hint=HINT, code="outside-reward")
