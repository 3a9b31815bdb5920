"""A run as GGUF: its proven merged model, through the user's llama.cpp, checked, with Ollama's Modelfile beside it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from qdora_fast.exports.gguf import check, checkout
from qdora_fast.exports.gguf.modelfile import WITHOUT_TEMPLATE, go_template, modelfile
from qdora_fast.exports.merged import export_merged_16bit, merged_folder
from qdora_fast.exports.report import print_report
from qdora_fast.models.backend import open_backend
from qdora_fast.models.model_config import text_section
from qdora_fast.models.run_info import read_run_info
from qdora_fast.models.trained import TrainedModel
from qdora_fast.system import console
from qdora_fast.system.atomic import refuse_existing, require_space, staged_folder
from qdora_fast.system.errors import IntegrityError, ProofError, RefusedError
from qdora_fast.system.install import how_to_install
from qdora_fast.system.json_files import read_object
from qdora_fast.system.manifest import sha256_of, write_manifest
from qdora_fast.system.paths import local_path
from qdora_fast.system.remote_code import FLAG, code_of, remote_code_allowed, require_allowed
from qdora_fast.system.run_folder import EXPORT, RunFolder, write_json

DEFAULT_TYPE = "q8_0"
CHECKED = "form and tokens were checked, the values of the weights were not: they are llama.cpp's work"
WITHOUT_TOWER = (
    "the GGUF holds the language part alone, which is what was trained; for images, llama.cpp's convert_hf_to_gguf.py "
    "makes the other part of the same folder with --mmproj"
)


def export_gguf(
    folder: RunFolder,
    trained: TrainedModel,
    *,
    out: Path | None,
    overwrite: bool,
    merge_base: str,
    llama_cpp: str | Path | None = None,
    gguf_type: str = DEFAULT_TYPE,
) -> dict[str, Any]:
    """Convert a finished run's merged model, which is made and proven first where it is not there.

    Args:
        merge_base: of the merged model: auto, original16 or dequant4.
        llama_cpp: folder of a llama.cpp checkout. None: nothing is converted, the report says how.
        gguf_type: of the weights, see `checkout.CONVERTED` and `checkout.QUANTIZED`.

    Returns:
        The report: format, made, path, file, type, ...; of a file that was made proof, bytes and sha256, else commands.

    Raises:
        ConfigError: an unknown type, no checkout there, llama-quantize not built, or `out` exists.
        RefusedError: the model comes with code of its own, which the converter would run.
        DiskSpaceError: no room.
        QdoraError: a tool failed; its last lines are in the message.
        ProofError: what it made is not the merged model.
    """
    kind = checkout.check_type(gguf_type)
    tools = checkout.tools(local_path(llama_cpp), kind) if llama_cpp else None
    target = (out or folder.path / f"gguf-{kind}").absolute()
    if tools:
        refuse_existing(target, overwrite=overwrite)
    require_allowed(read_run_info(folder).own_code)
    merged = _proven_merged(folder, trained, merge_base).absolute()
    made = read_object(merged / EXPORT, {"merge_base": str, "adapter_sha256": str})
    name = folder.path.resolve().name
    file = target / f"{name}-{kind}.gguf"
    report: dict[str, Any] = {
        "format": "gguf",
        "made": tools is not None,
        "path": str(target),
        "file": str(file),
        "type": kind,
        "merged": str(merged),
        "merge_base": made["merge_base"],
        "adapter_sha256": made["adapter_sha256"],
    }
    if made["merge_base"] == "dequant4":
        console.note("dequant4 carries the 4-bit noise of training into the file; original16 is the better start")
    if check.sees(merged):
        console.note(WITHOUT_TOWER)
    if tools is None:
        console.note("no GGUF was made: name a llama.cpp checkout by --llama-cpp DIR, or run these commands")
        return {**report, "commands": checkout.printed(merged, file, kind, name)}
    open_backend()
    _refuse_own_code(merged)
    with staged_folder(target, overwrite=overwrite) as staging:
        _convert(folder, merged, staging, tools, report, longest_row=trained.model.length)
        write_json(staging / EXPORT, report)
        about = {"kind": "export", "format": "gguf", "adapter_sha256": report["adapter_sha256"]}
        write_manifest(staging, about, known=report["sha256"])
    print_report(report)
    if not report["ollama_template"]:
        console.note(f"no TEMPLATE in the Modelfile: {WITHOUT_TEMPLATE}")
    return report


def _convert(
    folder: RunFolder,
    merged: Path,
    staging: Path,
    tools: tuple[str, str],
    report: dict[str, Any],
    *,
    longest_row: int,
) -> None:
    """Fill `staging` with the file and its Modelfile; proof, size and hash are added to the report.

    Args:
        longest_row: `model.max_length` of the run, in tokens.
    """
    from qdora_fast.models.tokenizer import read_tokenizer

    started = time.monotonic()
    kind, file, log = report["type"], staging / Path(report["file"]).name, staging / "llama.cpp.log"
    tokenizer = read_tokenizer(str(folder.adapter))
    wanted = check.expected_facts(merged, tokenizer, kind)
    space = checkout.bytes_needed(wanted.weights, kind)
    require_space(staging, space)
    steps = checkout.steps(merged, file, kind, folder.path.resolve().name, *tools)
    with console.counting_bytes(space, "converting") as on_bytes:
        for step in steps:
            checkout.run(step, log, on_bytes)
    for other in (log, *(step.makes for step in steps[:-1])):
        other.unlink()
    report["proof"] = _proof(check.check(file, wanted))
    stops = read_run_info(folder).stop_ids
    most: Any = text_section(read_object(merged / "config.json")).get("max_position_embeddings", longest_row)
    text = modelfile(file.name, tokenizer, stops, longest_row=longest_row, most_positions=most)
    (staging / "Modelfile").write_text(text, encoding="utf-8")
    report |= {
        "bytes": file.stat().st_size,
        "sha256": {file.name: sha256_of(file)},
        "ollama_template": go_template(tokenizer) is not None,
        "seconds": round(time.monotonic() - started, 2),
    }


def _proof(checks: list[dict[str, Any]] | None) -> dict[str, Any]:
    """The checks as export.json has them.

    Raises:
        ProofError: one of them failed.
    """
    if checks is None:
        return {"passed": None, "checks": [], "words": f"not checked: that needs the reader, {how_to_install('gguf')}"}
    failed = [each["words"] for each in checks if not each["passed"]]
    if failed:
        listed = "\n  - ".join(failed)
        raise ProofError(f"the file that llama.cpp made is not the merged model, and was not kept:\n  - {listed}")
    return {"passed": True, "checks": checks, "words": CHECKED}


def _proven_merged(folder: RunFolder, trained: TrainedModel, merge_base: str) -> Path:
    """The run's merged model: the one that is there if it is proven and of this adapter, else a new one."""
    merged = merged_folder(folder, merge_base)
    wrong = _why_not(merged, folder, merge_base)
    if wrong:
        console.note(f"{merged} {wrong}: it is made and proven first")
        export_merged_16bit(folder, trained, merge_base=merge_base, out=None, overwrite=True)
    return merged


