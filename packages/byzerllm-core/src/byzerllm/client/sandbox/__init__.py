"""Generated code, run where it can do little harm.

`run_function` runs one function of a text of Python and returns what it returned. Arguments and
result cross as data (`wire`), never as pickles. By default (`namespaces`, Linux) the code runs in a
child process in user, mount, process, network, IPC and UTS namespaces, as an unprivileged user,
with limits on time, memory, files, processes and output; docs/generated-functions.md says what that
does not protect from.

    caller ──request──▶ child process          enters the namespaces and waits
           ◀─report──── └─ supervisor          process 1 inside: watches time and memory
                          └─ the function      no rights left, limits set
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import marshal
import os
import selectors
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from byzerllm.client.sandbox import runner, wire
from byzerllm.errors import (
    GeneratedFunctionError,
    ParameterError,
    SandboxCrashError,
    SandboxError,
    SandboxMemoryError,
    SandboxResultError,
    SandboxTimeoutError,
    SandboxUnavailableError,
)

__all__ = ["Limits", "Outcome", "SandboxMode", "mechanism", "run_function"]

SandboxMode = Literal["namespaces", "process", "inprocess"]
Mechanism = Literal["bubblewrap", "unshare"]

_MIB = 1 << 20
_NOBODY = "65534"
_STARTING_SECONDS = 30.0
_REPORT_SLACK = 256 << 10
# The import sees whether the installation can be read inside.
_PROBE = "import json\n\ndef probe():\n    return 1\n"
_WAYS_OUT = (
    'sandbox="process" runs generated code in a child process with limits but without isolation, '
    'and sandbox="inprocess" in this process with neither; both must be asked for'
)
# The modules get a package that stands for this one, so that neither byzerllm nor the neighbours
# of these files (one is called types) come into the child.
_BOOT = (
    "import sys; p = type(sys)('_sandbox'); p.__path__ = [sys.argv[1]]; "
    "sys.modules['_sandbox'] = p; from _sandbox.runner import main; main()"
)
_NUMBERS = itertools.count()


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What generated code may use.

    Attributes:
        seconds: time by the clock.
        cpu_seconds: processor time of one process; at least 1, in whole seconds.
        memory: bytes of address space of one process, and of memory of all together.
        file_size: bytes of one file.
        disk: bytes of the temporary folder (`namespaces`).
        files: files in the temporary folder (`namespaces` by unshare).
        open_files: files, pipes and sockets that a process has open.
        processes: processes and threads together.
        output: bytes of printed text that are kept; the rest is dropped.
        result: bytes of the result, as JSON.
    """

    seconds: float = 10.0
    cpu_seconds: float = 10.0
    memory: int = 512 * _MIB
    file_size: int = 16 * _MIB
    disk: int = 64 * _MIB
    files: int = 1000
    open_files: int = 64
    processes: int = 16
    output: int = 64 << 10
    result: int = _MIB

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0:
                raise ParameterError.invalid(
                    field.name, f"a number above 0 (got {value!r})", where="the sandbox's limits"
                )

    @classmethod
    def of(cls, given: Limits | Mapping[str, Any] | None) -> Limits:
        """Limits, some of them by name, or None for the defaults.

        Raises:
            ParameterError: an unknown name, or a value that is no limit.
        """
        if isinstance(given, Limits):
            return given
        names = [field.name for field in fields(cls)]
        for name in given or {}:
            if name not in names:
                raise ParameterError.unknown(name, names, where="the sandbox's limits")
        return cls(**(given or {}))


@dataclass(frozen=True)
class Outcome:
    """What a function returned.

    Attributes:
        value: as plain data; a pydantic model or dataclass of the code is a dict.
        output: what the code printed, cut at the limit.
        printed: bytes that it printed in all.
        seconds: time that the code took by the clock, without the start of its process.
    """

    value: Any
    output: str = ""
    printed: int = 0
    seconds: float = 0.0


