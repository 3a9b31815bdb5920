"""Values of stored tensors, read and changed where they lie in a safetensors file; every other byte stays."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "U8": "uint8", "I64": "int64", "I32": "int32"}


@dataclass(frozen=True)
class Stored:
    """Where one tensor lies."""

    file: Path
    start: int
    """Its first byte in the file."""
    dtype: str
    """As torch calls it."""
    shape: tuple[int, ...]

    def read(self) -> Any:
        """The tensor."""
        import torch

        dtype = getattr(torch, self.dtype)
        with self.file.open("rb") as file:
            file.seek(self.start)
            content = bytearray(file.read(math.prod(self.shape) * dtype.itemsize))
        return torch.frombuffer(content, dtype=dtype).reshape(self.shape)

    def write(self, tensor: Any) -> None:
        """Put another tensor of this dtype and shape in its place."""
        import torch

        assert str(tensor.dtype) == f"torch.{self.dtype}" and tuple(tensor.shape) == self.shape
        with self.file.open("r+b") as file:
            file.seek(self.start)
            file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """All tensors of a folder by name, in a fixed order."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            header = json.loads(handle.read(length))
        for name, said in header.items():
            if name != "__metadata__":
                place = 8 + length + said["data_offsets"][0]
                found[name] = Stored(file, place, _DTYPES[said["dtype"]], tuple(said["shape"]))
    return dict(sorted(found.items()))


def differing_values(folder: Path, other: Path) -> int:
    """Values whose bits differ between two folders; tensors that only one of them has count in full."""
    import torch

    ours, theirs = stored_tensors(folder), stored_tensors(other)
    count = sum(math.prod({**ours, **theirs}[name].shape) for name in ours.keys() ^ theirs.keys())
    for name in ours.keys() & theirs.keys():
        one, two = ours[name].read(), theirs[name].read()
        if one.dtype != two.dtype or one.shape != two.shape:
            count += max(one.numel(), two.numel())
        elif one.numel():
            same = one.reshape(-1).view(torch.uint8) == two.reshape(-1).view(torch.uint8)
            count += int((~same.view(-1, one.dtype.itemsize).all(dim=1)).sum())
    return count


def one_ulp(stored: Stored, place: int) -> None:
    """Move one value of a floating-point tensor to the next number away from zero."""
    import torch

    tensor = stored.read()
    bits = tensor.reshape(-1).view(torch.int16 if tensor.dtype.itemsize == 2 else torch.int32)
    bits[place] += 1
    stored.write(tensor)


def change_json(file: Path, change: Any) -> None:
    """Apply `change(content)` to a JSON file, in place."""
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
