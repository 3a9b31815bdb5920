"""Code that a config or a run names: never run unasked, by no command; run once its user has let it in."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import pty
import py_compile
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qdora_fast.cli.main import cli
from qdora_fast.config import Config
from qdora_fast.config.allowed_code import entries
from qdora_fast.config.loader import load_config, make_config
from qdora_fast.config.own_code import FLAG, allow_own_code, load_function, require_code_allowed
from qdora_fast.config.yaml import read_yaml, write_yaml
from qdora_fast.data.read.custom import load_formatter
from qdora_fast.evaluation.metrics import find_metric
from qdora_fast.evaluation.mmlu.harness_tasks import load_named
from qdora_fast.recipes.data import prepare_data
from qdora_fast.recipes.evaluate import evaluate
from qdora_fast.recipes.train import train
from qdora_fast.system import child
from qdora_fast.system.errors import ConfigError, QdoraError, RefusedError
from qdora_fast.system.run_folder import RunFolder

CODE = """
open({mark!r}, "a").write("ran ")

def f(first, *others):
    return 1.0 if others else first
"""
TASK = """
task: evil
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: generate_until
doc_to_text: !function own.f
doc_to_target: "{{{{output}}}}"
metric_list: [{{metric: exact_match}}]
"""
NAMED: dict[str, dict[str, Any]] = {
    "data.formatter": {"data": {"formatter": "own.py:f"}},
    "data.sources": {"data": {"path": None, "sources": [{"path": "demo", "max_rows": 60, "formatter": "own.py:f"}]}},
    "evaluation.metric": {"evaluation": {"metric": "own.py:f"}},
    "evaluation.more_metrics": {"evaluation": {"more_metrics": ["own.py:f"]}},
    "evaluation.mmlu.task_folder": {
        "evaluation": {"mmlu": {"enabled": True, "tasks": ["evil"], "task_folder": "tasks"}}
    },
}
"""Every setting that names code."""
OF_ROWS, OF_ANSWERS = list(NAMED)[:2], list(NAMED)[2:]
TRAIN: tuple[str, ...] = ("train", "CONFIG")
REFUSING = [
    *itertools.product([TRAIN, (*TRAIN, "--dry-run"), (*TRAIN, "--auto-resume")], NAMED),
    *itertools.product([("data", "CONFIG")], OF_ROWS),
    *itertools.product([("compare", "CONFIG", "--methods", "qlora")], [*NAMED][:4]),
    *itertools.product([("evaluate", "RUN"), ("train", "RUN/config.yaml", "--dry-run")], OF_ANSWERS),
]
"""Each command that would run the code, with each setting whose code that is."""


def command(*arguments: str) -> tuple[int, str]:
    """Exit code and error of a command, in this process."""
    try:
        cli.main(args=list(arguments), standalone_mode=False)
    except QdoraError as error:
        return error.exit_code, str(error)
    return 0, ""


def with_sections(tree: dict[str, Any], changes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A config with settings changed."""
    kept = {key: {**tree.get(key, {}), **changes.get(key, {})} for key in {*tree, *changes}}
    if "sources" in changes.get("data", {}):
        kept["data"] = changes["data"]
    return kept


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user who has allowed nothing yet, in a working directory of their own."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


@pytest.fixture
def sent(home: Path) -> Path:
    """A folder that somebody sent: own.py leaves a mark when it is run, and so does a folder of tasks."""
    folder = home / "sent"
    (folder / "tasks").mkdir(parents=True)
    code = CODE.format(mark=str(folder / "MARK"))
    (folder / "own.py").write_text(code)
    (folder / "tasks" / "own.py").write_text(code)
    (folder / "tasks" / "rows.jsonl").write_text('{"q": "x", "output": "y"}\n')
    (folder / "tasks" / "evil.yaml").write_text(TASK.format(rows=folder / "tasks" / "rows.jsonl"))
    return folder


@pytest.fixture
def config_in(sent: Path, tiny_base: Path) -> Any:
    """A function that writes a config into the sent folder and returns its path."""

    def write(**sections: Any) -> str:
        tree = {
            "run": {"dir": str(sent.parent / "runs"), "name": "tiny"},
            "model": {"name": str(tiny_base), "max_length": 128},
            "data": {"path": "demo", "max_rows": 60, "cache": False},
            "train": {"max_steps": 2, "batch_size": 4, "gradient_accumulation": 1},
            "evaluation": {"max_rows": 2, "max_new_tokens": 2, "completions": 0},
            "export": {"at_end": "none", "proof_rows": 4},
        }
        (sent / "recipe.yaml").write_text(write_yaml(with_sections(tree, sections)))
        return str(sent / "recipe.yaml")

    return write