def checked_mode(sandbox: str) -> SandboxMode:
    """Raises ParameterError for a mode that does not exist."""
    for mode in get_args(SandboxMode):
        if sandbox == mode:
            return sandbox  # type: ignore[return-value]
    raise ParameterError.unknown(str(sandbox), get_args(SandboxMode), where="sandbox")


def run_function(
    source: str,
    function: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    sandbox: SandboxMode = "namespaces",
    limits: Limits | Mapping[str, Any] | None = None,
) -> Outcome:
    """Run one function of a text of Python. Blocks until it ends, at most its time limit and the
    start of a process.

    Args:
        source: a module; its top level runs too.
        function: the name of the function. A coroutine function is run to its end.
        arguments: by name. Pydantic models and dataclasses arrive as the class of the same name
            that the code defines, else as a dict whose keys can be read as attributes.
        sandbox: `namespaces`; `process`: a child process with limits alone; `inprocess`: neither.
        limits: all of them, or some by name; not for `inprocess`.

    Raises:
        GeneratedFunctionError: the code does not parse or define the function, raised, or
            returned what is not data.
        SandboxTimeoutError, SandboxMemoryError, SandboxResultError: a limit was reached.
        SandboxCrashError: the code ended its process.
        SandboxUnavailableError: `namespaces` cannot be had on this machine.
        ParameterError: an unknown mode or limit, or an argument that is not data.
    """
    mode = checked_mode(sandbox)
    checked = Limits.of(limits)
    given = dict(arguments or {})
    if mode == "inprocess":
        return _run_inprocess(source, function, given)
    request = {
        "source": source,
        "function": function,
        "arguments": _encoded(given, function),
        "limits": asdict(checked),
        "site": _layout().site,
    }
    if mode == "process":
        return _run_process(request, checked)
    return _run_namespaces(request, checked, mechanism())


def _encoded(arguments: dict[str, Any], function: str) -> dict[str, Any]:
    encoded = {}
    for name, value in arguments.items():
        try:
            encoded[name] = wire.encode(value)
        except (wire.NotDataError, RecursionError) as error:
            raise ParameterError.invalid(name, str(error), where=f"function {function!r}") from None
    return encoded


# In this process.


def _run_inprocess(source: str, function: str, arguments: dict[str, Any]) -> Outcome:
    """In a thread of its own, so that coroutines run also where a loop runs already."""
    with ThreadPoolExecutor(1, thread_name_prefix="byzerllm-generated") as pool:
        return pool.submit(_evaluate, source, function, arguments).result()


def _evaluate(source: str, function: str, arguments: dict[str, Any]) -> Outcome:
    started = time.monotonic()
    name = f"byzerllm_generated_{next(_NUMBERS)}"
    try:
        returned = runner.call(runner.load(source, name), function, arguments)
        value = wire.decode(wire.encode(returned, by_alias=True))
    except runner.MissingFunctionError as error:
        raise GeneratedFunctionError(str(error), code=source) from None
    except wire.NotDataError as error:
        raise GeneratedFunctionError(
            f"the result of generated function {function!r} is not data: {error}", code=source
        ) from None
    except BaseException as error:
        raise _raised(function, source, runner.describe(error, source)) from None
    finally:
        sys.modules.pop(name, None)
    return Outcome(value, seconds=time.monotonic() - started)


# In a child process.


@dataclass(frozen=True)
class _Layout:
    """Where Python lies on this machine.

    Attributes:
        python: the interpreter, links resolved.
        site: folders of installed packages.
        binds: (path outside, path inside) of everything that running Python needs.
        links: (link, target) of the system folders that are links.
    """

    python: str
    site: list[str]
    binds: list[tuple[str, str]]
    links: list[tuple[str, str]]


_SYSTEM = ("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/local/lib")
_SYSTEM_FILES = ("/etc/ld.so.cache", "/etc/localtime", "/usr/share/zoneinfo", "/nix/store")


