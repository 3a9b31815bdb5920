"""Code that comes with a model is not run, unless the command line says so.

A model's folder may name Python files of its own (`auto_map` in config.json or tokenizer_config.json), and Transformers
runs them when it is told to, or, told nothing, when somebody types "y" at its prompt. So it is always told: each
`from_pretrained` of this package passes `trust_remote_code=remote_code_allowed()`, which is False until
`--trust-remote-code` opens `allow_remote_code` around the whole command. No setting of a config file does, since a
config is passed around and a command is typed. The value is a ContextVar, so nothing in between has to hand it on.

Where Transformers has classes of its own for the model, those are used instead, and what was left unrun is said once;
where it has none, the base is refused. What this does not do: make code safe that was let in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from qdora_fast.system.errors import ConfigError, QdoraError, RefusedError, first_line

FLAG = "--trust-remote-code"
BASE_SETTING = "model.name: "
"""Opens the message about a base that cannot be read."""

_allowed: ContextVar[bool] = ContextVar("remote_code_allowed", default=False)


def remote_code_allowed() -> bool:
    """What to pass as `trust_remote_code`."""
    return _allowed.get()


@contextmanager
def allow_remote_code() -> Iterator[None]:
    """Inside, code that comes with a model is run."""
    before = _allowed.set(True)
    try:
        yield
    finally:
        _allowed.reset(before)


def code_of(name: str, revision: str | None = None) -> tuple[str, ...]:
    """The Python files that a model names as its own, from its folder or hub repository; () where there are none."""
    from transformers import PreTrainedConfig
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    try:
        described = [PreTrainedConfig.get_config_dict(name, revision=revision)[0]]
        described.append(get_tokenizer_config(name, revision=revision))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):  # whoever loads it next says this better
        return ()
    return tuple(sorted({file for each in described for file in _files(each.get("auto_map"))}))


@contextmanager
def foreign_files(what: str, name: str, revision: str | None = None, *, setting: str = BASE_SETTING) -> Iterator[None]:
    """Around one `from_pretrained`: what the library raises over a file that is missing or damaged becomes our error.

    Args:
        what: is read: `tokenizer`, `config`, ...
        setting: that names the model; "" where a folder was named.

    Raises:
        ConfigError: see `unreadable`. Trouble with memory or the device is not about the file and passes.
    """
    try:
        yield
    except QdoraError:
        raise
    except BaseException as error:
        about_device = isinstance(error, RuntimeError) and not isinstance(error, RecursionError)
        panic = type(error).__name__ == "PanicException"  # of the tokenizers library; no Exception
        if not panic and (about_device or isinstance(error, MemoryError) or not isinstance(error, Exception)):
            raise
        raise unreadable(what, name, revision, error, setting=setting) from None


def unreadable(
    what: str, name: str, revision: str | None, error: BaseException, *, setting: str = BASE_SETTING
) -> ConfigError:
    """Why a part of a model could not be loaded, as the error to raise: the user's next step is in it.

    Args:
        setting: that names the model; "" where a folder was named.
    """
    unknown = isinstance(error, ValueError)  # the file could be read; with an OSError it could not
    files = code_of(name, revision) if unknown and not remote_code_allowed() else ()
    if files:
        return RefusedError(
            f"{setting}`{name}` needs code of its own ({', '.join(files)}), and nothing that comes with a model is "
            f"run unasked. Take a base that Transformers knows, or read those files and add {FLAG} to the command"
        )
    advice = (
        "Check the spelling; for gated models run `hf auth login`; without a network give a local folder (or `demo`)"
    )
    if Path(name).is_dir():
        advice = "A file in that folder is damaged: copy or download it again"
        if isinstance(error, OSError | ValueError) and not isinstance(error, UnicodeError):
            advice = (
                "Compare the folder with the model's page on the hub: a file is missing or of another model, or the "
                "model is newer than the Transformers that is installed here"
            )
    return ConfigError(f"{setting}cannot read the {what} of `{name}`: {first_line(error)}\n  {advice}")


def require_allowed(files: Sequence[str]) -> None:
    """Raise RefusedError when a run was trained with its base's own code and this command may not run it.

    Args:
        files: Python files of the base that were run while training.
    """
    if files and not remote_code_allowed():
        raise RefusedError(
            f"this run was trained with code that came with its base ({', '.join(files)}); add {FLAG} to run it again"
        )


def _files(auto_map: Any) -> Iterator[str]:
    """`{"AutoConfig": "own.OwnConfig", "AutoTokenizer": ["repo--own.Slow", None]}` names own.py."""
    for classes in auto_map.values() if isinstance(auto_map, dict) else ():
        for reference in classes if isinstance(classes, list | tuple) else (classes,):
            if isinstance(reference, str):
                repository, _, path = reference.rpartition("--")
                file = f"{path.rpartition('.')[0] or path}.py"
                yield f"{repository}/{file}" if repository else file
