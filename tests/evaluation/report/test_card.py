from __future__ import annotations

import contextlib
import io
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from breadth import examples
from html_pages import HOSTILE
from huggingface_hub import ModelCard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_runs import (
    WORDS,
    add_to_log,
    damaged_run,
    data_report,
    evaluation,
    finished_run,
    mmlu,
    review_of,
    task,
)

from qdora_fast.config.loader import make_config
from qdora_fast.config.recorded import read_config
from qdora_fast.data.clean.rejects import REASONS
from qdora_fast.evaluation.report.card import Kind, model_card
from qdora_fast.recipes.report import read_parts
from qdora_fast.system.run_folder import RunFolder

KINDS: tuple[Kind, ...] = ("adapter", "merged_16bit", "merged_4bit_forced")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return finished_run(tmp_path / "my-run")


def card_of(folder: RunFolder, kind: Kind = "adapter") -> ModelCard:
    return ModelCard(model_card(read_parts(folder), kind=kind))


def header_of(folder: RunFolder, kind: Kind = "adapter") -> dict[str, Any]:
    return dict(card_of(folder, kind).data.to_dict())


def code_of(card: str) -> str:
    return card.split("```python\n")[1].split("```")[0]


@pytest.mark.parametrize(
    ("kind", "library", "relation"),
    [
        ("adapter", "peft", "adapter"),
        ("merged_16bit", "transformers", "finetune"),
        ("merged_4bit_forced", "transformers", "quantized"),
    ],
)
def test_the_header_names_base_relation_library_and_data(
    run: RunFolder, kind: Kind, library: str, relation: str
) -> None:
    header = header_of(run, kind)
    assert (header["base_model"], header["base_model_relation"]) == ("owner/Base-1B", relation)
    assert (header["library_name"], header["datasets"]) == (library, ["owner/rows"])
    assert {"qdora", "dora"} <= set(header["tags"])
    assert "model-index" not in header and "license" not in header


def test_of_a_local_base_and_of_local_rows_nothing_is_in_the_header(tmp_path: Path) -> None:
    config = {"model": {"name": "/home/asha/base"}, "data": {"path": "rows/train.jsonl"}}
    header = header_of(finished_run(tmp_path / "run", config=config))
    assert not {"base_model", "base_model_relation", "datasets"} & set(header)
    demo = {"model": {"name": "demo"}, "data": {"path": "demo"}}
    assert not {"base_model", "datasets"} & set(header_of(finished_run(tmp_path / "demo", config=demo)))


def test_a_folder_of_files_is_no_data_set_of_the_hub(run: RunFolder) -> None:
    run.write_json("data/report.json", data_report(sources=[{"path": "owner/rows", "files": [["a.jsonl", 5]]}]))
    assert "datasets" not in header_of(run)


def test_the_card_says_what_it_is_what_was_found_and_what_was_not(run: RunFolder) -> None:
    text = card_of(run).text.replace("\u00a0", " ")
    for said in (
        "# my-run",
        "An adapter for owner/Base-1B at revision `abc123`.",
        "- method: `qdora`, DoRA (magnitude and direction are trained apart) on a base held in 4-bit NF4",
        "- rank r = 16, alpha = 16, scale alpha / r",
        "**No licence is set.**",
        "- 600 rows read, 550 kept: 500 to train on, 50 held out",
        f"- dropped: 30 {REASONS['too_long']}; 20 {REASONS['exact_duplicate']}",
        "at least 10% of the prompts, by a hash",
        "ab" * 32,
        WORDS,
        "| normalized_match | 50 | 20.0 % | 80.0 % | +60.0 points | +45.0 to +75.0 |",
        "| MMLU, 5-shot | 2,052 | 64.0 % | 61.7 % | −2.3 points | −3.6 to −1.1 |",
        "Not measured: MMLU as a whole (a fixed subset was asked), safety",
        "- Training saw the base in 4-bit NF4",
        "- MMLU fell by 2.3 points",
        "- Answers read by a person: review pending.",
        "torch 2.13.0",
        "RTX 4090",
    ):
        assert said in text
    assert "xformers" not in text


