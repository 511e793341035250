"""A small Hub on loopback that speaks its protocol: repositories, branches, LFS, commits, files by redirect and range.
Storage of large files is another origin (localhost instead of 127.0.0.1), as on the Hub, where it is a CDN."""

import base64
import hashlib
import http.server
import json
import re
import threading
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_aTokenThatNobodyShallSee"
READ_ONLY = "hf_aTokenThatMayOnlyRead"
Files = dict[str, tuple[bytes, bool]]
"""Path -> content, and whether it is stored large."""


@dataclass
class Repository:
    private: bool = False
    gated: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Files] = field(default_factory=dict)

    def commit(self, branch: str, changed: Files) -> str:
        files = {**self.commits.get(self.branches.get(branch, ""), {}), **changed}
        tree = sorted((path, git_oid(data)) for path, (data, _) in files.items())
        sha = hashlib.sha1(repr((len(self.commits), branch, tree)).encode()).hexdigest()
        self.commits[sha], self.branches[branch] = files, sha
        return sha

    def files(self, revision: str) -> tuple[str, Files] | None:
        sha = self.branches.get(revision, revision)
        return (sha, self.commits[sha]) if sha in self.commits else None


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Hub:
    """`requests` are (method, path, headers) as they came; faults are set by tests."""

    def __init__(self) -> None:
        self.clear()
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.hub = self  # type: ignore[attr-defined]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.port = self.server.server_address[1]
        self.url, self.storage = (f"http://{host}:{self.port}" for host in ("127.0.0.1", "localhost"))

    def clear(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.answers: dict[str, list[int]] = {}
        """Beginning of 'METHOD path' -> statuses to answer with instead, one after another."""
        self.cuts = 0
        """Number of downloads of large files to break off, each at three quarters."""
        self.corrupt: bytes | None = None
        """Bytes that are served instead of those of large files."""


@dataclass
class Refused(Exception):
    status: int
    message: str
    code: str = ""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        return self.server.hub  # type: ignore[attr-defined, no-any-return]

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, {key.lower(): value for key, value in self.headers.items()}))
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = f"{self.command} {path}"
        for start, statuses in self.hub.answers.items():
            if request.startswith(start) and statuses:
                return self.send(statuses.pop(0), b"out of order")
        action, found = next((action, found) for pattern, action in ROUTES if (found := re.fullmatch(pattern, request)))
        try:
            action(self, *found.groups())
        except Refused as refused:
            named = {"X_Error_Code": refused.code} if refused.code else {}
            body = json.dumps({"error": refused.message}).encode()
            self.send(refused.status, body, X_Error_Message=refused.message, **named)

    do_HEAD = do_POST = do_PUT = do_GET

    def send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, value: Any, status: int = 200) -> None:
        self.send(status, json.dumps(value).encode(), Content_Type="application/json")

    def token(self, *, write: bool = False) -> str | None:
        """The token. Refuses, as the Hub does, who has one that it does not know or that may not write, or none."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        if token not in (TOKEN, READ_ONLY, None):
            raise Refused(401, "Invalid credentials in Authorization header")
        if write and token is None:
            raise Refused(401, "Invalid username or password.")
        if write and token == READ_ONLY:
            raise Refused(403, "You don't have the rights to do this")
        return token

    def repository(self, name: str, *, write: bool = False) -> Repository:
        token, found = self.token(write=write), self.hub.repositories.get(name)
        if found is None or (found.private and token != TOKEN):
            raise Refused(404 if token else 401, "Repository not found", "RepoNotFound")
        return found

    def at(self, name: str, revision: str | None) -> tuple[Repository, str, Files]:
        repository = self.repository(name)
        found = repository.files(revision or "main")
        if found is None:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repository, *found

    def create(self) -> None:
        self.token(write=True)
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        if not name.startswith("acme/"):
            raise Refused(403, "You don't have the rights to create a model under this namespace")
        private = asked.get("private", asked.get("visibility") == "private")
        self.hub.repositories[name] = repository = Repository(private=private)
        repository.commit("main", {".gitattributes": (b"*.safetensors filter=lfs\n", False)})
        self.json({"url": f"{self.hub.url}/{name}", "name": name})

    def info(self, name: str, revision: str | None) -> None:
        repository, sha, files = self.at(name, revision)
        siblings = [
            {"rfilename": path, "size": len(data), "blobId": git_oid(data)}
            | ({"lfs": {"sha256": sha256(data), "size": len(data), "pointerSize": 134}} if large else {})
            for path, (data, large) in files.items()
        ]
        told = {"id": name, "sha": sha, "private": repository.private, "gated": repository.gated and "manual"}
        self.json({**told, "siblings": siblings, "tags": []})

    def branch(self, name: str, branch: str) -> None:
        repository = self.repository(name, write=True)
        if branch in repository.branches:
            raise Refused(409, "Reference already exists")
        repository.branches[branch] = repository.branches["main"]
        self.json({}, 201)

    def preupload(self, name: str, revision: str) -> None:
        _, there = self.repository(name, write=True).files(revision) or ("", {})

        def mode(file: dict[str, Any]) -> dict[str, Any]:
            large = file["path"].endswith(".safetensors")
            data = there.get(file["path"], (None, False))[0]
            oid = {} if data is None else {"oid": sha256(data) if large else git_oid(data)}
            return {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, **oid}

        self.json({"files": [mode(file) for file in json.loads(self.body)["files"]]})

    def batch(self, name: str) -> None:
        self.repository(name, write=True)
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.hub.storage}/upload/{each['oid']}"}}}
            for each in json.loads(self.body)["objects"]
        ]
        self.json({"transfer": "basic", "objects": objects})

    def upload(self, oid: str) -> None:
        self.hub.large[oid] = self.body
        self.send(200)

    def commit(self, name: str, branch: str) -> None:
        repository = self.repository(name, write=True)
        changed: Files = {}
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                changed[value["path"]] = base64.b64decode(value["content"]), False
            elif line["key"] == "lfsFile":
                changed[value["path"]] = self.hub.large[value["oid"]], True
        sha = repository.commit(branch, changed)
        self.json({"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{name}/commit/{sha}"})

    def resolve(self, name: str, revision: str, path: str) -> None:
        repository, sha, files = self.at(name, revision)
        if repository.gated and self.token() != TOKEN:
            raise Refused(403, f"Access to model {name} is restricted. Visit it to ask for access.", "GatedRepo")
        if path not in files:
            return self.send(404, X_Repo_Commit=sha, X_Error_Code="EntryNotFound", X_Error_Message="Entry not found")
        data, large = files[path]
        if not large:
            return self.send(200, data, ETag=f'"{git_oid(data)}"', X_Repo_Commit=sha)
        linked = {"X_Linked_Etag": f'"{sha256(data)}"', "X_Linked_Size": str(len(data)), "X_Repo_Commit": sha}
        self.hub.large[sha256(data)] = data
        self.send(302, Location=f"{self.hub.storage}/storage/{sha256(data)}?signature=secret", **linked)

    def storage(self, oid: str) -> None:
        data = self.hub.large[oid] if self.hub.corrupt is None else self.hub.corrupt
        start = int(re.sub(r"bytes=(\d+)-.*", r"\1", self.headers.get("Range") or "bytes=0-"))
        status, ranged = (206, {"Content_Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}) if start else (200, {})
        end = len(data)
        if self.hub.cuts:
            self.hub.cuts -= 1
            end = max(start, len(data) * 3 // 4)
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data) - start), "ETag": f'"{oid}"', **ranged}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data[start:end])
        self.close_connection = end < len(data)


NAME = "([^/]+/[^/]+)"
ANY = "((?:datasets/)?[^/]+/[^/]+)"
ROUTES = (
    (r"POST /api/repos/create", Handler.create),
    (r"POST /api/validate-yaml", lambda handler: handler.json({"errors": [], "warnings": []})),
    (rf"GET /api/(?:models/)?{ANY}(?:/revision/(.+))?", Handler.info),
    (rf"POST /api/models/{NAME}/branch/(.+)", Handler.branch),
    (rf"POST /api/models/{NAME}/preupload/(.+)", Handler.preupload),
    (rf"POST /api/models/{NAME}/commit/(.+)", Handler.commit),
    (rf"POST /{NAME}\.git/info/lfs/objects/batch", Handler.batch),
    (r"PUT /upload/(\w+)", Handler.upload),
    (rf"(?:HEAD|GET) /{ANY}/resolve/([^/]+)/(.+)", Handler.resolve),
    (r"GET /storage/(\w+)", Handler.storage),
)
