"""Models from the Hugging Face hub and from ModelScope.

A reference is `owner/name[/PATH][@REVISION]`. Without PATH it is the whole repository, or, where
the repository holds one GGUF model and no other weights, that model. PATH is a file, a folder, or
a pattern (`*`, `?`) that one model matches: `hf:owner/name/*q4_k_m.gguf`. A GGUF that is split
into several files counts as one; all of them are fetched and the first is the model. REVISION is a
branch, a tag or a commit.

Both hubs' own packages do the downloading and the caching. An interrupted download goes on where
it stopped, in another process too. What cannot be reached is taken from the cache where it is
complete there.
"""

from __future__ import annotations

import abc
import contextlib
import errno
import fnmatch
import glob
import importlib
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, NamedTuple
from urllib.parse import urlsplit

from byzerllm import resumable
from byzerllm.errors import ModelSourceError, NotInstalledError, did_you_mean
from byzerllm.sources import ModelSource

_REFERENCE = re.compile(
    r"(?P<repository>[\w.-]+/[\w.-]+)(/(?P<path>[^@]+?))?/?(@(?P<revision>[^\s@]+))?"
)
_SPLIT = re.compile(r"-(?P<part>\d{5})-of-(?P<parts>\d{5})\.gguf$", re.IGNORECASE)
_OTHER_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".onnx", ".h5", ".msgpack")
_SHOWN = 20
_REPORT_EVERY = 0.2
_PASSING = {408, 429, 500, 502, 503, 504}
_LARGE = 16 * 2**20
_AT_ONCE = 4
_UNREACHABLE = {
    "TransportError",
    "ConnectionError",
    "OfflineModeIsEnabled",
    "LocalEntryNotFoundError",
    "CacheNotFound",
}


class Reference(NamedTuple):
    repository: str
    path: str
    revision: str | None


class Progress:
    """Turns counted bytes into `downloading 40 %`, now and then. Called from several threads."""

    def __init__(self, report: Callable[[str], None], total: int) -> None:
        self._report = report
        self._total = total
        self._shown = -1
        self._next = 0.0
        self._arrived = 0.0
        self._lock = threading.Lock()

    def add(self, count: float) -> None:
        """`count` more bytes have arrived."""
        with self._lock:
            self._arrived += count
            percent = min(100, int(100 * self._arrived / self._total)) if self._total else 0
            now = time.monotonic()
            if percent <= self._shown or (now < self._next and percent < 100):
                return
            self._shown, self._next = percent, now + _REPORT_EVERY
        self._report(f"downloading {percent} % of {_size(self._total)}")


