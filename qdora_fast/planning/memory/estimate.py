"""Bytes by part, and the peak of every phase of a run: loading, a training step, evaluation, merging.

A training step has two moments that can be the highest: the loss, when the logits are there, and the backward pass of
a block, when its activations and the gradients of its MLP are. The parts of the higher one are shown.

Three things on a GPU are assumed and not measured yet: what the CUDA context takes, what the allocator loses between
its blocks, and that bitsandbytes' paged state stays on the card. A margin (fit.py) stands for them and for the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qdora_fast.planning.cards import CONTEXT, GIB, Card
from qdora_fast.planning.memory import activations, weights
from qdora_fast.planning.memory.job import Job

PROCESS = int(0.65 * GIB)
"""Without a GPU: Python with all libraries imported. Measured."""
FRAGMENTATION = 0.05
"""Share of what comes and goes (activations, loss, workspace) that the allocator loses in gaps. Not measured yet."""
CHECKPOINTS_KEPT = 3
"""On disk at most: two that stay, and the one being written (trainer.py: save_total_limit)."""
MERGE_BLOCK = int(0.4 * GIB)
"""Host memory of the streaming merge beside the process itself: blocks of rows, in fp32."""
LOADED = ("CUDA context", "process", "base weights", "embeddings", "experts", "tower")
"""Parts that are there as soon as the base is loaded."""
LARGEST_SHARD = 5 * 10**9
"""Of a checkpoint on the hub. Read through the page cache; not all of it must be in memory at once."""


@dataclass(frozen=True)
class Part:
    """A share of the peak."""

    name: str
    bytes: int
    why: str = ""
    """In a few words, where it comes from."""


@dataclass(frozen=True)
class Estimate:
    """What a job needs."""

    job: Job
    parts: tuple[Part, ...]
    """Of the training step's peak; they add up to it."""
    phases: dict[str, int]
    """Peak on the card (without a GPU: in memory) by phase: load, step, evaluation, merge."""
    host: tuple[Part, ...]
    """Memory of the host, beside the process itself."""
    disk: tuple[Part, ...]

    @property
    def peak_bytes(self) -> int:
        """The highest phase's."""
        return max(self.phases.values())

    @property
    def peak_phase(self) -> str:
        """Which phase that is."""
        return max(self.phases, key=lambda phase: self.phases[phase])

    def as_dict(self) -> dict[str, Any]:
        """For JSON; bytes."""
        return {
            "peak_bytes": self.peak_bytes,
            "peak_phase": self.peak_phase,
            "phases": self.phases,
            "breakdown": {part.name: part.bytes for part in self.parts},
            "host": {part.name: part.bytes for part in self.host},
            "disk": {part.name: part.bytes for part in self.disk},
        }


def estimate(job: Job, card: Card | None) -> Estimate:
    """Count a job.

    Args:
        card: where it is to run; the loss depends on its size. None: on the CPU.
    """
    static = _static(job)
    moving = _moving(job, card)
    gaps = int(FRAGMENTATION * sum(part.bytes for part in moving)) if job.on_gpu else 0
    lost = [Part("gaps", gaps, "between the allocator's blocks")] if job.on_gpu else []
    parts = tuple(part for part in (*static, *moving, *lost) if part.bytes)
    return Estimate(job, parts, _phases(job, parts), _host(job, card), _disk(job))


def _static(job: Job) -> list[Part]:
    """What is there all the time of a training step."""
    sizes = job.sizes
    form = "4-bit NF4" if job.quantized else "16-bit" if job.element == 2 else "fp32"
    shared = ", the output head's as well" if sizes.tied else ", with the output head"
    width = "16-bit" if job.element == 2 else "fp32"
    method = "A, B and magnitudes" if job.decomposed else "A and B"
    trained = weights.trained_bytes(job)
    return [
        Part("CUDA context", CONTEXT, "driver and kernels")
        if job.on_gpu
        else Part("process", PROCESS, "Python and its libraries"),
        Part("base weights", weights.linear_bytes(job), f"{in_words(sizes.linear_values)} values in {form}"),
        Part("embeddings", weights.unquantized_bytes(job), f"{width}{shared}; and norms"),
        Part("experts", weights.expert_bytes(job), f"{width}; NF4 takes linear layers alone"),
        Part("tower", weights.tower_bytes(job), f"{width}, stays as it is: {sizes.tower}"),
        Part("adapter", trained, f"{method}, rank {job.rank}, fp32"),
        Part("gradients", trained, "fp32"),
        Part("optimizer", weights.optimizer_bytes(job), job.optimizer),
        Part("engine copies", weights.engine_bytes(job), "A, B and row norms, ready for use"),
        Part("merged weights", job.resident_bytes, "engine.resident"),
    ]


