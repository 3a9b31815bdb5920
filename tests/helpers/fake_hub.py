"""The calls of the Hugging Face hub that `push` and `pull` make, answered by a server on this machine."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

LARGE = (".safetensors", ".gguf", ".pt")


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    branches: dict[str, dict[str, bytes]] = field(default_factory=dict)
    commits: int = 0


@dataclass
class Hub:
    """What lies there, and what was asked."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    """Large files that have arrived, by SHA-256."""
    uploads_left: int | None = None
    """Uploads of large files that are taken before the connection breaks; None: all."""
    spoil: str | None = None
    """The name of a file that is stored as something else."""
    tokens: set[str | None] = field(default_factory=set)
    uploaded: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def _json(self, value: Any, status: int = 200, **headers: str) -> None:
            content = json.dumps(value).encode()
            self.send_response(status)
            usual = {"Content-Length": str(len(content)), "Content-Type": "application/json"}
            for name, text in {**usual, **headers}.items():
                self.send_header(name.replace("_", "-"), text)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def _repository(self, name: str) -> Repository | None:
            found = hub.repositories.get(name)
            if found is None:
                self._json({"error": "not found"}, 404, X_Error_Code="RepoNotFound")
            return found

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = [unquote(each) for each in urlsplit(self.path).path.strip("/").split("/")]
            hub.asked.append(f"{self.command} /{'/'.join(path)}")
            hub.tokens.add(self.headers.get("Authorization"))
            api = path[:2] == ["api", "models"]
            owner = path[2:4] if api else path[:2]
            repository = self._repository("/".join(owner))
            if repository is None:
                return
            if api and path[4:5] == ["tree"]:
                self._json([_listed(name, content) for name, content in self._files(repository, path[5]).items()])
            elif api:
                files = self._files(repository, path[5] if path[4:5] == ["revision"] else "main")
                sha = hashlib.sha1(json.dumps({name: _blob(each) for name, each in files.items()}).encode()).hexdigest()
                repository.branches[sha] = dict(files)
                self._json(
                    {"id": "/".join(owner), "private": repository.private, "sha": sha, "siblings": [], "tags": []}
                )
            else:
                content = self._files(repository, path[3]).get("/".join(path[4:]))
                if content is None:
                    self._json({"error": "no entry"}, 404, X_Error_Code="EntryNotFound")
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.send_header("ETag", f'"{_blob(content)}"')
                self.send_header("X-Repo-Commit", path[3])
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content)

        def _files(self, repository: Repository, revision: str) -> dict[str, bytes]:
            return repository.branches.get(revision, repository.files)

        def do_PUT(self) -> None:
            content = self._body()
            if hub.uploads_left == 0:
                self._json({"error": "broken"}, 400)
                return
            hub.uploads_left = None if hub.uploads_left is None else hub.uploads_left - 1
            sha = self.path.rsplit("/", 1)[-1]
            hub.blobs[sha] = content
            hub.uploaded.append(sha)
            self._json({})

        def do_POST(self) -> None:
            path = [unquote(each) for each in urlsplit(self.path).path.strip("/").split("/")]
            hub.asked.append(f"POST /{'/'.join(path)}")
            hub.tokens.add(self.headers.get("Authorization"))
            body = self._body()
            if path == ["api", "repos", "create"]:
                asked = json.loads(body)
                name = f"{asked.get('organization') or 'me'}/{asked['name']}"
                private = asked.get("visibility") == "private" or asked.get("private") is True
                hub.repositories[name] = Repository(private)
                self._json({"url": f"http://{self.headers['Host']}/{name}"})
            elif path[-3:] == ["lfs", "objects", "batch"]:
                self._json(
                    {"transfer": "basic", "objects": [self._wanted(each) for each in json.loads(body)["objects"]]}
                )
            elif path[-1] == "validate-yaml":
                self._json({"errors": [], "warnings": []})
            elif path[4] == "preupload":
                files = [each["path"] for each in json.loads(body)["files"]]
                modes = ["lfs" if each.endswith(LARGE) else "regular" for each in files]
                self._json(
                    {
                        "files": [
                            {"path": each, "uploadMode": mode, "shouldIgnore": False}
                            for each, mode in zip(files, modes, strict=True)
                        ]
                    }
                )
            elif path[4] == "branch":
                repository = hub.repositories["/".join(path[2:4])]
                repository.branches.setdefault(path[5], dict(repository.files))
                self._json({})
            else:
                self._commit(hub.repositories["/".join(path[2:4])], path[5], body)

        def _wanted(self, asked: dict[str, Any]) -> dict[str, Any]:
            address = f"http://{self.headers['Host']}/lfs/{asked['oid']}"
            known = asked["oid"] in hub.blobs
            return {**asked, **({} if known else {"actions": {"upload": {"href": address, "header": {}}}})}

        def _commit(self, repository: Repository, revision: str, body: bytes) -> None:
            files = self._files(repository, revision)
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = hub.blobs[value["oid"]]
                elif line["key"] == "deletedFile":
                    del files[value["path"]]
            if hub.spoil:
                files[hub.spoil] = files[hub.spoil][:-1] + b"?"
            repository.commits += 1
            oid = f"{repository.commits:040x}"
            repository.branches[oid] = dict(files)
            self._json(
                {
                    "commitUrl": f"http://{self.headers['Host']}/me/tuned/commit/{oid}",
                    "commitOid": oid,
                    "pullRequestUrl": None,
                }
            )

        def log_message(self, *_: object) -> None:
            """Nothing on the terminal."""

    return Handler


def _listed(name: str, content: bytes) -> dict[str, Any]:
    large = {"lfs": {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}}
    return {
        "type": "file",
        "path": name,
        "size": len(content),
        "oid": _blob(content),
        **(large if name.endswith(LARGE) else {}),
    }


@contextmanager
def fake_hub(patch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The library's endpoint, until the block ends."""
    from huggingface_hub import constants

    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    patch.setattr(constants, "ENDPOINT", endpoint)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    patch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
