"""The Hugging Face hub as a place to send files to and to take them from: its door, what it lists, its errors.

The token is the one that huggingface_hub finds (HF_TOKEN, `hf auth login`); it is handed to nothing else and never
shown. What lies there is compared by the hub's own hashes: SHA-256 of large files, git's of small ones.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from qdora_fast.system import console
from qdora_fast.system.errors import ConfigError, QdoraError, first_line
from qdora_fast.system.manifest import sha256_of
from qdora_fast.system.offline import is_offline

REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Listed:
    """A file as the hub lists it."""

    size: int
    blob: str
    """SHA-1 of git's blob; of a large file that of its pointer."""
    sha256: str | None
    """Of a large file."""

    def is_file(self, content: Path | bytes) -> bool:
        """Whether it is this content."""
        data = content if isinstance(content, bytes) else None
        size = len(data) if data is not None else Path(str(content)).stat().st_size
        if size != self.size:
            return False
        if self.sha256:
            found = hashlib.sha256(data).hexdigest() if data is not None else sha256_of(Path(str(content)))
            return found == self.sha256
        return _blob(data if data is not None else Path(str(content)).read_bytes()) == self.blob


def open_hub(repo: str, *, writes: bool = False) -> Any:
    """The hub's API, to be asked about `repo`.

    Raises:
        ConfigError: no such name of a repository, offline, or no token to write with.
    """
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.utils.tqdm import disable_progress_bars

    require_repo(repo)
    if is_offline() or constants.is_offline_mode():
        why = "--offline" if is_offline() else "HF_HUB_OFFLINE is set"
        raise ConfigError(f"{repo}: {why}, so the hub is not asked; run it again without")
    if writes and not get_token():
        raise ConfigError(f"{repo}: no token to write with; run `hf auth login`, or set HF_TOKEN to one that may write")
    if not console.is_terminal():
        disable_progress_bars()
    return HfApi(endpoint=constants.ENDPOINT)


def require_repo(repo: str) -> None:
    """Raise ConfigError for what cannot be a repository of somebody."""
    if not REPO.fullmatch(repo) or "--" in repo or ".." in repo:
        raise ConfigError(f"{repo!r} is no repository of the hub; write ORG/NAME, such as my-name/my-adapter")


def listing(api: Any, repo: str, revision: str | None) -> dict[str, Listed]:
    """Every file of a repository, by its name.

    Raises:
        ConfigError: one has a name that leads out of a folder.
    """
    files = {}
    for each in api.list_repo_tree(repo, recursive=True, revision=revision):
        if not hasattr(each, "blob_id"):
            continue
        name = PurePosixPath(each.path)
        if name.is_absolute() or ".." in name.parts or "\\" in each.path or "\0" in each.path:
            raise ConfigError(f"{repo}: it holds a file called {each.path!r}, which leads out of a folder")
        files[each.path] = Listed(each.size, each.blob_id, each.lfs.sha256 if each.lfs else None)
    return files


@contextmanager
def hub_errors(repo: str, fix: str) -> Iterator[None]:
    """What the hub or its library refuses, as one error.

    Args:
        fix: what to do where the connection breaks.
    """
    import httpx
    from huggingface_hub import errors

    try:
        yield
    except QdoraError:
        raise
    except errors.GatedRepoError:
        raise ConfigError(f"{repo}: gated; accept its terms on its page, with the account of your token") from None
    except errors.RevisionNotFoundError:
        raise ConfigError(f"{repo}: no such revision; look at its branches and tags on its page") from None
    except errors.RepositoryNotFoundError:
        raise ConfigError(
            f"{repo}: no such repository, or it is private and not open to you; check the name, and `hf auth whoami`"
        ) from None
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403):
            raise ConfigError(
                f"{repo}: the hub refuses your token (error {status}); log in with one that may: `hf auth login`"
            ) from None
        raise ConfigError(f"{repo}: the hub answered with error {status} ({first_line(error)}); {fix}") from None
    except (OSError, ValueError, RuntimeError, httpx.HTTPError) as error:
        raise ConfigError(f"{repo}: {first_line(error)}; {fix}") from None


def _blob(content: bytes) -> str:
    """Git's name of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