def _moving(job: Job, card: Card | None) -> list[Part]:
    """What comes and goes, at the higher of the two moments."""
    saved = activations.saved_bytes(job).card
    loss = activations.loss_bytes(job, None if card is None else card.memory)
    block = activations.recomputed_bytes(job)
    temporaries = activations.temporary_bytes(job) + activations.scores_bytes(job)
    workspace = activations.workspace_bytes(job)
    tokens = f"{job.batch_size} x {job.length:,} tokens"
    how = {"off": "all of all blocks", "torch": "input of each block", "unsloth": "inputs of blocks wait on the host"}
    common = Part("activations", saved, f"{tokens}; {how[job.checkpointing]}")
    if loss >= block + temporaries + workspace:
        return [common, Part("loss", loss, _loss_words(job))]
    return [
        common,
        Part("block", block, "one block, run again"),
        Part("backward", temporaries, "gradients within a block"),
        Part("workspace", workspace, "one weight, unpacked"),
    ]


def in_words(count: int) -> str:
    """8.03 billion, 2.1 million, 640."""
    for size, word in ((10**9, "billion"), (10**6, "million")):
        if count >= size:
            return f"{count / size:.3g} {word}"
    return f"{count:,}"


def in_gib(count: int) -> str:
    """Bytes in GiB, in MiB where that is clearer."""
    if count >= 0.1 * GIB:
        return f"{count / GIB:.1f} GiB"
    return f"{count / 2**20:,.0f} MiB" if count >= 2**20 else "under 1 MiB"


def _loss_words(job: Job) -> str:
    some = ", some at a time" if job.on_gpu else ""
    return f"logits over {job.sizes.vocabulary:,} words{some}"


def _phases(job: Job, parts: tuple[Part, ...]) -> dict[str, int]:
    size = {part.name: part.bytes for part in parts}
    model = sum(size.get(name, 0) for name in LOADED)
    largest = max(linear.values for linear in job.sizes.linears)
    phases = {
        "load": model + size.get("adapter", 0) + largest * (job.element + 2 * activations.FULL),
        "step": sum(size.values()),
    }
    if job.evaluates:
        phases["evaluation"] = evaluation_bytes(job, min(1, job.answer_batch))
    if job.merges:
        phases["merge"] = CONTEXT if job.on_gpu else PROCESS + _merge_bytes(job)  # streamed by the host
    return phases


def evaluation_bytes(job: Job, answers: int) -> int:
    """The peak of an evaluation that answers so many held-out rows of full length at a time. More than one is a matter
    of speed: where memory runs out fewer are. Merged weights and gradients are gone by then; the optimizer's state is
    still counted, because some stays until the process ends where it is paged."""
    staying = (*LOADED, "adapter", "optimizer", "engine copies")
    there = sum(part.bytes for part in _static(job) if part.name in staying)
    asked = max(activations.reading_bytes(job), activations.answering_bytes(job, answers))
    return there + activations.rotary_bytes(job) + asked + activations.workspace_bytes(job)


def _merge_bytes(job: Job) -> int:
    largest = max(linear.values for linear in job.sizes.linears)
    return min(MERGE_BLOCK, 3 * activations.FULL * largest) if job.merges else 0


def _host(job: Job, card: Card | None) -> tuple[Part, ...]:
    dense = job.sizes.parameters * 2
    proof = int(1.15 * dense) + GIB  # as fresh_process.py asks for before it opens the merged model on the card
    on_card = job.on_gpu and card is not None and card.usable > proof
    return tuple(
        part
        for part in (
            Part("loading", min(LARGEST_SHARD, dense), "a shard of the checkpoint, can be given back at once"),
            Part("offloaded activations", activations.saved_bytes(job).host, "pinned; Unsloth's checkpointing"),
            Part("merging", _merge_bytes(job), "block by block, never the whole model"),
            Part("proof", 0 if on_card or not job.merges else dense, "the merged model, which the card cannot hold"),
        )
        if part.bytes
    )


def _disk(job: Job) -> tuple[Part, ...]:
    dense = job.sizes.parameters * 2
    loaded = (weights.linear_bytes, weights.unquantized_bytes, weights.expert_bytes, weights.tower_bytes)
    base = sum(part(job) for part in loaded) if job.sizes.prequantized else dense
    adapter, state = weights.trained_bytes(job), weights.optimizer_bytes(job)
    return tuple(
        part
        for part in (
            Part("base", base, "download; nothing if it is there already"),
            Part("checkpoints", CHECKPOINTS_KEPT * (adapter + state), "adapter and optimizer, two and one being made"),
            Part("adapter", adapter, "fp32"),
            Part("merged_16bit", dense if job.merges else 0, "the model to serve"),
        )
        if part.bytes
    )