@functools.cache
def _layout() -> _Layout:
    if not sys.executable:
        raise SandboxUnavailableError(
            "this program does not say where its Python interpreter is (sys.executable is "
            f"empty), so generated code cannot get a process of its own; {_WAYS_OUT}"
        )
    paths = sysconfig.get_paths()
    site = [paths[name] for name in ("purelib", "platlib")]
    site += [path for path in sys.path if path.endswith("dist-packages")]
    site = list(dict.fromkeys(os.path.realpath(path) for path in site if os.path.isdir(path)))
    prefixes = {sys.base_prefix, sys.base_exec_prefix}
    folders = [os.path.join(prefix, name) for prefix in prefixes for name in ("lib", "lib64")]
    python = os.path.realpath(sys.executable)
    wanted = [python, paths["stdlib"], paths["platstdlib"], *site, *folders]
    real = {os.path.realpath(path) for path in (*wanted, *_SYSTEM) if os.path.exists(path)}
    binds = [(path, path) for path in _outermost(real)]
    binds += [(os.path.realpath(path), path) for path in _SYSTEM_FILES if os.path.exists(path)]
    links = [(path, os.readlink(path)) for path in _SYSTEM if os.path.islink(path)]
    return _Layout(python, site, binds, links)


def _outermost(paths: set[str]) -> Iterator[str]:
    """The paths that do not lie in another one."""
    for path in sorted(paths):
        if not any(str(parent) in paths for parent in Path(path).parents):
            yield path


def _environment(home: str) -> dict[str, str]:
    """Nothing of the caller's but the time zone. One thread each for numeric libraries: they
    take address space for each core that they see."""
    own = {"PATH": "/usr/bin:/bin", "HOME": home, "TMPDIR": home, "LC_ALL": "C.UTF-8"}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    zone = {"TZ": os.environ["TZ"]} if "TZ" in os.environ else {}
    return {**own, **threads, **zone}


def _command() -> list[str]:
    return [_layout().python, "-I", "-S", "-c", _BOOT, str(Path(__file__).parent)]


@functools.cache
def _probed() -> Mechanism:
    if sys.platform != "linux":
        raise SandboxUnavailableError(
            f"namespaces are a part of Linux, and this is {sys.platform}; {_WAYS_OUT}"
        )
    reasons = []
    for candidate in _candidates():
        request = {
            "source": _PROBE,
            "function": "probe",
            "arguments": {},
            "limits": asdict(Limits()),
            "site": [],
        }
        try:
            _run_namespaces(request, Limits(), candidate)
        except (SandboxError, OSError) as error:
            reasons.append(f"{candidate}: {error}")
        else:
            return candidate
    raise SandboxUnavailableError(
        "generated code runs in Linux namespaces, which this machine does not give "
        f"({'; '.join(reasons)}). Allow unprivileged user namespaces, or choose: {_WAYS_OUT}"
    )


def _candidates() -> Sequence[Mechanism]:
    """bubblewrap cannot make root somebody else outside; our own set-up can."""
    if os.geteuid() == 0 or shutil.which("bwrap") is None:
        return ("unshare",)
    return ("bubblewrap", "unshare")


_PROBING = threading.Lock()


def mechanism() -> Mechanism:
    """What makes the namespaces here; found out once.

    Raises:
        SandboxUnavailableError: nothing does; says why.
    """
    with _PROBING:
        return _probed()


def _run_namespaces(request: dict[str, Any], limits: Limits, by: Mechanism) -> Outcome:
    if by == "bubblewrap":
        return _run_child(
            [*_bubblewrap(limits), *_command()],
            {**request, "isolation": "bubblewrap"}, limits, "/tmp", "/",
        )  # fmt: skip
    layout = _layout()
    request = {
        **request,
        "isolation": "namespaces",
        "binds": layout.binds,
        "links": layout.links,
    }
    return _run_child(_command(), request, limits, "/tmp", "/")


