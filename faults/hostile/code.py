"""Code in files that somebody sent: pickles, Python files that a config, a run, a base or an adapter names, modules of
the working directory, templates that reach for the system. None of it is run, and what asks for it is refused.
"""

from __future__ import annotations

import itertools
import json
import os
import pickle
from functools import partial
from pathlib import Path
from typing import Any

from faults.hostile.attack import CHAT, Case, attack, change, config, own_adapter, own_base, own_run, table
from faults.trial import Trial
from faults.victim import require
from qdora_fast.config.yaml import read_yaml, write_yaml

_ENDINGS = ("pkl", "pickle", "pt", "pth", "bin", "npy", "npz", "joblib", "jsonl", "json", "csv", "parquet", "arrow")
_IN_CHECKPOINTS = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "adapter_model.bin")
_ESCAPES = (
    "cycler.__init__.__globals__.os.mkdir('MARK')",
    "lipsum.__globals__['os'].mkdir('MARK')",
    "self.__init__.__globals__.__builtins__.__import__('os').mkdir('MARK')",
    "messages.__class__.__mro__[1].__subclasses__()[0].__init__.__globals__['os'].mkdir('MARK')",
    "('%s' | attr('format')).__self__.__class__.__base__.__subclasses__()[0].__init__.__globals__['os'].mkdir('MARK')",
    "raise_exception.__globals__['os'].mkdir('MARK')",
    "strftime_now.__globals__['__builtins__']['__import__']('os').mkdir('MARK')",
)
_TASK = """task: evil
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: !function own.f
doc_to_target: "{{output}}"
metric_list: [{metric: exact_match}]
"""
_NAMED: dict[str, tuple[str, dict[str, Any]]] = {
    "data.formatter": ("data", {"path": "demo", "formatter": "own.py:f"}),
    "data.sources": ("data", {"sources": [{"path": "demo", "formatter": "own.py:f"}]}),
    "evaluation.metric": ("evaluation", {"metric": "own.py:f"}),
    "evaluation.more_metrics": ("evaluation", {"more_metrics": ["own.py:f"]}),
    "evaluation.mmlu.task_folder": ("evaluation", {"benchmarks": ["evil"], "mmlu": {"task_folder": "tasks"}}),
    "evaluation.benchmarks by path": ("evaluation", {"benchmarks": ["tasks/evil.yaml"]}),
}
"""Every setting that names code; `schema.py` was walked for it."""
_OLD = {"data.formatter": "subprocess:run", "evaluation.metric": "run.own:f"}
"""As modules were once named."""
_OF_CONFIGS = {
    "train": ("train", "CONFIG"),
    "train --dry-run": ("train", "CONFIG", "--dry-run"),
    "plan": ("plan", "CONFIG"),
    "data": ("data", "CONFIG"),
    "compare": ("compare", "CONFIG", "--methods", "qlora"),
}
_OF_RUNS = {
    "evaluate": ("evaluate", "RUN"),
    "train again": ("train", "RUN/config.yaml", "--dry-run"),
    "export": ("export", "RUN", "--to", "adapter"),
    "chat": ("chat", "RUN", *CHAT),
    "log": ("log", "RUN"),
    "report": ("report", "RUN"),
    "review": ("review", "RUN", "--reviewer", "Asha", "--verdict", "pass"),
    "verify": ("verify", "RUN"),
    "import-adapter": ("import-adapter", "RUN/adapter"),
}
_SHADOWED = ("random", "json", "torch", "transformers", "typing", "sitecustomize", "usercustomize")


class _Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def _unmarked(case: Case) -> Case:
    """The case, and nothing of it was run."""

    def done(trial: Trial) -> None:
        case(trial)
        require(not _mark(trial).exists(), "it was run")

    return done


def _mark(trial: Trial) -> Path:
    return trial.folder / "mark"


def _python(trial: Trial, rest: str = "def f(first, *others):\n    return 1.0 if others else first\n") -> str:
    return f"import os\nos.path.isdir({str(_mark(trial))!r}) or os.mkdir({str(_mark(trial))!r})\n{rest}"


def _rows(ending: str, trial: Trial) -> None:
    file = trial.folder / f"rows.{ending}"
    file.write_bytes(pickle.dumps([_Malicious(_mark(trial))]))
    attack(trial, "data", config(trial, data={"path": str(file), "max_rows": None}), codes=(2, 20))


