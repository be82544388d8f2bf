"""Models that stand in for one that cannot answer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from byzerllm.errors import (
    BadRequestError,
    ByzerLLMError,
    ContentFilteredError,
    OverloadedError,
    ProviderError,
    WorkerDiedError,
)

logger = logging.getLogger("byzerllm.client")

OnFallback = Callable[[str, str, ByzerLLMError], None]
FALLBACK_ERRORS = (ProviderError, OverloadedError, WorkerDiedError)


class Line:
    """The models that may answer one call, one after the other.

    Attributes:
        name: whose turn it is.

    Args:
        fallbacks: gives the names that stand in for the first; asked when it has failed.
        on_fallback: called with the model that failed, the one that is asked next, and why.
    """

    def __init__(
        self,
        name: str,
        fallbacks: Callable[[str], Sequence[str]],
        on_fallback: OnFallback | None = None,
    ) -> None:
        self.name = name
        self._fallbacks = fallbacks
        self._on_fallback = on_fallback
        self._waiting: list[str] | None = None

    def advance(self, error: ByzerLLMError) -> None:
        """Go on to the next model.

        Raises:
            ByzerLLMError: `error`, when there is none, or when the request itself is at fault.
        """
        if isinstance(error, BadRequestError | ContentFilteredError):
            raise error
        if self._waiting is None:
            self._waiting = list(self._fallbacks(self.name))
        if not self._waiting:
            raise error
        failed, self.name = self.name, self._waiting.pop(0)
        logger.warning("%s: %s: %s; asking %s", failed, type(error).__name__, error, self.name)
        if self._on_fallback is not None:
            self._on_fallback(failed, self.name, error)
