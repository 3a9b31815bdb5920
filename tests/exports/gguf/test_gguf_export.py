"""GGUF through a stand-in for llama.cpp: what is right appears whole; what is wrong leaves a message, nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from stand_in_checkout import make_checkout

from qdora_fast.recipes.export import export
from qdora_fast.system.errors import ConfigError, DiskSpaceError, ProofError, QdoraError, RefusedError
from qdora_fast.system.run_folder import RunFolder


@pytest.fixture
def run(demo_run: RunFolder, tmp_path: Path) -> RunFolder:
    """The demo run's merged model and what belongs to it, in a folder with a space in its name."""
    folder = tmp_path / "my runs" / "demo"
    folder.mkdir(parents=True)
    for name in ("config.yaml", "model.json"):
        shutil.copyfile(demo_run.path / name, folder / name)
    for name in ("adapter", "merged_16bit"):
        shutil.copytree(demo_run.path / name, folder / name)
    return RunFolder(folder)


def test_a_checked_file_and_its_modelfile_appear_and_nothing_else(run: RunFolder, tmp_path: Path) -> None:
    report = export(run, to="gguf", llama_cpp=make_checkout(tmp_path / "llama.cpp", quantizer=""))
    folder = run.path / "gguf-q8_0"
    names = ["MANIFEST.json", "Modelfile", "demo-q8_0.gguf", "export.json"]
    assert sorted(file.name for file in folder.iterdir()) == names
    assert report["made"] and report["proof"]["passed"]
    assert {check["name"] for check in report["proof"]["checks"]} == {
        *("architecture", "weights", "type", "chat_template", "eos", "bos")
    }
    assert json.loads((folder / "export.json").read_text()) == report
    assert "FROM ./demo-q8_0.gguf\n" in (folder / "Modelfile").read_text()
    with pytest.raises(ConfigError, match="already exists"):
        export(run, to="gguf", llama_cpp=tmp_path / "llama.cpp")
    assert export(run, to="gguf", llama_cpp=tmp_path / "llama.cpp", overwrite=True)["made"]


def test_a_quantised_type_goes_through_a_16_bit_file_that_does_not_stay(run: RunFolder, tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path / "llama.cpp", quantizer="build/bin/Release/llama-quantize")
    report = export(run, to="gguf", llama_cpp=checkout, gguf_type="Q4_K_M", out=tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").glob("*.gguf")] == ["demo-q4_k_m.gguf"]
    assert report["proof"]["checks"][2]["words"] == "type q4_k_m (asked for: q4_k_m)"


def test_without_a_checkout_the_commands_are_printed_and_they_work(run: RunFolder, tmp_path: Path) -> None:
    report = export(run, to="gguf")
    assert report["made"] is False
    assert not list(run.path.glob("gguf*"))
    make_checkout(tmp_path / "llama.cpp")
    subprocess.run(["bash", "-ec", "\n".join(report["commands"])], cwd=tmp_path, check=True, capture_output=True)
    assert (run.path / "gguf-q8_0" / "demo-q8_0.gguf").is_file()


def test_the_printed_commands_of_a_quantised_type_build_quantise_and_tidy_up(run: RunFolder, tmp_path: Path) -> None:
    commands = export(run, to="gguf", gguf_type="q4_k_m", out=tmp_path / "it's here")["commands"]
    make_checkout(tmp_path / "llama.cpp")
    (tmp_path / "cmake").write_text("#!/bin/sh\necho cmake $* >> built.txt\n")
    (tmp_path / "cmake").chmod(0o755)
    path = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-ec", "\n".join(commands)], cwd=tmp_path, env=path, check=True, capture_output=True)
    assert (tmp_path / "built.txt").read_text().splitlines()[1].endswith("--target llama-quantize")
    assert [file.name for file in (tmp_path / "it's here").iterdir()] == ["demo-q4_k_m.gguf"]


@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        ("fails", QdoraError, r"convert_hf_to_gguf.py failed \(exit code 3\).*\n.*\n.*\n  \| ValueError: no such arch"),
        ("nothing", QdoraError, r"failed \(but demo-q8_0.gguf is not there\)"),
        ("rubbish", ProofError, "is no GGUF file"),
        ("cut", ProofError, "is not a whole GGUF file"),
        ("tensor", ProofError, r"weights in \d+ tensors \(merged model: "),
        ("width", ProofError, r"2 blocks of width 257 \(trained: 2 of 256\)"),
        ("template", ProofError, "chat template: not the run's"),
        ("eos", ProofError, r"EOS token 1 \(trained: 0\)"),
        ("bos", ProofError, r"BOS in front: True \(trained: False\)"),
    ],
)
def test_what_goes_wrong_is_said_and_nothing_is_left(
    run: RunFolder, tmp_path: Path, fault: str, kind: type[QdoraError], said: str
) -> None:
    before = sorted(run.path.glob("[!.]*"))
    with pytest.raises(kind, match=said) as caught:
        export(run, to="gguf", llama_cpp=make_checkout(tmp_path / "llama.cpp", fault=fault))
    assert caught.value.exit_code == (42 if kind is ProofError else 1)
    assert sorted(run.path.glob("[!.]*")) == before


def test_a_file_that_cannot_be_read_here_is_said_to_be_unchecked(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    proof = export(run, to="gguf", llama_cpp=make_checkout(tmp_path / "llama.cpp"))["proof"]
    assert proof["passed"] is None
    assert proof["words"].startswith("not checked")


def test_room_for_the_file_on_the_way_is_asked_for(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = make_checkout(tmp_path / "llama.cpp")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=256 * 2**20 + 2_000_000))
    export(run, to="gguf", llama_cpp=checkout)  # 1.3 million weights of 8.5 bits
    with pytest.raises(DiskSpaceError, match="are needed"):
        export(run, to="gguf", llama_cpp=checkout, gguf_type="q4_k_m")  # 16 bits of each first
    assert not list(run.path.glob("gguf-q4*"))


def test_code_that_comes_with_a_model_is_not_handed_to_the_converter(run: RunFolder, tmp_path: Path) -> None:
    file = run.path / "merged_16bit" / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"auto_map": {"AutoTokenizer": ["own.Own", None]}}))
    with pytest.raises(RefusedError, match=r"own.py.*--trust-remote-code"):
        export(run, to="gguf", llama_cpp=make_checkout(tmp_path / "llama.cpp"))


def test_a_merged_model_that_is_not_the_run_s_is_made_and_proven_first(run: RunFolder, demo_run: RunFolder) -> None:
    run.write_json("data/proof_rows.json", demo_run.read_json("data/proof_rows.json"))
    merged = run.path / "merged_16bit"
    weights = bytearray((merged / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (merged / "model.safetensors").write_bytes(weights)
    assert export(run, to="gguf")["merged"] == str(merged)
    assert (merged / "model.safetensors").read_bytes() != weights
    said = json.loads((merged / "export.json").read_text())
    assert said["proof"]["passed"] and said["path"] == str(merged)
