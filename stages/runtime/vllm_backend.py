"""vLLM as the sampler of rollouts: its own copy of the base, and the policy's adapter swapped in each time.

vLLM is an optional extra and is imported only here, when it is asked for. On a GPU its weights sleep
while the trainer works (level 1: to the CPU; level 2 would drop the base that the adapter needs).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import ModelError, StageFailed
from stages.runtime.backends import as_rollout, drawn_seed
from stages.runtime.generation import Rollout

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"Ranks that vLLM can be opened for."


class VllmBackend:
    """Samples with vLLM in this process.

    Args:
        base: folder or Hub id of the base model.
        write_adapter: writes the policy's adapter into a new folder.
        scratch: where these folders go; each is removed once it was used.
        rank: of the adapter.
        dtype: of vLLM's copy, as torch names it.
        max_length: tokens of prompt and response together.
        batch_size: most responses decoded at once.
        memory_share: share of the GPU's memory for vLLM's copy and cache.

    Raises:
        ModelError: vLLM is not installed, or cannot open the base.
    """

    def __init__(
        self,
        base: str,
        *,
        write_adapter: Callable[[Path], Path],
        scratch: Path,
        rank: int,
        dtype: str,
        max_length: int,
        batch_size: int,
        memory_share: float,
    ) -> None:
        # One process: a second one would hold the trainer's memory a second time after a fork.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        try:
            import vllm
            from vllm.lora.request import LoRARequest
        except ImportError as error:
            raise ModelError(
                "generation_backend is vllm, and vLLM cannot be imported",
                hint="pip install 'triptych-rlhf[vllm]', or generation_backend: sampler",
                code="no-vllm",
            ) from error
        self._sampling, self._request = vllm.SamplingParams, LoRARequest
        self._sleeps = torch.cuda.is_available()
        self._write, self._scratch, self._calls = write_adapter, scratch, 0
        options: dict[str, Any] = {"gpu_memory_utilization": memory_share} if self._sleeps else {}
        try:
            self._engine = vllm.LLM(
                model=base,
                dtype=dtype,
                enable_lora=True,
                max_loras=1,
                max_lora_rank=next((known for known in RANKS if known >= rank), rank),
                max_model_len=max_length,
                max_num_seqs=batch_size,
                logprobs_mode="processed_logprobs",
                enable_prefix_caching=False,
                enable_sleep_mode=self._sleeps,
                enforce_eager=not self._sleeps,
                **options,
            )
        except (ValueError, RuntimeError, OSError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise ModelError(
                f"vLLM cannot open the base {base}: {first}",
                hint="generation_backend: sampler, or a smaller vllm_memory_share",
                code="no-vllm",
            ) from error
        if self._sleeps:
            self._engine.sleep(level=1)

    def sample(
        self,
        prompt_ids: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        stop_token_ids: Sequence[int],
        temperature: float,
        generator: torch.Generator,
    ) -> Rollout:
        """Write the adapter as it is now, and sample with it.

        Raises:
            StageFailed: some prompts got no response.
        """
        self._calls += 1
        seed = drawn_seed(generator)
        adapter = self._write(self._scratch / f"vllm-adapter-{self._calls}")
        if self._sleeps:
            self._engine.wake_up()
        # A new number each time: vLLM keeps an adapter by its number and would not read it again.
        answers = self._engine.generate(
            [{"prompt_token_ids": list(prompt)} for prompt in prompt_ids],
            [
                self._sampling(
                    temperature=temperature,
                    max_tokens=max_new_tokens,
                    stop_token_ids=list(stop_token_ids),
                    ignore_eos=True,
                    logprobs=0,
                    seed=seed + row,
                    detokenize=False,
                )
                for row in range(len(prompt_ids))
            ],
            lora_request=self._request(f"policy-{self._calls}", self._calls, str(adapter)),
            use_tqdm=False,
        )
        if self._sleeps:
            self._engine.sleep(level=1)
        shutil.rmtree(adapter)
        if len(answers) != len(prompt_ids):
            raise StageFailed(
                f"vLLM answered {len(answers)} of {len(prompt_ids)} prompts",
                hint="generation_backend: sampler",
                code="generation-failed",
            )
        outputs = [answer.outputs[0] for answer in answers]
        return as_rollout(
            [list(output.token_ids) for output in outputs],
            [_logprobs(output) for output in outputs],
            stop_token_ids=stop_token_ids,
        )


def _logprobs(output: Any) -> list[float]:
    """Return the log-prob of each token that was drawn, at the sampling temperature."""
    return [step[token].logprob for token, step in zip(output.token_ids, output.logprobs, strict=True)]
