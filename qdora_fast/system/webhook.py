"""One message to the addresses of `run.notify`: a webhook by httpx, any other service by apprise.

An address is a secret where everybody who knows it may post, so it is never printed and never written down: messages
name the host, or the variable that holds the address. What is sent is one short text and a few facts. Slack, Discord
and ntfy take a body of their own form and are known by their host; everybody else gets one JSON object, whose `text`
Mattermost, Rocket.Chat, Google Chat and Teams show. All addresses together get `SECONDS`, in threads that a name
server that does not answer cannot hold up. What this does not do: try again, or follow a redirect.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from qdora_fast.system import offline
from qdora_fast.system.errors import ConfigError
from qdora_fast.system.install import how_to_install
from qdora_fast.system.redact import redact, redacted

SECONDS = 5.0
"""For all addresses together."""
ENV = "env:"
LONGEST = 1000
"""Characters of a message; Discord takes 2,000."""


@dataclass(frozen=True)
class Address:
    """Where a message goes."""

    url: str
    name: str
    """For messages: the host, or the variable."""

    def __repr__(self) -> str:
        return f"Address({self.name})"


def addresses(settings: Sequence[str]) -> list[Address]:
    """The addresses of `run.notify`, those of the environment read.

    Raises:
        ConfigError: a variable is not set, a URL cannot be one, apprise is needed and not there, or `--offline` forbids
            it.
    """
    found = [_address(each) for each in settings]
    for each in found:
        scheme, host = _parts(each.url)
        if scheme in ("http", "https"):
            if not host:
                raise ConfigError(f"run.notify: {each.name} is no URL with a host; write https://host/path")
            if offline.is_offline() and not offline.is_local(host):
                raise ConfigError(
                    f"run.notify: {each.name} is another machine, and --offline makes no connection; leave one of the "
                    "two out (`--set run.notify=[]`)"
                )
        else:
            _require_apprise(each, scheme)
    return found


def send(to: Sequence[Address], text: str, facts: Mapping[str, Any]) -> list[str]:
    """Post the message; returns a sentence for each address that it did not reach. Never fails, and takes `SECONDS` at
    most.

    Args:
        text: what a person reads.
        facts: what a program reads; JSON.
    """
    text, facts = redact(text)[:LONGEST], redacted(facts)
    results: dict[int, str | None] = {}

    def post(number: int, address: Address) -> None:
        try:
            results[number] = _post(address.url, text, facts)
        except Exception as error:  # noqa: BLE001 - whatever it was, the run is worth more; its text may hold the URL
            results[number] = type(error).__name__

    threads = [threading.Thread(target=post, args=each, daemon=True) for each in enumerate(to)]
    end = time.monotonic() + SECONDS
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    late = f"no answer within {SECONDS:.0f} s"
    problems = [(each.name, results.get(number, late)) for number, each in enumerate(to)]
    return [f"the message to {name} was not delivered ({why})" for name, why in problems if why]


def _post(url: str, text: str, facts: Mapping[str, Any]) -> str | None:
    """Why the message did not arrive; None: it did."""
    scheme, host = _parts(url)
    if scheme not in ("http", "https"):
        return None if _apprise(url).notify(body=text, title="") else "the service refused it"
    import httpx

    logging.getLogger("httpx").setLevel(logging.WARNING)  # below that it writes the URL
    logging.getLogger("httpcore").setLevel(logging.WARNING)
    answer = httpx.post(url, **_body(host, urlsplit(url).path, text, facts), timeout=SECONDS)
    return None if answer.is_success else f"HTTP {answer.status_code}"


def _body(host: str, path: str, text: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The body, in the form of the service, as arguments for httpx."""
    if host == "hooks.slack.com":
        return {"json": {"text": text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")}}
    if host.removeprefix("ptb.").removeprefix("canary.") in ("discord.com", "discordapp.com"):
        return {"json": {"content": text, "allowed_mentions": {"parse": []}}}
    if host.split(".")[0] == "ntfy" and path.strip("/"):
        return {"content": text.encode(), "headers": {"Content-Type": "text/plain; charset=utf-8"}}
    return {"json": {"text": text, **facts}}


def _address(setting: str) -> Address:
    if not setting.startswith(ENV):
        return Address(setting, _parts(setting)[1] or "an address")
    name = setting.removeprefix(ENV)
    value = os.environ.get(name, "").strip()
    if not value:
        raise ConfigError(f"run.notify: the environment variable {name} is not set; put the address there")
    if "://" not in value:
        raise ConfigError(f"run.notify: the environment variable {name} holds no URL")
    return Address(value, name)


def _parts(url: str) -> tuple[str, str]:
    """Scheme and host in small letters; empty where there is none."""
    try:
        split = urlsplit(url)
        return split.scheme.lower(), (split.hostname or "").lower()
    except ValueError:
        return url.partition("://")[0].lower(), ""


def _require_apprise(address: Address, scheme: str) -> None:
    if importlib.util.find_spec("apprise") is None:
        raise ConfigError(
            f"run.notify: {scheme}:// is sent by apprise, which is not installed; run `{how_to_install('notify')}`, or "
            "name a webhook of https://, which needs nothing"
        )
    if offline.is_offline():
        raise ConfigError(f"run.notify: {scheme}:// is another machine, and --offline makes no connection")
    if not _apprise(address.url):
        raise ConfigError(f"run.notify: apprise knows no address of this form ({scheme}://)")


def _apprise(url: str) -> Any:
    import apprise

    logging.getLogger("apprise").setLevel(logging.CRITICAL)
    made = apprise.Apprise()
    made.add(url)
    return made
