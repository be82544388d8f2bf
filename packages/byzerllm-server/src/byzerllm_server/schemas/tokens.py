"""Tokens.

Source: vLLM's reference of its `/tokenize`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from byzerllm_server.operations import Body
from byzerllm_server.schemas.openai import ChatMessage, Text


class TokenizeRequest(Body, kw_only=True):
    """A `prompt`, or `messages` that the model's own chat template makes a prompt of. No special
    tokens are added but those that the template writes."""

    model: Text
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Meta(min_length=1)] | None = None
    add_special_tokens: Literal[False] | None = None
    add_generation_prompt: Literal[True] | None = None


class Tokens(Struct, kw_only=True):
    count: int
    max_model_len: int | None
    tokens: list[int]
