"""The door to Unsloth: first, quiet, and with its side effects contained."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qdora_fast.models.backend import captured_prints, free_buffers, open_backend


def _fresh(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("UNSLOTH_")}
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=folder, env=environment)


def test_transformers_before_unsloth_is_refused_with_the_way_out(tmp_path: Path) -> None:
    done = _fresh("import peft\nfrom qdora_fast.models.backend import open_backend\nopen_backend()", tmp_path)
    assert done.returncode != 0
    assert "QdoraError: transformers, peft was imported before unsloth" in done.stderr
    assert "Start a fresh process" in done.stderr


def test_opening_prints_nothing_and_leaves_the_working_folder_clean(tmp_path: Path) -> None:
    script = (
        "from qdora_fast.models.backend import open_backend\n"
        "open_backend()\n"
        "import os; print(os.environ['UNSLOTH_DISABLE_STATISTICS'], os.environ['UNSLOTH_COMPILE_LOCATION'])"
    )
    done = _fresh(script, tmp_path)
    switched_off, location = done.stdout.strip().split(" ", 1)
    assert switched_off == "1"
    assert Path(location).is_absolute()
    assert list(tmp_path.iterdir()) == []


def test_the_door_opens_once() -> None:
    assert open_backend() is open_backend()


def test_what_unsloth_prints_goes_to_the_log(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture) -> None:
    with caplog.at_level("INFO"), captured_prints():
        print("a banner")
    assert "unsloth: a banner" in caplog.text
    assert capsys.readouterr().out == ""


def test_what_unsloth_keeps_of_the_last_answers_is_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    package = importlib.util.find_spec("unsloth")
    assert package is not None and package.origin is not None
    file = Path(package.origin).parent / "models" / "_decode_graphs.py"  # a GPU's decoding; it needs torch alone
    spec = importlib.util.spec_from_file_location("unsloth.models._decode_graphs", file)
    assert spec is not None and spec.loader is not None
    decoding = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(decoding)
    monkeypatch.setitem(sys.modules, spec.name, decoding)
    attention = torch.nn.Linear(1, 1)
    attention.__dict__["paged_attention"] = torch.zeros(8)
    free_buffers(torch.nn.Sequential(attention))
    assert "paged_attention" not in vars(attention)


def test_unsloths_checkpointing_starts_anew_where_it_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    checkpointing = importlib.import_module("unsloth_zoo.gradient_checkpointing")
    monkeypatch.delattr(checkpointing, "GPU_BUFFERS", raising=False)  # as on a CPU, or with PyTorch's checkpointing
    free_buffers(torch.nn.Linear(1, 1))
    monkeypatch.setattr(checkpointing, "GPU_BUFFERS", (), raising=False)
    calls: list[int] = []
    monkeypatch.setattr(checkpointing, "reset_unsloth_gradient_checkpointing_buffers", lambda: calls.append(1))
    free_buffers(torch.nn.Linear(1, 1))
    assert calls == [1]
