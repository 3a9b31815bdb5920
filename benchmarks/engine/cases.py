"""Which shapes are measured.

"linear" is one adapted square layer under a fixed upstream gradient: nothing but the path that is replaced. "model" is
a small Llama, where attention, norms and the loss dilute it as they do in real training. Small on purpose: it must be
measured in minutes on two cores, and a layer's cost does not depend on how many there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.options import DTYPES, Options
from qdora_fast.system.errors import ConfigError

VOCABULARY = 512
HEAD = 64
HEADLINE = (1024, 512)
"""Width and tokens at which grad-accum 2 is measured."""


@dataclass(frozen=True)
class Case:
    """One shape, one dtype."""

    kind: str
    """linear or model."""
    dtype: str
    width: int
    tokens: int
    grad_accum: int
    layers: int = 1
    checkpointing: bool = False
    rank: int = 16
    device: str = "cpu"
    seed: int = 0

    @property
    def intermediate(self) -> int:
        """Width of the model's MLP: 2.75 x the hidden size, in whole NF4 blocks."""
        return self.width * 11 // 4 // 64 * 64

    @property
    def heads(self) -> tuple[int, int]:
        """Query heads, and half as many for keys and values (grouped-query attention)."""
        heads = max(2, self.width // HEAD)
        return heads, heads // 2

    def __str__(self) -> str:
        kind = f"linear {self.width}" if self.kind == "linear" else f"model {self.layers} x {self.width}"
        checkpointing = ", checkpointing" if self.checkpointing else ""
        return f"{kind}, {self.tokens} tokens, grad-accum {self.grad_accum}, {self.dtype}{checkpointing}"


def choose(options: Options) -> list[Case]:
    """The cases that were asked for, the headline (width 1024, 512 tokens, grad-accum 2) first.

    Raises:
        ConfigError: an unknown case or dtype, or a width that is not in whole NF4 blocks of 64.
    """
    if options.case not in ("linear", "model", "all"):
        raise ConfigError(f"--case {options.case}: there are linear, model and all")
    unknown = [name for name in (*options.dtypes, *options.model_dtypes) if name not in DTYPES]
    if unknown:
        raise ConfigError(f"--dtype {unknown[0]}: there are {', '.join(DTYPES)}")
    odd = [width for width in (*options.widths, options.model_width) if width % 64]
    if odd:
        raise ConfigError(f"--widths {odd[0]}: NF4 blocks are 64 wide; take a multiple of 64")
    cases = [
        *(_linear(options) if options.case != "model" else ()),
        *(_model(options) if options.case != "linear" else ()),
    ]
    return sorted(cases, key=lambda case: (case.kind == "linear" and case.grad_accum == 2) is False)


def _linear(options: Options) -> Iterator[Case]:
    for dtype in options.dtypes:
        for width in options.widths:
            for tokens in options.tokens:
                for grad_accum in options.grad_accum:
                    alone = options.grad_accum == (2,)
                    if grad_accum != 2 or alone or (width, tokens) == HEADLINE:
                        yield Case(
                            "linear",
                            dtype,
                            width,
                            tokens,
                            grad_accum,
                            rank=options.rank,
                            device=options.device,
                            seed=options.seed,
                        )


def _model(options: Options) -> Iterator[Case]:
    for dtype in options.model_dtypes:
        for tokens in options.tokens[:1]:
            for grad_accum in options.model_grad_accum:
                for checkpointing in options.checkpointing:
                    yield Case(
                        "model",
                        dtype,
                        options.model_width,
                        tokens,
                        grad_accum,
                        options.model_layers,
                        checkpointing,
                        options.rank,
                        options.device,
                        options.seed,
                    )
