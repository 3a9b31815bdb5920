"""Files that want to do harm: pickles, code beside a model, templates that reach for the system, paths that lead out,
and secrets that must not be said.

Whatever runs what is in them makes a folder (the mark), and it must not be there afterwards. The same
promises are tested part by part in the tests; here they are asked of the real command.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faults.lab import Job
from faults.trial import Group, Trial
from faults.victim import Ended, require

_ENDINGS = ("pkl", "pickle", "pt", "pth", "bin", "npy", "npz", "joblib", "jsonl", "json", "csv", "parquet", "arrow")
_PICKLES = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "adapter_model.bin")
_FORMS = (
    "hf_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZ01234567",  # made up, and put together here so that no scanner minds
    "ghp_" + "0123456789abcdefghijklmnopqrstuvwxyz",
    "github_pat_" + "11ABCDEFG0abcdefghijkl_mnopqrstuvwxyz0123456789",
    "AKIA" + "IOSFODNN7EXAMPLE",
    "xoxb-" + "123456789012-1234567890123-AbCdEfGhIjKlMnOpQrStUvWx",
    "sk-" + "proj-Ab3_dE6-gH9jKlMnOpQrStUvWxYz0123456789abcdef",
)
_ESCAPES = (
    "cycler.__init__.__globals__.os.mkdir('{mark}')",
    "lipsum.__globals__['os'].mkdir('{mark}')",
    "self.__init__.__globals__.__builtins__.__import__('os').mkdir('{mark}')",
    "messages.__class__.__mro__[1].__subclasses__()[0].__init__.__globals__['os'].mkdir('{mark}')",
)


class _Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def one(trial: Trial) -> None:
    """One of the kinds."""
    mark = trial.folder / "mark"
    kind = _KINDS[trial.number % len(_KINDS)]
    trial.note = kind.__name__.strip("_").replace("_", " ")
    kind(trial, mark, trial.number // len(_KINDS))
    require(not mark.exists(), "it was run")


def _pickled_rows(trial: Trial, mark: Path, turn: int) -> None:
    file = trial.folder / f"rows.{_ENDINGS[turn % len(_ENDINGS)]}"
    file.write_bytes(pickle.dumps([_Malicious(mark)]))
    trial.note += f" ({file.suffix})"
    trial.lab.job(trial.folder, data={"path": str(file), "max_rows": None}).run().require(2, 20)


def _pickled_base(trial: Trial, mark: Path, _: int) -> None:
    job, base = _own_base(trial)
    (base / "model.safetensors").unlink()
    (base / "pytorch_model.bin").write_bytes(pickle.dumps(_Malicious(mark)))
    job.run().require(2, 41)


def _pickled_adapter(trial: Trial, mark: Path, _: int) -> None:
    adapter = trial.folder / "adapter"
    shutil.copytree(trial.lab.finished.last().adapter, adapter)
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / "adapter_model.bin").write_bytes(pickle.dumps(_Malicious(mark)))
    trial.lab.job(trial.folder, adapter={"init_adapter": str(adapter)}).run().require(2, saying="pickle")


def _pickles_in_a_checkpoint(trial: Trial, mark: Path, _: int) -> None:
    job = trial.lab.copy_of_finished(trial.folder)
    newest = job.last().checkpoints()[-1]
    for name in _PICKLES:
        (newest / name).write_bytes(pickle.dumps(_Malicious(mark)))
    job.resume().require(0)
    require(job.adapter() == trial.lab.untouched().adapter, "another adapter came out")


def _code_beside_a_base(trial: Trial, mark: Path, turn: int) -> None:
    job, base = _own_base(trial)
    (base / "own.py").write_text(f"import os; os.mkdir({str(mark)!r})\nclass OwnConfig: pass\nclass OwnModel: pass\n")
    config = json.loads((base / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    needed = turn % 2 == 0
    if needed:
        config |= {"model_type": "own_llama", "architectures": ["OwnModel"]}
    (base / "config.json").write_text(json.dumps(config))
    ended = job.run()
    ended.require(2, saying="--trust-remote-code") if needed else ended.require(0, saying="is not run")


def _template_that_reaches_out(trial: Trial, mark: Path, turn: int) -> None:
    template = trial.folder / "chat.jinja"
    escape = _ESCAPES[turn % len(_ESCAPES)].format(mark=mark)
    body = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}{{ eos_token }}\n{% endfor %}"
    template.write_text("{{ " + escape + " }}" + body)
    trial.lab.job(trial.folder, data={"template": str(template)}).run().require(2, 20)


def _index_that_leads_out(trial: Trial, _: Path, turn: int) -> None:
    job, base = _own_base(trial)
    outside = trial.folder / "outside.safetensors"
    shutil.move(base / "model.safetensors", outside)
    from safetensors import safe_open

    with safe_open(outside, framework="pt") as file:
        names = list(file.keys())
    place = ("../outside.safetensors", str(outside), "x/../../outside.safetensors")[turn % 3]
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, place)}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    job.run().require(2, 41)


def _link_that_leads_out(trial: Trial, _: Path, turn: int) -> None:
    job, base = _own_base(trial)
    secret = trial.folder / "private.txt"
    secret.write_text("this belongs to somebody")
    name = ("LICENSE", "generation_config.json", "NOTICE.txt")[turn % 3]
    (base / name).unlink(missing_ok=True)
    (base / name).symlink_to(secret)
    ended: Ended = job.run().require(2)
    require("belongs to somebody" not in ended.said, "what is behind the link was printed")


def _name_that_leads_out(trial: Trial, _: Path, turn: int) -> None:
    name = ("../out", "/tmp/out", "..", "a/../../out", "~/out")[turn % 5]
    job = trial.lab.job(trial.folder / "inside", run={"name": name})
    job.run().require(2, saying="run.name")
    require({path.name for path in trial.folder.iterdir()} == {"inside"}, "something was made outside")


def _secret_in_a_message(trial: Trial, _: Path, turn: int) -> None:
    secret = _FORMS[turn % len(_FORMS)]
    way = ("path", "option", "environment")[turn % 3]
    trial.note += f" ({secret[:4]}..., {way})"
    job = trial.lab.job(trial.folder)
    if way == "option":
        ended = job.run("train", str(job.config), "--set", f"data.path={secret}")
    elif way == "path":
        job.settings["data"]["path"] = f"{trial.folder}/{secret}.jsonl"
        ended = job.run()
    else:
        job.settings["data"]["path"] = str(trial.folder / "Correct-Horse-1.jsonl")
        secret = "Correct-Horse-1"
        ended = job.run(fault=lambda: os.environ.update(MY_API_KEY="Correct-Horse-1"))
    ended.require(2, 20)
    written = [path for path in trial.folder.glob("runs/**/*") if path.is_file()]
    require(secret not in ended.said, "the secret was printed")
    require(not any(secret in path.read_text(errors="replace") for path in written), "the secret was written")


def _own_base(trial: Trial) -> tuple[Job, Path]:
    base = trial.folder / "base"
    shutil.copytree(trial.lab.base, base)
    return trial.lab.job(trial.folder, model={"name": str(base)}), base


_KINDS: tuple[Callable[[Trial, Path, int], None], ...] = (
    *(_pickled_rows, _pickled_base, _pickled_adapter, _pickles_in_a_checkpoint, _code_beside_a_base),
    *(_template_that_reaches_out, _index_that_leads_out, _link_that_leads_out, _name_that_leads_out),
    _secret_in_a_message,
)

GROUPS = (
    Group(
        "hostile",
        "malicious pickles, code, templates, paths and links; secrets in messages",
        "nothing of it is run, nothing outside is read or written, no secret is said; refused in words",
        80,
        250,
        one,
    ),
)
