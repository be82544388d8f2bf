"""Processes, certificates, starting and stopping."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from byzerllm.runtime.deployment import DeploymentSpec
from byzerllm.runtime.host import Host
from byzerllm.runtime.local import LocalRuntime
from byzerllm_server.commands.serve import _warn_of_open_door
from byzerllm_server.settings import ServerSettings

KEY = "sk-processes-0123456789"
MODELS = """
version: 1
models:
  echo: {infer_backend: echo}
  brief: {infer_backend: echo, infer_params: {delay: 0.1, chunks: 15}}
  slow: {infer_backend: echo, infer_params: {delay: 0.1, chunks: 600}}
"""
Start = Callable[..., Any]


def chat(model: str, *, stream: bool = False) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hi you"}], "stream": stream}


class Streaming:
    """A stream that is read in a thread; `text` is what came."""

    def __init__(self, url: str, model: str) -> None:
        self.text = ""
        self.begun = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(url, model))
        self._thread.start()
        assert self.begun.wait(10)

    def _read(self, url: str, model: str) -> None:
        with (
            contextlib.suppress(httpx.HTTPError),
            httpx.stream(
                "POST", f"{url}/v1/chat/completions", json=chat(model, stream=True), timeout=60
            ) as answer,
        ):
            for text in answer.iter_text():
                self.text += text
                self.begun.set()

    def wait(self, seconds: float = 20) -> str:
        self._thread.join(seconds)
        assert not self._thread.is_alive()
        return self.text


def refused(url: str) -> bool:
    host, port = url.removeprefix("http://").split(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) != 0


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def run(*options: str) -> subprocess.CompletedProcess[str]:
    """`byzerllm serve` that is expected to fail."""
    command = [str(Path(sys.executable).with_name("byzerllm")), "serve", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "models.yaml"
    path.write_text(MODELS)
    return str(path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_lets_running_streams_end(serving: Start, number: int) -> None:
    served = serving(config=MODELS)
    stream = Streaming(served.url, "brief")
    served.process.send_signal(number)
    until(lambda: refused(served.url), 5)
    text = stream.wait()
    assert text.endswith("data: [DONE]\n\n")
    assert "error" not in text
    assert served.process.wait(10) == 0


def test_what_does_not_end_in_time_is_told_so(serving: Start) -> None:
    served = serving("--stop_timeout", "0.5", config=MODELS)
    answers: list[httpx.Response] = []

    def ask() -> None:
        url = f"{served.url}/v1/chat/completions"
        answers.append(httpx.post(url, json=chat("slow"), timeout=30))

    waiting = threading.Thread(target=ask)
    waiting.start()
    stream = Streaming(served.url, "slow")
    start = time.monotonic()
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(10) == 0
    assert time.monotonic() - start < 5
    waiting.join(5)
    assert '"code":"stopping"' in stream.wait().strip().splitlines()[-1]
    assert answers[0].status_code == 503
    assert answers[0].json()["error"]["code"] == "stopping"
    assert "Traceback" not in served.output


def test_a_second_signal_ends_at_once(serving: Start) -> None:
    served = serving(config=MODELS)
    stream = Streaming(served.url, "slow")
    served.process.send_signal(signal.SIGINT)
    until(lambda: refused(served.url), 5)
    served.process.send_signal(signal.SIGINT)
    assert served.process.wait(3) == 130
    stream.wait(5)


def test_a_stop_while_models_load(tmp_path: Path) -> None:
    path = tmp_path / "models.yaml"
    path.write_text(
        "version: 1\nmodels:\n  m: {infer_backend: echo, infer_params: {load_delay: 60}}\n"
    )
    command = [str(Path(sys.executable).with_name("byzerllm")), "serve", "--runtime", "local"]
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--config", str(path), "--port", "0"], stdout=output, stderr=output
        )
    until(lambda: "loading" in log.read_text())
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 143
    assert "listening" not in log.read_text()


def _members(parent: psutil.Process) -> list[psutil.Process]:
    found = []
    for process in parent.children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "spawn_main" in " ".join(process.cmdline()):
                found.append(process)
    return found


def test_processes_share_the_port_and_are_replaced(serving: Start, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    served = serving("--workers", "2", "--api_key", f"@{file}", config=MODELS)
    parent = psutil.Process(served.process.pid)
    members = _members(parent)
    assert len(members) == 2
    for process in [parent, *parent.children(recursive=True)]:
        assert KEY not in " ".join(process.cmdline()) + str(process.environ())
    ask = {"headers": {"authorization": f"Bearer {KEY}"}, "timeout": 10}
    url = f"{served.url}/v1/chat/completions"
    assert httpx.post(url, json=chat("echo"), **ask).status_code == 200
    assert httpx.post(url, json=chat("echo")).status_code == 401
    members[0].kill()
    until(lambda: len(_members(parent)) == 2 and members[0] not in _members(parent))
    for _ in range(10):
        assert httpx.post(url, json=chat("echo"), **ask).status_code == 200
    family = parent.children(recursive=True)
    assert served.stop() == 0
    _, left = psutil.wait_procs(family, timeout=5)
    assert not left
    assert refused(served.url)
    assert "ended with code -9; another one starts" in served.output
    assert KEY not in served.output


def test_processes_end_when_the_first_one_is_killed(serving: Start) -> None:
    served = serving("--workers", "2", config=MODELS)
    family = psutil.Process(served.process.pid).children(recursive=True)
    served.process.kill()
    served.process.wait(5)
    _, left = psutil.wait_procs(family, timeout=10)
    assert not left


def test_a_process_that_cannot_start_is_the_servers_error(tmp_path: Path) -> None:
    path = tmp_path / "models.yaml"
    path.write_text(
        "version: 1\nmodels:\n  m: {infer_backend: echo, infer_params: {fail_load: no such disk}}\n"
    )
    options = ("--runtime", "local", "--config", str(path), "--port", "0")
    for more in ((), ("--workers", "2")):
        failed = run(*options, *more)
        assert failed.returncode == 1
        assert "no such disk" in failed.stderr
        assert "Traceback" not in failed.stderr


def test_processes_share_out_what_a_vendor_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []
    monkeypatch.setattr(Host, "set_share", lambda host, share: shares.append(share))
    runtime = LocalRuntime()
    runtime.processes = 4
    spec = DeploymentSpec(model="m", backend="echo", num_workers=2)
    runtime.deploy(spec, replace=False, progress=None)
    assert shares == [1 / 8, 1 / 8]
    runtime.undeploy("m", force=True)


# Certificates


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files: a certificate, its key, the same key encrypted, and another key."""
    folder = tmp_path_factory.mktemp("tls")
    key, other = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    addresses = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(addresses, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    locked = serialization.BestAvailableEncryption(b"locked")
    pem = serialization.Encoding.PEM
    pkcs8 = serialization.PrivateFormat.PKCS8
    contents = {
        "certificate": certificate.public_bytes(pem),
        "key": key.private_bytes(pem, pkcs8, plain),
        "locked": key.private_bytes(pem, pkcs8, locked),
        "other": other.private_bytes(pem, pkcs8, plain),
    }
    for file, content in contents.items():
        (folder / file).write_bytes(content)
    return {file: str(folder / file) for file in contents}


def test_https(serving: Start, pairs: dict[str, str]) -> None:
    served = serving(
        "--ssl_certfile", pairs["certificate"], "--ssl_keyfile", pairs["key"], config=MODELS
    )
    assert served.url.startswith("https://127.0.0.1:")
    trusting = ssl.create_default_context(cafile=pairs["certificate"])
    with httpx.Client(base_url=served.url, verify=trusting, timeout=10) as client:
        answer = client.post("/v1/chat/completions", json=chat("echo"))
        assert answer.json()["choices"][0]["message"]["content"] == "hi you"
        with client.stream("POST", "/v1/chat/completions", json=chat("brief", stream=True)) as got:
            assert "".join(got.iter_text()).endswith("data: [DONE]\n\n")
        refusal = client.post("/v1/chat/completions", content=b"x" * 40_000_000)
        assert refusal.status_code == 415
    host, port = served.url.removeprefix("https://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while plain.recv(1000):
                pass
    assert served.stop() == 0
    assert "Traceback" not in served.output


@pytest.mark.parametrize(
    ("certificate", "key", "expected"),
    [
        ("certificate", "other", "is not the key of the certificate"),
        ("certificate", "locked", "is encrypted"),
        ("certificate", "certificate", "not a certificate (with its chain) and its key"),
        ("key", "key", "not a certificate (with its chain) and its key"),
        ("certificate", "", "go together"),
        ("nothing", "key", "no file"),
    ],
)
def test_a_wrong_pair(
    pairs: dict[str, str], config: str, certificate: str, key: str, expected: str
) -> None:
    options = ["--ssl_certfile", pairs.get(certificate, certificate)]
    if key:
        options += ["--ssl_keyfile", pairs[key]]
    failed = run("--runtime", "local", "--config", config, "--port", "0", *options)
    assert failed.returncode == 1
    assert expected in failed.stderr
    assert failed.stderr.count("\n") == 1


# Mistakes


@pytest.fixture(scope="module")
def taken() -> Iterator[str]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield str(listening.getsockname()[1])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--port", "TAKEN"], "cannot listen on 127.0.0.1:TAKEN: Address already in use"),
        (["--host", "nowhere.invalid"], "cannot listen on nowhere.invalid:8000"),
        (["--host", "192.0.2.1"], "Cannot assign requested address"),
        (["--host", "a" * 80 + ".b"], "cannot listen on aaaa"),
        (["--port", "70000"], "--port"),
        (["--workers", "0"], "--workers"),
        (["--api_key", ""], "--api_key is empty"),
        (["--api_key", "${NO_SUCH_VARIABLE}"], "NO_SUCH_VARIABLE is not set"),
        (["--api_key", "@/no/such/file"], "cannot read /no/such/file"),
        (["--api_key", "two words"], "letters, digits and signs of ASCII"),
        (["--api_key", "schlüssel"], "letters, digits and signs of ASCII"),
        (["--served_model_name", "x"], "takes NAME=MODEL"),
        (["--config", "/no/such/file"], "no file /no/such/file"),
        (["--runtime", "ray"], "--config goes with --runtime local"),
    ],
)
def test_mistakes(config: str, taken: str, options: list[str], expected: str) -> None:
    options = [taken if value == "TAKEN" else value for value in options]
    failed = run("--runtime", "local", "--config", config, *options)
    assert failed.returncode in (1, 2)
    assert expected.replace("TAKEN", taken) in failed.stderr
    assert "Traceback" not in failed.stderr
    assert len(failed.stderr.splitlines()) <= 2


