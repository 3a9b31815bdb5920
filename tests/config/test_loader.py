"""From YAML to a Config, or to every mistake at once with its place and its fix."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from breadth import examples
from heard import heard
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from made_configs import ALL_KEYS, slips, valid_configs

from qdora_fast.config.loader import dump_config, json_schema, load_config, make_config
from qdora_fast.config.presets import configs_folder
from qdora_fast.config.yaml import read_value, write_yaml
from qdora_fast.system.errors import ConfigError

LEAST = "model:\n  name: demo\ndata:\n  path: demo\n"


def _write(folder: Path, text: str) -> Path:
    path = folder / "c.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_problem_is_told_at_once_with_line_value_and_fix(tmp_path: Path) -> None:
    path = _write(
        tmp_path,
        "model:\n  nam: demo\nadapter:\n  method: qdoar\ndata:\n  path: demo\ntrain:\n  lr: -1\n  batch_size: 0\n",
    )
    with pytest.raises(ConfigError) as caught:
        load_config(path, ["train.epochs=-1", "nonsense"])
    said = str(caught.value)
    assert said.startswith("7 problems in ")
    assert "model.nam (line 2): unknown key; did you mean `model.name`?" in said
    assert "model.name: required" in said
    assert "adapter.method (line 4): got 'qdoar'; choose one of qdora, dora, qlora, lora; did you mean qdora?" in said
    assert "train.lr (line 8): unknown key; did you mean `train.learning_rate`?" in said
    assert "train.batch_size (line 9): got 0; expected auto or a whole number from 1 up" in said
    assert "train.epochs (--set): got -1" in said
    assert "--set nonsense: write it as section.key=value" in said
    assert caught.value.exit_code == 2


def test_numbers_are_read_as_people_write_them(tmp_path: Path) -> None:
    config = load_config(_write(tmp_path, LEAST + "train:\n  learning_rate: 2e-4\n  max_steps: 1_000\n"))
    assert config.train.learning_rate == 2e-4
    assert load_config(_write(tmp_path, LEAST), ["train.learning_rate=3e-5"]).train.learning_rate == 3e-5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model:\n  name: a\n  name: b\n", "line 3: found duplicate key"),
        ("model: [\n", "not valid YAML"),
        ("", "is empty"),
        ("- a\n- b\n", "expected `section: ...` lines"),
        ("model: demo\ndata:\n  path: demo\n", "expected `key: value` lines below it"),
        (
            "a: &a [x, x, x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a, *a]\n"
            "c: &c [*b, *b, *b, *b, *b, *b, *b, *b, *b, *b]\nd: [*c, *c, *c, *c, *c, *c, *c, *c, *c, *c]\n",
            "aliases that multiply",
        ),
    ],
)
def test_a_file_that_is_no_config_is_refused_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(_write(tmp_path, text))


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    _write(tmp_path, LEAST)
    with pytest.raises(ConfigError, match=r"did you mean c\.yaml"):
        load_config(tmp_path / "cc.yaml")


def test_an_empty_section_means_its_defaults(tmp_path: Path) -> None:
    assert load_config(_write(tmp_path, LEAST + "train:\n")).train.epochs == 2


def test_a_dumped_config_loads_as_the_same_config(tmp_path: Path) -> None:
    least = {"model": {"name": "demo"}, "data": {"path": "demo"}}
    for changes in (["adapter.layers='0-1'", "adapter.r=8"], ["train.batch_size=auto", "model.max_length=auto"]):
        config = make_config(least, changes)
        assert load_config(_write(tmp_path, dump_config(config))) == config


# Any text may stand behind --set: it is taken, or refused as a ConfigError; nothing else happens.
@settings(max_examples=examples(200), deadline=None)
@given(
    st.sampled_from(["train.learning_rate", "run.name", "adapter.layers", "x", "train", "data.columns.prompt"]),
    st.text(),
)
def test_an_override_is_a_value_or_a_clear_error(key: str, value: str) -> None:
    refused = ""
    try:
        make_config({"model": {"name": "demo"}, "data": {"path": "demo"}}, [f"{key}={value}"])
    except ConfigError as error:
        refused = str(error)
    assert not refused or key in refused or refused.startswith("1 problem")


def test_a_wrong_config_is_refused_before_torch_is_imported(tmp_path: Path) -> None:
    path = _write(tmp_path, LEAST + "train:\n  lr: 1\n")
    script = (
        "import sys; sys.argv = ['qdora-fast', 'train', sys.argv[1]]\n"
        "from qdora_fast.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as leave: print(leave.code, 'torch' in sys.modules, 'transformers' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "False", "False"]
    assert "did you mean `train.learning_rate`?" in done.stderr


def test_the_shipped_schema_is_the_schema_of_the_code() -> None:
    shipped = json.loads((configs_folder() / "schema.json").read_text(encoding="utf-8"))
    assert shipped == json_schema(), "run: qdora-fast presets --schema > configs/schema.json"


def test_the_schema_explains_every_setting() -> None:
    for name, section in json_schema()["$defs"].items():
        for key, field in section["properties"].items():
            assert field.get("description") or "$ref" in field, f"{name}.{key} has no explanation"


@settings(max_examples=examples(300))
@given(slips())
def test_a_slip_of_the_finger_in_a_key_is_understood(slip: tuple[tuple[str, ...], str]) -> None:
    """One wrong letter in any key of the schema: refused, and the right key is named (`r` and `run` are too short)."""
    key, written = slip
    section = {each[-1] for each in ALL_KEYS if each[:-1] == key[:-1]}
    assume(written and written not in section and len(key[-1]) > 3)
    tree: dict[str, Any] = {"model": {"name": "demo"}, "data": {"path": "demo"}}
    inner = tree
    for part in key[:-1]:
        inner = inner.setdefault(part, {})
    inner[written] = None
    with pytest.raises(ConfigError, match=f"unknown key; did you mean `{'.'.join(key)}`"):
        make_config(tree)


@settings(max_examples=examples(150))
@given(valid_configs())
def test_no_valid_config_is_refused(tree: dict[str, Any]) -> None:
    assert make_config(read_value(write_yaml(tree))) == make_config(tree)


@pytest.mark.parametrize("text", ["a\0b", "half a pair: \ud83d"])
def test_text_that_cannot_be_written_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"run.dir: got .*; it holds NUL or an invalid character"):
        make_config({"model": {"name": "demo"}, "data": {"path": "demo"}, "run": {"dir": text}})


def test_benchmarks_under_their_former_name_are_still_read(tmp_path: Path) -> None:
    def read(mmlu: dict[str, Any], **evaluation: Any) -> tuple[list[str], str]:
        base = {"model": {"name": "demo"}, "data": {"path": "demo"}}
        with heard() as out:
            found = make_config(base | {"evaluation": {"mmlu": mmlu, **evaluation}})
        return found.evaluation.benchmarks, out.getvalue()

    names, said = read({"enabled": True, "tasks": ["gsm8k", "hellaswag"]})
    assert names == ["gsm8k", "hellaswag"]
    assert "evaluation.mmlu.tasks is now evaluation.benchmarks: gsm8k, hellaswag" in said
    assert read({"enabled": True, "tasks": ["gsm8k", "hellaswag"]})[1] == ""  # once a process
    names, said = read({"tasks": ["arc_easy"]})  # as before: without MMLU they were not asked
    assert names == [] and "arc_easy" in said and "has no effect" in said
    assert read({"tasks": []}) == ([], "")
    with pytest.raises(ConfigError, match="mmlu.tasks: it is now evaluation.benchmarks, which is set as well"):
        read({"enabled": True, "tasks": ["a"]}, benchmarks=["b"])
