"""The loss of a language model on labelled tokens: the one formula of evaluation, export proof and row quality.

A token counts where its label is not IGNORED, and it is predicted from the position before it, so the first one of a
row never counts. Losses are made in fp32 from whatever logits a model gives, and added up in fp64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qdora_fast.data.tokenize.masking import IGNORED


def labelled(labels: Sequence[int]) -> tuple[Any, Any]:
    """Positions of a row from which a counted token is predicted, ascending, and these tokens; both int64 [n]."""
    import torch

    following = torch.tensor(list(labels)[1:], dtype=torch.int64)  # [T - 1]: what each position says next
    positions = (following != IGNORED).nonzero()[:, 0]
    return positions, following[positions]


def token_losses(logits: Any, labels: Any) -> Any:
    """Cross-entropy of each token, in nats: float64 [n], where the logits are.

    Args:
        logits: [n, V], of any floating type.
        labels: [n] int64.
    """
    from torch.nn.functional import cross_entropy

    return cross_entropy(logits.float(), labels.to(logits.device), reduction="none").double()