def hostile_run(run: RunFolder, sent: Path, named: dict[str, Any]) -> str:
    """A finished run whose config names code that lies in its folder."""
    shutil.copy(sent / "own.py", run.path / "own.py")
    shutil.copytree(sent / "tasks", run.path / "tasks", dirs_exist_ok=True)
    run.config_file.write_text(write_yaml(with_sections(read_yaml(run.config_file)[0], named)))
    return str(run.path)


@pytest.mark.parametrize(
    ("words", "setting"), REFUSING, ids=lambda value: value if isinstance(value, str) else "-".join(value)
)
def test_a_command_refuses_code_that_was_not_allowed(
    words: tuple[str, ...], setting: str, sent: Path, config_in: Any, short_run: Any
) -> None:
    on_run = any("RUN" in word for word in words)
    place = hostile_run(short_run(), sent, NAMED[setting]) if on_run else config_in(**NAMED[setting])
    code, said = command(*(word.replace("CONFIG", place).replace("RUN", place) for word in words))
    assert code == 2
    assert f"add {FLAG} {Path(place) if on_run else sent}" in said and "SHA-256" in said
    assert not (sent / "MARK").exists()
    assert entries() == []


def test_an_adapter_from_elsewhere_is_taken_in_without_running_code(sent: Path, short_run: Any) -> None:
    adapter = str(short_run().adapter)
    settings = ["--set", f"data.formatter={sent / 'own.py'}:f", "--set", f"run.dir={sent / 'runs'}"]
    code, said = command("import-adapter", adapter, "--data", "demo", *settings)
    assert code == 2 and f"add {FLAG} {sent / 'own.py'}" in said
    assert not (sent / "MARK").exists()
    assert not (sent / "runs").exists()


def test_commands_that_need_no_code_neither_run_it_nor_ask(sent: Path, config_in: Any, short_run: Any) -> None:
    everything: dict[str, Any] = {"data": NAMED["data.formatter"]["data"], "evaluation": {}}
    for setting in OF_ANSWERS:
        everything["evaluation"] |= NAMED[setting]["evaluation"]
    run = hostile_run(short_run(), sent, everything)
    assert command("plan", config_in(**everything))[0] in (0, 10)
    for words in (
        ("data", config_in(evaluation=everything["evaluation"]), "--out", str(sent / "data")),
        ("review", run, "--reviewer", "Asha", "--verdict", "pass"),
        ("log", run),
        ("report", run),
        ("verify", run),
        ("export", run, "--to", "adapter"),
        ("chat", run, "--once", "hello", "--max-new-tokens", "2"),
    ):
        code, said = command(*words)
        assert FLAG not in said, words
        assert code == 0 or (words[0] == "review" and "completions" in said), (words, said)
    assert not (sent / "MARK").exists()


def test_the_flag_lets_a_file_in_and_its_hash_is_kept(sent: Path, config_in: Any) -> None:
    path = config_in(data={"formatter": "own.py:f"})
    assert command("data", path, FLAG, str(sent / "own.py"))[0] == 0
    assert (sent / "MARK").exists()
    (kept,) = entries()
    assert (kept.setting, kept.path) == ("data.formatter", str(sent / "own.py"))
    assert command("data", path)[0] == 0  # no flag is needed any more

    code, said = command("train", config_in(evaluation={"metric": "own.py:f"}), "--dry-run")
    assert code == 2 and "evaluation.metric names" in said  # what was allowed for one setting serves no other

    (sent / "MARK").unlink()
    with (sent / "own.py").open("a") as file:
        file.write("# changed\n")
    code, said = command("data", config_in(data={"formatter": "own.py:f"}))
    assert code == 2 and f"it has changed since you allowed it on {kept.date}" in said
    assert not (sent / "MARK").exists()


def test_a_copy_of_the_file_named_by_the_flag_is_let_in_and_another_file_is_not(sent: Path, config_in: Any) -> None:
    path = config_in(data={"formatter": "own.py:f"})
    shutil.copy(sent / "own.py", "copy.py")
    Path("other.py").write_text("def f(row):\n    return row\n")
    assert command("data", path, FLAG, "other.py")[0] == 2
    assert command("data", path, FLAG, "copy.py")[0] == 0


