"""The sizes of any model that Transformers can build, read off the model built without weights.

Every layer has its shape there, so the counts are exact: blocks that differ (linear attention beside full attention,
Mamba beside both, widths of their own), layers outside of the blocks, embeddings of each layer, experts, towers. What a
block keeps of its tokens is estimated on the safe side, by the formulas of the families that were measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qdora_fast.models.few_bits import few_bits_of
from qdora_fast.models.model_config import position_limit
from qdora_fast.models.targets import block_list, inspect_architecture, text_decoder
from qdora_fast.planning.memory.architecture import Block, CannotEstimate, Linear, Sizes

LEFT_DENSE = ("lm_head", "router", "mlp.gate", "block_sparse_moe.gate", "moe.gate")
"""Linear layers of a language model that Unsloth leaves in 16 bits (`SKIP_QUANTIZATION_MODULES`, which names parts of
towers as well)."""
EXPERTS_A_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "moe_topk", "top_k_experts", "moe_k")
"""Names that families have for the number of experts that run for one token."""
RECURRENCE, CONVOLUTION = 8, 2
"""Values that Mamba and linear attention, or a convolution alone, keep of each channel of their convolution, in fp32,
where kernels run them. Read from the kernels' inputs and outputs, and doubled; not measured."""
ATTENDS = ("full_attention", "sliding_attention", "chunked_attention", "attention")
"""Kinds of blocks, as configs name them, that keep keys and values."""


