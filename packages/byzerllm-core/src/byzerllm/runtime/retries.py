"""When a request to a vendor's model is sent again, and after what pause.

The runtime is the one place that retries; SDKs and provider clients have theirs off. What may be
sent again is said by the error: a `ProviderError` with `retryable` true, raised before the first
chunk of an answer.
"""

from __future__ import annotations

import random

from byzerllm.errors import ProviderError

TRIES = 4
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 20.0


class VendorRetries:
    """Counts the failures of one request.

    The pause doubles from half a second and is jittered, so that many callers do not come back
    together; a vendor's Retry-After replaces it.
    """

    def __init__(self) -> None:
        self.failures = 0

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
        return seconds