def test_a_user_is_asked_once_for_all_files_and_no_is_no(sent: Path, config_in: Any) -> None:
    config = load_config(Path(config_in(**NAMED["data.formatter"], **NAMED["evaluation.metric"])))
    asked: list[str] = []

    def answer(text: str) -> bool:
        asked.append(text)
        return len(asked) > 1

    with allow_own_code([], ask=answer):
        with pytest.raises(RefusedError, match=FLAG):
            require_code_allowed(config, "data.formatter", "evaluation.metric")
        for _ in range(2):
            require_code_allowed(config, "data.formatter", "evaluation.metric")
    assert len(asked) == 2
    assert asked[0].count(f"names {sent / 'own.py'}") == 2
    assert f"{(sent / 'own.py').stat().st_size} bytes, SHA-256 " in asked[0]


@pytest.mark.slow
@pytest.mark.parametrize(("answer", "code"), [(b"\n", 2), (b"y\n", 0)])
def test_on_a_terminal_the_command_asks(answer: bytes, code: int, sent: Path, config_in: Any) -> None:
    path = config_in(data={"formatter": "own.py:f"})
    ours, theirs = pty.openpty()
    words = child.python("-m", "qdora_fast", "data", path)
    os.write(ours, answer)
    with subprocess.Popen(words, stdin=theirs, stderr=theirs, stdout=subprocess.DEVNULL) as process:
        os.close(theirs)
        said = b""
        while piece := _read(ours):
            said += piece
    assert process.returncode == code, said
    assert b"Run it, now and whenever it is unchanged? [y/N]" in said
    assert (sent / "MARK").exists() == (code == 0)


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:  # the other end is closed
        return b""


@pytest.mark.slow
def test_ones_own_run_goes_on_without_a_question_and_the_same_run_from_elsewhere_is_refused(
    sent: Path, config_in: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = config_in(data={"formatter": "own.py:f"}, evaluation={"metric": "own.py:f"}, train={"save_steps": 1})
    run = train(path, own_code=[sent / "own.py"])
    written = read_yaml(run.config_file)[0]
    assert (written["data"]["formatter"], written["evaluation"]["metric"]) == ("code/own.py:f", "code/own.py:f")
    train(path, resume=True)  # the original, and the copy that the run keeps, are the same code
    (sent / "own.py").unlink()
    moved = Path(shutil.move(run.path, home / "moved"))
    assert evaluate(moved)["task"]["metric"] == "own.py:f"

    (sent / "MARK").unlink()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "somebody_else"))
    code, said = command("evaluate", str(moved))
    assert code == 2 and f"add {FLAG} {moved / 'code' / 'own.py'}" in said
    assert not (sent / "MARK").exists()


def test_rows_are_judged_in_worker_processes_without_asking_again(sent: Path, config_in: Any) -> None:
    (sent / "rows.jsonl").write_text("".join(f'{{"n": {number}}}\n' for number in range(1500)))
    row = "{'prompt': f'what is {row[\"n\"]}?', 'completion': f'made by {os.getpid()}'}"
    (sent / "own.py").write_text(f"import os\ndef f(row):\n    return {row}\n")
    data = {
        "path": str(sent / "rows.jsonl"),
        "formatter": "own.py:f",
        "workers": 2,
        "max_rows": None,
        "dedup": {"exact": False, "near": False},
        "filters": {"min_tokens": 0},
    }
    prepared = prepare_data(config_in(data=data), own_code=[sent / "own.py"])
    makers = {row["messages"][-1]["content"] for row in prepared.train}
    assert prepared.report.train > 1000
    assert f"made by {os.getpid()}" not in makers and len(makers) == 2


def test_a_process_that_is_spawned_knows_what_was_allowed(sent: Path) -> None:
    reference = f"{sent / 'own.py'}:f"
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        with pytest.raises(RefusedError, match=FLAG):
            pool.apply(_call, (reference,))
        with allow_own_code([sent / "own.py"]):
            load_formatter(reference)
        assert pool.apply(_call, (reference,)) == {"a": 1}


def _call(reference: str) -> Any:
    return load_formatter(reference)({"a": 1})


