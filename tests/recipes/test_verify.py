"""Each file of a run, flipped, cut, emptied, swapped or removed, is found and named; a whole run is whole."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from qdora_fast.cli.main import cli
from qdora_fast.recipes.chat import load
from qdora_fast.recipes.verify import require_undamaged, verify
from qdora_fast.system.errors import ConfigError, IntegrityError
from qdora_fast.system.manifest import NAME, read_manifest
from qdora_fast.system.run_folder import RunFolder


@pytest.fixture
def run(demo_run: RunFolder, tmp_path: Path) -> Path:
    """A copy of a whole run, with checkpoints, adapter and merged model."""
    return Path(shutil.copytree(demo_run.path, tmp_path / "run"))


def _flip(file: Path, chance: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    file.write_bytes(content)


def _cut(file: Path, chance: random.Random) -> None:
    file.write_bytes(file.read_bytes()[: chance.randrange(file.stat().st_size)])


def _zero(file: Path, _: random.Random) -> None:
    file.write_bytes(b"\x01" + bytes(file.stat().st_size - 1))


def _remove(file: Path, _: random.Random) -> None:
    file.unlink()


def test_a_whole_run_is_whole_and_so_is_each_of_its_parts(run: Path) -> None:
    parts = list(verify(run))
    names = [part.path.name for part in parts]
    assert names[-2:] == ["adapter", "merged_16bit"]
    assert all(name.startswith("checkpoint-") for name in names[:-2]) and len(names) > 2
    assert not any(part.problems for part in parts)
    require_undamaged(parts, run)
    for part in parts:
        assert [alone.problems for alone in verify(part.path)] == [()]
        assert part.files >= 3 and part.bytes > 10_000


@pytest.mark.parametrize("damage", [_flip, _cut, _zero, _remove])
def test_damage_to_any_file_is_found_and_named(damage: Callable[[Path, random.Random], None], run: Path) -> None:
    chance = random.Random(1)
    shutil.rmtree(run / "checkpoints")  # other tests damage those
    for folder in ("adapter", "merged_16bit"):
        for name in [*read_manifest(run / folder)["files"], NAME]:
            file = run / folder / name
            kept = file.read_bytes()
            damage(file, chance)
            wrong = [problem for part in verify(run) for problem in part.problems]
            assert len(wrong) == 1 and str(file) in wrong[0]
            file.write_bytes(kept)
    assert not any(part.problems for part in verify(run))


def test_a_file_of_another_checkpoint_is_found(run: Path) -> None:
    first, *_, last = RunFolder(run).checkpoints()
    shutil.copy(first / "training_state.safetensors", last)
    wrong = [part for part in verify(run) if part.problems]
    assert [part.path for part in wrong] == [last]
    with pytest.raises(IntegrityError, match=r"1 of \d+ parts are not as they were written"):
        require_undamaged(wrong + [part for part in verify(run) if not part.problems], run)


def test_an_export_of_an_earlier_adapter_is_named(run: Path) -> None:
    shutil.rmtree(run / "adapter")
    shutil.copytree(RunFolder(run).checkpoints()[0], run / "adapter")
    (part,) = [part for part in verify(run) if part.path.name == "merged_16bit"]
    assert "made from another adapter" in part.problems[0]
    assert not next(verify(run / "merged_16bit")).problems  # in itself it is whole


def test_a_card_that_is_written_anew_is_no_damage(run: Path) -> None:
    (run / "adapter" / "README.md").write_text("another")
    assert not any(part.problems for part in verify(run))


def test_a_damaged_adapter_is_not_loaded(run: Path) -> None:
    _flip(run / "adapter" / "adapter_model.safetensors", random.Random(2))
    with pytest.raises(IntegrityError, match="its content has changed since it was written"):
        load(run)


def test_what_was_never_written_by_us_cannot_be_verified(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no MANIFEST.json says"):
        list(verify(tmp_path))


def test_the_command_says_it_all_and_ends_with_41(run: Path) -> None:
    done = CliRunner().invoke(cli, ["verify", str(run), "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout.splitlines()[-1])["whole"] is True
    (run / "adapter" / "adapter_config.json").unlink()
    done = CliRunner().invoke(cli, ["verify", str(run), "--json"])
    assert isinstance(done.exception, IntegrityError) and done.exception.exit_code == 41
    assert "adapter_config.json: missing" in done.stdout
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["whole"] is False
    assert [part["path"] for part in found["parts"] if part["problems"]] == [str(run / "adapter")]
