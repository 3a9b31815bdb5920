"""What is said of the evaluation's time before training starts; what is measured and counted is `planning`'s."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from qdora_fast.config import Config
from qdora_fast.planning.evaluation_time import HALF, Spent
from qdora_fast.planning.history import earlier_evaluation, earlier_speed
from qdora_fast.recipes.data import Ready
from qdora_fast.recipes.plan import shape_of_config, shape_of_run
from qdora_fast.system import console
from qdora_fast.system.run_folder import RunFolder
from qdora_fast.training.trainer import Recipe


def evaluation_lines(config: Config, folder: RunFolder, ready: Ready, recipe: Recipe) -> list[str]:
    """The time of the comparison at the end, and a word where held-out losses take most of the training."""
    held_out = len(ready.prepared.held_out)
    if not held_out:
        return []
    asked = min(held_out, config.evaluation.max_rows)
    return ([_at_the_end(config, folder, recipe, asked)] if asked else []) + list(
        _while_training(config, ready, recipe)
    )


def _at_the_end(config: Config, folder: RunFolder, recipe: Recipe, rows: int) -> str:
    name = config.run.name or folder.first_name
    where = Path(config.run.dir), name, shape_of_config(config), shape_of_run
    measured = earlier_evaluation(*where, config.evaluation.model_dump(mode="json"))
    what = f"base and tuned model on {rows:,} held-out rows after the last step"
    if measured is None:
        return f"{what}; how long that takes is not measured yet"
    seconds = measured.seconds_per_row * rows
    speed = earlier_speed(*where)
    share = seconds / (seconds + speed.seconds_per_step[1] * recipe.steps) if speed and seconds else None
    of_run = "" if share is None else f", {share:.0%} of the run"
    fewer = "; a smaller evaluation.max_rows takes less" if share is not None and share > HALF else ""
    return f"{what}, about {console.clock(seconds)}{of_run} (by {measured.run}){fewer}"


def _while_training(config: Config, ready: Ready, recipe: Recipe) -> Iterator[str]:
    prepared = ready.prepared
    held_out_tokens = float(prepared.columns.tokens[prepared.held].sum())
    rows = max(1, prepared.report.per_epoch)
    row_tokens = config.model.length if recipe.packing else prepared.train_tokens / rows
    spent = Spent(recipe.steps, config.train.rows_per_step * row_tokens, held_out_tokens)
    share = spent.loss_share(recipe.eval_steps)
    if share <= HALF:
        return
    times = math.ceil(recipe.steps / recipe.eval_steps)
    often = f"{times:,} times" if times > 1 else "once"
    said = f"the held-out loss is taken {often} of {len(prepared.held_out):,} rows: about {share:.0%} of the training"
    every = spent.advised_steps()
    if every is not None and every > recipe.eval_steps:
        yield f"{said}; train.eval_steps: {every} takes it less often"
    else:
        yield f"{said}; a smaller data.held_out takes less"
