"""Opens a finished reward model and measures it, or lets it score comparisons that nobody judged yet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.contract import Checkpoint
from pipeline.errors import DataError
from reward.preferences.exchange.tasks import cmp_id_of
from reward.preferences.records import PreferenceRecord
from stages.reward import RewardConfig
from stages.runtime.ensemble import load_members
from stages.runtime.handover import HandOver
from stages.runtime.loading import backbone, load_base, load_tokenizer
from stages.runtime.segment_check import supports_segments
from stages.runtime.switch import AdapterSwitch
from stages.runtime.text.chat import ChatText, generation_eos
from stages.trainers.pair_data import PairData, TokenPair, load_pair_data
from stages.trainers.pair_model import REWARD, PairModel
from stages.trainers.reward import RewardEnsemble, RewardTrainer
from stages.trainers.reward_card import make_card, plain_card


def open_reward_model(base: Checkpoint, reward_model: Checkpoint, config: RewardConfig) -> RewardEnsemble:
    """Open a reward model with all its members.

    Args:
        base: the model's base.
        reward_model: adapter and head, further members in its folder.
        config: settings that it was trained with: precision, length limit, packing.

    Raises:
        HandOverError: the adapter belongs to another base.
    """
    causal_lm = load_base(base, config.model, config.tuning)
    tokenizer = load_tokenizer(reward_model, config.model)
    chat = ChatText(tokenizer, generation_eos=generation_eos(causal_lm))
    model, members = load_members(causal_lm, reward_model, name=REWARD)
    reason = supports_segments(model, backbone=backbone(model))
    parts = PairModel(model, AdapterSwitch(model), tokenizer, chat, HandOver(0.0, 0.0, 0), reason)
    return RewardEnsemble([RewardTrainer(parts, head, config, name) for name, head in members])


def measure_reward_model(
    base: Checkpoint,
    reward_model: Checkpoint,
    config: RewardConfig,
    path: Path,
    *,
    mapping: Path | None = None,
) -> dict[str, Any]:
    """Return the report card of a reward model on all pairs of a preference file.

    Raises:
        DataError: the file has no usable pair.
        HandOverError: the adapter belongs to another base.
    """
    ensemble = open_reward_model(base, reward_model, config)
    parts = ensemble.members[0].parts
    everything = config.model_copy(update={"eval_share": 0.0})
    pairs = load_pair_data(path, everything, parts.chat, mapping=mapping)
    with parts.running():
        data = PairData([], pairs.train)
        card = make_card(ensemble.score_pairs, data, parts.chat, num_probes=config.num_probes)
        card |= {"ensemble": spread} if (spread := ensemble.spread(pairs.train)) else {}
    del card["floors"]["majority"]  # no training pairs are at hand to take a majority of
    card["flags"] += pairs.notes
    return plain_card(card)


def margins_of(
    base: Checkpoint, reward_model: Checkpoint, config: RewardConfig, records: Sequence[PreferenceRecord]
) -> dict[str, list[float]]:
    """Return each member's score of the first response less that of the second, by comparison.

    Comparisons that are too long, cannot be written or hold other than two responses are left out.

    Raises:
        DataError: no comparison is left.
        HandOverError: the adapter belongs to another base.
    """
    ensemble = open_reward_model(base, reward_model, config)
    parts = ensemble.members[0].parts
    known = {cmp_id_of(record): _as_pair(record, parts.chat, config.max_length) for record in records}
    pairs = {name: pair for name, pair in known.items() if pair is not None}
    if not pairs:
        hint = "rows with a prompt and two responses, or a larger max_length in the stage"
        raise DataError("no comparison of two responses can be scored", hint=hint, code="no-pairs")
    with parts.running():
        scores = ensemble.score_members(list(pairs.values()))
    margins = (scores[:, 0] - scores[:, 1]).T.tolist()
    return dict(zip(pairs, margins, strict=True))


def _as_pair(record: PreferenceRecord, chat: ChatText, max_length: int) -> TokenPair | None:
    if len(record.responses) != 2:
        return None
    try:
        prompt = tuple(chat.prompt_ids(record.prompt))
        first, second = (tuple(chat.response_ids(record.prompt, one.text)) for one in record.responses)
    except DataError:
        return None
    longest = len(prompt) + max(len(first), len(second))
    return None if first == second or longest > max_length else TokenPair(prompt, first, second)
