"""What can be asked of the benchmarks, each with its unit. The defaults live here and nowhere else.

`Options()` is the short protocol (a few minutes on two cores); `Options().full()` is all of it (hours). The field's
own protocol for the GPU is in `GpuOptions`; its fields exist so that the same code can be run on a CPU with a model of
two narrow layers, which is how it is tested. `DataOptions` is the preparation of rows; it needs no model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

BASELINES = ("datasketch", "none")
DTYPES = ("fp32", "bf16", "bf16-pure")
"""fp32; bf16: bf16 base, fp32 adapters, autocast, as trainers run it; bf16-pure: the adapters in bf16 as well."""


@dataclass(frozen=True)
class Options:
    """`make bench`."""

    case: str = "all"
    """linear, model or all."""
    widths: tuple[int, ...] = (1024,)
    """Width of the one adapted layer (in and out), in features."""
    tokens: tuple[int, ...] = (512,)
    """Tokens of a micro-batch."""
    grad_accum: tuple[int, ...] = (1, 2, 8)
    """Micro-batches of an optimizer step. 2 is only measured at width 1024 with 512 tokens: the headline."""
    dtypes: tuple[str, ...] = ("fp32", "bf16")
    """Of DTYPES."""
    arms: tuple[str, ...] = ()
    """Names of arms.py; empty: all."""
    rounds: int = 15
    """Measured rounds; in each, every arm steps once or, if steps are short, several times."""
    warmup: int = 3
    """Rounds before them."""
    sample_s: float = 0.05
    """Seconds a sample should last: shorter steps are repeated."""
    rank: int = 16
    """Rank of the adapters; alpha is the same."""
    model_width: int = 1024
    """Hidden size of the four-layer model; the heads are 64 wide."""
    model_layers: int = 4
    """Decoder layers of the model."""
    model_dtypes: tuple[str, ...] = ("bf16",)
    """Of DTYPES, for the model. fp32 takes minutes there; `--dtype` sets both."""
    model_grad_accum: tuple[int, ...] = (1,)
    """Micro-batches of an optimizer step of the model."""
    checkpointing: tuple[bool, ...] = (False,)
    """Gradient checkpointing of the model: off, on or both."""
    impl: str = "auto"
    """The engine's implementation, as its `install` takes it."""
    device: str = "cpu"
    """Where to run: cpu or cuda."""
    seed: int = 0
    """Of weights, inputs and adapters."""

    def changed(self, **asked: Any) -> Options:
        """What was asked for on the command line; None and () leave a field as it is. Types and accumulation are
        asked for once and set for the layer and the model."""
        given = _given(asked)
        for name in ("dtypes", "grad_accum"):
            if name in given:
                given[f"model_{name}"] = given[name]
        return replace(self, **given)

    def full(self) -> Options:
        """Every width, length and accumulation of the protocol."""
        return replace(
            self,
            widths=(1024, 2048, 4096),
            tokens=(512, 1024, 2048),
            grad_accum=(1, 2, 8),
            model_dtypes=("fp32", "bf16"),
            model_grad_accum=(1, 8),
            checkpointing=(False, True),
        )


