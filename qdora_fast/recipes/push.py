"""What `qdora-fast push` does: send a run's adapter, an export of it or the run itself to the hub, as one commit.

Sent is what a manifest lists, and the model card; private unless `public` is asked. Everything that can be known here
is checked before the hub is asked: the files are as they were written, an export passed its proof, an adapter has all
it was trained with, no text holds a secret, rows go only with `with_data`, and what becomes public has a licence that
its owner confirmed. Afterwards the hub's list of hashes is compared with ours.

Large files are uploaded before the commit, and the hub knows those that it has: the same command after a broken
connection continues, and what can be seen is complete or not there. (`upload_large_folder` would make several commits.)

Not run here: the real hub; the tests hold the calls against one on this machine.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdora_fast.config.recorded import read_config
from qdora_fast.evaluation.report.card import LICENCE, model_card
from qdora_fast.models.run_info import read_run_info
from qdora_fast.planning.base_facts import facts_of
from qdora_fast.recipes.export import FORMATS
from qdora_fast.recipes.report import read_parts
from qdora_fast.recipes.verify import require_undamaged, verify
from qdora_fast.system import console
from qdora_fast.system.errors import ConfigError, IntegrityError, RefusedError
from qdora_fast.system.hub import Listed, hub_errors, listing, open_hub, require_repo
from qdora_fast.system.install import how_to_install
from qdora_fast.system.json_files import read_object
from qdora_fast.system.limits import JSON_FILE_BYTES
from qdora_fast.system.manifest import NAME as MANIFEST
from qdora_fast.system.manifest import read_manifest, require_unchanged, sha256_of, write_manifest
from qdora_fast.system.paths import typed
from qdora_fast.system.redact import redact
from qdora_fast.system.run_folder import EXPORT, UNPROVEN, RunFolder
from qdora_fast.system.run_lock import HOLDER, LOCK, locked

CARD = "README.md"
RUN = "run"
BINARY = (".safetensors", ".gguf", ".pt", ".npz", ".bin")
AGAIN = "the same command continues: what the hub has already is not sent again"
Content = Path | bytes


@dataclass(frozen=True)
class Cargo:
    """What is sent, by its name in the repository."""

    files: dict[str, Content]
    base: str
    revision: str | None

    @property
    def bytes(self) -> int:
        """Of all files together."""
        return sum(len(each) if isinstance(each, bytes) else each.stat().st_size for each in self.files.values())


def push(
    run: str | Path,
    *,
    to: str,
    what: str = "adapter",
    public: bool = False,
    with_data: bool = False,
    licence: str | None = None,
    revision: str | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Send part of a run to the hub.

    Args:
        run: its folder.
        to: the repository, ORG/NAME; it is made if need be.
        what: adapter, the folder of an export (merged_16bit, gguf, ...), or run, from which elsewhere is resumed.
        public: everybody may read it. An existing repository keeps what it is, and must be of that kind.
        with_data: rows of the data may be sent, which a run holds.
        licence: the identifier that the card names.
        revision: the branch; None: main.
        dry_run: say what would be sent, and ask nobody.

    Returns:
        The report: repository, what, files, bytes, private; url and commit unless it was a dry run.

    Raises:
        ConfigError, RefusedError: it is not there, may not be sent, or the hub says no.
        IntegrityError: files have changed since they were written, or arrived as something else.
        RunLocked: another process works in the run's folder.
    """
    require_repo(to)
    folder = RunFolder.open(run)
    with locked(folder.path), tempfile.TemporaryDirectory(prefix="qdora-fast-push-") as passing:
        cargo = _cargo(folder, what, with_data=with_data, passing=Path(passing))
        _refuse_secrets(cargo)
        cargo.files[CARD] = _card(cargo, to, public=public, licence=licence, dry_run=dry_run)
        report = {
            "repository": to,
            "what": what,
            "files": sorted(cargo.files),
            "bytes": cargo.bytes,
            "private": not public,
            "dry_run": dry_run,
        }
        _tell(cargo, to, public=public, dry_run=dry_run)
        return report if dry_run else report | _send(cargo, folder, to, what, public=public, revision=revision)


