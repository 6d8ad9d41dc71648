"""Accuracy of a reward model on people's judgements, k-fold, beside what length and words alone reach.

    python -m tests.benchmarks.kfold_reward ukp          # UKPConvArg1, 4 folds across debates
    python -m tests.benchmarks.kfold_reward hh           # hh-rlhf, 5 folds by prompt
    python -m tests.benchmarks.kfold_reward ukp --base FOLDER --folds 4

Every fold runs the real stages: `pretrain` on the training texts (or the base that is given), an
untrained adapter, `reward`, measured on the other part. The floors are fitted on the same folds: the
longer side in the direction of the training pairs, and a logistic regression on TF-IDF differences and
length. Needs the real files (TRIPTYCH_REALDATA).
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix, hstack, vstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from pipeline.config.run import ModelConfig, TuningConfig
from pipeline.contract import ArtifactKind, Checkpoint
from reward.metrics import wilson_interval
from reward.preferences.pairs import load_pairs
from reward.preferences.records import prompt_text
from stages.pretrain import PretrainConfig
from stages.pretrain import run as run_pretrain
from stages.reward import RewardConfig
from stages.reward import run as run_reward
from stages.runtime.adapters import new_adapter, save_adapter
from stages.runtime.loading import load_base, load_tokenizer
from tests.tiny import as_checkpoint, stage_context

FP32 = ModelConfig(dtype="float32")
ARCHITECTURE = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 336,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "tie_word_embeddings": True,
    "max_position_embeddings": 1024,
}


@dataclass(frozen=True, slots=True)
class Judged:
    """One pair with a winner and the fold it is measured in."""

    prompt: str
    chosen: str
    rejected: str
    fold: int

    @property
    def longer(self) -> int:
        """Return by how many characters chosen is longer."""
        return len(self.chosen) - len(self.rejected)


def main() -> None:
    """Print one line a fold and the sums."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", choices=("ukp", "hh"))
    parser.add_argument("--folds", type=int, help="default: 4 for ukp, 5 for hh")
    parser.add_argument("--base", type=Path, help="folder of a base; without it one is trained on the texts")
    parser.add_argument("--pretrain-steps", type=int, default=150)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--ensemble", type=int, default=1)
    parser.add_argument("--only", type=int, nargs="*", help="folds to run; all without it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folds = options.folds or {"ukp": 4, "hh": 5}[options.data]
    pairs = {"ukp": read_ukp, "hh": read_hh}[options.data](folds)
    print(f"{len(pairs)} pairs, {folds} folds", flush=True)
    sums = dict.fromkeys(("length", "words", "model"), 0.0)
    measured = 0
    for fold in options.only if options.only is not None else range(folds):
        train, test = ([p for p in pairs if (p.fold == fold) == held] for held in (False, True))
        start = time.process_time()
        found = {"length": length_rule(train, test), "words": word_model(train, test)}
        found["model"], count = reward_model(train, test, options)
        measured += count
        line = "  ".join(f"{name} {share:.3f}" for name, share in found.items())
        seconds = time.process_time() - start
        print(f"fold {fold}: {line}  ({count} of {len(test)} pairs, {seconds:.0f} CPU-s)", flush=True)
        for name, share in found.items():
            sums[name] += share * (count if name == "model" else len(test))
    total = sum(p.fold in (options.only if options.only is not None else range(folds)) for p in pairs)
    low, high = wilson_interval(sums["model"], measured)
    print(f"length alone {sums['length'] / total:.3f}, TF-IDF and length {sums['words'] / total:.3f}")
    print(f"reward model {sums['model'] / measured:.3f} [{low:.3f}, {high:.3f}] on {measured} pairs")


def read_ukp(folds: int) -> list[Judged]:
    """Return the pairs with a gold label; all pairs of a debate share a fold."""
    texts = {row["id"]: row for row in _rows("ukpconvarg1", "ukp_arguments.jsonl.gz")}
    judged = [row for row in _rows("ukpconvarg1", "ukp_pairs.jsonl.gz") if row["gold"] in ("a", "b")]
    debates = sorted({row["debate"] for row in judged})
    found = []
    for row in judged:
        better, worse = (row["a"], row["b"]) if row["gold"] == "a" else (row["b"], row["a"])
        about = texts[better]
        prompt = f"{about['title']}: {about['stance']}"
        fold = debates.index(row["debate"]) % folds
        found.append(Judged(prompt, texts[better]["text"], texts[worse]["text"], fold))
    return found


def read_hh(folds: int) -> list[Judged]:
    """Return the valid pairs of the file; equal prompts share a fold."""
    path = _root() / "hh-rlhf" / "harmless-base-test.jsonl.gz"
    found = []
    for pair in load_pairs(path).pairs:
        fold = int(hashlib.sha256(pair.group.encode()).hexdigest()[:8], 16) % folds
        found.append(Judged(prompt_text(pair.prompt), pair.chosen, pair.rejected, fold))
    return found


def length_rule(train: Sequence[Judged], test: Sequence[Judged]) -> float:
    """Return the accuracy of one rule: the longer side, or the shorter, as the training pairs say."""
    direction = 1 if sum(np.sign(p.longer) for p in train) >= 0 else -1
    return float(np.mean([0.5 + 0.5 * direction * np.sign(p.longer) for p in test]))


def word_model(train: Sequence[Judged], test: Sequence[Judged]) -> float:
    """Return the accuracy of a logistic regression on differences of TF-IDF and of length."""
    words = TfidfVectorizer(sublinear_tf=True, min_df=2, ngram_range=(1, 2), max_features=20_000)
    words.fit([text for p in train for text in (p.chosen, p.rejected)])

    def differences(pairs: Sequence[Judged]) -> csr_matrix:
        text = words.transform([p.chosen for p in pairs]) - words.transform([p.rejected for p in pairs])
        logs = [np.log1p(len(p.chosen)) - np.log1p(len(p.rejected)) for p in pairs]
        return hstack([text, csr_matrix(np.array(logs)[:, None])]).tocsr()

    rows = differences(train)
    # Each pair in both directions: the rule must not know which side stands first.
    labels = np.repeat([1, 0], rows.shape[0])
    model = LogisticRegression(C=1.0, fit_intercept=False, max_iter=1000)
    model.fit(vstack([rows, -rows]), labels)
    scores = model.decision_function(differences(test))
    return float(np.mean(0.5 + 0.5 * np.sign(scores)))


def reward_model(train: Sequence[Judged], test: Sequence[Judged], options: Any) -> tuple[float, int]:
    """Train the stages on one part; return accuracy on the other and the pairs that were measured."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = (
            as_checkpoint(options.base, ArtifactKind.FULL_MODEL)
            if options.base
            else pretrained(train, folder / "base", steps=options.pretrain_steps)
        )
        tuning = TuningConfig(lora_r=options.rank, lora_alpha=2 * options.rank)
        policy = untrained(base, folder / "policy", tuning)
        config = RewardConfig(
            model=FP32,
            tuning=tuning,
            seed=1,
            learning_rate=options.rate,
            per_device_train_batch_size=32,
            num_train_epochs=options.epochs,
            lr_scheduler_type="cosine",
            max_length=1024,
            micro_batch_tokens=4096,
            eval_share=0.0,
            num_probes=0,
            ensemble=options.ensemble,
            logging_steps=50,
        )
        inputs = {
            "base": base,
            "policy": policy,
            "preferences": preference_file(train, folder / "train.jsonl"),
            "held_out": preference_file(test, folder / "test.jsonl"),
        }
        result = run_reward(stage_context(folder / "reward", config, inputs))
    return result.metrics["accuracy"], int(result.metrics["num_pairs"])


def pretrained(train: Sequence[Judged], folder: Path, *, steps: int) -> Checkpoint:
    """Train a small base on the training texts alone."""
    folder.mkdir()
    corpus = folder / "corpus.jsonl"
    texts = dict.fromkeys(f"{p.prompt}\n{text}" for p in train for text in (p.chosen, p.rejected))
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    config = PretrainConfig(
        model=FP32,
        architecture=ARCHITECTURE,
        vocab_size=4096,
        seed=1,
        max_steps=steps,
        per_device_train_batch_size=8,
        learning_rate=2e-3,
        logging_steps=50,
    )
    inputs = {"text": as_checkpoint(corpus, ArtifactKind.TEXT)}
    result = run_pretrain(stage_context(folder / "stage", config, inputs))
    return as_checkpoint(result.outputs["model"], ArtifactKind.FULL_MODEL)


def untrained(base: Checkpoint, folder: Path, tuning: TuningConfig) -> Checkpoint:
    """Write an adapter that changes nothing yet."""
    model = new_adapter(load_base(base, FP32), tuning, name="policy", seed=1)
    save_adapter(model, folder, name="policy", base=base, tokenizer=load_tokenizer(base, FP32))
    return as_checkpoint(folder, ArtifactKind.ADAPTER, producer="sft")


def preference_file(pairs: Sequence[Judged], path: Path) -> Checkpoint:
    """Write pairs as JSON Lines."""
    rows = [{"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in pairs]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return as_checkpoint(path, ArtifactKind.PREFERENCES)


def _root() -> Path:
    beside = Path(__file__).resolve().parents[3] / "shared" / "realdata"
    return Path(os.environ.get("TRIPTYCH_REALDATA", beside))


def _rows(*parts: str) -> list[Mapping[str, Any]]:
    with gzip.open(_root().joinpath(*parts), "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


if __name__ == "__main__":
    main()
