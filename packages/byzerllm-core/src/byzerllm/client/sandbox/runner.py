"""The child's side of the sandbox: it runs one generated function and reports what came of it.

The process that the caller starts goes into the namespaces and forks. The fork gives up its rights
and runs the function; the first one stays its supervisor: it reads what the function prints and
returns, up to the limits, watches time and memory, and writes one report for the caller. What the
function's process sends is data to it that is passed on unread.

The report: a line of JSON (`outcome`, `status`, `cpu`, `seconds`, `printed`, and in `result` and
`output` the bytes of the two parts that follow), the result in JSON, the output. The standard
library alone: this is loaded without the package.
"""

from __future__ import annotations

import marshal
import os
import resource
import select
import sys
import time

from . import wire

# Every import costs each call its milliseconds, so there are few: no typing (type checkers take
# the name for true), no json, no contextlib, no signal.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType
    from typing import Any, NoReturn

MODULE = "generated_code"
FILENAME = "<generated>"
_RESULT_FD = 3
_LONGEST_MESSAGE = 2_000
_LONGEST_TRACEBACK = 8_000
_WATCH_SECONDS = 0.05
_STACK = 8 << 20
# What an error's text may take beside the result's own limit.
_ERROR_BYTES = 64 << 10
_SIGKILL, _SIGXCPU = 9, 24
_LINUX = sys.platform == "linux"


class MissingFunctionError(LookupError):
    """The code does not define the function."""


def load(source: str, name: str = MODULE) -> ModuleType:
    """Run a module's source. The module is registered, as pydantic and dataclasses ask for it."""
    module = type(sys)(name)
    sys.modules[name] = module
    exec(compile(source, FILENAME, "exec"), module.__dict__)
    return module


def call(module: ModuleType, function: str, arguments: Mapping[str, Any]) -> Any:
    """Call a module's function; a coroutine is run to its end.

    Raises:
        MissingFunctionError: there is none of this name.
    """
    found = getattr(module, function, None)
    if not callable(found):
        raise MissingFunctionError(f"the code does not define a function {function!r}")
    result = found(**arguments)
    if hasattr(result, "__await__"):
        import asyncio

        return asyncio.run(_awaited(result))
    return result


async def _awaited(result: Any) -> Any:
    return await result


def describe(error: BaseException, source: str) -> dict[str, str]:
    """An error of generated code as text, its own lines in the traceback."""
    import linecache
    import traceback

    lines = source.splitlines(keepends=True)
    linecache.cache[FILENAME] = (len(source), None, lines, FILENAME)
    try:
        tail = error.__traceback__
        while tail is not None and tail.tb_frame.f_code.co_filename != FILENAME:
            tail = tail.tb_next
        text = "".join(traceback.format_exception(error.with_traceback(tail)))
        return {
            "type": type(error).__name__,
            "message": str(error)[:_LONGEST_MESSAGE],
            "traceback": text[-_LONGEST_TRACEBACK:],
        }
    except Exception:
        # An exception whose own text fails.
        return {"type": type(error).__name__, "message": "", "traceback": ""}
    finally:
        linecache.cache.pop(FILENAME, None)


# The function's process.


def _run_function(request: dict[str, Any], result: int, output: int) -> NoReturn:
    """Never returns, whatever the code does."""
    code = 70
    try:
        _settle(result, output)
        _restrict(request)
        try:
            answer = _answer(request)
        except MemoryError:
            answer = _failure("memory", "")
        _flush()
        _send(answer)
        code = 0
    finally:
        # Not exit: threads that the code left running would hold it up.
        os._exit(code)


def _flush() -> None:
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except Exception:
        # The code may have closed or replaced them.
        return


def _settle(result: int, output: int) -> None:
    if result != _RESULT_FD:
        if output == _RESULT_FD:
            output = os.dup(output)
        os.dup2(result, _RESULT_FD)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.closerange(_RESULT_FD + 1, 1 << 16)
    os.set_blocking(_RESULT_FD, True)


def _restrict(request: dict[str, Any]) -> None:
    limits, mode = request["limits"], request["isolation"]
    _limit("RLIMIT_CORE", 0)
    cpu = max(1, round(limits["cpu_seconds"]))
    _limit("RLIMIT_CPU", cpu, cpu + 1)
    _limit("RLIMIT_FSIZE", limits["file_size"])
    _limit("RLIMIT_NOFILE", limits["open_files"])
    _limit("RLIMIT_STACK", _STACK)
    _limit("RLIMIT_MEMLOCK", 0)
    _limit("RLIMIT_MSGQUEUE", 0)
    processes = _process_limit(limits["processes"], mode)
    if processes is not None:
        _limit("RLIMIT_NPROC", processes)
    _limit("RLIMIT_AS", limits["memory"])
    if not _LINUX:
        return
    from . import isolation

    if mode == "namespaces":
        isolation.become_nobody()
    # Changing the user clears it, and with it the process's view of itself in /proc.
    isolation.set_dumpable(True)
    isolation.no_new_privileges()
    if mode == "none":
        isolation.die_with_parent()
    else:
        isolation.filter_system_calls()