def _cargo(folder: RunFolder, what: str, *, with_data: bool, passing: Path) -> Cargo:
    info = read_run_info(folder)
    if what == RUN:
        return Cargo(_run_files(folder, passing, with_data=with_data), info.base, info.revision)
    root = folder.adapter if what == "adapter" else _export(folder, what)
    if what == "adapter":
        _require_adapter(folder)
    require_unchanged(root)
    files: dict[str, Content] = {name: root / name for name in [*read_manifest(root)["files"], MANIFEST]}
    card = root / CARD
    text = card.read_text(encoding="utf-8") if card.is_file() else _plain_card(folder, what)
    return Cargo({**files, CARD: text.encode()}, info.base, info.revision)


def _require_adapter(folder: RunFolder) -> None:
    """Raise unless the adapter is all that was trained, and has a manifest."""
    from qdora_fast.models.adapter import assert_complete

    if not folder.adapter.is_dir():
        raise ConfigError(f"{folder.path} has no adapter yet: the run did not finish; run it again or --resume it")
    trained = read_run_info(folder)
    assert_complete(folder.adapter, decomposed=read_config(folder).adapter.decomposed, expected_modules=trained.targets)
    if not (folder.adapter / MANIFEST).is_file():
        raise ConfigError(
            f"{folder.adapter}: no {MANIFEST} says what it should hold; "
            f"`qdora-fast export {typed(folder.path)} --to adapter` checks it and writes one"
        )


def _export(folder: RunFolder, what: str) -> Path:
    """The folder of an export that passed its proof and is of the run's adapter."""
    there = sorted(file.parent for file in folder.path.glob(f"*/{EXPORT}"))
    named = [each for each in there if each.name == what]
    named = named or [each for each in there if each.name.startswith(f"{what}-") and each.suffix != UNPROVEN]
    if not named or named[0].suffix == UNPROVEN:
        failed = folder.path / f"{what.removesuffix(UNPROVEN)}{UNPROVEN}"
        if failed.is_dir():
            raise RefusedError(f"{failed} did not pass its proof, so it is not sent; its {EXPORT} says what is wrong")
        have = ", ".join(["adapter", RUN, *(each.name for each in there if each.suffix != UNPROVEN)])
        known = what.split("-")[0] in FORMATS or what in FORMATS
        make = f"`qdora-fast export {typed(folder.path)} --to {what}` makes it; " if known else ""
        raise ConfigError(f"--what {what}: {folder.path} has no such export; {make}there are {have}")
    if len(named) > 1:
        raise ConfigError(f"--what {what}: which of {', '.join(each.name for each in named)}? Name one")
    report = read_object(named[0] / EXPORT)
    proof = report.get("proof")
    if not isinstance(proof, dict) or proof.get("passed") is not True:
        raise RefusedError(
            f"{named[0]} was not proven to be the model that was trained, so it is not sent; make it again with "
            f"`qdora-fast export {typed(folder.path)} --to {report.get('format', what)} --overwrite`"
            + (
                f" (`{how_to_install('gguf')}` first: its check needs the reader)"
                if report.get("format") == "gguf"
                else ""
            )
        )
    if report.get("adapter_sha256") != sha256_of(folder.adapter / "adapter_model.safetensors"):
        raise RefusedError(f"{named[0]} was made from another adapter than the run holds now; export it again")
    return named[0]


