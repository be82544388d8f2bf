"""Addresses, tokens and errors of joining a cluster, as far as no cluster is needed."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from byzerllm.errors import (
    ClusterAuthenticationError,
    ClusterError,
    ClusterNotFoundError,
    ParameterError,
)
from byzerllm.runtime import cluster

TOKEN = "token-of-the-tests-0123456789"


@pytest.fixture
def no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home without a token, and no variable that names one."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    "address",
    [
        "auto",
        "local",
        "127.0.0.1:6379",
        "head.example.org:6379",
        "[::1]:6379",
        "ray://10.0.0.1:10001",
        "ray://[fe80::1]:10001",
    ],
)
def test_forms_of_an_address(address: str) -> None:
    cluster._check_address(address)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "Auto",
        "localhost",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:port",
        "127.0.0.1:65536",
        "127.0.0.1:123456",
        "http://127.0.0.1:8265",
        "ray://127.0.0.1",
        "ray:127.0.0.1:10001",
        " 127.0.0.1:6379",
        "a b:6379",
        "::1:6379",
    ],
)
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ParameterError, match=r"'auto', 'local', 'HOST:PORT', 'ray://HOST:PORT'"):
        cluster.connect_cluster(address)


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def rude_server() -> Iterator[int]:
    """A port where something listens that hangs up."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    yield int(listener.getsockname()[1])
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_nobody_listens(closed_port: int, scheme: str) -> None:
    with pytest.raises(ClusterNotFoundError, match=f"no Ray cluster answers at .*:{closed_port}"):
        cluster._probe(f"{scheme}127.0.0.1:{closed_port}")


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_something_else_listens(rude_server: int, scheme: str) -> None:
    with pytest.raises(ClusterNotFoundError, match="is no Ray cluster"):
        cluster._probe(f"{scheme}127.0.0.1:{rude_server}")


def test_where_the_token_comes_from(no_token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cluster.token_source() == ""
    folder = no_token / ".ray"
    folder.mkdir()
    (folder / "auth_token").write_text(TOKEN)
    assert cluster.token_source() == "~/.ray/auth_token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(no_token / "missing"))
    assert cluster.token_source() == "~/.ray/auth_token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(folder / "auth_token"))
    assert cluster.token_source() == "RAY_AUTH_TOKEN_PATH"
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    assert cluster.token_source() == "RAY_AUTH_TOKEN"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("UNAUTHENTICATED: no"), ClusterAuthenticationError),
        (RuntimeError("invalid token"), ClusterAuthenticationError),
        (ConnectionError("refused"), ClusterNotFoundError),
        (TimeoutError("late"), ClusterNotFoundError),
        (RuntimeError("the GCS timed out"), ClusterNotFoundError),
        (ValueError("odd options"), ClusterError),
    ],
)
def test_errors_of_ray_are_named(
    no_token: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[ClusterError]
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    found = cluster._explained("10.0.0.1:6379", error)
    assert type(found) is kind
    assert "10.0.0.1:6379" in found.message
    assert TOKEN not in found.message
    if kind is ClusterAuthenticationError:
        assert "ray get-auth-token" in found.message


def test_the_address_of_the_environment(
    no_token: Path, monkeypatch: pytest.MonkeyPatch, closed_port: int
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed_port}")
    assert cluster._find_running() == f"127.0.0.1:{closed_port}"
