"""No secret in what is printed or kept: by text, and in whole runs, one that works and one that does not."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qdora_fast.config.loader import load_config
from qdora_fast.system.errors import ConfigError
from qdora_fast.system.redact import MARK, redact, redacted, secrets_of, unfinished
from qdora_fast.system.terminal import SHOWN_AT_ONCE, Guarded

# Made up, put together here so that nobody's scanner takes them for real.
HUGGING_FACE = "hf_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZ01234567"
OPENAI = "sk-" + "proj-Ab3_dE6-gH9jKlMnOpQrStUvWxYz0123456789abcdef"
GITHUB = "ghp_" + "0123456789abcdefghijklmnopqrstuvwxyz"
GITHUB_FINE = "github_pat_" + "11ABCDEFG0abcdefghijkl_mnopqrstuvwxyz0123456789"
AMAZON = "AKIA" + "IOSFODNN7EXAMPLE"
SLACK = "xoxb-" + "123456789012-1234567890123-AbCdEfGhIjKlMnOpQrStUvWx"
WANDB = "0123456789abcdef" * 2 + "01234567"
PASSWORD = "correct-horse-battery"
BEARER = "AbCd1234.efgh-5678_ijkl"

BY_FORM = (HUGGING_FACE, OPENAI, GITHUB, GITHUB_FINE, AMAZON, SLACK)


@pytest.mark.parametrize("secret", BY_FORM)
@pytest.mark.parametrize(
    "around", ["{}", "({})", "token={}", '{{"a": "b\\n{}"}}', "https://x.org/a?b={}&c=d", "[{}]\n"]
)
def test_a_secret_is_known_by_its_form_wherever_it_stands(secret: str, around: str) -> None:
    said = redact(around.format(secret))
    assert secret not in said
    assert MARK in said


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f"https://me:{PASSWORD}@example.org/x", f"https://{MARK}@example.org/x"),
        (f"GET https://{BEARER}@example.org/x", f"GET https://{MARK}@example.org/x"),
        (f"Authorization: Bearer {BEARER}", f"Authorization: Bearer {MARK}"),
        (f"{{'authorization': 'Basic {BEARER}'}}", f"{{'authorization': 'Basic {MARK}'}}"),
        (f"WANDB_API_KEY={WANDB}", f"WANDB_API_KEY={MARK}"),
        (f"machine api.example.org login user password {WANDB}", f"machine api.example.org login user password {MARK}"),
        (f"https://example.org/a?X-Signature={WANDB}&b=1", f"https://example.org/a?X-Signature={MARK}&b=1"),
    ],
)
def test_a_secret_is_known_by_the_word_before_it(text: str, left: str) -> None:
    assert redact(text) == left


@pytest.mark.parametrize(
    "text",
    [
        f"revision {WANDB}",
        "model.name: unsloth/Meta-Llama-3.1-8B",
        "12.5 tokens/s, stop token: <|eot_id|>, pad_token: <|finetune_right_pad_id|>, eos_token_id: 128009",
        "runs/task-2026-Compare-Every-Method-On-The-Same-Rows",
        "hf_transfer, sk-learn, https://example.org:8080/a@b, git@example.org:me/repository.git",
        "ssh://git@example.org/me/repository.git",
        "password: your own; the secret of internationalisation",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


def test_the_environments_secrets_are_known_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", WANDB)
    monkeypatch.setenv("DB_PASSWORD", PASSWORD)
    monkeypatch.setenv("SHORT_TOKEN", "abc")
    monkeypatch.setenv("HF_TOKEN_PATH", "/home/me/token-file")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "sometimes")
    assert redact(f"{WANDB} {PASSWORD} abc /home/me/token-file sometimes") == (
        f"{MARK} {MARK} abc /home/me/token-file sometimes"
    )
    assert {WANDB, PASSWORD} <= set(secrets_of(os.environ))


@pytest.mark.parametrize("names", [("A_TOKEN", "B_TOKEN"), ("B_TOKEN", "A_TOKEN")])
def test_a_secret_that_begins_with_another_goes_whole(names: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(names[0], PASSWORD)
    monkeypatch.setenv(names[1], f"{PASSWORD}-and-more")
    assert redact(f"<{PASSWORD}-and-more> <{PASSWORD}>") == f"<{MARK}> <{MARK}>"


@pytest.mark.parametrize(
    "name", ["PGPASSWORD", "PGPASS", "DB_PASS", "MY_AUTH", "SENTRY_DSN", "SESSION_COOKIE", "GH_PAT", "PROXY_PWD"]
)
def test_a_variable_that_is_named_like_a_secret_holds_one(name: str) -> None:
    for value in ("Xk3-9fQz!t7", "postgres://me:Xk39fQzt7@db/x"):
        assert list(secrets_of({name: value})) == [value]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PWD", "home-of-mine-9"),
        ("OLDPWD", "home-of-mine-9"),
        ("PATH", "usr1/bin:usr2/bin"),
        ("AUTHOR", "Jane Doe 1999"),
        ("PATTERN", "abc123def456"),
        ("COMPASS", "north-by-9-west"),
        ("SSH_AUTH_SOCK", "agent.socket.123"),
        ("AUTH", "basic-password"),
        ("GIT_PAT", "abc"),
        ("SENTRY_DSN", "https://example.org/12345"),
    ],
)
def test_a_variable_that_only_looks_like_it_does_not(name: str, value: str) -> None:
    assert not list(secrets_of({name: value}))


@pytest.mark.parametrize("secret", BY_FORM)
def test_a_secret_that_is_printed_in_pieces_is_found(secret: str) -> None:
    for cut in range(1, len(secret)):
        printed = io.StringIO()
        stream = Guarded(printed, redact, unfinished=unfinished)
        for piece in ("key: ", secret[:cut], secret[cut:], "\n"):
            stream.write(piece)
            if cut > SHOWN_AT_ONCE:  # less may be the end of a question to the user
                stream.flush()
        stream.release()
        assert secret not in printed.getvalue() and MARK in printed.getvalue(), cut


@given(st.lists(st.text(max_size=12), max_size=12))
def test_nothing_is_lost_or_moved_that_is_printed_in_pieces(pieces: list[str]) -> None:
    whole, cut = io.StringIO(), io.StringIO()
    stream = Guarded(cut, lambda text: text, unfinished=unfinished)
    for piece in pieces:
        stream.write(piece)
    stream.release()
    Guarded(whole, lambda text: text).write("".join(pieces))
    assert cut.getvalue().replace("\n", "") == whole.getvalue().replace("\n", "")


def test_a_progress_bar_is_drawn_at_once() -> None:
    printed = io.StringIO()
    stream = Guarded(printed, redact, unfinished=unfinished)
    stream.write("\r 42% done")
    stream.flush()
    assert printed.getvalue() == "\r 42% done"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda e: st.lists(e) | st.dictionaries(st.text(), e)
    )
)
def test_json_without_secrets_is_left_as_it_is(content: object) -> None:
    assert redacted(content) == content


def test_an_error_of_ours_holds_none() -> None:
    assert (
        str(ConfigError(f"cannot read https://me:{PASSWORD}@example.org")) == f"cannot read https://{MARK}@example.org"
    )


def test_a_config_with_a_secret_is_refused_and_not_quoted(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        f"data: {{path: demo}}\nmodel: {{name: 'https://me:{PASSWORD}@example.org/base'}}\n"
    )
    with pytest.raises(ConfigError, match=r"model.name \(line 2\): holds a secret") as caught:
        load_config(tmp_path / "a.yaml", [f"run.name={HUGGING_FACE}"])
    assert "run.name (--set): holds a secret" in str(caught.value)
    assert PASSWORD not in str(caught.value)
    assert HUGGING_FACE not in str(caught.value)


ROWS = f"""
import logging, sys, warnings

