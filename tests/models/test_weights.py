"""Reading safetensors folders by rows and writing them in a stream, against the safetensors library itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from breadth import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_checkpoints import save_base, tensors_of

from qdora_fast.models import weights
from qdora_fast.models.weights import TensorInfo, WeightFolder, write_shard
from qdora_fast.system.errors import ConfigError, IntegrityError

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool]
shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)


@settings(max_examples=examples(60), deadline=None)
@given(made=st.lists(st.tuples(shapes, st.sampled_from(DTYPES)), max_size=6))
def test_what_is_written_is_read_by_the_library(
    made: list[tuple[tuple[int, ...], torch.dtype]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("written")
    tensors = {f"t{i}": (torch.randn(shape) * 9).to(dtype) for i, (shape, dtype) in enumerate(made)}

    def blocks(info: TensorInfo) -> Iterator[torch.Tensor]:
        whole = tensors[info.name]
        return iter(whole.split(2)) if info.shape and info.rows else iter([whole])

    infos = [TensorInfo(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
    written: list[int] = []
    digest = write_shard(folder / "model.safetensors", infos, blocks, written.append)
    content = (folder / "model.safetensors").read_bytes()
    assert digest == hashlib.sha256(content).hexdigest()
    assert sum(written) == sum(info.nbytes for info in infos)
    back = load_file(folder / "model.safetensors")
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert back[name].reshape(-1).view(torch.uint8).equal(tensor.reshape(-1).view(torch.uint8))
    ours = WeightFolder(folder)
    assert {info.name: info for info in infos} == ours.infos
    assert all(ours.tensor(name).equal(back[name]) for name in tensors)


def test_the_library_s_own_file_comes_out_byte_for_byte(tmp_path: Path) -> None:
    base = WeightFolder(save_base(tmp_path / "base"))
    for shard, infos in base.shards.items():
        write_shard(tmp_path / shard, infos, lambda info: iter([base.tensor(info.name)]))
        assert (tmp_path / shard).read_bytes() == (base.folder / shard).read_bytes()


def test_rows_come_from_the_right_shard(tmp_path: Path) -> None:
    folder = save_base(tmp_path / "base")
    table, tensors = WeightFolder(folder), tensors_of(folder)
    assert len(table.shards) > 2
    assert table.infos.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(table.rows(name, 3, 7), tensor[3:7])


def test_blocks_cover_every_row_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "BLOCK_BYTES", 1000)
    for shape in [(100, 64), (7,), (), (1, 10_000), (5, 3, 50)]:
        info = TensorInfo("t", torch.bfloat16, shape)
        spans = list(info.blocks())
        assert [row for start, stop in spans for row in range(start, stop)] == list(range(info.rows))


def test_damaged_folders_are_named(tmp_path: Path) -> None:
    folder = save_base(tmp_path / "base")
    index = folder / "model.safetensors.index.json"
    with pytest.raises(ConfigError, match="no such folder"):
        WeightFolder(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"no model\.safetensors"):
        WeightFolder(tmp_path)
    good = index.read_text()
    wrong = json.loads(good)
    files = sorted(set(wrong["weight_map"].values()))
    wrong["weight_map"]["lm_head.weight"] = files[files.index(wrong["weight_map"]["lm_head.weight"]) - 1]
    for content, message in [
        ("{", "not valid JSON"),
        ("[]", "expected a JSON object"),
        ("{}", "no `weight_map`"),
        (json.dumps({"weight_map": {"a": "../../etc/model.safetensors"}}), "no `weight_map`"),
        (json.dumps({"weight_map": {"a": "absent.safetensors"}}), r"absent.safetensors: missing"),
        (json.dumps(wrong), "are not where it says"),
    ]:
        index.write_text(content)
        with pytest.raises(IntegrityError, match=message):
            WeightFolder(folder)
    index.write_text(good)
    shard = next(iter(WeightFolder(folder).shards))
    (folder / shard).write_bytes((folder / shard).read_bytes()[:-1])
    with pytest.raises(IntegrityError, match=shard):
        WeightFolder(folder)


def test_unknown_number_formats_are_refused(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(4, dtype=torch.complex64)}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=r"tensor w has type C64"):
        WeightFolder(tmp_path)
