"""Generated code that means harm, run for real: each snippet ends within its limits with a named
error or a harmless result, and the caller is as it was."""

from __future__ import annotations

import dataclasses
import os
import socket
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from byzerllm.client.sandbox import Limits, run_function
from byzerllm.errors import (
    GeneratedFunctionError,
    SandboxCrashError,
    SandboxError,
    SandboxMemoryError,
    SandboxResultError,
    SandboxTimeoutError,
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
        "import os\ndef f():\n    for _ in range(500): os.write(2, b'x' * (1 << 20))\n    return 'done'",
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
        harmless=lambda value: value == "alive",
    ),
    hostile(
        "looking at others in /proc",
        """
        import os
        def f():
            found = [n for n in os.listdir("/proc") if n.isdigit()] if os.path.isdir("/proc") else []
            return len(found)
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
        "def f():\n    with open('/tmp/x', 'wb') as x:\n        for _ in range(100): x.write(b'x' * (1 << 20))",
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
        "def f():\n    i = 0\n    while True:\n        i += 1\n        open(f'/tmp/{i}', 'w').close()",
        GeneratedFunctionError,
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
            sys.modules["sandbox.wire"].dumps = lambda data: "no json"
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
    descriptors = psutil.Process().num_fds()
    yield
    deadline = time.monotonic() + 5
    while left := psutil.Process().children(recursive=True):
        assert time.monotonic() < deadline, left
        time.sleep(0.01)
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    assert before == (os.environ.copy(), os.getcwd(), threading.active_count())
    assert "generated_code" not in set(sys.modules) - modules
    assert psutil.Process().num_fds() == descriptors


def ends_as_it_must(snippet: Hostile, sandbox: Any, home: Path, port: int) -> None:
    source = f"HOME = {str(home)!r}\nPORT = {port}\n{snippet.code}"
    memory = psutil.Process().memory_info().rss
    started = time.monotonic()
    try:
        outcome = run_function(source, "f", sandbox=sandbox, limits=snippet.limits)
    except SandboxError as error:
        assert isinstance(error, snippet.errors), (type(error), str(error))
        assert type(error) is not SandboxError
        assert error.code == source
        assert len(str(error)) < 10_000
    else:
        assert snippet.harmless is not None, f"it returned {outcome.value!r:.200}"
        assert snippet.harmless(outcome.value), f"{outcome.value!r:.200}"
        assert len(outcome.output) <= snippet.limits.output
    assert time.monotonic() - started < snippet.limits.seconds + REPLY_SECONDS
    assert psutil.Process().memory_info().rss - memory < 64 * MIB


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: snippet.name)
def test_hostile_code(snippet: Hostile, home: Path, port: int) -> None:
    ends_as_it_must(snippet, "namespaces", home, port)