SAID = "{OPENAI} {HUGGING_FACE} {GITHUB} {GITHUB_FINE} {AMAZON} {SLACK} {WANDB} "
SAID += "https://me:{PASSWORD}@example.org Authorization: Bearer {BEARER}"
logging.warning(SAID)
warnings.warn(SAID)
print(SAID)
print(SAID, file=sys.stderr)


def some(row):
    if len(row["instruction"]) == 30:
        raise ValueError(SAID)
    return row


def broken(*given):
    raise RuntimeError(SAID)
"""
MAIN = "from qdora_fast.cli.main import main; main()"
CRASH = (
    "import qdora_fast.recipes.train as run; "
    f"run.prepare_run = lambda *given: __import__('rows').broken(*given); {MAIN}"
)


def test_no_secret_gets_into_a_run_or_out_of_it(tiny_base: Path, tmp_path: Path) -> None:
    """Two runs whose environment, formatter, logs and errors are full of secrets: one is whole, one crashes."""
    secrets = [*BY_FORM, PASSWORD, BEARER, WANDB]
    (tmp_path / "rows.py").write_text(ROWS)
    settings = {
        "model.name": tiny_base,
        "model.max_length": 128,
        "data.formatter": "rows.py:some",
        "data.max_rows": 60,
        "train.max_steps": 2,
        "evaluation.max_rows": 2,
        "evaluation.max_new_tokens": 2,
        "export.at_end": "none",
    }
    changes = [f"--set={key}={value}" for key, value in settings.items()]
    environment = {**os.environ, "WANDB_API_KEY": WANDB, "HF_TOKEN": HUGGING_FACE}
    changes.append("--set=data.on_bad_row=skip")
    for script, code in ((MAIN, 0), (CRASH, 1)):
        command = [sys.executable, "-c", f"import sys; sys.path.insert(0, '.'); {script}", "train", "demo"]
        done = subprocess.run(
            [*command, "--own-code", "rows.py", *changes], capture_output=True, text=True, cwd=tmp_path, env=environment
        )
        assert done.returncode == code, done.stderr
        assert MARK in done.stderr
        assert not [secret for secret in secrets if secret in done.stdout + done.stderr]
    assert "RuntimeError: " in done.stderr  # the last one
    run = tmp_path / "runs" / "demo"
    kept = {str(file.relative_to(run)): file.read_bytes() for file in run.rglob("*") if file.is_file()}
    assert {"config.yaml", "environment.json", "report.html", "evaluation/log.jsonl"} <= kept.keys()
    assert MARK.encode() in kept["data/rejected.jsonl"]
    assert not [name for name, content in kept.items() if any(secret.encode() in content for secret in secrets)]
