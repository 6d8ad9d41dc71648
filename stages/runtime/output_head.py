"""What a causal model does between its last hidden states and its logits, read once, proven once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.errors import ModelError
from stages.ops.logprobs import linear_logprobs
from stages.runtime.modes import evaluating

FLOAT32_TOLERANCE = 1e-4
"Largest difference from the model's own logits, relative to the largest of them."
HALF_TOLERANCE = 0.05
"The same in half precision, where each rounds on its own."


@dataclass(frozen=True, slots=True)
class OutputHead:
    """logits = scale * softcap * tanh((hidden @ weight.T + bias) / softcap); frozen."""

    weight: Tensor
    "(vocabulary, hidden)"
    bias: Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0

    @classmethod
    def of(cls, causal_lm: nn.Module, *, backbone: nn.Module) -> OutputHead:
        """Read the head of a model, plain or wrapped by peft, and compare it with the model's own logits.

        Raises:
            ModelError: the model computes its logits in a way that is not known here.
        """
        inner = causal_lm.get_base_model() if hasattr(causal_lm, "get_base_model") else causal_lm
        module = inner.get_output_embeddings()
        config = inner.config.get_text_config()
        scale = float(getattr(inner, "logit_scale", 1.0)) / float(getattr(config, "logits_scaling", 1.0))
        softcap = getattr(config, "final_logit_softcapping", None)
        head = cls(module.weight, getattr(module, "bias", None), softcap, scale)
        head._prove(inner, backbone)
        return head

    def logprobs(
        self,
        hidden: Tensor,
        targets: Tensor,
        *,
        temperature: float,
        with_entropy: bool = False,
        hits: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return log-probs and entropies of tokens; see stages.ops.logprobs.linear_logprobs."""
        return linear_logprobs(
            hidden,
            self.weight,
            targets,
            temperature=temperature / self.scale,
            with_entropy=with_entropy,
            bias=self.bias,
            softcap=self.softcap,
            hits=hits,
        )

    def _prove(self, causal_lm: nn.Module, backbone: nn.Module) -> None:
        rows = min(self.weight.shape[0], 500)
        ids = torch.arange(12, device=self.weight.device)[None] * 37 % rows
        with torch.no_grad(), evaluating(causal_lm):
            logits = causal_lm(input_ids=ids, use_cache=False).logits[0].float()
            hidden = backbone(input_ids=ids, use_cache=False).last_hidden_state[0]
            targets = logits.argmax(-1)
            mine, _ = self.logprobs(hidden, targets, temperature=1.0)
        expected = logits.log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
        apart = float((mine - expected).abs().max())
        limit = FLOAT32_TOLERANCE if hidden.dtype == torch.float32 else HALF_TOLERANCE
        if not apart <= limit * max(1.0, float(logits.abs().max())):
            raise ModelError(
                f"{type(causal_lm).__name__} makes its logits in a way that is not known here "
                f"(log-probs differ by {apart:.1e})",
                where="model.base",
                hint="a model of another family",
                code="unknown-output-head",
            )
