"""`qdora-fast plan`: the answer, its text, its JSON, its page and its exit code, without a network, GPU or weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from families import family_config

from qdora_fast.cli.main import cli
from qdora_fast.config import Config, DataSettings
from qdora_fast.config.loader import dump_config, load_config, make_config
from qdora_fast.config.presets import find_config, list_presets
from qdora_fast.planning.cards import Card
from qdora_fast.planning.memory.base import base_config
from qdora_fast.planning.memory.estimate import in_gib
from qdora_fast.planning.page import page, write_page
from qdora_fast.planning.rows import RowFacts, glance
from qdora_fast.planning.text import bar, lines, preset_table, verdict, what_to_do
from qdora_fast.recipes import plan as recipe
from qdora_fast.recipes.plan import choose_machine, make_plan, preset_plans
from qdora_fast.system import hardware
from qdora_fast.system.errors import ConfigError, DoesNotFit
from qdora_fast.system.hardware import Gpu

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 1000,
    "max_position_embeddings": 1024,
}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A folder with nothing in it but a config.json."""
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    return folder


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "gpus", lambda: [])


def _config(base: Path, tmp_path: Path, **sections: dict[str, Any]) -> Config:
    settings: dict[str, Any] = {
        "model": {"name": str(base), "max_length": 512},
        "data": {"path": "somebody/rows"},
        "run": {"dir": str(tmp_path / "runs")},
    }
    return make_config({**settings, **sections})


def _facts(data: DataSettings, max_length: int) -> RowFacts | None:
    seen = glance(data)
    return seen and seen.facts(data, max_length)


def _rows_file(path: Path, count: int, words: int = 40) -> Path:
    row = {"instruction": "Say it again. " * words, "output": "again"}
    path.write_text("".join(json.dumps({**row, "id": f"{number}"}) + "\n" for number in range(count)))
    return path


@pytest.mark.usefixtures("no_gpu")
def test_every_preset_fits_the_card_it_is_written_for_and_says_how_long_rows_may_be() -> None:
    plans = preset_plans()
    assert {plan.name for plan in plans} == {preset.name for preset in list_presets() if preset.memory_gib}
    for plan in plans:
        assert plan.fits, plan.name
        assert plan.longest >= plan.model.length, plan.name
    table = list(preset_table(plans))
    assert len(table) == 2 + len(plans)
    assert all(line.count("|") == 7 for line in table)


@pytest.mark.usefixtures("no_gpu")
def test_the_answer_comes_first_and_the_picture_adds_up() -> None:
    plan = make_plan(load_config(find_config("llama3.1-8b-24gb")), "llama3.1-8b-24gb")
    text = list(lines(plan))
    assert text[0].startswith("FITS")
    assert "24.0 GiB" in text[0]
    bars = [line for line in text if "▕" in line]
    assert len(bars) == len(plan.estimate.parts) + 1
    assert max(len(line) for line in text) < 160


@pytest.mark.usefixtures("no_gpu")
def test_a_card_that_is_too_small_is_refused_with_what_to_change() -> None:
    config = load_config(find_config("llama3.1-8b-dora-48gb"))
    plan = make_plan(config, "preset", card=Card.of_gib(16))
    assert not plan.fits
    assert verdict(plan).startswith("DOES NOT FIT")
    assert "--set adapter.method=qdora" in what_to_do(plan)
    changed = make_plan(
        load_config(find_config("llama3.1-8b-dora-48gb"), ["adapter.method=qdora"]), "preset", card=Card.of_gib(16)
    )
    assert changed.fits


def test_json_holds_the_contract_and_numbers_of_bytes(base: Path, tmp_path: Path) -> None:
    said: list[str] = []
    file = tmp_path / "mine.yaml"
    file.write_text(dump_config(_config(base, tmp_path)))
    recipe.show_plan(str(file), [], card=Card.of_gib(24), html=None, as_json=True, say=said.append)
    found = json.loads(said[0])
    assert len(said) == 1
    assert {"fits", "peak_bytes", "breakdown", "batch_size", "max_length"} <= set(found)
    assert found["fits"] is True
    assert sum(found["breakdown"].values()) == found["phases"]["step"]
    assert found["peak_bytes"] == max(found["phases"].values())
    assert (found["batch_size"], found["max_length"]) == (2, 512)


