"""A process that has the libraries loaded and runs modules in forks of itself: `python -m MODULE`, without the wait.

Importing Transformers takes seconds and the training stack ten; a proof needs a fraction of one. Two kinds: `stack`
has the training stack (Unsloth first), `plain` nothing of it, as the process that opens an exported folder must be.
Each has the environment that it was started with, which is how the instruction set of the arithmetic is chosen:
libraries read it once. A fork of `stack` asks `plain` through its socket, where a user's export starts Python.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from qdora_fast.system import child

_PLAIN_MODULES = (
    "torch",
    "transformers",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
    "peft",
    "bitsandbytes",
    "safetensors.torch",
    "qdora_fast.exports.verify.fresh_process",
)
_STACK_MODULES = (
    "trl.trainer.sft_trainer",
    "peft",
    "bitsandbytes",
    "qdora_fast.recipes.train",
    "qdora_fast.training.trainer",
)
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # until a fork has its own number; OpenMP does not survive a fork
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "CUDA_VISIBLE_DEVICES": "",
}
_ROOT = Path(__file__).resolve().parent.parent
"""This folder is not installed, so the process is told where it is."""


@dataclass(frozen=True)
class Done:
    """How a module's run ended."""

    code: int
    stdout: str
    stderr: str


class Preloaded:
    """The process, from the caller's side. Use as a context manager.

    Args:
        kind: `stack` or `plain`.
        environment: added to the caller's own.
    """

    def __init__(self, kind: str, environment: Mapping[str, str]) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix=f"qdora-fast-{kind}-")
        self.address = str(Path(self._scratch.name) / "socket")
        self._process = subprocess.Popen(
            child.python("-m", "proofs.preloaded", kind, self.address),
            env=child.environment(searched=_ROOT, **_ENVIRONMENT, **environment),
            stdin=subprocess.PIPE,  # closed when the caller ends, however it ends
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Preloaded:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._scratch.cleanup()

    def wait_until_loaded(self) -> None:
        """Block until modules can be run.

        Raises:
            RuntimeError: it ended instead.
        """
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != "loaded":
            raise RuntimeError(f"a process that should load the libraries ended with {self._process.wait()}")

    def run(self, module: str, *arguments: str, threads: int = 1) -> Done:
        """`python -m MODULE ARGUMENTS` in a fork, with so many threads for arithmetic."""
        return ask(self.address, module, arguments, threads)


def ask(address: str, module: str, arguments: Sequence[str], threads: int) -> Done:
    """The same, by the address of the process's socket."""
    with tempfile.TemporaryDirectory(prefix="qdora-fast-said-") as folder:
        outputs = [str(Path(folder) / name) for name in ("stdout", "stderr")]
        asked = {
            "module": module,
            "arguments": list(arguments),
            "threads": threads,
            "outputs": outputs,
        }
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(address)
            connection.sendall(json.dumps(asked).encode())
            connection.shutdown(socket.SHUT_WR)
            answer = _read_all(connection)
        said = [Path(output).read_text(encoding="utf-8", errors="replace") for output in outputs]
    return Done(json.loads(answer)["code"], *said)


def main(kind: str, address: str) -> None:
    """What the process does."""
    if kind == "stack":
        from qdora_fast.models.backend import open_backend

        open_backend()
    for module in _STACK_MODULES if kind == "stack" else _PLAIN_MODULES:
        importlib.import_module(module)
    if kind == "plain":
        _warm_up()
    gc.freeze()  # forks need not look through all of this for garbage
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen(16)
        print("loaded", flush=True)
        while server in select.select([server, sys.stdin], [], [])[0]:
            connection, _ = server.accept()
            with connection:
                if os.fork() == 0:
                    server.close()
                    _attend(connection)


def _warm_up() -> None:
    """Open a model once, so that forks find imported and compiled what the libraries make at the first use."""
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    sizes = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=1, num_key_value_heads=1))
    with tempfile.TemporaryDirectory(prefix="qdora-fast-warm-up-") as folder:
        model.save_pretrained(folder)
        AutoModelForCausalLM.from_pretrained(folder)


def _attend(connection: socket.socket) -> NoReturn:
    """Run what is asked for in another fork, and tell how it ended."""
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        asked = json.loads(_read_all(connection))
        pid = os.fork()
        if pid == 0:
            connection.close()
            _work(asked)
        _, status = os.waitpid(pid, 0)
        connection.sendall(json.dumps({"code": os.waitstatus_to_exitcode(status)}).encode())
    finally:
        os._exit(0)


def _work(asked: Mapping[str, Any]) -> NoReturn:
    code = 1
    try:
        for number, path in enumerate(asked["outputs"], start=1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), number)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        sys.argv = [asked["module"], *asked["arguments"]]
        import torch

        torch.set_num_threads(asked["threads"])
        runpy.run_module(asked["module"], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - whatever it was, the caller is told
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _read_all(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65536), b""))


if __name__ == "__main__":
    main(*sys.argv[1:])
