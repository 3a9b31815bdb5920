"""Rows behind a URL (s3, gs, az, hf, https): fetched once into the cache by fsspec, then read as local files.

Rows are needed several times (to count, to tokenise, to resume), so they are copied whole instead of read over the
network. Of each object its size and what its store calls its version (ETag, generation, date) are kept, with the
SHA-256 of what came: an unchanged one is not fetched again, a changed one becomes a new version beside the earlier, and
what is unlike its size, changed meanwhile or turns out to be a web page is an error that leaves the earlier copies as
they were. Credentials are found where each store's own library looks for them (environment, profile, ~/.netrc,
FSSPEC_HTTPS); those in a URL are known to `system/urls.py`, and are neither printed nor kept.

Not run here: s3, gs and az against a real store; they are asked through the same calls of fsspec as http and memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import unquote

from filelock import FileLock

from qdora_fast.data.read.readers import file_kind, is_supported
from qdora_fast.system import console
from qdora_fast.system.atomic import discard, require_space, staged_folder
from qdora_fast.system.errors import DataError, IntegrityError, QdoraError, first_line
from qdora_fast.system.hardware import cache_folder
from qdora_fast.system.install import how_to_install
from qdora_fast.system.limits import REMOTE_BYTES, REMOTE_FILES
from qdora_fast.system.manifest import NAME, problems, read_manifest, value_hash, write_manifest
from qdora_fast.system.offline import is_offline
from qdora_fast.system.urls import complete, file_name, lost_slash, scheme_of

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure"}
"""Schemes whose fsspec package is in an extra of ours."""
SCHEMES = ("http", "https", "hf", "memory", *EXTRAS)
"""What is fetched. fsspec knows more, some of which read local files or run commands."""
VERSION = (
    *("ETag", "etag", "Last-Modified", "LastModified", "last_modified", "Content-MD5", "md5Hash", "generation"),
    *("VersionId", "mtime", "updated", "blob_id", "created"),
)
"""What stores call the version of an object."""
VERSIONS_KEPT = 3
ROWS = "rows"
"""Below a version: its files. The manifest beside it must not be read as rows."""
PATTERN = frozenset("*?[")


@dataclass(frozen=True)
class Copy:
    """What was fetched: a file, or a folder of files."""

    url: str
    path: Path
    skipped: tuple[str, ...] = ()
    """Objects of a folder whose ending is not read; they were not fetched."""

    def name_of(self, local: str) -> str:
        """What a file of the copy is called: by its URL."""
        inside = Path(local)
        if inside == self.path or not inside.is_relative_to(self.path):
            return self.url
        folder = self.url if not PATTERN & set(self.url) else self.url.rpartition("/")[0]
        return f"{folder.rstrip('/')}/{inside.relative_to(self.path).as_posix()}"


class _Object(NamedTuple):
    name: str
    """As the store names it."""
    relative: str
    """Below the folder or pattern that was asked for."""
    info: Mapping[str, Any]

    @property
    def size(self) -> int | None:
        """Bytes; None: the store does not say."""
        size = self.info.get("size")
        return size if isinstance(size, int) else None

    @property
    def stamp(self) -> dict[str, str]:
        """Its version; {} where the store tells none, so that it is fetched again."""
        told = {key: str(self.info[key]) for key in VERSION if self.info.get(key)}
        return told and {"size": str(self.size), **told}


_fetched: ContextVar[dict[str, Copy] | None] = ContextVar("fetched", default=None)


def is_remote(path: str) -> bool:
    """Whether a path is a URL, or was one before something took a slash of it."""
    return scheme_of(path) is not None or lost_slash(path) is not None


@contextmanager
def fetched_once() -> Iterator[None]:
    """Inside, each URL is looked at once, so that what is hashed and what is read are one version."""
    token = _fetched.set({}) if _fetched.get() is None else None
    try:
        yield
    finally:
        if token:
            _fetched.reset(token)


def fetch(url: str) -> Copy:
    """The copy of a file, a folder or a pattern, fetched now where the cache has no copy of its present version.

    Raises:
        DataError: an unknown scheme, a package that is missing, nothing there, no access, cut, changed meanwhile, too
            large; or offline without a copy.
        DiskSpaceError: the disk has not enough room for it.
    """
    known = _fetched.get()
    if known is not None and url in known:
        return known[url]
    _require_known(url)
    copies = cache_folder() / "remote" / value_hash(url)[:32]
    try:
        copies.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"cannot keep a copy of {url} in {copies.parent}: {error.strerror}; set QDORA_FAST_CACHE"
        ) from None
    with FileLock(copies / ".lock"):
        copy = _newest(url, copies) if is_offline() else _current(url, copies)
    if known is not None:
        known[url] = copy
    return copy


def _require_known(url: str) -> None:
    if meant := lost_slash(url):
        raise DataError(f"{url}: one slash too few for a URL; write {meant}")
    scheme = scheme_of(url)
    if scheme not in SCHEMES:
        known = ", ".join(f"{each}://" for each in SCHEMES)
        raise DataError(
            f"{url}: rows are not fetched by `{scheme}://`; known are {known}. "
            "Download the file and name it by its path"
        )


def _newest(url: str, copies: Path) -> Copy:
    """The copy that was fetched last."""
    for folder, about in _versions(copies):
        console.line("data", f"{url}: offline, read from the copy of {about['fetched']}")
        return _copy(url, folder, about)
    raise DataError(f"{url}: offline, and it was never fetched; run once without --offline, or name a local file")


def _current(url: str, copies: Path) -> Copy:
    """The copy of the present version."""
    system, path = _open(url)
    with _told(url):
        objects, skipped, single = _listed(system, path, url)
    stamps = {each.relative: each.stamp for each in objects}
    for folder, about in _versions(copies):
        if all(stamps.values()) and about["stamps"] == stamps:
            console.line("data", f"{url}: unchanged, read from the copy of {about['fetched']}")
            return _copy(url, folder, about)
    _refuse_large(url, objects)
    total = sum(each.size or 0 for each in objects)
    about = {
        "kind": "remote rows",
        "url": url,
        "fetched": time.strftime("%Y-%m-%d %H:%M:%S"),
        "stamps": stamps,
        "single": single,
        "skipped": list(skipped),
    }
    size = f", {total / 1e6:,.1f} MB" if all(each.size is not None for each in objects) else ", of unknown size"
    count = f"{len(objects)} files" if len(objects) > 1 else "1 file"
    console.line("data", f"{url}: fetching {count}{size} (at most {REMOTE_BYTES / 2**30:,.0f} GiB are fetched)")
    require_space(copies, total)
    fetching = copies / "new"
    with staged_folder(fetching, overwrite=True) as staging:
        with console.counting_bytes(total or 1, "fetching") as on_bytes, _told(url):
            for each in objects:
                _get(system, each, staging / ROWS / each.relative, url, on_bytes)
            if {each.relative: each.stamp for each in _listed(_open(url)[0], path, url)[0]} != stamps:
                raise DataError(f"{url}: it changed while it was fetched; the earlier copies stay. Try again")
        write_manifest(staging, about)
    files = read_manifest(fetching)["files"]
    folder = copies / value_hash({name: entry["sha256"] for name, entry in files.items()})[:32]
    _replace(fetching, folder)
    if single:
        console.line("", f"SHA-256 {next(iter(files.values()))['sha256']}")
    _forget_old(copies)
    return _copy(url, folder, about)


def _open(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the URL as that names it."""
    import fsspec

    scheme, asked = str(scheme_of(url)), complete(url)
    options: dict[str, Any] = {}
    if scheme in ("http", "https"):
        from aiohttp import ClientTimeout

        patience = ClientTimeout(total=None, sock_connect=30, sock_read=60)  # aiohttp's own is 5 minutes in all
        set_by_user = fsspec.config.conf.get(scheme, {}).get("client_kwargs", {})
        options = {"client_kwargs": {"trust_env": True, "timeout": patience} | set_by_user}
        asked = _basic_auth(asked, options["client_kwargs"])
    try:
        system = fsspec.filesystem(scheme, skip_instance_cache=scheme != "memory", use_listings_cache=False, **options)
    except ImportError as error:
        extra = EXTRAS.get(scheme)
        fix = f"run `{how_to_install(extra)}`" if extra else "install the package that it names"
        raise DataError(f"{url}: {scheme}:// needs a package that is not here ({first_line(error)}); {fix}") from None
    return system, system._strip_protocol(f"{scheme}://{asked.partition('://')[2]}")


