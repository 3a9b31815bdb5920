"""What a model is made of, learned from its config alone, before a weight is read.

The model is built on torch's meta device (shapes without memory), so the names are the
model's own and not a table of ours. From it come the linear layers that `all-linear` means,
and every refusal that would otherwise come after a 16 GB download or, worse, after training:
DoRA on embeddings, an adapter on the output head, mixture-of-experts layers, layers whose call a
kernel bypasses.

Of a vision model the language part alone is meant: the blocks of its text decoder. Its tower and projector have linear
layers of the same last names, so targets are full names, and `pattern` says them to PEFT.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qdora_fast.config import AdapterSettings, layer_indices
from qdora_fast.config.fields import short
from qdora_fast.models.bypassed import bypassed_layers
from qdora_fast.models.experts import SHARE, expert_modules, other_parameters
from qdora_fast.models.model_class import empty_model
from qdora_fast.system.errors import ConfigError, RefusedError

OTHER = "Take a dense decoder of another family, such as Qwen3.5, Gemma 3, Ministral 3 or SmolLM3"
"""What works instead of a base that cannot be trained."""


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
    routed: frozenset[str]
    """Full names of the linear layers that belong to experts: theirs, their routers', and shared ones beside them."""
    bypassed: Mapping[str, str]
    """Full names of the linear layers on which an adapter would do nothing, each with the reason."""
    multiplied: tuple[str, ...]
    """Those of them that cannot be in 4 bits: the model multiplies by their weight itself."""
    other: Mapping[str, int]
    """Parameters in the blocks that lie in no linear layer, counted by their last names; those of a hundredth of the
    blocks and more."""
    around: tuple[str, ...]
    """Names of the text decoder's parts around its blocks, of a hundredth of it and more: further embeddings, layers
    that look at images."""
    elsewhere: tuple[str, ...]
    """Full names of linear layers outside the blocks and the head, such as those of a tower."""
    beside: tuple[str, ...]
    """Full names of the parts beside the language model, weights in them: towers and projectors. () of a text model."""
    empty: Any = field(compare=False, repr=False)
    """The model without weights, on torch's meta device, as the names are its own."""

    @property
    def model_class(self) -> type[Any]:
        """Of Transformers."""
        return type(self.empty)

    @property
    def leaves(self) -> tuple[str, ...]:
        """Last parts of the linear layers' names, in the model's order: q_proj, k_proj, ..."""
        return tuple(dict.fromkeys(name.rsplit(".", 1)[-1] for name in self.linears))

    @property
    def adaptable(self) -> tuple[str, ...]:
        """Full names of the linear layers that an adapter can change: neither bypassed nor of experts."""
        return tuple(name for name in self.linears if name not in self.bypassed and name not in self.routed)


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
    beside: tuple[str, ...] = ()
    """`Architecture.beside`."""


def inspect_architecture(model_config: Any) -> Architecture:
    """Build the model of a transformers config on the meta device and name its parts.

    Raises:
        ConfigError: not a model that transformers can build, or not one that writes text.
    """
    from torch import nn

    if getattr(model_config.get_text_config(), "is_encoder_decoder", False) or model_config.is_encoder_decoder:
        raise ConfigError(
            f"a `{model_config.model_type}` model has an encoder, too; only models that are a decoder alone can be "
            f"trained here. {OTHER}"
        )
    model = empty_model(model_config)
    names = {id(module): name for name, module in model.named_modules()}
    decoder = text_decoder(model)
    stack = block_list(decoder)
    if stack is None:
        raise ConfigError(f"found no stack of decoder blocks in a `{model_config.model_type}` model. {OTHER}")
    inside = {names[id(module)]: module for block in stack for module in block.modules()}
    bypassed = bypassed_layers(model, inside.items())
    experts = expert_modules(stack, names)
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    return Architecture(
        model_type=model_config.model_type,
        blocks=len(stack),
        linears=tuple(name for name, module in inside.items() if isinstance(module, nn.Linear)),
        head=names.get(id(head)),
        embeddings=names.get(id(embeddings)),
        tied=f"{names.get(id(head))}.weight" in model.all_tied_weights_keys,
        experts=experts.modules,
        routed=experts.linears,
        bypassed=bypassed.reasons,
        multiplied=bypassed.multiplied,
        other=other_parameters(stack),
        around=_around(decoder, stack, embeddings),
        elsewhere=tuple(
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and module is not head and name not in inside
        ),
        beside=beside(model),
        empty=model,
    )


def _around(decoder: Any, stack: Any, embeddings: Any) -> tuple[str, ...]:
    total = sum(parameter.numel() for parameter in decoder.parameters())
    parts = ((name, part) for name, part in decoder.named_children() if part is not stack and part is not embeddings)
    return tuple(name for name, part in parts if sum(each.numel() for each in part.parameters()) >= SHARE * total)


def text_decoder(model: Any) -> Any:
    """The part of a model that holds the blocks of its language model."""
    decoder = model.get_decoder()
    while block_list(decoder) is None:
        inner = decoder.get_decoder() if hasattr(decoder, "get_decoder") else decoder  # of a causal model in a wrapper
        if inner is decoder:
            break
        decoder = inner
    return decoder


