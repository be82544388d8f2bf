"""What vendors say when they refuse or fail, as errors of Byzer-LLM's tree.

`ErrorTable` is how one vendor speaks: its codes, its phrases, and where they stand in the body of
an answer. `VendorErrors` makes the errors of one deployment from it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

import msgspec

from byzerllm.errors import (
    AuthenticationError,
    BadRequestError,
    ContentFilteredError,
    ContextLengthError,
    HostedModelNotFoundError,
    PermissionDeniedError,
    ProviderError,
    ProviderOverloadedError,
    ProviderProtocolError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    QuotaExceededError,
    RateLimitedError,
    RequestError,
)

ErrorType = type[ProviderError] | type[ContextLengthError]

LONGEST_MESSAGE = 600
MASK = "******"

STATUSES: Mapping[int, ErrorType] = {
    400: BadRequestError,
    401: AuthenticationError,
    402: QuotaExceededError,
    403: PermissionDeniedError,
    404: HostedModelNotFoundError,
    408: ProviderTimeoutError,
    409: ProviderUnavailableError,
    413: BadRequestError,
    422: BadRequestError,
    425: ProviderUnavailableError,
    429: RateLimitedError,
    500: ProviderUnavailableError,
    502: ProviderUnavailableError,
    503: ProviderOverloadedError,
    504: ProviderTimeoutError,
    529: ProviderOverloadedError,
}
"""The class of a status, where the vendor's code says nothing better. Other 4xx are a
BadRequestError, other 5xx a ProviderUnavailableError."""

PHRASES: tuple[tuple[re.Pattern[str], ErrorType], ...] = (
    (
        re.compile(
            r"maximum context length|context[_ ]length|context window|prompt is too long"
            r"|input is too long|too many (input )?tokens|range of input length"
            r"|exceed\w* (the )?(max\w*|model|context|token)[^.]{0,40}(token|length|context|limit)"
            r"|tokens? (limit )?exceed",
            re.IGNORECASE,
        ),
        ContextLengthError,
    ),
)
"""Read in the message of a BadRequestError: few vendors have a code for it."""

_RETRYABLE = (
    RateLimitedError,
    ProviderOverloadedError,
    ProviderUnavailableError,
    ProviderTimeoutError,
)
_ADVICE: Mapping[type[RequestError], str] = {
    AuthenticationError: "check saas.api_key",
    PermissionDeniedError: "ask the vendor to allow the key this model and this call",
    HostedModelNotFoundError: "check saas.model and saas.base_url",
    ContextLengthError: "shorten the conversation, or choose a model with a longer context",
    ContentFilteredError: "change the text, it breaks the vendor's rules",
    QuotaExceededError: "top up the account or use another key",
    RateLimitedError: "send fewer requests, or set saas.rpm and saas.tpm to what the account has",
}
_DOES: Mapping[type[RequestError], str] = {
    AuthenticationError: "does not accept the key for",
    PermissionDeniedError: "does not allow this key to use",
    HostedModelNotFoundError: "has no model",
    BadRequestError: "refuses the request for",
    ContextLengthError: "has not enough context for the request to",
    ContentFilteredError: "filtered the question to or the answer of",
    RateLimitedError: "limits the rate of",
    QuotaExceededError: "has no credit left for",
    ProviderOverloadedError: "is overloaded and cannot run",
    ProviderUnavailableError: "failed while running",
    ProviderTimeoutError: "took too long for",
    ProviderProtocolError: "sent something it does not document for",
}
_REQUEST_IDS = (
    "x-request-id",
    "request-id",
    "x-amzn-requestid",
    "apim-request-id",
    "x-ms-request-id",
    "x-log-id",
    "x-trace-id",
    "trace-id",
    "x-bc-request-id",
    "cf-ray",
)
_LOOKS_LIKE_A_KEY = re.compile(
    r"\b(sk|ak|pk)-[\w-]{12,}|\bBearer[ ;]+\S{8,}|\beyJ[\w-]{8,}\.[\w-]+\.[\w-]+", re.IGNORECASE
)
_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:([\d.]+)s)?(?:([\d.]+)ms)?")


class Told(NamedTuple):
    """What the body of an answer says about an error."""

    code: str = ""
    message: str = ""
    request_id: str = ""
    retry_after: float | None = None


def told(body: Any) -> Told:
    """Reads the bodies that most vendors send: `{"error": {"code", "type", "message"}}` and its
    flat forms (`error` as text, `code` and `message` at the top)."""
    if not isinstance(body, dict):
        return Told()
    error = body.get("error")
    inside = error if isinstance(error, dict) else body
    code = inside.get("code") or inside.get("type") or inside.get("status") or ""
    message = inside.get("message") or inside.get("msg") or inside.get("detail") or ""
    if isinstance(error, str):
        message = message or error
    request_id = body.get("request_id") or body.get("id") or ""
    return Told(str(code), message if isinstance(message, str) else repr(message), str(request_id))


@dataclass(frozen=True, kw_only=True)
class ErrorTable:
    """How one vendor speaks of errors.

    Attributes:
        codes: the class of each of the vendor's codes; wins over the status.
        statuses: classes of statuses where the vendor's meaning is not the usual one.
        phrases: patterns in the vendor's message that name the class, looked for where the code
            does not say; the usual ones for a long context follow them.
        read: takes code and message out of the decoded JSON body.
    """

    codes: Mapping[str, ErrorType] = field(default_factory=dict)
    statuses: Mapping[int, ErrorType] = field(default_factory=dict)
    phrases: tuple[tuple[re.Pattern[str], ErrorType], ...] = ()
    read: Callable[[Any], Told] = told

    def classify(self, status: int | None, code: str, message: str) -> ErrorType:
        """The class of an error."""
        named = self.codes.get(code)
        if named is not None:
            return named
        for pattern, cls in self.phrases:
            if pattern.search(message):
                return cls
        cls = self._of_status(status)
        if cls is BadRequestError:
            found = (c for pattern, c in PHRASES if pattern.search(message))
            return next(found, cls)
        return cls

    def _of_status(self, status: int | None) -> ErrorType:
        if status is None or status < 400:
            return BadRequestError
        known = self.statuses.get(status) or STATUSES.get(status)
        return known or (ProviderUnavailableError if status >= 500 else BadRequestError)


class VendorErrors:
    """Makes the errors of one deployment.

    Args:
        vendor: the provider's name.
        model: the vendor's name of the model.
        table: how the vendor speaks of errors.
        secrets: texts that no error may show.
    """

    def __init__(
        self, vendor: str, model: str, table: ErrorTable, secrets: Iterable[str] = ()
    ) -> None:
        self.vendor = vendor
        self.model = model
        self.table = table
        self._secrets: list[str] = []
        self.hide(*secrets)

    def hide(self, *secrets: str) -> None:
        """More texts that no error may show: a token that the vendor handed out."""
        known = {*self._secrets, *(secret for secret in secrets if len(secret) > 3)}
        self._secrets = sorted(known, key=len, reverse=True)

    def of_answer(self, status: int, headers: Mapping[str, str], body: bytes) -> RequestError:
        """The error of an answer whose status says that it failed."""
        if 300 <= status < 400:
            place = headers.get("location", "elsewhere")
            return self.protocol(
                f"the answer leads to {place}; check saas.base_url", status=status, headers=headers
            )
        try:
            decoded = msgspec.json.decode(body)
        except msgspec.DecodeError:
            text = body[: 4 * LONGEST_MESSAGE].decode("utf-8", "replace")
            decoded = {"message": re.sub(r"<[^>]*>|\s+", " ", text).strip()}
        return self.of_body(decoded, status=status, headers=headers)

    def of_body(
        self, body: Any, *, status: int | None = None, headers: Mapping[str, str] | None = None
    ) -> RequestError:
        """The error that a decoded body tells of; also for those that come under HTTP 200."""
        headers = headers or {}
        code, message, request_id, retry_after = self.table.read(body)
        # Amazon's codes stand in a header, an address after them.
        code = code or headers.get("x-amzn-errortype", "").partition(":")[0]
        cls = self.table.classify(status, code, message)
        return self.make(
            cls,
            message,
            status=status,
            code=code,
            request_id=request_id_of(headers) or request_id,
            retry_after=retry_after if retry_after is not None else retry_after_of(headers),
        )

    def make(
        self,
        cls: ErrorType,
        message: str = "",
        *,
        status: int | None = None,
        code: str = "",
        request_id: str = "",
        retry_after: float | None = None,
        retryable: bool | None = None,
    ) -> RequestError:
        """An error of a class, with all that is known of it.

        Args:
            message: the vendor's words, or ours where the vendor said nothing.
            retryable: by default what the class says.
        """
        message = self.clean(message)
        details: dict[str, Any] = {
            "vendor": self.vendor,
            "vendor_model": self.model,
            "status": status,
            "vendor_request_id": request_id,
            "vendor_code": self.clean(code),
            "vendor_message": message,
            "retryable": issubclass(cls, _RETRYABLE) if retryable is None else retryable,
        }
        if retry_after is not None or cls is RateLimitedError:
            details["retry_after"] = retry_after
        return cls(self._sentence(cls, details), **details)

    def unavailable(self, reason: str, *, retryable: bool) -> RequestError:
        """The vendor cannot be reached, or the connection broke."""
        return self.make(ProviderUnavailableError, reason, retryable=retryable)

    def timeout(self, reason: str, *, retryable: bool) -> RequestError:
        """The vendor was too slow."""
        return self.make(ProviderTimeoutError, reason, retryable=retryable)

    def protocol(
        self,
        reason: str,
        *,
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> RequestError:
        """What came is not what the vendor documents."""
        return self.make(
            ProviderProtocolError, reason, status=status, request_id=request_id_of(headers or {})
        )

    def clean(self, text: str) -> str:
        """A vendor's text without secrets, at most `LONGEST_MESSAGE` characters of it."""
        for secret in self._secrets:
            text = text.replace(secret, MASK)
        text = _LOOKS_LIKE_A_KEY.sub(MASK, text)
        return text if len(text) <= LONGEST_MESSAGE else f"{text[:LONGEST_MESSAGE]}…"

    def _sentence(self, cls: ErrorType, details: Mapping[str, Any]) -> str:
        status, code = details["status"], details["vendor_code"]
        marks = [f"HTTP {status}"] if status else []
        marks += [f"code {code}"] if code else []
        where = f" ({', '.join(marks)})" if marks else ""
        says = f": {details['vendor_message']}" if details["vendor_message"] else ""
        advice = f"; {_ADVICE[cls]}" if cls in _ADVICE else ""
        of = f" {self.model!r}" if self.model else " its model"
        return f"{self.vendor} {_DOES[cls]}{of}{where}{says}{advice}"


def request_id_of(headers: Mapping[str, str]) -> str:
    """The vendor's id of a request, for its support."""
    return next((headers[name] for name in _REQUEST_IDS if name in headers), "")


def retry_after_of(headers: Mapping[str, str]) -> float | None:
    """Seconds that a vendor asks to wait: `retry-after-ms`, `retry-after` in seconds or as a date
    (RFC 9110 10.2.3), or OpenAI's `x-ratelimit-reset-requests`."""
    milliseconds = _number(headers.get("retry-after-ms", ""))
    if milliseconds is not None:
        return milliseconds / 1000
    after = headers.get("retry-after", "")
    seconds = _number(after)
    if seconds is not None:
        return seconds
    if after:
        try:
            return max(0.0, parsedate_to_datetime(after).timestamp() - time.time())
        except ValueError:
            return None
    found = _DURATION.fullmatch(headers.get("x-ratelimit-reset-requests", "").strip())
    if found is None or not any(found.groups()):
        return None
    hours, minutes, secs, millis = (float(part or 0) for part in found.groups())
    return hours * 3600 + minutes * 60 + secs + millis / 1000


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value < 1e6 else None
