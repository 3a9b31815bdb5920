"""A run never overwrites another, explains itself, and resumes only what it started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qdora_fast.config import Config
from qdora_fast.config.loader import make_config
from qdora_fast.config.recorded import code_elsewhere, create_run, read_config, resumable
from qdora_fast.system.errors import CheckpointError, ConfigError
from qdora_fast.system.run_folder import RunFolder


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return make_config({"model": {"name": "demo"}, "data": {"path": "demo"}, "run": {"dir": str(tmp_path)}})


def _with_checkpoint(folder: RunFolder, *steps: int) -> RunFolder:
    for step in steps:
        (folder.path / "checkpoints" / f"checkpoint-{step}").mkdir(parents=True)
    return folder


def test_an_existing_run_is_never_overwritten(config: Config, tmp_path: Path) -> None:
    names = [create_run(config, "demo").path.name for _ in range(3)]
    assert names == ["demo", "demo-2", "demo-3"]


def test_a_run_knows_its_config(config: Config) -> None:
    folder = create_run(config, "demo")
    assert read_config(RunFolder.open(folder.path)) == config


def test_what_is_no_run_is_refused_and_runs_nearby_are_named(config: Config, tmp_path: Path) -> None:
    create_run(config, "demo")
    with pytest.raises(ConfigError, match=r"demmo is not a run .*demo"):
        RunFolder.open(tmp_path / "demmo")


def test_an_unfinished_run_says_so(config: Config) -> None:
    with pytest.raises(ConfigError, match="did not finish"):
        create_run(config, "demo").read_json("model.json")


def test_checkpoints_are_ordered_by_step(config: Config) -> None:
    folder = _with_checkpoint(create_run(config, "demo"), 100, 20)
    (folder.path / "checkpoints" / "checkpoint-tmp").mkdir()
    assert [path.name for path in folder.checkpoints()] == ["checkpoint-20", "checkpoint-100"]


def test_resume_takes_the_newest_run_of_that_name(config: Config) -> None:
    _with_checkpoint(create_run(config, "demo"), 5)
    newer = _with_checkpoint(create_run(config, "demo"), 5)
    create_run(config, "demo")  # without a checkpoint: cannot be resumed
    _with_checkpoint(create_run(config, "demo-other"), 5)
    assert resumable(config, "demo").path == newer.path


def test_resume_without_a_checkpoint_is_an_error(config: Config) -> None:
    create_run(config, "demo")
    with pytest.raises(CheckpointError, match="has a checkpoint"):
        resumable(config, "demo")


def test_resume_with_other_settings_names_each_difference(config: Config) -> None:
    _with_checkpoint(create_run(config, "demo"), 5)
    train = config.train.model_copy(update={"learning_rate": 1e-3})
    exports = config.export.model_copy(update={"at_end": "none"})  # does not change training: allowed
    changed = config.model_copy(update={"train": train, "export": exports})
    with pytest.raises(CheckpointError, match=r"train.learning_rate: 0.0002 then, 0.001 now") as caught:
        resumable(changed, "demo")
    assert "export" not in str(caught.value)


FREE = ("run.", "export.", "evaluation.", "train.vram", "train.probe", "train.max_nonfinite", "train.tracker")
"""Settings that may differ when a run is resumed: where files go, how much memory, and what comes after training."""


def _leaves(tree: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        yield from _leaves(value, f"{path}{key}.") if isinstance(value, dict) else [(f"{path}{key}", value)]


def _changed(model: Any, path: str, value: Any) -> Any:
    key, _, rest = path.partition(".")
    return model.model_copy(update={key: _changed(getattr(model, key), rest, value) if rest else value})


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # a value of any kind will do
@pytest.mark.parametrize("other", ["another", None])
def test_resume_names_whichever_setting_differs(config: Config, other: str | None) -> None:
    """Set where it was unset, unset where it was set, or another value: of all settings there are, at once."""
    folder = _with_checkpoint(create_run(config, "demo"), 5)
    then = dict(_leaves(read_config(folder).model_dump()))
    assert len(then) > 80
    changed = config
    for path in then:
        if path not in ("run.dir", "run.name"):  # where to look
            changed = _changed(changed, path, other)
    with pytest.raises(CheckpointError) as caught:
        resumable(changed, "demo")
    wanted = {path: value for path, value in then.items() if value != other and not path.startswith(FREE)}
    assert str(caught.value).splitlines()[1:] == [
        f"  - {path}: {value} then, {other} now" for path, value in wanted.items()
    ]


def test_rows_survive_the_file(config: Config) -> None:
    rows = [{"messages": [{"role": "user", "content": "naïve \u2028 line\n"}]}, {"a": 1}]
    folder = create_run(config, "demo")
    folder.write_rows("data/train.jsonl", rows)
    assert folder.read_rows("data/train.jsonl") == rows


def _naming(tmp_path: Path, *codes: str) -> Config:
    """A config whose sources name files that are all called rows.py."""
    sources = []
    for number, code in enumerate(codes):
        file = tmp_path / f"mine{number}" / "rows.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(code)
        sources.append({"path": "demo", "formatter": f"{file}:f"})
    return make_config({"model": {"name": "demo"}, "data": {"sources": sources}, "run": {"dir": str(tmp_path)}})


def test_a_run_keeps_the_code_that_its_config_names_and_finds_it_where_the_run_lies(tmp_path: Path) -> None:
    codes = ["def f(row): return row", "def f(row): return None", "def f(row): return row"]
    run = create_run(_naming(tmp_path, *codes), "demo")
    moved = RunFolder(run.path.rename(tmp_path / "moved"))
    for name in ("mine0", "mine1", "mine2"):
        (tmp_path / name / "rows.py").unlink()
    named = [Path(str(source.formatter).removesuffix(":f")) for source in read_config(moved).data.sources]
    assert [file.read_text() for file in named] == codes
    assert named[0] == named[2] == moved.path / "code" / "rows.py" and named[1].parent == moved.path / "code"
    assert str(tmp_path) not in moved.config_file.read_text().replace(f"dir: {tmp_path}", "")


def test_code_that_seems_to_hold_a_secret_is_not_copied_into_a_run(tmp_path: Path) -> None:
    config = _naming(tmp_path, "def f(row): return row", f"KEY = 'hf_{'a1' * 17}'\ndef f(row): return row")
    run = create_run(config, "demo")
    assert [file.name for file in (run.path / "code").iterdir()] == ["rows.py"]
    assert code_elsewhere(run, read_config(run)) == [str(tmp_path / "mine1" / "rows.py")]


def test_a_run_is_resumed_with_the_same_code_wherever_it_lies_and_with_no_other(tmp_path: Path) -> None:
    run = _with_checkpoint(create_run(_naming(tmp_path, "def f(row): return row"), "demo"), 1)
    (tmp_path / "elsewhere").mkdir()
    assert (
        resumable(
            _naming(tmp_path / "elsewhere", "def f(row): return row").model_copy(update={"run": read_config(run).run}),
            "demo",
        ).path
        == run.path
    )
    with pytest.raises(CheckpointError, match=r"rows.py:f \(SHA-256 .*\).* then, .*rows.py:f \(SHA-256 .*\).* now"):
        resumable(_naming(tmp_path, "def f(row): return {}"), "demo")


@pytest.mark.parametrize("name", ["exp[1]", "a*", "what?", "~x", "100% ü", "#1 'x'", "a-2"])
def test_the_newest_run_of_any_name_is_its_own(tmp_path: Path, name: str) -> None:
    for other in ("exp1", "exp", "a", "ab", "what", f"{name}-old", f"{name}x"):
        _started(tmp_path, other, 9)
    assert RunFolder.newest(tmp_path, name) is None
    first = _started(tmp_path, name, 1)
    assert RunFolder.newest(tmp_path, name) == first
    second = _started(tmp_path, name, 2)
    os.utime(second.path / "checkpoints" / "checkpoint-2", (2e9, 2e9))
    assert RunFolder.newest(tmp_path, name) == second
    assert RunFolder.newest(tmp_path / "nowhere", name) is None


def _started(parent: Path, name: str, step: int) -> RunFolder:
    run = RunFolder.create(parent, name)
    run.config_file.touch()
    return _with_checkpoint(run, step)


@pytest.mark.parametrize(("shared", "rights"), [(False, 0o700), (True, 0o755)])
def test_rows_in_a_run_are_for_their_owner_unless_the_run_is_shared(
    config: Config, tmp_path: Path, shared: bool, rights: int
) -> None:
    before = os.umask(0o022)
    try:
        settings = config.run.model_copy(update={"dir": str(tmp_path / "all"), "shared": shared})
        run = create_run(config.model_copy(update={"run": settings}), "mine")
    finally:
        os.umask(before)
    assert run.path.stat().st_mode & 0o777 == rights