class Hub(ModelSource):
    """What both hubs have in common.

    Class attributes:
        title: the hub's name in messages.
        extra: the extra of byzerllm-core that brings its package.
        token_variable, endpoint_variable, cache_variable: its package's environment variables.
    """

    title: ClassVar[str]
    extra: ClassVar[str]
    token_variable: ClassVar[str]
    endpoint_variable: ClassVar[str]
    cache_variable: ClassVar[str]

    @abc.abstractmethod
    def listing(self, where: Reference) -> dict[str, int]:
        """Sizes in bytes of the repository's files, by path."""

    @abc.abstractmethod
    def download(
        self, where: Reference, files: Mapping[str, int], progress: Progress, *, all_of_it: bool
    ) -> Path:
        """The folder with `files` in it, given with their sizes."""

    @abc.abstractmethod
    def cached(self, where: Reference) -> Path:
        """The folder as far as the cache has it; raises when it has nothing."""

    def begun(self, where: Reference) -> int:
        """Bytes of interrupted downloads that will be resumed."""
        return 0

    @abc.abstractmethod
    def cache_folder(self) -> Path:
        """Where downloads are kept."""

    @abc.abstractmethod
    def endpoint(self) -> str:
        """The address that is asked."""

    def fetch(self, reference: str, report: Callable[[str], None]) -> Path:
        where = self._parse(reference)
        report(f"asking {self.title} for {where.repository}")
        try:
            files = self.listing(where)
        except NotInstalledError:
            raise
        except Exception as error:
            return self._from_cache(where, error, report)
        wanted, target = choose(files, where.path, f"{self.scheme}:{where.repository}")
        sizes = {name: files[name] for name in wanted}
        needed = self._missing(where, sizes)
        self._check_space(where, needed - self.begun(where) if needed else 0)
        all_of_it = len(wanted) == len(files)
        try:
            folder = self.download(where, sizes, Progress(report, needed), all_of_it=all_of_it)
        except Exception as error:
            raise self._explained(where, error) from error
        return folder / target

    def format_of(self, reference: str) -> str:
        return super().format_of(reference.partition("@")[0])

    def _parse(self, reference: str) -> Reference:
        found = _REFERENCE.fullmatch(reference)
        if found is None:
            raise ModelSourceError(
                f"{self.scheme}:{reference} is no reference; write "
                f"{self.scheme}:owner/name, {self.scheme}:owner/name/FILE or "
                f"{self.scheme}:owner/name/FILE@REVISION"
            )
        return Reference(found["repository"], found["path"] or "", found["revision"])

    def _from_cache(
        self, where: Reference, error: Exception, report: Callable[[str], None]
    ) -> Path:
        try:
            folder = self.cached(where)
            files = {
                file.relative_to(folder).as_posix(): file.stat().st_size
                for file in folder.rglob("*")
                if file.is_file()
            }
            _, target = choose(files, where.path, f"{self.scheme}:{where.repository}")
        except Exception:
            raise self._explained(where, error) from error
        report(f"{self.title} does not give {where.repository} now; taken from the cache")
        return folder / target

    def _missing(self, where: Reference, files: Mapping[str, int]) -> int:
        try:
            folder = self.cached(where)
        except Exception:
            return sum(files.values())
        return sum(size for name, size in files.items() if not (folder / name).is_file())

    def _check_space(self, where: Reference, needed: int) -> None:
        folder = self.cache_folder()
        existing = next(f for f in (folder, *folder.parents) if f.exists())
        free = shutil.disk_usage(existing).free
        if needed > free:
            raise ModelSourceError(
                f"{self.scheme}:{where.repository} needs {_size(needed)}, and {str(folder)!r} has "
                f"{_size(free)} left; free some, or set {self.cache_variable} to a folder on "
                "another disk"
            )

    def _package(self, module: str) -> ModuleType:
        try:
            return importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise NotInstalledError(
                f"{self.scheme}: needs the package {error.name!r}; "
                f"run: pip install 'byzerllm-core[{self.extra}]'"
            ) from error

    def _explained(self, where: Reference, error: Exception) -> ModelSourceError:
        subject = f"{self.scheme}:{where.repository}"
        return ModelSourceError(f"{subject}: {self._reason(where, error)}")

    def _reason(self, where: Reference, error: Exception) -> str:
        kinds, status, full_disk = _kinds(error), _status(error), _full_disk(error)
        token = "the token in " + self.token_variable
        has_token = bool(os.environ.get(self.token_variable))
        if full_disk:
            return (
                f"the disk of {str(self.cache_folder())!r} is full; free some space, or set "
                f"{self.cache_variable} to a folder on another disk. What has arrived is kept"
            )
        if "GatedRepoError" in kinds:
            return (
                f"access is restricted; accept its terms on {self.title}'s page of it and set "
                f"{self.token_variable} to a token of the same account"
            )
        if "RevisionNotFoundError" in kinds:
            return f"it has no revision {where.revision!r}"
        if "RepositoryNotFoundError" in kinds or status == 404:
            who = f"{token} may see" if has_token else "can be seen without a token"
            return (
                f"{self.title} has no such repository or revision that {who}; check the name, and "
                f"set {self.token_variable} for a private one"
            )
        if status == 401:
            return (
                f"{self.title} refuses {token}; make a new one"
                if has_token
                else (f"{self.title} wants a token; set {self.token_variable}")
            )
        if status == 403:
            return f"{token} may not read it"
        if status == 429:
            return f"{self.title} refuses more requests for now; wait, or set {self.token_variable}"
        if status and status >= 500:
            return f"{self.title} is out of order (HTTP {status}); try again later"
        if kinds & _UNREACHABLE:
            return (
                f"{_without_credentials(self.endpoint())} cannot be reached, and the model is not "
                f"complete in the cache {str(self.cache_folder())!r}; check the network and the "
                f"proxy, or set {self.endpoint_variable} to a mirror"
            )
        return f"{type(error).__name__}: {self._without_token(str(error))}"

    def _without_token(self, text: str) -> str:
        token = os.environ.get(self.token_variable)
        return text.replace(token, "******") if token else text


