"""`chat` and `serve` as they are typed: answers on standard output, all else on standard error."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
from typing import Any

import pytest
from click.testing import CliRunner, Result

from qdora_fast.cli.main import cli
from qdora_fast.system.run_folder import RunFolder

MAIN = "from qdora_fast.cli.main import main; main()"


def _chat(*arguments: str, typed: str = "", **environment: str) -> Result:
    return CliRunner(env=environment).invoke(cli, ["chat", *arguments], input=typed)


def _plain(text: str) -> str:
    """Without the codes that steer a terminal."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def _question(run: RunFolder, number: int = 0) -> str:
    return str(run.read_rows("data/train.jsonl")[number]["messages"][0]["content"])


def test_once_prints_the_answer_and_nothing_else(demo_run: RunFolder) -> None:
    rows = [row["messages"] for row in demo_run.read_rows("data/train.jsonl")[:4]]
    right = 0
    for question, answer in rows:
        done = _chat(str(demo_run.path / "merged_16bit"), "--once", question["content"])
        assert done.exit_code == 0
        assert "tokens/s" in done.stderr
        right += done.stdout == answer["content"] + "\n"
    assert right >= 3  # trained rows, in the trained form
    piped = _chat(str(demo_run.path), "--once", "-", typed=rows[0][0]["content"])
    assert piped.stdout.count("\n") == 1


def test_a_conversation_through_a_pipe(demo_run: RunFolder) -> None:
    question = _question(demo_run)
    commands = f"/system Be brief.\n{question}\n/new\n/system\n/help\n/what\n"
    done = _chat(str(demo_run.path), typed=f"{question}\n\n{commands} {question}\n/quit\n{question}\n")
    assert done.exit_code == 0
    assert len(done.stdout.splitlines()) == 3  # nothing is read after /quit
    for said in ("Model     ", "with a system message", "without a system message", "/quit  ", "/help lists them"):
        assert said in done.stderr
    assert done.stderr.count("tokens/s") == 3


def test_a_conversation_goes_on_after_a_message_that_cannot_be_answered(
    demo_run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import GenerationMixin

    usual = GenerationMixin.generate

    def small_card(self: object, *arguments: object, **options: Any) -> object:
        if options["input_ids"].shape[1] > 100:
            raise torch.OutOfMemoryError
        return usual(self, *arguments, **options)

    monkeypatch.setattr(GenerationMixin, "generate", small_card)
    too_long, far_too_long = "word " * 200, "word " * 5000
    done = _chat(str(demo_run.path / "merged_16bit"), typed=f"{too_long}\n{far_too_long}\n{_question(demo_run)}\n")
    assert done.exit_code == 0
    assert "do not fit into memory: /new starts over" in done.stderr
    assert "and the model takes 2,048: shorten it" in done.stderr
    assert len(done.stdout.splitlines()) == 1


def test_compare_shows_base_and_tuned_below_each_other_or_side_by_side(demo_run: RunFolder) -> None:
    asked = (str(demo_run.path), "--compare", "--once", _question(demo_run), "--max-new-tokens", "12")
    below = _chat(*asked)
    assert re.fullmatch(r"base:\n.+\ntuned:\n.+\n", below.stdout)
    wide = _chat(*asked, TTY_COMPATIBLE="1", COLUMNS="140")
    assert re.search(r"^base {20,}tuned *$", _plain(wide.stdout), flags=re.MULTILINE)
    base, tuned = re.findall(r":\n(.+)\n", below.stdout)
    whole = [line for line in _plain(wide.stdout).splitlines() if line.startswith(base[:20])][-1]
    assert whole.rstrip().endswith(tuned)
    narrow = _chat(*asked, TTY_COMPATIBLE="1", COLUMNS="70")
    assert _plain(narrow.stdout) == below.stdout


@pytest.mark.parametrize(
    ("place", "arguments", "said"),
    [
        ("merged_16bit", ["--compare"], "the base is not in a merged model; compare with the run it was made from: "),
        ("", ["--once", " "], "the message is empty"),
        ("", ["--once", "Hello", "--top-p", "0.5"], "set --temperature"),
        ("data", [], "is not a run"),
    ],
)
def test_a_mistake_is_said_before_weights_are_read(
    demo_run: RunFolder, place: str, arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("qdora_fast.models.loading.load_trained")
    done = _chat(str(demo_run.path / place), *arguments)
    assert done.exit_code == 1 and said in str(done.exception)


def test_numbers_out_of_range_are_refused() -> None:
    for option, value in (("--temperature", "-1"), ("--top-p", "0"), ("--max-new-tokens", "0"), ("--seed", "x")):
        assert _chat("run", option, value).exit_code == 2
    assert CliRunner().invoke(cli, ["serve", "run", "--port", "70000"]).exit_code == 2


def test_ctrl_c_stops_the_answer_and_not_the_program(demo_run: RunFolder) -> None:
    """On a terminal of its own: a long answer, Ctrl-C, /quit."""
    options = ["--temperature", "1e6", "--seed", "5", "--max-new-tokens", "400"]
    command = [
        sys.executable,
        "-c",
        MAIN,
        "chat",
        str(demo_run.path),
        *options,
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("UNSLOTH_")}
    ours, theirs = pty.openpty()
    talk = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    try:
        _read_until(ours, "you> ")
        os.write(ours, b"Hello\n")
        _read_until(ours, "Hello.{60}")
        talk.send_signal(signal.SIGINT)
        _read_until(ours, r"stopped · \d+ tokens.*you> ")
        os.write(ours, b"/quit\n")
        assert talk.wait(timeout=300) == 0
    finally:
        talk.kill()
        os.close(ours)


def test_ctrl_c_at_the_prompt_says_how_to_leave(demo_run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = iter([KeyboardInterrupt, EOFError])

    def interrupted(_: str) -> str:
        raise next(typed)

    monkeypatch.setattr("builtins.input", interrupted)
    done = _chat(str(demo_run.path))
    assert done.exit_code == 0
    assert "Ctrl-D leaves" in done.stderr


def _read_until(terminal: int, wanted: str) -> None:
    """Read what a program shows until it shows `wanted`."""
    shown = ""
    while not re.search(wanted, shown, flags=re.DOTALL):
        ready, _, _ = select.select([terminal], [], [], 300)
        assert ready, f"nothing more came; {wanted!r} not in {shown!r}"
        shown += os.read(terminal, 4096).decode(errors="replace")
