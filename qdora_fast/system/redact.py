r"""Secrets that must not be printed or kept: tokens, keys, passwords, known by their form or by where they are kept.

A run's folder is sent to colleagues and a log is pasted into an issue, so what is printed and what is written about a
run goes through `redact` at a few doors: standard output and error of the commands (tracebacks and other libraries'
messages included), the text of our errors, the JSON files of a run, its pages and model cards. A config that holds a
secret is refused, because a run keeps a copy of its config that must be the same.

Known are the forms in `_FORMS`, and the values of environment variables named like TOKEN, KEY, SECRET or PASSWORD, or
like PASS, AUTH, DSN, COOKIE or PAT where the value looks like one. What this does not do: guess by randomness (every
hash would go), or touch the rows that are trained on: a secret in the data stays in the data. A Weights & Biases key is
40 hex digits like any commit, so it is known by its variable or by the word before it. Libraries for this
(detect-secrets) look for lines in source code, take nothing out, and do not know the keys of the tools used here.
"""

from __future__ import annotations

import atexit
import functools
import os
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

MARK = "[redacted]"
SHORTEST = 8
"""Characters from which on the value of a variable counts as a secret."""

LONGEST_HELD = 4096
"""Characters of an unfinished word that are held back at most."""

_NAMED = re.compile(r"(?:^|_)(?:TOKEN|KEY|SECRET|CREDENTIALS?)(?:_|$)|PASSW(?:OR)?D(?:_|$)")
_MAYBE = re.compile(r"(?:^|_)(?:PASS|PGPASS|PWD|AUTH|DSN|COOKIE|PAT)(?:_|$)")
"""Parts of names that often hold secrets, and often do not: their values must look like one, see `_looks_secret`."""
_NO_SECRET = re.compile(r"^(?:PWD|OLDPWD)$|_(?:PATH|FILE|DIR|NAME|ID|TYPE|SOCK|METHOD|MODE|HOST|PORT)$")
_START = r"(?:(?<![A-Za-z0-9])|(?<=\\[nrt]))"  # the n of a JSON text's \n is no part of the word after it
_MIXED = r"(?=[^\s\"'&<>\\]{0,200}[0-9])(?=[^\s\"'&<>\\]{0,200}[A-Za-z])"

_FORMS = [
    re.compile(form)
    for form in (
        r"hf_[A-Za-z0-9]{30,}",
        r"gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{30,}|glpat-[A-Za-z0-9_-]{20,}",
        _START + r"sk-(?=[A-Za-z_-]{0,200}[0-9])(?=[a-z0-9_-]{0,200}[A-Z])[A-Za-z0-9_-]{32,}",
        r"(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])",
        r"xox[abeoprs]-[A-Za-z0-9-]{10,}|(?<=hooks\.slack\.com/services/)[A-Za-z0-9/]+",
        r"AIza[A-Za-z0-9_-]{35}",
        r"wandb_v1_[A-Za-z0-9_]{20,}",
        r"eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]*",
        r"(?s)-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----(?:(?!-----BEGIN).)*?-----END [A-Z ]{0,40}PRIVATE KEY-----",
        r"(?<=://)(?:[^\s/?#@:'\"<>\\]*+:[^\s/?#@'\"<>\\]++|[^\s/?#@:'\"<>\\]{16,}+)(?=@)",  # user:password@, token@
    )
]
_AFTER = [
    re.compile(form, re.IGNORECASE)
    for form in (
        r"(authorization[\"']?\s*[:=]\s*[\"']?(?:bearer|basic|token)\s+)[^\s\"'<>\\]+",
        rf"(\bbearer\s+){_MIXED}[A-Za-z0-9._~+/=-]{{16,}}",
        r"([?&][\w-]*(?:token|key|secret|password|signature|sig)=)[^\s&#\"'<>\\]{8,}",
        rf"((?:api_?key|access_?key|token|secret|passwd|password)[\"']?(?:\s*[:=]\s*|\s+)[\"']?)"
        rf"{_MIXED}[A-Za-z0-9._~+/=-]{{12,}}",
    )
]
"""What follows a word that says what it is; the word stays."""
_SUSPECT = re.compile(
    r"hf_|gh[pousr]_|github_pat_|glpat-|sk-|AKIA|ASIA|xox|slack|AIza|wandb_v1_|eyJ|PRIVATE KEY|://"
    r"|authorization|bearer|token|key|secret|passw|sig",
    re.IGNORECASE,
)
"""Part of every form above: text without any of it, which is nearly all, needs no further look."""


