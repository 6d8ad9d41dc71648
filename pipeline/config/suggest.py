"""Finds what a person probably meant by a key or value that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel

from pipeline.config.run import RunConfig

# Names of the same setting in the command lines and config files people come from.
OTHER_NAMES = {
    "lr": "learning_rate",
    "batch_size": "per_device_train_batch_size",
    "micro_batch_size": "per_device_train_batch_size",
    "train_batch_size": "per_device_train_batch_size",
    "grad_accum": "gradient_accumulation_steps",
    "epochs": "num_train_epochs",
    "num_epochs": "num_train_epochs",
    "n_epochs": "num_train_epochs",
    "steps": "max_steps",
    "num_steps": "max_steps",
    "warmup": "warmup_ratio",
    "scheduler": "lr_scheduler_type",
    "lr_scheduler": "lr_scheduler_type",
    "max_seq_length": "max_length",
    "sequence_len": "max_length",
    "cutoff_len": "max_length",
    "model_name": "base",
    "model_name_or_path": "base",
    "base_model": "base",
    "torch_dtype": "dtype",
    "precision": "dtype",
    "template": "chat_template",
    "rank": "lora_r",
    "r": "lora_r",
    "lora_rank": "lora_r",
    "lora_target": "target_modules",
    "lora_target_modules": "target_modules",
    "dropout": "lora_dropout",
    "finetuning_type": "method",
    "adapter": "method",
    "kl_coefficient": "kl_coef",
    "init_kl_coef": "kl_coef",
    "clip_range": "cliprange",
    "clip_eps": "cliprange",
    "gae_lambda": "lam",
    "discount": "gamma",
    "output_dir": "store",
    "out_dir": "store",
    "run_name": "name",
    "wandb_project": "project",
    "wandb_entity": "entity",
    "type": "kind",
    "stage": "kind",
    "data": "inputs",
    "dataset": "inputs",
    "datasets": "inputs",
}
MAX_LISTED = 12


def close(word: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """Return the known word nearest to a misspelt one, or None when none is near."""
    folded = {name.lower().replace("-", "_"): name for name in known}
    matches = difflib.get_close_matches(word.lower().replace("-", "_"), folded, n=1, cutoff=cutoff)
    return folded[matches[0]] if matches else None


def choices(words: Iterable[str]) -> str:
    """Return the words in one readable line, cut after a dozen."""
    words = list(words)
    more = f" and {len(words) - MAX_LISTED} more" if len(words) > MAX_LISTED else ""
    return ", ".join(words[:MAX_LISTED]) + more


@dataclass(frozen=True, slots=True)
class Homes:
    """Where each known key of a run belongs: key -> dotted places, nearest meaning first."""

    places: Mapping[str, tuple[str, ...]]

    @classmethod
    def of_run(cls, stage_types: Mapping[str, type[BaseModel]]) -> Homes:
        """Collect the keys of the run file, of every stage's card and of their inner blocks."""
        places: dict[str, list[str]] = {}
        roots: list[tuple[str, type[BaseModel]]] = [("", RunConfig)]
        roots += [(f"stages.{name}", kind) for name, kind in stage_types.items()]
        for prefix, model in roots:
            for key, home in _keys(model, prefix):
                places.setdefault(key, []).append(home)
        return cls({key: tuple(found) for key, found in places.items()})

    def hint(self, key: str, *, level: str, allowed: Iterable[str]) -> str:
        """Return what to write in place of an unknown key at a level of the run file."""
        allowed = list(allowed)
        if key == "settings" and level.startswith("stages."):
            return "write its keys directly in the stage's block"
        if similar := close(key, allowed, cutoff=0.75):
            return similar
        for name in (key, OTHER_NAMES.get(key, "")):
            if name in allowed:
                return name
            if name in self.places:
                return self._elsewhere(name, level)
        if similar := close(key, allowed):
            return similar
        if similar := close(key, self.places, cutoff=0.8):
            return self._elsewhere(similar, level)
        return f"one of {choices(allowed)}" if allowed else ""

    def _elsewhere(self, key: str, level: str) -> str:
        homes = self.places[key]
        inside = [home for home in homes if level and home.startswith(f"{level}.")]
        first, *others = inside or homes
        dotted = f"{first}.{key}" if first else key
        if inside or not others or not first.startswith("stages."):
            place = f"under {first}" if first else "at the top level"
            return f"{dotted}: the key belongs {place}"
        names = choices(home.removeprefix("stages.") for home in others)
        return f"{dotted}: the key belongs in a stage's block (also: {names})"


def model_at(model: type[BaseModel], path: Iterable[str | int]) -> type[BaseModel] | None:
    """Return the config class that stands at a path inside another, or None."""
    current: type[BaseModel] | None = model
    for part in path:
        if isinstance(part, int):
            # An item of a list is of the class that the list holds.
            continue
        if current is None or part not in current.model_fields:
            return None
        current = inner_model(current.model_fields[part].annotation)
    return current


def inner_model(annotation: Any) -> type[BaseModel] | None:
    """Return the config class an annotation names, alone or beside None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = [inner_model(arg) for arg in get_args(annotation)]
    return next((model for model in found if model is not None), None)


def _keys(model: type[BaseModel], prefix: str) -> Iterable[tuple[str, str]]:
    for name, field in model.model_fields.items():
        yield name, prefix
        inner = inner_model(field.annotation)
        if inner is not None and name != "stages":
            yield from _keys(inner, f"{prefix}.{name}" if prefix else name)
