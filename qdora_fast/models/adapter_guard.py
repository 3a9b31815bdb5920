"""What makes an adapter complete, and a live model that refuses to be saved as less.

A DoRA layer is three tensors: A, B and the magnitude m. Several well-meant save paths write A and
B alone: Unsloth's `save_lora` for vLLM, `save_method="lora"`, GGML conversions, or PEFT's own
`save_pretrained` with a filtered `state_dict`. The result still says `use_dora: true`, loads with
one warning and behaves as plain LoRA; after a light run no sample looks wrong. So completeness is
checked by structure before every save and after every read, and the lossy paths are closed on the
model itself: bound to the instance, nothing patched for anybody else.
The checks raise; they are no asserts, so `python -O` keeps them.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any

from qdora_fast.system.errors import IntegrityError, RefusedError

if TYPE_CHECKING:
    from torch import Tensor

_ALWAYS_LORA = ("save_lora", "save_pretrained_ggml", "push_to_hub_ggml")
_LORA_ON_REQUEST = ("save_pretrained_merged", "push_to_hub_merged", "save_pretrained_gguf", "push_to_hub_gguf")
_MAGNITUDE = ".lora_magnitude_vector"
_ORIGINALS = "_saves_before_guard"
_CHOICES = "use `merged_16bit` to deploy it, or `adapter` to train it further"


def adapted_modules(model: Any) -> Iterator[str]:
    """Full names, in the base's own naming, of the layers of a PEFT model that carry an adapter."""
    for name, module in model.named_modules():
        if getattr(module, "lora_A", None):
            yield name.removeprefix("base_model.model.")


def guard_saves(model: Any) -> tuple[str, ...]:
    """Make a DoRA model refuse every save that would lose its magnitudes; leave plain LoRA alone.

    Covers what the model has of: Unsloth's `save_lora`, its GGML saves, its merged and GGUF saves when
    asked for `lora`, and PEFT's `save_pretrained` (and so `push_to_hub`) when magnitudes are missing
    from the model or from the `state_dict` it is given. Guarding twice is the same as once.

    Returns:
        The names of the guarded methods; empty for plain LoRA.
    """
    if not _dora_adapters(model):
        return ()
    originals: dict[str, Any] = model.__dict__.setdefault(_ORIGINALS, {})
    wrappers = {"save_pretrained": _checked_save}
    wrappers |= dict.fromkeys(_ALWAYS_LORA, _refused_save) | dict.fromkeys(_LORA_ON_REQUEST, _merged_save)
    present = dir(model)  # which of these exist depends on Unsloth's backend
    for name, wrapper in wrappers.items():
        if name in present and name not in originals:
            originals[name] = model.__dict__.get(name)
            setattr(model, name, MethodType(wrapper(name), model))
    return tuple(originals)


def complete_in_memory(model: Any) -> None:
    """Check every adapted layer of a live PEFT model: all its tensors, their shapes, finite, magnitudes positive.

    Raises:
        IntegrityError: names the first broken tensors. Do not save such a model over a good adapter.
    """
    problems: list[str] = []
    layers = list(_lora_layers(model))
    for name, layer in layers:
        for adapter in layer.lora_A:
            magnitude = layer.lora_magnitude_vector[adapter].weight if adapter in layer.lora_magnitude_vector else None
            problems += module_problems(
                name.removeprefix("base_model.model."),
                layer.lora_A[adapter].weight,
                layer.lora_B[adapter].weight if adapter in layer.lora_B else None,
                magnitude,
                decomposed=bool(model.peft_config[adapter].use_dora),
            )
    if not layers:
        problems.append("no layer carries an adapter")
    raise_broken("the model in memory", problems, fix="stop, and resume from the last good checkpoint")


def module_problems(
    name: str,
    lora_a: Tensor | None,
    lora_b: Tensor | None,
    magnitude: Tensor | None,
    *,
    decomposed: bool,
) -> list[str]:
    """What is wrong with one layer's tensors; [] where nothing is.

    Args:
        name: the layer, for the message.
        lora_a, lora_b, magnitude: A [r, in], B [out, r], m [out]; None where missing.
        decomposed: True for DoRA, which needs m; False for plain LoRA, which must not have one.
    """
    wanted = {"lora_A": lora_a, "lora_B": lora_b} | ({"lora_magnitude_vector": magnitude} if decomposed else {})
    problems = [f"{name}.{part}: missing" for part, tensor in wanted.items() if tensor is None]
    if magnitude is not None and not decomposed:
        problems.append(f"{name}.lora_magnitude_vector: a magnitude, but the adapter says use_dora: false")
    if problems or lora_a is None or lora_b is None:
        return problems
    rank = lora_a.shape[0]
    if lora_a.dim() != 2 or lora_b.dim() != 2 or rank == 0 or lora_b.shape[1] != rank:
        return [f"{name}: A {tuple(lora_a.shape)} and B {tuple(lora_b.shape)} do not make a product B·A"]
    if decomposed and magnitude is not None and magnitude.shape != (lora_b.shape[0],):
        return [f"{name}.lora_magnitude_vector: shape {tuple(magnitude.shape)}, expected ({lora_b.shape[0]},)"]
    for part, tensor in wanted.items():
        if tensor is not None and not bool(tensor.isfinite().all()):
            problems.append(f"{name}.{part}: NaN or infinity")
    if decomposed and magnitude is not None and not problems:
        wrong = int((magnitude <= 0).sum())
        if wrong:
            problems.append(
                f"{name}.lora_magnitude_vector: {wrong} of {len(magnitude)} values are not positive "
                "(a magnitude is the length of a weight row; 0 comes from a damaged file or an all-zero base row)"
            )
    return problems


