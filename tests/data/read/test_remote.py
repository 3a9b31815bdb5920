from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from web_server import Web, web_server

from qdora_fast.config.data import SourceSettings
from qdora_fast.config.loader import dump_config, make_config
from qdora_fast.data.dataset import prepare
from qdora_fast.data.read.readers import RawRow
from qdora_fast.data.read.remote import fetched_once
from qdora_fast.data.read.sources import fingerprint, open_source
from qdora_fast.system.errors import DataError
from qdora_fast.system.offline import offline

ROW = b'{"text": "%d"}\n'


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Web]:
    monkeypatch.setenv("QDORA_FAST_CACHE", str(tmp_path / "cache"))
    with web_server() as served:
        yield served


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    monkeypatch.setenv("QDORA_FAST_CACHE", str(tmp_path / "cache"))
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def source(path: str, **more: Any) -> SourceSettings:
    return SourceSettings.model_validate({"path": path, "format": "text", **more})


def texts(path: str, **more: Any) -> list[str]:
    return [raw.row["text"] for raw in open_source(source(path, **more)).rows() if isinstance(raw, RawRow)]


def test_a_file_is_fetched_once_and_again_when_it_changed(web: Web, capsys: pytest.CaptureFixture[str]) -> None:
    web.objects["/a/rows.jsonl"] = ROW % 1
    url = f"{web.url}/a/rows.jsonl"
    before = fingerprint(source(url))
    assert texts(url) == ["1"]
    assert [each for each in web.asked if each.startswith("GET")] == ["GET /a/rows.jsonl"]
    said = capsys.readouterr().err
    assert "fetching 1 file" in said and "at most 64 GiB" in said and "unchanged, read from the copy of" in said
    web.objects["/a/rows.jsonl"] = ROW % 2
    assert texts(url) == ["2"]
    assert fingerprint(source(url)) != before
    web.objects["/a/rows.jsonl"] = ROW % 1
    assert fingerprint(source(url)) == before, "the version is the content, wherever and whenever it came from"


def test_a_row_is_named_by_its_file_and_the_report_by_its_url(web: Web) -> None:
    web.objects["/my%20rows.jsonl.gz"] = gzip.compress(ROW % 1 + b"{broken\n")
    opened = open_source(source(f"{web.url}/my%20rows.jsonl.gz?v=1"))
    assert [row.source for row in opened.rows()] == [f"{web.url}/my%20rows.jsonl.gz?v=1:{line}" for line in (1, 2)]
    assert opened.report().files == ((f"{web.url}/my%20rows.jsonl.gz?v=1", 2),)


def test_what_has_no_version_is_fetched_each_time_but_once_within_a_start(web: Web) -> None:
    web.etags = False
    web.objects["/rows.jsonl"] = ROW % 1
    url = f"{web.url}/rows.jsonl"
    assert texts(url) == texts(url) == ["1"]
    assert sum(each.startswith("GET") for each in web.asked) == 2
    with fetched_once():
        before = fingerprint(source(url))
        web.objects["/rows.jsonl"] = ROW % 2
        assert texts(url) == ["1"] and fingerprint(source(url)) == before


@pytest.mark.parametrize("cut", [1, 14])
def test_a_cut_download_is_an_error_that_loses_nothing(web: Web, cut: int) -> None:
    web.objects["/rows.jsonl"] = ROW % 1
    url = f"{web.url}/rows.jsonl"
    assert texts(url) == ["1"]
    web.objects["/rows.jsonl"], web.cut = ROW % 22, cut
    with pytest.raises(DataError, match="the earlier copies stay. Try again"):
        texts(url)
    with offline():
        assert texts(url) == ["1"]
    web.cut = 0
    assert texts(url) == ["22"]


def test_offline_reads_the_copy_or_refuses(web: Web, capsys: pytest.CaptureFixture[str]) -> None:
    web.objects["/rows.jsonl"] = ROW % 1
    with offline(), pytest.raises(DataError, match="never fetched; run once without --offline"):
        texts(f"{web.url}/rows.jsonl")
    assert web.asked == []
    texts(f"{web.url}/rows.jsonl")
    web.asked.clear()
    with offline():
        assert texts(f"{web.url}/rows.jsonl") == ["1"]
    assert web.asked == [] and "offline, read from the copy of" in capsys.readouterr().err


def test_a_damaged_copy_is_fetched_again(web: Web, tmp_path: Path) -> None:
    web.objects["/rows.jsonl"] = ROW % 1
    texts(f"{web.url}/rows.jsonl")
    (copy,) = (tmp_path / "cache").rglob("rows.jsonl")
    copy.write_bytes(ROW % 7)
    assert texts(f"{web.url}/rows.jsonl") == ["1"]


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (404, "nothing there; check the address"),
        (403, "no access .the server answers 403"),
        (500, "could not be fetched"),
    ],
)
def test_what_the_server_refuses_is_said(web: Web, status: int, message: str) -> None:
    web.status = status
    with pytest.raises(DataError, match=message):
        texts(f"{web.url}/rows.jsonl")


def test_nobody_answers(web: Web) -> None:
    with pytest.raises(DataError, match="could not be fetched .*--offline"):
        texts("http://127.0.0.1:9/rows.jsonl")


