"""Which tasks of lm-evaluation-harness are asked, and where their questions come from: the hub, or a local folder.

MMLU is the harness' own `mmlu_*` tasks, so that figures mean what they mean elsewhere; only the place of the data is
changed. The harness' index of 14,000 files is read only for tasks that are neither MMLU nor the user's own.

A folder of tasks is code, with or without Python files in it: the harness imports what `!function` names, renders
templates without a sandbox, and fetches metrics that it does not know, code included. So nothing in such a folder is
read before its user has allowed it as it is (`own_code.py`).
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any

from qdora_fast.config.code import TASKS
from qdora_fast.config.own_code import require_folder_allowed
from qdora_fast.evaluation.mmlu.harness import Tasks, harness_version, quiet
from qdora_fast.system.errors import ConfigError, DataError, first_line
from qdora_fast.system.paths import local_path

DOWNLOAD = "hf download cais/mmlu --repo-type dataset --local-dir FOLDER"
GROUP = "mmlu_of_qdora_fast"
LOAD_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError)
"""What a task of somebody else may fail with."""


def load_mmlu(sizes: Mapping[str, int], path: str | None, shots: int) -> Tasks:
    """The harness' own tasks of these subjects of MMLU, by subject; the questions from the hub or a local copy.

    A local copy is named to the harness in a group, written for the purpose to a temporary folder:

        group: mmlu_of_qdora_fast
        task:
        - task: mmlu_anatomy
          dataset_path: parquet
          dataset_name: null
          dataset_kwargs: {data_files: {dev: FOLDER/anatomy/dev-*.parquet, test: FOLDER/anatomy/test-*.parquet}}
        - ...

    Args:
        sizes: number of test questions of each subject.
        path: the folder that `hf download cais/mmlu` filled; None: the hub, or what the hub's cache holds.
        shots: solved examples before each question.

    Raises:
        ConfigError: the harness is missing, the hub cannot be reached, or `path` is no copy of cais/mmlu.
        DataError: a subject has another number of questions.
    """
    harness_version()
    members = [{"task": f"mmlu_{subject}"} | _local_files(path, subject) for subject in sizes]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "group.yaml").write_text(json.dumps({"group": GROUP, "task": members}), encoding="utf-8")
        try:
            with quiet(stderr=path is not None):
                tasks = _manager([_own_folder() / "mmlu" / "default", Path(folder)], own=False).load([GROUP])["tasks"]
        except LOAD_ERRORS as error:
            place = path or "cais/mmlu on the hub"
            raise ConfigError(
                f"evaluation.mmlu: cannot load {place} ({first_line(error)}). Fetch it once with\n  {DOWNLOAD}\n"
                "and name that folder in evaluation.mmlu.path"
            ) from error
    for subject, size in sizes.items():
        found = len(tasks[f"mmlu_{subject}"].eval_docs)
        if found != size:
            raise DataError(
                f"{path or 'cais/mmlu'}: {subject} has {found} test questions, not {size}: this is not the cais/mmlu "
                f"that the questions were drawn from. Fetch it again with\n  {DOWNLOAD}"
            )
    examples = min(len(task.fewshot_docs()) for task in tasks.values())
    if shots > examples:
        raise ConfigError(f"evaluation.mmlu.shots: {shots}, but MMLU has {examples} solved examples a subject")
    for task in tasks.values():
        task.set_config(key="num_fewshot", value=shots)
    return {subject: tasks[f"mmlu_{subject}"] for subject in sizes}


def load_named(names: Sequence[str], folder: str | None) -> dict[str, Tasks]:
    """Tasks, groups or tags by name, of the harness or of YAML files in a folder; each name with its single tasks.

    Own tasks come first where both have the name. They keep the number of solved examples that they ask for.

    Raises:
        RefusedError: the folder was not allowed.
        ConfigError: no such folder or task, or its questions cannot be loaded.
    """
    with _no_bytecode_of_others():
        manager = _manager_of(names, folder)
        return {name: _load_one(manager, name) for name in names}


def require_named(names: Sequence[str], folder: str | None) -> None:
    """Look each name up and load nothing: a wrong one is refused before weights are read.

    Raises:
        RefusedError, ConfigError: as `load_named`.
    """
    with _no_bytecode_of_others():
        manager = _manager_of(names, folder)
    for name in names:
        _require(manager, name)


def _manager_of(names: Sequence[str], folder: str | None) -> Any:
    """Index of the tasks in the user's folder, and of the harness' own where a name is not among these."""
    harness_version()
    if folder and not local_path(folder).is_dir():
        raise ConfigError(f"evaluation.mmlu.task_folder: {folder} is no folder; name one with YAML files of tasks")
    folders = [local_path(folder)] if folder else []
    for own in folders:
        require_folder_allowed(TASKS, own)
    with quiet(stderr=True):
        manager = _manager(folders, own=False)
        if set(names) - set(manager.all_tasks):  # reading the harness' 14,000 files takes some seconds
            manager = _manager(folders, own=True)
    return manager


def question_count(tasks: Tasks, ids: Mapping[str, Sequence[int]] | None) -> int:
    """Number of questions that `ask` will ask."""
    return sum(len(ids[name]) if ids else len(task.eval_docs) for name, task in tasks.items())


def describe(tasks: Tasks) -> dict[str, Any]:
    """What makes two measurements by these tasks comparable, apart from the questions: for a cache key."""
    kept = ("output_type", "num_fewshot", "metric_list", "filter_list", "generation_kwargs", "repeats")
    configs = {name: {key: getattr(task.config, key, None) for key in kept} for name, task in tasks.items()}
    versions = {name: task.VERSION for name, task in tasks.items()}
    plain = json.dumps({"configs": configs, "versions": versions}, sort_keys=True, default=_name_of)
    return {"tasks": sorted(tasks), "sha256": hashlib.sha256(plain.encode()).hexdigest()}


@contextmanager
def _no_bytecode_of_others() -> Iterator[None]:
    """Python files are run as they were looked at, not as a __pycache__ beside them has them; none is made there."""
    before = sys.pycache_prefix
    with tempfile.TemporaryDirectory() as empty:
        sys.pycache_prefix = empty
        try:
            yield
        finally:
            sys.pycache_prefix = before


def _local_files(path: str | None, subject: str) -> dict[str, Any]:
    """What a subject's task must be told to read a local copy; nothing for the hub."""
    if path is None:
        return {}
    folder = local_path(path).resolve()
    files = {
        split: [escape(str(file)) for file in sorted((folder / subject).glob(f"{split}-*.parquet"))]
        for split in ("dev", "test")  # datasets takes names of files for patterns
    }
    if not all(files.values()):
        raise ConfigError(
            f"evaluation.mmlu.path: {path} is no copy of cais/mmlu: it has no {subject}/test-*.parquet and "
            f"{subject}/dev-*.parquet. Fetch it with\n  {DOWNLOAD}"
        )
    return {"dataset_path": "parquet", "dataset_name": None, "dataset_kwargs": {"data_files": files}}