@pytest.mark.usefixtures("no_gpu")
def test_a_vision_base_is_planned_with_its_tower_and_said_to_be_estimated(tmp_path: Path) -> None:
    config = family_config("qwen3_5-vl")
    config.save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    train = {"batch_size": "auto", "effective_batch": 8}
    plan = make_plan(_config(tmp_path / "base", tmp_path, train=train), "mine", card=Card.of_gib(24))
    text = "\n".join(lines(plan))
    assert "model.visual" in text
    assert "licence apache-2.0 (its model card)" in text
    assert "not measured for this family (qwen3_5)" in " ".join(text.split())
    found = plan.as_dict()
    assert found["breakdown"]["tower"] > 0
    assert (found["base"]["licence"], found["base"]["measured"]) == ("apache-2.0", False)
    assert found["batch_size"] * found["gradient_accumulation"] == 8
    assert "model.visual" in page(plan)


@pytest.mark.parametrize(
    ("family", "adapter", "words"),
    [("qwen3_moe", {}, "mixture-of-experts"), ("gpt2", {}, "no linear layers in its blocks")],
)
def test_what_train_refuses_is_refused_by_a_plan(
    family: str, adapter: dict[str, Any], words: str, tmp_path: Path
) -> None:
    family_config(family).save_pretrained(tmp_path / "base")
    with pytest.raises(ConfigError, match=words):
        make_plan(_config(tmp_path / "base", tmp_path, adapter=adapter), "mine", card=Card.of_gib(24))


def test_what_does_not_fit_is_said_and_then_fails_with_exit_code_10(base: Path, tmp_path: Path) -> None:
    said: list[str] = []
    file = tmp_path / "mine.yaml"
    file.write_text(dump_config(_config(base, tmp_path)))
    page = tmp_path / "pages" / "plan.html"
    with pytest.raises(DoesNotFit) as error:
        recipe.show_plan(str(file), [], card=Card.of_gib(0.2), html=page, as_json=False, say=said.append)
    assert error.value.exit_code == 10
    assert said[0].startswith("DOES NOT FIT")
    assert "DOES NOT FIT" in page.read_text()


