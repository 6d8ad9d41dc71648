"""An encoder as a reward model: its tokens, its adapter and head, and how they are stored and opened.

What is written is plain peft: PeftModel.from_pretrained on AutoModelForSequenceClassification opens it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils import ModulesToSaveWrapper
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase

from pipeline.config.run import ModelConfig, TuningConfig
from pipeline.contract import Checkpoint
from pipeline.errors import DataError, HandOverError, ModelError
from reward.preferences.records import Prompt, prompt_text
from stages.runtime.adapter_folder import base_name, write_config, write_tensors
from stages.runtime.folders import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_WEIGHTS_FILE,
    model_findings,
    read_json,
    tokenizer_findings,
)
from stages.runtime.loading import base_dtype, device
from stages.runtime.offloading import offload_activations

ADAPTER = "default"


class EncoderText:
    """Makes the ids of a pair of texts: [start] prompt [end] response [end].

    It has the methods of ChatText that reward models need.

    Raises:
        ModelError: the tokenizer has no token that ends a text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        start = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
        end = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
        if end is None:
            hint = "an encoder's own tokenizer, saved into its folder"
            raise ModelError("the tokenizer has no sep token and no eos token", hint=hint, code="no-sep")
        self._start: list[int] = [] if start is None else [start]
        self._end: list[int] = [end]

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Return the ids of a prompt; messages become one text with their roles."""
        return [*self._start, *self._ids(prompt_text(prompt)), *self._end]

    def response_ids(self, _prompt: Prompt, response: str) -> list[int]:
        """Return the ids of a response.

        Raises:
            DataError: the response is empty of tokens.
        """
        ids = self._ids(response)
        if not ids:
            raise DataError("the response holds no token", code="empty-response")
        return [*ids, *self._end]

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


@dataclass(frozen=True, slots=True)
class Encoder:
    """An encoder with a trainable adapter and head."""

    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    text: EncoderText

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def parameters(self) -> list[tuple[str, torch.nn.Parameter]]:
        """Return the weights that are trained: the adapter's and the head's."""
        return [(name, value) for name, value in self.model.named_parameters() if value.requires_grad]

    def scores(self, input_ids: Tensor, mask: Tensor, token_types: Tensor) -> Tensor:
        """Return the score of each row, (rows,), in float32.

        Args:
            input_ids: (rows, longest).
            mask: True where a token counts.
            token_types: 1 on the response; passed on where the encoder has two types.
        """
        options: dict[str, Any] = {}
        if getattr(self.model.config, "type_vocab_size", 0) >= 2:
            options["token_type_ids"] = token_types
        return self.model(input_ids=input_ids, attention_mask=mask.long(), **options).logits[:, 0].float()


def open_encoder(base: Checkpoint, model: ModelConfig, tuning: TuningConfig, *, seed: int) -> Encoder:
    """Open an encoder, with a fresh head and an adapter that changes nothing yet.

    Raises:
        ModelError: the folder or Hub id cannot be opened as a sequence classifier.
    """
    where, revision = (str(base.path), None) if base.path.is_dir() else (base.source, model.revision)
    if base.path.is_dir():
        findings = [*model_findings(base.path), *tokenizer_findings(base.path)]
        if findings:
            raise ModelError.from_findings(findings)
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": model.trust_remote_code}
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, **options)
        with torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))):
            torch.manual_seed(seed)
            plain, report = AutoModelForSequenceClassification.from_pretrained(
                where,
                num_labels=1,
                dtype=base_dtype(model),
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
            head = _head_modules(plain, report)
            config = LoraConfig(
                r=tuning.lora_r,
                lora_alpha=tuning.lora_alpha,
                use_dora=tuning.use_dora,
                use_rslora=tuning.use_rslora,
                target_modules=_targets(tuning),
                modules_to_save=head,
                task_type="SEQ_CLS",
            )
            made = get_peft_model(plain, config, adapter_name=ADAPTER)
            _learn_in_float32(made)
    except (OSError, ValueError, KeyError) as error:
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        hint = "an encoder that AutoModelForSequenceClassification opens, such as a BERT"
        message = f"the encoder cannot be opened: {first}"
        raise ModelError(message, where=where, hint=hint, code="no-encoder") from error
    if tuning.activation_offloading:
        offload_activations(getattr(plain, plain.base_model_prefix))
    return Encoder(made.to(device()).eval(), tokenizer, EncoderText(tokenizer))


def load_encoder(base: Checkpoint, stored: Checkpoint, model: ModelConfig, tuning: TuningConfig) -> Encoder:
    """Open an encoder with the stored adapter and head; every weight must arrive.

    Raises:
        HandOverError: the folder belongs to another base, or its weights do not fit.
        ModelError: the encoder cannot be opened.
    """
    name = read_json(stored.path / ADAPTER_CONFIG_FILE).get("base_model_name_or_path")
    if name != base_name(base)[0]:
        message = f"the reward model was trained on {name}, not on {base_name(base)[0]}"
        raise HandOverError(message, where=stored.source, hint="give its own base", code="other-base")
    encoder = open_encoder(base, model, tuning, seed=0)
    tensors = load_file(stored.path / ADAPTER_WEIGHTS_FILE)
    wanted = get_peft_model_state_dict(encoder.model)
    if tensors.keys() != wanted.keys() or any(tensors[k].shape != wanted[k].shape for k in wanted):
        hint = "the settings that it was trained with: tuning.lora_r and target_modules"
        raise HandOverError("the stored weights do not fit this encoder", hint=hint, code="adapter-keys")
    set_peft_model_state_dict(encoder.model, tensors)
    encoder.model.requires_grad_(False)
    return encoder


def save_encoder(encoder: Encoder, folder: Path, *, base: Checkpoint) -> Path:
    """Write adapter and head, their config and the tokenizer.

    Raises:
        ModelError: a weight is not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / ADAPTER_WEIGHTS_FILE, get_peft_model_state_dict(encoder.model))
    config = encoder.model.peft_config[ADAPTER]
    file = write_config(folder, config, base=base, with_head=True)
    content = {**read_json(file), "modules_to_save": sorted(set(config.modules_to_save or ()))}
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    encoder.tokenizer.save_pretrained(folder)
    return folder


def _learn_in_float32(model: PeftModel) -> None:
    """Hold the trained head in float32: in bfloat16 AdamW's small steps would be rounded away."""
    for wrapper in (module for module in model.modules() if isinstance(module, ModulesToSaveWrapper)):
        for head in wrapper.modules_to_save.values():
            head.float().register_forward_pre_hook(lambda _, inputs: tuple(value.float() for value in inputs))


def _targets(tuning: TuningConfig) -> str | list[str]:
    targets = tuning.target_modules
    return targets if isinstance(targets, str) else sorted(targets)


def _head_modules(plain: torch.nn.Module, report: dict[str, Any]) -> list[str]:
    """Return the modules that the encoder's own folder lacks: the head, trained in full and stored.

    Raises:
        ValueError: the folder lacks more than a head.
    """
    prefix = f"{plain.base_model_prefix}."
    missing = sorted(report.get("missing_keys") or ())
    inside = [key for key in missing if key.startswith(prefix) and ".pooler." not in key]
    if inside:
        raise ValueError(f"the folder lacks {len(inside)} weights of its encoder, first {inside[0]}")
    found = {"pooler" if ".pooler." in key else key.split(".")[0] for key in missing}
    known = [name for name, _ in plain.named_children() if name in ("classifier", "score")]
    return sorted(found | set(known))
