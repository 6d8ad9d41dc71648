"""Log-probabilities through an output head that is itself trained, a chunk of rows at a time.

A frozen head needs one row of gradients a token (stages.ops.logprobs). A trained one needs the logits
again in the backward pass: they are recomputed chunk by chunk, so no (tokens, vocabulary) tensor lives.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from stages.ops.logprobs import CPU_CHUNK_ELEMENTS, GPU_CHUNK_ELEMENTS
from stages.runtime.output_head import OutputHead


@dataclass(frozen=True, slots=True)
class TrainedHead:
    """The head of a whole model, with gradients to its weight and bias; reads like OutputHead."""

    head: OutputHead

    @property
    def weight(self) -> Tensor:
        """(vocabulary, hidden)"""
        return self.head.weight

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
        elements = GPU_CHUNK_ELEMENTS if hidden.is_cuda else CPU_CHUNK_ELEMENTS
        rows = max(16, elements // self.weight.shape[0])
        found = []
        for start in range(0, hidden.shape[0], rows):
            part = slice(start, start + rows)
            chosen, entropy, hit = checkpoint(
                self._chunk, hidden[part], targets[part], temperature, use_reentrant=False
            )
            if hits is not None:
                hits[part] = hit
            found.append((chosen, entropy))
        if not found:
            empty = hidden.sum(-1).float()
            return empty, (empty.detach() if with_entropy else None)
        logprobs = torch.cat([chosen for chosen, _ in found])
        return logprobs, (torch.cat([entropy for _, entropy in found]) if with_entropy else None)

    def _chunk(self, hidden: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
        head = self.head
        logits = functional.linear(hidden.to(self.weight.dtype), self.weight, head.bias).float()
        if head.softcap is not None:
            logits = head.softcap * torch.tanh(logits / head.softcap)
        shares = (logits * (head.scale / temperature)).log_softmax(-1)
        with torch.no_grad():
            entropy = -(shares.exp() * shares).sum(-1)
            hit = shares.argmax(-1) == targets
        return shares.gather(1, targets[:, None]).squeeze(1), entropy, hit


Head = OutputHead | TrainedHead
"What gives log-probabilities: frozen under adapters, trained in a whole model."
