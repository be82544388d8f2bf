"""The way to a vendor: connections, proxies, certificates, time limits."""

from __future__ import annotations

import asyncio
import datetime
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from byzerllm.errors import (
    ParameterError,
    ProviderProtocolError,
    ProviderTimeoutError,
    ProviderUnavailableError,
)
from byzerllm_saas.errors import ErrorTable, VendorErrors
from byzerllm_saas.http import Http
from byzerllm_saas.parameters import SaasParameters

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def opened(**given: Any) -> AsyncIterator[Http]:
    parameters = SaasParameters.parse({f"saas.{k}": v for k, v in given.items()}, where="test")
    http = Http(parameters, VendorErrors("acme", "acme-1", ErrorTable()))
    await http.open()
    try:
        yield http
    finally:
        await http.close()


@asynccontextmanager
async def server(handler: Handler, **more: Any) -> AsyncIterator[str]:
    """`HOST:PORT` of a server that gives every request to `handler`."""
    runner = web.ServerRunner(web.Server(handler), shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, **more)
    await site.start()
    try:
        yield f"127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def hello(request: web.Request) -> web.Response:
    return web.json_response({"peer": request.transport.get_extra_info("peername")})  # type: ignore[union-attr]


def test_connections_are_used_again() -> None:
    peers = set()

    async def remember(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        peers.add(request.transport.get_extra_info("peername"))
        if request.method == "GET":
            return web.Response(text="x")
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: a\n\n")
        await response.write(b"data: [DONE]\n\n")
        await asyncio.sleep(0.01)
        await response.write_eof()
        return response

    async def main() -> None:
        async with server(remember) as place, opened() as http:
            for _ in range(5):
                await http.send("GET", f"http://{place}/")
                async with http.stream("POST", f"http://{place}/", json={}) as stream:
                    done = False
                    async for events in stream.events():
                        done = done or any(event.data == b"[DONE]" for event in events)
                        if done:
                            break
                    await stream.drain()

    asyncio.run(main())
    assert len(peers) == 1


def test_local_address() -> None:
    async def main() -> None:
        async with server(hello) as place, opened(local_address="127.0.0.2") as http:
            answer = await http.send("GET", f"http://{place}/")
            assert http.decode(answer.body)["peer"][0] == "127.0.0.2"
        async with opened(local_address="192.0.2.1") as http:
            with pytest.raises(ProviderUnavailableError, match="cannot connect"):
                await http.send("GET", f"http://{place}/")

    asyncio.run(main())


def test_proxy() -> None:
    seen = []

    async def proxy(request: web.Request) -> web.Response:
        seen.append((str(request.url), request.headers.get("proxy-authorization")))
        if "proxy-authorization" not in request.headers:
            return web.Response(status=407)
        return web.json_response({"through": "proxy"})

    async def main() -> None:
        async with server(proxy) as place:
            async with opened(proxies=f"http://user:password@{place}") as http:
                answer = await http.send("POST", "http://vendor.test/v1", json={})
                assert http.decode(answer.body) == {"through": "proxy"}
            async with opened(proxies=f"http://{place}") as http:
                with pytest.raises(Exception, match="407"):
                    await http.send("POST", "http://vendor.test/v1", json={})

    asyncio.run(main())
    assert seen[0] == ("http://vendor.test/v1", "Basic dXNlcjpwYXNzd29yZA==")


def test_proxy_that_cannot_be_reached() -> None:
    async def main() -> None:
        async with opened(proxies="http://user:password@127.0.0.1:9") as http:
            with pytest.raises(ProviderUnavailableError, match=r"saas\.proxies") as caught:
                await http.send("GET", "http://vendor.test/")
            assert "password" not in f"{caught.value!r} {caught.value.details}"

    asyncio.run(main())


def test_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "http_proxy",
        "HTTP_PROXY",
        "https_proxy",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "all_proxy",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", "http://proxy.test:3128")
    monkeypatch.setenv("no_proxy", "inside.test")

    async def main() -> None:
        async with opened() as http:
            assert http._proxy("https://api.test/v1") == "http://proxy.test:3128"
            assert http._proxy("wss://api.test/v1") == "http://proxy.test:3128"
            assert http._proxy("http://api.test/v1") is None
            assert http._proxy("https://inside.test/v1") is None
            assert http._proxy("https://127.0.0.1:8000/v1") is None
        async with opened(proxies="http://other.test:1") as http:
            assert http._proxy("https://api.test/v1") == "http://other.test:1"

    asyncio.run(main())


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a key and its self-signed certificate for 127.0.0.1."""
    import ipaddress

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "vendor.test")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path_factory.mktemp("tls") / "vendor.pem"
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    file.write_bytes(
        key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain)
        + made.public_bytes(encoding)
    )
    return file


def test_certificates(certificate: Path, caplog: pytest.LogCaptureFixture) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)

    async def main() -> None:
        async with server(hello, ssl_context=context) as place:
            async with opened() as http:
                with pytest.raises(ProviderUnavailableError, match=r"saas\.verify") as caught:
                    await http.send("GET", f"https://{place}/")
                assert not caught.value.retryable
            async with opened(verify=str(certificate)) as http:
                assert (await http.send("GET", f"https://{place}/")).status == 200
            assert not caplog.records
            async with opened(verify="false") as http:
                assert (await http.send("GET", f"https://{place}/")).status == 200
            assert [record.levelno for record in caplog.records] == [logging.WARNING]

    asyncio.run(main())


@pytest.mark.parametrize("text", [None, "no certificate"])
def test_ca_bundle_that_is_none(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "ca.pem"
    if text is not None:
        file.write_text(text)

    async def main() -> None:
        async with opened(verify=str(file)):
            pass

    with pytest.raises(ParameterError, match=r"saas\.verify.*ca\.pem"):
        asyncio.run(main())


def test_redirects_are_not_followed() -> None:
    async def elsewhere(request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"location": "http://other.test/"})

    async def main() -> None:
        async with server(elsewhere) as place, opened() as http:
            with pytest.raises(ProviderProtocolError, match=r"http://other\.test/"):
                await http.send("POST", f"http://{place}/", json={})

    asyncio.run(main())


@pytest.fixture
def deaf() -> Iterator[int]:
    """A port at which no connection comes to stand: its queue is full."""
    with socket.socket() as listening, socket.socket() as first, socket.socket() as second:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        address = listening.getsockname()
        for waiting in (first, second):
            waiting.setblocking(False)
            waiting.connect_ex(address)
        yield address[1]


def test_connect_timeout(deaf: int) -> None:
    async def main() -> None:
        async with opened(connect_timeout=0.2) as http:
            with pytest.raises(ProviderTimeoutError, match=r"saas\.connect_timeout") as caught:
                await http.send("GET", f"http://127.0.0.1:{deaf}/")
            assert caught.value.retryable

    asyncio.run(main())


def test_total_timeout() -> None:
    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(100):
            await response.write(b"drip")
            await asyncio.sleep(0.05)
        return response

    async def main() -> None:
        async with server(drip) as place, opened(total_timeout=0.3) as http:
            with pytest.raises(ProviderTimeoutError, match=r"saas\.total_timeout") as caught:
                await http.send("GET", f"http://{place}/")
            assert not caught.value.retryable

    asyncio.run(main())


def test_what_is_no_http() -> None:
    async def main() -> None:
        async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
            writer.close()

        listening = await asyncio.start_server(babble, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        async with listening, opened() as http:
            with pytest.raises(ProviderProtocolError, match="no HTTP"):
                await http.send("GET", f"http://127.0.0.1:{port}/")

    asyncio.run(main())


def test_socket() -> None:
    async def echo(request: web.Request) -> web.StreamResponse:
        if request.path == "/refused":
            return web.json_response({"message": "no"}, status=401)
        wire = web.WebSocketResponse()
        await wire.prepare(request)
        async for message in wire:
            if message.data == "cut":
                assert request.transport is not None
                request.transport.abort()
                break
            if message.data == "end":
                break
            if message.data != "silence":
                await wire.send_str(f"{message.data}!")
        await wire.close()
        return wire

    async def main() -> None:
        async with server(echo) as place, opened(read_timeout=0.3) as http:
            url = f"ws://{place}/"
            async with http.socket(url) as wire:
                await wire.send("a")
                assert await wire.receive() == "a!"
                await wire.send("silence")
                with pytest.raises(ProviderTimeoutError, match=r"saas\.read_timeout"):
                    await wire.receive()
            async with http.socket(url) as wire:
                await wire.send("end")
                assert await wire.receive() is None
            async with http.socket(url) as wire:
                await wire.send("cut")
                with pytest.raises(ProviderUnavailableError, match="cut"):
                    await wire.receive()
            with pytest.raises(Exception, match="HTTP 401"):
                async with http.socket(f"{url}refused"):
                    pass
            with pytest.raises(ProviderUnavailableError, match="cannot connect"):
                async with http.socket("ws://127.0.0.1:9/"):
                    pass

    asyncio.run(main())


# Streams that are cut, garbage that shows a key.


@pytest.mark.parametrize("pieces", [0, 1])
def test_a_stream_that_was_cut_may_be_asked_for_again_before_its_first_byte(pieces: int) -> None:
    async def cut(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(pieces):
            await response.write(b"piece")
        # Until the client has what there is: a cut destroys what is not read.
        await asyncio.sleep(0.2)
        assert request.transport is not None
        request.transport.abort()
        return response

    received = []

    async def read(http: Http, url: str) -> None:
        async with http.stream("GET", url) as stream:
            async for piece in stream.pieces():
                received.append(piece)

    async def run() -> None:
        async with server(cut) as place, opened() as http:
            with pytest.raises(ProviderUnavailableError) as caught:
                await read(http, f"http://{place}/")
        assert received == [b"piece"] * pieces
        assert caught.value.retryable is (pieces == 0)

    asyncio.run(run())


@pytest.mark.parametrize("before", [0, 150, 190, 400])
def test_no_part_of_a_key_is_shown(before: int) -> None:
    secret = "vendor-key-0123456789"

    errors = VendorErrors("acme", "acme-1", ErrorTable(), secrets=[secret])
    http = Http(SaasParameters.parse({}, where="test"), errors)
    with pytest.raises(ProviderProtocolError) as caught:
        http.decode(b"x" * before + secret.encode() + b"y" * 400)
    assert "vendor-k" not in f"{caught.value!r} {caught.value.details!r}"
