"""Linear layers on which an adapter would do nothing: their weight is used without the layer, or they are never called.

A fused Mamba kernel is handed `self.out_proj.weight`; a router multiplies by its weight itself. PEFT puts its update
into the layer's call, so there it would be trained by nothing, or by the slow path alone and bypassed by the fast one.
Both cases are read from the model itself, not from a list of names: from the source of its blocks' classes, which knows
kernels that only a GPU runs, and from one forward without weights, which knows layers that a config leaves unused.

It sees `self.<path>.weight` in what `forward` reaches within its class. A weight that is handed on in another way, by
functions outside of the class, is not seen.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

UNREAD = {"device", "dtype", "is_meta", "ndim", "requires_grad", "shape", "size"}
"""What may be asked of a weight without using its numbers."""
LENGTH = 8
"""Tokens of the forward without weights."""


@dataclass(frozen=True)
class Use:
    """A weight that the source of a class uses without the layer's call."""

    layer: str
    """The layer's name within the class, such as out_proj."""
    conditions: tuple[tuple[str, bool], ...]
    """Expressions of `self` alone around it, and what each must be."""


def bypassed_layers(model: Any, inside: Iterable[tuple[str, Any]]) -> dict[str, str]:
    """Full names of the linear layers among `inside` that an adapter would not change, each with the reason.

    Args:
        model: without weights, on torch's meta device.
        inside: modules of its blocks by their full names.
    """
    from torch import nn

    modules = dict(inside)
    linears = {name: module for name, module in modules.items() if isinstance(module, nn.Linear)}
    names = {id(module): name for name, module in linears.items()}
    found: dict[str, str] = {}
    for parent in modules.values():
        for use in _weight_uses(cast(Hashable, type(parent))) if next(parent.children(), None) is not None else ():
            name = names.get(id(_layer(parent, use.layer)))
            if name and all(_may_be(parent, *condition) for condition in use.conditions):
                found[name] = f"`{type(parent).__name__}` uses its weight without calling the layer"
    never = _never_called(model, linears)
    return {name: found.get(name, "the model never calls it") for name in linears if name in found or name in never}


def _never_called(model: Any, linears: dict[str, Any]) -> set[str]:
    """Names of the layers that a forward of text leaves out; none where the model cannot be run without weights."""
    import torch

    called: set[str] = set()
    hooks = [
        module.register_forward_pre_hook(lambda _, __, name=name: called.add(name)) for name, module in linears.items()
    ]
    try:
        with torch.no_grad(), torch.device("meta"):
            # A mask of four dimensions is taken as it is; one of two would be looked at for padding.
            mask = torch.zeros((1, 1, LENGTH, LENGTH))
            model(input_ids=torch.zeros((1, LENGTH), dtype=torch.long), attention_mask=mask, use_cache=False)
    except Exception:  # noqa: BLE001 - some models look at their numbers, which are not there
        return set()
    finally:
        for hook in hooks:
            hook.remove()
    return set(linears) - called


def _layer(parent: Any, path: str) -> Any:
    for part in path.split("."):
        parent = getattr(parent, part, None)
    return parent


def _may_be(module: Any, condition: str, wanted: bool) -> bool:
    """Whether an expression of a module's own settings can come out as wanted; yes where it cannot be told."""
    try:
        return bool(eval(condition, {"__builtins__": {}}, {"self": module})) is wanted
    except Exception:  # noqa: BLE001 - it needs more than settings
        return True


@cache
def _weight_uses(kind: Hashable) -> tuple[Use, ...]:
    """What the methods that `forward` reaches within a class use so."""
    bodies = [statement for each in reversed(inspect.getmro(cast(type, kind))) for statement in _body(each)]
    methods = {node.name: node for node in bodies if isinstance(node, ast.FunctionDef)}
    ahead: list[str] = ["forward"]
    seen: set[str] = set()
    uses: list[Use] = []
    while ahead:
        name = ahead.pop()
        if name in seen or name not in methods:
            continue
        seen.add(name)
        uses += _uses(methods[name], (), None)
        ahead += [node.attr for node in ast.walk(methods[name]) if isinstance(node, ast.Attribute) and _path(node)]
    return tuple(uses)


@cache
def _classes(file: str) -> dict[str, ast.ClassDef]:
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    return {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def _body(kind: type) -> list[ast.stmt]:
    try:
        file = inspect.getsourcefile(kind)
        return _classes(file)[kind.__name__].body if file else []
    except (KeyError, OSError, SyntaxError, TypeError, UnicodeDecodeError):  # built in, or made while running
        return []


def _uses(node: ast.AST, around: tuple[tuple[str, bool], ...], parent: ast.AST | None) -> Iterator[Use]:
    if isinstance(node, ast.Attribute) and node.attr == "weight" and (path := _path(node.value)):
        asked = isinstance(parent, ast.Attribute) and parent.attr in UNREAD
        kind = isinstance(parent, ast.Call) and ast.unparse(parent.func) == "isinstance"
        if not asked and not kind:
            yield Use(path, around)
    if isinstance(node, ast.If):
        yield from _uses(node.test, around, node)
        for branch, wanted in ((node.body, True), (node.orelse, False)):
            for each in branch:
                yield from _uses(each, (*around, *_conditions(node.test, wanted)), node)
        return
    for child in ast.iter_child_nodes(node):
        yield from _uses(child, around, node)


def _conditions(test: ast.expr, wanted: bool) -> tuple[tuple[str, bool], ...]:
    """The test of an `if`, where it asks for a module's settings alone; whether it trains is none of them."""
    names = {node.id for node in ast.walk(test) if isinstance(node, ast.Name)}
    trains = any(isinstance(node, ast.Attribute) and node.attr == "training" for node in ast.walk(test))
    return ((ast.unparse(test), wanted),) if names == {"self"} and not trains else ()


def _path(node: ast.AST) -> str | None:
    """`self.mixer.out_proj` is mixer.out_proj; None for anything else."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.insert(0, node.attr)
        node = node.value
    return ".".join(parts) if parts and isinstance(node, ast.Name) and node.id == "self" else None
