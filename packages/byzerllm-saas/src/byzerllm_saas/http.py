"""The way to a vendor over HTTP: one session with its connections per deployment and worker.

It never retries: the runtime is the one place that does. What goes wrong on the way is raised as an
error of the vendor's deployment, with `retryable` where nothing can have come of the request.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import msgspec

from byzerllm.errors import ParameterError
from byzerllm_saas.errors import VendorErrors, request_id_of
from byzerllm_saas.parameters import SaasParameters
from byzerllm_saas.sse import Event, EventParser, EventTooLarge

if TYPE_CHECKING:
    import ssl

    import aiohttp
    from yarl import URL

logger = logging.getLogger(__name__)

T = TypeVar("T")
Headers = Mapping[str, str]

IDLE_SECONDS = 30.0
"""How long an unused connection is kept; vendors close theirs after a minute or so."""
DRAIN_SECONDS = 0.25
"""How long the end of a stream is waited for after its last event, to keep the connection."""

_NOTHING: Headers = {}
_decode = msgspec.json.decode
encode_json = msgspec.json.encode


class Answer(NamedTuple):
    """A whole answer of the vendor."""

    status: int
    headers: Headers
    body: bytes

    @property
    def request_id(self) -> str:
        return request_id_of(self.headers)


class Stream:
    """An answer that is read piece by piece."""

    def __init__(self, response: aiohttp.ClientResponse, http: Http) -> None:
        self._response = response
        self._http = http
        self.headers: Headers = response.headers

    @property
    def request_id(self) -> str:
        return request_id_of(self.headers)

    @property
    def content_type(self) -> str:
        """Without its parameters, in small letters."""
        return self._response.content_type.lower()

    async def read(self) -> bytes:
        """All that is still to come."""
        with self._http.explained("body"):
            return await self._response.read()

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """Bytes as they arrive: what lies ready comes as one piece."""
        read = self._response.content.readany
        with self._http.explained("body", whole=True):
            piece = await read()
        with self._http.explained("body"):
            while piece:
                yield piece
                piece = await read()

    async def events(self) -> AsyncGenerator[list[Event], None]:
        """Server-sent events, in lists of those that arrived together.

        Raises:
            ProviderProtocolError: one that is too large.
        """
        parser = EventParser()
        async with aclosing(self.pieces()) as pieces:
            async for piece in pieces:
                try:
                    events = parser.feed(piece)
                except EventTooLarge as error:
                    raise self._http.errors.protocol(str(error), headers=self.headers) from None
                if events:
                    yield events
        if events := parser.close():
            yield events

    async def drain(self) -> None:
        """Read the end of an answer that is complete, so that its connection can be used again."""
        import asyncio

        with contextlib.suppress(Exception):
            async with asyncio.timeout(DRAIN_SECONDS):
                while await self._response.content.readany():
                    pass


class Socket:
    """An open WebSocket."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, http: Http) -> None:
        self._socket = socket
        self._http = http

    async def send(self, message: str | bytes) -> None:
        """Send one text or binary message."""
        with self._http.explained("body"):
            if isinstance(message, str):
                await self._socket.send_str(message)
            else:
                await self._socket.send_bytes(message)

    async def receive(self) -> str | bytes | None:
        """The next message; None when the vendor has closed the socket.

        Raises:
            ProviderTimeoutError: nothing came within the read timeout.
            ProviderUnavailableError: the connection broke.
        """
        import asyncio

        import aiohttp

        seconds = self._http.parameters.read_timeout
        try:
            async with asyncio.timeout(seconds):
                message = await self._socket.receive()
        except TimeoutError:
            raise self._http.errors.timeout(
                f"nothing came for {seconds:g} s (saas.read_timeout)", retryable=False
            ) from None
        if message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
            data: str | bytes = message.data
            return data
        if message.type == aiohttp.WSMsgType.ERROR or self._socket.close_code == 1006:
            raise self._http.errors.unavailable("the connection was cut", retryable=False)
        return None


