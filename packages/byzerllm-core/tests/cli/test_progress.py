from io import StringIO

import pytest
from rich.console import Console

from byzerllm.cli.progress import WorkerProgress
from byzerllm.cli.session import session


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> StringIO:
    out = StringIO()
    monkeypatch.setitem(vars(session), "err", Console(file=out, width=100, force_terminal=True))
    return out


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> StringIO:
    out = StringIO()
    monkeypatch.setitem(vars(session), "err", Console(file=out, width=100))
    return out


def deployed(progress: WorkerProgress) -> None:
    progress("", "waiting for resources")
    progress("w-0", "downloading 40 %")
    progress("w-0", "downloading 40 %")
    progress("w-1", "loading")
    progress("w-0", "loading [weights]")
    progress("w-0", "ready")


def test_each_change_is_a_line_in_a_pipe(pipe: StringIO) -> None:
    with WorkerProgress("my_chat") as progress:
        deployed(progress)
    assert pipe.getvalue().splitlines() == [
        "my_chat: waiting for resources",
        "w-0: downloading 40 %",
        "w-1: loading",
        "w-0: loading [weights]",
        "w-0: ready",
        "w-1: ready",
    ]


def test_a_failed_worker_is_not_called_ready(pipe: StringIO) -> None:
    def failing() -> None:
        with WorkerProgress("my_chat") as progress:
            progress("w-0", "loading")
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError):
        failing()
    assert pipe.getvalue() == "w-0: loading\n"


def test_one_line_per_worker_on_a_terminal(screen: StringIO) -> None:
    with WorkerProgress("my_chat") as progress:
        deployed(progress)
        assert progress._display is not None
        shares = {t.fields["worker"]: t.percentage for t in progress._display.tasks}
        assert shares == {"w-0": 100.0, "w-1": 0.0}
    last = screen.getvalue().rpartition("\r")[2]
    assert last.count("ready") == 2
    assert last.count("✓") == 2
    assert "my_chat" not in last


def test_percentages_move_the_bar(screen: StringIO) -> None:
    with WorkerProgress("my_chat") as progress:
        progress("w-0", "downloading 40 %")
        assert progress._display is not None
        assert progress._display.tasks[0].percentage == 40.0
