"""Runs a file in a process of its own and watches how much memory it and its children take together.

Sampled four times a second, as the sum of proportional shares (PSS): a page that forked workers share is counted once.
Where a look takes long (the kernel counts all pages), they are rarer, so that watching takes 5 % of the time at most.
Two peaks: `own`, memory that nothing but more memory can give (anonymous pages), and `mapped`, the same with pages of
files, which the system takes back when it needs them. On systems that do not tell, both are resident memory.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from benchmarks import ROOT
from qdora_fast.system import child
from qdora_fast.system.errors import QdoraError

EVERY_S = 0.25


def run_alone(script: Path, spec: Mapping[str, Any], *, cache: Path) -> dict[str, Any]:
    """What `script` writes for `spec`, with `process_s`, `own_bytes` and `mapped_bytes` of its process.

    Args:
        script: a file that is run with two paths: of the spec to read, of the result to write, both JSON.
        cache: the folder in which the process keeps what it prepared.

    Raises:
        QdoraError: it failed; with its last lines.
    """
    with tempfile.TemporaryDirectory() as scratch:
        given, out, said = (Path(scratch) / name for name in ("spec.json", "out.json", "said.txt"))
        given.write_text(json.dumps(dict(spec)), encoding="utf-8")
        environment = child.environment(searched=ROOT, QDORA_FAST_CACHE=str(cache))
        begin = time.perf_counter()
        with said.open("wb") as file:
            command = child.python(str(script), str(given), str(out))
            with subprocess.Popen(command, env=environment, stdout=file, stderr=file) as process:
                own, mapped = _watch(process)
        seconds = time.perf_counter() - begin
        if process.returncode or not out.exists():
            last = " | ".join(said.read_text(errors="replace").splitlines()[-4:])
            raise QdoraError(f"{script.name} ended with exit code {process.returncode}: {last}")
        result: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return result | {"process_s": seconds, "own_bytes": own, "mapped_bytes": mapped}


def _watch(process: subprocess.Popen[bytes]) -> tuple[int, int]:
    """Peaks over the life of a process and its children."""
    own = mapped = 0
    while process.poll() is None:
        begin = time.perf_counter()
        sums = [_shares(pid) for pid in _tree(process.pid)]
        own = max(own, sum(each[0] for each in sums))
        mapped = max(mapped, sum(each[1] for each in sums))
        time.sleep(max(EVERY_S, 20 * (time.perf_counter() - begin)))
    return own, mapped


def _tree(pid: int) -> list[int]:
    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.Error:
        return []


def _shares(pid: int) -> tuple[int, int]:
    """(anonymous, all) bytes of a process, pages of several processes divided among them."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        try:
            resident = int(psutil.Process(pid).memory_info().rss)
        except psutil.Error:
            return 0, 0
        return resident, resident
    fields = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    return fields.get("Pss_Anon", fields["Pss"]), fields["Pss"]
