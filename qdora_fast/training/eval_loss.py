"""The held-out loss while training, as `evaluate` has it: the mean over all trained tokens.

The Trainer repeats the mean loss of each batch once a row and takes the mean of that. Rows with short answers then
count as much as rows with long ones, token for token more, and the figure depends on the batch size. Here each batch
counts by its tokens.

With several processes a row may be read twice to fill up the last batch; it then counts twice, as in the Trainer.
"""

from __future__ import annotations

from typing import Any

from qdora_fast.system import distributed
from qdora_fast.training.microbatch import trained_tokens


class TokenWeightedEvaluation:
    """Put before SFTTrainer, and before what cuts batches into parts."""

    _weighted: list[tuple[Any, Any]]
    """Of each batch of the evaluation: its loss times its tokens, and its tokens."""

    def evaluation_loop(self: Any, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """The Trainer's, with the loss per token."""
        import torch

        self._weighted = []
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)  # type: ignore[misc]
        key = f"{metric_key_prefix}_loss"
        if key in output.metrics and self._weighted:
            nats, tokens = (torch.stack(column).double().sum() for column in zip(*self._weighted, strict=True))
            shares = distributed.all_gather(float(nats))  # each process knows the losses of its own rows
            output.metrics[key] = sum(shares) / len(shares) / max(1, int(tokens))
        return output

    def prediction_step(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's; the batch's loss and tokens are remembered."""
        loss, logits, labels = super().prediction_step(model, inputs, *args, **kwargs)  # type: ignore[misc]
        if loss is not None:
            # The loss of each process is its sum, divided by the tokens of all and multiplied by their number.
            tokens = self.accelerator.reduce(trained_tokens(inputs).to(loss.device), reduction="sum")
            self._weighted.append((loss * tokens if tokens else loss.new_zeros(()), tokens))
        return loss, logits, labels
