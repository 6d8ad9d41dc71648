"""The worlds of a race between two PPO trainers: one base, one policy, one reward model, the same prompts.

The random world has the size that cost is measured at: tokens belong to topics and an end token comes
with a set probability, so responses differ in length. The demo's world, trained, is where reward counts.
"""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from pipeline.config.run import ModelConfig, TuningConfig
from pipeline.contract import ArtifactKind, Checkpoint
from stages.data import read_prompts
from stages.ops.stats import correlation
from stages.runtime.generation import sample
from stages.runtime.loading import load_tokenizer
from stages.runtime.text.chat import ChatText, generation_eos
from tests.ppo_setup import adapter
from tests.tiny import as_checkpoint, tiny_config, tiny_tokenizer

PAD, END = 0, 3
"As tests.tiny's tokenizer has them."
TOPICS = 16
MEAN_LENGTH = 24
SPREAD = 1e-4
REWARD_SEEDS = range(2, 10)
PROMPTS = 256
ROOT = Path(__file__).parents[2]
DEMO_PROMPTS = ROOT / "data" / "demo" / "prompts.jsonl"
HEAD = "base_model.model.score.weight"


@dataclass(frozen=True)
class Shape:
    """Size of the base."""

    hidden: int = 256
    layers: int = 4
    vocabulary: int = 32_000

    @property
    def architecture(self) -> dict[str, Any]:
        """Keys of the model's config."""
        return {
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": 4 * self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": 8,
            "num_key_value_heads": 8,
            "head_dim": self.hidden // 8,
            "tie_word_embeddings": False,
        }


def build_random(folder: Path, shape: Shape, tuning: TuningConfig) -> None:
    """Write a random base, its adapters and prompts for one side, merged models and ids for the other."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(**shape.architecture)).eval()
    _give_topics(model)
    base = _written(model, folder / "base")
    adapter(folder / "sft", base, seed=1, tuning=tuning, spread=SPREAD)
    _set_end(model, folder / "sft")
    base = _written(model, folder / "base")
    # Almost untrained: the other side starts a new adapter on the merged policy.
    adapter(folder / "sft", base, seed=1, tuning=tuning, spread=SPREAD)
    _write_prompts(folder)
    prompts = _write_ids(folder, base, most_tokens=128)
    _choose_reward(folder, _merged_policy(folder), prompts, base=base, tuning=tuning)
    _write_merged(folder)


def build_demo(folder: Path, store: Path, *, most_tokens: int) -> None:
    """Copy the demo's trained base, adapters and prompts, and merge them for the other side."""
    outputs = {"base": "model", "sft": "adapter", "reward": "reward_model"}
    for file in store.glob("stages/*/*/record.json"):
        record = json.loads(file.read_text())
        if (stage := record["stage"]) in outputs:
            shutil.copytree(file.parent / outputs[stage], folder / stage, dirs_exist_ok=True)
            digest = record["outputs"][outputs[stage]]["digest"]
            (folder / f"{stage}.digest").write_text(digest)
    shutil.copy(DEMO_PROMPTS, folder / "prompts.jsonl")
    _write_ids(folder, as_checkpoint(folder / "base", ArtifactKind.FULL_MODEL), most_tokens=most_tokens)
    _write_merged(folder)


def inputs(folder: Path) -> dict[str, Checkpoint]:
    """Return the inputs of the ppo stage that build() wrote."""
    return {
        "base": _named(folder / "base", ArtifactKind.FULL_MODEL),
        "policy": _named(folder / "sft", ArtifactKind.ADAPTER),
        "reward": _named(folder / "reward", ArtifactKind.REWARD_MODEL),
        "prompts": _named(folder / "prompts.jsonl", ArtifactKind.PROMPTS),
    }


def _named(path: Path, kind: ArtifactKind) -> Checkpoint:
    """Name what lies at a path as its own store did; the adapters know their base by that name."""
    checkpoint, digest = as_checkpoint(path, kind), path.with_suffix(".digest")
    return replace(checkpoint, fingerprint=digest.read_text()) if digest.is_file() else checkpoint


@torch.no_grad()
def _give_topics(model: Any) -> None:
    """Give each token a topic that embedding and output share, and one coordinate that never changes."""
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    topics = torch.nn.functional.normalize(torch.randn(TOPICS, embedding.shape[1]), dim=1)
    of_token = topics[torch.arange(len(embedding)) % TOPICS]
    embedding += 0.3 * of_token
    head += 0.15 * of_token
    embedding[:, 0] = 0.5
    head[:, 0] = 0.0
    head[END] = 0.0