class HuggingFace(Hub):
    """`hf:owner/name[/PATH][@REVISION]`. Environment: HF_TOKEN, HF_ENDPOINT, HF_HOME."""

    scheme = "hf"
    description = "the Hugging Face hub: hf:owner/name[/FILE][@REVISION]"
    title = "Hugging Face"
    extra = "hf"
    token_variable = "HF_TOKEN"
    endpoint_variable = "HF_ENDPOINT"
    cache_variable = "HF_HOME"

    def listing(self, where: Reference) -> dict[str, int]:
        api = self._package("huggingface_hub").HfApi(endpoint=self.endpoint())
        info = api.model_info(
            where.repository, revision=where.revision, files_metadata=True, timeout=30
        )
        return {file.rfilename: file.size or 0 for file in info.siblings or ()}

    def download(
        self, where: Reference, files: Mapping[str, int], progress: Progress, *, all_of_it: bool
    ) -> Path:
        hub = self._package("huggingface_hub")
        large = [name for name, size in files.items() if size >= _LARGE]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for _ in pool.map(lambda name: self._fetch_blob(where, name, progress), large):
                pass
        folder = hub.snapshot_download(
            where.repository,
            revision=where.revision,
            cache_dir=self.cache_folder(),
            endpoint=self.endpoint(),
            allow_patterns=None if all_of_it else [glob.escape(name) for name in files],
            tqdm_class=_bars(self._package("tqdm").tqdm, progress),
            library_name="byzerllm",
        )
        return Path(folder)

    def _fetch_blob(self, where: Reference, name: str, progress: Progress) -> None:
        # The package drops an unfinished file; a large one is put into its cache's `blobs` here,
        # under its ETag, where the package finds it. Files on Xet are left to its own transfer.
        hub = self._package("huggingface_hub")
        url = hub.hf_hub_url(
            where.repository, name, revision=where.revision, endpoint=self.endpoint()
        )
        file = hub.get_hf_file_metadata(url, endpoint=self.endpoint())
        if file.xet_file_data is not None and hub.utils.is_xet_available():
            return
        repository = f"models--{where.repository.replace('/', '--')}"
        blob = self.cache_folder() / repository / "blobs" / file.etag
        if blob.exists() or file.size is None:
            return

        @contextlib.contextmanager
        def attempt(headers: Mapping[str, str]) -> Iterator[Any]:
            headers = hub.utils.build_hf_headers(library_name="byzerllm", headers=dict(headers))
            with hub.get_session().stream(
                "GET", url, headers=headers, follow_redirects=True, timeout=resumable.SILENCE
            ) as response:
                hub.utils.hf_raise_for_status(response)
                yield response

        resumable.fetch(
            attempt,
            blob,
            file.size,
            lock=self.cache_folder() / ".locks" / repository / f"{file.etag}.begun.lock",
            transient=_transient,
            arrived=progress.add,
        )

    def cached(self, where: Reference) -> Path:
        folder = self._package("huggingface_hub").snapshot_download(
            where.repository,
            revision=where.revision,
            cache_dir=self.cache_folder(),
            # What belongs to the model is known only after a look into the folder.
            allow_patterns=[],
            local_files_only=True,
        )
        return Path(folder)

    def begun(self, where: Reference) -> int:
        blobs = self.cache_folder() / f"models--{where.repository.replace('/', '--')}" / "blobs"
        return sum(file.stat().st_size for file in blobs.glob(f"*{resumable.BEGUN}"))

    # The package reads these once, when it is imported; here they count at each call.

    def cache_folder(self) -> Path:
        environment = os.environ
        if environment.get("HF_HUB_CACHE"):
            return Path(environment["HF_HUB_CACHE"]).expanduser()
        if environment.get("HF_HOME"):
            return Path(environment["HF_HOME"]).expanduser() / "hub"
        return Path(self._package("huggingface_hub").constants.HF_HUB_CACHE)

    def endpoint(self) -> str:
        return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


