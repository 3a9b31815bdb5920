"""The house rules that can be checked, checked: who may import what, and how big things may get."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import qdora_fast

PACKAGE = Path(qdora_fast.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
HARNESS = sorted(path for name in ("faults", "mutants", "proofs") for path in (PACKAGE.parent / name).rglob("*.py"))

# Imports go strictly downwards, or stay inside one folder. A module's rank is that of its longest prefix here.
RANKS = {
    "redact": -1,
    "errors": 0,
    "child": 0,
    "allowed_code": 1,
    "own_code": 2,
    "remote_code": 1,
    "contained": 1,
    "verify": 4,
    "offline": 1,
    "config": 1,
    "yaml_text": 1,
    "config_file": 2,
    "hardware": 2,
    "processes": 1,
    "presets": 3,
    "run_folder": 3,
    "engine": 0,
    "optim": 3,
    "data": 4,
    "demo": 2,
    "staging": 3,
    "manifest": 1,
    "memory": 4,
    "advice": 5,
    "fitting": 5,
    "earlier_runs": 4,
    "throughput": 7,
    "weights": 4,
    "base_weights": 6,
    "adapter_guard": 4,
    "adapter": 5,
    "backend": 4,
    "out_of_memory": 5,
    "run_lock": 4,
    "resume": 5,
    "training_state": 5,
    "signals": 5,
    "checkpoint": 6,
    "micro_batches": 0,
    "back_off": 6,
    "safe_steps": 7,
    "base_tokenizer": 5,
    "nf4": 5,
    "base_sample": 6,
    "shards": 5,
    "companions": 2,
    "merged_model": 7,
    "merge": 8,
    "proof": 8,
    "behaviour": 9,
    "token_identity": 6,
    "distance": 10,
    "peft_layers": 6,
    "streamed": 10,
    "output_proof": 11,
    "plain_reader": 13,
    "export_proof": 12,
    "targets": 6,
    "model": 7,
    "trainer": 8,
    "probe": 9,
    "warm_start": 8,
    "callbacks": 8,
    "evaluation": 8,
    "show": 9,
    "preparing": 10,
    "evaluating": 10,
    "reviewing": 11,
    "fusing": 10,
    "export_case": 13,
    "merged_export": 14,
    "nf4_export": 15,
    "adapter_fit": 8,
    "adapter_export": 10,
    "adapter_import": 11,
    "gguf": 15,
    "export": 16,
    "chat": 10,
    "serve": 11,
    "doctor": 10,
    "benchmark": 17,
    "comparison": 11,
    "planning": 11,
    "training": 11,
    "run": 15,
    "comparing": 16,
    "cli_options": 16,
    "cli_bench": 18,
    "cli_chat": 17,
    "cli_export": 17,
    "cli": 19,
    "__main__": 20,
}

# Heavy or touchy libraries, and the only modules that may import them at all ("*": inside functions anywhere).
OWNERS = {
    "unsloth": {"backend"},
    "unsloth_zoo": set(),
    "click": {"cli", "cli_bench", "cli_chat", "cli_export", "cli_options"},
    "pydantic": {"config", "config_file", "fusing", "data", "evaluation"},
    "ruamel": {"yaml_text"},
    "trl": {"trainer"},
    "bitsandbytes": {"model", "optim", "doctor", "base_weights", "nf4", "engine", "benchmark", "base_sample"},
    "triton": {"engine"},
    "datasets": {"data"},
    "jinja2": {"data"},
    "lm_eval": {"evaluation"},
    "gguf": {"gguf"},
    "fastapi": {"serve"},
    "starlette": {"serve"},
    "uvicorn": {"serve"},
}
NEVER_AT_TOP = {"transformers", "trl", "peft", "bitsandbytes", "datasets", "unsloth", "accelerate", "lm_eval",
                "fastapi", "starlette", "uvicorn"}  # fmt: skip
TORCH_AT_TOP = {"weights", "nf4", "shards", "base_sample", "base_weights", "adapter", "merged_model", "merge", "proof",
                "behaviour", "peft_layers", "streamed", "output_proof", "export_proof", "plain_reader", "engine",
                "benchmark"}  # fmt: skip
PEFT_AT_TOP = {"engine.layers", "engine.patch"}  # subclasses of PEFT's layers; imported only once a PEFT model exists


def _module(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def _imports(tree: ast.AST, *, top: bool) -> Iterator[str]:
    """Imported module names; with `top` only those that run when the file is imported."""
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names if node.module == "qdora_fast")
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if not (top and (inside or typing_only)):
            stack.extend(ast.iter_child_nodes(node))


def _rank(module: str) -> int:
    return RANKS[module.split(".")[0]]


@pytest.mark.parametrize("path", FILES, ids=_module)
def test_imports_go_downwards(path: Path) -> None:
    module = _module(path)
    if module == "__init__":
        return
    folder = module.split(".")[0]
    for name in _imports(ast.parse(path.read_text()), top=False):
        if not name.startswith("qdora_fast."):
            continue
        other = name.removeprefix("qdora_fast.")
        if other.split(".")[0] not in RANKS:
            continue  # `from qdora_fast import __version__`
        assert other.split(".")[0] == folder or _rank(other) < _rank(module), f"{module} may not import {other}"


@pytest.mark.parametrize("path", FILES, ids=_module)
def test_libraries_are_imported_where_they_belong(path: Path) -> None:
    module, tree = _module(path), ast.parse(path.read_text())
    part = module.split(".")[0]
    for name in _imports(tree, top=False):
        owners = OWNERS.get(name.split(".")[0])
        assert owners is None or part in owners, f"{module} may not import {name}"
    for name in _imports(tree, top=True):
        library = name.split(".")[0]
        late = library == "peft" and module in PEFT_AT_TOP
        assert late or library not in NEVER_AT_TOP, f"{module}: import {name} inside the function that needs it"
        assert library != "torch" or part in TORCH_AT_TOP, f"{module}: import torch inside the function that needs it"


# What runs code that is found by name or made of text. A name that does not stand there, as text, may be given in the
# door alone; one of this package (f"qdora_fast.{...}") anywhere.
RUNNERS = {
    *("import_module", "__import__", "find_spec", "spec_from_file_location", "exec_module", "run_path", "run_module"),
}
BUILT_IN_RUNNERS = {"exec", "eval", "compile", "__import__"}
DOOR, PYTHON_DOOR = "own_code", "child"


def _runs_by_name(tree: ast.AST) -> Iterator[ast.Call]:
    """Calls that run code by a name or a text which does not stand there."""
    written = {  # for name in ("a", "b"): the names of such a loop stand there, too
        node.target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.comprehension | ast.For)
        and isinstance(node.target, ast.Name)
        and isinstance(node.iter, ast.Tuple)
        and all(isinstance(each, ast.Constant) for each in node.iter.elts)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        plain = node.func.id if isinstance(node.func, ast.Name) else ""
        name = node.func.attr if isinstance(node.func, ast.Attribute) else plain
        if not (name in RUNNERS or plain in BUILT_IN_RUNNERS):
            continue
        given = node.args[0] if node.args else None
        first = given.values[0] if isinstance(given, ast.JoinedStr) else None
        ours = isinstance(first, ast.Constant) and str(first.value).startswith("qdora_fast.")
        known = isinstance(given, ast.Constant) or (isinstance(given, ast.Name) and given.id in written)
        if not (ours or known):
            yield node


@pytest.mark.parametrize("path", FILES, ids=_module)
def test_code_is_run_by_name_only_at_the_doors(path: Path) -> None:
    module, tree = _module(path), ast.parse(path.read_text())
    for call in _runs_by_name(tree) if module != DOOR else ():
        pytest.fail(
            f"{module}, line {call.lineno}: `{ast.unparse(call)}` runs code by a name that does not stand there. Code "
            "that a config or a run names comes in through own_code.load_function; a name of your own, write it out"
        )
    for node in ast.walk(tree) if module != PYTHON_DOOR else ():
        if ast.unparse(node) in ("sys.executable", "sys._base_executable"):
            pytest.fail(
                f"{module}: start Python with child.python(...), so that no module of the working directory runs"
            )


@pytest.mark.parametrize(
    ("text", "caught"),
    [
        ("importlib.import_module(name)", True),
        ("__import__(config.data.formatter)", True),
        ("exec(open(path).read())", True),
        ("runpy.run_path(sent)", True),
        ("importlib.util.spec_from_file_location('own', path).loader.exec_module(module)", True),
        ("importlib.import_module('torch')", False),
        ("importlib.import_module(f'qdora_fast.engine.{kernel}')", False),
        ("[each for each in ('a', 'b') if find_spec(each)]", False),
        ("model.eval(); re.compile(form)", False),
    ],
)
def test_the_scan_for_code_run_by_name_sees_it(text: str, caught: bool) -> None:
    assert bool(list(_runs_by_name(ast.parse(text)))) == caught


@pytest.mark.parametrize("path", [*FILES, *HARNESS], ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_files_are_readable(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    assert len(text.splitlines()) <= 300
    assert not text.strip() or ast.get_docstring(tree), "a file opens with what it is and why"
    for node in ast.walk(tree):
        assert not isinstance(node, ast.Global), "no global"
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), "no bare except"
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno and node.end_lineno - node.lineno < 65, f"{node.name} is too long"
            nested = node.name.startswith("_")
            assert nested or node.name.startswith("on_") or ast.get_docstring(node) or _is_local(tree, node), node.name


def _is_local(tree: ast.AST, node: ast.AST) -> bool:
    """Defined inside a function: explained by it."""
    functions = (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n is not node)
    return any(node in ast.walk(function) for function in functions)


def test_there_is_no_utils_module() -> None:
    assert not [path for path in FILES if path.stem in ("utils", "helpers", "common", "misc")]


def test_every_module_has_its_test() -> None:
    tests = {path.stem for path in (PACKAGE.parent / "tests").rglob("test_*.py")}
    own_words = {"show", "errors", "run", "training", "__main__"}  # in every other test; __main__: test_processes
    own_words |= {"peft_layers", "export_case"}  # test_proof, test_export_proof
    missing = [
        path.stem
        for path in FILES
        if path.stem != "__init__" and path.parent == PACKAGE and f"test_{path.stem}" not in tests
    ]
    assert set(missing) <= own_words, f"no test for {missing}"


def test_asking_for_help_or_importing_the_package_imports_nothing_heavy() -> None:
    script = (
        "import sys, qdora_fast, qdora_fast.cli, qdora_fast.presets, qdora_fast.config_file\n"
        "print([m for m in ('torch', 'transformers', 'unsloth', 'datasets', 'peft') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
