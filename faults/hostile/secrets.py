"""Secrets that a message or a run would give away: in a path, an option, the environment, and by their form."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from faults.hostile.attack import Case, attack, config, own_run, table
from faults.trial import Trial
from faults.victim import Ended, require

_FORMS = (
    "hf_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZ01234567",  # made up, and put together here so that no scanner minds
    "ghp_" + "0123456789abcdefghijklmnopqrstuvwxyz",
    "github_pat_" + "11ABCDEFG0abcdefghijkl_mnopqrstuvwxyz0123456789",
    "AKIA" + "IOSFODNN7EXAMPLE",
    "xoxb-" + "123456789012-1234567890123-AbCdEfGhIjKlMnOpQrStUvWx",
    "sk-" + "proj-Ab3_dE6-gH9jKlMnOpQrStUvWxYz0123456789abcdef",
)
_VARIABLES = ("MY_API_KEY", "HF_TOKEN", "WANDB_API_KEY", "MY_DB_PASSWORD", "PGPASSWORD", "MY_SECRET")
_UNKNOWN = "Correct-Horse-1"
"""Has no form of its own: known by the variable that holds it."""


def _by_path(secret: str, trial: Trial) -> Ended:
    return attack(trial, "train", config(trial, data={"path": f"{trial.folder}/{secret}.jsonl"}), codes=(2, 20))


def _by_option(secret: str, trial: Trial) -> Ended:
    return attack(trial, "train", config(trial), "--set", f"data.path={secret}", codes=(2, 20))


def _as_config(secret: str, trial: Trial) -> Ended:
    return attack(trial, "plan", f"{trial.folder}/{secret}.yaml", codes=(2,))


def _by_key(secret: str, trial: Trial) -> Ended:
    file = trial.folder / "k.yaml"
    file.write_text(f"model: {{name: demo}}\ndata: {{path: demo}}\n{secret}: 1\n")
    return attack(trial, "plan", file, codes=(2,))


def _form(way: Callable[[str, Trial], Ended], secret: str, trial: Trial) -> None:
    _require_unsaid(trial, way(secret, trial), secret)


def _variable(name: str, trial: Trial) -> None:
    file = config(trial, data={"path": f"{trial.folder}/{_UNKNOWN}.jsonl"})
    _require_unsaid(trial, attack(trial, "train", file, codes=(2, 20), env={name: _UNKNOWN}), _UNKNOWN)


def _evaluated(trial: Trial) -> None:
    env = {name: f"{_UNKNOWN}-{number}" for number, name in enumerate(_VARIABLES)}
    ended = attack(trial, "evaluate", own_run(trial), env=env, codes=(0,))
    _require_unsaid(trial, ended, _UNKNOWN)


def _require_unsaid(trial: Trial, ended: Ended, secret: str) -> None:
    written = [path for path in trial.folder.glob("runs/**/*") if path.is_file()]
    require(secret not in ended.said, "the secret was printed")
    require(not any(secret.encode() in path.read_bytes() for path in written), "the secret was written")


def _cases() -> dict[str, Case]:
    ways = {"in a path": _by_path, "in an option": _by_option, "as a config's name": _as_config, "as a key": _by_key}
    cases: dict[str, Case] = {
        f"{secret[:4]}... {name}": partial(_form, way, secret) for name, way in ways.items() for secret in _FORMS
    }
    cases |= {f"value of {name}": partial(_variable, name) for name in _VARIABLES}
    return cases | {"environment while evaluating": _evaluated}


GROUP = table(
    "secrets",
    "secrets in paths, options, keys and the environment",
    "neither printed nor written",
    _cases(),
    small=12,
)
