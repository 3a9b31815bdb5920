"""`qdora-fast init`: a config to edit that is valid, short, commented and fits; nothing is downloaded."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from qdora_fast.cli.main import cli
from qdora_fast.config import Config
from qdora_fast.config.loader import load_config, make_config
from qdora_fast.config.presets import find_config, list_presets
from qdora_fast.planning.cards import MEMORY_MIB, Card, find_card
from qdora_fast.planning.memory.fit import fits
from qdora_fast.recipes import init as recipe
from qdora_fast.recipes.init_page import page
from qdora_fast.recipes.plan import make_plan
from qdora_fast.recipes.train import dry_run
from qdora_fast.system.errors import ConfigError, DataError

MOST_LINES = 30
CARDS = ("8", "T4", "RTX 4080", "24", "RTX 3090", "L4", "A100 40GB", "H100", "H200")


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of questions, in the working directory."""
    monkeypatch.chdir(tmp_path)
    return _write(
        "my.jsonl", [{"question": f"What is {n} and {n}, number {n}?", "answer": f"{2 * n}"} for n in range(60)]
    )


def _write(name: str, rows: list[dict[str, Any]]) -> Path:
    path = Path(name)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _init(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["init", *arguments], catch_exceptions=False, standalone_mode=False)


def _made(out: str = "my.yaml", **given: Any) -> Config:
    options = {"data": "my.jsonl", "card": None, "model": None, "source": None, "overrides": (), "overwrite": False}
    return load_config(recipe.init(Path(out), **options | given))


@pytest.mark.parametrize("card", CARDS)
def test_every_card_gets_a_short_commented_config_that_fits(rows: Path, card: str) -> None:
    assert _init("my.yaml", "--data", str(rows), "--card", card).exception is None
    text = Path("my.yaml").read_text()
    settings_lines = [line for line in text.splitlines() if line.startswith("  ")]
    assert len(text.splitlines()) <= MOST_LINES
    assert all(re.search(r" # \S", line) for line in settings_lines), text
    config = load_config(Path("my.yaml"))
    assert make_plan(config, "my", card=find_card(card)).fits
    assert config.data.path == "my.jsonl" and config.adapter.method == "qdora"


def test_few_rows_are_trained_on_in_enough_steps(rows: Path) -> None:
    config = _made(card=Card.of_gib(24))
    plan = make_plan(config, "my", card=Card.of_gib(24))
    assert config.train.epochs == 3 and config.train.early_stopping == 2 and not config.train.packing
    assert plan.steps is not None and plan.steps >= 30
    changes = {advice.change.partition("=")[0] for advice in plan.advice}
    assert not changes & {"train.epochs", "train.packing", "train.early_stopping", "train.learning_rate"}


def test_what_the_user_set_is_written_and_not_advised_away(rows: Path) -> None:
    config = _made(card=Card.of_gib(24), overrides=("train.epochs=1", "train.loraplus_ratio=16", "data.held_out=0.2"))
    assert (config.train.epochs, config.train.loraplus_ratio, config.data.held_out) == (1, 16, 0.2)


def test_without_a_gpu_the_tiny_base_is_taken_and_it_runs(rows: Path) -> None:
    config = _made()
    assert config.model.name == "demo"
    dry_run(config)


def test_the_next_commands_are_said(rows: Path) -> None:
    said = _init("sub folder/my.yaml", "--data", str(rows), "--card", "24").stderr
    assert "qdora-fast plan 'sub folder/my.yaml' --card 24" in said
    assert "qdora-fast train 'sub folder/my.yaml'" in said
    assert "question and answer" in said and "FITS" in said


@pytest.mark.parametrize("preset", ["llama3.1-8b-24gb", "phi4-14b-24gb", "mistral-small-24b-24gb"])
def test_a_base_of_a_preset_gets_its_settings(rows: Path, preset: str) -> None:
    base = load_config(find_config(preset)).model.name
    config = _made(model=base, card=Card.of_gib(24))
    assert config.model.name == base
    assert config.train.batch_size != "auto"


def test_of_several_presets_for_a_base_the_largest_that_suits_the_card_is_taken(rows: Path) -> None:
    llama = load_config(find_config("llama3.1-8b-24gb")).model.name
    small, large = (_made(f"{gib}.yaml", model=llama, card=Card.of_gib(gib)) for gib in (15, 24))
    assert (small.model.max_length, large.model.max_length) == (1024, 2048)
    assert large.adapter.method == "qdora"