def _basic_auth(url: str, client: dict[str, Any]) -> str:
    """A URL without its user:password@, which is handed to the client instead."""
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    user, at, name = host.rpartition("@")
    if at:
        from aiohttp import BasicAuth

        login, _, password = user.partition(":")
        client.setdefault("auth", BasicAuth(unquote(login), unquote(password)))
    return f"{scheme}://{name}{slash}{path}"


def _listed(system: Any, path: str, url: str) -> tuple[list[_Object], tuple[str, ...], bool]:
    """What is to be fetched, what is not, and whether a single file was named."""
    web = scheme_of(url) in ("http", "https")
    pattern = PATTERN - {"?"} if web else PATTERN
    place = url.partition("?")[0] if web else url
    if not pattern & set(place) and not (web and place.endswith("/")):
        info = system.info(path)
        if info.get("type") != "directory":
            return [_Object(path, _single_name(url), info)], (), True
    if web and not pattern & set(place):
        raise DataError(
            f"{url}: the folders of a web server cannot be listed; name a file, or files by a pattern (*.jsonl)"
        )
    if pattern & set(place):
        found = system.glob(path, detail=True)
        fixed = path[: min(path.index(letter) for letter in pattern if letter in path)]
        root = fixed[: fixed.rfind("/") + 1]
    else:
        found, root = system.find(path, detail=True), f"{path.rstrip('/')}/"
    files = {name: info for name, info in sorted(found.items()) if info.get("type") != "directory"}
    if not files:
        raise FileNotFoundError(url)
    objects = [
        _Object(name, _below(root, name, url), system.info(name) if web else info) for name, info in files.items()
    ]
    good = [each for each in objects if is_supported(Path(each.relative))]
    skipped = tuple(each.relative for each in objects if each not in good)
    if not good:
        raise DataError(f"{url}: no data file among {len(objects)}, such as {skipped[0]}")
    return good, skipped, False


