"""A 4-bit NF4 weight as bitsandbytes holds and stores it, made and read in blocks of rows.

bitsandbytes packs a whole tensor at once: every 64 values share a scale, then the scales of the
whole tensor, minus their mean, are quantised in groups of 256. Only the second step needs the
whole tensor, and it looks at one number in 64. So rows can come and go in blocks while the scales
are retained, and the result is what bitsandbytes gives on one thread, to the last bit (a 70B model's
largest layer: 112 MiB packed and 14 MiB of scales, instead of 448 MiB and copies of it). Both
steps are bitsandbytes' own functions.

`stored_infos` and `parts` are its on-disk layout, which plain Transformers reads. The JSON in it is
padded with spaces, so that its length, and with it a file's header, is known before a value is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from qdora_fast.models.weights import TensorInfo, one_thread

BLOCK = 64
"""Values that share a scale."""
GROUP = 256
"""Scales that share a scale of their own."""

STATE = "quant_state.bitsandbytes__nf4"
_LONGEST_FLOAT = -2.2250738585072014e-308


class PackedWeight:
    """A 4-bit weight of any shape; made by `pack` or `from_parts`.

    Args:
        packed: two values a byte, [n / 2, 1].
        state: bitsandbytes' QuantState.
    """

    def __init__(self, packed: Tensor, state: Any) -> None:
        from bitsandbytes.functional import dequantize_blockwise

        self._packed, self._state = packed.reshape(-1, 1), state
        scales = dequantize_blockwise(state.absmax, state.state2) + state.offset if state.nested else state.absmax
        self._scales = scales.float()

    @classmethod
    def pack(cls, blocks: Iterable[Tensor], info: TensorInfo) -> PackedWeight:
        """NF4 with double quantisation of the tensor whose rows come in `blocks`, in order and in `info.dtype`."""
        from bitsandbytes.functional import QuantState, get_4bit_type, quantize_4bit, quantize_blockwise

        values = math.prod(info.shape)
        packed = torch.empty(-(-values // 2), dtype=torch.uint8)
        scales = torch.empty(-(-values // BLOCK))
        for start, stop, part in _aligned(blocks, values):
            codes, state = quantize_4bit(part, blocksize=BLOCK, quant_type="nf4")
            packed[start // 2 : -(-stop // 2)] = codes.flatten()
            scales[start // BLOCK : -(-stop // BLOCK)] = state.absmax
        with one_thread():
            mean = scales.mean()
        absmax, nested = quantize_blockwise(scales - mean, blocksize=GROUP)
        state = QuantState(
            absmax=absmax,
            shape=torch.Size(info.shape),
            dtype=info.dtype,
            blocksize=BLOCK,
            code=get_4bit_type("nf4", device=packed.device),
            quant_type="nf4",
            offset=mean,
            state2=nested,
        )
        return cls(packed, state)

    @classmethod
    def from_parts(cls, parts: dict[str, Tensor], dtype: torch.dtype | None = None) -> PackedWeight:
        """A stored weight: "" and the names after `X.weight.`, to tensors. It unpacks to `dtype`, if given."""
        from bitsandbytes.functional import QuantState

        described = {name: part for name, part in parts.items() if name}
        state = QuantState.from_dict(described, device=torch.device("cpu"))
        state.dtype = dtype or state.dtype
        return cls(parts[""], state)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight, unpacked."""
        return tuple(self._state.shape)

    def rows(self, start: int, stop: int, dtype: torch.dtype | None = None) -> Tensor:
        """Rows [start, stop), unpacked to `dtype`; None: the one they were packed from."""
        from bitsandbytes.functional import QuantState, dequantize_4bit

        block, width = self._state.blocksize, math.prod(self.shape[1:])
        first, last = start * width // block * block, min(-(-stop * width // block) * block, math.prod(self.shape))
        part = QuantState(
            absmax=self._scales[first // block : -(-last // block)],
            shape=torch.Size((1, last - first)),
            dtype=dtype or self._state.dtype,
            blocksize=block,
            code=self._state.code,
            quant_type=self._state.quant_type,
        )
        values = dequantize_4bit(self._packed[first // 2 : -(-last // 2)].contiguous(), part).flatten()
        return values[start * width - first : stop * width - first].reshape(stop - start, *self.shape[1:])

    def parts(self) -> dict[str, Tensor]:
        """What is stored: "" is the weight itself, other keys follow its name and a dot."""
        tensors = {"": self._packed, **self._state.as_dict(packed=True)}
        wanted = _state_bytes(TensorInfo("", self._state.dtype, self.shape))
        padding = torch.full((wanted - len(tensors[STATE]),), ord(" "), dtype=torch.uint8)
        return tensors | {STATE: torch.cat([tensors[STATE], padding])}


def codes_of(values: Tensor) -> Tensor:
    """The 4-bit codes of flat values, whole blocks of them but for the last: two in a byte, flat."""
    from bitsandbytes.functional import quantize_4bit

    return quantize_4bit(values.contiguous(), blocksize=BLOCK, quant_type="nf4")[0].flatten()


def stored_infos(info: TensorInfo) -> list[TensorInfo]:
    """The tensors that store `info` in NF4, in an order that keeps each of them aligned in a file."""
    values = math.prod(info.shape)
    scales = -(-values // BLOCK)
    sizes: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        "nested_absmax": (torch.float32, (-(-scales // GROUP),)),
        "nested_quant_map": (torch.float32, (256,)),
        "quant_map": (torch.float32, (16,)),
        "": (torch.uint8, (-(-values // 2), 1)),
        "absmax": (torch.uint8, (scales,)),
        STATE: (torch.uint8, (_state_bytes(info),)),
    }
    return [TensorInfo(f"{info.name}.{part}" if part else info.name, *form) for part, form in sizes.items()]


def quantization_config(compute_dtype: torch.dtype, skipped: Collection[str]) -> dict[str, Any]:
    """What config.json says of such weights; `skipped`: linear layers that stay as they are."""
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
        llm_int8_skip_modules=sorted(skipped),
    )
    return dict(config.to_dict())


def _aligned(blocks: Iterable[Tensor], values: int) -> Iterator[tuple[int, int, Tensor]]:
    """The same values as (start, stop, flat part) whose bounds are multiples of `BLOCK`, but for the last."""
    start, rest = 0, None
    for block in blocks:
        flat = block.flatten() if rest is None else torch.cat([rest, block.flatten()])
        last = start + len(flat) == values
        taken = len(flat) if last else len(flat) // BLOCK * BLOCK
        if taken:
            yield start, start + taken, flat[:taken].contiguous()
        start, rest = start + taken, flat[taken:] if taken < len(flat) else None


def _state_bytes(info: TensorInfo) -> int:
    """Length of the padded JSON: room for any mean of scales, and for what stands before it to end on 8 bytes."""
    described = {
        "quant_type": "nf4",
        "blocksize": BLOCK,
        "dtype": str(info.dtype).removeprefix("torch."),
        "shape": info.shape,
        "nested_blocksize": GROUP,
        "nested_dtype": "float32",
        "nested_offset": _LONGEST_FLOAT,
    }
    values, length = math.prod(info.shape), len(json.dumps(described))
    before = -(-values // 2) + -(-values // BLOCK) + 4 * -(-values // (BLOCK * GROUP))
    return length + -(before + length) % 8
