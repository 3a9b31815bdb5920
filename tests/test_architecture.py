"""The house rules that can be checked, checked: who may import what, and how big things may get."""

from __future__ import annotations

import ast
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest

import qdora_fast

PACKAGE = Path(qdora_fast.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
HARNESS = sorted(
    path for name in ("benchmarks", "faults", "mutants", "proofs") for path in (PACKAGE.parent / name).rglob("*.py")
)

# A folder imports only from folders that stand below it here; the last two import nothing of ours.
FOLDERS = (
    *("cli", "recipes", "inference", "exports", "evaluation", "training"),
    *("planning", "models", "data", "config", "engine", "system"),
)
FOUNDATIONS = {"engine", "system"}

# The folders that may name the whole Config; below, a function takes the section it needs.
SEE_CONFIG = {"config", "cli", "recipes"}
NOT_BELOW = ("Config", "load_config", "make_config", "recorded")

# Heavy or touchy libraries, and the only folders or modules that may import them at all.
OWNERS = {
    "unsloth": {"models.backend"},
    "unsloth_zoo": set(),
    "click": {"cli"},
    "pydantic": {"config", "recipes.fuse", "data", "evaluation", "inference.request"},
    "ruamel": {"config.yaml"},
    "trl": {"training.trainer"},
    "bitsandbytes": {"models", "training.optimizer", "recipes.doctor", "exports", "engine"},
    "triton": {"engine"},
    "datasets": {"data"},
    "jinja2": {"data", "system.pages"},
    "lm_eval": {"evaluation.mmlu"},
    "gguf": {"exports.gguf"},
    "fastapi": {"inference.serve"},
    "starlette": {"inference.serve"},
    "uvicorn": {"inference.serve"},
}
NEVER_AT_TOP = {
    *("transformers", "trl", "peft", "bitsandbytes", "datasets", "unsloth", "accelerate", "lm_eval"),
    *("fastapi", "starlette", "uvicorn"),
}
TORCH_AT_TOP = {"models.weights", "models.nf4", "models.adapter", "exports.merge", "exports.verify", "engine"}
PEFT_AT_TOP = {"engine.layers", "engine.patch"}  # subclasses of PEFT's layers; imported only once a PEFT model exists


def _module(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def of_each_folder(files: Sequence[Path]) -> Callable[[Callable[[Path], None]], Callable[[str], None]]:
    """Make a rule for one file the test of each folder: a test for each file would be thousands."""
    folders: dict[str, list[Path]] = {}
    for path in files:
        folders.setdefault("/".join(path.relative_to(PACKAGE.parent).parts[:2]), []).append(path)

    def test_of(rule: Callable[[Path], None]) -> Callable[[str], None]:
        @pytest.mark.parametrize("folder", folders)
        def test(folder: str) -> None:
            for path in folders[folder]:
                try:
                    rule(path)
                except AssertionError as error:
                    raise AssertionError(f"{path.relative_to(PACKAGE.parent)}: {error}") from error

        test.__name__, test.__doc__ = rule.__name__, rule.__doc__
        return test

    return test_of


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


def _within(module: str, parts: set[str]) -> bool:
    """Whether a module is one of `parts` or lies in a folder that is."""
    return any(module == part or module.startswith(f"{part}.") for part in parts)


def test_the_package_is_twelve_folders() -> None:
    entries = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    assert entries == {"__init__.py", "__main__.py", "py.typed", *FOLDERS}


@of_each_folder(FILES)
def test_imports_go_downwards(path: Path) -> None:
    module = _module(path)
    folder = module.split(".")[0]
    if folder not in FOLDERS:  # __init__ and __main__ at the root
        return
    below = set() if folder in FOUNDATIONS else set(FOLDERS[FOLDERS.index(folder) + 1 :])
    for name in _imports(_tree(path), top=False):
        if name.startswith("qdora_fast."):
            other = name.split(".")[1]
            assert other == "__version__" or other in {folder, *below}, f"{module} may not import {name}"
        assert name.split(".")[0] not in ("benchmarks", "faults", "mutants", "proofs", "tests"), f"{module}: {name}"


@of_each_folder(FILES)
def test_the_whole_config_stops_at_the_recipes(path: Path) -> None:
    module = _module(path)
    if module.split(".")[0] in SEE_CONFIG:
        return
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("qdora_fast.config"):
            named = [alias.name for alias in node.names if alias.name in NOT_BELOW]
            assert node.module != "qdora_fast.config.recorded", f"{module}: take the values, not the run's config"
            assert not named, f"{module}: take the section that is needed, not the whole config"


@of_each_folder(FILES)
def test_libraries_are_imported_where_they_belong(path: Path) -> None:
    module, tree = _module(path), _tree(path)
    for name in _imports(tree, top=False):
        owners = OWNERS.get(name.split(".")[0])
        assert owners is None or _within(module, owners), f"{module} may not import {name}"
    for name in _imports(tree, top=True):
        library = name.split(".")[0]
        late = library == "peft" and module in PEFT_AT_TOP
        assert late or library not in NEVER_AT_TOP, f"{module}: import {name} inside the function that needs it"
        assert library != "torch" or _within(module, TORCH_AT_TOP), (
            f"{module}: import torch inside the function that needs it"
        )


NO_CONFIG = {"planning", "engine", "system"}
"""Folders whose functions take the sections or values that they need, never the whole Config."""


@of_each_folder([path for path in FILES if _module(path).split(".")[0] in NO_CONFIG])
def test_the_whole_config_stays_above(path: Path) -> None:
    nodes = list(ast.walk(_tree(path)))
    used = {node.id for node in nodes if isinstance(node, ast.Name)}
    imported = {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert "Config" not in used | imported


# What runs code that is found by name or made of text. A name that does not stand there, as text, may be given in the
# door alone; one of this package (f"qdora_fast.{...}") anywhere.
RUNNERS = {
    *("import_module", "__import__", "find_spec", "spec_from_file_location", "exec_module", "run_path", "run_module"),
}
BUILT_IN_RUNNERS = {"exec", "eval", "compile", "__import__"}
DOOR, PYTHON_DOOR = "config.own_code", "system.child"


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


@of_each_folder(FILES)
def test_code_is_run_by_name_only_at_the_doors(path: Path) -> None:
    module, tree = _module(path), _tree(path)
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


# What unpickles, starts a shell, or builds objects from a text: never. Other processes are started by the modules named
# here. (That loaders of models are told about code of the model's own stands in system/test_remote_code.py.)
UNPICKLERS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
BUILDS_OBJECTS = {
    *("torch.load", "torch.jit.load", "torch.hub.load", "torch.package", "pd.read_pickle", "pandas.read_pickle"),
    *("os.system", "os.popen", "os.execv", "os.execvp", "os.execve", "os.spawnv", "os.spawnvp", "os.posix_spawn"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "numpy.load", "code.interact", "site.addsitedir"),
}
STARTS_PROCESSES = {
    "exports.verify.fresh_process": "itself, by child.python",
    "exports.gguf.checkout": "llama.cpp, from a folder that the user has typed",
    "system.hardware": "nvidia-smi",
    "recipes.doctor.cards": "nvidia-smi",
    "recipes.doctor.stack": "itself, by child.python",
}
"""Modules that start another process, and which."""


def _unsafe(tree: ast.AST, module: str = "") -> Iterator[str]:
    """What of a file could turn a value of somebody else into code, in words."""
    for name in _imports(tree, top=False):
        if name.split(".")[0] in UNPICKLERS:
            yield f"imports {name}"
        if name.split(".")[0] == "subprocess" and module not in STARTS_PROCESSES:
            yield "imports subprocess"
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        given = {each.arg: ast.unparse(each.value) for each in call.keywords}
        name = ast.unparse(call.func)
        if name in BUILDS_OBJECTS or given.get("shell", "False") != "False":
            yield f"calls {name}"
        if name == "np.load" and given.get("allow_pickle") != "False":
            yield "calls np.load without allow_pickle=False"
        if name == "YAML" and given.get("typ") not in ("'rt'", "'safe'", None):
            yield "reads YAML with objects in it"
        if given.get("trust_remote_code") == "True":
            yield f"calls {name} with trust_remote_code=True"


@of_each_folder(FILES)
def test_nothing_of_somebody_else_becomes_code(path: Path) -> None:
    assert list(_unsafe(_tree(path), _module(path))) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle; pickle.loads(raw)",
        "from joblib import load",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "np.load(path, allow_pickle=asked)",
        "yaml.load(text)",
        "YAML(typ='unsafe')",
        "os.system(config.run.name)",
        "import subprocess",
        "anything(words, shell=True)",
        "AutoTokenizer.from_pretrained(name, trust_remote_code=True)",
    ],
)
def test_the_scan_for_code_of_somebody_else_sees_it(text: str) -> None:
    assert list(_unsafe(ast.parse(text)))


@of_each_folder(FILES)
def test_json_files_are_read_in_one_place(path: Path) -> None:
    for node in ast.walk(_tree(path)):
        call = ast.unparse(node) if isinstance(node, ast.Call) else ""
        from_file = call.startswith("json.load(") or (call.startswith("json.loads(") and ".read" in call)
        assert not from_file or _module(path) == "system.json_files", f"{call}: use system.json_files"


LONG_FILE, TOO_LONG_FILE = 300, 450
LONG_FUNCTION, TOO_LONG_FUNCTION = 60, 100


def watched(what: str, name: str, size: int, warn_above: int, fail_above: int) -> None:
    """A size to look at from `warn_above` on; one that is refused from `fail_above` on."""
    assert size <= fail_above, f"{name} has {size} {what}; split it"
    if size > warn_above:
        warnings.warn(f"{name} has {size} {what}: does it hold more than one thing?", stacklevel=2)


@of_each_folder([*FILES, *HARNESS])
def test_files_are_readable(path: Path) -> None:
    text, tree = path.read_text(), _tree(path)
    watched("lines", path.stem, len(text.splitlines()), LONG_FILE, TOO_LONG_FILE)
    assert not text.strip() or ast.get_docstring(tree), "a file opens with what it is and why"
    for node in ast.walk(tree):
        assert not isinstance(node, ast.Global), "no global"
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), "no bare except"
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            if isinstance(node, ast.FunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                watched("lines", f"{path.stem}.{node.name}", length, LONG_FUNCTION, TOO_LONG_FUNCTION)
            nested = node.name.startswith("_")
            assert nested or node.name.startswith("on_") or ast.get_docstring(node) or _is_local(tree, node), node.name


def _is_local(tree: ast.AST, node: ast.AST) -> bool:
    """Defined inside a function: explained by it."""
    functions = (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n is not node)
    return any(node in ast.walk(function) for function in functions)


def test_there_is_no_utils_module() -> None:
    assert not [path for path in FILES if path.stem in ("utils", "helpers", "common", "misc")]


def test_every_module_of_a_flat_folder_has_its_test() -> None:
    """`qdora_fast/part/x.py` has `tests/part/test_x.py`. Folders whose files are tested together, through the function
    that they stand behind, are named here."""
    together = {"cli", "data", "engine", "evaluation", "planning", "config", "recipes", "inference"}
    elsewhere = {
        "exports.report": "exports/test_merged",
        "exports.gguf.check": "exports/gguf/test_gguf_export",
        "exports.gguf.export": "exports/gguf/test_gguf_export",
        "exports.verify.peft_layers": "exports/verify/test_weights",
        "exports.verify.case": "exports/verify/test_checks",
        "models.run_info": "system/test_run_folder",
        "models.trained": "exports/verify/test_checks",
        "training.memory_cap": "planning/auto/test_auto",
        "system.errors": "cli/test_main",
        "system.hub": "recipes/test_hub",
        "system.limits": "system/test_json_files",
        "system.pages": "data/report/test_pages",
    }
    tests = PACKAGE.parent / "tests"
    for path in FILES:
        module = _module(path)
        folder = module.split(".")[0]
        if path.stem.startswith("__") or folder in together or folder not in FOLDERS:
            continue
        *parts, name = module.split(".")
        expected = elsewhere.get(module, "/".join([*parts, f"test_{name}"]))
        assert (tests / f"{expected}.py").is_file(), f"no test for {module}: {expected}.py"


def test_asking_for_help_or_importing_the_package_imports_nothing_heavy() -> None:
    script = (
        "import sys, qdora_fast, qdora_fast.cli.main, qdora_fast.config.presets, qdora_fast.config.loader\n"
        "print([m for m in ('torch', 'transformers', 'unsloth', 'datasets', 'peft') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