def block_list(decoder: Any) -> Any:
    """The blocks of a decoder, as its nn.ModuleList; None: it has none."""
    from torch import nn

    return next((child for child in decoder.children() if isinstance(child, nn.ModuleList)), None)


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


def lies_in(name: str, parts: Sequence[str]) -> bool:
    """Whether a module or tensor is one of these parts of a model, or lies in one."""
    return f"{name}.".startswith(tuple(f"{part}." for part in parts))


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
    takes = _leaves(architecture.adaptable)
    wanted = takes if everything else tuple(dict.fromkeys(settings.target_modules))
    if not takes:
        raise RefusedError(_nothing_to_adapt(architecture))
    if settings.quantized and architecture.multiplied:
        raise RefusedError(
            f"a `{architecture.model_type}` model multiplies by the weight of {architecture.multiplied[0]} itself, and "
            f"cannot where it is packed in 4 bits. Set adapter.method: {'dora' if settings.decomposed else 'lora'}"
        )
    for name in wanted:
        _refuse_target(architecture, name)
    layers = _chosen_layers(architecture, settings)
    modules = tuple(
        name
        for name in architecture.adaptable
        if name.rsplit(".", 1)[-1] in wanted and (layers is None or _block_of(name) in layers)
    )
    if not modules:
        raise ConfigError(f"adapter.layers: {short(settings.layers or '')} has none of {', '.join(wanted)}")
    blocks = (
        f"blocks {short(settings.layers or '')} of {architecture.blocks}"
        if layers
        else f"all {architecture.blocks} blocks"
    )
    summary = f"{len(modules)} linear layers ({', '.join(wanted)}) in {blocks}"
    summary = "; ".join([summary, *_left_out(architecture, settings, wanted)])
    return Targets(wanted, modules, layers, summary, beside=architecture.beside)


def _leaves(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.rsplit(".", 1)[-1] for name in names))


def _left_out(architecture: Architecture, settings: AdapterSettings, wanted: Sequence[str]) -> Iterator[str]:
    """What gets no adapter although one might think so, each with the reason."""
    ends = [name for name in (architecture.embeddings, None if architecture.tied else architecture.head) if name]
    yield f"not adapted: {', '.join((*ends, *architecture.around))}"
    everything = settings.target_modules == "all-linear"
    for leaf, reason in dict.fromkeys((name.rsplit(".", 1)[-1], why) for name, why in architecture.bypassed.items()):
        if everything or leaf in wanted:
            yield f"left out: {leaf}, where {reason}: an adapter there would do nothing"
    if everything and architecture.other:
        yield f"left out, no linear layers: {', '.join(architecture.other)}"
    if architecture.experts:
        count = sum(architecture.other.values())
        bits = f", {count / 1e9:.3g} B parameters of them in 16 bits" if settings.quantized and count else ""
        yield f"experts and routers stay as they are{bits}"
    if architecture.beside:
        yield f"left alone: {', '.join(architecture.beside)}; text alone is trained"


def _nothing_to_adapt(architecture: Architecture) -> str:
    begin = f"a `{architecture.model_type}` model has no linear layers in its blocks to adapt"
    if architecture.bypassed:
        leaf, reason = next(iter(architecture.bypassed.items()))
        return f"{begin}: {leaf.rsplit('.', 1)[-1]}, for one, is none, since {reason}. {OTHER}"
    if architecture.other:
        return f"{begin}: its weights lie in {', '.join(architecture.other)}, which are none. {OTHER}"
    return f"{begin}. {OTHER}"


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
            f"adapter.layers: {short(settings.layers)} names block {layers[-1]}, but the model has blocks "
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
    takes = _leaves(architecture.adaptable)
    if name in architecture.leaves and name not in takes and not architecture.experts:
        reason = next(why for full, why in architecture.bypassed.items() if full.rsplit(".", 1)[-1] == name)
        raise RefusedError(
            f"adapter.target_modules: an adapter on `{name}` would do nothing: {reason}. Remove it; this model takes: "
            f"{', '.join(takes)} (or write all-linear)"
        )
    if name not in architecture.leaves:
        near = difflib.get_close_matches(name, takes, n=1, cutoff=0.5)
        hint = f"; did you mean `{near[0]}`?" if near else ""
        raise ConfigError(
            f"adapter.target_modules: no linear layer is called `{name}`{hint} "
            f"This model has: {', '.join(takes)} (or write all-linear)"
        )


def _refuse_experts(architecture: Architecture, settings: AdapterSettings) -> None:
    of_experts = _leaves(architecture.routed)
    beside = [leaf for leaf in _leaves(architecture.adaptable) if leaf not in of_experts]
    explicit = settings.target_modules != "all-linear" and set(settings.target_modules) <= set(beside)
    if not architecture.experts or explicit:
        return
    fix = f"Train what lies beside them: adapter.target_modules: [{', '.join(beside)}], or" if beside else "Better"
    raise RefusedError(
        f"`{architecture.model_type}` is a mixture-of-experts model; its expert layers take neither DoRA nor our "
        f"merge. {fix} use a dense model"
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
