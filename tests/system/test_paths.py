"""Links in folders of others lead nowhere else: nothing outside is copied into an export or written to."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loaded_models import checked_base
from tiny_checkpoints import save_adapter_for, save_base

from qdora_fast.exports.merge.merge import merge
from qdora_fast.recipes import review
from qdora_fast.system.errors import RefusedError
from qdora_fast.system.paths import links_out, local_path, plain_file_name, refuse_links_out, typed
from qdora_fast.system.run_folder import RunFolder


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file of the user's, outside of everything; after the test it is as it was."""
    path = tmp_path / "id_rsa"
    path.write_text("private")
    yield path
    assert path.read_text() == "private"


@pytest.mark.parametrize("name", ["", "..", "../a", "/etc/a", "a/b", "a/../b", None, 3])
def test_only_plain_names_are_names(name: object) -> None:
    assert plain_file_name("model-00001-of-00002.safetensors")
    assert not plain_file_name(name)


def test_a_base_with_a_link_out_is_refused_before_training_and_before_merging(
    secret: Path, tiny_base: Path, tiny_config: Any, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    save_adapter_for(base, tmp_path / "adapter")
    (base / "LICENSE").symlink_to(secret)
    with pytest.raises(RefusedError, match="LICENSE: a link that leads out of"):
        checked_base(tiny_config(), str(base))
    with pytest.raises(RefusedError, match="LICENSE: a link that leads out of"):
        merge(base, tmp_path / "adapter", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    "link",
    [
        lambda run, secret: (run / "evaluation" / "log.jsonl").symlink_to(secret),
        lambda run, secret: (run / "report.html").symlink_to(secret),
        lambda run, secret: (run / "adapter").symlink_to(secret.parent),
        lambda run, secret: (run / "merged_16bit.incomplete").symlink_to("../.."),
    ],
)
def test_a_run_with_a_link_out_is_not_opened(link: Callable[[Path, Path], None], secret: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "theirs"
    (run / "evaluation").mkdir(parents=True)
    (run / "config.yaml").write_text("model: {name: demo}\ndata: {path: demo}\n")
    RunFolder.open(run)
    link(run, secret)
    for look in (RunFolder.open, lambda path: review.list_evaluations([str(path)])):
        with pytest.raises(RefusedError, match="a link that leads out"):
            look(run)


def test_the_hubs_cache_and_linked_weights_are_as_they_should_be(tmp_path: Path) -> None:
    kept = save_base(tmp_path / "kept")
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "abc"
    for folder in (blobs, snapshot):
        folder.mkdir(parents=True)
    for number, file in enumerate(sorted(kept.iterdir())):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    assert list(links_out(snapshot)) == []
    (snapshot / "README.md").symlink_to(tmp_path / "kept" / "config.json")
    assert [path.name for path in links_out(snapshot)] == ["README.md"]

    linked = tmp_path / "linked"
    linked.mkdir()
    for file in kept.iterdir():
        (linked / file.name).symlink_to(file) if file.suffix == ".safetensors" else shutil.copy(file, linked)
    save_adapter_for(linked, tmp_path / "adapter")
    assert merge(linked, tmp_path / "adapter", tmp_path / "merged").merged > 0
    (tmp_path / "elsewhere").symlink_to(linked)
    refuse_links_out(tmp_path / "elsewhere")
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["model_type"] == "llama"


def test_a_pipe_in_a_folder_is_refused_before_anybody_waits_for_it(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    os.mkfifo(tmp_path / "run" / "metrics.jsonl")
    with pytest.raises(RefusedError, match=r"metrics\.jsonl: neither a file nor a folder"):
        refuse_links_out(tmp_path / "run")


@given(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1))
def test_a_path_that_is_printed_to_be_typed_is_one_word_and_no_option(path: str) -> None:
    (word,) = shlex.split(typed(path))
    assert not word.startswith("-")
    assert word in (path, f"./{path}")


def test_a_path_is_as_it_was_typed_and_a_tilde_is_the_home_folder_where_nothing_is_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert local_path("~/x.jsonl") == tmp_path / "home" / "x.jsonl"
    assert local_path("~nobody-of-this-name/x") == Path("~nobody-of-this-name/x")
    assert local_path("$HOME/[a] *.jsonl") == Path("$HOME/[a] *.jsonl")
    Path("~").mkdir()
    assert local_path("~") == Path("~")
