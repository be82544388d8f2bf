"""Anthropic's requests and answers.

Source: the reference of Anthropic's Messages API.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct


class ErrorDetail(Struct, kw_only=True):
    type: str
    message: str


class Error(Struct, kw_only=True):
    type: Literal["error"] = "error"
    error: ErrorDetail
    request_id: str
