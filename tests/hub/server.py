"""A small Hub on loopback: enough of the real one for huggingface_hub, transformers and ``hf``, none of them changed.

Repositories with immutable commits, branches, tags and pull requests; small files travel in the commit itself, weights
through LFS, and are downloaded from another host name, as from the real Hub's CDN. Contents lie in a folder under their
hash. :class:`Faults` makes single calls fail the way that networks and servers do.

What is missing: Xet (clients set ``HF_HUB_DISABLE_XET=1``), discussions, gated repositories, uploads in several parts.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

BY_LFS = re.compile(r"\.(safetensors|bin|npz|png|zip)$")
MEGABYTES_BY_LFS = 10
CHUNK = 2**14


class Refused(Exception):
    """A call that is answered with an error: status, the server's words, and the code that clients go by."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str):
        super().__init__(message)
        self.status, self.message = status, message
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **headers}


class Cut(Exception):
    """The connection is to be closed at once."""


@dataclass(frozen=True)
class User:
    """Who a token stands for: ``role`` is that of the token, read or write."""

    name: str
    organisations: tuple[str, ...] = ()
    role: str = "write"

    def owns(self, repo_id: str) -> bool:
        return repo_id.partition("/")[0] in (self.name, *self.organisations)


@dataclass(frozen=True)
class File:
    """A file of a commit: its git hash, and where it is stored by LFS the SHA-256 of its content."""

    oid: str
    size: int
    sha256: str | None = None

    @classmethod
    def of(cls, content: bytes) -> File:
        return cls(hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(), len(content))

    @classmethod
    def by_lfs(cls, sha256: str, size: int) -> File:
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
        return cls(cls.of(pointer.encode()).oid, size, sha256)

    @property
    def etag(self) -> str:
        return self.sha256 or self.oid

    def described(self, path: str) -> dict[str, Any]:
        lfs = {"oid": self.sha256, "size": self.size, "pointerSize": 134}
        return {"type": "file", "path": path, "oid": self.oid, "size": self.size} | (
            {"lfs": lfs} if self.sha256 else {}
        )


@dataclass(frozen=True)
class Commit:
    sha: str
    parent: Commit | None
    title: str
    author: str
    date: str
    files: dict[str, File]


class Repository:
    """Commits, which never change, names that point to them, and a folder with the contents."""

    def __init__(self, kind: str, repo_id: str, private: bool, folder: Path):
        self.kind, self.repo_id, self.private, self.folder = kind, repo_id, private, folder
        folder.mkdir(parents=True, exist_ok=True)
        self.commits: dict[str, Commit] = {}
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.pull_requests: dict[str, str] = {}

    @property
    def page(self) -> str:
        """Path of its page: where datasets and spaces differ from models."""
        return f"/{self.repo_id}" if self.kind == "model" else f"/{self.kind}s/{self.repo_id}"

    @property
    def head(self) -> Commit:
        return self.find("main")

    def find(self, revision: str) -> Commit:
        names = {**self.tags, **self.branches, **self.pull_requests}
        found = self.commits.get(names.get(revision, revision))
        if found is None:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found

    def add(self, files: dict[str, File], parent: Commit | None, title: str, author: str) -> Commit:
        date = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        content = {name: asdict(file) for name, file in sorted(files.items())}
        text = json.dumps([content, parent and parent.sha, title, author, date, len(self.commits)])
        commit = Commit(hashlib.sha1(text.encode()).hexdigest(), parent, title, author, date, files)
        self.commits[commit.sha] = commit
        return commit

    def content(self, file: File) -> Path:
        return self.folder / file.etag

    def store(self, content: bytes, *, lfs: bool) -> File:
        file = File.by_lfs(hashlib.sha256(content).hexdigest(), len(content)) if lfs else File.of(content)
        self.content(file).write_bytes(content)
        return file

    def history(self, revision: str) -> Iterator[Commit]:
        commit: Commit | None = self.find(revision)
        while commit is not None:
            yield commit
            commit = commit.parent