def _run_files(folder: RunFolder, passing: Path, *, with_data: bool) -> dict[str, Content]:
    """Every file of a run but its exports, which are sent by themselves, and a manifest of them."""
    if not with_data:
        raise RefusedError(
            "--what run: a run holds rows of its data (data/, evaluation/, report.html); add --with-data if they may "
            "be sent, or send --what adapter"
        )
    exports = {file.parent for file in folder.path.glob(f"*/{EXPORT}")}
    parts = [part for part in verify(folder.path) if part.path not in exports]
    require_undamaged(parts, folder.path)
    files: dict[str, Content] = {}
    for path in sorted(folder.path.rglob("*")):
        inside = path.relative_to(folder.path)
        if (
            not path.is_file()
            or inside.as_posix() in (LOCK, HOLDER, MANIFEST, CARD)
            or folder.path / inside.parts[0] in exports
        ):
            continue
        if not any(part.endswith((".incomplete", ".replaced", ".removed", UNPROVEN)) for part in inside.parts):
            files[inside.as_posix()] = path
            link = passing / inside  # a manifest is of a folder: of links to what is sent
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())
    write_manifest(passing, {"kind": RUN, "name": folder.path.resolve().name})
    manifest = (passing / MANIFEST).read_bytes()
    return {**files, MANIFEST: manifest, CARD: _plain_card(folder, RUN).encode()}


def _plain_card(folder: RunFolder, what: str) -> str:
    """The card of what has none of its own: the adapter's, with how this one is used in place of how that is."""
    text = model_card(read_parts(folder), kind="adapter")
    head, _, rest = text.partition("## How to use it")
    _, _, rest = rest.partition("## Training data")
    uses = {
        RUN: "A whole run of qdora_fast. `qdora-fast pull ORG/NAME` takes it and checks it; `train --resume`, `chat` "
        "and `export` then work on it.",
    }
    use = uses.get(what, "Made from the proven merged model of this run; see `export.json`.")
    library = "qdora_fast" if what == RUN else what.split("-")[0]
    head = head.replace("library_name: peft", f"library_name: {library}").replace("base_model_relation: adapter\n", "")
    return redact(f"{head}## How to use it\n\n{use}\n\n## Training data{rest}")


def _card(cargo: Cargo, to: str, *, public: bool, licence: str | None, dry_run: bool) -> bytes:
    """The card with its licence.

    Raises:
        RefusedError: what becomes public has none that somebody confirmed.
        ConfigError: the card's header cannot be read.
    """
    from huggingface_hub import ModelCard

    content = cargo.files[CARD]
    text = content.decode() if isinstance(content, bytes) else content.read_text(encoding="utf-8")
    try:
        card = ModelCard(text, ignore_metadata_errors=False)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{CARD}: its header cannot be read ({str(error).splitlines()[0]}); mend it") from None
    chosen = licence or card.data.to_dict().get("license")
    if public and not chosen:
        said, gating = _licence_of_base(cargo, to, dry_run=dry_run)
        proposal = said.lower() if said and " " not in said else "IDENTIFIER (such as apache-2.0)"
        raise RefusedError(
            f"--public: no licence is set. The base {cargo.base.rsplit('/', 1)[-1]} has "
            f"{f'the licence {said}' if said else 'none that its card names'}{gating}; it and the terms of your data "
            f"bind what you may choose. Confirm one: --licence {proposal}"
        )
    if chosen:
        card.data["license"] = chosen
        card.text = card.text.replace("\n".join(LICENCE), "").replace("\n\n\n\n", "\n\n")
    return str(card).encode()


def _licence_of_base(cargo: Cargo, to: str, *, dry_run: bool) -> tuple[str | None, str]:
    """Its licence, and its gating in words: from what lies here, else from the hub."""
    facts = facts_of(cargo.base, cargo.revision, tied=False)
    said, gated = facts.licence, facts.gated
    if said is None and not dry_run and not Path(cargo.base).is_absolute():
        with hub_errors(cargo.base, "try again"):
            info = open_hub(to).model_info(cargo.base)
        data = info.card_data
        said, gated = (data.license if data else None), bool(info.gated)
    return said, {True: " and is gated", False: " and is not gated", None: ""}[gated]


def _refuse_secrets(cargo: Cargo) -> None:
    """Raise RefusedError when a text that would be sent holds what looks like a token, key or password."""
    for name, content in cargo.files.items():
        for number, text in _texts(content) if not name.endswith(BINARY) else ():
            if (clean := redact(text)) == text:
                continue
            same = next((at for at, (one, other) in enumerate(zip(text, clean, strict=False)) if one != other), 0)
            line = number + text.count("\n", 0, same)
            raise RefusedError(
                f"{name}:{line}: holds what looks like a secret (a token, a key or a password), so nothing is sent; "
                "take it out, and make anew what it went into"
            )