def test_credentials_are_sent_and_neither_kept_nor_printed(
    web: Web, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    web.objects["/rows.jsonl"] = ROW % 1
    host = web.url.removeprefix("http://")
    given = f"http://ann:s3cretpassw0rd@{host}/rows.jsonl?part=1&sig=s1gnatureabc123"
    config = make_config({"model": {"name": "demo"}, "data": {"path": given, "format": "text"}})
    assert config.data.path == f"http://{host}/rows.jsonl?part=1"
    assert "s3cret" not in dump_config(config) and "s1gnature" not in dump_config(config)
    assert texts(config.data.path) == ["1"]
    assert "sig=s1gnatureabc123" in web.asked[-1] and web.logins[-1] == "Basic YW5uOnMzY3JldHBhc3N3MHJk"
    web.status = 403
    with pytest.raises(DataError) as refused:
        texts(config.data.path)
    kept = "".join(file.read_text() for file in (tmp_path / "cache").rglob("*") if file.is_file())
    for secret in ("s3cret", "s1gnature"):
        assert secret not in capsys.readouterr().err + str(refused.value) + kept


@pytest.mark.parametrize("page", [b"<!DOCTYPE html><html>", b"\n <html lang=en>"])
def test_a_web_page_is_no_data(web: Web, page: bytes) -> None:
    web.objects["/blob/rows.jsonl"] = page
    with pytest.raises(DataError, match="a web page, not the file; take the link that downloads it"):
        texts(f"{web.url}/blob/rows.jsonl")


def test_an_object_without_an_ending_is_refused_before_it_is_fetched(web: Web) -> None:
    web.objects["/download"] = ROW % 1
    with pytest.raises(DataError, match="does not say what kind of file"):
        texts(f"{web.url}/download?id=3")
    with pytest.raises(DataError, match="xlsx"):
        texts(f"{web.url}/rows.xlsx")
    with pytest.raises(DataError, match="folders of a web server cannot be listed"):
        texts(f"{web.url}/rows/")
    assert not [each for each in web.asked if each == "GET /download?id=3"]


def test_a_pattern_on_a_web_server_takes_the_links_of_its_index(web: Web) -> None:
    web.objects |= {
        "/rows/": b'<html><a href="b.jsonl">b</a> <a href="a.jsonl">a</a> <a href="notes.pdf">notes</a></html>',
        "/rows/a.jsonl": ROW % 1,
        "/rows/b.jsonl": ROW % 2,
    }
    assert texts(f"{web.url}/rows/*.jsonl") == ["1", "2"]


def test_a_folder_and_a_pattern_are_read_like_a_folder_here(memory: Any) -> None:
    memory.pipe({"/bucket/train.jsonl": ROW % 1, "/bucket/more.jsonl": ROW % 2, "/bucket/test.jsonl": ROW % 3})
    memory.pipe("/bucket/README.md", b"about")
    opened = open_source(source("memory://bucket"))
    assert [raw.row["text"] for raw in opened.rows() if isinstance(raw, RawRow)] == ["2", "1"]
    report = opened.report()
    assert [name for name, _ in report.files] == ["memory://bucket/more.jsonl", "memory://bucket/train.jsonl"]
    assert report.skipped == ("README.md",) and report.other_splits == (("test.jsonl", "test"),)
    assert texts("memory://bucket/te*.jsonl", split="test") == ["3"]
    memory.pipe("/bucket/train.jsonl", ROW % 9)
    assert texts("memory://bucket") == ["2", "9"]
    with pytest.raises(DataError, match="nothing there"):
        texts("memory://bucket/*.csv")


def test_a_name_that_leads_out_is_refused(memory: Any, tmp_path: Path) -> None:
    memory.store["/bucket/../../evil.jsonl"] = memory.open("/x.jsonl", "wb")
    with pytest.raises(DataError, match="does not lie below it"):
        texts("memory://bucket")
    assert not list(tmp_path.rglob("evil.jsonl"))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("s3://bucket/rows.jsonl", r'run `.*"qdora-fast\[s3\]=='),
        ("gs://bucket/rows.jsonl", r'run `.*"qdora-fast\[gcs\]=='),
        ("az://box/rows.jsonl", r'run `.*"qdora-fast\[azure\]=='),
        ("sftp://host/rows.jsonl", "rows are not fetched by `sftp://`.*Download the file"),
        ("htps://host/rows.jsonl", "rows are not fetched by `htps://`"),
        ("file:///etc/rows.jsonl", "rows are not fetched by `file://`"),
        ("https:/host/rows.jsonl", "one slash too few for a URL; write https://host/rows.jsonl"),
    ],
)
def test_schemes_that_are_not_there(path: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        texts(path)


def test_rows_held_out_and_sources_come_from_urls_too(web: Web) -> None:
    web.objects |= {
        f"/{name}.jsonl": b"".join(
            b'{"prompt": "%s %d", "completion": "number %d"}\n' % (name.encode(), n, n) for n in range(20)
        )
        for name in ("one", "two", "mine")
    }
    data = {"sources": [{"path": f"{web.url}/one.jsonl"}, {"path": f"{web.url}/two.jsonl"}], "dedup": {"near": False}}
    config = make_config({"model": {"name": "demo"}, "data": {**data, "held_out_path": f"{web.url}/mine.jsonl"}})
    prepared = prepare(config.data, seed=0)
    assert len(prepared.held_out) == 20
    assert sum(each.startswith("GET") for each in web.asked) == 3