def _script_among_rows(trial: Trial) -> None:
    folder = trial.folder / "rows"
    folder.mkdir()
    (folder / "rows.py").write_text(_python(trial))
    (folder / "rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n' * 30)
    attack(trial, "data", config(trial, data={"path": str(folder)}), codes=(0, 20))


def _pickled_base(name: str, trial: Trial) -> None:
    base = own_base(trial)
    (base / "model.safetensors").unlink()
    (base / name).write_bytes(pickle.dumps(_Malicious(_mark(trial))))
    attack(trial, "train", config(trial, model={"name": str(base)}), codes=(2, 41))


def _pickled_adapter(name: str, trial: Trial) -> None:
    adapter = own_adapter(trial)
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / name).write_bytes(pickle.dumps(_Malicious(_mark(trial))))
    for words in (("chat", adapter, *CHAT), ("train", config(trial, adapter={"init_adapter": str(adapter)}))):
        attack(trial, *words, codes=(2, 41))


def _pickles_in_a_checkpoint(trial: Trial) -> None:
    job = trial.lab.copy_of_finished(trial.folder)
    for name in _IN_CHECKPOINTS:
        (job.last().checkpoints()[-1] / name).write_bytes(pickle.dumps(_Malicious(_mark(trial))))
    job.resume().require(0)
    require(job.adapter() == trial.lab.untouched().adapter, "another adapter came out")


def _code_of_base(kind: str, trial: Trial) -> None:
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel", "AutoTokenizer": "own.Own"}
    needed = {"model_type": "own_llama", "architectures": ["OwnModel"]} if kind == "needed" else {}
    base = own_base(trial, auto_map=auto_map, **needed)
    (base / "own.py").write_text(_python(trial, "class OwnConfig: pass\nclass OwnModel: pass\nclass Own: pass\n"))
    if kind == "of the tokenizer":
        change(base / "config.json", auto_map=None)
        change(base / "tokenizer_config.json", tokenizer_class="Own", auto_map={"AutoTokenizer": ["own.Own", None]})
    if kind == "of its generation":
        (base / "custom_generate").mkdir()
        (base / "custom_generate" / "generate.py").write_text(_python(trial, "def generate(*_, **__): pass\n"))
    if kind == "of its processor":
        (base / "processor_config.json").write_text(json.dumps({"auto_map": {"AutoProcessor": "own.Own"}}))
    ended = attack(trial, "train", config(trial, model={"name": str(base)}, train={"max_steps": 1}), codes=(0, 2))
    if kind in ("needed",):
        ended.require(2, saying="--trust-remote-code")


def _kernel_of_base(way: str, trial: Trial) -> None:
    base = own_base(trial, **{way: "somebody/kernel"})
    attack(trial, "train", config(trial, model={"name": str(base)}), codes=(2,), saying="--trust-remote-code")


def _module_of_adapter(values: dict[str, Any], trial: Trial) -> None:
    ended = attack(trial, "chat", own_adapter(trial, **values), *CHAT, codes=(0, 2))
    require("Zen of Python" not in ended.said, "the module that the adapter names was imported")


def _template(escape: str, trial: Trial) -> None:
    file = trial.folder / "chat.jinja"
    body = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}{{ eos_token }}\n{% endfor %}"
    file.write_text("{{ " + escape.replace("MARK", str(_mark(trial))) + " }}" + body)
    attack(trial, "data", config(trial, data={"template": str(file)}), codes=(2, 20))


def _code_named(setting: str, words: tuple[str, ...], trial: Trial) -> None:
    """A config, or a run, that names a file beside it."""
    section, values = _NAMED[setting]
    on_run = any("RUN" in word for word in words)
    place = own_run(trial) if on_run else trial.folder
    (place / "tasks").mkdir()
    for folder in (place, place / "tasks"):
        (folder / "own.py").write_text(_python(trial))
    (place / "tasks" / "rows.jsonl").write_text('{"q": "x", "output": "y"}\n')
    (place / "tasks" / "evil.yaml").write_text(_TASK)
    if on_run:
        tree = read_yaml(place / "config.yaml")[0]
        kept = {} if "sources" in values else tree.get(section, {})
        (place / "config.yaml").write_text(write_yaml(tree | {section: kept | values}))
    else:
        config(trial, **{section: values} if "sources" not in values else {}, train={"max_steps": 1})
        tree = json.loads((place / "job.yaml").read_text())
        tree["data"] = values if "sources" in values else tree["data"]
        (place / "job.yaml").write_text(json.dumps(tree))
    named = {"CONFIG": str(place / "job.yaml"), "RUN": str(place)}
    attack(trial, *[_filled(word, named) for word in words])