def raise_broken(where: str, problems: list[str], *, fix: str) -> None:
    """Raise IntegrityError with the first few problems; do nothing when there are none."""
    if problems:
        listed = "\n  ".join(problems[:5])
        more = f"\n  ... and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise IntegrityError(f"{where} is not a complete adapter; {fix}:\n  {listed}{more}")


def _dora_adapters(model: Any) -> list[str]:
    """Names of the model's adapters that are DoRA."""
    return [name for name, config in model.peft_config.items() if config.use_dora]


def _original(model: Any, name: str) -> Any:
    """The method as it was before the guard: the instance's own, else its class's."""
    original = model.__dict__[_ORIGINALS][name]
    return original if original is not None else MethodType(getattr(type(model), name), model)


def _checked_save(name: str) -> Any:
    """A `save_pretrained` that first looks for every magnitude."""

    def save_pretrained(self: Any, *args: Any, **kwargs: Any) -> Any:
        state = kwargs.get("state_dict")
        _refuse_lossy_state(self, state if state is not None else [key for key, _ in self.named_parameters()])
        complete_in_memory(self)
        return _original(self, name)(*args, **kwargs)

    return save_pretrained


def _refused_save(name: str) -> Any:
    """A method that cannot keep magnitudes, whatever it is given."""

    def refused(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise RefusedError(f"{name} writes A and B without the magnitudes of this DoRA adapter; {_CHOICES}")

    return refused


def _merged_save(name: str) -> Any:
    """A method that merges, unless it is asked for `lora`."""

    def merged_save(self: Any, *args: Any, **kwargs: Any) -> Any:
        original = _original(self, name)
        arguments = inspect.signature(original).bind_partial(*args, **kwargs).arguments
        method = kwargs.get("save_method", arguments.get("save_method", ""))
        if "lora" in str(method).lower():
            raise RefusedError(
                f'{name}(save_method="{method}") does not keep the magnitudes of this DoRA adapter; {_CHOICES}'
            )
        return original(*args, **kwargs)

    return merged_save


def _refuse_lossy_state(model: Any, keys: Iterable[str]) -> None:
    """Raise RefusedError when the tensors to be saved lack the magnitude of any DoRA layer."""
    with_magnitude = {key.split(_MAGNITUDE)[0] for key in keys if _MAGNITUDE in key}
    dora = set(_dora_adapters(model))
    layers = [name for name, layer in _lora_layers(model) if dora & set(layer.lora_A)]
    lost = [name for name in layers if name not in with_magnitude]
    if lost:
        raise RefusedError(
            f"save_pretrained would write {len(lost)} of {len(layers)} DoRA layers without their magnitudes "
            f"(first {lost[0]}); save the model as it was trained, with its complete state_dict or none, and {_CHOICES}"
        )


def _lora_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """The adapted layers of a PEFT model, by their names in it."""
    from peft.tuners.lora import LoraLayer

    return ((name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer))


def saved_state(model: Any) -> dict[str, Tensor]:
    """The state_dict as it is saved: adapters and rows of trained tokens in fp32."""
    exact = (".lora_", ".trainable_tokens_delta")
    return {
        key: value.float() if any(part in key for part in exact) else value for key, value in model.state_dict().items()
    }


def unsaved(model: Any, file: Path) -> list[str]:
    """What differs between the trained tensors of a live PEFT model and a saved adapter, a sentence each.

    Args:
        file: adapter_model.safetensors. Compared bit by bit, adapters in fp32, as they are written.
    """
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    state = saved_state(model)
    live = get_peft_model_state_dict(model, state_dict=state, save_embedding_layers=False)
    saved = load_file(file)
    problems = [f"{name}: trained, but not saved" for name in sorted(live.keys() - saved.keys())]
    problems += [f"{name}: saved, but not trained" for name in sorted(saved.keys() - live.keys())]
    return problems + [
        f"{name}: saved with other values than were trained"
        for name in sorted(live.keys() & saved.keys())
        if not torch.equal(live[name].cpu().float(), saved[name].float())
    ]