def _bars(base: type[Any], progress: Progress) -> type[Any]:
    """A progress bar class that draws nothing and tells `progress`."""

    class Bar(base):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            # Some versions count what crosses the network on a second bar.
            received = str(options.get("desc") or "").startswith("Downloading bytes")
            self._counts = options.get("unit") == "B" and not received
            super().__init__(*args, **{**options, "disable": True})
            if self._counts:
                progress.add(options.get("initial") or 0)

        def update(self, n: float | None = 1) -> None:
            if self._counts:
                progress.add(n or 0)

    return Bar


class ModelScope(Hub):
    """`modelscope:owner/name[/PATH][@REVISION]`.

    Environment: MODELSCOPE_API_TOKEN, MODELSCOPE_ENDPOINT (or MODELSCOPE_DOMAIN),
    MODELSCOPE_CACHE.
    """

    scheme = "modelscope"
    description = "ModelScope: modelscope:owner/name[/FILE][@REVISION]"
    title = "ModelScope"
    extra = "modelscope"
    token_variable = "MODELSCOPE_API_TOKEN"
    endpoint_variable = "MODELSCOPE_ENDPOINT"
    cache_variable = "MODELSCOPE_CACHE"

    def listing(self, where: Reference) -> dict[str, int]:
        api = self._package("modelscope.hub.api").HubApi(endpoint=self._chosen_endpoint())
        files = api.get_model_files(where.repository, revision=where.revision, recursive=True)
        return {f["Path"]: f.get("Size") or 0 for f in files if f.get("Type") != "tree"}

    def download(
        self, where: Reference, files: Mapping[str, int], progress: Progress, *, all_of_it: bool
    ) -> Path:
        callback = self._package("modelscope.hub.callback").ProgressCallback
        folder = self._package("modelscope.hub.snapshot_download").snapshot_download(
            where.repository,
            revision=where.revision,
            endpoint=self._chosen_endpoint(),
            cache_dir=self.cache_folder(),
            allow_patterns=None if all_of_it else [glob.escape(name) for name in files],
            progress_callbacks=[_callback(callback, progress)],
        )
        return Path(folder)

    def cached(self, where: Reference) -> Path:
        folder = self._package("modelscope.hub.snapshot_download").snapshot_download(
            where.repository,
            revision=where.revision,
            cache_dir=self.cache_folder(),
            local_files_only=True,
        )
        return Path(folder)

    def begun(self, where: Reference) -> int:
        try:
            folder = self.cached(where)
        except Exception:
            return 0
        return sum(file.stat().st_size for file in folder.rglob("*.incomplete"))

    def cache_folder(self) -> Path:
        chosen = os.environ.get("MODELSCOPE_CACHE")
        return Path(chosen or "~/.cache/modelscope").expanduser()

    def endpoint(self) -> str:
        return self._chosen_endpoint() or "https://www.modelscope.cn"

    def _chosen_endpoint(self) -> str | None:
        """None lets the package choose between its two sites."""
        chosen = os.environ.get("MODELSCOPE_ENDPOINT") or os.environ.get("MODELSCOPE_DOMAIN")
        if not chosen:
            return None
        return chosen if "://" in chosen else f"https://{chosen}"


