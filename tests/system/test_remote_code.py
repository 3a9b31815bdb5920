"""Code in a model's folder: never run unasked, and run when the command line asks for it.

The base here has Python files that leave a mark when they are imported.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from heard import heard
from loaded_models import checked_base, loaded_base
from tiny_checkpoints import save_adapter_for

import qdora_fast
from qdora_fast.config.loader import load_config
from qdora_fast.exports.merge.merge import merge
from qdora_fast.models.tokenizer import load_tokenizer
from qdora_fast.recipes.chat import load
from qdora_fast.recipes.export import export
from qdora_fast.recipes.train import prepare_run, train
from qdora_fast.system.errors import ConfigError, RefusedError
from qdora_fast.system.remote_code import allow_remote_code, code_of

PACKAGE = Path(qdora_fast.__file__).parent

CODE = """
from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

Path({mark!r}).touch()


class OwnConfig(LlamaConfig):
    model_type = "own_llama"


class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig


class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""

MODEL = {"auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}}
TOKENIZER = {"auto_map": {"AutoTokenizer": [None, "own.OwnTokenizer"]}}
UNKNOWN_MODEL = {**MODEL, "model_type": "own_llama", "architectures": ["OwnModel"]}
UNKNOWN_TOKENIZER = {**TOKENIZER, "tokenizer_class": "OwnTokenizer"}


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """A file that is there once the base's code has run."""
    return tmp_path / "the-code-was-run"


@pytest.fixture
def base_with_code(tiny_base: Path, tmp_path: Path, mark: Path) -> Callable[..., Path]:
    """A copy of the tiny base with code of its own, named by what is given for its two configs."""

    def make(model: dict[str, Any], tokenizer: dict[str, Any]) -> Path:
        folder = tmp_path / "base"
        shutil.copytree(tiny_base, folder)
        (folder / "own.py").write_text(CODE.format(mark=str(mark)))
        for file, changes in (("config.json", model), ("tokenizer_config.json", tokenizer)):
            content = json.loads((folder / file).read_text()) | changes
            (folder / file).write_text(json.dumps(content))
        return folder

    return make


@pytest.mark.parametrize(
    "asked", [checked_base, lambda config: load_tokenizer(config.model.name, None)], ids=["model", "tokenizer"]
)
def test_a_base_that_needs_its_own_code_is_refused_and_the_flag_is_named(
    asked: Callable[..., Any], base_with_code: Callable[..., Path], tiny_config: Any, mark: Path
) -> None:
    folder = base_with_code(UNKNOWN_MODEL, UNKNOWN_TOKENIZER)
    with pytest.raises(RefusedError, match=r"needs code of its own \(own.py\)[^$]*--trust-remote-code"):
        asked(tiny_config(model={"name": str(folder)}))
    assert not mark.exists()


def test_where_transformers_has_the_classes_the_code_is_left_alone_said_and_not_handed_on(
    base_with_code: Callable[..., Path], tiny_config: Any, mark: Path, tmp_path: Path
) -> None:
    folder = base_with_code(MODEL, TOKENIZER)
    config = tiny_config(model={"name": str(folder)})
    with heard() as said:
        prepare_run(config)
    assert re.search("own.py came with .* and is not run", said.getvalue())
    loaded_base(config).tokenizer.save_pretrained(tmp_path / "tokenizer")
    save_adapter_for(folder, tmp_path / "adapter")
    merge(folder, tmp_path / "adapter", tmp_path / "merged", tokenizer_from=tmp_path / "tokenizer")
    assert code_of(str(tmp_path / "merged")) == ()
    assert not list((tmp_path / "merged").glob("*.py"))
    assert not mark.exists()


def test_with_the_flag_the_code_is_run_from_training_to_export(
    base_with_code: Callable[..., Path], tiny_config: Any, mark: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = base_with_code(UNKNOWN_MODEL, TOKENIZER)
    with allow_remote_code():
        run = train(tiny_config(model={"name": str(folder)}, export={"at_end": "merged_16bit"}))
    assert mark.exists()
    assert "running code that came with" in " ".join(capsys.readouterr().err.split())
    assert code_of(str(run.path / "merged_16bit")) == ("own.py",)
    for again in (lambda: load(run.path), lambda: export(run, overwrite=True), lambda: qdora_fast.evaluate(run)):
        with pytest.raises(RefusedError, match=r"was trained with code that came with its base"):
            again()
    with pytest.raises(RefusedError, match="needs code of its own"):
        load(run.path / "merged_16bit")


@pytest.mark.parametrize("text", ["model: {name: demo, trust_remote_code: true}", "trust_remote_code: true"])
def test_no_config_file_can_ask_for_it(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"{text}\ndata: {{path: demo}}")
    with pytest.raises(ConfigError, match="not a setting of a config file.*--trust-remote-code"):
        load_config(tmp_path / "a.yaml")


def test_every_loader_of_the_package_is_told() -> None:
    """Told nothing, Transformers asks on the terminal, and reads pickled weights where there are no others."""
    calls = {
        f"{path.name}:{node.lineno} {ast.unparse(node.func)}": {keyword.arg for keyword in node.keywords}
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
    }
    told = {name: given for name, given in calls.items() if name.endswith((".from_pretrained", ".from_config"))}
    configs = ("LoraConfig.from_pretrained", "GenerationConfig.from_pretrained", "PeftModel.from_pretrained")
    assert not [name for name, given in told.items() if "trust_remote_code" not in given and not name.endswith(configs)]
    weights = ("auto_class(described).from_pretrained", "FastLanguageModel.from_pretrained")
    assert not [name for name, given in told.items() if name.endswith(weights) and "use_safetensors" not in given]
    assert sum(name.endswith(weights) for name in told) >= 4
