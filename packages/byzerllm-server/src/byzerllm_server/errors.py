"""Errors of Byzer-LLM as HTTP answers, in the shape of the API that was called.

Sources: OpenAI's and Anthropic's pages on errors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec
from starlette.responses import Response

from byzerllm import errors
from byzerllm.errors import ByzerLLMError
from byzerllm_server.calls import Call, Dialect


class HTTPError(Exception):
    """A request that is refused before a model is asked.

    Args:
        status: HTTP's.
        message: what was wrong, what is allowed, what to do.
        code: short and stable, for programs.
        parameter: the field that is at fault, as a path.
        retry_after: seconds.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str = "",
        parameter: str = "",
        retry_after: float | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.parameter = parameter
        self.retry_after = retry_after
        self.headers = headers or {}


def stopping() -> HTTPError:
    """The refusal of a server that was told to stop."""
    message = "the server is stopping; ask another one"
    return HTTPError(503, message, code="stopping", retry_after=1.0)


@dataclass(frozen=True)
class Problem:
    """An error as a caller shall see it."""

    status: int
    message: str
    code: str
    parameter: str = ""
    retry_after: float | None = None
    headers: tuple[tuple[str, str], ...] = ()


_STATUS: dict[type[ByzerLLMError], tuple[int, str]] = {
    errors.UsageError: (400, "invalid_request"),
    errors.ContextLengthError: (400, "context_length_exceeded"),
    errors.CapabilityError: (400, "unsupported_by_model"),
    errors.ModelNotFoundError: (404, "model_not_found"),
    errors.OverloadedError: (429, "overloaded"),
    errors.RequestTimeoutError: (504, "timeout"),
    errors.RequestCancelledError: (503, "cancelled"),
    errors.WorkerDiedError: (503, "worker_died"),
    errors.StreamInterruptedError: (502, "stream_interrupted"),
    errors.InvalidAnswerError: (502, "invalid_answer"),
    errors.BadRequestError: (400, "invalid_request"),
    errors.ContentFilteredError: (400, "content_filter"),
    errors.RateLimitedError: (429, "rate_limit_exceeded"),
    # The vendor's quarrel is with the operator's account, not with the caller's key.
    errors.QuotaExceededError: (503, "upstream_quota_exceeded"),
    errors.AuthenticationError: (502, "upstream_authentication"),
    errors.PermissionDeniedError: (502, "upstream_permission_denied"),
    errors.HostedModelNotFoundError: (502, "upstream_model_not_found"),
    errors.ProviderOverloadedError: (503, "upstream_overloaded"),
    errors.ProviderTimeoutError: (504, "upstream_timeout"),
    errors.ProviderError: (502, "upstream_error"),
    errors.ClusterError: (503, "cluster_unavailable"),
    errors.BackendError: (500, "engine_error"),
    errors.ByzerLLMError: (500, "internal_error"),
}

_PYTHON_NAME = "conversations"
"""What the Python API calls the messages of a chat."""
_OPENAI_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def problem_of(error: BaseException) -> Problem:
    """How an error is said to a caller; one that nobody foresaw says nothing of its inside."""
    if isinstance(error, HTTPError):
        return Problem(
            error.status,
            error.message,
            error.code or "invalid_request",
            error.parameter,
            error.retry_after,
            tuple(error.headers.items()),
        )
    if not isinstance(error, ByzerLLMError):
        return Problem(500, "the server made a mistake; its log has the request's id", "internal")
    for cls in type(error).__mro__:
        if cls in _STATUS:
            status, code = _STATUS[cls]
            break
    retry_after: float | None = error.details.get("retry_after")
    if retry_after is None and status in (429, 503):
        retry_after = 1.0
    message, parameter = error.message, str(error.details.get("parameter") or "")
    if parameter.startswith(_PYTHON_NAME):
        message = message.replace(_PYTHON_NAME, "messages", 1)
        parameter = parameter.replace(_PYTHON_NAME, "messages", 1)
    return Problem(status, message, code, parameter, retry_after)


def error_name(error: BaseException) -> str:
    """The error in log and metrics: its class, and the code of what was refused here."""
    if isinstance(error, HTTPError):
        return error.code or "invalid_request"
    return type(error).__name__


def error_body(problem: Problem, dialect: Dialect, request_id: str) -> bytes:
    """The JSON of an error."""
    if dialect == "anthropic":
        kind = _ANTHROPIC_TYPES.get(
            problem.status, "api_error" if problem.status >= 500 else "invalid_request_error"
        )
        details = {"error_code": problem.code}
        said = {"type": kind, "message": problem.message, "details": details}
        return msgspec.json.encode({"type": "error", "error": said, "request_id": request_id})
    kind = _OPENAI_TYPES.get(
        problem.status, "server_error" if problem.status >= 500 else "invalid_request_error"
    )
    return msgspec.json.encode(
        {
            "error": {
                "message": problem.message,
                "type": kind,
                "param": problem.parameter or None,
                "code": problem.code,
            }
        }
    )


def error_response(error: BaseException, call: Call) -> Response:
    """The answer to a request that failed; notes the error in `call`."""
    problem = problem_of(error)
    call.error = call.error or error_name(error)
    headers = dict(problem.headers)
    if problem.retry_after is not None:
        headers["retry-after"] = str(max(1, math.ceil(problem.retry_after)))
    body = error_body(problem, call.dialect, call.id)
    return Response(body, problem.status, headers, media_type="application/json")


def error_event(error: BaseException, call: Call) -> bytes:
    """The last event of a stream that failed."""
    call.error = call.error or error_name(error)
    body = error_body(problem_of(error), call.dialect, call.id)
    name = b"event: error\n" if call.dialect == "anthropic" else b""
    return name + b"data: " + body + b"\n\n"
