"""The members of a reward model: itself, and further adapters with heads of their own in its folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel

from pipeline.contract import Checkpoint
from reward.model import ScoreHead
from stages.runtime.adapter_folder import HEAD_KEY, write_config, write_tensors
from stages.runtime.adapters import load_adapter, load_head, named_adapter_parameters, stored_key
from stages.runtime.folders import ADAPTER_WEIGHTS_FILE

MEMBERS = "members"
"Folder inside a reward model: members/1, members/2 ... beside the first member, which is the model itself."


def members_of(source: Checkpoint) -> list[Checkpoint]:
    """Return the members of a reward model, itself first; one that is no ensemble has one."""
    folder = source.path / MEMBERS
    numbers = sorted(int(path.name) for path in folder.iterdir()) if folder.is_dir() else []
    return [source, *(replace(source, path=folder / str(number)) for number in numbers)]


def load_members(
    model: PreTrainedModel | PeftModel, source: Checkpoint, *, name: str
) -> tuple[PeftModel, list[tuple[str, ScoreHead]]]:
    """Put every member on a base as a frozen adapter.

    Args:
        model: the base, or a model that already carries adapters.
        source: the reward model.
        name: of the first member's adapter; the others are NAME_1, NAME_2 ...

    Returns:
        The model, and adapter name and head of each member.
    """
    found = []
    for number, member in enumerate(members_of(source)):
        adapter = member_name(name, number)
        model = load_adapter(model, member, name=adapter, trainable=False)
        head = ScoreHead.from_tensors(load_head(member)).requires_grad_(False)
        found.append((adapter, head.to(next(model.parameters()).device)))
    return model, found


def member_name(name: str, number: int) -> str:
    """Return the adapter name of a member; the first one has the plain name."""
    return f"{name}_{number}" if number else name


def save_members(
    model: PeftModel, folder: Path, members: Sequence[tuple[str, ScoreHead]], *, base: Checkpoint
) -> None:
    """Write all members but the first into the folder of the first.

    Raises:
        ModelError: a weight is not finite.
    """
    for number, (adapter, head) in enumerate(members):
        if number == 0:
            continue
        place = folder / MEMBERS / str(number)
        place.mkdir(parents=True)
        tensors = {stored_key(key, adapter): value for key, value in named_adapter_parameters(model, adapter)}
        tensors |= {HEAD_KEY + key: value for key, value in head.tensors().items()}
        write_tensors(place / ADAPTER_WEIGHTS_FILE, tensors)
        write_config(place, model.peft_config[adapter], base=base, with_head=True)
