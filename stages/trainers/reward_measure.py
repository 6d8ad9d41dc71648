"""Measures a finished reward model on a preference file that its training did not see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.contract import Checkpoint
from reward.model import ScoreHead
from stages.reward import RewardConfig
from stages.runtime.adapters import load_adapter, load_head
from stages.runtime.handover import HandOver
from stages.runtime.loading import backbone, load_base, load_tokenizer
from stages.runtime.segment_check import supports_segments
from stages.runtime.switch import AdapterSwitch
from stages.runtime.text.chat import ChatText, generation_eos
from stages.trainers.pair_data import PairData, load_pair_data
from stages.trainers.pair_model import REWARD, PairModel
from stages.trainers.reward import RewardTrainer
from stages.trainers.reward_card import make_card, plain_card


def measure_reward_model(
    base: Checkpoint,
    reward_model: Checkpoint,
    config: RewardConfig,
    path: Path,
    *,
    mapping: Path | None = None,
) -> dict[str, Any]:
    """Return the report card of a reward model on all pairs of a file.

    Args:
        base: the model's base.
        reward_model: adapter and head.
        config: settings that it was trained with: precision, length limit, packing.
        path: the preference file.
        mapping: YAML that says how to read it.

    Raises:
        DataError: the file has no usable pair.
        HandOverError: the adapter belongs to another base.
    """
    causal_lm = load_base(base, config.model, config.tuning)
    tokenizer = load_tokenizer(reward_model, config.model)
    chat = ChatText(tokenizer, generation_eos=generation_eos(causal_lm))
    everything = config.model_copy(update={"eval_share": 0.0})
    pairs = load_pair_data(path, everything, chat, mapping=mapping)
    model = load_adapter(causal_lm, reward_model, name=REWARD, trainable=False)
    reason = supports_segments(model, backbone=backbone(model))
    parts = PairModel(model, AdapterSwitch(model), tokenizer, chat, HandOver(0.0, 0.0, 0), reason)
    head = ScoreHead.from_tensors(load_head(reward_model)).to(parts.device)
    trainer = RewardTrainer(parts, head, config)
    with parts.running():
        card = make_card(trainer.score_pairs, PairData([], pairs.train), chat, num_probes=config.num_probes)
    del card["floors"]["majority"]  # no training pairs are at hand to take a majority of
    card["flags"] += pairs.notes
    return plain_card(card)
