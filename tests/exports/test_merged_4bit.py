"""merged_4bit_forced on real runs: what plain Transformers opens, and when it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from qdora_fast.config.loader import dump_config
from qdora_fast.config.recorded import read_config
from qdora_fast.models.run_info import read_run_info
from qdora_fast.recipes.export import export
from qdora_fast.system.errors import ConfigError
from qdora_fast.system.run_folder import RunFolder


def test_the_demo_in_4_bits_keeps_what_it_learned(demo_run: RunFolder, tmp_path: Path) -> None:
    from bitsandbytes.nn import Linear4bit
    from transformers import AutoModelForCausalLM

    report = export(demo_run, to="merged_4bit_forced", out=tmp_path / "out")
    assert {"format", "path", "proof", "merge_base", "peak_rss_bytes", "seconds"} <= set(report)
    proof = report["proof"]
    assert proof["passed"] and proof["top1"] > 0.95 and proof["distance"]["kept"] > 0.95
    assert [check["name"] for check in proof["checks"]] == [
        *("adapter", "base", "config", "weights", "trained_function", "exported_function", "gain_kept", "tokens")
    ]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    held = {name for name, module in model.named_modules() if isinstance(module, Linear4bit)}
    assert held == set(read_run_info(demo_run).quantized_modules)
    assert proof["weights"]["packed"] == len(held)
    assert model.lm_head.weight.dtype == torch.bfloat16


def test_a_run_on_a_16_bit_base_is_exported_too(short_run: Any) -> None:
    report = export(short_run("dora", train={"max_steps": 12}), to="merged_4bit_forced")
    assert report["proof"]["passed"] and report["proof"]["weights"]["packed"] == 14


def test_it_merges_into_16_bits_whatever_the_run_says(short_run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    made = short_run(export={"merge_base": "dequant4"})
    report = export(made, to="merged_4bit_forced")
    assert report["merge_base"] == "original16"
    assert "dequant4 is not used for this format" in " ".join(capsys.readouterr().err.split())


def test_a_base_that_exists_in_4_bits_alone_is_refused(short_run: Any, tiny_base: Path, tmp_path: Path) -> None:
    from tiny_checkpoints import load_in_4bit

    load_in_4bit(tiny_base, torch.bfloat16).save_pretrained(tmp_path / "nf4")
    made = short_run()
    config = read_config(made)
    packed = config.model_copy(update={"model": config.model.model_copy(update={"base_16bit": str(tmp_path / "nf4")})})
    made.config_file.write_text(dump_config(packed))
    with pytest.raises(ConfigError, match=r"^model\.base_16bit: .* is stored in NF4 of bitsandbytes, not in 16 bits"):
        export(made, to="merged_4bit_forced")
