"""URLs in settings: known by their scheme, and kept apart from the credentials that they may carry.

A presigned link (S3, Azure, Google, CloudFront) or `user:password@` is a right answer to "where are your rows", but a
run keeps a copy of its config and sends it on. So credentials are taken out of a URL when a config is read: what
remains, the public URL, is what is recorded, printed and compared by `--resume`, and the complete one stays in this
process' memory for the request. Parameters that only name the file stay. What this does not do: know a secret in the
path itself.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_ONE_SLASH = re.compile(r"(https?|s3a?|gs|gcs|az|abfss?|hf):/(?!/)")
_CREDENTIAL = re.compile(
    r"x-(?:amz|goog)-.*|policy|expires|googleaccessid|.*(?:token|key|secret|passw|signature|credential|auth).*|sig|code",
    re.IGNORECASE,
)
_AZURE = frozenset(
    (
        "sv",
        "ss",
        "srt",
        "sr",
        "sp",
        "se",
        "st",
        "spr",
        "sip",
        "sig",
        "skoid",
        "sktid",
        "skt",
        "ske",
        "sks",
        "skv",
        "sdd",
    )
)
"""Parameters of a shared access signature. Each is only known as such beside `sig`."""
_FILE = re.compile(r"[\w/ .%-]+\.(?:json|jsonl|ndjson|csv|tsv|parquet|arrow|gz|zst|txt)", re.IGNORECASE)
"""A value that names a file is no credential, whatever its parameter is called: `?key=rows.jsonl`."""

_complete: dict[str, str] = {}
"""Public URL → the one to ask, of this process."""


def scheme_of(text: str) -> str | None:
    """The scheme of a URL in lower case; None: not a URL."""
    found = _URL.match(text)
    return found[1].lower() if found else None


def lost_slash(text: str) -> str | None:
    """The URL that `https:/host/x` was, as a path library or a typing error leaves it; None: no such text."""
    return _ONE_SLASH.sub(r"\1://", text, count=1) if _ONE_SLASH.match(text) else None


def without_credentials(text: str) -> str:
    """The public form of a URL, which is what may be kept and shown; any other text as it is.

    What was taken out is remembered for `complete`.
    """
    if scheme_of(text) is None or not ("@" in text or "?" in text):
        return text
    address, _, fragment = text.partition("#")
    address, question, query = address.partition("?")
    scheme, _, rest = address.partition("://")
    host, slash, path = rest.partition("/")
    parameters = query.split("&") if question else []
    named = {_name(each) for each in parameters}
    kept = [each for each in parameters if not _is_credential(each, signed="sig" in named)]
    host = host if scheme.lower() in ("az", "abfs", "abfss", "hf") else host.rpartition("@")[2]
    public = f"{scheme}://{host}{slash}{path}" + (f"?{'&'.join(kept)}" if kept else "")
    public += f"#{fragment}" if fragment else ""
    if public != text:
        _complete[public] = text
    return public


def complete(public: str) -> str:
    """The URL to ask: with the credentials that this process was given for it."""
    return _complete.get(public, public)


def file_name(url: str) -> str:
    """The last part of a URL's path, as the name of a file; "" where it has none."""
    path = urlsplit(url).path if scheme_of(url) in ("http", "https") else url.partition("://")[2]
    return PurePosixPath(unquote(path)).name if not path.endswith("/") else ""


def _name(parameter: str) -> str:
    return unquote(parameter.partition("=")[0]).lower()


def _is_credential(parameter: str, *, signed: bool) -> bool:
    name, value = _name(parameter), unquote(parameter.partition("=")[2])
    if signed and name in _AZURE:
        return True
    return bool(value) and _CREDENTIAL.fullmatch(name) is not None and _FILE.fullmatch(value) is None
