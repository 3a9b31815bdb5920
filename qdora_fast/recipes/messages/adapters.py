"""What an adapter from elsewhere is, and what became of it."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich.console import Console

from qdora_fast.config import Config
from qdora_fast.show.console import line


def adapter_found(console: Console, adapter: Any, config: Config) -> None:
    """Method, rank, layers, base."""
    kind = "DoRA, each layer with A, B and magnitude" if adapter.use_dora else "LoRA, each layer with A and B"
    scale = "alpha/sqrt(r)" if config.adapter.rslora else "alpha/r"
    line(console, "adapter", f"{kind}: r={adapter.r} alpha={adapter.alpha:g} ({scale})")
    leaves = Counter(name.rsplit(".", 1)[-1] for name in adapter.modules)
    line(console, "layers", f"{len(adapter.modules)}: {', '.join(f'{name} × {n}' for name, n in leaves.items())}")
    ranks = Counter(module.lora_a.shape[0] for module in adapter.modules.values())
    if len(ranks) > 1:
        line(console, "", f"of ranks {', '.join(f'{rank} (× {n})' for rank, n in sorted(ranks.items()))}")
    if adapter.saved_modules:
        line(console, "", f"and, trained in full: {', '.join(adapter.saved_modules)}")
    line(console, "base", config.model.name)


def adapter_fits(console: Console, shapes_compared: bool, *, guess: str | None) -> None:
    """What was compared with the base; `guess`: the method that was assumed."""
    if shapes_compared:
        line(console, "", "every layer has the shape that it has in the base's weights")
    else:
        line(console, "", "its weights are not on this machine: layers were compared by name, not by shape")
    if guess:
        bits, other = ("4", guess.removeprefix("q")) if guess.startswith("q") else ("16", f"q{guess}")
        line(console, "method", f"{guess}: trained on the base in {bits} bits, by all signs; if not, import it again "
             f"with --set adapter.method={other}")  # fmt: skip


def adapter_imported(console: Console, report: dict[str, Any]) -> None:
    """Template, rows, and what to do next."""
    assumed = ": assumed, since none came with the adapter; another by --set data.template=FILE.jinja"
    line(console, "template", report["template"] + (assumed if report["template_assumed"] else ""))
    given = f"{report['rows']} to prove exports on and to evaluate"
    line(
        console,
        "rows",
        given if report["rows"] else "none: exports are proven on general prompts; --data FILE gives some",
    )
    line(console, "run", report["path"])
    console.print(f"\ntry it        qdora-fast chat {report['path']}", markup=False)
    console.print(f"deploy it     qdora-fast export {report['path']}", markup=False)