def _limit(name: str, soft: int, hard: int | None = None) -> None:
    """Set a limit that the platform has, below what the process was given."""
    number = getattr(resource, name, None)
    if number is None:
        return
    hard = soft if hard is None else hard
    _, given = resource.getrlimit(number)
    if given != resource.RLIM_INFINITY:
        soft, hard = min(soft, given), min(hard, given)
    try:
        resource.setrlimit(number, (soft, hard))
    except ValueError:
        # macOS refuses some that it names.
        return


def _process_limit(processes: int, mode: str) -> int | None:
    """RLIMIT_NPROC counts every process and thread of a user: in a user namespace its own alone
    (since Linux 5.14), outside one all of them."""
    if not _LINUX:
        return None
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    if mode != "none" and release >= (5, 14):
        return processes
    return processes + _tasks_of_user() if mode == "none" else None


def _tasks_of_user() -> int:
    return sum(_tasks(name) for name in os.listdir("/proc") if name.isdigit())


def _tasks(name: str) -> int:
    try:
        own = os.stat(f"/proc/{name}").st_uid == os.getuid()
        return len(os.listdir(f"/proc/{name}/task")) if own else 0
    except OSError:
        return 0


def _answer(request: dict[str, Any]) -> bytes:
    source = request["source"]
    sys.argv = [MODULE]
    sys.path.extend(request["site"])
    try:
        module = load(source)
        arguments = wire.decode(request["arguments"], vars(module))
        value = call(module, request["function"], arguments)
        answer = _bytes({"value": wire.encode(value, by_alias=True)})
        size, largest = len(answer), request["limits"]["result"]
        if size > largest:
            return _failure("too_large", f"it has {size} bytes of at most {largest}")
        return answer
    except MemoryError:
        return _failure("memory", "")
    except wire.NotDataError as error:
        return _failure("not_data", str(error))
    except MissingFunctionError as error:
        return _failure("missing", str(error))
    except BaseException as error:
        # The code may have used up the files that a traceback needs to be read.
        os.closerange(_RESULT_FD + 1, 1 << 16)
        return _failure("raised", **describe(error, source))


def _failure(kind: str, message: str, **parts: str) -> bytes:
    return _bytes({"error": {"kind": kind, "message": message, **parts}})


def _bytes(data: dict[str, Any]) -> bytes:
    return wire.dumps(data).encode(errors="surrogatepass")


def _send(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(_RESULT_FD, view) :]


# Its supervisor.


