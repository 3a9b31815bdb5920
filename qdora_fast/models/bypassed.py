"""Linear layers on which an adapter would do nothing: their weight is used without the layer, or they are never called.

A fused Mamba kernel is handed `self.out_proj.weight`; a router multiplies by its weight itself. PEFT puts its update
into the layer's call, so there it would be trained by nothing, or by the slow path alone and bypassed by the fast one.
Both cases are read from the model itself, not from a list of names: from the source of its blocks' classes, which knows
kernels that only a GPU runs, and from one forward without weights, which knows layers that a config leaves unused.

It sees `self.<path>.weight` in the methods of a class. A weight that is handed on in another way, by functions outside
of the class, is not seen.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

from qdora_fast.models.model_class import run_empty

UNREAD = {"device", "dtype", "is_meta", "ndim", "requires_grad", "shape", "size"}
"""What may be asked of a weight without using its numbers."""


@dataclass(frozen=True)
class Use:
    """A weight that the source of a class uses without the layer's call."""

    layer: str
    """The layer's name within the class, such as out_proj."""
    conditions: tuple[tuple[str, bool], ...]
    """Expressions of `self` alone around it, and what each must be."""


@dataclass(frozen=True)
class Bypassed:
    """Linear layers that an adapter would not change."""

    reasons: dict[str, str]
    """Why, by full names."""
    multiplied: tuple[str, ...]
    """Those whose weight the model multiplies by itself, on every processor: it must not be packed in 4 bits."""


def bypassed_layers(model: Any, inside: Iterable[tuple[str, Any]]) -> Bypassed:
    """The linear layers among `inside` that an adapter would not change.

    Args:
        model: without weights, on torch's meta device.
        inside: modules of its blocks by their full names.
    """
    from torch import nn

    modules = dict(inside)
    linears = {name: module for name, module in modules.items() if isinstance(module, nn.Linear)}
    names = {id(module): name for name, module in linears.items()}
    used: dict[str, str] = {}
    for parent in modules.values():
        for use in _weight_uses(cast(Hashable, type(parent))) if next(parent.children(), None) is not None else ():
            name = names.get(id(_layer(parent, use.layer)))
            if name and all(_may_be(parent, *condition) for condition in use.conditions):
                used[name] = f"`{type(parent).__name__}` uses its weight without calling the layer"
    called = called_layers(model)
    idle = set() if called is None else set(linears) - called
    reasons = {name: used.get(name, "the model never calls it") for name in linears if name in used or name in idle}
    return Bypassed(reasons, tuple(name for name in used if called is None or name in idle))


def called_layers(model: Any) -> set[str] | None:
    """Full names of the modules that a forward of text calls; None where the model cannot be run without weights."""
    called: set[str] = set()
    named = model.named_modules()
    hooks = [module.register_forward_pre_hook(lambda *_, name=name: called.add(name)) for name, module in named]
    ran = run_empty(model) is not None
    for hook in hooks:
        hook.remove()
    return called if ran else None


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
    """What the methods of a class use so, those apart that make its weights."""
    bodies = [statement for each in reversed(inspect.getmro(cast(type, kind))) for statement in _body(each)]
    methods = {node.name: node for node in bodies if isinstance(node, ast.FunctionDef)}
    runs = [method for name, method in methods.items() if not re.match(r"_*(init|reset|tie)_*", name)]
    uses = [use for method in runs for use in _uses(method, (), None)]
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