@dataclass(frozen=True)
class GpuOptions:
    """`make bench-gpu`. The defaults are Llama-3.1-8B and the protocol of the field."""

    minutes: float = 8.0
    """Wall clock aimed at for everything, in minutes; arms share it and measure fewer steps if it is short."""
    warmup: int = 10
    """Steps before the clock, fewer if time is short."""
    steps: int = 30
    """Measured steps, fewer if time is short (never below 3)."""
    shapes: tuple[tuple[int, int, int], ...] = ((2, 256, 4), (2, 2048, 8))
    """(rows, tokens of a row, grad-accum): short rows, then packed ones."""
    layers: int = 32
    """Decoder layers."""
    hidden: int = 4096
    """Hidden size."""
    intermediate: int = 14336
    """Width of the MLP."""
    heads: int = 32
    """Attention heads."""
    kv_heads: int = 8
    """Key and value heads."""
    vocabulary: int = 128256
    """Rows of the embedding and of the output head."""
    rank: int = 16
    """Rank of the adapters; alpha is the same."""
    arms: tuple[str, ...] = ()
    """Names of gpu.ARMS; empty: all."""
    optimizer: str = "adamw_8bit"
    """adamw_8bit (bitsandbytes) or adamw (torch, fused)."""
    cap_gib: float | None = None
    """Let the allocator have this much only, to stand in for a smaller card; None: all of it."""
    kernels: bool = True
    """Also measure each kernel against its roofline."""
    device: str = "cuda"
    """cuda, or cpu to try the machinery."""
    seed: int = 0
    """Of weights and token ids."""

    def changed(self, **asked: Any) -> GpuOptions:
        """What was asked for on the command line; None and () leave a field as it is."""
        return replace(self, **_given(asked))


@dataclass(frozen=True)
class DataOptions:
    """`make bench-data`. The defaults are the protocol: six minutes on two cores."""

    rows: int = 50_000
    """Lines of the planted training file."""
    seeds: tuple[str, ...] = ()
    """Files or folders of real rows that the planted ones are made of; empty: sentences of the demo."""
    baseline: str = "datasketch"
    """Of BASELINES: what is measured beside ours, on the same rows."""
    memory_rows: int = 10_000
    """Rows of the smallest set that memory is measured on; 0: it is measured on the planted rows alone."""
    text_factors: tuple[int, ...] = (1, 4, 16)
    """How much longer the texts of those sets are, with the same number of rows."""
    row_factors: tuple[int, ...] = (1, 2, 4)
    """How many more rows they have, with texts of the same length."""
    workers: int | None = None
    """As `data.workers`: processes that judge rows; None: one per core."""
    max_length: int = 2048
    """As `model.max_length`, in tokens."""
    seed: int = 0
    """Of what is planted where, and of the split."""

    def changed(self, **asked: Any) -> DataOptions:
        """What was asked for on the command line; None and () leave a field as it is."""
        return replace(self, **_given(asked))


EXPORT_CASES = ("demo", "light", "wide", "large")
"""What `make bench-export` can export, see export_cases.py."""


@dataclass(frozen=True)
class ExportOptions:
    """`make bench-export`. The defaults are the protocol: an hour on two cores, 12 GB of disk."""

    cases: tuple[str, ...] = EXPORT_CASES
    """Which of EXPORT_CASES."""
    shards: int = 3
    """Files of the large checkpoint, 0.9 GiB each."""
    workers: tuple[int, ...] = (1, 2)
    """Shards that its merge writes at a time."""
    folder: str | None = None
    """Where the checkpoints lie meanwhile; None: the system's folder for such things."""

    def changed(self, **asked: Any) -> ExportOptions:
        """What was asked for on the command line; None and () leave a field as it is."""
        return replace(self, **_given(asked))


def _given(asked: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in asked.items() if value not in (None, ())}


@dataclass(frozen=True)
class PeftTestOptions:
    """`python -m benchmarks peft-tests`."""

    checkout: str
    """Folder of PEFT's source with its tests, of the installed version."""
    folder: str | None = None
    """Where results lie, and where a run that was stopped goes on; None: a temporary folder."""
    files: tuple[str, ...] = ()
    """Test files without .py; empty: suite.FILES."""
    select: str = (
        "(lora or dora) and not "
        "(vblora or unilora or tinylora or randlora or velora or gralora or glora or delora or boft)"
    )
    """As pytest's -k. The default is LoRA and its variants; others with LoRA in their name have no layer to fuse."""
    limit: int | None = None
    """Tests at most; None: all."""

    def changed(self, **asked: Any) -> PeftTestOptions:
        """What was asked for on the command line; None and () leave a field as it is."""
        return replace(self, **_given(asked))
