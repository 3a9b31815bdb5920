"""A process of its own that examines an export as any user's reader would see it.

The proof of an export must not be run by the process that trained: there Unsloth has replaced parts of
Transformers and PEFT. So this module starts a fresh Python with plain libraries, hands it the case in a
scratch folder, shows what it is doing, and reads back its findings. The other process imports nothing of the
training stack, and its memory is returned when it ends.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from qdora_fast.exports.merge.base import MergeRecipe
from qdora_fast.exports.verify.base_sample import Sample
from qdora_fast.exports.verify.checks import Case, Evidence, OnPhase, examine
from qdora_fast.exports.verify.outputs import Models
from qdora_fast.exports.verify.recording import Recording
from qdora_fast.system import child, errors
from qdora_fast.system.errors import ProofError, QdoraError
from qdora_fast.system.json_files import read_object
from qdora_fast.system.remote_code import allow_remote_code, remote_code_allowed

_PHASE = "phase: "
"""How a line begins that tells what is being done."""


def examine_in_new_process(case: Case, on_phase: OnPhase = lambda phase: None) -> dict[str, Any]:
    """`checks.examine` in a fresh process with plain Transformers and PEFT.

    Raises:
        QdoraError: what `examine` raised.
        ProofError: the process died; the message ends with its last words.
    """
    with tempfile.TemporaryDirectory(prefix="qdora-fast-proof-") as name:
        scratch = Path(name)
        save_case(case, scratch)
        command = child.python("-m", "qdora_fast.exports.verify.fresh_process", name)
        environment = child.environment(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")
        with (scratch / "stderr").open("w+", encoding="utf-8") as trouble:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=trouble, text=True, env=environment)
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    if line.startswith(_PHASE):
                        on_phase(line.removeprefix(_PHASE).strip())
                code = process.wait()
            finally:
                process.kill()  # nothing to be killed unless this process was interrupted
                process.wait()
            trouble.seek(0)
            words = "\n".join(trouble.read().strip().splitlines()[-5:])
        answer = scratch / "answer.json"
        if code or not answer.is_file():
            raise ProofError(f"{case.models.exported}: the process that proves the export ended with {code}:\n{words}")
        message = read_object(answer)
    if "error" in message:
        raise getattr(errors, message["error"])(message["message"])
    return message


def main(name: str) -> None:
    """What the new process does."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    scratch = Path(name)
    allowed = read_object(scratch / "case.json")["remote_code"]
    with allow_remote_code() if allowed else nullcontext():
        try:
            message = examine(load_case(scratch), lambda phase: print(f"{_PHASE}{phase}", flush=True))
        except QdoraError as error:
            message = {"error": type(error).__name__, "message": str(error)}
    (scratch / "answer.json").write_text(json.dumps(message), encoding="utf-8")


def save_case(case: Case, folder: Path) -> None:
    """Write a case into a folder."""
    facts = {
        "models": _plain(asdict(case.models)),
        "rows": list(map(dict, case.evidence.rows)),
        "adapter_faults": case.evidence.adapter_faults,
        "held_out": case.held_out,
        "tokens": case.tokens,
        "added_stops": list(case.added_stops),
        "auto": case.auto,
        "remote_code": remote_code_allowed(),
    }
    (folder / "case.json").write_text(json.dumps(facts), encoding="utf-8")
    case.evidence.tuned.save(folder / "tuned.safetensors")
    case.evidence.base.save(folder / "base.safetensors")
    case.evidence.sample.save(folder / "sample.safetensors")


def load_case(folder: Path) -> Case:
    """Read what `save_case` wrote."""
    facts = read_object(folder / "case.json")
    tuned, base = (Recording.load(folder / f"{name}.safetensors") for name in ("tuned", "base"))
    sample = Sample.load(folder / "sample.safetensors")
    evidence = Evidence(facts["rows"], tuned, base, sample, tuple(facts["adapter_faults"]))
    return Case(
        _models(facts["models"]), evidence, facts["held_out"], facts["tokens"], facts["added_stops"], facts["auto"]
    )


def _plain(value: Any) -> Any:
    """As JSON can hold it: paths, dtypes and sets by name."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, frozenset):
        return sorted(value)
    return str(value) if isinstance(value, Path | torch.dtype) else value


def _models(facts: dict[str, Any]) -> Models:
    recipe = facts["recipe"]
    quantized = recipe["quantized_modules"]
    return Models(
        **{name: Path(facts[name]) for name in ("exported", "adapter", "base", "trained_base")},
        recipe=MergeRecipe(
            merge_base=recipe["merge_base"],
            quantized_modules=None if quantized is None else frozenset(quantized),
            trained_dtype=_dtype(recipe["trained_dtype"]),
            dtype=_dtype(recipe["dtype"]),
            nf4=recipe["nf4"],
        ),
        quantized=frozenset(facts["quantized"]),
        precision=_dtype(facts["precision"]) or torch.float32,
    )


def _dtype(name: str | None) -> torch.dtype | None:
    return None if name is None else getattr(torch, name.removeprefix("torch."))


if __name__ == "__main__":
    main(*sys.argv[1:])
