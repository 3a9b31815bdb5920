"""The config that a run keeps in its folder, and the code that it names.

A run writes down every setting, defaults included, so that its folder alone says how to repeat it. Files of code that
the config names are copied beside it. A resumed run must have the same settings: `differences` says which have not.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from qdora_fast.config import Config
from qdora_fast.config.code import TASKS, code_named, file_of, split, with_code
from qdora_fast.config.loader import load_config
from qdora_fast.config.own_code import by_content
from qdora_fast.config.yaml import write_yaml
from qdora_fast.system.errors import CheckpointError
from qdora_fast.system.redact import redact
from qdora_fast.system.run_folder import RunFolder

AFTER_TRAINING = ("run", "export", "evaluation", "train.vram", "train.probe", "train.max_nonfinite", "train.tracker")
"""Where files go, and what has no effect on what is learned: a resumed run may have others."""


def create_run(config: Config, default_name: str) -> RunFolder:
    """A new folder for a run of this config, with the config in it.

    Raises:
        ConfigError: it cannot be made.
    """
    folder = RunFolder.create(Path(config.run.dir), config.run.name or default_name, shared=config.run.shared)
    write_config(folder, config)
    return folder


def read_config(folder: RunFolder, overrides: Sequence[str] = ()) -> Config:
    """The config a run was started with. One from before there was `data.thinking` told templates nothing.

    Args:
        overrides: see `load_config`.
    """
    config = load_config(folder.config_file, overrides)
    if "thinking" in config.data.model_fields_set:
        return config
    return config.model_copy(update={"data": config.data.model_copy(update={"thinking": "as_is"})})


def write_config(folder: RunFolder, config: Config) -> None:
    """Write the resolved config; the files of code that it names are copied, and named where they lie here."""
    settings = keep_code(folder, config).model_dump(mode="json")
    here = os.path.abspath(folder.path) + os.sep
    named = with_code(settings, lambda _setting, _keys, text: text.removeprefix(here))
    folder.config_file.write_text(write_yaml(named), encoding="utf-8")


def keep_code(folder: RunFolder, config: Config) -> Config:
    """The config with each file of code that it names copied into the run's folder, and named there.

    A copy has the same bytes, so it may run where the file may. A folder of tasks stays where it is, and so does a
    file that seems to hold a secret, because a run's folder is sent to others.
    """

    def keep(setting: str, _keys: tuple[str, ...], text: str) -> str:
        file, function = split(text)
        content = b"" if setting == TASKS or not file.is_file() else file.read_bytes()
        if not content or redact(shown := content.decode(errors="replace")) != shown:
            return text
        copy = folder.path / "code" / file.name
        if copy.is_file() and copy.read_bytes() != content:
            copy = copy.with_name(f"{file.stem}-{sha256(content).hexdigest()[:8]}.py")
        copy.parent.mkdir(exist_ok=True)
        if not copy.is_file():
            copy.write_bytes(content)
        return f"{os.path.abspath(copy)}:{function}"

    settings = config.model_dump()
    return Config.model_validate(with_code(settings, keep)) if list(code_named(settings)) else config


def code_elsewhere(folder: RunFolder, config: Config) -> list[str]:
    """Paths of the code that a config names and that does not lie in the run's folder."""
    named = dict.fromkeys(file_of(setting, text) for setting, text in code_named(config.model_dump()))
    return [str(path) for path in named if not path.is_relative_to(os.path.abspath(folder.path))]


def newest_run(config: Config, default_name: str) -> RunFolder | None:
    """The run of this config's name that has the newest checkpoint; None: none has any."""
    return RunFolder.newest(Path(config.run.dir), config.run.name or default_name)


def resumable(config: Config, default_name: str) -> RunFolder:
    """The newest run of this name that has a checkpoint and the same settings.

    Raises:
        CheckpointError: none; the message says what stands in the way.
    """
    newest = newest_run(config, default_name)
    if newest is None:
        name = config.run.name or default_name
        raise CheckpointError(
            f"--resume: no run `{name}` under {config.run.dir} has a checkpoint; start it without --resume"
        )
    differing = differences(by_content(read_config(newest).model_dump()), by_content(config.model_dump()))
    if differing:
        listed = "\n".join(f"  - {line}" for line in differing)
        raise CheckpointError(f"--resume: {newest.path} was started with other settings:\n{listed}")
    return RunFolder.open(newest.path)


def differences(old: dict[str, Any], new: dict[str, Any], section: str = "") -> list[str]:
    """Settings that differ, one sentence each, without those of `AFTER_TRAINING`. Both are dumps of one schema, so
    they have the same keys."""
    lines = []
    for key, value in old.items():
        setting = f"{section}{key}"
        if setting in AFTER_TRAINING:
            continue
        if isinstance(value, dict):
            lines += differences(value, new[key], f"{setting}.")
        elif value != new[key]:
            lines.append(f"{setting}: {value} then, {new[key]} now")
    return lines
