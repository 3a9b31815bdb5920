"""What a model is made of, learned from its config alone, before a weight is read.

The model is built on torch's meta device (shapes without memory), so the names are the
model's own and not a table of ours. From it come the linear layers that `all-linear` means,
and every refusal that would otherwise come after a 16 GB download or, worse, after training:
DoRA on embeddings, an adapter on the output head, mixture-of-experts layers.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
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
    """Full names of linear layers outside the blocks and the head: a vision or audio tower's."""
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
    in_16bit: tuple[str, ...] = ()
    """Those of the modules that a base in 4 bits itself stores in 16."""


def inspect_architecture(model_config: Any) -> Architecture:
    """Build the model of a transformers config on the meta device and name its parts.

    Raises:
        ConfigError: not a model that transformers can build, or not one that writes text.
    """
    from torch import nn

    model = empty_model(model_config)
    names = {id(module): name for name, module in model.named_modules()}
    decoder = model.get_decoder()
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
        tied=bool(getattr(model_config.get_text_config(), "tie_word_embeddings", False)),
        experts=tuple(name for name, module in inside if "expert" in type(module).__name__.lower()),
        elsewhere=tuple(
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and module is not head and name not in {n for n, _ in inside}
        ),
        model_class=type(model),
    )


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
        _refuse_towers(architecture, name)
    layers = _chosen_layers(architecture, settings)
    modules = tuple(
        name
        for name in architecture.linears
        if name.rsplit(".", 1)[-1] in wanted and (layers is None or _block_of(name) in layers)
    )
    left_out = [name for name in (architecture.embeddings, None if architecture.tied else architecture.head) if name]
    blocks = f"blocks {settings.layers} of {architecture.blocks}" if layers else f"all {architecture.blocks} blocks"
    summary = f"{len(modules)} linear layers ({', '.join(wanted)}) in {blocks}; not adapted: {', '.join(left_out)}"
    return Targets(wanted, modules, layers, summary)


def _block_of(name: str) -> int:
    """`model.layers.7.mlp.up_proj` lies in block 7."""
    return next(int(part) for part in name.split(".") if part.isdigit())


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


def _refuse_towers(architecture: Architecture, name: str) -> None:
    other = next((full for full in architecture.elsewhere if full.rsplit(".", 1)[-1] == name), None)
    if other:
        raise RefusedError(
            f"adapter.target_modules: `{name}` also names {other}, outside the language model's blocks; training that "
            "was surely not meant. Use a text-only checkpoint of this model"
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
