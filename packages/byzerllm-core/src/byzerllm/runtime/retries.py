"""When a request to a vendor's model is sent again, and after what pause.

The runtime is the one place that retries; SDKs and provider clients have theirs off. What may be
sent again is said by the error: a `ProviderError` with `retryable` true, raised before the first
chunk of an answer.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Literal

from byzerllm.errors import ProviderError

TRIES = 4
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 20.0

Reason = Literal["vendor", "worker_died", "overloaded"]
"""Why a request was sent again: the vendor failed, its worker died, its worker was full."""
Listener = Callable[[str, Reason], None]
_listeners: list[Listener] = []


def listen(listener: Listener) -> Callable[[], None]:
    """Have `listener` called with the model and the reason whenever this process sends a request
    again, in the thread that does. Call what is returned to end it."""
    _listeners.append(listener)
    return lambda: _listeners.remove(listener)


def sent_again(model: str, reason: Reason) -> None:
    """Tell the listeners."""
    for listener in _listeners:
        listener(model, reason)


class VendorRetries:
    """Counts the failures of one request.

    The pause doubles from half a second and is jittered, so that many callers do not come back
    together; a vendor's Retry-After replaces it.

    Args:
        model: the deployment's name, for listeners.
    """

    def __init__(self, model: str = "") -> None:
        self.failures = 0
        self._model = model

    def pause(self, error: ProviderError, left: float) -> float:
        """Seconds to wait before the next try.

        Args:
            left: seconds of the request's time limit that remain.

        Raises:
            ProviderError: `error` itself, when it is final: not retryable, tried often enough, or
                the vendor wants a longer wait than is left.
        """
        self.failures += 1
        if not error.details.get("retryable") or self.failures >= TRIES:
            raise error
        wanted: float | None = error.details.get("retry_after")
        if wanted is None:
            ceiling = min(FIRST_PAUSE_SECONDS * 2 ** (self.failures - 1), LONGEST_PAUSE_SECONDS)
            seconds: float = ceiling * random.uniform(0.5, 1.0)
        else:
            seconds = wanted + random.uniform(0.0, 0.1)
        if seconds > LONGEST_PAUSE_SECONDS or seconds >= left:
            raise error
        sent_again(self._model, "vendor")
        return seconds
