"""One HTTP request as the server follows it, from its first byte to its last."""

from __future__ import annotations

import itertools
import time
import uuid
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal

from byzerllm.requests import Usage

Dialect = Literal["openai", "anthropic"]
"""Whose API is spoken: it decides the shape of errors."""


@dataclass(frozen=True, kw_only=True)
class Principal:
    """Who calls.

    Attributes:
        name: of the key; empty on an open server.
        models: names that it may use; None for all.
        headers: of the answer, which say what its limits leave it.
    """

    name: str = ""
    models: frozenset[str] | None = None
    headers: tuple[tuple[bytes, bytes], ...] = field(default=(), repr=False)


ANYBODY = Principal()
_PROCESS = uuid.uuid4().hex[:16]
_numbers = itertools.count(1)


def new_id(prefix: str) -> str:
    """A new id of an answer or of a part of it, as `chatcmpl-…`."""
    return f"{prefix}{_PROCESS}{next(_numbers):012x}"


@dataclass(slots=True, kw_only=True)
class Call:
    """What is known of one HTTP request; the edge makes it, handlers fill it in.

    Times are of `time.perf_counter`, durations in seconds.

    Attributes:
        id: in `x-request-id`, in the log, and the id of the model's request.
        operation: the route's name, `chat` for `/v1/chat/completions`; empty until it is known.
        dialect: whose API was called.
        principal: who calls.
        asked: the model's name as the caller said it.
        model: the deployment that answered.
        stream: the answer is an event stream.
        started: when the head of the request had come.
        body_seconds: how long the caller took to send the body.
        sent: when the request went to the model; 0 before.
        first: when the first piece of the answer came; 0 before.
        answered: when its last piece came; 0 before.
        model_seconds: how long the worker was at it, by its own clock, its queue included.
        decoding: seconds between first and last token, and the tokens after the first, summed
            over the `n` answers.
        usage: tokens, once they are known; summed over the `n` answers.
        fallbacks: how often another model stood in.
        stood_in: each time, the model that failed and the one that was asked next.
        retries: how often it was sent again to the same model.
        error: the error's class; empty while all is well.
        cut: the server stops, and ended the request while it ran.
    """

    id: str
    started: float = field(default_factory=time.perf_counter)
    operation: str = ""
    dialect: Dialect = "openai"
    principal: Principal = ANYBODY
    asked: str = ""
    model: str = ""
    stream: bool = False
    body_seconds: float = 0.0
    sent: float = 0.0
    first: float = 0.0
    answered: float = 0.0
    model_seconds: float = 0.0
    decoding: tuple[float, int] = (0.0, 0)
    usage: Usage | None = None
    fallbacks: int = 0
    stood_in: tuple[tuple[str, str], ...] = ()
    retries: int = 0
    error: str = ""
    cut: bool = False

    def may_use(self, name: str) -> bool:
        """Whether the caller may use the model that is served under this name."""
        return self.principal.models is None or name in self.principal.models

    def first_seconds(self) -> float | None:
        """Time to first token as the caller of a stream sees it; None where there was none."""
        return self.first - self.started if self.stream and self.first else None

    def own_seconds(self, total: float) -> float:
        """What of `total` seconds the server took for itself: neither the caller to send the body
        nor the model to answer."""
        return max(0.0, total - self.body_seconds - self.model_seconds)


CURRENT: ContextVar[Call] = ContextVar("byzerllm.call")
"""The call that the running task answers; set once its model is known."""