def test_no_cluster_there() -> None:
    failed = run("--ray_address", "127.0.0.1:1", "--port", "0")
    assert failed.returncode == 1
    assert "no Ray cluster answers at 127.0.0.1:1" in failed.stderr


@pytest.mark.parametrize("content", ["models: [", "version: 1\nmodels: {m: {infer_backend: no}}\n"])
def test_a_wrong_file(tmp_path: Path, content: str) -> None:
    path = tmp_path / "models.yaml"
    path.write_text(content)
    failed = run("--runtime", "local", "--config", str(path), "--port", "0")
    assert failed.returncode in (1, 2)
    assert "Traceback" not in failed.stderr
    assert failed.stderr.startswith("error: ")


@pytest.mark.parametrize(
    ("settings", "warns"),
    [
        ({"host": "0.0.0.0"}, True),
        ({"host": "example.org"}, True),
        ({"host": "0.0.0.0", "api_key": KEY}, False),
        ({"host": "127.0.0.2"}, False),
        ({"host": "::1"}, False),
        ({"host": "localhost"}, False),
    ],
)
def test_an_open_door_is_warned_of(
    capsys: pytest.CaptureFixture[str], settings: dict[str, str], warns: bool
) -> None:
    _warn_of_open_door(ServerSettings(**settings))
    assert ("may call the models" in capsys.readouterr().err) == warns


def test_loading_is_shown(serving: Start) -> None:
    served = serving(config=MODELS)
    assert "ready" in served.output.partition("listening")[0]
    assert KEY not in repr(ServerSettings(api_key=KEY))
