"""The held-out loss of training is that of the evaluation: per token, whatever the batches."""

from __future__ import annotations

from pathlib import Path

import pytest
from loaded_models import loaded_base

from qdora_fast.evaluation.heldout import mean_loss, row_losses
from qdora_fast.training.trainer import make_recipe, sft_arguments

ANSWERS = [1, 2, 40, 3, 1, 90, 2]
"""Trained tokens of the held-out rows: the last batch is smaller than the others."""


@pytest.mark.parametrize(("batch_size", "parts"), [(1, 1), (2, 1), (2, 2), (3, 1), (7, 4)])
def test_it_is_the_mean_over_the_same_tokens(tiny_config, tmp_path: Path, batch_size: int, parts: int) -> None:
    from datasets import Dataset

    from qdora_fast.models.loading import attach
    from qdora_fast.training.trainer import build_trainer

    config = tiny_config(train={"batch_size": batch_size, "gradient_accumulation": 1})
    rows = [
        {"input_ids": [(3 + 7 * row + 5 * at) % 250 for at in range(4 + answer)], "labels": [-100] * (4 + answer)}
        for row, answer in enumerate(ANSWERS)
    ]
    for row, answer in zip(rows, ANSWERS, strict=True):
        row["labels"][-answer:] = row["input_ids"][-answer:]
    base = loaded_base(config)
    model = attach(base, config.adapter, config.train)
    recipe = make_recipe(config.train, rows=len(rows), tokens=200, max_length=128, precision="fp32")
    trainer = build_trainer(
        model,
        base.tokenizer,
        (Dataset.from_list(rows), Dataset.from_list(rows)),
        config.train,
        recipe=recipe,
        arguments=sft_arguments(config.train, recipe, folder=tmp_path, max_length=128, evaluates=True),
        callbacks=[],
    )
    trainer.eval_parts = parts
    found = trainer.evaluate()["eval_loss"]
    losses = row_losses(model.eval(), rows)
    assert [loss.tokens for loss in losses] == ANSWERS
    assert found == pytest.approx(mean_loss(losses), rel=1e-5)
    of_rows = sum(loss.mean for loss in losses) / len(losses)
    assert abs(of_rows - mean_loss(losses)) > 0.01, "the rows would not tell a mean of means apart"