def _why_not(merged: Path, folder: RunFolder, merge_base: str) -> str | None:
    """Why a merged model cannot be taken; None: it can."""
    from qdora_fast.models.adapter import WEIGHTS_NAME

    if not merged.is_dir():
        return "is not there yet"
    try:
        described: dict[str, Any] = read_object(merged / EXPORT)
        if not described["proof"]["passed"]:
            return "did not pass its proof"
        if described["adapter_sha256"] != sha256_of(folder.adapter / WEIGHTS_NAME):
            return "was made from another adapter"
        if merge_base not in ("auto", described["merge_base"]):
            return f"was merged into the other base ({described['merge_base']})"
        changed = [name for name, digest in described["sha256"].items() if sha256_of(merged / name) != digest]
    except (IntegrityError, KeyError, TypeError, OSError):
        return "has no export.json that can be read, or lacks files"
    return f"was changed since it was proven ({changed[0]})" if changed else None


def _refuse_own_code(merged: Path) -> None:
    """llama.cpp's converter tells Transformers to run code that comes with a model, whatever we were told."""
    files = code_of(str(merged))
    if files and not remote_code_allowed():
        raise RefusedError(
            f"{merged} comes with code of its own ({', '.join(files)}), and llama.cpp's converter would run it; "
            f"read it, then add {FLAG}"
        )