def test_the_mode_of_thinking_is_told_with_what_other_servers_are_asked(run: RunFolder) -> None:
    said = 'off: no row has reasoning. Ask other servers with "chat_template_kwargs": {"enable_thinking": false}'
    run.write_json("data/report.json", data_report(thinking={"setting": "auto", "mode": "off", "sentence": said}))
    assert f"- thinking {said}" in model_card(read_parts(run), kind="merged_16bit")
    run.write_json("data/report.json", data_report(thinking="broken"))
    assert "- thinking" not in model_card(read_parts(run), kind="merged_16bit")


def test_the_limits_depend_on_what_was_trained_and_found(tmp_path: Path, run: RunFolder) -> None:
    assert "take no DoRA adapter" in card_of(run).text
    assert "take no DoRA adapter" not in card_of(run, "merged_16bit").text
    config = {"model": {"name": "owner/base"}, "data": {"path": "demo"}, "adapter": {"method": "lora"}}
    plain = finished_run(tmp_path / "lora", config=config, mmlu=mmlu(status="ok", questions="full"))
    text = card_of(plain).text
    assert "DoRA" not in text and "NF4" not in text and "MMLU as a whole" not in text
    for verdict, said in (("worse", "does its task worse"), ("no evidence", "no evidence that it does")):
        run.write_json("evaluation/evaluation.json", evaluation(task=task(verdict=verdict), mmlu=None))
        text = card_of(run).text
        assert said in text and "what was forgotten (MMLU)" in text


def test_a_review_is_named_with_its_verdict(run: RunFolder) -> None:
    add_to_log(run, "review", **review_of(run, verdict="needs-work"))
    text = card_of(run).text
    assert "- Answers read by a person: Asha says needs-work." in text
    assert "Answers read by a person: review pending" not in text


def test_a_model_in_4_bits_says_what_is_left_of_the_gain(run: RunFolder) -> None:
    assert "Rounded to 4 bits: an unknown share" in card_of(run, "merged_4bit_forced").text
    run.write_json("merged_4bit_forced/export.json", {"proof": {"passed": True, "distance": {"kept": 0.987}}})
    assert "Rounded to 4 bits: 99% of what tuning gained on held-out rows" in card_of(run, "merged_4bit_forced").text


def test_the_merged_model_says_whether_it_was_proven(run: RunFolder) -> None:
    assert "merged into the original 16-bit weights; checked to be" in card_of(run, "merged_16bit").text
    assert "merged into" not in card_of(run).text
    run.write_json("merged_16bit/export.json", {"merge_base": "dequant4"})
    assert "merged into the 4-bit weights; not proven" in card_of(run, "merged_16bit").text


def test_the_config_in_the_card_makes_the_run_again(run: RunFolder) -> None:
    from ruamel.yaml import YAML

    block = card_of(run).text.split("```yaml\n")[1].split("\n```")[0]
    assert make_config(YAML(typ="safe", pure=True).load(block)) == read_config(run).model_copy(
        update={"run": make_config({"model": {"name": "x"}, "data": {"path": "demo"}}).run}
    )


SECRET = "/home/asha/secret/place"


