"""Shared by all tests: no hub, Unsloth imported first, and two models made once.

`demo_run` is the whole main job on the embedded base, as `make train` runs it; `tiny_base` is a
base of the same make with hardly any training, for tests that only need the machinery. Where
several processes share the tests (`-n`), the first that asks makes them, and the others wait;
so tests only look at them, and work on copies.
"""

from __future__ import annotations

import gc
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before any library reads it: a test that reaches for the hub fails
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"

import pytest
from breadth import beyond_pairs
from filelock import FileLock
from hypothesis import HealthCheck, settings

from qdora_fast.config import Config
from qdora_fast.config.loader import make_config
from qdora_fast.config.recorded import read_config
from qdora_fast.models.backend import open_backend
from qdora_fast.system.hardware import cpu_count
from qdora_fast.system.run_folder import RunFolder

if TYPE_CHECKING:
    from qdora_fast.exports.verify.checks import Case

_session = {"modules left out": 0, "light": False}
SHARED = "PYTEST_XDIST_WORKER" in os.environ
"""This process is one of several that the tests are dealt to."""
LIGHT = (
    *("config", "docs", "data/read", "data/tokenize"),
    *("test_architecture.py", "test_locks.py", "test_release.py", "test_wheel.py", "system/test_install.py"),
)
"""Folders and files whose tests need neither Unsloth nor a model."""
MOST_PROCESSES = 4
"""Of `-n auto`: each holds torch and all libraries, 1 to 2 GiB."""

