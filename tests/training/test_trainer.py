"""Settings become exactly the run that was asked for; what `auto` became is said."""

from __future__ import annotations

from pathlib import Path

import pytest
from loaded_models import loaded_base

from qdora_fast.config import TrainSettings
from qdora_fast.system.errors import ConfigError
from qdora_fast.training.trainer import check_tracker, choose_precision, describe, make_recipe, sft_arguments


def _recipe(**settings: object):
    train = TrainSettings.model_validate(settings)
    return train, make_recipe(train, rows=100, tokens=5000, max_length=512, precision=choose_precision(train))


def test_on_the_cpu_auto_is_fp32_adamw_without_packing_and_says_so() -> None:
    train, recipe = _recipe(batch_size=2, gradient_accumulation=5, epochs=2)
    assert (recipe.precision, recipe.optimizer, recipe.packing) == ("fp32", "adamw", False)
    assert recipe.steps == 20
    assert any("packing off" in note for note in recipe.notes)
    assert "20 steps of 10 rows, fp32, adamw" in describe(recipe, train, [])[0]


def test_explicit_choices_win_over_auto() -> None:
    assert choose_precision(TrainSettings(precision="bf16")) == "bf16"
    assert _recipe(optimizer="paged_adamw_8bit")[1].optimizer == "paged_adamw_8bit"
    assert _recipe(max_steps=7)[1].steps == 7


def test_a_tracker_that_is_not_installed_is_refused_with_the_command() -> None:
    with pytest.raises(ConfigError, match=r"train.tracker: wandb is not installed.*qdora-fast\[wandb\]"):
        check_tracker(TrainSettings(tracker="wandb"))
    check_tracker(TrainSettings())


def test_early_stopping_saves_where_it_evaluates() -> None:
    _, recipe = _recipe(max_steps=100, eval_steps=10, save_steps=25, early_stopping=2)
    assert recipe.save_steps % recipe.eval_steps == 0
    assert any("save_steps set to" in note for note in recipe.notes)


@pytest.mark.parametrize("evaluates", [True, False])
def test_every_argument_is_one_that_the_trainer_knows(evaluates: bool, tmp_path: Path) -> None:
    from trl import SFTConfig

    train, recipe = _recipe(max_steps=10, early_stopping=2 if evaluates else None)
    arguments = sft_arguments(train, recipe, folder=tmp_path, max_length=512, evaluates=evaluates)
    config = SFTConfig(**arguments)
    assert config.report_to == []
    assert config.seed == 42
    assert config.learning_rate == 2e-4
    assert config.load_best_model_at_end is evaluates
    assert not config.push_to_hub


def test_trained_weights_stay_in_fp32(tiny_config, tmp_path: Path) -> None:
    """TRL casts the adapter of a 4-bit model to bfloat16, where small steps are rounded away; ours must not be."""
    import torch
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from qdora_fast.models.loading import attach
    from qdora_fast.training.trainer import build_trainer

    def trained(model) -> list[torch.nn.Parameter]:
        return [parameter for parameter in model.parameters() if parameter.requires_grad]

    config = tiny_config()
    rows = Dataset.from_dict({"input_ids": [[5, 6, 7]] * 4, "labels": [[5, 6, 7]] * 4})
    recipe = make_recipe(config.train, rows=4, tokens=12, max_length=16, precision="fp32")
    arguments = sft_arguments(config.train, recipe, folder=tmp_path, max_length=16, evaluates=False)

    base = loaded_base(config)
    model = attach(base, config.adapter, config.train)
    before = [parameter.detach().clone() for parameter in trained(model)]
    build_trainer(model, base.tokenizer, (rows, None), config.train, recipe=recipe, arguments=arguments, callbacks=[])
    assert all(
        torch.equal(new, old) and new.dtype == torch.float32 for new, old in zip(trained(model), before, strict=True)
    )

    # Without our care: should TRL stop casting, this fails and the care can go.
    SFTTrainer(model=model, args=SFTConfig(**arguments), train_dataset=rows, processing_class=base.tokenizer)
    assert any(parameter.dtype == torch.bfloat16 for parameter in trained(model))