@pytest.mark.parametrize("kind", KINDS)
def test_no_path_of_the_machine_is_in_the_card(tmp_path: Path, kind: Kind) -> None:
    config = {
        "run": {"dir": f"{SECRET}/runs"},
        "model": {"name": f"{SECRET}/base", "base_16bit": f"{SECRET}/base16"},
        "data": {
            "sources": [{"path": f"{SECRET}/a.jsonl", "formatter": f"{SECRET}/rows.py:f"}, {"path": f"{SECRET}/b"}],
            "template": f"{SECRET}/t.jinja",
            "held_out_path": f"{SECRET}/c.jsonl",
            "quality": {"model": f"{SECRET}/small"},
        },
        "evaluation": {
            "metric": f"{SECRET}/judge.py:right",
            "mmlu": {"path": f"{SECRET}/mmlu", "task_folder": f"{SECRET}/tasks"},
        },
    }
    folder = finished_run(tmp_path / "run", config=config)
    sources = [{"path": f"{SECRET}/a.jsonl", "files": [[f"{SECRET}/a.jsonl", 5]]}]
    folder.write_json("data/report.json", data_report(sources=sources, examples={"too_long": [f"{SECRET}/a.jsonl:5"]}))
    folder.write_json("merged_16bit/export.json", {"path": SECRET, "base": {"folder": SECRET}, "proof": {}})
    add_to_log(folder, "review", **review_of(folder, file=f"{SECRET}/review.json"))
    card = model_card(read_parts(folder), kind=kind)
    assert "secret" not in card and str(tmp_path) not in card and "asha" not in card
    for name in (
        "base",
        "base16",
        "a.jsonl",
        "t.jinja",
        "c.jsonl",
        "small",
        "mmlu",
        "tasks",
        "judge.py:right",
        "rows.py:f",
    ):
        assert re.search(rf"(: |, ){re.escape(name)}\n", card), name


wild = st.text(max_size=20) | st.sampled_from(HOSTILE)


@settings(deadline=None, max_examples=examples(40), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wild, wild)
def test_what_others_have_written_is_no_markup(tmp_path: Path, one: str, two: str) -> None:
    def lines(one: str, two: str) -> list[str]:
        folder = finished_run(tmp_path / "run", task=task(words=f"w {one}", more={f"m{two}": task()}))
        found = data_report(dropped={"of_the_user": 2})
        folder.write_json("data/report.json", found | {"reasons": {"of_the_user": f"why {one}"}})
        add_to_log(folder, "data_review", dataset=found["hash"], sentence=f"s {two}")
        add_to_log(folder, "review", **review_of(folder, reviewer=f"r {one}"))
        return model_card(read_parts(folder), kind="adapter").split("\n")

    def plain(text: str) -> str:
        return text.encode(errors="replace").decode()

    found, expected = lines(plain(one), plain(two)), lines("1", "2")
    assert len(found) == len(expected)
    for line, other in zip(found, expected, strict=True):
        assert not re.search(r"<[A-Za-z/!?]", re.sub(r"</?(details|summary)>", "", line))
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == other.count("|")
        assert re.match(r"[#>|\-`\s]*", line)[0] == re.match(r"[#>|\-`\s]*", other)[0]  # type: ignore[index]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_which_nothing_is_known_has_a_card(tmp_path: Path, kind: Kind) -> None:
    card = card_of(RunFolder(tmp_path / "nothing"), kind)
    assert "an unknown base" in card.text and "Not measured." in card.text and "review pending" in card.text
    assert "None" not in card.text


@pytest.mark.parametrize("seed", range(12))
def test_any_json_in_the_files_gives_a_card(tmp_path: Path, seed: int) -> None:
    folder = damaged_run(tmp_path / "run", seed)
    for kind in KINDS:
        assert card_of(folder, kind).data.to_dict()["library_name"] in ("peft", "transformers")
        model_card(read_parts(folder), kind=kind).encode()


def says(code: str) -> str:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(code, "card", "exec"), {})
    return said.getvalue()


@pytest.fixture
def tuned_folders(tiny_base: Path, tmp_path: Path, run: RunFolder) -> RunFolder:
    """An adapter and a whole model with a chat template, where the run keeps them."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    merged = [run.path / name for name in ("merged_16bit", "merged_4bit_forced")]
    for folder in merged:
        shutil.copytree(tiny_base, folder, dirs_exist_ok=True)
    get_peft_model(model, LoraConfig(r=2, use_dora=True, target_modules=["q_proj"])).save_pretrained(run.adapter)
    for folder in (run.adapter, *merged):
        tokenizer.save_pretrained(folder)
    return run


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_code_in_the_card_runs_where_the_card_lies(
    tuned_folders: RunFolder, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    monkeypatch.chdir(tuned_folders.path / kind)
    code = code_of(model_card(read_parts(tuned_folders), kind=kind))
    assert says(code.replace("max_new_tokens=128", "max_new_tokens=4")).endswith("\n")
