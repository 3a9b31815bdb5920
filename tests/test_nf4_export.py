"""merged_4bit_forced on real runs: what plain Transformers opens, and when it is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from qdora_fast.config_file import dump_config
from qdora_fast.errors import ConfigError, ProofError
from qdora_fast.export import export
from qdora_fast.merged_export import _record_saved, export_merged
from qdora_fast.run_folder import RunFolder


def test_the_demo_in_4_bits_keeps_what_it_learned(demo_run: RunFolder, tmp_path: Path) -> None:
    from bitsandbytes.nn import Linear4bit
    from transformers import AutoModelForCausalLM

    report = export(demo_run, to="merged_4bit_forced", out=tmp_path / "out")
    assert {"format", "path", "proof", "merge_base", "peak_rss_bytes", "seconds"} <= set(report)
    proof = report["proof"]
    assert proof["passed"] and proof["top1"] > 0.95 and proof["survival"]["kept"] > 0.95
    assert [check["name"] for check in proof["checks"]] == [
        *("base", "weights", "kl_to_trained", "closer_than_base", "gain_kept", "tokens")
    ]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    held = {name for name, module in model.named_modules() if isinstance(module, Linear4bit)}
    assert held == set(demo_run.read_json("model.json")["quantized_modules"])
    assert proof["weights"]["packed"] == len(held)
    assert model.lm_head.weight.dtype == torch.bfloat16


def test_a_run_on_a_16_bit_base_is_held_to_one_4_bit_error(short_run: Any) -> None:
    report = export(short_run("dora", train={"max_steps": 12}), to="merged_4bit_forced")
    assert report["proof"]["weights"]["packed"] == 14
    noise = report["proof"]["behaviour"]["quantization"]["mean_kl"]
    limits = {check["name"]: check["limit"] for check in report["proof"]["behaviour"]["checks"]}
    assert limits["kl_to_trained"] == pytest.approx(3 * max(noise, 1e-4))


def test_an_artefact_nearer_the_base_than_the_trained_model_is_refused(demo_run: RunFolder, tmp_path: Path) -> None:
    """The same artefact, held against a trained model that learned ten times as much."""
    found = _record_saved(demo_run, demo_run.config())
    scored = replace(found, base=replace(found.base, loss=0.12), tuned=replace(found.tuned, loss=-1.0))
    with pytest.raises(ProofError, match="of the gain on held-out rows kept, nearer the base than the trained model"):
        export_merged(demo_run, scored, to="merged_4bit_forced", merge_base="original16", out=tmp_path / "out",
                      overwrite=False, console=Console(quiet=True))  # fmt: skip
    assert not (tmp_path / "out").exists() and (tmp_path / "out.unproven/export.json").is_file()


def test_it_merges_into_16_bits_whatever_the_run_says(short_run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    made = short_run(export={"merge_base": "dequant4"})
    report = export(made, to="merged_4bit_forced")
    assert report["merge_base"] == "original16"
    assert "dequant4 is not used for this format" in " ".join(capsys.readouterr().err.split())


def test_a_base_that_exists_in_4_bits_alone_is_refused(short_run: Any, tiny_base: Path, tmp_path: Path) -> None:
    from tiny_checkpoints import load_in_4bit

    load_in_4bit(tiny_base, torch.bfloat16).save_pretrained(tmp_path / "nf4")
    made = short_run()
    config = made.config()
    packed = config.model_copy(update={"model": config.model.model_copy(update={"base_16bit": str(tmp_path / "nf4")})})
    made.config_file.write_text(dump_config(packed))
    with pytest.raises(ConfigError, match="name them as model.base_16bit$"):
        export(made, to="merged_4bit_forced")
