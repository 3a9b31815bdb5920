"""Where models come from and what is kept: the hub, its token and its cache; the embedded base; prepared data.

The hub is asked once, with a limit on the wait that also holds for a name that does not resolve. The token goes
nowhere but to the hub, and is never shown.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from qdora_fast.data.demo.base import demo_base
from qdora_fast.recipes.doctor.finding import Finding
from qdora_fast.system import hardware
from qdora_fast.system.console import short
from qdora_fast.system.errors import IntegrityError

_LOGIN = "hf auth login with a new one, or set HF_TOKEN to it"
PATIENCE = 3.0
"""Seconds to wait for the hub."""
Ask = Callable[[str, str | None], int]
"""Asks an endpoint with a token, returns the HTTP status; raises OSError when there is no answer."""


def hub(*, offline: bool, ask: Ask | None = None, token: str | None = None) -> Iterator[Finding]:
    """Whether the hub can be reached and takes the token.

    Args:
        offline: make no connection (HF_HUB_OFFLINE says the same).
        ask, token: how to ask, and as whom; the real ones unless given.
    """
    from huggingface_hub import constants, get_token

    known = token or get_token()
    if offline or constants.HF_HUB_OFFLINE:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "--offline"
        yield Finding("hub", "ok", f"not asked ({why}); models must be in the cache or in a folder")
        yield _token(known)
        return
    endpoint = constants.ENDPOINT
    try:
        status = (ask or ask_hub)(endpoint, known)
    except OSError as problem:
        fix = "use models of the cache or a folder (HF_HUB_OFFLINE=1 saves the wait), or set HTTPS_PROXY or HF_ENDPOINT"
        yield Finding("hub", "note", short(f"{endpoint} cannot be reached: {problem}"), fix)
        yield _token(known)
        return
    if known and status == 401:
        yield Finding("hub", "ok", f"{endpoint} answers")
        yield Finding("token", "wrong", "refused by the hub, which then refuses every download", _LOGIN)
    elif status >= 500 or status in (403, 407):  # the hub is ill, or something between it and us says no
        yield Finding(
            "hub", "note", f"{endpoint}: error {status}", "wait, look at HTTPS_PROXY, or use what the cache has"
        )
        yield _token(known)
    else:
        yield Finding("hub", "ok", f"{endpoint} answers")
        yield _token(known)


def model_cache(folder: Path | None = None) -> Iterator[Finding]:
    """The hub's cache: where, how many models, how large.

    Args:
        folder: the cache; the hub library's own unless given.
    """
    folder = folder or hub_cache()
    models = [entry for entry in folder.glob("models--*") if entry.is_dir()] if folder.is_dir() else []
    text = f"{len(models)} model{'s'[: len(models) != 1]}, {_gib(folder)}" if models else "no models yet"
    yield Finding("model cache", "ok", f"{text}, in {folder}")


def hub_cache() -> Path:
    """Where the hub's library keeps models: HF_HUB_CACHE, HF_HOME, or its usual place."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def demo() -> Iterator[Finding]:
    """The embedded base, byte for byte."""
    try:
        yield Finding("demo base", "ok", f"as it was shipped, in {demo_base()}")
    except IntegrityError as damaged:
        yield Finding("demo base", "wrong", str(damaged))


def own_cache() -> Iterator[Finding]:
    """The prepared data of earlier runs."""
    data = hardware.cache_folder() / "data"
    entries = [entry for entry in data.iterdir() if not entry.name.startswith(".")] if data.is_dir() else []
    text = f"{len(entries)} kept, {_gib(data)}, in {data}" if entries else f"none kept yet; will be in {data}"
    yield Finding("data cache", "ok", text)


def ask_hub(endpoint: str, token: str | None) -> int:
    """One request to the hub, as its own library would make it; the HTTP status.

    Raises:
        OSError: no answer within PATIENCE seconds, whatever the reason.
    """
    answers: queue.SimpleQueue[int | Exception] = queue.SimpleQueue()

    def work() -> None:
        import httpx
        from huggingface_hub import get_session

        headers = {"authorization": f"Bearer {token}"} if token else {}
        try:
            path = "/api/whoami-v2" if token else "/"
            answers.put(get_session().get(f"{endpoint}{path}", headers=headers, timeout=PATIENCE).status_code)
        except (OSError, ValueError, RuntimeError, httpx.HTTPError, httpx.InvalidURL) as problem:
            answers.put(problem)

    # A thread, because no timeout of a request covers the look-up of a name; it may outlive us, and is then dropped.
    threading.Thread(target=work, daemon=True).start()
    try:
        answer = answers.get(timeout=PATIENCE)
    except queue.Empty:
        raise TimeoutError(f"no answer within {PATIENCE:.0f} s") from None
    if isinstance(answer, Exception):
        raise OSError(str(answer) or type(answer).__name__)
    return answer


def _token(token: str | None) -> Finding:
    if token:
        where = "HF_TOKEN" if os.environ.get("HF_TOKEN") else "stored by `hf auth login`"
        return Finding("token", "ok", f"there ({where}); gated models also want their licence accepted on their page")
    fix = "for gated models (Llama, Gemma): accept the licence on the model's page, then `hf auth login` or HF_TOKEN"
    return Finding("token", "note", "none; models open to all need none", fix)


def _gib(folder: Path) -> str:
    """Size of the files below; links are not followed, so each is counted once."""
    size = sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return f"{size / 2**30:.1f} GiB"