def built_sizes(model_config: Any, values: Mapping[str, Any]) -> Sizes:
    """The sizes of the model that Transformers builds from a config.

    Args:
        model_config: of Transformers.
        values: the same as config.json has them, without what Transformers fills in.

    Raises:
        ConfigError: it cannot be built, does not write text, or has no list of decoder blocks.
    """

    architecture = inspect_architecture(model_config)
    model, text = architecture.empty, _text_values(model_config)
    names = {id(module): full for full, module in model.named_modules()}
    decoder = text_decoder(model)
    stack = block_list(decoder)
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if not len(stack) or head is None:
        what = "decoder blocks" if head is not None else "output head"
        raise CannotEstimate(f"cannot estimate: this `{model_config.model_type}` model has no {what}")
    hidden = _first(text, "hidden_size") or int(embeddings.weight.shape[-1])
    text["hidden_size"], experts = hidden, frozenset(architecture.experts)
    heads = _first(text, "num_attention_heads", "n_head", "num_heads") or 1
    stored = few_bits_of(values)
    skipped = [*(stored.left_out if stored else LEFT_DENSE), *(model._keep_in_fp32_modules or ()), *architecture.beside]
    shared, language = _weights(embeddings), _weights(decoder)
    apart = shared | _weights(head) | _weights(stack)
    outside = tuple(_linears(decoder, names[id(decoder)], skipped, leave_out=apart))
    tower = [weight for weight in model.parameters() if id(weight) not in apart | language]
    return Sizes(
        model_type=model_config.model_type,
        vocabulary=head.weight.shape[0],
        hidden=hidden,
        heads=heads,
        kv_heads=_first(text, "num_key_value_heads", "num_kv_heads") or heads,
        head_width=_first(text, "head_dim") or max(1, hidden // heads),
        stack=tuple(_block(each, names[id(each)], text, skipped, experts) for each in stack),
        embedding_values=_count(embeddings, set()),
        head_values=_count(head, shared),
        outside_values=_count(decoder, apart) - sum(each.values + each.rows * each.bias for each in outside),
        longest=position_limit(values),
        softcapped=text.get("attn_logit_softcapping") is not None,
        prequantized=stored is not None,
        architecture=architecture,
        prefix=names[id(stack)],
        outside=outside,
        tower_values=sum(weight.numel() for weight in tower),
        tower=", ".join(architecture.beside),
        nested=stored is None or stored.nested,
        measured=False,
    )


def _block(block: Any, name: str, text: Mapping[str, Any], skipped: list[str], experts: frozenset[str]) -> Block:
    """The block of this full name.

    Args:
        experts: full names of modules.
    """
    from torch import nn

    hidden, index = text["hidden_size"], int(name.rpartition(".")[2])
    linears = tuple(_linears(block, name, skipped, leave_out=set()))
    convolutions = [module for module in block.modules() if isinstance(module, nn.Conv1d)]
    packed = {
        id(weight): weight
        for path, module in block.named_modules()
        if f"{name}.{path}" in experts and any(weight.dim() == 3 for weight in module.parameters(recurse=False))
        for weight in module.parameters(recurse=False)
    }
    norms = [
        next((weight.numel() for weight in module.parameters()), hidden)
        for module in block.modules()
        if "norm" in type(module).__name__.lower() and not any(True for _ in module.children())
    ]
    in_linears = sum(each.values + each.rows * each.bias for each in linears)
    expert_values = sum(weight.numel() for weight in packed.values())
    kinds = text.get("layer_types") or ()
    kind = kinds[index] if index < len(kinds) else ""
    return Block(
        linears=linears,
        wide_norms=sum(width >= hidden for width in norms),
        head_norms=any(width < hidden for width in norms),
        other_values=_count(block, set()) - in_linears - expert_values,
        expert_values=expert_values,
        routed_width=_routed_width(text, linears, packed.values()),
        mixer_width=sum(_mixer_width(module) for module in block.modules()),
        window=_first(text, "sliding_window") if kind.startswith(("sliding", "chunked")) else None,
        attends=kind in ATTENDS or (not kind and not convolutions) or any(each.name == "k_proj" for each in linears),
    )


def _mixer_width(module: Any) -> int:
    from torch import nn

    channels = sum(child.out_channels for child in module.children() if isinstance(child, nn.Conv1d))
    recurrent = any(True for _ in module.parameters(recurse=False))  # decays, steps
    return channels * (RECURRENCE if recurrent else CONVOLUTION)


def _routed_width(text: Mapping[str, Any], linears: tuple[Linear, ...], packed: Any) -> int:
    """What the experts of one token take in and give out, each of their layers for itself."""
    single = [linear for linear in linears if linear.routed]
    shapes = [weight.shape for weight in packed if weight.dim() == 3]
    numbers = {linear.path.partition("experts.")[2].partition(".")[0] for linear in single}
    there = max([len(numbers), *(shape[0] for shape in shapes)])
    running = min(_first(text, *EXPERTS_A_TOKEN) or there, there)
    alone = sum(linear.rows + linear.columns for linear in single) // max(1, there)
    return running * (alone + sum(shape[1] + shape[2] for shape in shapes))


def _linears(parent: Any, name: str, skipped: list[str], *, leave_out: set[int]) -> Iterator[Linear]:
    """The linear layers below a module, by their names in it, but for those with a weight in `leave_out`."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.quantizers_utils import should_convert_module

    for path, module in parent.named_modules():
        if not isinstance(module, nn.Linear | Conv1D) or id(module.weight) in leave_out:
            continue
        rows, columns = module.weight.shape if isinstance(module, nn.Linear) else module.weight.shape[::-1]
        converted = type(module) in (nn.Linear, Conv1D) and should_convert_module(f"{name}.{path}", skipped)
        yield Linear(path, rows, columns, bias=module.bias is not None, dense=not converted)


def _weights(module: Any) -> set[int]:
    return {id(weight) for weight in module.parameters()}


def _count(module: Any, leave_out: set[int]) -> int:
    return sum(weight.numel() for weight in module.parameters() if id(weight) not in leave_out)


def _text_values(model_config: Any) -> dict[str, Any]:
    """The settings of the language part, under the usual names as well as the family's. Not asked for one by one, since
    some have no single value (a width of each block)."""
    text = model_config.get_text_config()
    values = text.to_dict()
    return {**values, **{usual: values.get(own) for usual, own in text.attribute_map.items() if usual not in values}}


def _first(values: Mapping[str, Any], *names: str) -> int | None:
    """The first of these settings that is a number; None: there is none."""
    return next((value for name in names if isinstance(value := values.get(name), int) and value > 0), None)
