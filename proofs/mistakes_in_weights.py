"""Mistakes that make other weights: see `controls.py` for when each is made."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from proofs.damage import one_ulp, stored_tensors
from qdora_fast.config.recorded import read_config
from qdora_fast.models.run_info import read_run_info

BLOCK = 16
"""Side of the block that is transposed; of bytes, where a weight is in NF4."""


def drop_magnitudes(case: Any, model: Any) -> None:
    """A DoRA adapter is taken for LoRA."""
    modules = model.update.modules
    modules |= {name: replace(module, magnitude=None) for name, module in modules.items()}


def leave_one_unmerged(case: Any, model: Any) -> None:
    """One layer stays the base's."""
    del model.update.modules[case.random.choice(sorted(model.update.modules))]


def swap_updates(case: Any, model: Any) -> None:
    """Two layers of equal shape get each other's update."""
    modules = model.update.modules
    one, two = _two_alike(
        {name: (*module.lora_b.shape, *module.lora_a.shape) for name, module in modules.items()}, case
    )
    modules[one], modules[two] = modules[two], modules[one]


def double_alpha(case: Any, model: Any) -> None:
    """The update is twice as large."""
    modules = model.update.modules
    modules |= {name: replace(module, scaling=2 * module.scaling) for name, module in modules.items()}


def mistake_rslora(case: Any, model: Any) -> None:
    """alpha / r where alpha / sqrt(r) was trained, or the other way."""
    forgotten = bool(model.update.config.get("use_rslora"))
    for name, module in model.update.modules.items():
        root = math.sqrt(module.lora_a.shape[0])
        scaling = module.scaling / root if forgotten else module.scaling * root
        model.update.modules[name] = replace(module, scaling=scaling)


def noisy_base(share: float, *, adapted: bool = True) -> Callable[[Any], None]:
    """The run names another base: its own with noise, `share` of each tensor's standard deviation.

    Args:
        adapted: False: only in tensors that no adapter is on.
    """

    def make(case: Any) -> None:
        import torch

        from qdora_fast.config.loader import dump_config

        other = Path(shutil.copytree(case.base, case.scratch / "another-base"))
        generator = torch.Generator().manual_seed(case.random.randrange(2**31))
        layers = {f"{layer}.weight" for layer in read_run_info(case.run).targets}
        for name, stored in stored_tensors(other).items():
            if name in layers and not adapted:
                continue
            tensor = stored.read()
            exact = tensor.float()
            noise = torch.randn(tensor.shape, generator=generator)
            spread = exact.std() if exact.numel() > 1 else exact.abs().mean()
            stored.write(exact.add_(noise, alpha=share * float(spread)).to(tensor.dtype))
        config = read_config(case.run)
        named = config.model_copy(update={"model": config.model.model_copy(update={"base_16bit": str(other)})})
        case.run.config_file.write_text(dump_config(named), encoding="utf-8")

    return make


def earlier_adapter(case: Any) -> None:
    """The run's adapter is that of an earlier step."""
    shutil.rmtree(case.run.adapter)
    shutil.copytree(case.earlier, case.run.adapter)


def swap_weights(case: Any, folder: Path, model: Any) -> None:
    """Two merged layers of equal shape lie under each other's name."""
    stored = stored_tensors(folder)
    layers = [f"{layer}.weight" for layer in sorted(model.update.modules)]
    one, two = _two_alike({name: stored[name].shape + tuple(model.weights.infos[name].shape) for name in layers}, case)
    for name in stored:
        if name == one or name.startswith(f"{one}."):
            mine, theirs = stored[name], stored[two + name.removeprefix(one)]
            if mine.shape == theirs.shape:
                first, second = mine.read(), theirs.read()
                mine.write(second)
                theirs.write(first)


def transpose_block(case: Any, folder: Path, model: Any) -> None:
    """A square block of a merged layer is transposed."""
    name, stored = _some_layer(case, folder, model)
    rows = model.weights.infos[name].shape[0]
    values = stored.read()
    matrix = values.reshape(rows, -1)
    down, right = (case.random.randrange(size - BLOCK + 1) for size in matrix.shape)
    block = matrix[down : down + BLOCK, right : right + BLOCK]
    block.copy_(block.T.clone())
    stored.write(values)


def stale_shard(case: Any, folder: Path, model: Any) -> None:
    """One shard is that of an earlier merge: with the adapter of an earlier step, or with none."""
    from qdora_fast.exports.merge.merge import WORKERS
    from qdora_fast.exports.merge.merged_model import MergedModel
    from qdora_fast.exports.merge.shards import write_shards

    earlier = MergedModel(model.weights.folder, case.earlier or model.update.folder, model.weights.recipe)
    if case.earlier is None:
        earlier.update.modules.clear()
    adapted = {f"{layer}.weight" for layer in model.update.modules}
    holding = [shard for shard, infos in model.shards.items() if adapted & {info.name for info in infos}]
    name = case.random.choice(holding)
    write_shards(
        case.scratch / "earlier", {name: earlier.shards[name]}, earlier.stored, work="earlier", workers=WORKERS
    )
    shutil.copyfile(case.scratch / "earlier" / name, folder / name)


def touch_untouched(case: Any, folder: Path, model: Any) -> None:
    """One value of a tensor that has no adapter is one step off."""
    adapted = {f"{layer}.weight" for layer in model.update.modules}
    floating = {name: each for name, each in stored_tensors(folder).items() if each.dtype in ("bfloat16", "float16")}
    chosen = floating[case.random.choice(sorted(floating.keys() - adapted))]
    one_ulp(chosen, case.random.randrange(math.prod(chosen.shape)))


def one_ulp_off(case: Any, folder: Path, model: Any) -> None:
    """One value of one merged layer is one step off."""
    _, stored = _some_layer(case, folder, model)
    one_ulp(stored, case.random.randrange(math.prod(stored.shape)))


def change_scale(case: Any, folder: Path, model: Any) -> None:
    """One block's scale in an NF4 weight is another one."""
    name, _ = _some_layer(case, folder, model)
    _change_byte(stored_tensors(folder)[f"{name}.absmax"], case, 1)


def change_code(case: Any, folder: Path, model: Any) -> None:
    """One code of an NF4 weight is another one."""
    _change_byte(_some_layer(case, folder, model)[1], case, 1)


def _change_byte(stored: Any, case: Any, bits: int) -> None:
    values = stored.read()
    values.view(-1)[case.random.randrange(values.numel())] ^= bits
    stored.write(values)


def _some_layer(case: Any, folder: Path, model: Any) -> tuple[str, Any]:
    """A merged layer's weight: its name, and where it lies."""
    name = f"{case.random.choice(sorted(model.update.modules))}.weight"
    return name, stored_tensors(folder)[name]


def _two_alike(kinds: dict[str, Any], case: Any) -> tuple[str, str]:
    """Two names of the same kind."""
    one = case.random.choice([name for name in kinds if list(kinds.values()).count(kinds[name]) > 1])
    two = case.random.choice([name for name in kinds if kinds[name] == kinds[one] and name != one])
    return one, two