def _manager(folders: Sequence[Path], *, own: bool) -> Any:
    """Index of the tasks in folders, and with `own` of all tasks of the harness."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=[str(folder) for folder in folders], include_defaults=own)


def _own_folder() -> Path:
    found = importlib.util.find_spec("lm_eval.tasks")
    assert found and found.origin
    return Path(found.origin).parent


def _require(manager: Any, name: str) -> None:
    if name not in manager.all_tasks:
        close = difflib.get_close_matches(name, manager.all_tasks, n=3)
        raise ConfigError(
            f"evaluation.benchmarks: there is no task `{name}`"
            + (f"; close are {', '.join(close)}" if close else "")
            + ". For a task of your own name the folder of its YAML file in evaluation.mmlu.task_folder"
        )


def _load_one(manager: Any, name: str) -> Tasks:
    _require(manager, name)
    try:
        with quiet(stderr=True):
            tasks: Tasks = manager.load([name])["tasks"]
            for task in tasks.values():
                len(task.eval_docs)
    except LOAD_ERRORS as error:
        raise ConfigError(f"evaluation.benchmarks: cannot load `{name}` ({first_line(error)})") from error
    for task in tasks.values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
    return tasks


def _name_of(value: Any) -> str:
    """Functions in a task's settings go by name: their text form holds an address."""
    return str(getattr(value, "__qualname__", type(value).__name__))