def test_the_page_has_every_card_and_what_fits(tmp_path: Path) -> None:
    plans = [make_plan(load_config(find_config(name)), name) for name in ("qwen3-8b-24gb", "llama3.1-8b-qlora-24gb")]
    html = page(plans)
    known = json.loads(re.search(r'id="known">(.*?)</script>', html, re.DOTALL)[1])  # type: ignore[index]
    assert [preset["name"] for preset in known["presets"]] == ["qwen3-8b-24gb", "llama3.1-8b-qlora-24gb"]
    assert [preset["method"] for preset in known["presets"]] == ["qdora", "qlora"]
    assert {card["name"] for card in known["cards"]} == set(MEMORY_MIB)
    for plan, preset in zip(plans, known["presets"], strict=True):
        fitting = {card["name"] for card in known["cards"] if preset["peak"] <= card["free"]}
        assert fitting == {name for name in MEMORY_MIB if fits(plan.estimate, find_card(name))}
    assert "default-src 'none'" in html and "<script src" not in html


def test_a_base_that_is_not_here_gets_a_config_all_the_same(rows: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = _made(model="nobody/Has-7B", card=Card.of_gib(24))
    assert config.train.batch_size == "auto"
    assert "not planned" in capfd.readouterr().err


def test_columns_that_nobody_knows_are_an_error_and_a_setting_settles_it(rows: Path) -> None:
    _write("odd.jsonl", [{"frage": f"Was ist {n}?", "antwort": f"Es ist {n}."} for n in range(40)])
    with pytest.raises(DataError, match=r"data\.columns"):
        _made(data="odd.jsonl")
    assert not Path("my.yaml").exists()
    config = _made(data="odd.jsonl", overrides=("data.columns={prompt: frage, response: antwort}",))
    assert config.data.columns is not None and config.data.columns.prompt == "frage"


def test_rows_on_the_hub_are_not_looked_at(rows: Path) -> None:
    assert _made(data="databricks/databricks-dolly-15k").data.path == "databricks/databricks-dolly-15k"


def test_a_file_that_is_there_stays(rows: Path) -> None:
    Path("my.yaml").write_text("mine")
    with pytest.raises(ConfigError, match="--overwrite"):
        _made()
    assert Path("my.yaml").read_text() == "mine"
    assert _made(overwrite=True).data.path == "my.jsonl"


@pytest.mark.parametrize("out", ["my", "my.json", "my.jsonl"])
def test_only_a_config_is_written(rows: Path, out: str) -> None:
    with pytest.raises(ConfigError, match=r"my\.yaml"):
        _made(out)


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=30).filter(
    lambda name: name.strip(". ") == name and name.isprintable()
)


@given(name=NAMES)
@settings(max_examples=20, deadline=None)
def test_any_name_of_a_file_comes_back(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    folder = tmp_path_factory.mktemp("names")
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Say {n}", "response": str(n)}) + "\n" for n in range(8)))
    assert _made(str(folder / "c.yaml"), data=str(path)).data.path == str(path)


def test_another_trainers_config_is_taken_over(rows: Path) -> None:
    Path("theirs.yml").write_text(
        "base_model: NousResearch/Llama-3.2-1B\nadapter: qlora\nload_in_4bit: true\nlora_r: 32\nlora_alpha: 64\n"
        "datasets:\n  - path: my.jsonl\n    type: alpaca\nval_set_size: 0.05\nsequence_len: 4096\nmicro_batch_size: 2\n"
        "gradient_accumulation_steps: 4\nlearning_rate: 0.0003\nnum_epochs: 1\nneftune_noise_alpha: 5\nbf16: auto\n"
    )
    said = _init("ours.yaml", "--from", "theirs.yml").stderr
    config = load_config(Path("ours.yaml"))
    assert (config.adapter.method, config.adapter.r, config.adapter.alpha) == ("qlora", 32, 64)
    assert (config.model.max_length, config.train.epochs, config.train.effective_batch) == (4096, 1, 8)
    assert (config.data.path, config.data.held_out) == ("my.jsonl", 0.05)
    assert "neftune_noise_alpha" in said and "bf16" in said


def test_a_config_of_ours_is_sent_to_train(rows: Path) -> None:
    _made()
    with pytest.raises(ConfigError, match="qdora-fast train my.yaml"):
        _made("other.yaml", source=Path("my.yaml"))


def test_rows_must_be_named(rows: Path) -> None:
    result = CliRunner().invoke(cli, ["init", "my.yaml"])
    assert result.exit_code == 2 and "--data" in result.output


@pytest.mark.parametrize("preset", list_presets(), ids=lambda preset: preset.name)
def test_a_preset_is_printed_as_it_is(preset: Any) -> None:
    shown = CliRunner().invoke(cli, ["presets", "--show", preset.name])
    assert shown.exit_code == 0 and shown.output == preset.path.read_text()


def test_the_printed_default_is_the_default(rows: Path) -> None:
    """What is not changed has the same value as a config that does not name it."""
    made, plain = (
        _made().model_dump(),
        make_config({"model": {"name": "demo"}, "data": {"path": "my.jsonl"}}).model_dump(),
    )
    assert {section: made[section] for section in ("adapter", "export", "evaluation", "engine")} == {
        section: plain[section] for section in ("adapter", "export", "evaluation", "engine")
    }
