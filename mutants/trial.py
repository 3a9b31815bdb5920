"""One run of some tests in a fork of this process, with limits, and what came of it.

The child starts a process group of its own, reads the package from the copy that it is given, and ends within its
limit of CPU time (which each of its own children has, too). What it has started is killed with it.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import psutil
import pytest

PATIENCE = 60
"""A trial may take so many seconds and four times its CPU limit on the clock: the machine may be shared."""


@dataclass(frozen=True)
class Tested:
    """How a run of tests ended."""

    ended: str
    """passed, failed or timeout."""
    by: str
    """The first test that failed, or what failed instead of a test."""
    seconds: float


@dataclass
class Trial:
    """Tests in a fork, started at once.

    Args:
        tree: the copy of the project.
        tests: what pytest runs, in this order.
        folder: for everything the trial writes; removed at its end.
        made: folders that tests make once for all, made before from unchanged code.
        seconds: of CPU at most.
    """

    tree: Path
    tests: Sequence[str]
    folder: Path
    made: Path | None
    seconds: int
    keep: Sequence[str] = ()
    """These folders are copied to `made` at the end, instead of taken from there."""
    _pid: int = field(init=False)
    _since: float = field(init=False)

    def __post_init__(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        sys.stdout.flush()
        sys.stderr.flush()
        self._since = time.monotonic()
        self._pid = os.fork()
        if self._pid == 0:
            self._be()

    def ended(self) -> Tested | None:
        """How it ended; None while it runs."""
        pid, status, _ = os.wait4(self._pid, os.WNOHANG)
        late = time.monotonic() - self._since > PATIENCE + 4 * self.seconds
        if not pid and not late:
            return None
        result = self._result(None if not pid else os.waitstatus_to_exitcode(status))
        self.stop(running=not pid)
        return result

    def stop(self, *, running: bool = True) -> None:
        """End it and all that it has started, and remove what it wrote."""
        children = []
        if running:
            with suppress(psutil.NoSuchProcess):
                children = psutil.Process(self._pid).children(recursive=True)
        with suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        if running:
            os.waitpid(self._pid, 0)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _result(self, code: int | None) -> Tested:
        seconds = time.monotonic() - self._since
        if code is None or code == -signal.SIGXCPU:
            return Tested("timeout", "", seconds)
        try:
            by = json.loads((self.folder / "failed.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            by = ""
        if code == 0:
            return Tested("passed", "", seconds)
        return Tested("failed", by or f"pytest ended with {code}: {self._last_line()}", seconds)

    def _last_line(self) -> str:
        lines = (self.folder / "log.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        errors = [line for line in lines if "Error" in line]
        return (errors or lines or ["nothing was printed"])[-1][:200]

    def _be(self) -> NoReturn:
        code = 1
        try:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_CPU, (self.seconds, self.seconds + 5))
            log = os.open(self.folder / "log.txt", os.O_WRONLY | os.O_CREAT, 0o644)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(log, 1)
            os.dup2(log, 2)
            code = self._pytest()
        finally:
            os._exit(code)

    def _pytest(self) -> int:
        os.chdir(self.tree)
        os.environ["PYTHONPATH"] = str(self.tree)
        os.environ["TMPDIR"] = str(self.folder)
        sys.path.insert(0, str(self.tree))
        options = ["-x", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", "--tb=short", "-m", "not gpu"]
        plugin = _Plugin(self.folder, self.made, self.keep)
        return int(pytest.main([*options, "--basetemp", str(self.folder / "base"), *self.tests], plugins=[plugin]))


class _Plugin:
    """Writes down the first failure, and brings what tests make once for all."""

    def __init__(self, folder: Path, made: Path | None, keep: Sequence[str]) -> None:
        self.folder, self.made, self.keep = folder, made, keep

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Pytest's: after each phase of a test."""
        if report.failed:
            self._failed(report.nodeid)

    def pytest_collectreport(self, report: Any) -> None:
        """Pytest's: after a file was collected, or could not be."""
        if report.failed:
            lines = str(report.longrepr).strip().splitlines()
            self._failed(f"{report.nodeid}: {lines[-1] if lines else 'cannot be collected'}"[:200])

    @pytest.fixture(scope="session", autouse=True)
    def made_before(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        """Where the tests look for what is made once for all; or, with `keep`, where it is found afterwards."""
        base = tmp_path_factory.getbasetemp()
        if self.made is not None and not self.keep:
            shutil.copytree(self.made, base, dirs_exist_ok=True, symlinks=True)
        yield
        for name in self.keep:
            assert self.made is not None
            shutil.copytree(base / name, self.made / name, symlinks=True)
            (self.made / f"{name}.finished").touch()

    def _failed(self, what: str) -> None:
        path = self.folder / "failed.json"
        if not path.exists():
            path.write_text(json.dumps(what), encoding="utf-8")
