"""PPO with real vLLM as its sampler, on a tiny Llama; run by an interpreter that has vLLM and peft.

    PYTHONPATH=. <python with vllm> -m tests.vllm_exercise

Three iterations with large steps. vLLM's log-probs must follow the policy as it changes: after each
swap they agree with the training path, and differ from those of the policy before. Exits 1 otherwise.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

from stages.ppo import SPEC
from tests.ppo_setup import chain, config
from tests.tiny import stage_context

CLOSE = 1e-3
"Largest difference a token, nats, of two implementations in float32."


def main() -> int:
    """Train and print the mismatch of every iteration."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        # vLLM's attention wants heads of at least 32.
        inputs = chain(
            root / "chain", hidden_size=64, head_dim=32, num_attention_heads=2, num_key_value_heads=2
        )
        settings = config(
            total_iterations=3, learning_rate=2e-2, generation_backend="vllm", temperature=0.7, max_length=96
        )
        ctx = stage_context(root, settings, inputs)
        SPEC.run(ctx)
    worst = [line["ppo/logprob_mismatch_max"] for line in ctx.logger.lines]  # type: ignore[attr-defined]
    moved = [line["objective/kl"] for line in ctx.logger.lines]  # type: ignore[attr-defined]
    sys.stdout.write(f"largest log-prob mismatch an iteration: {worst}\nKL of a response: {moved}\n")
    return 0 if max(worst) < CLOSE and moved[-1] > 0.05 else 1


if __name__ == "__main__":
    sys.exit(main())