def redact(text: str) -> str:
    """The text with `MARK` in place of each secret."""
    for value in _secrets_of(tuple(os.environ.items())):
        text = text.replace(value, MARK)
    if not _SUSPECT.search(text):
        return text
    for form in _FORMS:
        text = form.sub(MARK, text)
    for form in _AFTER:
        text = form.sub(rf"\1{MARK}", text)
    return text


def redacted(content: Any) -> Any:
    """A JSON value with every text in it redacted."""
    if isinstance(content, str):
        return redact(content)
    if isinstance(content, Mapping):
        return {redacted(key): redacted(value) for key, value in content.items()}
    return [redacted(each) for each in content] if isinstance(content, list | tuple) else content


@functools.lru_cache(maxsize=1)
def _secrets_of(variables: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    """`secrets_of`, once for variables that have not changed: a run redacts a thousand texts."""
    return tuple(secrets_of(dict(variables)))


def secrets_of(environment: Mapping[str, str]) -> Iterator[str]:
    """The values of variables that are named like secrets, the longest first."""
    named = {
        value
        for name, value in environment.items()
        if not _NO_SECRET.search(name.upper())
        and (_NAMED.search(name.upper()) or (_MAYBE.search(name.upper()) and _looks_secret(value)))
    }
    yield from sorted((each for each in named if len(each) >= SHORTEST and each[0] not in "/~."), key=len, reverse=True)


def _looks_secret(value: str) -> bool:
    """Whether a value is no word of a language, no list of words and no address without a password in it."""
    address = "://" in value and "@" not in value
    return not address and not re.fullmatch(r"[A-Za-z]+(?:[-_.,: ][A-Za-z]+)*|[\d.,:]+", value)


_PREFIXES = (
    *("hf_", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "sk-", "AKIA", "ASIA"),
    *("AIza", "wandb_v1_", "eyJ"),
    *(f"xox{letter}-" for letter in "abeoprs"),
)
_BEGUN = re.compile(
    rf"(?:{'|'.join(_PREFIXES)})[\w.-]*\Z"
    r"|(?<![a-z])[a-z]{1,20}://[^\s/?#@]*\Z|(?:token|key|secret|passw(?:or)?d|signature|sig)[\"']?[:=][\"']?[^\s\"']*\Z",
    re.IGNORECASE,
)


def unfinished(text: str) -> int:
    """Characters at the end of a text that may be the beginning of a secret, whose rest is still to come."""
    match = _BEGUN.search(text[-LONGEST_HELD:])
    held = len(match[0]) if match else 0
    for secret in (*_secrets_of(tuple(os.environ.items())), *_PREFIXES):
        for length in range(min(len(secret) - 1, len(text)), held, -1):
            if text.endswith(secret[:length]):
                held = length
                break
    return held


def guard_output() -> None:
    """From now on this process prints nothing secret, and nothing that steers a terminal. For the command line, before
    anything is imported that keeps standard error for its messages."""
    from qdora_fast.system.terminal import Guarded

    sys.stdout, sys.stderr = (Guarded(each, redact, unfinished=unfinished) for each in (sys.stdout, sys.stderr))
    for stream in (sys.stdout, sys.stderr):
        atexit.register(stream.release)
