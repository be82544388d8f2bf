"""Conversations, on the echo backend in this process, and with the keys of a real terminal."""

from __future__ import annotations

import json
import os
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from byzerllm import ByzerLLM
from byzerllm.cli import interrupts
from byzerllm.cli.conversation import Conversation
from byzerllm.cli.terminal import ChatTerminal, data_folder
from byzerllm.errors import ContextLengthError, ModelNotFoundError, UsageError
from byzerllm.runtime.deployment import DeploymentSpec

Talk = Callable[..., str]


@pytest.fixture
def llm() -> Iterator[ByzerLLM]:
    client = ByzerLLM(runtime="local")
    client.deploy_spec(DeploymentSpec(model="quick", backend="echo", infer_params={"context": 20}))
    client.deploy_spec(DeploymentSpec(model="slow", backend="echo", infer_params={"delay": 0.2}))
    yield client
    client.undeploy("quick")
    client.undeploy("slow")


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def test_a_conversation_grows(llm: ByzerLLM) -> None:
    conversation = Conversation(llm, "quick", {}, system="be kind")
    out = StringIO()
    assert conversation.answer("hello there", out)
    assert conversation.answer("and again", out)
    assert out.getvalue() == "hello there\nand again\n"
    assert conversation.messages == [
        {"role": "system", "content": "be kind"},
        user("hello there"),
        assistant("hello there"),
        user("and again"),
        assistant("and again"),
    ]
    conversation.clear()
    assert conversation.messages == [{"role": "system", "content": "be kind"}]


def test_generation_parameters_reach_the_model(llm: ByzerLLM) -> None:
    out = StringIO()
    Conversation(llm, "quick", {"max_length": 2}).answer("one two three", out)
    assert out.getvalue() == "one two\n"


def test_a_failed_turn_leaves_no_trace(llm: ByzerLLM) -> None:
    conversation = Conversation(llm, "quick", {})
    with pytest.raises(ContextLengthError):
        conversation.answer("word " * 30, StringIO())
    assert conversation.messages == []


def interrupt_when(condition: Callable[[], bool]) -> threading.Thread:
    def wait() -> None:
        end = time.monotonic() + 10
        while not condition() and time.monotonic() < end:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.fixture
def handled() -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)
    interrupts.install()
    yield
    signal.signal(signal.SIGINT, before)
    interrupts.forget()


@pytest.mark.usefixtures("handled")
def test_ctrl_c_stops_the_answer_and_keeps_what_came(llm: ByzerLLM) -> None:
    conversation = Conversation(llm, "slow", {})
    for _turn in range(2):
        out = StringIO()
        thread = interrupt_when(lambda out=out: "two" in out.getvalue())  # type: ignore[misc]
        assert not conversation.answer("one two three four five six seven eight", out)
        thread.join()
        assert out.getvalue() == "one two\n"
    turn = [user("one two three four five six seven eight"), assistant("one two")]
    assert conversation.messages == turn * 2
    end = time.monotonic() + 2
    while llm.stat("slow")[0]["workers"][0]["running"] and time.monotonic() < end:
        time.sleep(0.05)
    assert llm.stat("slow")[0]["workers"][0]["running"] == 0, "the backend was not stopped"


def test_another_model(llm: ByzerLLM) -> None:
    conversation = Conversation(llm, "quick", {})
    conversation.switch("slow")
    assert conversation.model == "slow"
    with pytest.raises(ModelNotFoundError):
        conversation.switch("nope")
    assert conversation.model == "slow"


def test_saving(llm: ByzerLLM, tmp_path: Path) -> None:
    conversation = Conversation(llm, "quick", {})
    conversation.answer("你好", StringIO())
    path = conversation.save(str(tmp_path / "talk.json"))
    assert json.loads(path.read_text(encoding="utf-8")) == conversation.messages
    assert "你好" in path.read_text(encoding="utf-8")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(UsageError, match="File exists"):
        conversation.save(str(path))


@pytest.fixture
def talk(
    llm: ByzerLLM,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Talk:
    """`talk("hello\\r", …)`: type keys into `byzerllm chat`, then Ctrl-D; gives what it printed."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))

    def type_keys(*keys: str, model: str = "quick") -> str:
        with create_pipe_input() as keyboard, create_app_session(keyboard, DummyOutput()):
            terminal = ChatTerminal(Conversation(llm, model, {}))
            keyboard.send_text("".join(keys) + "\x04")
            terminal.run()
        type_keys.terminal = terminal  # type: ignore[attr-defined]
        captured = capsys.readouterr()
        return captured.out + captured.err

    return type_keys


def turns(talk: Talk) -> list[dict[str, str]]:
    messages: list[dict[str, str]] = talk.terminal.conversation.messages  # type: ignore[attr-defined]
    return messages


def test_enter_sends_and_ctrl_d_leaves(talk: Talk) -> None:
    assert "hello there\n" in talk("hello there\r")
    assert turns(talk) == [user("hello there"), assistant("hello there")]


def test_alt_enter_begins_a_new_line(talk: Talk) -> None:
    talk("first\x1b\rsecond\r")
    assert turns(talk)[0] == user("first\nsecond")


def test_ctrl_c_at_the_prompt_does_not_leave(talk: Talk) -> None:
    shown = talk("half a thou\x03", "hello\r")
    assert "Ctrl-D leaves" in shown
    assert turns(talk) == [user("hello"), assistant("hello")]


def test_empty_lines_are_no_turns(talk: Talk) -> None:
    talk("\r", "  \r")
    assert turns(talk) == []


def test_slash_commands(talk: Talk, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    shown = talk(
        "/help\r", "/system be kind\r", "/system\r", "hello\r", f"/save {file}\r", "/save\r",
        "/model\r", "/model slow\r", "/clear\r",
    )  # fmt: skip
    for text in (
        "show the commands and keys",
        "system message: be kind",
        f"written: {file}",
        "a file name is missing",
        "deployed: quick, slow",
        "talking to slow",
        "the conversation begins anew",
    ):
        assert text in shown
    assert len(json.loads(file.read_text())) == 3
    assert turns(talk) == [{"role": "system", "content": "be kind"}]


def test_errors_do_not_end_the_conversation(talk: Talk) -> None:
    shown = talk("/model nope\r", "/modle x\r", "word " * 30 + "\r", "hello\r", "/quit\r")
    assert "error: no model 'nope'" in shown
    assert "no command '/modle' (did you mean '/model'?)" in shown
    assert "error: the prompt has" in shown
    assert turns(talk) == [user("hello"), assistant("hello")]


def test_a_path_is_no_command(talk: Talk) -> None:
    talk("/usr/bin is a folder\r")
    assert turns(talk)[0] == user("/usr/bin is a folder")


def test_the_history_is_kept_for_its_owner(talk: Talk, tmp_path: Path) -> None:
    talk("remember me\r")
    file = tmp_path / "byzerllm" / "chat_history"
    assert "remember me" in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    talk("\x1b[A\r")
    assert turns(talk)[0] == user("remember me")


def test_a_folder_that_cannot_be_written(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/dev/null")
    talk("hello\r")
    assert turns(talk) == [user("hello"), assistant("hello")]


def test_the_data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    assert data_folder() == tmp_path / ".local" / "share" / "byzerllm"
    monkeypatch.setattr("sys.platform", "darwin")
    assert data_folder() == tmp_path / "Library" / "Application Support" / "byzerllm"
