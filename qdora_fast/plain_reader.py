"""A process of its own that opens a model folder as any user would, and records what it says.

The proof of an export must not be run by the process that trained: there Unsloth has replaced
parts of transformers and peft. So this module starts a fresh Python with plain Transformers,
hands it folders and rows, and reads back the recordings. The other process imports nothing of
the training stack, and its memory is returned when it ends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdora_fast import child
from qdora_fast.behaviour import Recording, record, release_memory, reopen
from qdora_fast.errors import ProofError
from qdora_fast.remote_code import allow_remote_code, remote_code_allowed
from qdora_fast.token_identity import describe_folder


@dataclass(frozen=True)
class Opened:
    """What a fresh process found."""

    recordings: tuple[Recording, ...]
    """One a folder, in order."""
    tokens: dict[str, Any] | None
    """What the first folder's tokenizer makes of the recorded rows; None where none were recorded."""


def open_in_new_process(
    folders: Sequence[Path],
    rows: Sequence[Mapping[str, Sequence[int]]],
    *,
    in_4bit: Collection[Path] = (),
    tokens: Mapping[str, Any] | None = None,
) -> Opened:
    """Open each folder with plain AutoModelForCausalLM in a fresh process and record it on `rows`.

    One after the other, on the GPU where the weights fit into its free memory, else on the CPU.

    Args:
        in_4bit: those of the folders whose weights are to be quantised to NF4 while they are loaded.
        tokens: a run's record of its tokens (`token_identity.py`), to be asked of the first folder.

    Raises:
        ProofError: a folder cannot be opened or run; the message ends with the reader's own words.
    """
    with tempfile.TemporaryDirectory(prefix="qdora-fast-proof-") as scratch:
        asked = {
            "rows": list(map(dict, rows)),
            "in_4bit": list(map(str, in_4bit)),
            "tokens": tokens,
            "remote_code": remote_code_allowed(),
        }
        (Path(scratch) / "asked.json").write_text(json.dumps(asked), encoding="utf-8")
        command = child.python("-m", "qdora_fast.plain_reader", scratch, *map(str, folders))
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            words = "\n".join(done.stderr.strip().splitlines()[-5:])
            raise ProofError(f"{' or '.join(map(str, folders))} cannot be opened with plain Transformers:\n{words}")
        recordings = tuple(_load(_answer(scratch, number)) for number in range(len(folders)))
        return Opened(recordings, json.loads(_tokens(scratch).read_text(encoding="utf-8")) if tokens else None)


def main(scratch: str, *folders: str) -> None:
    """What the new process does."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    asked = json.loads((Path(scratch) / "asked.json").read_text(encoding="utf-8"))
    with allow_remote_code() if asked["remote_code"] else nullcontext():
        if asked["tokens"]:
            found = describe_folder(Path(folders[0]), asked["tokens"])
            _tokens(scratch).write_text(json.dumps(found), encoding="utf-8")
        for number, folder in enumerate(map(Path, folders)):
            model = reopen(folder, device=_device(folder), in_4bit=str(folder) in asked["in_4bit"])
            _save(record(model, asked["rows"]), _answer(scratch, number))
            del model
            release_memory()  # else the next model finds the GPU full of the last one's blocks


def _answer(scratch: str, number: int) -> Path:
    return Path(scratch) / f"recording-{number}.safetensors"


def _tokens(scratch: str) -> Path:
    return Path(scratch) / "tokens.json"


def _device(folder: Path) -> str:
    import torch

    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if torch.cuda.is_available() and torch.cuda.mem_get_info()[0] > 1.15 * weights + 2**30:
        return "cuda"
    return "cpu"


def _save(recording: Recording, path: Path) -> None:
    from safetensors.torch import save_file

    rows = {f"{number:06d}": row.contiguous() for number, row in enumerate(recording.log_probs)}
    facts = {"rows_sha256": recording.rows_sha256, "loss": repr(recording.loss), "tokens": str(recording.tokens)}
    save_file(rows, path, metadata=facts)


def _load(path: Path) -> Recording:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        facts = file.metadata()
        rows = tuple(file.get_tensor(name) for name in sorted(file.keys()))
    return Recording(facts["rows_sha256"], rows, float(facts["loss"]), int(facts["tokens"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