def _texts(content: Content) -> Iterator[tuple[int, str]]:
    """(number of the first line, text): a file at once, a large one line by line; nothing of what is no text."""
    try:
        if isinstance(content, bytes) or content.stat().st_size <= JSON_FILE_BYTES:
            yield 1, (content if isinstance(content, bytes) else content.read_bytes()).decode()
        else:
            with content.open(encoding="utf-8") as lines:
                yield from enumerate(lines, 1)
    except UnicodeDecodeError:
        return


def _tell(cargo: Cargo, to: str, *, public: bool, dry_run: bool) -> None:
    kind = "public" if public else "private"
    doing = "would send" if dry_run else "sending"
    console.line("push", f"{doing} {len(cargo.files)} files, {cargo.bytes / 1e6:,.1f} MB, to {to} ({kind})")
    for name, content in sorted(cargo.files.items()) if dry_run else ():
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        console.line("", f"{name}  {size:,} bytes")
    if Path(cargo.base).is_absolute():
        console.note(f"the base is named by a path on this machine ({cargo.base}); elsewhere that must be put right")


def _send(cargo: Cargo, folder: RunFolder, to: str, what: str, *, public: bool, revision: str | None) -> dict[str, Any]:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    api = open_hub(to, writes=True)
    with hub_errors(to, AGAIN):
        _require_repository(api, to, public=public)
        if revision:
            api.create_branch(to, branch=revision, exist_ok=True)
        before = listing(api, to, revision)
        stale, foreign = _others(api, cargo, to, before, revision)
        if foreign:
            console.line("", f"left as they are: {len(foreign)} files that push has not sent, such as {foreign[0]}")
        adds = [CommitOperationAdd(name, each) for name, each in cargo.files.items()]
        commit = api.create_commit(
            to,
            [*adds, *(CommitOperationDelete(name) for name in stale)],
            commit_message=f"Upload {what} of {folder.path.resolve().name}",
            revision=revision,
        )
        after = listing(api, to, commit.oid)
    wrong = [name for name, each in cargo.files.items() if name not in after or not after[name].is_file(each)]
    if wrong:
        raise IntegrityError(
            f"{to}: {len(wrong)} files are not what was sent, such as {wrong[0]}; push again, or remove that repository"
        )
    console.line("", f"the hub lists the same hashes: {api.endpoint}/{to}, commit {commit.oid[:12]}")
    return {"url": f"{api.endpoint}/{to}", "commit": commit.oid, "removed": stale}


def _require_repository(api: Any, to: str, *, public: bool) -> None:
    """The repository, made if need be, is as visible as was asked; nothing is sent otherwise."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        private = bool(api.repo_info(to).private)
    except RepositoryNotFoundError:
        api.create_repo(to, private=not public)
        private = bool(api.repo_info(to).private)
    if private == public:
        raise RefusedError(
            f"{to} is private; --public makes new repositories only: change it on its page, or push without --public"
            if public
            else f"{to} is public; add --public if everybody may read this, or name another repository"
        )


def _others(
    api: Any, cargo: Cargo, to: str, before: Mapping[str, Listed], revision: str | None
) -> tuple[list[str], list[str]]:
    """Files there that are not sent now: those of an earlier push, which go, and others, which stay."""
    other = [name for name in before if name not in cargo.files and name != ".gitattributes"]
    if not other or MANIFEST not in before:
        return [], other
    with tempfile.TemporaryDirectory(prefix="qdora-fast-push-") as passing:
        api.hf_hub_download(to, MANIFEST, revision=revision, local_dir=passing)
        try:
            earlier = read_manifest(Path(passing))["files"]
        except IntegrityError:
            earlier = {}
    return [name for name in other if name in earlier], [name for name in other if name not in earlier]
