"""What a training remembers besides its weights, as safetensors and JSON: no pickle is written or read.

The Trainer keeps optimizer, scheduler and random generators in `.pt` files, pickles all of them.
Here any nest of dictionaries, lists, tuples, numbers, strings and tensors becomes two files: the
tensors go into one, and the nest into the other, with a name where each tensor was. Read back, it
is the same to the bit and of the same types, integers as keys and tuples included; so an optimizer
takes it as if it had never been written.

What this does not do: know what is in there, or whether the files are complete (`manifest.py`).
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qdora_fast.system.json_files import read_object

NEST, TENSORS = "training_state.json", "training_state.safetensors"
_KINDS = ("$tensor", "$tuple", "$pairs")


def write_state(folder: Path, content: Any) -> None:
    """Write a nest of plain values and tensors below `folder`.

    Raises:
        TypeError: something that is neither; names its path in the state.
    """
    from safetensors.torch import save_file

    tensors: dict[str, Any] = {}
    nest = _packed(content, "", tensors)
    save_file(tensors, str(folder / TENSORS))
    (folder / NEST).write_text(json.dumps(nest) + "\n", encoding="utf-8")


def read_state(folder: Path) -> Any:
    """What `write_state` wrote; tensors are on the CPU.

    Raises:
        IntegrityError: the JSON file is damaged.
    """
    from safetensors.torch import load_file

    return _unpacked(read_object(folder / NEST), load_file(str(folder / TENSORS)))


def random_state() -> dict[str, Any]:
    """The state of every random generator of this process: Python's, NumPy's, PyTorch's on CPU and GPU."""
    import numpy
    import torch

    name, keys, *rest = numpy.random.get_state(legacy=True)
    state = {
        "python": random.getstate(),
        "numpy": (name, numpy.asarray(keys).tolist(), *rest),
        "torch": torch.get_rng_state(),
    }
    return state | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put every random generator back to where `random_state` found it."""
    import numpy
    import torch

    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    numpy.random.set_state((name, numpy.array(keys, dtype=numpy.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def optimizer_state(optimizer: Any, names: Mapping[int, str]) -> dict[str, Any]:
    """An optimizer's state, with the names of the parameters it is of.

    Args:
        names: `id(parameter)` -> name.
    """
    parameters = [[names[id(each)] for each in group["params"]] for group in optimizer.param_groups]
    return {"parameters": parameters, "state": optimizer.state_dict()}


def load_optimizer_state(optimizer: Any, saved: Mapping[str, Any], names: Mapping[int, str]) -> None:
    """Give an optimizer the state of an earlier one over the same parameters.

    Raises:
        ValueError: it was of other parameters.
    """
    here = [[names[id(each)] for each in group["params"]] for group in optimizer.param_groups]
    if here != saved["parameters"]:
        raise ValueError("the optimizer's state is of other parameters than this model trains")
    optimizer.load_state_dict(saved["state"])
    if getattr(optimizer, "is_paged", False):
        _page_again(optimizer)


def _page_again(optimizer: Any) -> None:
    """Move state back into pages: bitsandbytes loads it into ordinary GPU memory, where a run that fitted may not fit
    any more. Nothing happens on the CPU, which has no pages. Not tried on a GPU yet."""
    for parameter, state in optimizer.state.items():
        for key in ("state1", "state2"):
            if key in state and parameter.is_cuda:
                state[key] = optimizer.get_state_buffer(parameter, dtype=state[key].dtype).copy_(state[key])


def _packed(value: Any, path: str, tensors: dict[str, Any]) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        tensors[path] = value.detach().cpu().contiguous().clone()  # two tensors may share memory; a file may not
        return {"$tensor": path}
    if isinstance(value, Mapping):
        pairs = [[key, _packed(each, f"{path}.{key}", tensors)] for key, each in value.items()]
        plain = all(isinstance(key, str) and key not in _KINDS for key in value)
        return dict(pairs) if plain else {"$pairs": pairs}
    if isinstance(value, list | tuple):
        items = [_packed(each, f"{path}.{number}", tensors) for number, each in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{path}: a {type(value).__name__} cannot be saved without a pickle")


def _unpacked(value: Any, tensors: Mapping[str, Any]) -> Any:
    if isinstance(value, list):
        return [_unpacked(each, tensors) for each in value]
    if not isinstance(value, dict):
        return value
    if "$tensor" in value:
        return tensors[value["$tensor"]]
    if "$tuple" in value:
        return tuple(_unpacked(each, tensors) for each in value["$tuple"])
    if "$pairs" in value:
        return {key: _unpacked(each, tensors) for key, each in value["$pairs"]}
    return {key: _unpacked(each, tensors) for key, each in value.items()}