# Every run tries the same generated examples, on slow machines too, so that a red test is the change's own.
# `make test-all` takes the profile `all`; HYPOTHESIS_SEARCH=1 looks for new examples.
for name, most in (("same", 25), ("all", 100)):
    settings.register_profile(
        name, max_examples=most, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
if not os.environ.get("HYPOTHESIS_SEARCH"):
    settings.load_profile("same")


def pytest_configure(config: pytest.Config) -> None:
    """Import what must come first; not in the process that only hands out tests to others."""
    _session["light"] = _asked_for_light_tests(config)
    if config.getoption("numprocesses", None) or _session["light"]:
        return
    if SHARED:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # also for the processes that tests start
    import torch

    if SHARED:
        torch.set_num_threads(1)  # where something else imported it before
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported: its kernels are then run by Python
    open_backend()
    leave_out_of_collections()


def _asked_for_light_tests(config: pytest.Config) -> bool:
    """Whether only folders are asked for whose tests load no model: they begin ten seconds earlier."""
    here = Path(__file__).parent
    asked = [Path(argument.partition("::")[0]).resolve() for argument in config.args]
    return all(any(path.is_relative_to(here / folder) for folder in LIGHT) for path in asked)


def leave_out_of_collections() -> None:
    """Keep what is alive now, the libraries above all, out of garbage collections: Transformers and Accelerate collect
    often, and looking through a million objects of imported modules each time took two fifths of a short training."""
    gc.collect()
    gc.freeze()


def pytest_runtest_logfinish() -> None:
    """Some libraries are imported by the first test that needs them; afterwards they are left out, too."""
    if len(sys.modules) > _session["modules left out"] + 200:
        leave_out_of_collections()
        _session["modules left out"] = len(sys.modules)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the breadth of each grid as exhaustive."""
    cases = [(item.nodeid.partition("[")[0], getattr(item, "callspec", None)) for item in items]
    beyond = beyond_pairs((test, call.params if call else {}) for test, call in cases)
    for item, left_out in zip(items, beyond, strict=True):
        if left_out:
            item.add_marker("exhaustive")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """What `-n auto` comes to."""
    return min(MOST_PROCESSES, cpu_count())


def made_once(name: str, made_in: Path, make: Callable[[Path], object]) -> Path:
    """A folder that `make` fills, once for all processes of this session."""
    folder = (made_in.parent if SHARED else made_in) / name
    finished = folder.with_suffix(".finished")
    with FileLock(folder.with_suffix(".lock")):
        if not finished.exists():
            shutil.rmtree(folder, ignore_errors=True)  # left by a process that died on the way
            make(folder)
            finished.touch()
    return folder


@pytest.fixture(scope="session", autouse=True)
def _own_settings_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The list of allowed code of whoever runs the tests is neither read nor written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        yield


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The main job with its shipped settings; about a minute."""
    from qdora_fast.recipes.train import train

    base = tmp_path_factory.getbasetemp()
    runs = made_once("demo_runs", base, lambda folder: train("demo", run={"dir": str(folder)}))
    return RunFolder(runs / "demo")


@pytest.fixture(scope="session")
def right_case(demo_run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """The demo's export as it is built, before its proof, with all that it is held against."""
    from qdora_fast.exports.merge.merge import merge
    from qdora_fast.exports.verify.case import case_of, recipe_of, record_saved
    from qdora_fast.exports.verify.fresh_process import load_case, save_case
    from qdora_fast.models.run_info import read_run_info
    from qdora_fast.recipes.report import trained_model

    def make(folder: Path) -> None:
        info = read_run_info(demo_run)
        recipe, base = recipe_of("merged_16bit", "original16", info), Path(info.base)
        merge(base, demo_run.adapter, folder / "out", recipe, tokenizer_from=demo_run.adapter)
        evidence = record_saved(demo_run, trained_model(demo_run, read_config(demo_run)))
        save_case(case_of(demo_run, evidence, folder / "out", recipe, base=base), folder)

    return load_case(made_once("right_case", tmp_path_factory.getbasetemp(), make))


@pytest.fixture(autouse=True)
def _proven_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports are examined in this process instead of a new one, whose imports take most of a proof's time. `demo_run`,
    the commands and `exports/verify/test_fresh_process.py` start the new one."""
    if not _session["light"]:
        from qdora_fast.exports.verify import checks, fresh_process

        def examine(case: Case, on_phase: Callable[[str], None] = lambda phase: None) -> dict[str, Any]:
            return checks.examine(case, on_phase)

        monkeypatch.setattr(fresh_process, "examine_in_new_process", examine)


@pytest.fixture
def own_demo_run(demo_run: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy of `demo_run` without its checkpoints, for tests that work in a run's folder."""
    copy = tmp_path / "runs" / "demo"
    shutil.copytree(demo_run.path, copy, ignore=shutil.ignore_patterns("checkpoints"))
    return RunFolder(copy)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A barely trained base of the demo's make: two blocks, real tokenizer, bf16 on disk."""
    from qdora_fast.data.demo.pretrain import Recipe, pretrain

    recipe = Recipe(hidden_size=64, intermediate_size=128, heads=4, kv_heads=2, steps=2)
    return made_once("tiny_base", tmp_path_factory.getbasetemp(), lambda folder: pretrain(folder, recipe))


@pytest.fixture
def tiny_config(tiny_base: Path, tmp_path: Path) -> Any:
    """A function that makes a config for a run of a few steps on `tiny_base`."""

    def make(**sections: dict[str, Any]) -> Config:
        settings: dict[str, dict[str, Any]] = {
            "run": {"dir": str(tmp_path / "runs"), "name": "tiny"},
            "model": {"name": str(tiny_base), "max_length": 128},
            "adapter": {"r": 4, "alpha": 8},
            "data": {"path": "demo", "max_rows": 60},
            "train": {"max_steps": 4, "batch_size": 4, "gradient_accumulation": 1, "learning_rate": 1e-2},
            "evaluation": {"max_rows": 4, "max_new_tokens": 4},
            "export": {"at_end": "none", "proof_rows": 4},
        }
        for name, values in sections.items():
            settings[name] = {**settings.get(name, {}), **values}
        return make_config(settings)

    return make


@pytest.fixture
def short_run(tiny_config: Any, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function that gives a run of a few steps by a method: a copy, where the method is all that is asked."""
    from qdora_fast.recipes.train import train

    def make(method: str = "qdora", whole: Sequence[str] = (), **sections: Any) -> RunFolder:
        adapter = {"method": method, "modules_to_save": list(whole)}
        if whole or sections:
            return train(tiny_config(adapter=adapter, **sections))

        def once(folder: Path) -> None:
            train(tiny_config(adapter=adapter, run={"dir": str(folder)}))

        runs = made_once(f"short_runs_{method}", tmp_path_factory.getbasetemp(), once)
        return RunFolder(Path(shutil.copytree(runs / "tiny", tmp_path / "runs" / f"tiny-{method}")))

    return make
