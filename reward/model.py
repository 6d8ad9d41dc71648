"""The score head: one number from the last hidden state of a response, always in float32."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

NAME = "score"
"Name of the head's module in AutoModelForSequenceClassification."


class ScoreHead(nn.Module):
    """A linear map from hidden states to a score.

    Args:
        hidden_size: width of the backbone.
        bias: whether the score has an offset; a reward model has none, a value function may.
    """

    def __init__(self, hidden_size: int, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, hidden_size))
        self.bias = nn.Parameter(torch.zeros(1)) if bias else None

    @classmethod
    def seeded(cls, hidden_size: int, *, seed: int) -> ScoreHead:
        """Make a head with weights of standard deviation 1 / sqrt(hidden_size + 1), by seed.

        Source: Huang et al. 2024, The N+ implementation details of RLHF with PPO,
            https://arxiv.org/abs/2403.17031, detail 11.
        """
        head = cls(hidden_size)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            head.weight.normal_(std=(hidden_size + 1) ** -0.5, generator=generator)
        return head

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> ScoreHead:
        """Rebuild a head from what `tensors` gave.

        Raises:
            ValueError: there is no weight of shape (1, hidden).
        """
        weight, bias = tensors.get("weight"), tensors.get("bias")
        if weight is None or weight.ndim != 2 or weight.shape[0] != 1:
            raise ValueError(f"a score head needs a weight (1, hidden), got {sorted(tensors)}")
        head = cls(weight.shape[1], bias=bias is not None)
        head.load_state_dict({key: value.float() for key, value in tensors.items()})
        return head

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights as they are stored."""
        return {key: value.detach().clone() for key, value in self.state_dict().items()}

    def forward(self, hidden: Tensor) -> Tensor:
        """Return scores (...,) in float32 of hidden states (..., hidden)."""
        with torch.autocast(hidden.device.type, enabled=False):
            scores = hidden.float() @ self.weight[0]
            return scores if self.bias is None else scores + self.bias
