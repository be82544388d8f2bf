"""The echo backend passes our own suite, and backends that break a rule do not."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import ClassVar

import pytest

import byzerllm.testing
from byzerllm.backend import Backend
from byzerllm.plugins import get_plugins
from byzerllm.testing import BackendConformance, EchoBackend


class TestEcho(BackendConformance):
    spec = get_plugins().backends.get("echo")
    infer_params: ClassVar = {"delay": 0.005}
    deterministic = True


class TestEchoWithoutWaiting(BackendConformance):
    spec = get_plugins().backends.get("echo")
    deterministic = True
    exceptions: ClassVar = {"test_tokenize": "TestEcho has it"}

    def test_one_of_its_own_uses_the_loaded_backend(self) -> None:
        assert self.chat("hello there").text == "hello there"
        backend = self.host.backend
        assert isinstance(backend, EchoBackend)
        assert backend.generated > 0


BROKEN = '''
import asyncio
import dataclasses

import pydantic

import byzerllm
from byzerllm.plugins import get_plugins
from byzerllm.requests import GenerateChunk, Usage
from byzerllm.testing import BackendConformance, EchoBackend
from byzerllm.testing.echo import EchoParameters

ECHO = get_plugins().backends.get("echo")


class Broken(BackendConformance):
    infer_params = {"delay": 0.002}
    cancel_limit = 0.2
    exceptions = {"test_entry_point_registers_it": "lives in this test"}


def spec(name, **changed):
    return dataclasses.replace(ECHO, name=name.lower(), path=f"{__name__}:{name}", **changed)


class NoReason(EchoBackend):
    async def generate(self, request):
        async for chunk in super().generate(request):
            if chunk.finish_reason is None:
                yield chunk


class TestNoReason(Broken):
    spec = spec("NoReason")


class Deaf(EchoBackend):
    """Goes on in a task of its own that nobody cancels."""

    async def generate(self, request):
        chunks = asyncio.Queue()

        async def work():
            try:
                async for chunk in EchoBackend.generate(self, request):
                    chunks.put_nowait(chunk)
                    if request.sampling.max_tokens == 1000:
                        await asyncio.sleep(0.05)
            finally:
                chunks.put_nowait(None)

        self._task = asyncio.ensure_future(work())
        while (chunk := await chunks.get()) is not None:
            yield chunk
        await self._task


class TestDeaf(Broken):
    spec = spec("Deaf")


class Stubborn(EchoBackend):
    """Its whole answers swallow the cancellation."""

    async def generate(self, request):
        if not request.stream:
            for _ in range(8):
                try:
                    await asyncio.sleep(0.04)
                except asyncio.CancelledError:
                    pass
        async for chunk in super().generate(request):
            yield chunk


class TestStubborn(Broken):
    spec = spec("Stubborn")


class Endless(EchoBackend):
    """Knows no limits: of tokens, of stop texts, of empty conversations."""

    async def generate(self, request):
        for word in "one two three four five six seven eight".split():
            yield GenerateChunk(text=word + " ")
        yield GenerateChunk(finish_reason="stop", usage=Usage(prompt_tokens=1, completion_tokens=8))


class TestEndless(Broken):
    spec = spec("Endless")


class Told(EchoParameters):
    api_key: str = ""


class TestTold(Broken):
    """A secret that shows, a parameter without a description, a capability that is not there."""

    spec = dataclasses.replace(
        ECHO, name="told", parameters=Told, capabilities=ECHO.capabilities - {"tokenize"},
        description="",
    )


class TestExcused(Broken):
    spec = dataclasses.replace(ECHO, name="excused")
    exceptions = {"test_no_such_check": "a slip", "test_meta": " "}


class TestUnregistered(Broken):
    spec = dataclasses.replace(ECHO, name="unregistered")
    exceptions = {}
'''


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """The names of the checks that failed, by the class of the broken backend."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "test_broken.py").write_text(BROKEN)
    report = folder / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=line"]
    done = subprocess.run(
        [*command, f"--rootdir={folder}", f"--junitxml={report}", folder / "test_broken.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    found: dict[str, set[str]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        names = found.setdefault(case.attrib["classname"].rpartition(".")[2], set())
        assert case.find("error") is None, done.stdout
        if case.find("failure") is not None:
            names.add(case.attrib["name"])
    return found


def test_no_finish_reason(failed: dict[str, set[str]]) -> None:
    assert {"test_streamed_answer", "test_whole_answer"} <= failed["TestNoReason"]
    assert "test_meta" not in failed["TestNoReason"]


def test_cancellation_ignored(failed: dict[str, set[str]]) -> None:
    every = {"test_closed_stream_stops", "test_cancelled_stream_stops", "test_cancelled_call_stops"}
    assert failed["TestDeaf"] == every
    assert failed["TestStubborn"] == {"test_cancelled_call_stops"}


def test_limits_ignored(failed: dict[str, set[str]]) -> None:
    assert failed["TestEndless"] >= {"test_max_tokens", "test_stop_text"}
    assert "test_streamed_answer" not in failed["TestEndless"]


def test_specification_is_wrong(failed: dict[str, set[str]]) -> None:
    assert failed["TestTold"] == {
        "test_spec_is_described",
        "test_capability_is_what_is_implemented[tokenize]",
        "test_parameters_are_described",
        "test_secrets_stay_out_of_sight",
        "test_tokenize",
    }
    assert failed["TestUnregistered"] == {"test_entry_point_registers_it"}


def test_exceptions_need_a_check_and_a_reason(failed: dict[str, set[str]]) -> None:
    assert "test_exceptions_name_checks" in failed["TestExcused"]


def test_public_names_come_on_first_use() -> None:
    assert byzerllm.testing.__all__ == sorted(byzerllm.testing.__all__)
    assert dir(byzerllm.testing) == byzerllm.testing.__all__
    assert issubclass(EchoBackend, Backend)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        byzerllm.testing.Nothing  # noqa: B018


def test_echo_needs_no_pytest(tmp_path: Path) -> None:
    (tmp_path / "pytest.py").write_text("raise ModuleNotFoundError('none here', name='pytest')\n")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from byzerllm.errors import NotInstalledError\n"
        "from byzerllm.testing import EchoBackend\n"
        "assert 'pytest' not in sys.modules\n"
        "try:\n"
        "    from byzerllm.testing import BackendConformance\n"
        "except NotInstalledError as error:\n"
        "    assert 'byzerllm-core[testing]' in str(error)\n"
        "else:\n"
        "    sys.exit('pytest was found')\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60)


def test_running_loop_is_the_one_of_the_backend() -> None:
    class Suite(BackendConformance):
        spec = get_plugins().backends.get("echo")

    Suite.setup_class()
    try:
        loops = {Suite().run(_loop()) for _ in range(2)}
    finally:
        Suite.teardown_class()
    assert len(loops) == 1


async def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()