class Http:
    """One vendor's connections.

    Args:
        parameters: proxies, addresses, certificates and time limits.
        errors: makes the errors of what goes wrong.
        repeatable: a request whose answer was lost may be sent again; not where it costs.
    """

    def __init__(
        self, parameters: SaasParameters, errors: VendorErrors, *, repeatable: bool = True
    ) -> None:
        self.parameters = parameters
        self.errors = errors
        self._repeatable = repeatable
        self._session: aiohttp.ClientSession | None = None
        self._failures: tuple[type[Exception], ...] = ()
        self._proxies = _environment_proxies()
        self._direct = _hosts_without_proxy()

    async def open(self) -> None:
        """Make the session; no connection yet.

        Raises:
            ParameterError: `verify` names no readable CA bundle, or `local_address` is none here.
        """
        import asyncio

        import aiohttp

        given = self.parameters
        certificates = await asyncio.to_thread(_certificates, given.verify)
        connector = aiohttp.TCPConnector(
            limit=0,
            ttl_dns_cache=60,
            keepalive_timeout=IDLE_SECONDS,
            ssl=certificates,
            local_addr=(given.local_address, 0) if given.local_address else None,
        )
        self._failures = (aiohttp.ClientError, OSError, ValueError)
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(
                total=given.total_timeout or None,
                sock_connect=given.connect_timeout,
                sock_read=given.read_timeout,
            ),
            headers={"user-agent": "byzerllm-saas"},
        )

    async def close(self) -> None:
        """End all connections. Idempotent."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def send(
        self,
        method: str,
        url: str,
        *,
        json: Any = None,
        body: Any = None,
        headers: Headers = _NOTHING,
        encoded: bool = False,
    ) -> Answer:
        """Send a request and read the whole answer.

        Args:
            json: becomes the body, as JSON.
            body: bytes, or what aiohttp takes as `data` (a form).
            encoded: the URL goes out as it is, because a signature covers its spelling.

        Raises:
            ProviderError, ContextLengthError: the status is 300 or above, or the way failed.
        """
        response = await self._ask(method, url, json, body, headers, encoded)
        return await self._whole(response)

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        url: str,
        *,
        json: Any = None,
        body: Any = None,
        headers: Headers = _NOTHING,
        encoded: bool = False,
    ) -> AsyncGenerator[Stream, None]:
        """Send a request; the answer is read in the body of the `async with`.

        Leaving with an error or a cancellation cuts the connection, so that the vendor stops.

        Raises:
            ProviderError, ContextLengthError: as `send`, before the body.
        """
        response = await self._ask(method, url, json, body, headers, encoded)
        if response.status >= 300:
            await self._whole(response)
        try:
            yield Stream(response, self)
        except BaseException:
            response.close()
            raise
        response.release()

    @asynccontextmanager
    async def socket(
        self, url: str, *, headers: Headers = _NOTHING
    ) -> AsyncGenerator[Socket, None]:
        """Open a WebSocket; it is closed when the `async with` is left.

        Raises:
            ProviderError: the handshake was refused, or the vendor cannot be reached.
        """
        import asyncio

        import aiohttp

        try:
            with self.explained("connect"):
                socket = await self._opened.ws_connect(
                    url, headers=headers, proxy=self._proxy(url), max_msg_size=0, autoping=True
                )
        except aiohttp.WSServerHandshakeError as error:
            raise self.errors.of_body(
                {"message": error.message}, status=error.status, headers=error.headers or {}
            ) from None
        patience = DRAIN_SECONDS
        try:
            yield Socket(socket, self)
        except BaseException:
            patience = 0.0
            raise
        finally:
            # A vendor in mid-answer reads no farewell and does not give one.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await socket.close()

    def decode(self, body: bytes, wanted: type[T] | Any = Any) -> T:
        """A JSON body as `wanted` (a msgspec struct, or plain data).

        Raises:
            ProviderProtocolError: it is empty, no JSON, or of another shape.
        """
        if not body:
            raise self.errors.protocol("the answer is empty")
        try:
            found: T = _decode(body, type=wanted)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            # Cleaned first: half of a secret at the end would not be found.
            begin = self.errors.clean(body[:600].decode("utf-8", "replace"))[:200]
            raise self.errors.protocol(f"{error}; it begins with {begin!r}") from None
        return found

    async def _ask(
        self, method: str, url: str, json: Any, body: Any, headers: Headers, encoded: bool
    ) -> aiohttp.ClientResponse:
        """Send a request and read the head of its answer."""
        if json is not None:
            body = encode_json(json)
            headers = {"content-type": "application/json", **headers}
        try:
            return await self._opened.request(
                method,
                self._as_it_is(url) if encoded else url,
                data=body,
                headers=headers,
                proxy=self._proxy(url),
                allow_redirects=False,
            )
        except self._failures as error:
            raise self._named(error, "connect", whole=False) from error

    async def _whole(self, response: aiohttp.ClientResponse) -> Answer:
        """The rest of an answer; raises the error that its status tells of."""
        try:
            body = await response.read()
        except self._failures as error:
            response.close()
            raise self._named(error, "body", whole=True) from error
        except BaseException:
            response.close()
            raise
        if response.status >= 300:
            raise self.errors.of_answer(response.status, response.headers, body)
        return Answer(response.status, response.headers, body)

    @staticmethod
    def _as_it_is(url: str) -> URL:
        from yarl import URL

        return URL(url, encoded=True)

    @property
    def _opened(self) -> aiohttp.ClientSession:
        assert self._session is not None, "Http.open() comes first"
        return self._session

    def _proxy(self, url: str) -> str | None:
        if self.parameters.proxies:
            return self.parameters.proxies
        if not self._proxies:
            return None
        parts = urlsplit(url)
        host = parts.hostname or ""
        if self._direct(host) or host in ("localhost", "127.0.0.1", "::1"):
            return None
        scheme = {"wss": "https", "ws": "http"}.get(parts.scheme, parts.scheme)
        return self._proxies.get(scheme) or self._proxies.get("all")

    @contextmanager
    def explained(self, phase: str, *, whole: bool = False) -> Iterator[None]:
        """What aiohttp raises inside becomes an error of the vendor.

        Args:
            phase: `connect` until the answer's head is here, then `body`.
            whole: nothing of the body has been passed on, so that it may be asked for again.
        """
        import aiohttp

        try:
            yield
        except aiohttp.WSServerHandshakeError:
            raise
        except self._failures as error:
            raise self._named(error, phase, whole=whole) from error

    def _named(self, error: Exception, phase: str, *, whole: bool) -> Exception:
        import aiohttp

        given, errors = self.parameters, self.errors
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            return errors.timeout(
                f"no connection within {given.connect_timeout:g} s (saas.connect_timeout)",
                retryable=True,
            )
        if isinstance(error, aiohttp.SocketTimeoutError):
            return errors.timeout(
                f"nothing came for {given.read_timeout:g} s (saas.read_timeout)", retryable=False
            )
        if isinstance(error, TimeoutError):
            return errors.timeout(
                f"no end within {given.total_timeout:g} s (saas.total_timeout)", retryable=False
            )
        if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientSSLError):
            return errors.unavailable(
                f"the connection is not secure: {error}; saas.verify takes the path of a CA bundle",
                retryable=False,
            )
        if isinstance(error, aiohttp.ClientProxyConnectionError):
            return errors.unavailable(
                f"the proxy cannot be reached (saas.proxies): {_reason(error)}", retryable=True
            )
        if isinstance(error, aiohttp.ClientHttpProxyError):
            return errors.unavailable(
                f"the proxy refused (saas.proxies): HTTP {error.status}", retryable=False
            )
        if isinstance(error, aiohttp.ClientConnectorError):
            return errors.unavailable(
                f"cannot connect to {error.host}:{error.port}: {_reason(error)}", retryable=True
            )
        if isinstance(error, aiohttp.ClientResponseError):
            return errors.protocol(f"the answer is no HTTP: {error.message}")
        if isinstance(error, aiohttp.InvalidURL | ValueError) and phase == "connect":
            return errors.protocol(f"the address cannot be used: {error}")
        # What is left is a connection that broke.
        if phase == "connect":
            return errors.unavailable(
                "the connection was closed without an answer", retryable=self._repeatable
            )
        return errors.unavailable(
            "the connection was cut in the middle", retryable=whole and self._repeatable
        )


def _reason(error: aiohttp.ClientConnectorError) -> str:
    cause = error.os_error
    return cause.strerror or str(cause) or type(cause).__name__


def _certificates(verify: bool | str) -> ssl.SSLContext | bool:
    import ssl
    from pathlib import Path

    if verify is True:
        return True
    if verify is False:
        logger.warning("saas.verify=false: whoever stands between can read and change everything")
        return False
    path = Path(verify).expanduser()
    try:
        if path.is_dir():
            return ssl.create_default_context(capath=str(path))
        return ssl.create_default_context(cafile=str(path))
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror or str(error)
        raise ParameterError.invalid(
            "saas.verify", f"cannot read the CA bundle {str(path)!r}: {reason}", where="a provider"
        ) from None


def _environment_proxies() -> dict[str, str]:
    """The proxies that the environment names, by scheme; those that are no HTTP proxy left out."""
    from urllib.request import getproxies_environment

    return {
        scheme: address
        for scheme, address in getproxies_environment().items()
        if address.startswith(("http://", "https://"))
    }


def _hosts_without_proxy() -> Callable[[str], bool]:
    """What `no_proxy` says of a host."""
    import urllib.request

    bypass: Callable[[str], bool] = getattr(urllib.request, "proxy_bypass_environment")  # noqa: B009 - typeshed lacks it
    return bypass
