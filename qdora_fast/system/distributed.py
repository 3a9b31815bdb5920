"""One run in several processes, one a GPU, as torchrun starts them (PyTorch's DDP).

    torchrun --nproc-per-node 2 --no-python qdora-fast train CONFIG

Every process holds the whole 4-bit model and trains on its share of each step's rows; gradients of
the adapter are averaged. The effective batch stays what the config says, so one card and several
learn the same thing. The main process (rank 0) prints, writes, evaluates and exports; where the
others must wait for its result, or need the same value, the functions here see to it. Started
without torchrun there is one process, and none of them does anything.

What it does not do: split a model that does not fit one card, or continue when a process dies. Then
all end, and the run can be resumed from its newest checkpoint.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from qdora_fast.system.errors import ConfigError

T = TypeVar("T")
PATIENCE = timedelta(hours=12)
"""How long ranks wait for the main process (it may prepare millions of rows). The death of one ends all sooner."""


def world_size() -> int:
    """The number of processes of this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The number of this process among them, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """Whether this is the main process, which prints and writes for all."""
    return rank() == 0


def accumulation_per_rank(accumulation: int) -> int:
    """Forward passes per optimizer step of one process.

    Raises:
        ConfigError: they cannot be shared evenly, and the effective batch would be another.
    """
    if accumulation % world_size():
        raise ConfigError(
            f"train.gradient_accumulation: {accumulation} forward passes cannot be shared by {world_size()} processes; "
            f"take a multiple of {world_size()}, or set train.effective_batch and train.batch_size: auto"
        )
    return accumulation // world_size()


@contextmanager
def process_group() -> Iterator[None]:
    """PyTorch's process group, in which the ranks communicate until the block ends."""
    if world_size() == 1:
        yield
        return
    import torch

    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group("nccl" if gpu else "gloo", timeout=PATIENCE)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


@contextmanager
def main_process_first() -> Iterator[None]:
    """The main process runs the block, then the others, which find its results in the cache. If it fails, all end."""
    if is_main():
        yield
    barrier()
    if not is_main():
        yield


def barrier() -> None:
    """Wait until all processes are here."""
    if world_size() > 1:
        import torch

        torch.distributed.barrier()


def broadcast(value: T) -> T:
    """The main process's value, in every process."""
    if world_size() == 1:
        return value
    import torch

    box: list[Any] = [value]
    torch.distributed.broadcast_object_list(box)
    return box[0]


def all_reduce_max(value: int) -> int:
    """The largest value of any process, in every process."""
    if world_size() == 1:
        return value
    import torch

    shared = torch.tensor(value, device="cuda" if torch.distributed.get_backend() == "nccl" else "cpu")
    torch.distributed.all_reduce(shared, op=torch.distributed.ReduceOp.MAX)
    return int(shared.item())


def all_gather(value: T) -> list[T]:
    """Every process's value, in the order of their ranks, in every process."""
    if world_size() == 1:
        return [value]
    import torch

    gathered: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(gathered, value)
    return gathered
