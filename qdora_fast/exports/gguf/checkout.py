"""A llama.cpp checkout: what is in it, which of its commands make a GGUF, and running them.

`convert_hf_to_gguf.py` writes the types of CONVERTED itself. The others are made by `llama-quantize`
from a 16-bit file, which is written first and removed again. The converter runs in this package's
Python: it needs torch, transformers and numpy, which are here, and takes its own `gguf-py` from beside it. So its
folder is searched for modules, as that of no other process: it was typed on the command line (`--llama-cpp`).
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from qdora_fast.system import child
from qdora_fast.system.errors import ConfigError, QdoraError

CONVERTED = {"f32": 32.0, "f16": 16.0, "bf16": 16.0, "q8_0": 8.5}
"""Types that the converter writes, with their bits per weight."""
QUANTIZED = (
    *("q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "q4_0", "q4_k_s", "q4_k_m", "q5_0", "q5_k_s", "q5_k_m", "q6_k"),
    *("iq4_nl", "iq4_xs"),
)
"""Types that llama-quantize makes without an importance matrix."""
QUANTIZED_BITS = 8.0
"""More than any of QUANTIZED takes per weight on the whole, output head and embeddings included."""

PLACEHOLDER = "$LLAMA_CPP"
"""Stands for the checkout in commands that are only printed."""
REPOSITORY = "https://github.com/ggml-org/llama.cpp"

_CONVERTER = "convert_hf_to_gguf.py"
_QUANTIZER = "llama-quantize"
_QUANTIZER_FOLDERS = ("build/bin", "build/bin/Release", "build", "bin", ".")
_BUILD = "cmake -B {0}/build -S {0} && cmake --build {0}/build --config Release --target llama-quantize"
_SHOWN_LINES = 12


@dataclass(frozen=True)
class Step:
    """One command and the file that it makes."""

    command: tuple[str, ...]
    makes: Path


def check_type(kind: str) -> str:
    """The type in lower case.

    Raises:
        ConfigError: not one that can be made here; the nearest is named.
    """
    known = (*CONVERTED, *QUANTIZED)
    if kind.lower() in known:
        return kind.lower()
    near = difflib.get_close_matches(kind.lower(), known, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise ConfigError(f"--gguf-type {kind}: unknown{hint}; choose one of {', '.join(known)}")


def tools(folder: Path, kind: str) -> tuple[str, str]:
    """The converter and the quantiser of a checkout; the quantiser is "" where `kind` does not need it.

    Raises:
        ConfigError: not a checkout, or llama-quantize was not built.
    """
    converter = folder / _CONVERTER
    if not converter.is_file():
        raise ConfigError(
            f"--llama-cpp {folder}: no {_CONVERTER} in it; name the folder of a llama.cpp checkout "
            f"(git clone --depth 1 {REPOSITORY})"
        )
    if kind in CONVERTED:
        return str(converter), ""
    names = (_QUANTIZER, f"{_QUANTIZER}.exe")
    found = (folder / place / name for place in _QUANTIZER_FOLDERS for name in names)
    quantizer = next((file for file in found if file.is_file() and os.access(file, os.X_OK)), None)
    if quantizer is None:
        raise ConfigError(
            f"--gguf-type {kind}: {_QUANTIZER} is in none of {', '.join(_QUANTIZER_FOLDERS)} of {folder}; build it "
            f"once:\n  {_BUILD.format(shlex.quote(str(folder)))}\n  or take {', '.join(CONVERTED)}: they need no build"
        )
    return str(converter), str(quantizer)


def steps(merged: Path, file: Path, kind: str, name: str, converter: str, quantizer: str) -> list[Step]:
    """The commands that make `file` of type `kind` from the folder `merged`."""

    def converted(outfile: Path, outtype: str) -> Step:
        options = ("--outfile", str(outfile), "--outtype", outtype, "--model-name", name)
        return Step(tuple(child.script(converter, str(merged), *options)), outfile)

    if kind in CONVERTED:
        return [converted(file, kind)]
    between = file.with_name(f"{name}-16bit.gguf")
    # `auto` is the 16-bit type of the merged weights, so that this file loses nothing
    return [converted(between, "auto"), Step((quantizer, str(between), str(file), kind.upper()), file)]


def printed(merged: Path, file: Path, kind: str, name: str) -> list[str]:
    """The same commands for a shell, quoted, to be run by hand with the checkout in $LLAMA_CPP."""
    wanted = steps(merged, file, kind, name, f"{PLACEHOLDER}/{_CONVERTER}", f"{PLACEHOLDER}/build/bin/{_QUANTIZER}")
    lines = [
        f"LLAMA_CPP=llama.cpp  # the folder of your checkout: git clone --depth 1 {REPOSITORY}",
        f"mkdir -p {shlex.quote(str(file.parent))}",
    ]
    lines += [_BUILD.format(f'"{PLACEHOLDER}"')] if len(wanted) > 1 else []
    lines += [" ".join(_quoted(word) for word in step.command) for step in wanted]
    lines += [f"rm {shlex.quote(str(step.makes))}" for step in wanted[:-1]]
    return lines


def bytes_needed(weights: int, kind: str) -> int:
    """Disk space for `weights` parameters of type `kind` and for the 16-bit file on the way, in bytes."""
    if kind in CONVERTED:
        return int(weights * CONVERTED[kind] / 8)
    return int(weights * (16 + QUANTIZED_BITS) / 8)


def run(step: Step, log: Path, on_bytes: Callable[[int], None]) -> None:
    """Run one command until it has made its file.

    Args:
        log: everything that it prints goes there.
        on_bytes: told the growth of the file.

    Raises:
        QdoraError: it failed, or made nothing; its last lines are shown.
    """
    environment = child.script_environment(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")
    seen = 0
    with (
        log.open("wb") as output,
        subprocess.Popen(step.command, stdout=output, stderr=output, env=environment) as process,
    ):
        try:
            while process.poll() is None:
                time.sleep(0.1)
                size = step.makes.stat().st_size if step.makes.is_file() else 0
                on_bytes(max(0, size - seen))
                seen = max(seen, size)
        except BaseException:  # Ctrl-C: nothing of ours may go on writing into a folder that is being removed
            process.kill()
            raise
    words = log.read_text(encoding="utf-8", errors="replace")
    if process.returncode or not step.makes.is_file():
        failed = f"exit code {process.returncode}" if process.returncode else f"but {step.makes.name} is not there"
        raise QdoraError(
            f"{Path(_tool(step.command)).name} failed ({failed}); nothing was kept. Its last lines:\n{_last(words)}"
            f"{_advice(words)}"
        )


def _tool(command: Sequence[str]) -> str:
    return command[1] if command[0] == child.INTERPRETER else command[0]


def _last(words: str) -> str:
    lines = [line for line in re.split(r"[\r\n]+", words) if line.strip()]
    return "\n".join(f"  | {line}" for line in lines[-_SHOWN_LINES:]) or "  | (it printed nothing)"


def _advice(words: str) -> str:
    """What helps against failures that are known."""
    if "pre-tokenizer was not recognized" in words:
        return (
            "\n  llama.cpp knows tokenizers by a list, and this one is not on it (the embedded demo base never is): "
            "update the checkout, or use merged_16bit with Transformers, vLLM or SGLang"
        )
    if "ModuleNotFoundError" in words or "ImportError" in words:
        return "\n  the converter runs in this environment: install what it asks for, or update the checkout"
    return ""


def _quoted(word: str) -> str:
    return f'"{word}"' if word.startswith(PLACEHOLDER) else shlex.quote(word)
