"""A command that installs something fits the environment that it is typed for; the commands themselves were tried with
uv and pipx, in environments of all these kinds."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from qdora_fast import __version__
from qdora_fast.system import hardware, install
from qdora_fast.system.install import how_to_install, how_to_set_up, installation

PYTHON = install._shown(Path(sys.executable))
PINNED = install.tested_versions()
UNSLOTH = f'--no-deps "unsloth=={PINNED["unsloth"]}" "unsloth_zoo=={PINNED["unsloth_zoo"]}"'

Here = Callable[..., Path]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    """A function that makes this process one whose package was installed in some way; returns the environment."""

    def make(*files: str, installer: str = "pip", url: object = None, checkout: bool = False, pip: bool = True) -> Path:
        environment = tmp_path / "project" / ".venv"
        site = environment / "site-packages"
        record = site / f"qdora_fast-{__version__}.dist-info"
        record.mkdir(parents=True)
        (record / "METADATA").write_text(f"Metadata-Version: 2.4\nName: qdora-fast\nVersion: {__version__}\n")
        (record / "INSTALLER").write_text(installer + "\n")
        if url is not None:
            (record / "direct_url.json").write_text(url if isinstance(url, str) else json.dumps(url))
        package = tmp_path / "checkout" / "qdora_fast" if checkout else site / "qdora_fast"
        package.mkdir(parents=True)
        pins = package.parent if checkout else package
        pins.joinpath("constraints.txt").write_bytes(install.constraints_file().read_bytes())
        for name in ("Makefile", "pyproject.toml") if checkout else ():
            (package.parent / name).touch()
        for name in files:
            path = environment / name
            path.parent.mkdir(exist_ok=True)
            path.write_text('[tool]\nrequirements = [{name = "other"}, {name = "qdora-fast", extras = ["tested-gpu"]}]')
        monkeypatch.syspath_prepend(str(site))
        monkeypatch.setattr(install, "_PACKAGE", package)
        monkeypatch.setattr(sys, "prefix", str(environment))
        known = install.importlib.util.find_spec
        monkeypatch.setattr(install.importlib.util, "find_spec", lambda name: pip if name == "pip" else known(name))
        if not pip:
            monkeypatch.setattr(install.importlib.util, "find_spec", lambda name: None)
        return environment

    return make


def _pins(environment: Path) -> str:
    return f" -c {environment / 'site-packages' / 'qdora_fast' / 'constraints.txt'}"


def test_where_pip_installed_it_pip_adds_to_it_within_the_tested_versions(here: Here) -> None:
    environment = here()
    assert how_to_install("eval") == f'{PYTHON} -m pip install{_pins(environment)} "qdora-fast[eval]=={__version__}"'


def test_where_uv_installed_it_uv_adds_to_it(here: Here) -> None:
    pinned = _pins(here(installer="uv", pip=False))
    assert how_to_install("serve") == (f'uv pip install --python {PYTHON}{pinned} "qdora-fast[serve]=={__version__}"')


def test_an_environment_without_pip_is_left_to_uv_whoever_made_it(here: Here) -> None:
    here(installer="pip", pip=False)
    assert how_to_install("eval").startswith("uv pip install --python")


def test_the_tested_set_for_a_gpu_is_one_line_and_lets_uv_choose_the_build_of_torch(here: Here) -> None:
    here(installer="uv", pip=False)
    wanted = f'"qdora-fast[tested-gpu]=={__version__}"'
    assert how_to_set_up(gpu=True) == f"uv pip install --python {PYTHON} --torch-backend=auto {wanted}"


def test_the_tested_set_for_a_cpu_is_two_and_unsloth_comes_without_its_requirements(here: Here) -> None:
    here(installer="uv", pip=False)
    first, second = how_to_set_up(gpu=False).split(" && ")
    assert first == f'uv pip install --python {PYTHON} --torch-backend=cpu "qdora-fast[tested-cpu]=={__version__}"'
    assert second == f"uv pip install --python {PYTHON} {UNSLOTH}"


def test_pip_knows_no_build_of_torch_for_the_cpu_so_it_fetches_uv_for_that(here: Here) -> None:
    here()
    first, second, third = how_to_set_up(gpu=False).split(" && ")
    assert first == f"{PYTHON} -m pip install uv"
    assert second.startswith(f"{PYTHON} -m uv pip install --python {PYTHON} --torch-backend=cpu ")
    assert third == f"{PYTHON} -m pip install {UNSLOTH}"


@pytest.mark.parametrize("gpu", [True, False])
def test_without_a_choice_the_machine_decides(gpu: bool, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    here()
    monkeypatch.setattr(hardware, "gpus", lambda: [hardware.Gpu("L4", 22.0, (8, 9), "580")] if gpu else [])
    assert how_to_set_up() == how_to_set_up(gpu=gpu)


def test_a_tool_of_uv_is_installed_anew_with_all_extras_that_it_had(here: Here) -> None:
    pinned = "uv tool install --torch-backend=auto"
    here("uv-receipt.toml", installer="uv", pip=False)
    assert how_to_install("eval") == f'{pinned} "qdora-fast[eval,tested-gpu]=={__version__}"'


def test_a_tool_for_the_cpu_gets_unsloth_again_as_uv_removes_what_its_receipt_does_not_name(here: Here) -> None:
    environment = here("uv-receipt.toml", installer="uv", pip=False)
    receipt = environment / "uv-receipt.toml"
    receipt.write_text(receipt.read_text().replace("tested-gpu", "tested-cpu"))
    first, second = how_to_install("eval").split(" && ")
    assert first.startswith("uv tool install --torch-backend=cpu ") and "[eval,tested-cpu]" in first
    assert second == f"uv pip install --python {PYTHON} {UNSLOTH}"


@pytest.mark.parametrize("name", ["archive-v0", "builds-v0", "environments-v2"])
def test_what_uvx_made_for_one_call_is_answered_with_an_environment_that_stays(
    name: str, here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here(installer="uv", pip=False)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / name / "x1"))
    assert how_to_install("tested-gpu").startswith("uv tool install --torch-backend=auto ")


def test_pipx_is_asked_by_the_name_of_its_environment(here: Here) -> None:
    environment = here("pipx_metadata.json", pip=False)
    assert how_to_install("gguf") == (
        f'pipx runpip .venv install{_pins(environment)} "qdora-fast[gguf]=={__version__}"'
    )


def test_a_project_of_uv_gets_it_into_its_own_list_or_the_next_sync_would_take_it_away(here: Here) -> None:
    environment = here("../uv.lock", installer="uv", pip=False)
    assert how_to_install("wandb") == (
        f'uv add --project {environment.parent}{_pins(environment)} "qdora-fast[wandb]=={__version__}"'
    )


def test_a_notebook_gets_lines_for_a_cell_and_is_told_to_restart(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = here()
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    assert how_to_install("eval").splitlines() == [
        f'%pip install{_pins(environment)} "qdora-fast[eval]=={__version__}"',
        "# then restart the kernel",
    ]
    first, second, third, last = how_to_set_up(gpu=False).splitlines()
    assert first == "%pip install uv" and second.startswith(f"!{PYTHON} -m uv pip install")
    assert third == f"%pip install {UNSLOTH}" and last.startswith("#")


def test_a_notebook_without_pip_asks_uv(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    here(installer="uv", pip=False)
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    assert how_to_install("eval").startswith("!uv pip install --python")


@pytest.mark.parametrize(
    ("url", "source"),
    [
        ({"url": "file:///w/qdora_fast-0.1.0-py3-none-any.whl", "archive_info": {}}, "file:///w/qdora_fast-0.1.0-py3-"),
        ({"url": "https://x/y.git", "vcs_info": {"vcs": "git", "commit_id": "a1"}}, "git+https://x/y.git@a1"),
    ],
)
def test_what_did_not_come_from_the_index_is_named_by_its_address(url: object, source: str, here: Here) -> None:
    here(url=url)
    assert f'"qdora-fast[eval] @ {source}' in how_to_install("eval")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"url": 3, "vcs_info": 4}', '{"vcs_info": {"vcs": "git"}}'])
def test_a_record_that_cannot_be_read_leaves_a_command_that_works(text: str, here: Here) -> None:
    here("uv-receipt.toml", url=text, pip=False)
    assert re.fullmatch(r'uv tool install .*"qdora-fast\[eval,tested-gpu\]\S+"', how_to_install("eval"))


@pytest.mark.parametrize("text", ["", "[tool", "tool = 3", "[tool]\nrequirements = 4", "[tool]\nrequirements = [{}]"])
def test_so_does_a_receipt(text: str, here: Here) -> None:
    environment = here("uv-receipt.toml", pip=False)
    (environment / "uv-receipt.toml").write_text(text)
    assert how_to_install("eval").endswith(f'"qdora-fast[eval]=={__version__}"')


def test_an_environment_that_make_set_up_is_set_up_anew_by_make(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here("installed-cpu", checkout=True)
    monkeypatch.chdir(tmp_path / "checkout")
    assert how_to_set_up(gpu=True) == "make clean && make install PROFILE=gpu"
    assert how_to_set_up(gpu=False) == "make clean && make install"
    python = install._shown(Path(sys.executable))  # seen from this folder
    assert how_to_install("wandb") == f'{python} -m pip install -c constraints.txt "qdora-fast[wandb]=={__version__}"'
    monkeypatch.chdir(tmp_path)
    assert how_to_set_up(gpu=False) == "cd checkout && make clean && make install"


def test_a_checkout_in_an_environment_of_its_user_is_installed_from_its_folder(here: Here, tmp_path: Path) -> None:
    root = tmp_path / "checkout"
    here(checkout=True, url={"url": root.as_uri(), "dir_info": {"editable": True}})
    assert how_to_install("eval") == f'{PYTHON} -m pip install -c {root}/constraints.txt -e "{root}[eval]"'
    assert how_to_set_up(gpu=True) == f'{PYTHON} -m pip install -e "{root}[tested-gpu]"'


def test_other_packages_are_added_by_the_same_way(here: Here) -> None:
    environment = here("pipx_metadata.json", pip=False)
    said = installation().adds_packages("peft==0.21.2", "idna>=3", without_dependencies=["unsloth==1"])
    assert said == (
        f'pipx runpip .venv install{_pins(environment)} "peft==0.21.2" "idna>=3" && '
        'pipx runpip .venv install --no-deps "unsloth==1"'
    )


def test_a_shipped_file_is_brought_back_by_the_installer_or_by_git(here: Here, tmp_path: Path) -> None:
    here("uv-receipt.toml", pip=False)
    assert installation().repairs(install._PACKAGE / "data" / "x") == (
        f'uv pip install --python {PYTHON} --force-reinstall --no-deps "qdora-fast=={__version__}"'
    )


def test_in_a_checkout_only_that_path_is_brought_back(here: Here, tmp_path: Path) -> None:
    here(checkout=True)
    root = tmp_path / "checkout"
    assert installation().repairs(root / "qdora_fast" / "a b") == f"git -C {root} checkout -- 'qdora_fast/a b'"


def test_paths_are_quoted_for_a_shell(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here()
    monkeypatch.setattr(install, "INTERPRETER", "/opt/my env/bin/python")
    assert how_to_install("eval").startswith("'/opt/my env/bin/python' -m pip install")
