"""`train.vram`: a process that takes no more of the card than it was told to."""

from __future__ import annotations

from qdora_fast.planning.cards import CONTEXT, GIB
from qdora_fast.system.errors import ConfigError


def cap_memory(vram: float | None) -> str:
    """Hold PyTorch's allocator to `vram` GiB, less what the CUDA context takes beside it; None: the whole card.

    Returns:
        What was done, for the user; "" where nothing was asked.

    Raises:
        ConfigError: so little that not even the context fits.
    """
    import torch

    if not torch.cuda.is_available():
        return "" if vram is None else "train.vram: no GPU here, so there is nothing to cap"
    total = int(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)
    if vram is None or vram * GIB >= total:
        torch.cuda.set_per_process_memory_fraction(1.0)
        return "" if vram is None else f"train.vram: the card has {total / GIB:.1f} GiB, so nothing is capped"
    if vram * GIB <= CONTEXT:
        raise ConfigError(f"train.vram {vram:g}: the CUDA context alone takes about {CONTEXT / GIB:g} GiB")
    torch.cuda.set_per_process_memory_fraction((vram * GIB - CONTEXT) / total)
    return f"train.vram: at most {vram:g} of {total / GIB:.1f} GiB of the card, the CUDA context included"