def _bubblewrap(limits: Limits) -> list[str]:
    layout = _layout()
    here = os.path.realpath(Path(__file__).parent)
    binds = dict.fromkeys([*layout.binds, (here, str(Path(__file__).parent))])
    return [
        shutil.which("bwrap") or "bwrap",
        *("--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"),
        *("--die-with-parent", "--cap-drop", "ALL", "--hostname", "sandbox"),
        *("--uid", _NOBODY, "--gid", _NOBODY),
        *(word for pair in binds for word in ("--ro-bind", *pair)),
        *(word for link, target in layout.links for word in ("--symlink", target, link)),
        *("--dir", "/dev"),
        *(
            word
            for name in ("null", "zero", "random", "urandom")
            for word in ("--dev-bind", f"/dev/{name}", f"/dev/{name}")
        ),
        *("--proc", "/proc", "--size", str(limits.disk), "--tmpfs", "/tmp", "--remount-ro", "/"),
        *("--chdir", "/tmp", "--"),
    ]


def _run_process(request: dict[str, Any], limits: Limits) -> Outcome:
    with tempfile.TemporaryDirectory(
        prefix="byzerllm-generated-", ignore_cleanup_errors=True
    ) as home:
        return _run_child(_command(), {**request, "isolation": "none"}, limits, home, home)


def _run_child(
    command: list[str], request: dict[str, Any], limits: Limits, home: str, folder: str
) -> Outcome:
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=_environment(home),
        cwd=folder,
        start_new_session=True,
    )
    talk = _Talk(process, marshal.dumps(request), limits)
    try:
        talk.until(time.monotonic() + limits.seconds + _STARTING_SECONDS)
    finally:
        # Not reaped yet, so its number is still its own.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        process.wait()
    return _outcome(talk, request, limits)