@dataclass
class Fault:
    """What shall go wrong with the next calls of a kind.

    Attributes:
        call: name of a route, such as ``commit``, ``upload`` or ``content``.
        times: how many calls are affected; the ones after them work.
        status, message, retry_after: answer this instead of doing what was asked.
        cut_upload, cut_download: close the connection after so many bytes of the request's, or the answer's, body.
        before: is called first, with the server: another's commit, a repository that vanishes.
    """

    call: str
    times: int = 1
    status: int | None = None
    message: str = "Internal error, try later"
    retry_after: int | None = None
    cut_upload: int | None = None
    cut_download: int | None = None
    before: Callable[[HubServer], object] | None = None


class Faults:
    """Faults that wait for their call."""

    def __init__(self) -> None:
        self._waiting: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, call: str, **fault: Any) -> None:
        if call not in ROUTES:
            raise ValueError(f"no call is named {call!r}; there are {', '.join(ROUTES)}")
        self._waiting.append(Fault(call, **fault))

    def take(self, call: str) -> Fault | None:
        with self._lock:
            for fault in self._waiting:
                if fault.call == call and fault.times:
                    fault.times -= 1
                    return fault
        return None

    def clear(self) -> None:
        """Forget all; fail if one was never met, because then the test did not test it."""
        unmet = [fault.call for fault in self._waiting if fault.times]
        self._waiting.clear()
        if unmet:
            raise AssertionError(f"these faults were never met: {', '.join(unmet)}")


