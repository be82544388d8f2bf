"""Statuses, codes and bodies as errors of the tree."""

from __future__ import annotations

import email.utils
import json
import pickle
import time
from typing import Any

import pytest

from byzerllm.errors import (
    AuthenticationError,
    BadRequestError,
    ByzerLLMError,
    ContextLengthError,
    HostedModelNotFoundError,
    PermissionDeniedError,
    ProviderOverloadedError,
    ProviderProtocolError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    QuotaExceededError,
    RateLimitedError,
)
from byzerllm_saas.errors import (
    LONGEST_MESSAGE,
    ErrorTable,
    VendorErrors,
    request_id_of,
    retry_after_of,
    told,
)

KEY = "a-very-secret-key"


@pytest.fixture
def errors() -> VendorErrors:
    table = ErrorTable(codes={"no_money": QuotaExceededError}, statuses={418: BadRequestError})
    return VendorErrors("acme", "acme-1", table, secrets=[KEY])


@pytest.mark.parametrize(
    ("status", "cls", "retryable"),
    [
        (400, BadRequestError, False),
        (401, AuthenticationError, False),
        (402, QuotaExceededError, False),
        (403, PermissionDeniedError, False),
        (404, HostedModelNotFoundError, False),
        (408, ProviderTimeoutError, True),
        (418, BadRequestError, False),
        (422, BadRequestError, False),
        (429, RateLimitedError, True),
        (451, BadRequestError, False),
        (500, ProviderUnavailableError, True),
        (502, ProviderUnavailableError, True),
        (503, ProviderOverloadedError, True),
        (504, ProviderTimeoutError, True),
        (520, ProviderUnavailableError, True),
        (529, ProviderOverloadedError, True),
    ],
)
def test_status(
    errors: VendorErrors, status: int, cls: type[ByzerLLMError], retryable: bool
) -> None:
    error = errors.of_answer(status, {"x-request-id": "r1"}, b"{}")
    assert type(error) is cls
    assert error.details["retryable"] == retryable
    assert (error.vendor, error.vendor_model, error.status) == ("acme", "acme-1", status)
    assert error.vendor_request_id == "r1"
    assert f"HTTP {status}" in str(error)
    assert pickle.loads(pickle.dumps(error)).details == error.details


def test_code_wins_over_status(errors: VendorErrors) -> None:
    body = {"error": {"code": "no_money", "message": "top up"}}
    error = errors.of_answer(429, {}, json.dumps(body).encode())
    assert type(error) is QuotaExceededError
    assert (error.vendor_code, error.vendor_message) == ("no_money", "top up")


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 4097 tokens",
        "prompt is too long: 210000 tokens > 200000 maximum",
        "Range of input length should be [1, 6000]",
        "input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000",
        "The input token count exceeds the maximum number of tokens allowed",
    ],
)
def test_long_context(errors: VendorErrors, message: str) -> None:
    error = errors.of_answer(400, {}, json.dumps({"message": message}).encode())
    assert type(error) is ContextLengthError
    assert error.vendor_message == message


@pytest.mark.parametrize("message", ["max_tokens must be positive", "invalid temperature", ""])
def test_what_is_no_long_context(errors: VendorErrors, message: str) -> None:
    error = errors.of_answer(400, {}, json.dumps({"message": message}).encode())
    assert type(error) is BadRequestError


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ({"error": {"code": "c", "message": "m"}}, "c", "m"),
        ({"error": {"type": "t", "message": "m"}}, "t", "m"),
        ({"error": "plain"}, "", "plain"),
        ({"code": 17, "msg": "m"}, "17", "m"),
        ({"detail": [{"loc": 1}]}, "", "[{'loc': 1}]"),
        ([], "", ""),
        (None, "", ""),
    ],
)
def test_bodies(body: Any, code: str, message: str) -> None:
    assert told(body)[:2] == (code, message)


def test_pages_of_proxies_become_text(errors: VendorErrors) -> None:
    error = errors.of_answer(502, {}, b"<html><h1>Bad\n Gateway</h1></html>")
    assert error.vendor_message == "Bad Gateway"


def test_secrets_and_endless_messages(errors: VendorErrors) -> None:
    message = f"key {KEY}, sk-abcdef0123456789, Bearer abcdef0123: " + "x" * 5000
    error = errors.of_answer(400, {}, json.dumps({"message": message}).encode())
    shown = f"{error!r} {error.details!r}"
    for secret in (KEY, "abcdef0123456789", "abcdef0123"):
        assert secret not in shown
    assert len(error.vendor_message) == LONGEST_MESSAGE + 1


def test_redirects_are_not_followed(errors: VendorErrors) -> None:
    error = errors.of_answer(308, {"location": "https://elsewhere.test/"}, b"")
    assert type(error) is ProviderProtocolError
    assert "https://elsewhere.test/" in str(error)


def test_retry_after() -> None:
    assert retry_after_of({"retry-after": "2.5"}) == 2.5
    assert retry_after_of({"retry-after-ms": "250", "retry-after": "1"}) == 0.25
    soon = email.utils.formatdate(time.time() + 10, usegmt=True)
    wanted = retry_after_of({"retry-after": soon})
    assert wanted is not None
    assert 8 < wanted <= 10
    assert retry_after_of({"retry-after": "soon"}) is None
    assert retry_after_of({"retry-after": "-3"}) is None
    assert retry_after_of({"x-ratelimit-reset-requests": "1m30s"}) == 90
    assert retry_after_of({"x-ratelimit-reset-requests": "20ms"}) == 0.02
    assert retry_after_of({}) is None


def test_request_ids() -> None:
    assert request_id_of({"apim-request-id": "a"}) == "a"
    assert request_id_of({}) == ""
