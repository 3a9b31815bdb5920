"""What is trained, at which steps its adapter is kept, and what is exported from it, by size of the harness.

A batch is everything that is done with one kept adapter by one process: it has the arithmetic of that process. The
arithmetics go round over the batches, so that each base and form meets several.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle

EARLY = (1, 3, 12, 60)
"""Steps after which an adapter is kept."""
FORMS = ("original16", "dequant4", "nf4")
"""merged_16bit by its merge_base, and merged_4bit_forced; where a batch is done again, `auto` for the first."""

ARITHMETICS: dict[str, dict[str, str]] = {
    "native": {},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "default": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
}
"""Environment of the processes that export and prove; `native` is the machine's own, in which all is trained."""


@dataclass(frozen=True)
class Training:
    """One run whose adapter is kept at several steps."""

    base: str
    method: str
    r: int = 16
    learning_rate: float = 2e-3
    rslora: bool = False
    seed: int = 1
    steps: tuple[int, ...] = EARLY

    @property
    def name(self) -> str:
        """Of its folder, and in the record."""
        scale = "-rslora" if self.rslora else ""
        return f"{self.base}-{self.method}-r{self.r}{scale}-lr{self.learning_rate:g}-seed{self.seed}"

    @property
    def quantized(self) -> bool:
        """The base is held in 4 bits."""
        return self.method in ("qdora", "qlora")


@dataclass(frozen=True)
class Batch:
    """Exports of one kept adapter in one process."""

    training: Training
    step: int
    arithmetic: str
    threads: int
    live: bool
    """The evidence is what the training process recorded at that step; else the saved adapter is loaded."""
    forms: tuple[str, ...]
    right: bool = True
    """The right exports count; where not, they are only made for the controls to be compared with."""
    controls: tuple[str, ...] = field(default=())
    """Forms of which the controls are done."""

    @property
    def name(self) -> str:
        """Of its folder, and in the record."""
        evidence = "live" if self.live else "saved"
        return f"{self.training.name}/step-{self.step}/{self.arithmetic}-{self.threads}-{evidence}"


_LIGHT = 1e-4
SMALL = (
    Training("light", "qdora", learning_rate=_LIGHT, steps=(3, 12)),
    Training("gemma2", "qlora", r=4, steps=(3,)),
    Training("qwen2", "dora", learning_rate=1e-2, steps=(3,)),
)
FULL = (
    Training("demo", "qdora", steps=(*EARLY, 496)),
    Training("demo", "qlora", r=4),
    Training("demo", "dora", r=64, rslora=True),
    Training("demo", "lora", r=16, seed=2),
    Training("light", "qdora", learning_rate=_LIGHT),
    Training("light", "dora", learning_rate=_LIGHT, r=4),
    Training("light", "qlora", learning_rate=_LIGHT, r=64, rslora=True),
    Training("light", "lora", learning_rate=_LIGHT, seed=2),
    Training("llama-tied", "qdora", r=4, learning_rate=1e-2),
    Training("llama-tied", "lora", learning_rate=_LIGHT),
    Training("llama-untied", "qdora", r=64, rslora=True),
    Training("llama-untied", "dora", learning_rate=1e-2),
    Training("gqa", "qlora", learning_rate=1e-2),
    Training("gqa", "qdora", learning_rate=_LIGHT, seed=2),
    Training("zero-rows", "qdora"),
    Training("zero-rows", "dora", r=4, learning_rate=1e-2),
    Training("qwen2", "qdora", r=64, learning_rate=_LIGHT),
    Training("qwen2", "lora", rslora=True, learning_rate=1e-2),
    Training("gemma2", "qdora", learning_rate=1e-2),
    Training("gemma2", "qlora", r=4, seed=2),
    Training("wide", "qdora", learning_rate=_LIGHT, steps=(1, 12)),
    Training("wide", "lora", learning_rate=_LIGHT, r=4, steps=(3,)),
    Training("smollm2", "qdora", learning_rate=2e-4, steps=(1, 3, 12)),
    Training("smollm2", "dora", learning_rate=_LIGHT, r=4, steps=(3, 12)),
)
SIZES = {"small": SMALL, "full": FULL}

_HEAVY = ("wide", "smollm2")
"""A second for each export of the others, half a minute for theirs."""
_PROCESSES = ((1, True), (2, False), (1, False), (2, True))
"""Threads, and whether the evidence is the training process's own: then it was recorded in the machine's arithmetic."""
_CONTROLLED_STEPS = {"small": (3,), "full": (3, 60, 496)}
"""Steps of which controls are made: of the first in all forms, of later ones in one; of heavy bases the last step."""


def batches(size: str) -> list[Batch]:
    """All batches of a size, those of one arithmetic together."""
    seen: set[str] = set()
    found: list[Batch] = []
    rounds = cycle([(name, *process) for process in _PROCESSES for name in ARITHMETICS])
    for training in SIZES[size]:
        first = training.base not in seen
        seen.add(training.base)
        for step in training.steps:
            found += _of_step(size, training, step, first, rounds)
    order = list(ARITHMETICS)
    return sorted(found, key=lambda batch: order.index(batch.arithmetic))


def _of_step(
    size: str, training: Training, step: int, first: bool, rounds: Iterator[tuple[str, int, bool]]
) -> Iterator[Batch]:
    """The batches of one kept adapter: a second one, in another arithmetic, of each base's first training."""
    heavy = training.base in _HEAVY
    forms: tuple[str, ...] = FORMS if training.quantized else ("original16", "nf4")
    steps = training.steps[-1:] if heavy else _CONTROLLED_STEPS[size]
    controls = () if not first or step not in steps else forms if step == 3 else forms[:1]
    for turn in range(2 if first and not heavy and size == "full" else 1):
        arithmetic, threads, live = next(rounds)
        if turn:
            forms, controls = tuple("auto" if form == "original16" else form for form in forms), ()
        yield Batch(training, step, arithmetic, threads, live, forms, controls=controls)
