"""Who may call: nobody is asked, or one key, or those of a database (`keys.gate`)."""

from __future__ import annotations

import hmac
from typing import Protocol

from byzerllm_server.calls import Principal
from byzerllm_server.errors import HTTPError
from byzerllm_server.operations import Context, header


class Gate(Protocol):
    """Decides who a request comes from."""

    async def authorize(self, context: Context) -> Principal:
        """Who calls. Raises HTTPError: 401 without a valid key, 429 over its limits."""
        ...


class OpenGate:
    """Everybody may call."""

    async def authorize(self, context: Context) -> Principal:
        return Principal()


class OneKeyGate:
    """Everybody who has the one key may call."""

    def __init__(self, key: str) -> None:
        self._key = key.encode()

    async def authorize(self, context: Context) -> Principal:
        # Header values are bytes; `header` reads them as Latin-1.
        presented = presented_key(context).encode("latin-1")
        if not hmac.compare_digest(presented, self._key):
            raise wrong_key()
        return Principal(name="api_key")


def presented_key(context: Context) -> str:
    """The key of a request: `authorization: Bearer KEY` as OpenAI, or `x-api-key` as Anthropic.

    Raises:
        HTTPError: there is none.
    """
    scheme, _, key = header(context.scope, b"authorization").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    key = header(context.scope, b"x-api-key").strip()
    if key:
        return key
    raise HTTPError(
        401,
        "no key was presented; send the header 'authorization: Bearer KEY' (or 'x-api-key: KEY')",
        code="missing_api_key",
        headers={"www-authenticate": "Bearer"},
    )


def wrong_key(why: str = "the key is not valid") -> HTTPError:
    """The refusal of a key. Only who has a key that once was valid learns more by `why`."""
    return HTTPError(
        401,
        f"{why}; ask the operator of this server for one",
        code="invalid_api_key",
        headers={"www-authenticate": "Bearer"},
    )
