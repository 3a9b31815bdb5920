"""What a model is made of, learned from its config alone, before a weight is read.

The model is built on torch's meta device (shapes without memory), so the names are the
model's own and not a table of ours. From it come the linear layers that `all-linear` means,
and every refusal that would otherwise come after a 16 GB download or, worse, after training:
DoRA on embeddings, an adapter on the output head, mixture-of-experts layers.

Of a vision model the language part alone is meant: the blocks of its text decoder. Its tower and projector have linear
layers of the same last names, so targets are full names, and `pattern` says them to PEFT.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from qdora_fast.config import AdapterSettings, layer_indices
from qdora_fast.models.model_class import empty_model
from qdora_fast.system.errors import ConfigError, RefusedError


@dataclass(frozen=True)
class Architecture:
    """Names of the parts that adapters and exports care about."""

    model_type: str
    blocks: int
    """Of the language model; a tower's do not count."""
    linears: tuple[str, ...]
    """Full names of the linear layers inside the decoder blocks."""
    head: str | None
    """Full name of the output head."""
    embeddings: str | None
    """Full name of the input embeddings."""
    tied: bool
    """The head has no weights of its own: it uses the embeddings'."""
    experts: tuple[str, ...]
    """Full names of mixture-of-experts modules; empty for dense models."""
    elsewhere: tuple[str, ...]
    """Full names of linear layers outside the blocks and the head, such as those of a tower."""
    beside: tuple[str, ...]
    """Full names of the parts beside the language model, weights in them: towers and projectors. () of a text model."""
    model_class: type[Any]
    """Of Transformers."""

    @property
    def leaves(self) -> tuple[str, ...]:
        """Last parts of the linear layers' names, in the model's order: q_proj, k_proj, ..."""
        return tuple(dict.fromkeys(name.rsplit(".", 1)[-1] for name in self.linears))


@dataclass(frozen=True)
class Targets:
    """Which layers get an adapter."""

    leaves: tuple[str, ...]
    modules: tuple[str, ...]
    """Full names, in the base model's own naming."""
    layers: tuple[int, ...] | None
    """Block indices when restricted; None: all blocks."""
    summary: str
    """One line for the user: what was chosen and what was left out."""
    beside: tuple[str, ...] = ()
    """`Architecture.beside`."""


def inspect_architecture(model_config: Any) -> Architecture:
    """Build the model of a transformers config on the meta device and name its parts.

    Raises:
        ConfigError: not a model that transformers can build, or not one that writes text.
    """
    from torch import nn

    model = empty_model(model_config)
    names = {id(module): name for name, module in model.named_modules()}
    decoder = text_decoder(model)
    stack = next((child for child in decoder.children() if isinstance(child, nn.ModuleList)), None)
    if stack is None:
        raise ConfigError(f"found no stack of decoder blocks in a `{model_config.model_type}` model")
    inside = [(names[id(module)], module) for block in stack for module in block.modules()]
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    return Architecture(
        model_type=model_config.model_type,
        blocks=len(stack),
        linears=tuple(name for name, module in inside if isinstance(module, nn.Linear)),
        head=names.get(id(head)),
        embeddings=names.get(id(embeddings)),
        tied=f"{names.get(id(head))}.weight" in model.all_tied_weights_keys,
        experts=tuple(name for name, module in inside if "expert" in type(module).__name__.lower()),
        elsewhere=tuple(
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and module is not head and name not in {n for n, _ in inside}
        ),
        beside=beside(model),
        model_class=type(model),
    )


def text_decoder(model: Any) -> Any:
    """The part of a model that holds the blocks of its language model."""
    from torch import nn

    decoder = model.get_decoder()
    while not any(isinstance(child, nn.ModuleList) for child in decoder.children()):
        inner = decoder.get_decoder() if hasattr(decoder, "get_decoder") else decoder  # of a causal model in a wrapper
        if inner is decoder:
            break
        decoder = inner
    return decoder


def beside(model: Any) -> tuple[str, ...]:
    """Full names of the parts of a model, weights in them, that are neither its text decoder nor its head."""
    decoder, head = text_decoder(model), model.get_output_embeddings()
    found: list[str] = []

    def look(parent: Any, name: str) -> None:
        for leaf, child in parent.named_children():
            if child is decoder or child is head:
                continue
            full = f"{name}{leaf}"
            if any(module is decoder for module in child.modules()):
                look(child, f"{full}.")
            elif next(child.parameters(), None) is not None:
                found.append(full)

    look(model, "")
    return tuple(found)


def pattern(modules: Sequence[str]) -> str:
    """One regular expression that matches the full names of these layers of numbered blocks, and no others."""
    suffixes: dict[tuple[str, str], list[str]] = {}
    for name in modules:
        stack, block, suffix = _in_block(name)
        suffixes.setdefault((stack, block), []).append(re.escape(suffix))
    alike: dict[tuple[str, str], list[str]] = {}
    for (stack, block), ends in suffixes.items():
        alike.setdefault((re.escape(stack), "|".join(ends)), []).append(block)
    return "|".join(rf"{stack}(?:{'|'.join(blocks)})\.(?:{ends})" for (stack, ends), blocks in alike.items())