class _Supervisor:
    """Waits for the function's process, and for no longer than it may take."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.limits = request["limits"]
        self.isolation = request["isolation"]
        self.result = bytearray()
        self.output = bytearray()
        self.printed = 0
        self.outcome = "ended"
        self.started = time.monotonic()
        self._poll = select.poll()
        result, self._result_writer = self._pipe()
        output, self._output_writer = self._pipe()
        self._readers = {result: self._read_result, output: self._read_output}
        self.pid = os.fork()
        if self.pid == 0:
            _run_function(request, self._result_writer, self._output_writer)
        os.close(self._result_writer)
        os.close(self._output_writer)
        self._tick = self._watch_end()

    def _watch_end(self) -> float:
        """Have the poll return when the function's process ends; else look every few ms."""
        try:
            self._poll.register(os.pidfd_open(self.pid), select.POLLIN)
        except (AttributeError, OSError):
            return 0.005
        return _WATCH_SECONDS

    def _pipe(self) -> tuple[int, int]:
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        self._poll.register(reader, select.POLLIN)
        return reader, writer

    def wait(self) -> dict[str, Any]:
        """The report's first line."""
        deadline = self.started + self.limits["seconds"]
        status = usage = None
        while status is None:
            left = deadline - time.monotonic()
            wait = max(0.0, min(left, self._tick))
            for descriptor, _ in self._poll.poll(wait * 1000):
                if descriptor in self._readers:
                    self._read(descriptor)
            self._check(left)
            if self.outcome != "ended":
                break
            pid, waited, usage = os.wait4(self.pid, os.WNOHANG)
            status = waited if pid else None
        if status is None or usage is None:
            # Not reaped yet, so its number is still its own.
            os.kill(self.pid, _SIGKILL)
            _, status, usage = os.wait4(self.pid, 0)
        for descriptor in list(self._readers):
            # More than once around a full pipe would wait for descendants that go on writing.
            for _ in range(16):
                if descriptor in self._readers:
                    self._read(descriptor)
        if self.outcome == "ended" and self._is_too_large():
            self.outcome = "too_large"
        if self.isolation == "none" and _LINUX:
            _kill_descendants()
        code = os.waitstatus_to_exitcode(status)
        cpu = usage.ru_utime + usage.ru_stime
        if self.outcome == "ended" and (code == -_SIGXCPU or self._out_of_cpu(code, cpu)):
            self.outcome = "cpu"
        return {
            "outcome": self.outcome,
            "status": code,
            "cpu": cpu,
            "seconds": time.monotonic() - self.started,
            "printed": self.printed,
            "result": len(self.result),
            "output": len(self.output),
        }

    def _is_too_large(self) -> bool:
        most: int = self.limits["result"] + _ERROR_BYTES
        return len(self.result) > most

    def _out_of_cpu(self, code: int, cpu: float) -> bool:
        most: float = self.limits["cpu_seconds"]
        return code == -_SIGKILL and cpu >= most

    def _check(self, left: float) -> None:
        if left <= 0:
            self.outcome = "timeout"
        elif self._is_too_large():
            self.outcome = "too_large"
        elif self.isolation != "none" and _resident(self.pid) > self.limits["memory"]:
            self.outcome = "memory"

    def _read(self, descriptor: int) -> None:
        try:
            data = os.read(descriptor, 1 << 16)
        except BlockingIOError:
            return
        if data:
            self._readers[descriptor](data)
            return
        self._poll.unregister(descriptor)
        del self._readers[descriptor]

    def _read_result(self, data: bytes) -> None:
        self.result += data

    def _read_output(self, data: bytes) -> None:
        """The rest is read too, and dropped: a full pipe would stop the function."""
        self.printed += len(data)
        self.output += data[: self.limits["output"] - len(self.output)]


def _resident(function: int) -> int:
    """Bytes of memory that the processes of this namespace hold. One process alone has its own
    limit, and is not counted: several may hold that much each."""
    try:
        found = [name for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return 0
    own = str(os.getpid())
    others = [name for name in found if name not in (own, "1")]
    if others in ([], [str(function)]):
        return 0
    return sum(_resident_of(name) for name in others)


def _resident_of(name: str) -> int:
    try:
        with open(f"/proc/{name}/status", "rb") as file:
            lines = dict(line.split(b":", 1) for line in file if line.startswith(b"Rss"))
    except OSError:
        return 0
    kept = (lines.get(key, b"0 kB") for key in (b"RssAnon", b"RssShmem"))
    return sum(int(value.split()[0]) for value in kept) * 1024


def _kill_descendants() -> None:
    """End what the function started and left: its orphans are children of this process."""
    for _ in range(100):
        try:
            with open("/proc/thread-self/children", "rb") as file:
                children = [int(pid) for pid in file.read().split()]
        except OSError:
            return
        if not children:
            return
        for pid in children:
            os.kill(pid, _SIGKILL)
        for pid in children:
            os.waitpid(pid, 0)


def main() -> None:
    """Read the request from standard input, write the report to standard output."""
    if _LINUX:
        from . import isolation

        isolation.die_with_parent()
    request = marshal.loads(sys.stdin.buffer.read())
    try:
        _isolate(request)
    except OSError as error:
        _report({"outcome": "unavailable", "reason": str(error), "result": 0, "output": 0})
        return
    supervisor = _Supervisor(request)
    header = supervisor.wait()
    _report(header, bytes(supervisor.result), bytes(supervisor.output))


def _isolate(request: dict[str, Any]) -> None:
    if not _LINUX:
        return
    from . import isolation

    if request["isolation"] == "namespaces":
        limits = request["limits"]
        isolation.enter(request["binds"], request["links"], limits["disk"], limits["files"])
    if request["isolation"] == "none":
        isolation.adopt_orphans()
    isolation.set_dumpable(False)


def _report(header: dict[str, Any], result: bytes = b"", output: bytes = b"") -> NoReturn:
    with os.fdopen(1, "wb") as stdout:
        stdout.write(wire.dumps(header).encode() + b"\n")
        stdout.write(result)
        stdout.write(output)
    os._exit(0)