def test_a_folder_of_tasks_is_let_in_as_a_whole(sent: Path) -> None:
    tasks = sent / "tasks"
    with pytest.raises(RefusedError, match=f"task_folder names {tasks} "):
        load_named(["evil"], str(tasks))
    assert not (sent / "MARK").exists()
    with allow_own_code([tasks]):
        assert list(load_named(["evil"], str(tasks))) == ["evil"]
    assert (sent / "MARK").exists()
    load_named(["evil"], str(tasks))
    assert not list(tasks.rglob("__pycache__"))
    (tasks / "more.txt").write_text("anything")
    with pytest.raises(RefusedError, match="it has changed since"):
        load_named(["evil"], str(tasks))
    (tasks / "more.txt").unlink()
    (tasks / "out.py").symlink_to(sent / "own.py")
    with pytest.raises(RefusedError, match="leads out of"):
        load_named(["evil"], str(tasks))


@pytest.mark.parametrize("in_tasks", [False, True])
def test_bytecode_that_lies_beside_a_file_is_not_run(in_tasks: bool, sent: Path) -> None:
    file = sent / "tasks" / "own.py" if in_tasks else sent / "own.py"
    good = file.read_text()
    file.write_text(f"open({str(sent / 'BYTECODE')!r}, 'w')\n")
    py_compile.compile(str(file), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    file.write_text(good)
    with allow_own_code([file.parent if in_tasks else file]):
        if in_tasks:
            load_named(["evil"], str(file.parent))
        else:
            load_formatter(f"{file}:f")
    assert (sent / "MARK").exists()
    assert not (sent / "BYTECODE").exists()


def test_a_path_starts_at_its_config_and_a_typed_one_at_the_working_directory(sent: Path, config_in: Any) -> None:
    path = Path(config_in(data={"formatter": "own.py:f"}, evaluation={"mmlu": {"task_folder": "../sent/tasks"}}))
    read = load_config(path, ["evaluation.metric=own.py:f"])
    assert read.data.formatter == f"{sent / 'own.py'}:f"
    assert read.evaluation.mmlu.task_folder == str(sent / "tasks")
    assert read.evaluation.metric == f"{Path.cwd() / 'own.py'}:f"
    made = make_config({"model": {"name": "demo"}, "data": {"path": "demo", "formatter": "a/b.py:f"}})
    assert made.data.formatter == f"{Path.cwd() / 'a' / 'b.py'}:f"


@pytest.mark.parametrize(
    ("setting", "old", "new"),
    [
        ("data.formatter", "my_rows:to_alpaca", "my_rows.py:to_alpaca"),
        ("data.formatter", "pack.rows:f", "pack/rows.py:f"),
        ("data.formatter", "subprocess:run", "subprocess.py:run"),
        ("evaluation.metric", "judge:right", "judge.py:right"),
        ("evaluation.more_metrics", "[judge:right]", "judge.py:right"),
    ],
)
def test_the_old_form_is_an_error_that_gives_the_new_one(setting: str, old: str, new: str, config_in: Any) -> None:
    with pytest.raises(ConfigError, match=f"{setting} .*name the file: {new} "):
        load_config(Path(config_in()), [f"{setting}={old}"])


hostile = st.sampled_from(["subprocess:run", "os:system", "own:f", "sent.own:f", "random.py:seed", "/dev/zero.py:f"])
hostile |= st.text(max_size=20) | st.text(max_size=12).map("{}.py:f".format)
hostile |= st.sampled_from(["OWN:f", "OWN/../own.py:f", "OWN:__name__", "OWN:f.__globals__"])


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(hostile)
def test_nothing_is_imported_whatever_a_config_names(sent: Path, value: str) -> None:
    value = value.replace("OWN", str(sent / "own.py"))
    before = set(sys.modules), list(sys.path)
    for ask in (_config_of, load_formatter, find_metric, lambda text: load_function("data.formatter", text)):
        try:
            ask(value)
        except (ConfigError, ValueError):
            continue
        assert value in ("", "exact_match")  # an empty text names nothing
    assert (set(sys.modules), list(sys.path)) == before
    assert not (sent / "MARK").exists()


def _config_of(value: str) -> Config:
    tree = {"model": {"name": "demo"}, "data": {"path": "demo", "formatter": value}, "evaluation": {"metric": value}}
    config = make_config(tree)
    require_code_allowed(config, "data.formatter", "evaluation.metric")
    return config