def _callback(base: type[Any], progress: Progress) -> type[Any]:
    """A callback class, created for each file, that tells `progress`."""

    class Callback(base):  # type: ignore[misc]
        def update(self, size: int) -> None:
            progress.add(size)

    return Callback


def choose(files: Mapping[str, int], path: str, subject: str) -> tuple[list[str], str]:
    """What must be fetched, and what of it is the model ('' is the folder itself).

    Args:
        files: sizes by path, of the whole repository.
        path: the reference's PATH.
        subject: the reference without it, for messages.

    Raises:
        ModelSourceError: nothing matches, or more than one model does.
    """
    if any(character in path for character in "*?["):
        matching = [file for file in files if fnmatch.fnmatchcase(file, path)]
        if not matching:
            raise _no_file(files, path, subject)
        return _one_model(matching, files, subject)
    if path in files:
        return _one_model([path], files, subject)
    prefix = f"{path}/" if path else ""
    inside = [file for file in files if file.startswith(prefix)]
    if not inside:
        raise _no_file(files, path, subject)
    ggufs = [f for f in inside if f.lower().endswith(".gguf") and "mmproj" not in f.lower()]
    if ggufs and not any(file.endswith(_OTHER_WEIGHTS) for file in inside):
        return _one_model(ggufs, files, subject)
    return inside, path


def _one_model(
    candidates: list[str], files: Mapping[str, int], subject: str
) -> tuple[list[str], str]:
    models = sorted({_parts(candidate)[0] for candidate in candidates})
    if len(models) > 1:
        raise ModelSourceError(
            f"{subject} holds several models; name one: {_shown(models, subject)}"
        )
    parts = _parts(models[0])
    lost = [part for part in parts if part not in files]
    if lost:
        raise ModelSourceError(f"{subject}: the split GGUF {models[0]!r} lacks {', '.join(lost)}")
    return parts, models[0]


def _parts(file: str) -> list[str]:
    """The files of a split GGUF in their order; any other file is its own only part."""
    split = _SPLIT.search(file)
    if split is None:
        return [file]
    stem, count = file[: split.start()], split["parts"]
    return [f"{stem}-{n:05d}-of-{count}.gguf" for n in range(1, int(count) + 1)]


def _no_file(files: Mapping[str, int], path: str, subject: str) -> ModelSourceError:
    ggufs = [file for file in files if file.lower().endswith(".gguf")]
    return ModelSourceError(
        f"{subject} has no file or folder {path!r}{did_you_mean(path, files)}; it has "
        f"{_shown(sorted(ggufs or files), subject)}"
    )


def _shown(names: list[str], subject: str) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(f"{subject}/{name}" for name in names[:_SHOWN]) + more


def _size(count: int) -> str:
    amount = float(count)
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:.4g} GB"


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    todo: list[BaseException | None] = [error]
    while todo:
        one = todo.pop()
        if one is None or one in seen:
            continue
        seen.append(one)
        yield one
        failed = getattr(one, "failed_files", None)
        todo += [one.__context__, one.__cause__, *(failed.values() if failed else ())]


def _kinds(error: BaseException) -> set[str]:
    # By name: which HTTP package is underneath depends on the version of the hub's own.
    return {cls.__name__ for one in _chain(error) for cls in type(one).__mro__}


def _status(error: BaseException) -> int | None:
    for one in _chain(error):
        for holder in (one, getattr(one, "response", None)):
            status = getattr(holder, "status_code", None)
            if isinstance(status, int):
                return status
    return None


def _transient(error: Exception) -> bool:
    return "TransportError" in _kinds(error) or _status(error) in _PASSING


def _full_disk(error: BaseException) -> bool:
    codes = (errno.ENOSPC, errno.EDQUOT)
    return any(isinstance(one, OSError) and one.errno in codes for one in _chain(error))


def _without_credentials(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
