"""The hub, its token and the caches. No test here reaches for a network."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from qdora_fast.recipes.doctor import hub
from qdora_fast.recipes.doctor.finding import Finding

SECRET = "hf_thisMustNeverBeShown"


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A hub that may be asked, and nobody logged in."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)


def _by_check(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.check: finding for finding in findings}


def _never(place: str, token: str | None) -> int:
    raise AssertionError("a connection was tried")


def test_offline_makes_no_connection(online: None, monkeypatch: pytest.MonkeyPatch) -> None:
    (asked, _) = hub.hub(offline=True, ask=_never)
    assert asked.found.startswith("not asked (--offline)")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (asked, _) = hub.hub(offline=False, ask=_never)
    assert asked.found.startswith("not asked (HF_HUB_OFFLINE is set)")


def test_a_hub_that_does_not_answer_is_a_note(online: None) -> None:
    def silent(place: str, token: str | None) -> int:
        raise TimeoutError("no answer within 3 s")

    found = _by_check(list(hub.hub(offline=False, ask=silent)))
    assert found["hub"].status == "note"
    assert "cannot be reached: no answer within 3 s" in found["hub"].found
    assert "HF_HUB_OFFLINE=1" in found["hub"].fix


@pytest.mark.parametrize(("status", "verdict"), [(200, "ok"), (401, "ok"), (404, "ok"), (403, "note"), (503, "note")])
def test_answers_without_a_token(online: None, status: int, verdict: str) -> None:
    found = _by_check(list(hub.hub(offline=False, ask=lambda place, token: status)))
    assert found["hub"].status == verdict
    assert found["token"].status == "note" and "accept the licence" in found["token"].fix


@pytest.mark.parametrize(("status", "verdict"), [(200, "ok"), (401, "wrong"), (403, "ok"), (500, "ok")])
def test_a_token_the_hub_refuses_is_wrong_and_no_token_is_shown(online: None, status: int, verdict: str) -> None:
    seen: list[str | None] = []

    def answer(place: str, token: str | None) -> int:
        seen.append(token)
        return status

    findings = list(hub.hub(offline=False, ask=answer, token=SECRET))
    assert seen == [SECRET]
    assert _by_check(findings)["token"].status == verdict
    assert SECRET not in str(findings)


def test_the_token_of_the_environment_is_found_and_not_shown(online: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    found = _by_check(list(hub.hub(offline=True)))
    assert "HF_TOKEN" in found["token"].found
    assert SECRET not in str(found)


class _Session:
    """Stands in for the hub library's connection."""

    def __init__(self, work) -> None:
        self.work = work

    def get(self, url: str, **how: object) -> object:
        return self.work(url)


def _session(monkeypatch: pytest.MonkeyPatch, work) -> None:
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: _Session(work))


def test_the_token_is_tried_only_when_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    answer = type("Answer", (), {"status_code": 204})
    _session(monkeypatch, lambda url: asked.append(url) or answer)
    assert hub.ask_hub("https://hub.test", None) == 204
    assert hub.ask_hub("https://hub.test", SECRET) == 204
    assert asked == ["https://hub.test/", "https://hub.test/api/whoami-v2"]


def test_a_wrong_address_or_a_dead_line_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx

    for problem in (httpx.ConnectError("refused"), httpx.InvalidURL("not an address"), ValueError("bad header")):

        def work(url: str, problem: Exception = problem) -> None:
            raise problem

        _session(monkeypatch, work)
        with pytest.raises(OSError, match=str(problem)):
            hub.ask_hub("https://hub.test", None)


def test_a_line_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    release = threading.Event()
    answer = type("Answer", (), {"status_code": 200})
    _session(monkeypatch, lambda url: release.wait(30) and answer)
    monkeypatch.setattr(hub, "PATIENCE", 0.05)
    with pytest.raises(TimeoutError, match="no answer within"):
        hub.ask_hub("https://hub.test", None)
    release.set()


def test_the_model_cache_is_counted_without_its_links(tmp_path: Path) -> None:
    (empty,) = hub.model_cache(tmp_path / "hub")
    assert empty.found.startswith("no models yet, in")
    blobs = tmp_path / "hub" / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "weights").write_bytes(b"")
    with (blobs / "weights").open("r+b") as file:
        file.truncate(3 * 2**29)  # 1.5 GiB that take no space
    (tmp_path / "hub" / "models--a--b" / "link").symlink_to(blobs / "weights")
    (one,) = hub.model_cache(tmp_path / "hub")
    assert one.found.startswith("1 model, 1.5 GiB, in")


def test_our_own_cache_tells_of_prepared_data(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("QDORA_FAST_CACHE", str(tmp_path))
    (data,) = hub.own_cache()
    assert data.found.startswith("none kept yet")
    (tmp_path / "data" / "entry").mkdir(parents=True)
    (tmp_path / "data" / ".being-built").mkdir()
    (data,) = hub.own_cache()
    assert data.found.startswith("1 kept, 0.0 GiB")


def test_a_damaged_demo_base_is_named_with_its_fix(tmp_path: Path, monkeypatch) -> None:
    from qdora_fast.data.demo import base
    from qdora_fast.system.install import installation

    (whole,) = hub.demo()
    assert whole.status == "ok"
    monkeypatch.setattr(base, "FOLDER", tmp_path)
    (damaged,) = hub.demo()
    assert damaged.status == "wrong"
    assert damaged.found.endswith(f"brings it back:\n  {installation().repairs(tmp_path)}")