def _filled(word: str, named: dict[str, str]) -> str:
    for key, value in named.items():
        word = word.replace(key, value)
    return word


def _module_named(setting: str, trial: Trial) -> None:
    """A module of the standard library, or one that the working directory would hold."""
    (trial.folder / "rows.jsonl").write_text(json.dumps({"mkdir": 1, str(_mark(trial)): 2}) + "\n")
    (trial.folder / "run").mkdir()
    (trial.folder / "run" / "own.py").write_text(_python(trial))
    section, key = setting.split(".")
    file = config(trial, data={"path": str(trial.folder / "rows.jsonl")}, **{})
    tree = json.loads(file.read_text())
    tree.setdefault(section, {})[key] = _OLD[setting]
    file.write_text(json.dumps(tree))
    attack(trial, "data", file, codes=(2,), saying="modules are not searched for")


def _working_directory(words: tuple[str, ...], trial: Trial) -> None:
    here = trial.folder / "here"
    here.mkdir()
    for name in _SHADOWED:
        (here / f"{name}.py").write_text(_python(trial, "raise SystemExit('shadowed')\n"))
    named = {"CONFIG": str(config(trial, train={"max_steps": 1})), "RUN": str(own_run(trial))}
    attack(trial, *[_filled(word, named) for word in words], cwd=here, codes=(0, 10))


def _cases() -> dict[str, Case]:
    cases: dict[str, Case] = {f"pickled rows .{ending}": partial(_rows, ending) for ending in _ENDINGS}
    cases["loading script among rows"] = _script_among_rows
    cases |= {
        f"pickled base {name}": partial(_pickled_base, name) for name in ("pytorch_model.bin", "model.safetensors")
    }
    cases |= {f"pickled {n}": partial(_pickled_adapter, n) for n in ("adapter_model.bin", "adapter_model.safetensors")}
    cases["pickles in a checkpoint"] = _pickles_in_a_checkpoint
    kinds = ("needed", "not needed", "of the tokenizer", "of its generation", "of its processor")
    cases |= {f"code beside a base, {kind}": partial(_code_of_base, kind) for kind in kinds}
    ways = ("attn_implementation", "_attn_implementation")
    cases |= {f"kernel of the hub in config.json, {way}": partial(_kernel_of_base, way) for way in ways}
    modules: dict[str, dict[str, Any]] = {
        "megatron": {"megatron_config": {"tensor_model_parallel_size": 1}, "megatron_core": "this"},
        "auto_mapping": {"auto_mapping": {"base_model_class": "Own", "parent_library": "this"}},
        "a type of its own": {"peft_type": "this"},
    }
    cases |= {f"module in an adapter, {name}": partial(_module_of_adapter, values) for name, values in modules.items()}
    cases |= {f"template: {escape[:30]}": partial(_template, escape) for escape in _ESCAPES}
    for (where, words), setting in itertools.product((_OF_CONFIGS | _OF_RUNS).items(), _NAMED):
        cases[f"{setting}, {where}"] = partial(_code_named, setting, words)
    cases |= {f"module in {setting}": partial(_module_named, setting) for setting in _OLD}
    started = {"merged export": ("export", "RUN", "--to", "merged_16bit", "--overwrite")} | _OF_CONFIGS
    started = {name: words for name, words in started.items() if name != "compare"}
    cases |= {
        f"modules in the working directory, {name}": partial(_working_directory, w) for name, w in started.items()
    }
    return {name: _unmarked(case) for name, case in cases.items()}


GROUP = table(
    "code",
    "code in files: pickles, Python beside a base, run or config, modules of the working directory, templates",
    "not run; what asks for it is refused, naming the flag that would let it in",
    _cases(),
    small=40,
)