@dataclass
class HubServer:
    """The Hub: repositories, users by their token, faults, and a log of all calls.

    Attributes:
        folder: of the repositories' contents.
        users: by token.
        log: ``NAME PATH`` of every call so far.
    """

    folder: Path
    users: dict[str, User]
    faults: Faults = field(default_factory=Faults)
    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)
    secret: str = field(default_factory=lambda: secrets.token_hex(8))
    port: int = 0

    @contextmanager
    def running(self) -> Iterator[HubServer]:
        http = ThreadingHTTPServer(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": self}))
        http.daemon_threads = True
        self.port = http.server_port
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            http.shutdown()
            http.server_close()
            thread.join()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def storage(self, repository: Repository) -> str:
        """Another host name than the endpoint's, for contents; clients must not send their token there."""
        return f"http://localhost:{self.port}/storage/{self.secret}/{repository.kind}s/{repository.repo_id}"

    def repository(self, repo_id: str, kind: str = "model") -> Repository:
        return self.repositories[kind, repo_id]

    def drop(self, repo_id: str, kind: str = "model") -> None:
        shutil.rmtree(self.repositories.pop((kind, repo_id)).folder)

    def read(self, repo_id: str, path: str) -> bytes:
        repository = self.repository(repo_id)
        return repository.content(repository.head.files[path]).read_bytes()

    def write(self, repo_id: str, files: dict[str, bytes], title: str = "From beside") -> Commit:
        """A commit by somebody else."""
        with self.lock:
            repository = self.repository(repo_id)
            stored = {path: repository.store(data, lfs=bool(BY_LFS.search(path))) for path, data in files.items()}
            commit = repository.add({**repository.head.files, **stored}, repository.head, title, "somebody")
            repository.branches["main"] = commit.sha
            return commit

    def alter(self, repo_id: str, path: str, change: Callable[[bytes], bytes]) -> None:
        """Damage a stored content: size and hash are still stated as they were."""
        repository = self.repository(repo_id)
        repository.content(repository.head.files[path]).write_bytes(change(self.read(repo_id, path)))


ROUTES: dict[str, tuple[str, re.Pattern[str], Callable[..., Any]]] = {}
KINDS = {"models": "model", "datasets": "dataset", "spaces": "space", None: "model"}
API = r"/api/(?P<kind>models|datasets|spaces)/(?P<repo_id>[^/]+/[^/]+)"
PAGE = r"/(?:(?P<kind>datasets|spaces)/)?(?P<repo_id>[^/]+/[^/]+?)"
STORAGE = API.replace("/api/", "/storage/(?P<secret>[^/]+)/") + r"/(?P<sha256>[0-9a-f]{64})"
REVISION = r"(?P<revision>[^/]+)"


def route(name: str, methods: str, pattern: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        ROUTES[name] = (methods, re.compile(pattern), function)
        return function

    return register


class Handler(BaseHTTPRequestHandler):
    """One connection; the route that matches a request answers it."""

    hub: HubServer
    protocol_version = "HTTP/1.1"
    fault: Fault | None = None
    user: User | None = None
    query: dict[str, str]
    unread: int

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(60)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing; ``hub.log`` has it."""

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (Cut, ConnectionError):
            self.close_connection = True

    def do_any(self) -> None:
        address = urlsplit(self.path)
        self.query = {name: values[-1] for name, values in parse_qs(address.query).items()}
        self.unread = int(self.headers.get("Content-Length", 0))
        self.fault = None
        try:
            self._route(address.path)
        except Refused as refused:
            self.answer({"error": refused.message}, refused.status, **refused.headers)
        if self.unread:  # what follows on this connection is the next request
            self.body()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_any

    def _route(self, path: str) -> None:
        matches = ((name, one[1].fullmatch(path)) for name, one in ROUTES.items() if self.command in one[0].split())
        name, found = next(((name, found) for name, found in matches if found), (None, None))
        if name is None or found is None:
            raise Refused(404, f"Sorry, we can't find the page {path}")
        self.hub.log.append(f"{name} {self.command} {unquote(path)}")
        self.fault = self.hub.faults.take(name)
        if self.fault and self.fault.before:
            self.fault.before(self.hub)
        if self.fault and self.fault.status:
            wait = {} if self.fault.retry_after is None else {"Retry-After": str(self.fault.retry_after)}
            raise Refused(self.fault.status, self.fault.message, **wait)
        self.user = self._who()
        parts = {key: unquote(value) for key, value in found.groupdict().items() if value is not None}
        if "secret" in parts:  # a signed address: who has it, may
            if parts.pop("secret") != self.hub.secret or self.user is not None:
                raise Refused(403, "Signed addresses only, and no token")
            parts["repository"] = self.hub.repositories[KINDS[parts.pop("kind")], parts.pop("repo_id")]
        elif "repo_id" in parts:
            parts["repository"] = self._repository(KINDS[parts.pop("kind", None)], parts.pop("repo_id"))
        ROUTES[name][2](self, **parts)

    def _who(self) -> User | None:
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        if not scheme:
            return None
        if token not in self.hub.users:
            raise Refused(401, "Invalid credentials in Authorization header")
        return self.hub.users[token]

    def _repository(self, kind: str, repo_id: str) -> Repository:
        """A repository that the caller may see; one that is private does not exist for others."""
        repository = self.hub.repositories.get((kind, repo_id))
        if repository is None or (repository.private and not (self.user and self.user.owns(repo_id))):
            raise Refused(404 if self.user else 401, "Repository not found", "RepoNotFound")
        return repository

    def check_may_write(self, repo_id: str) -> User:
        if self.user is None:
            raise Refused(401, "Invalid username or password.")
        if self.user.role != "write" or not self.user.owns(repo_id):
            raise Refused(403, f"You don't have the rights to write to {repo_id}")
        return self.user

    def body(self) -> bytes:
        """The request's body, or what arrives of it before the connection is cut."""
        limit = self.fault.cut_upload if self.fault else None
        if limit is not None and limit < self.unread:
            self.rfile.read(limit)
            raise Cut
        content = self.rfile.read(self.unread)
        if len(content) < self.unread:
            raise Cut  # the client went away
        self.unread = 0
        return content

    def json(self) -> Any:
        return json.loads(self.body())

    def answer(self, content: Any, status: int = 200, **headers: str) -> None:
        self.send(json.dumps(content).encode(), status, **{"Content-Type": "application/json", **headers})

    def send(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        limit = self.fault.cut_download if self.fault else None
        if limit is not None and limit < len(content):
            self.wfile.write(content[:limit])
            raise Cut
        for start in range(0, len(content), CHUNK):
            self.wfile.write(content[start : start + CHUNK])

    def send_range(self, content: bytes, **headers: str) -> None:
        """The content, or the part of it that the client asks for."""
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        headers = {"Accept-Ranges": "bytes", **headers}
        if wanted is None:
            return self.send(content, **headers)
        first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
        if first >= len(content):
            raise Refused(416, "Range not satisfiable", **{"Content-Range": f"bytes */{len(content)}"})
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        return self.send(content[first : last + 1], 206, **headers)


# --- users and repositories --------------------------------------------------------------------------------------


@route("whoami", "GET", "/api/whoami-v2")
def whoami(call: Handler) -> None:
    if call.user is None:
        raise Refused(401, "Invalid username or password.")
    call.answer(
        {
            "type": "user",
            "name": call.user.name,
            "fullname": call.user.name,
            "orgs": [{"type": "org", "name": name, "roleInOrg": "write"} for name in call.user.organisations],
            "auth": {"type": "access_token", "accessToken": {"displayName": "test", "role": call.user.role}},
        }
    )


@route("create", "POST", "/api/repos/create")
def create(call: Handler) -> None:
    wanted = call.json()
    kind = wanted.get("type") or "model"
    if call.user is None:
        raise Refused(401, "Invalid username or password.")
    repo_id = f"{wanted.get('organization') or call.user.name}/{wanted['name']}"
    user = call.check_may_write(repo_id)
    repository = Repository(kind, repo_id, wanted.get("visibility") == "private", call.hub.folder / kind / repo_id)
    url = call.hub.endpoint + repository.page
    with call.hub.lock:
        if (kind, repo_id) in call.hub.repositories:
            return call.answer({"error": f"You already created this {kind} repo", "url": url}, 409)
        attributes = repository.store(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n", lfs=False)
        first = repository.add({".gitattributes": attributes}, None, "initial commit", user.name)
        repository.branches["main"] = first.sha
        call.hub.repositories[kind, repo_id] = repository
    return call.answer({"url": url, "name": repo_id, "id": repo_id})


@route("delete", "DELETE", "/api/repos/delete")
def delete(call: Handler) -> None:
    wanted = call.json()
    repo_id = f"{wanted.get('organization') or (call.user and call.user.name)}/{wanted['name']}"
    repository = call._repository(wanted.get("type") or "model", repo_id)
    call.check_may_write(repo_id)
    call.hub.drop(repo_id, repository.kind)
    call.answer({})


@route("info", "GET", f"{API}(?:/revision/{REVISION})?")
def info(call: Handler, repository: Repository, revision: str = "main") -> None:
    commit = repository.find(revision)
    siblings: list[dict[str, Any]] = [{"rfilename": path} for path in sorted(commit.files)]
    if call.query.get("blobs", "").lower() in ("true", "1"):
        for sibling in siblings:
            file = commit.files[sibling["rfilename"]]
            lfs = {"sha256": file.sha256, "size": file.size, "pointerSize": 134}
            sibling |= {"size": file.size, "blobId": file.oid} | ({"lfs": lfs} if file.sha256 else {})
    readme = commit.files.get("README.md")
    card = front_matter(repository.content(readme).read_text()) if readme else {}
    call.answer(
        {
            "id": repository.repo_id,
            "modelId": repository.repo_id,
            "author": repository.repo_id.split("/")[0],
            "sha": commit.sha,
            "private": repository.private,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "lastModified": commit.date,
            "createdAt": next(iter(repository.commits.values())).date,
            "tags": card.get("tags", []),
            "library_name": card.get("library_name"),
            "pipeline_tag": card.get("pipeline_tag"),
            "cardData": card,
            "siblings": siblings,
        }
    )


@route("refs", "GET", f"{API}/refs")
def refs(call: Handler, repository: Repository) -> None:
    def described(names: dict[str, str], prefix: str = "") -> list[dict[str, str]]:
        return [{"name": name, "ref": f"{prefix}{name}", "targetCommit": sha} for name, sha in names.items()]

    found = {"branches": described(repository.branches, "refs/heads/"), "converts": []}
    found |= {"tags": described(repository.tags, "refs/tags/"), "pullRequests": described(repository.pull_requests)}
    call.answer(found)


@route("tag", "POST DELETE", f"{API}/tag/{REVISION}")
def tag(call: Handler, repository: Repository, revision: str) -> None:
    """Tag a revision; or, for DELETE, remove the tag of this name."""
    name = call.json()["tag"] if call.command == "POST" else revision
    _set_name(call, repository, repository.tags, name, revision)


@route("branch", "POST DELETE", f"{API}/branch/(?P<name>[^/]+)")
def branch(call: Handler, repository: Repository, name: str) -> None:
    start = call.json().get("startingPoint", "main") if call.command == "POST" else name
    _set_name(call, repository, repository.branches, name, start)


def _set_name(call: Handler, repository: Repository, names: dict[str, str], name: str, target: str) -> None:
    call.check_may_write(repository.repo_id)
    with call.hub.lock:
        if call.command == "DELETE":
            if names.pop(name, None) is None:
                raise Refused(404, f"{name} does not exist", "RevisionNotFound")
        elif name in names:
            raise Refused(409, f"Reference already exists: {name}")
        else:
            names[name] = repository.find(target).sha
    call.answer({})


@route("history", "GET", f"{API}/commits/{REVISION}")
def history(call: Handler, repository: Repository, revision: str) -> None:
    commits = [
        {"id": one.sha, "title": one.title, "message": "", "authors": [{"user": one.author}], "date": one.date}
        for one in repository.history(revision)
    ]
    call.answer(commits)


# --- what is in them ---------------------------------------------------------------------------------------------


def folders(commit: Commit) -> set[str]:
    return {str(parent) for path in commit.files for parent in Path(path).parents} - {"."}


def folder_described(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0}


@route("tree", "GET", f"{API}/tree/{REVISION}(?:/(?P<path>.+))?")
def tree(call: Handler, repository: Repository, revision: str, path: str = "") -> None:
    commit = repository.find(revision)
    within = f"{path}/" if path else ""
    everything = [folder_described(name) for name in sorted(folders(commit))]
    everything += [file.described(name) for name, file in sorted(commit.files.items())]
    entries = [entry for entry in everything if entry["path"].startswith(within)]
    if path and not entries:
        raise Refused(404, f"{path} does not exist on {revision}", "EntryNotFound")
    if call.query.get("recursive", "").lower() not in ("true", "1"):
        entries = [entry for entry in entries if "/" not in entry["path"].removeprefix(within)]
    call.answer(entries)


@route("paths-info", "POST", f"{API}/paths-info/{REVISION}")
def paths_info(call: Handler, repository: Repository, revision: str) -> None:
    commit = repository.find(revision)
    paths = parse_qs(call.body().decode()).get("paths", [])
    found = [commit.files[path].described(path) for path in paths if path in commit.files]
    call.answer(found + [folder_described(path) for path in paths if path in folders(commit)])


@route("resolve", "GET HEAD", f"{PAGE}/resolve/{REVISION}/(?P<path>.+)")
def resolve(call: Handler, repository: Repository, revision: str, path: str) -> None:
    """A small file; or, for LFS, what it is, and where its content lies."""
    commit = repository.find(revision)
    headers = {"X-Repo-Commit": commit.sha}
    if path not in commit.files:
        raise Refused(404, "Entry not found", "EntryNotFound", **headers)
    file = commit.files[path]
    headers["ETag"] = f'"{file.etag}"'
    if file.sha256 is None:
        return call.send_range(repository.content(file).read_bytes(), **headers)
    headers |= {"X-Linked-ETag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
    return call.send(b"", 302, Location=f"{call.hub.storage(repository)}/{file.sha256}", **headers)


@route("content", "GET HEAD", STORAGE)
def content(call: Handler, repository: Repository, sha256: str) -> None:
    call.send_range((repository.folder / sha256).read_bytes(), ETag=f'"{sha256}"')


# --- uploads and commits -----------------------------------------------------------------------------------------


def front_matter(text: str) -> dict[str, Any]:
    found = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    return (yaml.safe_load(found[1]) if found else None) or {}


@route("validate-yaml", "POST", "/api/validate-yaml")
def validate_yaml(call: Handler) -> None:
    try:
        front = front_matter(call.json()["content"])
    except yaml.YAMLError as error:
        return call.answer({"errors": [{"message": f"YAML: {str(error).splitlines()[0]}"}], "warnings": []}, 400)
    warnings = [] if front else [{"message": "empty or missing yaml metadata in repo card"}]
    return call.answer({"errors": [], "warnings": warnings})


@route("preupload", "POST", f"{API}/preupload/{REVISION}")
def preupload(call: Handler, repository: Repository, revision: str) -> None:
    if not call.query.get("create_pr"):
        call.check_may_write(repository.repo_id)
    files, answers = repository.find(revision).files, []
    for wanted in call.json()["files"]:
        path = wanted["path"]
        lfs = bool(BY_LFS.search(path)) or wanted["size"] > MEGABYTES_BY_LFS * 1e6
        answers.append({"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False})
        if path in files:
            answers[-1]["oid"] = files[path].etag
    call.answer({"files": answers})


@route("batch", "POST", rf"{PAGE}\.git/info/lfs/objects/batch")
def batch(call: Handler, repository: Repository) -> None:
    """Where to put the contents that are not here yet."""
    if call.user is None:
        raise Refused(401, "Invalid username or password.")
    objects = []
    for wanted in call.json()["objects"]:
        one = {"oid": wanted["oid"], "size": wanted["size"]}
        if not (repository.folder / wanted["oid"]).exists():
            verify_at = f"{call.hub.endpoint}{repository.page}.git/info/lfs/objects/verify"
            upload = {"href": f"{call.hub.storage(repository)}/{wanted['oid']}", "header": {}}
            one["actions"] = {"upload": upload, "verify": {"href": verify_at, "header": {}}}
        objects.append(one)
    call.answer({"transfer": "basic", "objects": objects})


@route("upload", "PUT", STORAGE)
def upload(call: Handler, repository: Repository, sha256: str) -> None:
    data = call.body()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise Refused(400, "The content does not have the hash that was announced")
    repository.store(data, lfs=True)
    call.send(b"", ETag=f'"{sha256}"')


@route("verify", "POST", rf"{PAGE}\.git/info/lfs/objects/verify")
def verify(call: Handler, repository: Repository) -> None:
    wanted = call.json()
    path = repository.folder / wanted["oid"]
    if not path.exists() or path.stat().st_size != wanted["size"]:
        raise Refused(404, f"{wanted['oid']} of {repository.repo_id} has not arrived")
    call.answer({})


@route("commit", "POST", f"{API}/commit/{REVISION}")
def commit(call: Handler, repository: Repository, revision: str) -> None:
    """All changes at once, or none; on ``main``, another branch, or as a pull request."""
    as_request = bool(call.query.get("create_pr"))
    if as_request and call.user is None:
        raise Refused(401, "Invalid username or password.")
    author = call.user if as_request and call.user else call.check_may_write(repository.repo_id)
    header, *changes = [json.loads(line) for line in call.body().splitlines()]
    with call.hub.lock:
        if call.hub.repositories.get((repository.kind, repository.repo_id)) is not repository:
            raise Refused(404, "Repository not found", "RepoNotFound")
        parent = repository.find(revision)
        names = repository.pull_requests if revision.startswith("refs/pr/") else repository.branches
        if not as_request and revision not in names:
            raise Refused(400, f"{revision} is no branch", "RevisionNotFound")
        expected = header["value"].get("parentCommit")
        if expected is not None and not parent.sha.startswith(expected) and not as_request:
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        made = repository.add(_changed(repository, parent, changes), parent, header["value"]["summary"], author.name)
        if as_request:
            revision, names = f"refs/pr/{len(repository.pull_requests) + 1}", repository.pull_requests
        names[revision] = made.sha
    page = call.hub.endpoint + repository.page
    answer = {"success": True, "commitOid": made.sha, "commitUrl": f"{page}/commit/{made.sha}"}
    if as_request:
        answer["pullRequestUrl"] = f"{page}/discussions/{revision.split('/')[-1]}"
    call.answer(answer)


def _changed(repository: Repository, parent: Commit, changes: list[dict[str, Any]]) -> dict[str, File]:
    files = dict(parent.files)
    for change in changes:
        value = change["value"]
        path = value["path"]
        if change["key"] == "file":
            files[path] = repository.store(base64.b64decode(value["content"]), lfs=False)
        elif change["key"] == "lfsFile":
            stored = repository.folder / value["oid"]
            if not stored.exists():
                raise Refused(400, f"The LFS pointer of {path} points to a content that does not exist")
            files[path] = File.by_lfs(value["oid"], stored.stat().st_size)
        elif change["key"] == "deletedFile" and path in files:
            del files[path]
        elif change["key"] == "deletedFolder" and path.rstrip("/") in folders(parent):
            files = {name: file for name, file in files.items() if not name.startswith(f"{path.rstrip('/')}/")}
        else:
            raise Refused(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
    return files
