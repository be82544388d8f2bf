"""Calls the `before_request` and `after_request` hooks around one request."""

from __future__ import annotations

import logging
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from byzerllm.errors import PluginError
from byzerllm.plugins import get_plugins
from byzerllm.requests import (
    ApplyTemplateRequest,
    ApplyTemplateResult,
    EmbedRequest,
    EmbedResult,
    GenerateRequest,
    GenerateResult,
    ImageRequest,
    ImageResult,
    MetaRequest,
    ModelMeta,
    RerankRequest,
    RerankResult,
    SpeechRequest,
    SpeechResult,
    StreamRequest,
    TokenizeRequest,
    TokenizeResult,
    TranscribeRequest,
    TranscribeResult,
)

if TYPE_CHECKING:
    from byzerllm.requests import Request, Result

logger = logging.getLogger("byzerllm.client")
_RESULTS: dict[type[Any], type[Any]] = {
    GenerateRequest: GenerateResult,
    SpeechRequest: SpeechResult,
    ImageRequest: ImageResult,
    TranscribeRequest: TranscribeResult,
    EmbedRequest: EmbedResult,
    RerankRequest: RerankResult,
    TokenizeRequest: TokenizeResult,
    ApplyTemplateRequest: ApplyTemplateResult,
    MetaRequest: ModelMeta,
}


class Observers:
    """One request as plugins see it.

    Attributes:
        request: the request to send; a plugin may have replaced it.
        answer: what a plugin answered instead of the model, or None.
    """

    def __init__(self, model: str, request: Request, *, enabled: bool = True) -> None:
        self.model = model
        self.request = request
        self.answer: Result | None = None
        self._enabled = enabled
        self._result: Result | None = None
        self._start = time.monotonic()
        if enabled:
            self._before()

    def _before(self) -> None:
        replaced = get_plugins().hooks.hook.before_request(model=self.model, request=self.request)
        if replaced is None:
            return
        kind = type(self.request)
        if isinstance(replaced, _RESULTS[kind]):
            self.answer = replaced
        elif isinstance(replaced, kind):
            self.request = replaced
        else:
            raise PluginError(
                f"a before_request hook answered a {kind.__name__} with a "
                f"{type(replaced).__name__}; it may return None, a {kind.__name__} to send "
                f"instead, or a {_RESULTS[kind].__name__}"
            )

    def stream_request(self) -> StreamRequest:
        assert isinstance(self.request, StreamRequest)
        return self.request

    def ended(self, result: Result) -> Result:
        self._result = result
        return result

    def __enter__(self) -> Observers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._enabled:
            return
        seconds = time.monotonic() - self._start
        outcome = type(error).__name__ if error else "ok"
        logger.info("%s %s: %s in %.3f s", self.model, self.request.id, outcome, seconds)
        get_plugins().hooks.hook.after_request(
            model=self.model, request=self.request, result=self._result, error=error
        )