def leaves_suffice(targets: Targets, names: Iterable[str]) -> bool:
    """Whether `leaves` in `layers` mean the chosen layers and nothing else among the modules of a model."""
    named = {name for name in names if name.rpartition(".")[2] in targets.leaves}
    if targets.layers is not None:
        named = {name for name in named if (parts := _split(name)) and int(parts[1]) in targets.layers}
    return named == set(targets.modules)


def choose_targets(architecture: Architecture, settings: AdapterSettings) -> Targets:
    """Expand `adapter.target_modules` and `adapter.layers` into real layers, or refuse.

    Raises:
        RefusedError: a target that would be silently useless or cannot be exported.
        ConfigError: a name or block that the model does not have.
    """
    _refuse_experts(architecture, settings)
    _refuse_saved_modules(architecture, settings)
    everything = settings.target_modules == "all-linear"
    wanted = architecture.leaves if everything else tuple(dict.fromkeys(settings.target_modules))
    if not wanted:
        raise RefusedError(f"a `{architecture.model_type}` model has no linear layers in its blocks to adapt")
    for name in wanted:
        _refuse_target(architecture, name)
    layers = _chosen_layers(architecture, settings)
    modules = tuple(
        name
        for name in architecture.linears
        if name.rsplit(".", 1)[-1] in wanted and (layers is None or _block_of(name) in layers)
    )
    left_out = [name for name in (architecture.embeddings, None if architecture.tied else architecture.head) if name]
    blocks = f"blocks {settings.layers} of {architecture.blocks}" if layers else f"all {architecture.blocks} blocks"
    summary = f"{len(modules)} linear layers ({', '.join(wanted)}) in {blocks}; not adapted: {', '.join(left_out)}"
    if architecture.beside:
        summary += f"; {', '.join(architecture.beside)} stay as they are: text alone is trained"
    return Targets(wanted, modules, layers, summary, architecture.beside)


def _block_of(name: str) -> int:
    """`model.layers.7.mlp.up_proj` lies in block 7."""
    return int(_in_block(name)[1])


def _in_block(name: str) -> tuple[str, str, str]:
    parts = _split(name)
    assert parts, f"{name} lies in no numbered block"
    return parts


def _split(name: str) -> tuple[str, str, str] | None:
    """`model.layers.7.mlp.up_proj` is `model.layers.`, 7 and mlp.up_proj; None outside of numbered blocks."""
    match = re.fullmatch(r"(|.*?\.)(\d+)\.(.+)", name)
    return (match[1], match[2], match[3]) if match else None


def _chosen_layers(architecture: Architecture, settings: AdapterSettings) -> tuple[int, ...] | None:
    if settings.layers is None:
        return None
    layers = layer_indices(settings.layers)
    if layers[-1] >= architecture.blocks:
        raise ConfigError(
            f"adapter.layers: {settings.layers} names block {layers[-1]}, but the model has blocks "
            f"0-{architecture.blocks - 1}"
        )
    return tuple(layers)


def _refuse_target(architecture: Architecture, name: str) -> None:
    leaf_of = {(part or "").rsplit(".", 1)[-1]: part for part in (architecture.head, architecture.embeddings)}
    if name in leaf_of or name in leaf_of.values():
        kind = "output head" if name in (architecture.head or "") else "embedding"
        instead = "" if architecture.tied else f"; to train it in full, use adapter.modules_to_save: [{name}]"
        raise RefusedError(
            f"adapter.target_modules: `{name}` is the {kind}. The fused loss never sees an adapter there and no "
            f"exporter merges one; remove it{instead}"
        )
    if name not in architecture.leaves:
        near = difflib.get_close_matches(name, architecture.leaves, n=1, cutoff=0.5)
        hint = f"; did you mean `{near[0]}`?" if near else ""
        raise ConfigError(
            f"adapter.target_modules: no linear layer is called `{name}`{hint} "
            f"This model has: {', '.join(architecture.leaves)} (or write all-linear)"
        )


def _refuse_experts(architecture: Architecture, settings: AdapterSettings) -> None:
    attention = [leaf for leaf in architecture.leaves if leaf in ("q_proj", "k_proj", "v_proj", "o_proj")]
    explicit = settings.target_modules != "all-linear" and set(settings.target_modules) <= set(attention)
    if architecture.experts and not explicit:
        raise RefusedError(
            f"`{architecture.model_type}` is a mixture-of-experts model; its expert layers take neither DoRA nor our "
            f"merge. Train the attention alone: adapter.target_modules: [{', '.join(attention)}], or use a dense model"
        )


def _refuse_saved_modules(architecture: Architecture, settings: AdapterSettings) -> None:
    for name in settings.modules_to_save:
        known = [part for part in (architecture.head, architecture.embeddings) if part]
        if not any(part == name or part.endswith(f".{name}") for part in known):
            leaves: Sequence[str] = [part.rsplit(".", 1)[-1] for part in known]
            raise ConfigError(
                f"adapter.modules_to_save: `{name}` is neither the output head nor the embeddings "
                f"({', '.join(leaves)}); list linear layers under adapter.target_modules"
            )
        if architecture.tied:
            raise RefusedError(
                f"adapter.modules_to_save: `{name}` shares its weights with the embeddings in this model; training it "
                "would untie them, and exports could not be loaded by others. Remove it"
            )
