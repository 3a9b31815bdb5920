"""What `qdora-fast pull` does: take a run, an adapter or an export from the hub, and check every file of it.

What `push` has sent is compared with its manifest. A foreign repository has none: of it an adapter is taken,
safetensors and its JSON and text alone, compared with the hub's own hashes; nothing of it has been proven, which is
said. A whole model needs no pull (name it as `model.name`), and a foreign checkpoint is refused, since nothing says
what it should hold. Files are collected in the cache, so that a broken download continues, and get their folder when
all are right.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from qdora_fast.system import console
from qdora_fast.system.atomic import refuse_existing, require_space, staged_folder
from qdora_fast.system.errors import IntegrityError, RefusedError
from qdora_fast.system.hardware import cache_folder
from qdora_fast.system.hub import Listed, hub_errors, listing, open_hub
from qdora_fast.system.manifest import NAME as MANIFEST
from qdora_fast.system.manifest import problems, read_manifest, value_hash
from qdora_fast.system.paths import plain_file_name, typed

CARD = "README.md"
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
BESIDE = (".json", ".jinja", ".txt", ".model", ".md")
"""Endings of what is taken beside a foreign adapter's weights: no pickles, no code."""
AGAIN = "the same command continues where it broke"


def pull(repo: str, *, out: str | Path | None = None, revision: str | None = None) -> dict[str, Any]:
    """Take a repository of the hub.

    Args:
        repo: ORG/NAME.
        out: folder to write; None: runs/NAME of a run, else a folder called like the repository.
        revision: branch, tag or commit; None: main.

    Returns:
        The report: repository, commit, kind (run, adapter or export), path, files, bytes, verified.

    Raises:
        ConfigError, RefusedError: nothing there that could be taken, or `out` exists.
        IntegrityError: a file is not what its manifest, or the hub, says.
        DiskSpaceError: no room for it.
    """
    api = open_hub(repo)
    with hub_errors(repo, AGAIN):
        commit = str(api.model_info(repo, revision=revision).sha)
        listed = listing(api, repo, commit)
        collected = cache_folder() / "pull" / value_hash([repo, commit])[:32]
        ours = MANIFEST in listed
        names = _ours(api, repo, commit, listed, collected) if ours else _foreign(repo, listed)
        about = read_manifest(collected)["about"] if ours else {"kind": "adapter"}
        target = Path(out) if out else _target(repo, about)
        refuse_existing(target, overwrite=False)
        size = sum(listed[name].size for name in names)
        console.line("pull", f"{repo}: {about['kind']}, {len(names)} files, {size / 1e6:,.1f} MB, to {target}")
        require_space(collected, size)
        for name in names:
            api.hf_hub_download(repo, name, revision=commit, local_dir=collected)
    _require_right(repo, collected, names, listed, ours=ours)
    with staged_folder(target) as staging:
        for name in names:
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            if not (about["kind"] == "run" and name in (MANIFEST, CARD)):  # of the repository, not of the run
                shutil.move(collected / name, staging / name)
    shutil.rmtree(collected, ignore_errors=True)
    _tell(target, about, ours=ours)
    return {
        "repository": repo,
        "commit": commit,
        "kind": about["kind"],
        "path": str(target),
        "files": len(names),
        "bytes": size,
        "verified": ours,
    }


def _ours(api: Any, repo: str, commit: str, listed: dict[str, Listed], collected: Path) -> list[str]:
    """What the manifest lists, and the card.

    Raises:
        IntegrityError: the manifest is damaged, or names what is not there.
    """
    api.hf_hub_download(repo, MANIFEST, revision=commit, local_dir=collected)
    content = read_manifest(collected)
    lost = [name for name in content["files"] if name not in listed]
    if lost:
        raise IntegrityError(
            f"{repo}: {len(lost)} files of its {MANIFEST} are not there, such as {lost[0]}; ask its owner"
        )
    kind = content["about"].get("kind")
    if kind not in ("run", "adapter", "export") or (kind == "run" and "config.yaml" not in content["files"]):
        raise RefusedError(f"{repo}: its {MANIFEST} does not say that it is a run, an adapter or an export")
    return [*content["files"], MANIFEST, *([CARD] if CARD in listed and CARD not in content["files"] else [])]


def _foreign(repo: str, listed: dict[str, Listed]) -> list[str]:
    """The files of an adapter that somebody else's trainer has made.

    Raises:
        RefusedError: it is something else.
    """
    if all(name in listed for name in ADAPTER):
        beside = [name for name in listed if "/" not in name and name.endswith(BESIDE) and name not in ADAPTER]
        left = sorted(set(listed) - {*ADAPTER, *beside, ".gitattributes"})
        if left:
            console.line("", f"not taken: {len(left)} files that an adapter does not need, such as {left[0]}")
        return [*ADAPTER, *beside]
    if "config.json" in listed:
        raise RefusedError(f"{repo} is a model, which needs no pull: name it as model.name, or to `qdora-fast chat`")
    if "adapter_config.json" in listed:
        raise RefusedError(f"{repo}: the adapter's weights are no safetensors; pickles can run code when read")
    folders = sorted({name.split("/")[0] for name in listed if "/" in name})
    inside = f" (it holds {', '.join(folders[:4])})" if folders else ""
    raise RefusedError(
        f"{repo}: no {MANIFEST} and no adapter at its top{inside}, so nothing says what it should hold. Checkpoints "
        "and runs are taken from repositories that `qdora-fast push --what run` has written"
    )


def _target(repo: str, about: dict[str, Any]) -> Path:
    name = about.get("name")
    own = name if plain_file_name(name) and not str(name).startswith(".") else repo.rpartition("/")[2]
    return Path("runs", str(own)) if about["kind"] == "run" else Path(repo.rpartition("/")[2])


def _require_right(repo: str, collected: Path, names: list[str], listed: dict[str, Listed], *, ours: bool) -> None:
    """Raise IntegrityError, and forget what came, unless each file is what the manifest or the hub says."""
    wrong = problems(collected) if ours else []
    wrong += [f"{name}: not what the hub lists" for name in names if not listed[name].is_file(collected / name)]
    if wrong:
        shutil.rmtree(collected, ignore_errors=True)
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        what = wrong[0].replace(f"{collected}/", "")
        raise IntegrityError(f"{repo}: {what}{more}. Nothing was kept; pull again, or ask its owner")


def _tell(target: Path, about: dict[str, Any], *, ours: bool) -> None:
    where = typed(target)
    if not ours:
        console.note(f"it has no {MANIFEST}: its files are what the hub lists, and nothing about it was proven")
    if about["kind"] == "run":
        console.line("", f"verified; next: `qdora-fast train {where}/config.yaml --resume`, or chat and export")
    elif about["kind"] == "adapter":
        console.line("", f"next: `qdora-fast import-adapter {where}` makes a run of it, to export and evaluate")
    else:
        console.line("", f"verified; next: `qdora-fast chat {where}`")