class _Talk:
    """The request written and the report read, in bounded time and memory."""

    def __init__(self, process: subprocess.Popen[bytes], request: bytes, limits: Limits) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self.report = bytearray()
        self.complaints = bytearray()
        self.timed_out = False
        self.flooded = False
        self._stdin = process.stdin
        self._left = memoryview(request)
        self._most = limits.result + limits.output + _REPORT_SLACK
        self._selector = selectors.DefaultSelector()
        for pipe, event, data in (
            (process.stdin, selectors.EVENT_WRITE, None),
            (process.stdout, selectors.EVENT_READ, self.report),
            (process.stderr, selectors.EVENT_READ, self.complaints),
        ):
            os.set_blocking(pipe.fileno(), False)
            self._selector.register(pipe, event, data)

    def until(self, deadline: float) -> None:
        with self._selector:
            while self._selector.get_map():
                left = deadline - time.monotonic()
                if left <= 0:
                    self.timed_out = True
                    return
                for key, _ in self._selector.select(left):
                    if key.data is None:
                        self._write()
                    elif not self._read(key.fd, key.fileobj, key.data):
                        return

    def _write(self) -> None:
        try:
            self._left = self._left[os.write(self._stdin.fileno(), self._left[: 1 << 16]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._left = self._left[:0]
        if not self._left:
            self._selector.unregister(self._stdin)
            with contextlib.suppress(BrokenPipeError):
                self._stdin.close()

    def _read(self, descriptor: int, pipe: Any, into: bytearray) -> bool:
        data = os.read(descriptor, 1 << 16)
        into += data
        if not data:
            self._selector.unregister(pipe)
        if len(into) > self._most:
            self.flooded = True
        # The report ends with the supervisor's end of it; descendants may hold the other pipe.
        return not self.flooded and not (not data and into is self.report)


def _outcome(talk: _Talk, request: dict[str, Any], limits: Limits) -> Outcome:
    function, source = request["function"], request["source"]
    about: dict[str, Any] = {"code": source}
    if talk.timed_out:
        raise SandboxTimeoutError(
            f"generated function {function!r} and its process did not end within "
            f"{limits.seconds:g} s and {_STARTING_SECONDS:g} s for the start",
            **about,
        )
    header, result, output = _parts(talk, function, source)
    about["output"] = output
    _check_limits(header, function, limits, about)
    answer = _answer(header, result, function, about)
    if "error" in answer:
        raise _failed(answer["error"], function, limits, about)
    try:
        value = wire.decode(answer["value"])
    except wire.WireError as error:
        raise _no_answer(function, str(error), about) from None
    return Outcome(value, output, header["printed"], header["seconds"])


def _parts(talk: _Talk, function: str, source: str) -> tuple[dict[str, Any], bytes, str]:
    """The report's header, the result and the output. In `process` mode the code can kill or
    rewrite its supervisor, so nothing is taken for granted."""
    line, _, rest = bytes(talk.report).partition(b"\n")
    try:
        header = json.loads(line)
        if header["outcome"] == "unavailable":
            raise SandboxUnavailableError(str(header["reason"]))
        size = int(header["result"])
        printed = rest[size : size + int(header["output"])].decode(errors="replace")
        header["status"], header["printed"] = int(header["status"]), int(header["printed"])
        header["seconds"] = float(header["seconds"])
    except (ValueError, TypeError, LookupError, RecursionError, OverflowError):
        complaint = bytes(talk.complaints[-2000:]).decode(errors="replace").strip()
        reason = "it wrote too much" if talk.flooded else complaint or "no report"
        raise SandboxCrashError(
            f"the process of generated function {function!r} ended without a report: {reason}",
            code=source,
        ) from None
    return header, rest[:size], printed


def _check_limits(
    header: dict[str, Any], function: str, limits: Limits, about: dict[str, Any]
) -> None:
    name = f"generated function {function!r}"
    match header["outcome"]:
        case "timeout":
            raise SandboxTimeoutError(
                f"{name} did not end within its time limit of {limits.seconds:g} s", **about
            )
        case "cpu":
            raise SandboxTimeoutError(
                f"{name} used more processor time than its limit of {limits.cpu_seconds:g} s",
                **about,
            )
        case "memory":
            raise _out_of_memory(function, limits, about)
        case "too_large":
            raise _too_large(function, limits, about)


def _answer(
    header: dict[str, Any], result: bytes, function: str, about: dict[str, Any]
) -> dict[str, Any]:
    """What the function's own process says, which the code can have written itself."""
    if not result:
        raise SandboxCrashError(
            f"generated function {function!r} ended its process: {_ending(header['status'])}",
            **about,
        )
    try:
        answer = json.loads(result)
    except (ValueError, RecursionError) as error:
        raise _no_answer(function, str(error), about) from None
    if isinstance(answer, dict) and ("value" in answer or isinstance(answer.get("error"), dict)):
        return answer
    raise _no_answer(function, "it has neither a value nor an error", about)


def _ending(status: int) -> str:
    if status >= 0:
        return f"it exited with {status} and no result"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


def _failed(
    error: dict[str, Any], function: str, limits: Limits, about: dict[str, Any]
) -> SandboxError:
    message = str(error.get("message", ""))
    match error.get("kind"):
        case "memory":
            return _out_of_memory(function, limits, about)
        case "too_large":
            return _too_large(function, limits, about)
        case "missing":
            return GeneratedFunctionError(message, **about)
        case "not_data":
            return GeneratedFunctionError(
                f"the result of generated function {function!r} is not data: {message}", **about
            )
    return _raised(function, about.pop("code"), error, **about)


def _raised(
    function: str, source: str, error: Mapping[str, Any], **about: Any
) -> GeneratedFunctionError:
    kind, message = str(error.get("type", "Exception")), str(error.get("message", ""))
    return GeneratedFunctionError(
        f"generated function {function!r} raised {kind}{': ' if message else ''}{message}",
        code=source,
        remote_traceback=str(error.get("traceback", "")),
        **about,
    )


def _out_of_memory(function: str, limits: Limits, about: dict[str, Any]) -> SandboxMemoryError:
    return SandboxMemoryError(
        f"generated function {function!r} needs more memory than its limit of "
        f"{limits.memory / _MIB:g} MiB",
        **about,
    )


def _too_large(function: str, limits: Limits, about: dict[str, Any]) -> SandboxResultError:
    return SandboxResultError(
        f"the result of generated function {function!r} is larger than its limit of "
        f"{limits.result / _MIB:g} MiB as JSON",
        **about,
    )


def _no_answer(function: str, reason: str, about: dict[str, Any]) -> SandboxResultError:
    return SandboxResultError(
        f"what generated function {function!r} sent back is not a result: {reason}", **about
    )