@torch.no_grad()
def _set_end(model: Any, policy: Path) -> None:
    """Set the end token's logit, carried by the constant coordinate, for the mean length under the policy."""
    adapted = PeftModel.from_pretrained(model, policy).eval()
    ids = torch.randint(5, model.config.vocab_size, (8, 64))
    hidden = adapted.get_base_model().model(input_ids=ids).last_hidden_state.flatten(0, 1)
    head = model.get_output_embeddings().weight
    others = (hidden @ head.T).logsumexp(-1)
    low, high = -5.0, 5.0
    for _ in range(40):
        middle = (low + high) / 2
        ends = (middle * hidden[:, 0] - others).sigmoid().mean()
        low, high = (low, middle) if ends > 1 / MEAN_LENGTH else (middle, high)
    adapted.unload()
    head[END, 0] = low


def _written(model: Any, folder: Path) -> Checkpoint:
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return as_checkpoint(folder, ArtifactKind.FULL_MODEL)


def _write_prompts(folder: Path) -> None:
    chance = random.Random(0)
    letters = "abcdefghij klmnop"
    texts = ["".join(chance.choices(letters, k=chance.randint(4, 40))) for _ in range(PROMPTS)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))


def _write_ids(folder: Path, base: Checkpoint, *, most_tokens: int) -> list[list[int]]:
    model = AutoModelForCausalLM.from_pretrained(base.path)
    chat = ChatText(load_tokenizer(base, ModelConfig()), generation_eos=generation_eos(model))
    rows = read_prompts(folder / "prompts.jsonl")
    encoded = [list(chat.prompt_ids(row.prompt)) for row in rows]
    ids = [prompt for prompt in encoded if len(prompt) <= most_tokens]
    (folder / "prompt_ids.json").write_text(json.dumps(ids))
    return ids


def _merged_policy(folder: Path) -> Any:
    causal = AutoModelForCausalLM.from_pretrained(folder / "base")
    return PeftModel.from_pretrained(causal, folder / "sft").merge_and_unload()


def _write_merged(folder: Path) -> None:
    """Write policy and reward model as whole models with tokenizers, for a trainer that takes these."""
    reward = PeftModel.from_pretrained(_classifier(folder), folder / "reward").merge_and_unload()
    for name, model in (("sft_merged", _merged_policy(folder)), ("reward_merged", reward)):
        model.save_pretrained(folder / name)
        load_tokenizer(as_checkpoint(folder / "sft", ArtifactKind.ADAPTER), ModelConfig()).save_pretrained(
            folder / name
        )


def _choose_reward(
    folder: Path, policy: torch.nn.Module, prompts: list[list[int]], *, base: Checkpoint, tuning: TuningConfig
) -> None:
    """Write the random reward model that depends on length the least, scaled to deviation 1 at the start."""
    episodes = _episodes(policy, prompts[:64])
    lengths = torch.tensor([float(len(episode)) for episode in episodes])
    found: dict[int, tuple[float, float]] = {}
    for seed in REWARD_SEEDS:
        adapter(folder / "reward", base, seed=seed, scored=True, tuning=tuning)
        scores = _scores(folder, episodes)
        found[seed] = abs(float(correlation(scores, lengths))), float(scores.std())
    best = min(found, key=lambda seed: found[seed][0])
    adapter(folder / "reward", base, seed=best, scored=True, tuning=tuning)
    file = folder / "reward" / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors[HEAD] = tensors[HEAD] / found[best][1]
    save_file(tensors, file, metadata={"format": "pt"})


def _episodes(policy: torch.nn.Module, prompts: list[list[int]]) -> list[list[int]]:
    made = sample(
        policy,
        prompts,
        max_new_tokens=48,
        stop_token_ids=(END,),
        temperature=1.0,
        generator=torch.Generator().manual_seed(0),
        pad_token_id=PAD,
    )
    return [[*prompt, *response] for prompt, response in zip(prompts, made.responses, strict=True)]


@torch.no_grad()
def _scores(folder: Path, episodes: list[list[int]]) -> torch.Tensor:
    reward = PeftModel.from_pretrained(_classifier(folder), folder / "reward").eval()
    return torch.tensor([float(reward(input_ids=torch.tensor([ids])).logits[0, 0]) for ids in episodes])


def _classifier(folder: Path) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(folder / "base", num_labels=1)
