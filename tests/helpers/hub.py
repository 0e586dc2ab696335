"""A mock Hugging Face hub on loopback: the endpoints that huggingface_hub calls, and a log."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from urllib.parse import unquote, urlsplit

from tests.helpers.http_servers import listening

LARGE = (".safetensors", ".bin", ".pt", ".gguf", ".onnx")  # kept elsewhere, as with Git LFS
Files = Mapping[str, bytes]


@dataclass
class Repo:
    """One model: commits, what its branches are, and who may read it."""

    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    token: str | None = None  # whoever has another one gets `refusal`
    refusal: tuple[int, str] = (401, "RepoNotFound")

    def commit(self, files: Files, branch: str = "main") -> str:
        """Add a commit to a branch; return its hash."""
        text = json.dumps({n: hashlib.sha256(b).hexdigest() for n, b in files.items()})
        sha = hashlib.sha1(f"{len(self.commits)}{text}".encode()).hexdigest()
        self.commits[sha], self.branches[branch] = dict(files), sha
        return sha

    def resolve(self, revision: str) -> str | None:
        """Return the commit that a branch or a hash names."""
        sha = self.branches.get(revision, revision)
        return sha if sha in self.commits else None


@dataclass
class Hub:
    """The models of a hub, and every file whose bytes were sent, in order."""

    url: str
    other_url: str  # of large files: another host, as far as a client can tell
    repos: dict[str, Repo]
    sent: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)  # method and path

    def forget(self) -> None:
        """Begin to count again."""
        self.sent.clear()
        self.requests.clear()


class _Answer(Exception):
    """A refusal, with the code by which huggingface_hub tells the kinds apart."""

    def __init__(self, status: int, code: str) -> None:
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        try:
            if parts[:2] == ["api", "models"]:
                self._api(parts[2:])
            elif parts[0] == "cdn":
                signed = self.hub.repos["/".join(parts[1:3])]  # a link that needs no token
                self._send_file("/".join(parts[4:]), signed.commits[parts[3]], {})
            else:
                self._resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        except _Answer as refusal:
            self._send(refusal.status, b"{}", {"X-Error-Code": refusal.code})

    def _files(self, model: str, revision: str) -> tuple[str, Files]:
        repo = self.hub.repos.get(model)
        if repo is None:
            raise _Answer(404, "RepoNotFound")
        if repo.token and self.headers.get("Authorization") != f"Bearer {repo.token}":
            raise _Answer(*repo.refusal)
        sha = repo.resolve(revision)
        if sha is None:
            raise _Answer(404, "RevisionNotFound")
        return sha, repo.commits[sha]

    def _api(self, parts: list[str]) -> None:
        model, rest = "/".join(parts[:2]), parts[2:]
        sha, files = self._files(model, rest[1] if len(rest) > 1 else "main")
        if rest[:1] == ["tree"]:
            self._send_json([_entry(name, data) for name, data in files.items()])
            return
        sizes = [{"rfilename": n, "size": len(d), "blobId": _sha1(d)} for n, d in files.items()]
        self._send_json({"_id": "1", "id": model, "modelId": model, "sha": sha, "private": False,
                         "tags": [], "downloads": 0, "likes": 0, "siblings": sizes})  # fmt: skip

    def _resolve(self, model: str, revision: str, name: str) -> None:
        sha, files = self._files(model, revision)
        if name not in files:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
            return
        data = files[name]
        if name.endswith(LARGE):
            place = f"{self.hub.other_url}/cdn/{model}/{sha}/{name}"
            digest = hashlib.sha256(data).hexdigest()
            self._send(302, b"", {"Location": place, "X-Repo-Commit": sha, "X-Linked-Etag":
                                  f'"{digest}"', "X-Linked-Size": str(len(data))})  # fmt: skip
        else:
            self._send_file(name, files, {"X-Repo-Commit": sha, "ETag": f'"{_sha1(data)}"'})

    def _send_file(self, name: str, files: Files, headers: Mapping[str, str]) -> None:
        data, status = files[name], 200
        if asked := self.headers.get("Range"):
            begin, _, end = asked.removeprefix("bytes=").partition("-")
            status = 206
            headers = {**headers, "Content-Range": f"bytes {begin}-{end}/{len(data)}"}
            data = data[int(begin) : int(end) + 1 if end else None]
        if self.command == "GET":
            self.hub.sent.append(name)
        self._send(status, data, {**headers, "Accept-Ranges": "bytes"})

    def _send_json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, data: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)


def _sha1(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def _entry(name: str, data: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "oid": _sha1(data), "size": len(data), "path": name}
    if name.endswith(LARGE):
        digest = hashlib.sha256(data).hexdigest()
        entry["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 134}
    return entry


@contextmanager
def serve_hub(repos: dict[str, Repo]) -> Iterator[Hub]:
    """Serve models on a free port of loopback."""
    handler = type("Handler", (_Handler,), {})
    with listening(handler) as port:
        hub = Hub(f"http://127.0.0.1:{port}", f"http://localhost:{port}", repos)
        handler.hub = hub  # type: ignore[attr-defined]
        yield hub