def _single_name(url: str) -> str:
    name = file_name(url)
    if is_supported(Path(name)):
        return name
    if Path(name).suffix:
        file_kind(Path(name))  # says which endings are read
    raise DataError(
        f"{url}: its name does not say what kind of file it is; download it and name the file, such as rows.jsonl"
    )


def _below(root: str, name: str, url: str) -> str:
    relative = unquote(name.removeprefix(root).partition("?")[0]) if name.startswith(root) else ""
    if not relative or relative.startswith("/") or ".." in PurePosixPath(relative).parts or "\0" in relative:
        raise DataError(f"{url}: it lists {name!r}, which does not lie below it")
    return relative


def _refuse_large(url: str, objects: list[_Object]) -> None:
    if len(objects) > REMOTE_FILES:
        raise DataError(f"{url}: {len(objects):,} files, and no more than {REMOTE_FILES:,} are fetched; name fewer")
    total = sum(each.size or 0 for each in objects)
    if total > REMOTE_BYTES:
        raise DataError(
            f"{url}: {total / 2**30:,.1f} GiB, and no more than {REMOTE_BYTES / 2**30:,.0f} GiB are fetched; name "
            "fewer files, or download them and name the folder"
        )


def _get(system: Any, wanted: _Object, to: Path, url: str, on_bytes: Callable[[int], None]) -> None:
    from fsspec.callbacks import Callback

    class Counted(Callback):
        """Tells of bytes as they come, and stops what has no end."""

        def relative_update(self, inc: int = 1) -> None:
            super().relative_update(inc)
            on_bytes(inc)
            if self.value > (wanted.size or REMOTE_BYTES):
                raise DataError(f"{url}: more bytes come than it was said to have; the earlier copies stay")

    to.parent.mkdir(parents=True, exist_ok=True)
    options = {"headers": {"Accept-Encoding": "identity"}} if scheme_of(url) in ("http", "https") else {}
    system.get_file(wanted.name, str(to), callback=Counted(), **options)
    size = to.stat().st_size
    if wanted.size is not None and size != wanted.size:
        raise DataError(f"{url}: cut: {size:,} of {wanted.size:,} bytes came; the earlier copies stay. Try again")
    with to.open("rb") as file:
        start = file.read(512).lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        raise DataError(
            f"{url}: a web page, not the file; take the link that downloads it (`/raw/` or `/resolve/` in place of "
            "`/blob/` on code hosts), or log in where the page asks to"
        )


@contextmanager
def _told(url: str) -> Iterator[None]:
    """What a store's library raises, as one error without credentials."""
    try:
        yield
    except QdoraError:
        raise
    except Exception as error:  # noqa: BLE001 - each store's library has errors of its own
        cause = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
        status = getattr(cause, "status", None)
        if status in (401, 403) or isinstance(cause, PermissionError) or "credential" in type(cause).__name__.lower():
            what = f"no access{f' (the server answers {status})' if isinstance(status, int) else ''}"
            fix = (
                "give the credentials as its own tools take them (environment, profile, ~/.netrc), or a link that "
                "holds them, which is not kept; --offline reads the last copy"
            )
        elif status in (404, 410) or (isinstance(cause, FileNotFoundError) and status is None):
            what, fix = "nothing there", "check the address"
        else:
            what = f"it could not be fetched ({_public(first_line(cause), url)})"
            fix = "the earlier copies stay. Try again, or read the last copy by --offline"
        raise DataError(f"{url}: {what}; {fix}") from None


def _public(text: str, url: str) -> str:
    return text.replace(complete(url), url)


def _versions(copies: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The intact versions, with what is known of each, the one fetched last first."""
    found = []
    for folder in copies.iterdir():
        if (folder / NAME).is_file() and folder.name != "new":
            try:
                found.append((folder, read_manifest(folder)["about"]))
            except IntegrityError:
                continue
    for folder, about in sorted(found, key=lambda each: str(each[1].get("fetched")), reverse=True):
        if {"stamps", "single", "fetched"} <= about.keys() and not problems(folder):
            yield folder, about


def _copy(url: str, folder: Path, about: Mapping[str, Any]) -> Copy:
    name = next(iter(about["stamps"])) if about["single"] else ""
    return Copy(url, folder / ROWS / name, tuple(about.get("skipped", ())))


def _replace(new: Path, folder: Path) -> None:
    """Give a fetched version its name; one of the same content is replaced, since its stamps are older."""
    if folder.exists():
        discard(folder)
    new.rename(folder)


def _forget_old(copies: Path) -> None:
    for folder, _ in list(_versions(copies))[VERSIONS_KEPT:]:
        discard(folder)
