"""Generated code that means harm, run for real: each snippet ends within its limits with a named
error or a harmless result, and the caller is as it was."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import psutil
import pydantic
import pytest
from hypothesis import given

from byzerllm.client import sandbox as module
from byzerllm.client.sandbox import (
    Limits,
    Outcome,
    SandboxMode,
    isolation,
    mechanism,
    run_function,
    wire,
)
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

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="namespaces are a part of Linux")

MIB = 1 << 20
# A snippet that is meant to run into its time limit gets a short one.
LIMITS = Limits(seconds=8, cpu_seconds=4, memory=256 * MIB, disk=8 * MIB, files=200)
SHORT = dataclasses.replace(LIMITS, seconds=1)
REPLY_SECONDS = 20


@dataclasses.dataclass(frozen=True)
class Hostile:
    """A snippet and how it must end: in one of `errors`, or with a value that `harmless` takes."""

    name: str
    code: str
    errors: tuple[type[SandboxError], ...] = ()
    harmless: Any = None
    limits: Limits = LIMITS


def hostile(name: str, code: str, *errors: type[SandboxError], **options: Any) -> Hostile:
    return Hostile(name, textwrap.dedent(code), errors, **options)


SNIPPETS = [
    hostile("endless loop", "def f():\n    while True: pass", SandboxTimeoutError, limits=SHORT),
    hostile(
        "endless loop beside the clock",
        "def f():\n    while True: pass",
        SandboxTimeoutError,
        limits=dataclasses.replace(LIMITS, cpu_seconds=1),
    ),
    hostile(
        "endless loop at import", "while True: pass\ndef f(): ...", SandboxTimeoutError,
        limits=SHORT,
    ),
    hostile(
        "sleep for ever", "import time\ndef f():\n    time.sleep(1e6)", SandboxTimeoutError,
        limits=SHORT,
    ),
    hostile(
        "fork bomb",
        """
        import os
        def f():
            while True:
                try:
                    os.fork()
                except OSError:
                    pass
        """,
        SandboxTimeoutError, SandboxMemoryError,
        limits=SHORT,
    ),
    hostile("memory bomb", "def f():\n    return len(bytearray(10**10))", SandboxMemoryError),
    hostile(
        "memory bomb piece by piece",
        """
        def f():
            kept = []
            while True:
                kept.append(bytearray(1 << 20))
        """,
        SandboxMemoryError,
    ),
    hostile(
        "memory bomb of several processes",
        """
        import os, time
        def f():
            for _ in range(10):
                if os.fork() == 0:
                    kept = bytearray(100 << 20)
                    for i in range(0, len(kept), 4096):
                        kept[i] = 1
                    time.sleep(100)
            time.sleep(100)
        """,
        SandboxMemoryError,
    ),
    hostile(
        "memory that no process counts",
        """
        import os, ctypes
        def f():
            got = []
            for call in (319, 29):  # memfd_create, shmget on x86_64
                got.append(ctypes.CDLL(None).syscall(call, b"x", 1 << 30, 0o1600))
            try:
                os.memfd_create("x")
            except OSError as error:
                got.append(error.errno)
            return got
        """,
        harmless=lambda value: value[-1] == 1,
    ),
    hostile(
        "reading the environment",
        "import os\ndef f():\n    return dict(os.environ)",
        harmless=lambda value: "SECRET" not in repr(value) and value["HOME"] == "/tmp",
    ),
    hostile(
        "reading the environment of its parents",
        """
        import os
        def f():
            seen = []
            for pid in os.listdir("/proc") if os.path.isdir("/proc") else ():
                try:
                    seen.append(open(f"/proc/{pid}/environ", "rb").read())
                except (OSError, ValueError):
                    pass
            return seen
        """,
        harmless=lambda value: b"SECRET" not in b"".join(value),
    ),
    hostile(
        "reading the home folder",
        "import os\ndef f():\n    return open(os.path.join(HOME, 'secret')).read()",
        GeneratedFunctionError,
    ),
    hostile(
        "listing every file",
        """
        import os
        def f():
            skipped = ("/proc", "/usr", "/lib", "/dev")
            python = os.path.dirname(os.__file__)
            for folder, folders, files in os.walk("/"):
                if "secret-of-the-caller" in files:
                    return os.path.join(folder, "secret-of-the-caller")
                paths = [(name, os.path.join(folder, name)) for name in folders]
                folders[:] = [
                    name for name, path in paths
                    if path not in skipped and path != python and name != "site-packages"
                ]
            return None
        """,
        harmless=lambda value: value is None,
    ),
    hostile(
        "reading the passwords",
        "def f():\n    return open('/etc/shadow').read()",
        GeneratedFunctionError,
    ),
    hostile(
        "writing outside",
        "def f():\n    open(HOME + '/written', 'w').write('x')",
        GeneratedFunctionError,
    ),
    hostile(
        "writing into the root",
        "def f():\n    open('/written', 'w').write('x')",
        GeneratedFunctionError,
    ),
    hostile(
        "changing the Python installation",
        """
        import os
        def f():
            done = []
            for path in (os.__file__, "/usr/lib"):
                target = path if path.endswith(".py") else os.path.join(path, "written")
                try:
                    open(target, "a").close()
                    done.append(target)
                except OSError:
                    pass
            return done
        """,
        harmless=lambda value: value == [],
    ),
    hostile(
        "deleting files",
        """
        import os, shutil
        def f():
            shutil.rmtree(os.path.dirname(shutil.__file__) + "/email", ignore_errors=True)
            shutil.rmtree(HOME, ignore_errors=True)
            os.remove(os.__file__)
        """,
        GeneratedFunctionError,
    ),
    hostile(
        "opening a socket",
        """
        import socket
        def f():
            socket.create_connection(("127.0.0.1", PORT), timeout=2)
            return "connected"
        """,
        GeneratedFunctionError,
    ),
    hostile(
        "a socket to the hypervisor",
        "import socket\ndef f():\n    socket.socket(40, socket.SOCK_STREAM)",
        GeneratedFunctionError,
    ),
    hostile(
        "crash by ctypes",
        "import ctypes\ndef f():\n    ctypes.string_at(1)",
        SandboxCrashError,
    ),
    hostile("abort", "import os\ndef f():\n    os.abort()", SandboxCrashError),
    hostile(
        "printing without end",
        "def f():\n    while True: print('x' * 100_000)",
        SandboxTimeoutError,
        limits=SHORT,
    ),
    hostile(
        "printing half a gigabyte",
        """
        import os
        def f():
            for _ in range(500):
                os.write(2, b"x" * (1 << 20))
            return "done"
        """,
        harmless=lambda value: value == "done",
    ),
    hostile(
        "returning what cannot be pickled", "def f():\n    return lambda: 1",
        GeneratedFunctionError,
    ),
    hostile(
        "returning a pickle that runs code",
        """
        import os
        class Evil:
            def __reduce__(self):
                return os.system, ("echo harm",)
        def f():
            return Evil()
        """,
        GeneratedFunctionError,
    ),
    hostile(
        "returning a generator without end",
        "import itertools\ndef f():\n    return (i for i in itertools.count())",
        GeneratedFunctionError,
    ),
    hostile(
        "returning a list that holds itself",
        "def f():\n    x = []\n    x.append(x)\n    return x",
        GeneratedFunctionError,
    ),
    hostile("huge result", "def f():\n    return 'x' * (50 << 20)", SandboxResultError),
    hostile(
        "huge number",
        "def f():\n    return 1 << (1 << 20)",
        harmless=lambda value: value == 1 << (1 << 20),
    ),
    hostile(
        "deep recursion", "def f(n=0):\n    return f(n + 1)", GeneratedFunctionError,
    ),
    hostile(
        "recursion without Python's limit",
        """
        import sys
        def f():
            sys.setrecursionlimit(10**9)
            class Deep:
                def __repr__(self):
                    return repr(self)
            return repr(Deep())
        """,
        SandboxCrashError, SandboxMemoryError,
    ),
    hostile("sys.exit", "import sys\ndef f():\n    sys.exit(0)", GeneratedFunctionError),
    hostile("exit at import", "raise SystemExit\ndef f(): ...", GeneratedFunctionError),
    hostile("os._exit", "import os\ndef f():\n    os._exit(0)", SandboxCrashError),
    hostile(
        "killing its parent",
        """
        import os, signal
        def f():
            for pid in (os.getppid(), 1, -1):
                try:
                    os.kill(pid, signal.SIGKILL)
                except OSError:
                    pass
            return "alive"
        """,
        SandboxCrashError,
        harmless=lambda value: value == "alive",
    ),
    hostile(
        "killing everything by number",
        """
        import os, signal
        def f():
            for pid in range(2, 40000):
                if pid != os.getpid():
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except OSError:
                        pass
            return "alive"
        """,
        SandboxCrashError,
        harmless=lambda value: value == "alive",
    ),
    hostile(
        "looking at others in /proc",
        """
        import os
        def f():
            seen = os.listdir("/proc") if os.path.isdir("/proc") else []
            return len([name for name in seen if name.isdigit()])
        """,
        harmless=lambda value: value <= 4,
    ),
    hostile(
        "reading its supervisor's memory",
        "def f():\n    return open('/proc/1/mem', 'rb').read(1)",
        GeneratedFunctionError,
    ),
    hostile(
        "deaf to signals",
        """
        import signal
        def f():
            for number in range(1, 65):
                try:
                    signal.signal(number, signal.SIG_IGN)
                except (OSError, ValueError):
                    pass
            while True:
                pass
        """,
        SandboxTimeoutError,
        limits=dataclasses.replace(LIMITS, cpu_seconds=1),
    ),
    hostile(
        "a daemon",
        """
        import os, time
        def f():
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    time.sleep(1000)
                os._exit(0)
            return "left"
        """,
        harmless=lambda value: value == "left",
    ),
    hostile(
        "threads that never end",
        """
        import threading, time
        def f():
            for _ in range(5):
                threading.Thread(target=time.sleep, args=(1000,)).start()
            return "left"
        """,
        harmless=lambda value: value == "left",
    ),
    hostile(
        "more threads than allowed",
        """
        import threading, time
        def f():
            for _ in range(500):
                threading.Thread(target=time.sleep, args=(1000,)).start()
        """,
        GeneratedFunctionError, SandboxMemoryError,
    ),
    hostile(
        "huge file",
        """
        def f():
            with open("x", "wb") as x:
                for _ in range(100):
                    x.write(b"x" * (1 << 20))
        """,
        GeneratedFunctionError,
    ),
    hostile(
        "many full files",
        """
        def f():
            for i in range(100):
                with open(f"/tmp/{i}", "wb") as x:
                    x.write(bytes(1 << 20))
        """,
        GeneratedFunctionError,
    ),
    hostile(
        "files without end",
        """
        def f():
            for i in range(100_000):
                open(f"{i}", "w").close()
        """,
        GeneratedFunctionError,
        # It cannot count files.
        harmless=lambda value: mechanism() == "bubblewrap",
    ),
    hostile(
        "descriptors without end",
        "def f():\n    x = []\n    while True:\n        x.append(open('/dev/null'))",
        GeneratedFunctionError,
    ),
    hostile(
        "out by a symbolic link",
        """
        import os
        def f():
            os.symlink(HOME, "/tmp/home")
            return open("/tmp/home/secret").read()
        """,
        GeneratedFunctionError,
    ),
    hostile(
        "out by an inherited descriptor",
        """
        import os
        def f():
            names = []
            for number in range(3, 64):
                try:
                    os.fchdir(number)
                    names.append(os.getcwd())
                except OSError:
                    pass
            return names
        """,
        harmless=lambda value: value == [],
    ),
    hostile(
        "a shell",
        "import subprocess\ndef f():\n    return subprocess.check_output('id', shell=True)",
        GeneratedFunctionError,
    ),
    hostile(
        "a changed json",
        "import json\njson.dumps = json.loads = None\ndef f():\n    return 1",
        harmless=lambda value: value == 1,
    ),
    hostile(
        "a changed result writer",
        """
        import sys
        def f():
            sys.modules["_sandbox.wire"].dumps = lambda data: "no json"
            return 1
        """,
        SandboxResultError,
    ),
    hostile(
        "closing the result pipe",
        "import os\ndef f():\n    os.closerange(0, 100)\n    return 1",
        SandboxCrashError,
    ),
    hostile(
        "forging the result",
        """
        import os
        def f():
            os.write(3, b'{"value": {"$": "set", "v": [[1]]}}')
            os._exit(0)
        """,
        SandboxResultError,
    ),
    hostile(
        "forging a report",
        """
        import os
        def f():
            os.write(3, b'{"outcome": "unavailable", "reason": "x", "result": 0, "output": 0}\\n')
            os._exit(0)
        """,
        SandboxResultError,
    ),
    hostile(
        "a forged result that is nested too deeply",
        "import os\ndef f():\n    os.write(3, b'[' * 60000)\n    os._exit(0)",
        SandboxResultError,
    ),
    hostile(
        "a forged result without end",
        "import os\ndef f():\n    while True:\n        os.write(3, b'[' * 65536)",
        SandboxResultError,
    ),
    hostile(
        "decompression bomb",
        """
        import zlib
        def f():
            bomb = b"".join(zlib.compress(bytes(1 << 20)) for _ in range(1))
            return len(zlib.decompress(bomb) * 10_000)
        """,
        SandboxMemoryError,
    ),
    hostile(
        "an error with a huge text",
        "def f():\n    raise ValueError('x' * (20 << 20))",
        GeneratedFunctionError,
    ),
    hostile(
        "an error whose text fails",
        """
        class Odd(Exception):
            def __str__(self):
                raise RuntimeError
        def f():
            raise Odd
        """,
        GeneratedFunctionError,
    ),
    hostile(
        "namespaces of its own",
        """
        import ctypes
        def f():
            return ctypes.CDLL(None).unshare(0x10000000)
        """,
        harmless=lambda value: value == -1,
    ),
    hostile(
        "becoming root",
        """
        import os
        def f():
            done = []
            for name in ("setuid", "setgid"):
                try:
                    getattr(os, name)(0)
                    done.append(name)
                except OSError:
                    pass
            return done
        """,
        harmless=lambda value: value == [],
    ),
    hostile("code that does not parse", "def f(:", GeneratedFunctionError),
    hostile("another function", "def g(): ...", GeneratedFunctionError),
]  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of the caller's that holds a secret."""
    folder = tmp_path_factory.mktemp("home")
    folder.chmod(0o755)
    (folder / "secret").write_text("SECRET")
    (folder / "secret-of-the-caller").write_text("SECRET")
    yield folder
    assert sorted(path.name for path in folder.iterdir()) == ["secret", "secret-of-the-caller"]


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A server of the caller's on the loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        yield server.getsockname()[1]
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.fixture
def unharmed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a snippet must leave as it was."""
    monkeypatch.setenv("A_KEY", "SECRET")
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    modules = set(sys.modules)
    before = (os.environ.copy(), os.getcwd(), threading.active_count())
    # Another test's cluster may live beside: what counts is what came with the snippet.
    me = psutil.Process()
    children = set(me.children(recursive=True))
    descriptors = me.num_fds()
    yield
    deadline = time.monotonic() + 5
    while left := [c for c in me.children(recursive=True) if _is_new(c, children)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.01)
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    assert before == (os.environ.copy(), os.getcwd(), threading.active_count())
    assert "generated_code" not in set(sys.modules) - modules
    while me.num_fds() > descriptors:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _is_new(process: psutil.Process, before: set[psutil.Process]) -> bool:
    """Whether a process was started meanwhile, and not by one of those that were there."""
    if process in before:
        return False
    try:
        return not any(parent in before for parent in process.parents())
    except psutil.NoSuchProcess:
        return False


def ended(code: str, sandbox: Any, limits: Limits) -> Outcome | SandboxError:
    try:
        return run_function(code, "f", sandbox=sandbox, limits=limits)
    except SandboxError as error:
        return error


def ends_as_it_must(snippet: Hostile, sandbox: Any, home: Path, port: int) -> None:
    source = f"HOME = {str(home)!r}\nPORT = {port}\n{snippet.code}"
    memory = psutil.Process().memory_info().rss
    started = time.monotonic()
    end = ended(source, sandbox, snippet.limits)
    assert time.monotonic() - started < snippet.limits.seconds + REPLY_SECONDS
    assert psutil.Process().memory_info().rss - memory < 64 * MIB
    if isinstance(end, Outcome):
        assert snippet.harmless is not None, f"it returned {end.value!r:.200}"
        assert snippet.harmless(end.value), f"{end.value!r:.200}"
        assert len(end.output) <= snippet.limits.output
        return
    assert isinstance(end, snippet.errors), (type(end), str(end))
    assert type(end) is not SandboxError
    assert end.code == source
    assert len(str(end)) < 10_000


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: snippet.name)
def test_hostile_code(snippet: Hostile, home: Path, port: int) -> None:
    ends_as_it_must(snippet, "namespaces", home, port)


IN_A_PROCESS = [
    "endless loop", "endless loop beside the clock", "memory bomb", "crash by ctypes",
    "printing half a gigabyte", "returning a pickle that runs code", "huge result", "huge file",
    "descriptors without end", "a daemon", "threads that never end", "reading the environment",
    "closing the result pipe", "forging the result", "deaf to signals", "os._exit", "sys.exit",
]  # fmt: skip


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("name", IN_A_PROCESS)
def test_limits_hold_without_isolation(name: str, home: Path, port: int) -> None:
    (snippet,) = [snippet for snippet in SNIPPETS if snippet.name == name]
    if name == "reading the environment":
        snippet = dataclasses.replace(snippet, harmless=lambda value: "SECRET" not in repr(value))
    ends_as_it_must(snippet, "process", home, port)


@pytest.mark.usefixtures("unharmed")
def test_a_process_that_kills_its_supervisor_is_named() -> None:
    code = "import os, signal\ndef f():\n    os.kill(os.getppid(), signal.SIGKILL)\n    return 1"
    with pytest.raises(SandboxCrashError, match="without a report"):
        run_function(code, "f", sandbox="process", limits=LIMITS)


@pytest.mark.parametrize("sandbox", ["namespaces", "process"])
def test_the_code_ends_with_its_caller(sandbox: str) -> None:
    code = f"""
    from byzerllm.client.sandbox import mechanism, run_function
    mechanism()
    code = "import time\\ndef f(): time.sleep(1000)"
    print("ready", flush=True)
    run_function(code, "f", sandbox={sandbox!r}, limits={{"seconds": 1000}})
    """
    caller = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert caller.stdout is not None
        assert caller.stdout.readline() == "ready\n"
        least = 3 if sandbox == "namespaces" else 2
        deadline = time.monotonic() + REPLY_SECONDS
        while len(below := psutil.Process(caller.pid).children(recursive=True)) < least:
            assert time.monotonic() < deadline, below
            time.sleep(0.01)
        # Until the last one has set up what ends it.
        time.sleep(0.2)
    finally:
        caller.kill()
        caller.communicate()
    assert psutil.wait_procs(below, timeout=REPLY_SECONDS)[1] == []


# What crosses.


class Colour(enum.Enum):
    RED = "red"


class Unit(enum.IntEnum):
    ONE = 1


class Inner(pydantic.BaseModel):
    when: datetime.date
    tags: set[str]


class Outer(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    inner: Inner
    many: list[Inner]
    from_: int = pydantic.Field(0, alias="from")


@dataclasses.dataclass
class Point:
    x: int
    y: tuple[int, ...]


UTC = datetime.UTC
PLAIN = [
    None, True, 0, -(2**62), 2**63, -(2**200), 1.5, -0.0, float("inf"), "", "é\n\x00\"\\\ud800",
    b"\x00\xff", [], [1, [2]], (), (1, (2,)), set(), {1, "a"}, frozenset({1}), {}, {"$": 1, "v": 2},
    {1: "a", (1, 2): "b"}, 1 + 2j, datetime.datetime(2024, 2, 29, 1, 2, 3, 4, UTC),
    datetime.date(2024, 2, 29), datetime.time(1, 2, 3), datetime.timedelta(-1, 2, 3),
    decimal.Decimal("1.10"), uuid.UUID(int=5), pathlib.PurePath("a/b"),
]  # fmt: skip


@pytest.mark.parametrize("value", PLAIN, ids=repr)
@pytest.mark.parametrize("sandbox", ["namespaces", "inprocess"])
def test_data_comes_back_as_it_went(value: Any, sandbox: Any) -> None:
    code = "def f(value):\n    return [type(value).__name__, value]"
    kind, back = run_function(code, "f", {"value": value}, sandbox=sandbox).value
    assert back == value
    assert type(back) is type(value)
    assert kind == type(value).__name__


def test_numbers_that_json_does_not_know() -> None:
    value = run_function("def f():\n    return float('nan'), -float('inf')", "f").value
    assert repr(value) == "(nan, -inf)"


def test_models_arrive_as_records_or_as_the_class_of_the_code() -> None:
    inner = Inner(when=datetime.date(2024, 1, 2), tags={"a"})
    outer = {"o": Outer.model_validate({"inner": inner, "many": [inner], "from": 3, "more": 1})}
    code = """
    def f(o, p, c, u):
        assert o.inner.when.year == o["inner"]["when"].year == 2024
        assert o.many[0].tags == {"a"} and o.more == 1 and o.from_ == 3
        return p.x + p.y[0], c, u
    """
    point = {"p": Point(1, (2,)), "c": Colour.RED, "u": Unit.ONE}
    done = run_function(textwrap.dedent(code), "f", {**outer, **point})
    assert done.value == (3, "red", 1)
    code = """
    import dataclasses, datetime, enum, pydantic
    @dataclasses.dataclass
    class Point:
        x: int
        y: tuple
    class Inner(pydantic.BaseModel):
        when: datetime.date
        tags: set[str]
    class Colour(enum.Enum):
        RED = "red"
    def f(i, p, c):
        return isinstance(i, Inner), isinstance(p, Point), c is Colour.RED
    """
    arguments = {"i": inner, "p": Point(1, ()), "c": Colour.RED}
    done = run_function(textwrap.dedent(code), "f", arguments)
    assert done.value == (True, True, True)


def test_results_of_the_codes_own_classes_are_plain_data() -> None:
    code = """
    from __future__ import annotations
    import dataclasses, enum, pydantic
    class Kind(enum.Enum):
        A = "a"
    @dataclasses.dataclass
    class Point:
        x: int
    class Model(pydantic.BaseModel):
        point: Point
        kind: Kind
        from_: int = pydantic.Field(alias="from")
    def f():
        return Model.model_validate({"point": {"x": 1}, "kind": "a", "from": 2})
    """
    done = run_function(textwrap.dedent(code), "f")
    assert done.value == {"point": {"x": 1}, "kind": "a", "from": 2}


def test_installed_packages_can_be_imported() -> None:
    code = "import pydantic, yaml\ndef f():\n    return yaml.safe_load('[1]'), pydantic.VERSION"
    assert run_function(code, "f").value == ([1], pydantic.VERSION)


def test_coroutines_are_run_to_their_end() -> None:
    code = "import asyncio\nasync def f(x):\n    await asyncio.sleep(0)\n    return x"
    modes: list[SandboxMode] = ["namespaces", "process", "inprocess"]
    for mode in modes:
        assert run_function(code, "f", {"x": 1}, sandbox=mode).value == 1


def test_output_is_kept_up_to_its_limit() -> None:
    code = "def f():\n    print('é' * 5)\n    print('x' * 1000)"
    done = run_function(code, "f", limits={"output": 20})
    assert done.output == "ééééé\n" + "x" * 9
    assert done.printed == 10 + 1 + 1001


def test_the_clock_of_the_caller_is_the_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Shanghai")
    code = "import datetime\ndef f():\n    return datetime.datetime.now().astimezone().utcoffset()"
    assert run_function(code, "f").value == datetime.timedelta(hours=8)


@pytest.mark.parametrize("sandbox", ["namespaces", "process", "inprocess"])
def test_errors_carry_the_lines_of_the_code(sandbox: Any) -> None:
    code = "def f(x):\n    y = 0\n    return x / y"
    with pytest.raises(GeneratedFunctionError) as caught:
        run_function(code, "f", {"x": 1}, sandbox=sandbox)
    assert "raised ZeroDivisionError: division by zero" in str(caught.value)
    trace = caught.value.remote_traceback
    assert 'File "<generated>", line 3, in f' in trace
    assert "return x / y" in trace
    assert "runner.py" not in trace


def test_an_argument_that_is_not_data_is_refused() -> None:
    with pytest.raises(ParameterError, match=r"'x'.*function is not data"):
        run_function("def f(x): ...", "f", {"x": lambda: 1})
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(ParameterError, match="'x'"):
        run_function("def f(x): ...", "f", {"x": loop})


@pytest.mark.parametrize(
    "data",
    [
        {"$": "set", "v": [[1]]}, {"$": "nothing", "v": 1}, {"$": "int", "v": 5}, {"$": []},
        {"$": "bytes", "v": "%"}, {"$": "decimal", "v": "x"}, {"$": "record", "v": 1},
        {"$": "timedelta", "v": [10**20, 0, 0]}, {"$": "fraction", "v": [1, 0]}, {"$": "dict"},
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_no_value_is_refused(data: Any) -> None:
    with pytest.raises(wire.WireError):
        wire.decode(data)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text() | st.binary()
        | st.floats(allow_nan=False) | st.decimals(allow_nan=False) | st.dates() | st.uuids(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
        max_leaves=20,
    )
)  # fmt: skip
def test_every_value_reads_back(value: Any) -> None:
    text = wire.dumps(wire.encode(value)).encode(errors="surrogatepass")
    assert wire.decode(json.loads(text)) == value


# Options, and machines that are different.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sandbox": "proces"}, "did you mean 'process'"),
        ({"limits": {"second": 1}}, "did you mean 'seconds'"),
        ({"limits": {"seconds": 0}}, "above 0"),
        ({"limits": {"memory": "1G"}}, "a number above 0"),
    ],
)
def test_wrong_options_are_named(options: Any, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        run_function("def f(): ...", "f", **options)


def test_without_namespaces_the_ways_out_are_named() -> None:
    """A kernel that refuses namespaces, played by one whose limit of them is 0."""
    code = f"""
    import sys
    sys.path[:] = {sys.path!r}
    from byzerllm.client.sandbox import run_function
    from byzerllm.errors import SandboxUnavailableError
    try:
        run_function("def f(): return 1", "f")
    except SandboxUnavailableError as error:
        print(error)
    print(run_function("def f(): return 1", "f", sandbox="process").value)
    """
    script = 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"'
    done = subprocess.run(
        ["unshare", "-Ur", "sh", "-c", script, "sh", sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert 'sandbox="process"' in done.stdout, done.stderr
    assert 'sandbox="inprocess"' in done.stdout
    assert "unshare(namespaces)" in done.stdout
    assert done.stdout.endswith("\n1\n")


def test_another_system_has_no_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(module, "_probed", module._probed.__wrapped__)
    with pytest.raises(SandboxUnavailableError, match=r"darwin.*sandbox=.process"):
        run_function("def f(): ...", "f")


def test_root_is_somebody_else_outside_too() -> None:
    if os.geteuid() != 0:
        pytest.skip("the caller is not root")
    code = "import time\ndef f():\n    time.sleep(3)"
    thread = threading.Thread(target=ended, args=(code, "namespaces", SHORT))
    thread.start()
    deadline = time.monotonic() + 5
    seen: set[int] = set()
    while time.monotonic() < deadline and isolation.NOBODY not in seen:
        for child in psutil.Process().children(recursive=True):
            try:
                seen.add(child.uids().real)
            except psutil.NoSuchProcess:
                continue
    thread.join()
    assert isolation.NOBODY in seen


IN_BUBBLEWRAP = [
    "sleep for ever", "fork bomb", "memory bomb of several processes", "reading the home folder",
    "listing every file", "writing outside", "writing into the root", "opening a socket",
    "changing the Python installation", "killing everything by number", "many full files",
    "namespaces of its own", "looking at others in /proc", "a daemon", "becoming root", "a shell",
]  # fmt: skip


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
@pytest.mark.parametrize("name", IN_BUBBLEWRAP)
@pytest.mark.usefixtures("unharmed")
def test_hostile_code_in_bubblewrap(
    name: str, home: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "fork bomb" and os.geteuid() == 0:
        pytest.skip("bubblewrap leaves root the user id whose processes the kernel does not limit")
    (snippet,) = [snippet for snippet in SNIPPETS if snippet.name == name]
    monkeypatch.setattr(module, "_probed", lambda: "bubblewrap")
    assert mechanism() == "bubblewrap"
    ends_as_it_must(snippet, "namespaces", home, port)


def test_calls_run_side_by_side() -> None:
    code = "import time\ndef f(x):\n    time.sleep(0.3)\n    return x"
    started = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(run_function, code, "f", {"x": x}) for x in range(8)]
        assert [call.result().value for call in calls] == list(range(8))
    assert time.monotonic() - started < 8 * 0.3


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_is_a_program_whose_jumps_stay_inside(machine: str) -> None:
    program = isolation._filter_program(machine)
    assert program[-1] == (0x06, 0, 0, 0x7FFF0000)
    for index, (_, if_true, if_false, _) in enumerate(program):
        assert index + 1 + max(if_true, if_false) < len(program) or program[index][0] == 0x06
    assert isolation._filter_program("vax") == []