def test_the_command_answers_in_a_process_that_loads_no_heavy_library(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(dump_config(_config(base, tmp_path)))
    script = (
        "import sys; from click.testing import CliRunner; from qdora_fast.cli.main import cli\n"
        f"done = CliRunner().invoke(cli, ['plan', {str(file)!r}, '--card', 'RTX 3090', '--json'])\n"
        "print(done.output)\n"
        "print([m for m in ('torch', 'transformers', 'unsloth', 'datasets', 'peft') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[0])["fits"] is True
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.usefixtures("no_gpu")
def test_the_command_lists_presets_and_asks_for_a_config() -> None:
    table = CliRunner().invoke(cli, ["plan", "--presets"])
    assert table.exit_code == 0
    assert "`llama3.1-8b-24gb`" in table.output
    missing = CliRunner().invoke(cli, ["plan"])
    assert isinstance(missing.exception, ConfigError)


@pytest.mark.usefixtures("no_gpu")
def test_card_and_vram_are_the_same_option() -> None:
    asked = [("--card", "24"), ("--vram", "24"), ("--card", "24 GiB")]
    answers = [CliRunner().invoke(cli, ["plan", "llama3.1-8b-24gb", *card, "--json"]) for card in asked]
    cards = [json.loads(answer.output)["card"] for answer in answers]
    assert cards == [{"name": "a 24 GiB card", "memory_bytes": 24 * 2**30, "gpu": True}] * 3
    named = CliRunner().invoke(cli, ["plan", "llama3.1-8b-24gb", "--card", "rtx 3090", "--json"])
    assert json.loads(named.output)["card"]["name"] == "RTX 3090"
    unknown = CliRunner().invoke(cli, ["plan", "llama3.1-8b-24gb", "--vram", "0"])
    assert isinstance(unknown.exception, ConfigError) and "--card 0" in str(unknown.exception)


@pytest.mark.usefixtures("no_gpu")
def test_the_page_stands_alone_and_escapes_names(base: Path, tmp_path: Path) -> None:
    plan = make_plan(_config(base, tmp_path), "<mine>", card=Card.of_gib(24))
    page = write_page(plan, tmp_path / "plan.html").read_text()
    assert "&lt;mine&gt;" in page
    assert "<mine>" not in page
    assert "://" not in page
    assert "<script" not in page
    for part in plan.estimate.parts:
        assert part.name in page


def test_the_card_is_the_named_one_then_this_machines_then_the_presets(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _config(base, tmp_path)
    monkeypatch.setattr(hardware, "gpus", lambda: [Gpu("A card", 15.5, (8, 9), "1")])
    assert choose_machine(config, "mine", Card.of_gib(40)).card.memory == 40 * 2**30
    assert choose_machine(config, "mine", None).card.name == "A card"
    monkeypatch.setattr(hardware, "gpus", lambda: [])
    assert choose_machine(config, "llama3.1-70b-80gb", None).card.memory == 80 * 2**30
    assert choose_machine(config, "mine", None).card.memory == 24 * 2**30
    demo = make_config({"model": {"name": "demo"}, "data": {"path": "demo"}})
    assert not choose_machine(demo, "demo", None).on_gpu


@pytest.mark.usefixtures("no_gpu")
def test_the_demo_is_planned_for_this_machine() -> None:
    plan = make_plan(load_config(find_config("demo")), "demo")
    assert plan.fits
    assert plan.rows is not None
    assert plan.rows.exact
    assert plan.steps
    assert "process" in plan.as_dict()["breakdown"]


def test_rows_of_a_local_file_give_steps_and_advice(base: Path, tmp_path: Path) -> None:
    file = _rows_file(tmp_path / "rows.jsonl", 300)
    config = _config(base, tmp_path, data={"path": str(file), "held_out": 0.1}, train={"packing": False, "epochs": 2})
    plan = make_plan(config, "mine", card=Card.of_gib(24))
    assert plan.rows is not None
    assert plan.rows.rows == 270
    assert plan.steps == 2 * 17
    assert any("adapter.r=8" in str(line) for line in plan.advice)
    packed = make_plan(_config(base, tmp_path, data={"path": str(file), "held_out": 0.1}), "mine", card=Card.of_gib(24))
    assert packed.steps is not None
    assert packed.steps < plan.steps


def test_a_glance_counts_small_files_measures_rows_and_notices_long_ones(tmp_path: Path) -> None:
    file = _rows_file(tmp_path / "rows.jsonl", 50, words=4)
    facts = _facts(DataSettings(path=str(file), held_out=0), 1000)
    assert facts is not None
    assert (facts.rows, facts.exact, facts.too_long) == (50, True, 0)
    assert facts.median_tokens == pytest.approx(4 * 14 / 4, rel=0.2)
    long = _facts(DataSettings(path=str(file), held_out=0), 5)
    assert long is not None
    assert long.too_long == 1


def test_a_large_file_is_counted_by_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qdora_fast.planning import rows

    monkeypatch.setattr(rows, "COUNTED_BYTES", 1000)
    file = _rows_file(tmp_path / "rows.jsonl", 3000, words=4)
    facts = _facts(DataSettings(path=str(file), held_out=0), 1000)
    assert facts is not None
    assert not facts.exact
    assert facts.rows == pytest.approx(3000, rel=0.05)


def test_rows_elsewhere_or_broken_are_not_looked_at(tmp_path: Path) -> None:
    assert glance(DataSettings(path="somebody/rows")) is None
    (tmp_path / "empty.jsonl").write_text("")
    assert glance(DataSettings(path=str(tmp_path / "empty.jsonl"))) is None
    (tmp_path / "bad.json").write_text("{")
    assert glance(DataSettings(path=str(tmp_path / "bad.json"))) is None


def test_a_mixture_counts_each_source_by_its_weight_and_max_rows(tmp_path: Path) -> None:
    first, second = _rows_file(tmp_path / "a.jsonl", 40), _rows_file(tmp_path / "b.jsonl", 100)
    sources = [{"path": str(first), "weight": 0.5}, {"path": str(second), "max_rows": 10}]
    facts = _facts(DataSettings.model_validate({"sources": sources, "held_out": 0}), 512)
    assert facts is not None
    assert facts.rows == 30


def test_time_comes_from_the_newest_run_of_the_same_name_and_shape(base: Path, tmp_path: Path) -> None:
    config = _config(base, tmp_path, train={"max_steps": 100})
    assert make_plan(config, "mine", card=Card.of_gib(24)).seconds is None
    folder = tmp_path / "runs" / "mine-2"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_config(config))
    records = [{"step": step, "seconds": 2.0 * step, "loss": 1.0, "tokens_per_second": 500.0} for step in range(1, 9)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + '{"step": 9')
    plan = make_plan(config, "mine", card=Card.of_gib(24))
    assert plan.seconds == (200, 200)
    assert plan.speed is not None
    assert plan.speed.tokens_per_second == 500
    assert any("3:20 min" in line for line in lines(plan))
    (tmp_path / "runs" / "mine-3").mkdir()
    (tmp_path / "runs" / "mine-3" / "metrics.jsonl").write_text("")  # a run that has only begun, and has no config
    assert make_plan(config, "mine", card=Card.of_gib(24)).seconds == (200, 200)
    wider = _config(base, tmp_path, train={"max_steps": 100, "batch_size": 4})
    assert make_plan(wider, "mine", card=Card.of_gib(24)).seconds is None
    assert make_plan(config, "other", card=Card.of_gib(24)).seconds is None


def test_pauses_between_steps_are_part_of_the_longer_time(base: Path, tmp_path: Path) -> None:
    config = _config(base, tmp_path, train={"max_steps": 10})
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_config(config))
    seconds = [1, 2, 3, 13, 14, 15]  # an evaluation of ten seconds in the middle
    logged = [json.dumps({"step": n, "seconds": s, "tokens_per_second": 9.0}) for n, s in enumerate(seconds, start=1)]
    (folder / "metrics.jsonl").write_text("\n".join(logged))
    assert make_plan(config, "mine", card=Card.of_gib(24)).seconds == (10, 28)
    (folder / "metrics.jsonl").write_text("\n".join(logged[:3]))
    assert make_plan(config, "mine", card=Card.of_gib(24)).seconds is None


def test_a_base_that_cannot_be_read_or_is_unknown_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the config.json of `somebody/model`"):
        base_config("somebody/model")
    with pytest.raises(ConfigError, match="cannot read the config.json"):
        base_config("not a hub id!")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ConfigError, match="holds no config.json"):
        base_config(str(empty))
    (empty / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match="expected a JSON object, found a list"):
        base_config(str(empty))


def test_well_known_bases_need_no_network_and_say_where_sizes_are_from() -> None:
    found = base_config("Qwen/Qwen3-8B")
    assert found.values["num_hidden_layers"] == 36
    assert "table" in found.source


def test_bars_stay_within_their_edges_and_nothing_is_invisible() -> None:
    for start, size in ((0, 0), (0, 1), (50, 1), (99, 1), (0, 100), (90, 10), (33, 33)):
        drawn = bar(start, size, 100, width=20)
        assert len(drawn) == 22
        assert (drawn[0], drawn[-1]) == ("▕", "▏")
        assert drawn[1:-1].strip()


def test_sizes_are_said_in_the_unit_that_reads_best() -> None:
    assert [in_gib(size) for size in (1000, 5 * 2**20, 2**30, 3 * 2**29)] == [
        "under 1 MiB",
        "5 MiB",
        "1.0 GiB",
        "1.5 GiB",
    ]
