"""A name or path given by --set is that text, whatever YAML or a shell would make of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from qdora_fast.config.loader import dump_config, load_config, make_config
from qdora_fast.system.errors import ConfigError

NAMES = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")), min_size=1, max_size=20)
LEAST = {"model": {"name": "demo"}, "data": {"path": "demo"}}


@given(NAMES)
@example("[a] #1.jsonl")
@example("a #b.jsonl")
@example("~/x")
@example("~")
@example("null")
@example("1e5")
@example("yes")
@example("2024-01-01")
@example("{x: y}")
@example("a=b,c")
@example('a "quoted" name')
@example("-dash")
@example("!!python/object")
@example("%(x)s $HOME *")
@example(" blank ")
def test_text_is_taken_as_it_is(name: str) -> None:
    assume(name.strip()[0:1] not in ("'", '"'))  # text between quotes is read as YAML, without them
    config = make_config(LEAST, [f"data.path={name}", f"model.name={name}"])
    assert (config.data.path, config.model.name) == (name, name)


def test_names_survive_the_config_of_a_run(tmp_path: Path) -> None:
    names = ["[a] #1.jsonl", "~", "null", "1e5", "2024-01-01", "{x: y}", "%(x)s $HOME *", "ü: -"]
    sources = [{"path": name} for name in names]
    config = make_config(
        {"model": {"name": "- x"}, "data": {"sources": sources}, "run": {"dir": "my [runs] #1 ~ 100%"}}
    )
    (tmp_path / "exp[1].yaml").write_text(dump_config(config), encoding="utf-8")
    assert load_config(tmp_path / "exp[1].yaml") == config


@pytest.mark.parametrize("name", ["1e5", "null", "yes", "2024-01-01", "0123"])
def test_a_runs_name_is_text(name: str) -> None:
    assert make_config(LEAST, [f"run.name={name}"]).run.name == name


@pytest.mark.parametrize("name", ["~", "[a]", "a b", "a/b", "-x", "ü"])
def test_a_runs_name_that_is_no_plain_word_says_so(name: str) -> None:
    with pytest.raises(ConfigError, match="letters, digits"):
        make_config(LEAST, [f"run.name={name}"])


def test_what_is_no_text_is_read_as_yaml_and_nothing_means_none() -> None:
    config = make_config(
        LEAST,
        [
            *("train.learning_rate=1e-4", "adapter.target_modules=[q_proj, v_proj]", "train.max_steps=null"),
            *("run.name=", "data.filters={min_tokens: 3}", "model.max_length = 128", "model.revision = abc"),
        ],
    )
    assert make_config(LEAST, ["adapter.layers='0-1'"]).adapter.layers == "0-1"
    assert config.train.learning_rate == 1e-4
    assert config.adapter.target_modules == ["q_proj", "v_proj"]
    assert (config.train.max_steps, config.run.name, config.data.filters.min_tokens) == (None, None, 3)
    assert (config.model.max_length, config.model.revision) == (128, "abc")


def test_a_number_in_a_file_where_text_belongs_says_to_quote_it(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("model: {name: demo, revision: 1e5}\ndata: {path: demo}\nrun: {dir: 2024-01-01}\n")
    with pytest.raises(ConfigError, match=r"(?s)revision \(line 1\).*quotes.*|dir.*quotes"):
        load_config(file)
