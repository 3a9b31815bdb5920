"""`push` and `pull` against a hub on this machine, asked through the real library."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from earlier_run import unpack
from fake_hub import Hub, Repository, fake_hub

from qdora_fast.cli.main import cli
from qdora_fast.recipes.pull import pull
from qdora_fast.recipes.push import push
from qdora_fast.recipes.verify import verify
from qdora_fast.system.errors import ConfigError, IntegrityError, QdoraError, RefusedError
from qdora_fast.system.manifest import NAME, problems, read_manifest, sha256_of, write_manifest
from qdora_fast.system.offline import offline

TO = "me/tuned"


@pytest.fixture(scope="session")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(tmp_path_factory.mktemp("old")).parent.parent


@pytest.fixture
def run(unpacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QDORA_FAST_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(unpacked / "runs" / "old", tmp_path / "old"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with fake_hub(monkeypatch) as made:
        yield made


def exported(run: Path, name: str = "merged_16bit", *, passed: bool | None = True, adapter: str | None = None) -> Path:
    """The folder of an export, with weights of no model."""
    folder = run / name
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights" * 100)
    made_of = adapter or sha256_of(run / "adapter" / "adapter_model.safetensors")
    report = {"format": name.split("-")[0], "adapter_sha256": made_of, "proof": {"passed": passed}}
    (folder / "export.json").write_text(json.dumps(report))
    write_manifest(folder, {"kind": "export"})
    return folder


def test_an_adapter_is_sent_privately_as_one_commit_of_its_manifest(
    run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    report = push(run, to=TO)
    sent = hub.repositories[TO]
    assert sent.private and sent.commits == 1
    assert set(sent.files) == {*read_manifest(run / "adapter")["files"], NAME, "README.md"} == set(report["files"])
    assert "base_model_relation" in sent.files["README.md"].decode() or b"library_name: peft" in sent.files["README.md"]
    assert hub.tokens == {"Bearer hf_" + "x" * 34} and "hf_xxx" not in capsys.readouterr().err
    assert report["url"].endswith("/me/tuned") and report["private"]


def test_what_was_sent_is_pulled_and_verified(run: Path, hub: Hub) -> None:
    push(run, to=TO)
    report = pull(TO)
    assert report["verified"] and report["path"] == "tuned" and problems(Path("tuned")) == []
    assert sha256_of(Path("tuned/adapter_model.safetensors")) == sha256_of(run / "adapter/adapter_model.safetensors")
    with pytest.raises(ConfigError, match="already exists"):
        pull(TO)


def test_a_run_goes_with_its_checkpoints_and_comes_back_as_it_was(run: Path, hub: Hub) -> None:
    exported(run)
    push(run, to=TO, what="run", with_data=True)
    assert not [name for name in hub.repositories[TO].files if name.startswith("merged_16bit")]
    report = pull(TO, out="runs/back")
    back = Path("runs/back")
    assert report["kind"] == "run" and [part.problems for part in verify(back) if part.problems] == []
    there = {
        path.relative_to(run): path for path in run.rglob("*") if path.is_file() and "merged_16bit" not in path.parts
    }
    for name, path in there.items():
        if not name.name.startswith(".") and name.name not in ("lock", "lock.json"):
            assert (back / name).read_bytes() == path.read_bytes()
    assert not (back / NAME).exists()
    assert pull(TO)["path"] == "runs/old", "by its own name, so that --resume finds it"


def test_rows_are_not_sent_unless_they_may_be(run: Path, hub: Hub) -> None:
    with pytest.raises(RefusedError, match="add --with-data"):
        push(run, to=TO, what="run")
    assert not hub.asked


def test_a_dry_run_lists_and_asks_nobody(run: Path, hub: Hub) -> None:
    with offline():
        done = CliRunner().invoke(cli, ["push", str(run), "--to", TO, "--dry-run", "--json"], catch_exceptions=False)
    assert json.loads(done.stdout.splitlines()[-1])["dry_run"]
    assert "adapter_model.safetensors" in done.stderr and "would send" in done.stderr
    assert not hub.asked


def test_an_existing_repository_keeps_who_may_read_it(run: Path, hub: Hub) -> None:
    hub.repositories[TO] = Repository(private=False)
    with pytest.raises(RefusedError, match="is public; add --public"):
        push(run, to=TO)
    hub.repositories[TO].private = True
    with pytest.raises(RefusedError, match="is private; --public makes new"):
        push(run, to=TO, public=True, licence="mit")
    assert hub.repositories[TO].commits == 0


def test_what_becomes_public_has_a_confirmed_licence(run: Path, hub: Hub) -> None:
    with pytest.raises(RefusedError, match="no licence is set.*Confirm one: --licence"):
        push(run, to=TO, public=True)
    assert TO not in hub.repositories
    push(run, to=TO, public=True, licence="apache-2.0")
    card = hub.repositories[TO].files["README.md"].decode()
    assert "license: apache-2.0" in card and "No licence is set" not in card
    assert not hub.repositories[TO].private
    assert pull(TO)["verified"]


def test_a_licence_that_the_base_names_is_proposed(run: Path, hub: Hub, unpacked: Path) -> None:
    base = Path(json.loads((run / "model.json").read_text())["base"])
    (base / "README.md").write_text("---\nlicense: mit\n---\n")
    try:
        with pytest.raises(RefusedError, match="the licence mit.*--licence mit"):
            push(run, to=TO, public=True, dry_run=True)
    finally:
        (base / "README.md").unlink()


def spoil_adapter(run: Path) -> None:
    (run / "adapter" / "tokenizer_config.json").write_text("{}")


def lose_magnitudes(run: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = run / "adapter" / "adapter_model.safetensors"
    save_file({name: each for name, each in load_file(file).items() if "magnitude" not in name}, file)
    write_manifest(run / "adapter", {"kind": "adapter"}, leave_out=["README.md"])


def plant(name: str, text: str) -> Callable[[Path], None]:
    def planted(run: Path) -> None:
        (run / "adapter" / name).write_text(text)
        write_manifest(run / "adapter", {"kind": "adapter"}, leave_out=["README.md"])

    return planted


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (spoil_adapter, "tokenizer_config.json"),
        (lose_magnitudes, "magnitude"),
        (plant("README.md", "line\nhf_" + "a1B2" * 9), "README.md:2: holds what looks like a secret"),
        (plant("notes.txt", "password: correct1horse2battery"), "notes.txt:1: holds what looks like a secret"),
        (lambda run: (run / "adapter" / NAME).unlink(), "export .* --to adapter"),
        (lambda run: shutil.rmtree(run / "adapter"), "has no adapter yet"),
    ],
)
def test_an_adapter_that_is_not_right_is_not_sent(
    run: Path, hub: Hub, wrong: Callable[[Path], None], message: str
) -> None:
    wrong(run)
    with pytest.raises(QdoraError, match=message):
        push(run, to=TO)
    assert not hub.asked


def test_an_export_is_sent_if_it_was_proven(run: Path, hub: Hub) -> None:
    with pytest.raises(ConfigError, match="--to merged_16bit` makes it"):
        push(run, to=TO, what="merged_16bit")
    folder = exported(run)
    push(run, to=TO, what="merged_16bit")
    assert set(hub.repositories[TO].files) == {"model.safetensors", "export.json", NAME, "README.md"}
    assert pull(TO)["kind"] == "export"
    shutil.rmtree(folder)
    exported(run, passed=False)
    with pytest.raises(RefusedError, match="was not proven"):
        push(run, to=TO, what="merged_16bit")
    shutil.rmtree(folder)
    exported(run, adapter="0" * 64)
    with pytest.raises(RefusedError, match="another adapter"):
        push(run, to=TO, what="merged_16bit")
    folder.rename(run / "merged_16bit.unproven")
    with pytest.raises(RefusedError, match="did not pass its proof"):
        push(run, to=TO, what="merged_16bit")


def test_a_gguf_is_found_by_its_format_and_one_that_was_not_checked_is_refused(run: Path, hub: Hub) -> None:
    exported(run, "gguf-q8_0")
    push(run, to=TO, what="gguf", dry_run=True)
    exported(run, "gguf-f16", passed=None)
    with pytest.raises(ConfigError, match="which of gguf-f16, gguf-q8_0"):
        push(run, to=TO, what="gguf")
    with pytest.raises(RefusedError, match=r"qdora-fast\[gguf\]"):
        push(run, to=TO, what="gguf-f16")


def test_a_broken_upload_is_continued(run: Path, hub: Hub) -> None:
    hub.uploads_left = 1
    with pytest.raises(ConfigError, match="the same command continues"):
        push(run, to=TO, what="run", with_data=True)
    assert hub.repositories[TO].files == {}, "nothing is seen until all of it is there"
    arrived, hub.uploads_left = list(hub.uploaded), None
    push(run, to=TO, what="run", with_data=True)
    assert len(arrived) == 1 and hub.uploaded.count(arrived[0]) == 1
    assert pull(TO)["verified"]


def test_what_arrives_as_something_else_is_an_error(run: Path, hub: Hub) -> None:
    hub.spoil = "adapter_model.safetensors"
    with pytest.raises(IntegrityError, match="are not what was sent, such as adapter_model.safetensors"):
        push(run, to=TO)
    with pytest.raises(IntegrityError, match="adapter_model.safetensors.*Nothing was kept"):
        pull(TO)
    assert not Path("tuned").exists()


def test_a_second_push_removes_what_the_first_had_and_nothing_else(run: Path, hub: Hub) -> None:
    plant("old.txt", "old")(run)
    push(run, to=TO)
    hub.repositories[TO].files["mine.md"] = b"written on the page"
    (run / "adapter" / "old.txt").unlink()
    write_manifest(run / "adapter", {"kind": "adapter"}, leave_out=["README.md"])
    assert push(run, to=TO)["removed"] == ["old.txt"]
    assert "mine.md" in hub.repositories[TO].files and "old.txt" not in hub.repositories[TO].files


def test_a_branch_is_made_and_pulled(run: Path, hub: Hub) -> None:
    push(run, to=TO, revision="trial")
    assert hub.repositories[TO].files == {}
    assert pull(TO, revision="trial")["verified"]


def test_a_foreign_adapter_is_taken_without_code_and_pickles(
    run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {path.name: path.read_bytes() for path in (run / "adapter").iterdir() if path.name != NAME}
    extra = {"optimizer.pt": b"x", "modeling.py": b"x", "checkpoint-7/adapter_model.safetensors": b"x"}
    hub.repositories[TO] = Repository(private=False, files={**files, **extra, ".gitattributes": b""})
    report = pull(TO)
    assert not report["verified"] and {path.name for path in Path("tuned").iterdir()} == set(files)
    said = capsys.readouterr().err
    assert "not taken: 3 files" in said and "nothing about it was proven" in said


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["config.json", "model.safetensors"], "is a model, which needs no pull: name it as model.name"),
        (["adapter_config.json", "adapter_model.bin"], "pickles can run code"),
        (["checkpoint-100/adapter_model.safetensors", "checkpoint-100/optimizer.pt"], "it holds checkpoint-100"),
        (["README.md"], "no MANIFEST.json and no adapter"),
        (["../../evil.json", "adapter_config.json", "adapter_model.safetensors"], "leads out of a folder"),
    ],
)
def test_foreign_repositories_of_other_kinds_are_refused(run: Path, hub: Hub, names: list[str], message: str) -> None:
    hub.repositories[TO] = Repository(private=False, files=dict.fromkeys(names, b"{}"))
    with pytest.raises(QdoraError, match=message):
        pull(TO)
    assert not Path("tuned").exists()


def test_a_manifest_that_lies_is_refused(run: Path, hub: Hub) -> None:
    push(run, to=TO)
    files = hub.repositories[TO].files
    kept = files.pop("tokenizer.json")
    with pytest.raises(IntegrityError, match=r"not there, such as tokenizer.json"):
        pull(TO)
    files |= {"tokenizer.json": kept, NAME: files[NAME].replace(b"adapter", b"adopter")}
    with pytest.raises(IntegrityError, match="damaged"):
        pull(TO)


@pytest.mark.parametrize("name", ["tuned", "a/b/c", "https://huggingface.co/me/tuned", "me/..", ""])
def test_what_is_no_repository(run: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="write ORG/NAME"):
        push(run, to=name)


def test_offline_and_without_a_token_nobody_is_asked(run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with offline(), pytest.raises(ConfigError, match="--offline"):
        push(run, to=TO)
    with offline(), pytest.raises(ConfigError, match="--offline"):
        pull(TO)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(ConfigError, match="hf auth login"):
        push(run, to=TO)
    with pytest.raises(ConfigError, match="no such repository"):
        pull("me/nothing")
    assert hub.asked == ["GET /api/models/me/nothing"]
