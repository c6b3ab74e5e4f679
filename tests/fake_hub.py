"""The part of the Hugging Face hub's HTTP API that pushing and loading need, on loopback.

Made after the requests of huggingface_hub. It keeps whole trees of files by commit, as git does.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = re.compile(r".*\.(onnx|safetensors|npz)$")  # as .gitattributes of a new repository
TOKEN = "hf_test"


class FakeHub:
    """A hub in a thread, `with FakeHub() as hub`; `hub.environment` is what its clients need.

    Attributes:
        repositories: `{id: {"private": bool, "branches": {name: commit}}}`.
        commits: `{commit: {path: content}}`.
        requests: Method and path of each request, in order.
        faults: `{(method, part of the path): status}`; status 0 drops the connection. Each is used once.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, Any]] = {}
        self.commits: dict[str, dict[str, bytes]] = {}
        self.messages: list[str] = []
        self.requests: list[tuple[str, str]] = []
        self.faults: dict[tuple[str, str], int] = {}
        self.large: dict[str, bytes] = {}

    def __enter__(self) -> FakeHub:
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home: Any, token: str | None = TOKEN) -> dict[str, str]:
        """Of a client whose cache and login are in `home`."""
        names = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": token or "",
        }
        return {**names, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}

    def tree(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """The files of a repository at a branch or commit."""
        return self.commits[self.repositories[name]["branches"].get(revision, revision)]

    def commit(self, name: str, branch: str, tree: dict[str, bytes], message: str = "") -> str:
        parts = [f"{len(self.commits)}"] + [
            f"{path}{hashlib.sha256(x).hexdigest()}" for path, x in tree.items()
        ]
        commit = hashlib.sha1("".join(parts).encode()).hexdigest()
        self.commits[commit] = tree
        self.repositories[name]["branches"][branch] = commit
        self.messages.append(message)
        return commit


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        for (method, part), status in [*self.hub.faults.items()]:
            if method == self.command and part in path:
                del self.hub.faults[method, part]
                if not status:
                    self.close_connection = True
                    self.connection.close()
                    return
                self._send(status, {"error": f"fault {status}"})
                return
        for method, pattern, answer in ROUTES:
            if self.command in method and (found := re.fullmatch(pattern, path)):
                answer(self, body, **found.groupdict())
                return
        self._send(404, {"error": "no such page"})

    def _send(self, status: int, value: Any = None, content: bytes | None = None, **headers: str) -> None:
        data = json.dumps(value).encode() if content is None else content
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _may(self, name: str, *, write: bool = False) -> bool:
        """Whether the repository is there for this client; answers if it is not."""
        repository = self.hub.repositories.get(name)
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if write and not known:
            self._send(401, {"error": "Invalid username or password."})
        elif repository is None or (repository["private"] and not known):
            self._send(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        else:
            return True
        return False

    def _at(self, name: str, revision: str) -> str | None:
        branches = self.hub.repositories[name]["branches"]
        commit = branches.get(revision, revision)
        if commit not in self.hub.commits:
            self._send(404, {"error": f"Invalid rev id: {revision}"}, X_Error_Code="RevisionNotFound")
            return None
        return str(commit)

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._send(401, {"error": "Invalid username or password."})
        elif name in self.hub.repositories:
            self._send(409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"})
        else:
            self.hub.repositories[name] = {"private": bool(asked.get("private")), "branches": {}}
            self.hub.commit(name, "main", {".gitattributes": b"*.onnx filter=lfs\n"}, "initial commit")
            self._send(200, {"url": f"{self.hub.url}/{name}"})

    def info(self, body: bytes, name: str, revision: str = "main") -> None:
        if self._may(name) and (commit := self._at(name, revision)):
            files = [{"rfilename": path} for path in self.hub.commits[commit]]
            private = self.hub.repositories[name]["private"]
            self._send(200, {"id": name, "sha": commit, "private": private, "siblings": files})

    def branch(self, body: bytes, name: str, branch: str) -> None:
        if self._may(name, write=True):
            branches = self.hub.repositories[name]["branches"]
            if branch in branches:
                self._send(409, {"error": "Reference already exists"})
            else:
                branches[branch] = branches["main"]
                self._send(200, {})

    def validate(self, body: bytes) -> None:
        self._send(200, {"errors": [], "warnings": []})

    def preupload(self, body: bytes, name: str, revision: str) -> None:
        if self._may(name, write=True):
            modes = [
                {"path": file["path"], "uploadMode": "lfs" if LARGE.match(file["path"]) else "regular"}
                for file in json.loads(body)["files"]
            ]
            self._send(200, {"files": [{**mode, "shouldIgnore": False, "oid": None} for mode in modes]})

    def batch(self, body: bytes, name: str) -> None:
        if self._may(name, write=True):
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            self._send(200, {"transfer": "basic", "objects": objects})

    def store(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() == oid:
            self.hub.large[oid] = body
            self._send(200, {})
        else:
            self._send(400, {"error": "the content does not match its oid"})

    def add(self, body: bytes, name: str, revision: str) -> None:
        if not self._may(name, write=True) or not (commit := self._at(name, revision)):
            return
        tree, message = dict(self.hub.commits[commit]), ""
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "file":
                tree[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                tree[value["path"]] = self.hub.large[value["oid"]]
        new = self.hub.commit(name, revision, tree, message)
        self._send(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{new}", "commitOid": new})

    def resolve(self, body: bytes, name: str, revision: str, file: str) -> None:
        if not self._may(name) or not (commit := self._at(name, revision)):
            return
        content = self.hub.commits[commit].get(file)
        if content is None:
            self._send(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
            return
        digest = hashlib.sha256(content).hexdigest()
        self._send(200, content=content, ETag=f'"{digest}"', X_Repo_Commit=commit)


_NAME, _REV = r"(?P<name>[^/]+/[^/]+)", r"(?P<revision>[^/]+)"
ROUTES = (
    ("POST", r"/api/repos/create", _Handler.create),
    ("POST", r"/api/validate-yaml", _Handler.validate),
    ("POST", rf"/api/models/{_NAME}/branch/(?P<branch>.+)", _Handler.branch),
    ("POST", rf"/api/models/{_NAME}/preupload/{_REV}", _Handler.preupload),
    ("POST", rf"/api/models/{_NAME}/commit/{_REV}", _Handler.add),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", _Handler.store),
    ("GET", rf"/api/models/{_NAME}", _Handler.info),
    ("GET", rf"/api/models/{_NAME}/revision/{_REV}", _Handler.info),
    (("GET", "HEAD"), rf"/{_NAME}/resolve/{_REV}/(?P<file>.+)", _Handler.resolve),
)
