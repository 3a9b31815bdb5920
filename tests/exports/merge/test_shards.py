"""Interrupted merges: what is kept, what is never taken, and that the end is the same to the last bit."""

from __future__ import annotations

import dataclasses
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from tiny_checkpoints import save_adapter_for, save_base

from qdora_fast.exports.merge.base import MergeRecipe
from qdora_fast.exports.merge.merge import merge
from qdora_fast.exports.merge.shards import LEDGER
from qdora_fast.models import weights
from qdora_fast.system.errors import DiskSpaceError

Pair = tuple[Path, Path]

KILLED = """
import os, signal, sys
from pathlib import Path
from qdora_fast.models import weights
from qdora_fast.exports.merge.base import MergeRecipe
from qdora_fast.exports.merge.merge import merge
weights.BLOCK_BYTES = 5 * 64 * 4
base, adapter, out, nf4, last = sys.argv[1:]
seen = []
def on_bytes(count):
    seen.append(count)
    if len(seen) == int(last):
        os.kill(os.getpid(), signal.SIGKILL)
merge(Path(base), Path(adapter), Path(out), MergeRecipe(nf4=nf4 == "nf4"), workers=1, on_bytes=on_bytes)
"""


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pair:
    """A bf16 base in several shards and a DoRA adapter for it; blocks of five rows."""
    base = save_base(tmp_path / "base", shard_size="40KB")
    save_adapter_for(base, tmp_path / "adapter", use_dora=True)
    monkeypatch.setattr(weights, "BLOCK_BYTES", 5 * 64 * 4)
    return base, tmp_path / "adapter"


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def kill(pair: Pair, out: Path, blocks: int, kind: str = "dense") -> Path:
    """Kill a process in the middle of a merge, and return what it left."""
    command = [sys.executable, "-c", KILLED, *map(str, pair), str(out), kind, str(blocks)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not out.exists()
    return out.with_name(f"{out.name}.incomplete")


@pytest.mark.parametrize(("kind", "blocks"), [("dense", 140), ("nf4", 60)])
def test_a_killed_merge_goes_on_from_its_finished_shards(pair: Pair, tmp_path: Path, kind: str, blocks: int) -> None:
    recipe = MergeRecipe(nf4=kind == "nf4")
    merge(*pair, tmp_path / "whole", recipe)
    left = kill(pair, tmp_path / "out", blocks, kind)
    (half,) = left.glob("*.part")
    finished = {path.name: path.stat().st_mtime_ns for path in left.glob("*.safetensors")}
    assert finished
    seen: list[int] = []
    report = merge(*pair, tmp_path / "out", recipe, on_bytes=seen.append)
    assert report.resumed == len(finished) < len(report.sha256)
    assert half.name.removesuffix(".part") not in finished
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in finished} == finished  # not made again
    assert sum(seen) == report.bytes
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    assert not list(tmp_path.glob("*.incomplete"))


@pytest.mark.parametrize("changed", ["adapter", "base"])
def test_shards_of_other_work_are_never_taken(pair: Pair, tmp_path: Path, changed: str) -> None:
    base, adapter = pair
    kill(pair, tmp_path / "out", 140)
    if changed == "adapter":
        save_adapter_for(base, adapter, use_dora=True, b_std=0.2)
    else:
        shutil.rmtree(base)
        save_base(base, shard_size="40KB", seed=1)
    assert merge(base, adapter, tmp_path / "out").resumed == 0
    merge(base, adapter, tmp_path / "whole")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


SOME = frozenset({"model.layers.0.mlp.up_proj", "model.layers.1.self_attn.q_proj"})
RECIPES = {
    "merge_base": (MergeRecipe(), MergeRecipe("dequant4")),
    "quantized_modules": (MergeRecipe("dequant4"), MergeRecipe("dequant4", quantized_modules=SOME)),
    "trained_dtype": (MergeRecipe("dequant4"), MergeRecipe("dequant4", trained_dtype=torch.float16)),
    "dtype": (MergeRecipe(), MergeRecipe(dtype=torch.float16)),
    "nf4": (MergeRecipe(nf4=True), MergeRecipe()),
}


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("setting", [field.name for field in dataclasses.fields(MergeRecipe)])
def test_shards_of_another_recipe_are_never_taken(pair: Pair, tmp_path: Path, setting: str, back: bool) -> None:
    """Whichever setting of the recipe differs, and in whichever direction."""
    first, then = reversed(RECIPES[setting]) if back else RECIPES[setting]
    assert dataclasses.replace(first, **{setting: getattr(then, setting)}) == then

    def interrupt(count: int) -> None:
        if list((tmp_path / "out.incomplete").glob("*.safetensors")):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(*pair, tmp_path / "out", first, workers=1, on_bytes=interrupt)
    assert merge(*pair, tmp_path / "out", then).resumed == 0
    merge(*pair, tmp_path / "whole", then)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_a_damaged_shard_is_made_again_and_what_is_not_ours_goes(pair: Pair, tmp_path: Path) -> None:
    left = kill(pair, tmp_path / "out", 140)
    finished = sorted(left.glob("*.safetensors"))
    content = bytearray(finished[0].read_bytes())
    content[-3] ^= 1
    finished[0].write_bytes(content)
    (left / "model-00099-of-00099.safetensors").write_text("half")
    (left / "folder").mkdir()
    assert merge(*pair, tmp_path / "out").resumed == len(finished) - 1
    merge(*pair, tmp_path / "whole")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_a_damaged_ledger_is_worth_nothing(pair: Pair, tmp_path: Path) -> None:
    ledger = kill(pair, tmp_path / "out", 140) / LEDGER
    ledger.write_text(ledger.read_text()[:-9])
    assert merge(*pair, tmp_path / "out").resumed == 0


def test_what_an_earlier_version_left_behind_is_written_anew(pair: Pair, tmp_path: Path) -> None:
    left = kill(pair, tmp_path / "out", 140)
    (left / LEDGER).rename(left / "finished.json")
    assert merge(*pair, tmp_path / "out").resumed == 0
    merge(*pair, tmp_path / "whole")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


@pytest.mark.parametrize("workers", [1, 3])
def test_a_full_disk_keeps_what_is_finished_and_says_so(pair: Pair, tmp_path: Path, workers: int) -> None:
    seen: list[int] = []

    def full_disk(count: int) -> None:
        seen.append(count)
        if len(seen) >= 140:
            raise OSError(28, "No space left on device")

    with pytest.raises(DiskSpaceError, match=r"No space left.*; \d+ of \d+ shards are finished.*resumes from them"):
        merge(*pair, tmp_path / "out", workers=workers, on_bytes=full_disk)
    left = tmp_path / "out.incomplete"
    assert not left.exists() or not list(left.glob("*.part"))
    merge(*pair, tmp_path / "out", workers=workers)
    merge(*pair, tmp_path / "whole")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_an_error_in_the_first_shard_leaves_nothing(pair: Pair, tmp_path: Path) -> None:
    def stop(count: int) -> None:
        raise KeyboardInterrupt

    before = sorted(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        merge(*pair, tmp_path / "out", on_bytes=stop)
    assert sorted(tmp_path.iterdir()) == before


def test_too_small_a_disk_is_refused_first(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 5 * 10**6, 5 * 10**6))
    with pytest.raises(DiskSpaceError, match=r"0\.27 GB are needed, 0\.01 GB are free"):
        merge(*pair, tmp_path / "new" / "out")
    assert not (tmp_path / "new").exists()
