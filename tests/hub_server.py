"""A small Hugging Face Hub on a loopback port, so that tests run the real client over real HTTP. Standard library only.

It keeps models and data sets in memory: commits, branches, tags, pull requests; LFS files are redirected to a second
origin (`cdn`), and uploaded there, as on the real Hub. Not there: the Xet protocol, spaces, pagination.

    with HubServer() as hub:                      # HF_ENDPOINT=hub.endpoint, before huggingface_hub is imported
        sha = hub.commit("acme/ant", {"config.json": b"{}"})
        hub.fail_next("GET .*/tree/", 503)
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".png", ".mp4", ".gif", ".zip", ".bin", ".pt", ".pkl", ".hdf5", ".h5", ".npz")
RepoType = Literal["model", "dataset"]


@dataclass(frozen=True)
class Token:
    """An access token: whose it is, and whether it may write."""

    owner: str
    write: bool = True


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    """Unquoted, without the query."""
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes = b""
    query: Mapping[str, list[str]] = field(default_factory=dict)
    raw_path: str = ""

    def __iter__(self) -> Iterator[Any]:
        return iter((self.method, self.path, self.headers))

    @property
    def token(self) -> str | None:
        return self.headers.get("authorization", "").removeprefix("Bearer ") or None


@dataclass(frozen=True)
class Reply:
    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    pause: float = 0.0
    """Seconds to wait before every `piece` bytes of the body."""
    piece: int = 65536
    cut: int | None = None
    """Close the connection after so many bytes of the body."""


@dataclass(frozen=True)
class Commit:
    sha: str
    parent: str | None
    title: str
    files: Mapping[str, bytes]
    """All files of the repository as of this commit."""
    changed: tuple[str, ...]


@dataclass
class Repo:
    repo_id: str
    repo_type: RepoType
    private: bool = False
    gated: bool = False
    accepted: set[str] = field(default_factory=set)
    """Tokens whose users accepted the terms of a gated repository."""
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pulls: dict[int, str] = field(default_factory=dict)

    @property
    def owner(self) -> str:
        return self.repo_id.partition("/")[0]

    def find(self, revision: str) -> str | None:
        """The commit that a branch, a tag, a commit or `refs/...` names."""
        pull = re.fullmatch(r"refs/pr/(\d+)", revision)
        if pull:
            return self.pulls.get(int(pull[1]))
        name = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        return self.branches.get(name) or self.tags.get(name) or (name if name in self.commits else None)


class _Stop(Exception):
    """An answer other than the expected one, raised where it is known."""

    def __init__(self, status: int, code: str | None = None, message: str = "") -> None:
        headers = {"X-Error-Message": message} if message else {}
        if code:
            headers["X-Error-Code"] = code
        self.reply = Reply(status, json.dumps({"error": message}).encode(), headers)


def is_lfs(path: str) -> bool:
    return path.endswith(LFS_SUFFIXES)


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def oid(path: str, content: bytes) -> str:
    """What names a file's content: sha256 for LFS files, the git blob's sha1 for others."""
    return hashlib.sha256(content).hexdigest() if is_lfs(path) else git_oid(content)


class HubServer:
    """A Hub on 127.0.0.1; its ports are bound at once, and answer from `start` to `close`."""

    def __init__(self) -> None:
        self._hub, self._cdn = _Listener(self, "hub"), _Listener(self, "cdn")
        self.endpoint = f"http://127.0.0.1:{self._hub.port}"
        self.cdn = f"http://127.0.0.1:{self._cdn.port}"
        self._lock = threading.RLock()
        self._serial = 0  # never reset: no commit has the same name twice, which caches of the client rely on
        self._silenced = threading.Event()
        self.reset()

    def __enter__(self) -> HubServer:
        self.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.release()

    def start(self) -> None:
        self._hub.start()
        self._cdn.start()

    def close(self) -> None:
        """Answer no more; connections are refused until `start`."""
        self._hub.stop()
        self._cdn.stop()

    def release(self) -> None:
        """Close, and give the ports back."""
        self._hub.release()
        self._cdn.release()

    def reset(self) -> None:
        """As new: no repositories, the default tokens, no rules, nothing recorded."""
        with self._lock:
            self.repos: dict[tuple[RepoType, str], Repo] = {}
            self.objects: dict[str, bytes] = {}
            self.tokens = {
                "hf_write": Token("acme"),
                "hf_read": Token("acme", write=False),
                "hf_stranger": Token("stranger"),
            }
            self.requests: list[Request] = []
            self.cdn_requests: list[Request] = []
            self.use_cdn = True
            self.yaml_errors: list[str] = []
            self._rules: list[list[Any]] = []  # pattern, action or fields, times left

    # -- what a test does to it ------------------------------------------------------------------------------------
    def commit(
        self,
        repo_id: str,
        files: Mapping[str, bytes | None],
        repo_type: RepoType = "model",
        *,
        branch: str = "main",
        title: str = "seed",
        private: bool | None = None,
        gated: bool | None = None,
    ) -> str:
        """Add, replace or (None) delete files in a repository, made if absent; returns the commit's sha."""
        with self._lock:
            repo = self.repos.get((repo_type, repo_id)) or self._create(repo_type, repo_id)
            repo.private = repo.private if private is None else private
            repo.gated = repo.gated if gated is None else gated
            return self._add_commit(repo, repo.branches.get(branch), files, title, branch)

    def tag(self, repo_id: str, name: str, revision: str = "main", repo_type: RepoType = "model") -> None:
        repo = self.repos[repo_type, repo_id]
        sha = repo.find(revision)
        assert sha is not None, f"{repo_id} has no {revision}"
        repo.tags[name] = sha

    def files(self, repo_id: str, revision: str = "main", repo_type: RepoType = "model") -> dict[str, bytes]:
        repo = self.repos[repo_type, repo_id]
        return dict(repo.commits[repo.find(revision) or revision].files)

    def history(self, repo_id: str, revision: str = "main", repo_type: RepoType = "model") -> list[Commit]:
        """The commits that led to a revision, newest first."""
        repo = self.repos[repo_type, repo_id]
        sha, found = repo.find(revision), []
        while sha is not None:
            found.append(repo.commits[sha])
            sha = found[-1].parent
        return found

    def on(self, pattern: str, action: Callable[[Request], Any], times: int = 1) -> None:
        """Call `action` before the next requests that match `pattern`, a regular expression for "METHOD /path".

        Where it returns a `Reply`, that is sent; else the request is answered as usual.
        """
        with self._lock:
            self._rules.append([re.compile(pattern), action, times])

    def fail_next(
        self, pattern: str, status: int, code: str | None = None, message: str = "", times: int = 1, **headers: str
    ) -> None:
        """Answer the next requests that match `pattern` with an error; `code` is the Hub's X-Error-Code."""
        reply = _Stop(status, code, message).reply
        reply = replace(reply, headers={**reply.headers, **{k.replace("_", "-"): v for k, v in headers.items()}})
        self.on(pattern, lambda _: reply, times)

    def change(self, pattern: str, times: int = 1, **fields: Any) -> None:
        """Send the usual answers to matching requests with other fields of `Reply`, e.g. slowly, or cut off."""
        with self._lock:
            self._rules.append([re.compile(pattern), fields, times])

    def reset_rules(self) -> None:
        """Answer as usual again."""
        with self._lock:
            self._rules.clear()

    @contextmanager
    def outage(self, kind: Literal["refused", "silent"] = "refused") -> Iterator[None]:
        """Nobody listens at the port, or somebody who never answers."""
        if kind == "refused":
            self.close()
        else:
            self._silenced.set()
        try:
            yield
        finally:
            self._silenced.clear()
            self._hub.drop_connections()
            self.start()

    # -- state -----------------------------------------------------------------------------------------------------
    def _create(self, repo_type: RepoType, repo_id: str, private: bool = False) -> Repo:
        repo = self.repos[repo_type, repo_id] = Repo(repo_id, repo_type, private)
        self._add_commit(repo, None, {".gitattributes": b""}, "initial commit", "main")
        return repo

    def _add_commit(
        self, repo: Repo, parent: str | None, files: Mapping[str, bytes | None], title: str, ref: str | int
    ) -> str:
        parent = parent or repo.branches.get("main")
        merged = dict(repo.commits[parent].files) if parent else {}
        for path, content in files.items():
            if content is None:
                merged.pop(path, None)
            else:
                merged[path] = content
                self.objects[hashlib.sha256(content).hexdigest()] = content
        self._serial += 1
        sha = hashlib.sha1(f"{self.endpoint} {self._serial} {time.time_ns()}".encode()).hexdigest()
        repo.commits[sha] = Commit(sha, parent, title, merged, tuple(files))
        if isinstance(ref, int):
            repo.pulls[ref] = sha
        else:
            repo.branches[ref] = sha
        return sha

    # -- answers ---------------------------------------------------------------------------------------------------
    def answer(self, origin: str, request: Request) -> Reply:
        while self._silenced.is_set():
            time.sleep(0.01)
        (self.requests if origin == "hub" else self.cdn_requests).append(request)
        line, changes = f"{request.method} {request.path}", {}
        for rule in self._matching(line):
            if isinstance(rule, dict):
                changes.update(rule)
            elif isinstance(reply := rule(request), Reply):
                return replace(reply, **changes)
        try:
            with self._lock:
                reply = self._answer_hub(request) if origin == "hub" else self._answer_cdn(request)
        except _Stop as stop:
            reply = stop.reply
        return replace(reply, **changes)

    def _matching(self, line: str) -> list[Any]:
        found = []
        with self._lock:
            for rule in self._rules:
                if rule[2] > 0 and rule[0].search(line):
                    rule[2] -= 1
                    found.append(rule[1])
        return found

    def _answer_cdn(self, request: Request) -> Reply:
        """Storage: content by its sha256; whoever has the address may read and write."""
        name = request.path.rpartition("/")[2]
        if request.method == "PUT":
            if hashlib.sha256(request.body).hexdigest() != name:
                raise _Stop(400, message="the content is not what was announced")
            self.objects[name] = request.body
            return Reply()
        if name not in self.objects:
            raise _Stop(403, message="no such object")
        return _content(request, self.objects[name], {"ETag": f'"{name}"'})

    def _answer_hub(self, request: Request) -> Reply:
        token = None
        if request.token is not None:
            token = self.tokens.get(request.token)
            if token is None:
                raise _Stop(401, message="Invalid credentials in Authorization header")
        for pattern, method, answer in _ROUTES:
            match = re.fullmatch(pattern, request.raw_path)
            if match and request.method in method:
                return answer(self, request, token, *(unquote(part or "") for part in match.groups()))
        raise _Stop(404, message=f"no such endpoint: {request.method} {request.raw_path}")

    def _repo(self, kind: str, repo_id: str, token: Token | None) -> Repo:
        """A repository, as far as the token's owner may know of it."""
        repo = self.repos.get(("dataset" if kind.startswith("dataset") else "model", repo_id))
        if repo is None or (repo.private and (token is None or token.owner != repo.owner)):
            # the Hub does not tell strangers whether a repository exists
            raise _Stop(404 if token else 401, "RepoNotFound", "Repository not found")
        return repo

    def _writable(self, kind: str, repo_id: str, token: Token | None) -> Repo:
        repo = self._repo(kind, repo_id, token)
        self._check_writer(repo.owner, token)
        return repo

    def _check_writer(self, owner: str, token: Token | None) -> None:
        if token is None:
            raise _Stop(401, message="Invalid username or password.")
        if not token.write:
            raise _Stop(403, message="Forbidden: you must use a write token to upload to a repository.")
        if token.owner != owner:
            raise _Stop(403, message=f"Forbidden: you don't have the rights to write to the namespace {owner}.")

    @staticmethod
    def _sha(repo: Repo, revision: str) -> str:
        sha = repo.find(revision)
        if sha is None:
            raise _Stop(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha

    def _get_info(self, request: Request, token: Token | None, kind: str, repo_id: str, revision: str = "") -> Reply:
        repo = self._repo(kind, repo_id, token)
        sha = self._sha(repo, revision or "main")
        return _json(
            {
                "id": repo_id,
                "sha": sha,
                "private": repo.private,
                "gated": "auto" if repo.gated else False,
                "disabled": False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "siblings": [
                    {"rfilename": path, **({"size": len(content)} if "blobs" in request.query else {})}
                    for path, content in sorted(repo.commits[sha].files.items())
                ],
            }
        )

    def _get_tree(
        self, request: Request, token: Token | None, kind: str, repo_id: str, revision: str, folder: str
    ) -> Reply:
        repo = self._repo(kind, repo_id, token)
        files = repo.commits[self._sha(repo, revision)].files
        inside = {path for path in files if not folder or path.startswith(f"{folder}/")}
        if folder and not inside:
            raise _Stop(404, "EntryNotFound", f"{folder} does not exist")
        entries = {path: _entry(path, files[path]) for path in inside}
        for path in inside:
            parts = path.split("/")
            for depth in range(folder.count("/") + 1 if folder else 0, len(parts) - 1):
                name = "/".join(parts[: depth + 1])
                if name != folder:
                    entries[name] = {"type": "directory", "path": name, "oid": git_oid(name.encode()), "size": 0}
        if "true" not in [value.lower() for value in request.query.get("recursive", [])]:
            level = folder.count("/") + 1 if folder else 0
            entries = {path: entry for path, entry in entries.items() if path.count("/") == level}
        return _json([entries[path] for path in sorted(entries)])

    def _post_paths_info(self, request: Request, token: Token | None, kind: str, repo_id: str, revision: str) -> Reply:
        repo = self._repo(kind, repo_id, token)
        files = repo.commits[self._sha(repo, revision)].files
        try:
            wanted = json.loads(request.body)["paths"]
        except ValueError:
            wanted = parse_qs(request.body.decode()).get("paths", [])
        return _json([_entry(path, files[path]) for path in wanted if path in files])

    def _get_refs(self, request: Request, token: Token | None, kind: str, repo_id: str) -> Reply:
        repo = self._repo(kind, repo_id, token)

        def listed(prefix: str, refs: Mapping[Any, str]) -> list[dict[str, str]]:
            return [{"name": str(n), "ref": f"refs/{prefix}/{n}", "targetCommit": sha} for n, sha in refs.items()]

        return _json(
            {
                "branches": listed("heads", repo.branches),
                "tags": listed("tags", repo.tags),
                "converts": [],
                "pullRequests": listed("pr", repo.pulls),
            }
        )

    def _get_commits(self, request: Request, token: Token | None, kind: str, repo_id: str, revision: str) -> Reply:
        repo = self._repo(kind, repo_id, token)
        sha, found = self._sha(repo, revision), []
        while sha:
            commit = repo.commits[sha]
            found.append(
                {"id": sha, "title": commit.title, "message": "", "authors": [], "date": "2026-01-01T00:00:00.000Z"}
            )
            sha = commit.parent or ""
        return _json(found)

    def _get_file(
        self, request: Request, token: Token | None, kind: str, repo_id: str, revision: str, path: str
    ) -> Reply:
        repo = self._repo(kind, repo_id, token)
        sha = self._sha(repo, revision)
        may_read = not repo.gated or (token and (token.owner == repo.owner or request.token in repo.accepted))
        if not may_read and path not in ("README.md", ".gitattributes"):
            raise _Stop(403 if token else 401, "GatedRepo", f"Access to model {repo_id} is restricted.")
        files = repo.commits[sha].files
        if path not in files:
            stop = _Stop(404, "EntryNotFound", "Entry not found")
            stop.reply = replace(stop.reply, headers={**stop.reply.headers, "X-Repo-Commit": sha})
            raise stop
        content = files[path]
        name = oid(path, content)
        headers = {"X-Repo-Commit": sha, "ETag": f'"{name}"', "Accept-Ranges": "bytes"}
        if is_lfs(path):
            headers |= {"X-Linked-Etag": f'"{name}"', "X-Linked-Size": str(len(content))}
            if self.use_cdn:
                return Reply(302, b"", {**headers, "Location": f"{self.cdn}/objects/{name}"})
        return _content(request, content, headers)

    def _post_create(self, request: Request, token: Token | None) -> Reply:
        wanted = json.loads(request.body)
        owner = wanted.get("organization") or (token.owner if token else "")
        self._check_writer(owner, token)
        repo_id, repo_type = f"{owner}/{wanted['name']}", wanted.get("type") or "model"
        url = f"{self.endpoint}/{'datasets/' if repo_type == 'dataset' else ''}{repo_id}"
        if (repo_type, repo_id) in self.repos:
            stop = _Stop(409, message="You already created this repo")
            stop.reply = replace(stop.reply, body=json.dumps({"error": "exists", "url": url}).encode())
            raise stop
        self._create(repo_type, repo_id, wanted.get("visibility") == "private" or bool(wanted.get("private")))
        return _json({"url": url})

    def _post_yaml(self, request: Request, token: Token | None) -> Reply:
        errors = [{"message": message} for message in self.yaml_errors]
        return _json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def _get_whoami(self, request: Request, token: Token | None) -> Reply:
        if token is None:
            raise _Stop(401, message="Invalid username or password.")
        role = "write" if token.write else "read"
        return _json({"type": "user", "name": token.owner, "orgs": [], "auth": {"accessToken": {"role": role}}})

    def _post_preupload(self, request: Request, token: Token | None, kind: str, repo_id: str, revision: str) -> Reply:
        repo = self._writable(kind, repo_id, token)
        files = repo.commits[self._sha(repo, revision)].files
        return _json(
            {
                "files": [
                    {
                        "path": path,
                        "uploadMode": "lfs" if is_lfs(path) else "regular",
                        "shouldIgnore": False,
                        "oid": oid(path, files[path]) if path in files else None,
                    }
                    for path in (item["path"] for item in json.loads(request.body)["files"])
                ]
            }
        )

    def _post_lfs_batch(self, request: Request, token: Token | None, kind: str, repo_id: str) -> Reply:
        self._writable(kind or "models", repo_id, token)
        answers = []
        for item in json.loads(request.body)["objects"]:
            answer = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.objects:
                answer["actions"] = {"upload": {"href": f"{self.cdn}/objects/{item['oid']}", "header": {}}}
            answers.append(answer)
        return _json({"transfer": "basic", "objects": answers})

    def _post_commit(self, request: Request, token: Token | None, kind: str, repo_id: str, revision: str) -> Reply:
        repo = self._writable(kind, repo_id, token)
        parent = self._sha(repo, revision)
        files: dict[str, bytes | None] = {}
        title = ""
        for line in request.body.splitlines():
            key, value = (item := json.loads(line))["key"], item["value"]
            if key == "header":
                title = value["summary"]
                if value.get("parentCommit") not in (None, parent):
                    raise _Stop(412, message="A commit has happened since. Please refresh and try again.")
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                if value["oid"] not in self.objects:
                    raise _Stop(400, message=f"{value['path']}: its content was never uploaded")
                files[value["path"]] = self.objects[value["oid"]]
            elif key == "deletedFile":
                files[value["path"]] = None
            elif key == "deletedFolder":
                inside = value["path"].rstrip("/") + "/"
                files |= {path: None for path in repo.commits[parent].files if path.startswith(inside)}
            else:
                raise _Stop(400, message=f"unknown operation {key}")
        pull = re.fullmatch(r"refs/pr/(\d+)", revision)
        ref: str | int = int(pull[1]) if pull else revision.removeprefix("refs/heads/")
        if request.query.get("create_pr"):
            ref = len(repo.pulls) + 1
        elif not pull and ref not in repo.branches:
            raise _Stop(400, message=f"{revision} is no branch")
        url = f"{self.endpoint}/{'datasets/' if kind == 'datasets' else ''}{repo_id}"
        sha = self._add_commit(repo, parent, files, title, ref)
        answer = {"success": True, "commitOid": sha, "commitUrl": f"{url}/commit/{sha}"}
        if request.query.get("create_pr"):
            answer["pullRequestUrl"] = f"{url}/discussions/{ref}"
        return _json(answer)

    def _post_tag(self, request: Request, token: Token | None, kind: str, repo_id: str, revision: str) -> Reply:
        repo = self._writable(kind, repo_id, token)
        if request.method == "DELETE":
            if repo.tags.pop(revision, None) is None:
                raise _Stop(404, "RevisionNotFound", f"no tag {revision}")
            return _json({})
        sha, name = self._sha(repo, revision), json.loads(request.body)["tag"]
        if name in repo.tags:
            raise _Stop(409, message=f"Tag {name} already exists")
        repo.tags[name] = sha
        return _json({})

    def _post_branch(self, request: Request, token: Token | None, kind: str, repo_id: str, name: str) -> Reply:
        repo = self._writable(kind, repo_id, token)
        if request.method == "DELETE":
            if repo.branches.pop(name, None) is None:
                raise _Stop(404, "RevisionNotFound", f"no branch {name}")
            return _json({})
        if name in repo.branches:
            raise _Stop(409, message=f"Branch {name} already exists")
        repo.branches[name] = self._sha(repo, json.loads(request.body or b"{}").get("startingPoint") or "main")
        return _json({})

    def _list_repos(self, request: Request, token: Token | None, kind: str) -> Reply:
        author, wanted = (request.query.get("author") or [None])[0], (request.query.get("search") or [""])[0]
        found = []
        for (repo_type, repo_id), repo in sorted(self.repos.items()):
            seen = not repo.private or (token is not None and token.owner == repo.owner)
            if seen and f"{repo_type}s" == kind and author in (None, repo.owner) and wanted in repo_id:
                found.append(json.loads(self._get_info(request, token, kind, repo_id).body))
        return _json(found)


def _json(data: Any, status: int = 200) -> Reply:
    return Reply(status, json.dumps(data).encode(), {"Content-Type": "application/json"})


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
    if is_lfs(path):
        entry["lfs"] = {"oid": oid(path, content), "size": len(content), "pointerSize": 130}
    return entry


def _content(request: Request, content: bytes, headers: Mapping[str, str]) -> Reply:
    start = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
    if not start:
        return Reply(200, content, headers)
    first, last = int(start[1]), min(int(start[2] or len(content) - 1), len(content) - 1)
    if first >= len(content):
        return Reply(416, b"", {"Content-Range": f"bytes */{len(content)}"})
    headers = {**headers, "Content-Range": f"bytes {first}-{last}/{len(content)}"}
    return Reply(206, content[first : last + 1], headers)


_API = r"/api/(models|datasets)/([^/]+/[^/]+)"
_PAGE = r"/(?:(datasets)/)?([^/]+/[^/]+)"
_ROUTES: list[tuple[str, tuple[str, ...], Callable[..., Reply]]] = [
    (r"/api/(models|datasets)", ("GET",), HubServer._list_repos),
    (_API, ("GET",), HubServer._get_info),
    (_API + r"/revision/([^/]+)", ("GET",), HubServer._get_info),
    (_API + r"/tree/([^/]+)(?:/(.*))?", ("GET",), HubServer._get_tree),
    (_API + r"/paths-info/([^/]+)", ("POST",), HubServer._post_paths_info),
    (_API + r"/refs", ("GET",), HubServer._get_refs),
    (_API + r"/commits/([^/]+)", ("GET",), HubServer._get_commits),
    (_API + r"/preupload/([^/]+)", ("POST",), HubServer._post_preupload),
    (_API + r"/commit/([^/]+)", ("POST",), HubServer._post_commit),
    (_API + r"/tag/([^/]+)", ("POST", "DELETE"), HubServer._post_tag),
    (_API + r"/branch/([^/]+)", ("POST", "DELETE"), HubServer._post_branch),
    (r"/api/repos/create", ("POST",), HubServer._post_create),
    (r"/api/validate-yaml", ("POST",), HubServer._post_yaml),
    (r"/api/whoami-v2", ("GET",), HubServer._get_whoami),
    (_PAGE + r"\.git/info/lfs/objects/batch", ("POST",), HubServer._post_lfs_batch),
    (_PAGE + r"/resolve/([^/]+)/(.+)", ("GET", "HEAD"), HubServer._get_file),
]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    listener: _Listener

    def setup(self) -> None:
        super().setup()
        self.listener.connections.add(self.connection)

    def finish(self) -> None:
        self.listener.connections.discard(self.connection)
        with suppress(OSError):
            super().finish()

    def handle(self) -> None:
        with suppress(OSError):  # the client, or a test, may close the connection at any time
            super().handle()

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        request = Request(
            self.command,
            unquote(parts.path),
            {name.lower(): value for name, value in self.headers.items()},
            self._read_body(),
            parse_qs(parts.query),
            parts.path,
        )
        self._send(self.listener.server.answer(self.listener.origin, request))

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        body = reply.body if reply.cut is None else reply.body[: reply.cut]
        for start in range(0, len(body), reply.piece):
            if reply.pause:
                self.wfile.flush()
                time.sleep(reply.pause)
            self.wfile.write(body[start : start + reply.piece])
        if reply.cut is not None:
            self.wfile.flush()
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: `HubServer.requests` has it all."""


class _Listener:
    """One port of the server; bound from the beginning, so that it is known before anything answers."""

    def __init__(self, server: HubServer, origin: str) -> None:
        self.server, self.origin = server, origin
        self.connections: set[socket.socket] = set()
        self._http: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None
        self._reserved = self._bind(0)
        self.port: int = self._reserved.getsockname()[1]

    @staticmethod
    def _bind(port: int) -> socket.socket:
        bound = socket.socket()
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.1", port))
        return bound

    def start(self) -> None:
        if self._http is not None:
            return
        handler = type("Handler", (_Handler,), {"listener": self, "wbufsize": -1})
        http = ThreadingHTTPServer(("127.0.0.1", self.port), handler, bind_and_activate=False)
        http.socket.close()
        http.socket = self._reserved  # bound, and not listening until now: connections were refused
        http.daemon_threads = True
        http.server_activate()
        self._http = http
        self._thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        if self._http is None or self._thread is None:
            return
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
        self._http = self._thread = None
        self.drop_connections()
        self._reserved = self._bind(self.port)

    def drop_connections(self) -> None:
        """Close what is open: kept-alive connections would go on being answered."""
        for connection in list(self.connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def release(self) -> None:
        self.stop()
        self._reserved.close()
