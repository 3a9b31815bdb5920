"""A folder of safetensors files as one table of tensors, read and written in blocks of rows.

Why not `load_file` and `save_file`: they hold a whole file. Merging a 70B model must work on a
small PC, so here nothing larger than a block of rows is ever in memory. Reading goes through
`safe_open(...).get_slice`; the file is opened again for each block, because a mapped file counts
every page it has touched as ours (a 512 MB file read through one handle costs 580 MB resident,
block by block 60 MB, in the same time). Writing is by hand, since no library streams: a
safetensors file is eight bytes of header length, a JSON header and the tensors' bytes in order.

What this does not do: judge the tensors. `base.py` and `merge.py` know what they mean.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from qdora_fast.models.base_files import INDEX_NAME, damage, shard_names
from qdora_fast.system.errors import ConfigError, IntegrityError
from qdora_fast.system.json_files import read_object

BLOCK_BYTES = 4 * 2**20
"""Size of a block of rows once it is in fp32. A merge holds about four such blocks; they should fit into the
processor's cache, which made merging twice as fast as blocks of 32 MiB."""

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of one tensor."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Length of the first dimension; 1 for a scalar."""
        return self.shape[0] if self.shape else 1

    @property
    def nbytes(self) -> int:
        """Size on disk in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Yield (start, stop) rows that together cover the tensor, each `BLOCK_BYTES` or one row."""
        row_bytes = max(1, math.prod(self.shape[1:]) * torch.float32.itemsize)
        step = max(1, BLOCK_BYTES // row_bytes)
        for start in range(0, self.rows, step):
            yield start, min(start + step, self.rows)


class WeightFolder:
    """The safetensors checkpoint in `folder`: one `model.safetensors`, or shards named by an index.

    Args:
        folder: a model's folder, or an adapter's with `single` naming its one file.
        names: name in the files -> name by which a tensor is known here, where they differ; see `stored_names.py`.

    Attributes:
        shards: file name -> its tensors, in the order of their bytes.
        infos: tensor name -> what its header says.

    Raises:
        ConfigError: no safetensors weights there (with a word on pickled `.bin` files).
        IntegrityError: a shard is missing or unreadable, or the index and the shards disagree.
    """

    def __init__(self, folder: Path, single: str | None = None, *, names: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.indexed = single is None and (folder / INDEX_NAME).is_file()
        files = [single] if single else shard_names(folder)
        stored = {file: _read_header(folder / file) for file in files}
        if self.indexed:
            _check_index(folder, {info.name: file for file, infos in stored.items() for info in infos})
        known = names or {}
        self._stored = {name: in_file for in_file, name in known.items()}
        self.shards = {
            file: [replace(info, name=known.get(info.name, info.name)) for info in infos]
            for file, infos in stored.items()
        }
        self.infos = {info.name: info for infos in self.shards.values() for info in infos}
        self._shard_of = {info.name: file for file, infos in self.shards.items() for info in infos}

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of a tensor, in its stored dtype; a scalar comes as a tensor of shape [1]."""
        return read_rows(self.folder / self._shard_of[name], self._stored.get(name, name), start, stop)

    def tensor(self, name: str) -> Tensor:
        """A whole tensor in its stored dtype and shape."""
        info = self.infos[name]
        return self.rows(name, 0, info.rows).reshape(info.shape)

    def stored_name(self, name: str) -> str:
        """Name in the files of a tensor, or of a part of one that is to be written, such as `x.weight.absmax`."""
        owner, rest = name, ""
        while owner and owner not in self._stored:
            owner, dot, part = owner.rpartition(".")
            rest = dot + part + rest
        return self._stored[owner] + rest if owner else name


def read_rows(file: Path, name: str, start: int, stop: int) -> Tensor:
    """Rows [start, stop) of one tensor of a safetensors file, with no page of the file kept mapped."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as handle:
        part = handle.get_slice(name)
        if not part.get_shape():
            return handle.get_tensor(name).reshape(1)
        return part[start:stop]


def write_shard(
    file: Path,
    infos: Iterable[TensorInfo],
    blocks: Callable[[TensorInfo], Iterator[Tensor]],
    on_bytes: Callable[[int], None] | None = None,
) -> str:
    """Write one safetensors file tensor by tensor, block by block, and flush it to the disk.

    Args:
        file: created or overwritten.
        infos: what goes in, in an order that keeps each aligned with its dtype (`widest_first`).
        blocks: the rows of one tensor in order, already in `info.dtype`.
        on_bytes: told the size of each block just written, for a progress bar.

    Returns:
        The sha256 of the file.
    """
    ordered = list(infos)
    header = _header_bytes(ordered)
    digest = hashlib.sha256(header)
    with file.open("wb") as out:
        out.write(header)
        for info in ordered:
            written = 0
            for block in blocks(info):
                assert block.dtype == info.dtype, f"{info.name}: {block.dtype} is not {info.dtype}"
                data = memoryview(block.contiguous().reshape(-1).view(torch.uint8).numpy())
                out.write(data)
                digest.update(data)
                written += len(data)
                if on_bytes:
                    on_bytes(len(data))
            assert written == info.nbytes, f"{info.name}: wrote {written} of {info.nbytes} bytes"
        out.flush()
        os.fsync(out.fileno())
    return digest.hexdigest()


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums are added up in one order, so that the same input gives the same bytes in any thread, on any number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def widest_first(infos: Iterable[TensorInfo]) -> list[TensorInfo]:
    """The order in which the library writes, too: wider dtypes first, otherwise as given."""
    return sorted(infos, key=lambda info: -info.dtype.itemsize)


def write_index(folder: Path, shard_of: dict[str, str], total_bytes: int) -> None:
    """Write the index that tells loaders which shard holds which tensor."""
    index = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(shard_of.items()))}
    (folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _read_header(file: Path) -> list[TensorInfo]:
    """Name, dtype and shape of a file's tensors in the order of their bytes."""
    from safetensors import SafetensorError, safe_open

    if file.is_file() and (wrong := damage(file)):
        raise IntegrityError(f"{file}: not a complete safetensors file ({wrong}); copy or download it again")
    infos = []
    try:
        with safe_open(file, framework="pt") as handle:
            for name in handle.offset_keys():
                part = handle.get_slice(name)
                if part.get_dtype() not in _DTYPES:
                    raise ConfigError(f"{file}: tensor {name} has type {part.get_dtype()}, which cannot be merged")
                infos.append(TensorInfo(name, _DTYPES[part.get_dtype()], tuple(part.get_shape())))
    except FileNotFoundError as error:
        raise IntegrityError(f"{file}: missing, though the index names it; copy or download it again") from error
    except (SafetensorError, OSError) as error:
        raise IntegrityError(f"{file}: not a complete safetensors file ({error}); copy or download it again") from error
    return infos


def _check_index(folder: Path, shard_of: dict[str, str]) -> None:
    """Raise IntegrityError unless the index names exactly the tensors that the shards hold."""
    weight_map = read_object(folder / INDEX_NAME, {"weight_map": dict})["weight_map"]
    wrong = sorted(name for name in {*weight_map, *shard_of} if weight_map.get(name) != shard_of.get(name))
    if wrong:
        raise IntegrityError(
            f"{folder / INDEX_NAME}: {len(wrong)} tensors are not where it says, first {wrong[0]}; "
            "the folder mixes two checkpoints: download it again"
        )


def _header_bytes(infos: list[TensorInfo]) -> bytes:
    """The file's first bytes: length, then JSON padded with spaces to a multiple of eight."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for info in infos:
        end = offset + info.nbytes
        entries[info.name] = {"dtype": _NAMES[info.dtype], "shape": list(info.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
