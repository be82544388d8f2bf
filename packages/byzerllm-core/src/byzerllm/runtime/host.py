"""One loaded backend with admission, timing and counters: the inside of a worker.

Used by the Ray worker and by the local runtime alike. All methods run on one event loop.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

import msgspec

from byzerllm.backend import Backend, BackendContext, BackendSpec
from byzerllm.errors import (
    BackendError,
    ByzerLLMError,
    CapabilityError,
    ModelLoadError,
    ModelSourceError,
    OverloadedError,
    ParameterError,
    ProviderError,
    ProviderOverloadedError,
    ProviderProtocolError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    RateLimitedError,
    StreamInterruptedError,
)
from byzerllm.plugins import Plugins
from byzerllm.requests import (
    ApplyTemplateRequest,
    ApplyTemplateResult,
    EmbedRequest,
    GenerateChunk,
    GenerateRequest,
    GenerateResult,
    ImageRequest,
    Request,
    RerankRequest,
    Result,
    SpeechRequest,
    SpeechResult,
    StreamRequest,
    TokenizeRequest,
    TokenizeResult,
    TokenLogprob,
    ToolCall,
    TranscribeRequest,
    Usage,
    add_tool_calls,
    generation_names,
)
from byzerllm.runtime.breaker import CircuitBreaker, Entered
from byzerllm.runtime.deployment import DeploymentSpec, backend_of, redact, redact_data
from byzerllm.sources import resolve_path

Q = TypeVar("Q")
A = TypeVar("A")
# What of a vendor's failures breaks a stream that has begun; a refusal stays what it is.
_BREAKS = (
    ProviderOverloadedError,
    ProviderProtocolError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    RateLimitedError,
)
TTFT_SAMPLES = 200
RATE_SECONDS = 10


class Admission:
    """At most `concurrency` requests run and `max_queue` more wait, first come first served."""

    def __init__(self, concurrency: int, max_queue: int) -> None:
        self.concurrency = concurrency
        self.max_queue = max_queue
        self.running = 0
        self.refused = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._mean_seconds = 1.0

    @property
    def queued(self) -> int:
        return len(self._waiting)

    async def enter(self) -> None:
        """Raises OverloadedError at once when the queue is full."""
        if self.running < self.concurrency and not self._waiting:
            self.running += 1
            return
        if len(self._waiting) >= self.max_queue:
            self.refused += 1
            raise OverloadedError(
                f"the worker runs {self.running} of {self.concurrency} requests and "
                f"{len(self._waiting)} of {self.max_queue} wait; try again later, or raise "
                "worker_concurrency, max_queue or num_workers",
                running=self.running,
                queued=len(self._waiting),
                retry_after=round(self._retry_after(), 2),
            )
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._pass_on()
            elif turn in self._waiting:
                self._waiting.remove(turn)
            raise

    def leave(self, seconds: float | None) -> None:
        """Give the place to the next one; `seconds` is None when nothing was run in it."""
        if seconds is not None:
            self._mean_seconds += 0.1 * (seconds - self._mean_seconds)
        self._pass_on()

    def _pass_on(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.running -= 1

    def _retry_after(self) -> float:
        waves = (len(self._waiting) + 1) / self.concurrency
        return max(0.1, waves * self._mean_seconds)


class Counters:
    """What `byzerllm stat` shows of one worker."""

    def __init__(self) -> None:
        self.done = 0
        self.failed = 0
        self.prompt_tokens = 0
        self.generated_tokens = 0
        self.ttft: deque[float] = deque(maxlen=TTFT_SAMPLES)
        self._begun = time.monotonic()
        # Tokens of each of the last seconds in which there were some.
        self._seconds: deque[list[int]] = deque(maxlen=RATE_SECONDS)

    def generated(self, tokens: int) -> None:
        """Count tokens that an answer grew by."""
        self.generated_tokens += tokens
        second = int(time.monotonic())
        if self._seconds and self._seconds[-1][0] == second:
            self._seconds[-1][1] += tokens
        else:
            self._seconds.append([second, tokens])

    def tokens_per_second(self) -> float:
        """Over the last `RATE_SECONDS`, or since the beginning."""
        now = time.monotonic()
        since = max(now - RATE_SECONDS, self._begun)
        tokens = sum(count for second, count in self._seconds if second >= int(since))
        return tokens / max(now - since, 1.0)

    def ttft_p50(self) -> float | None:
        return sorted(self.ttft)[len(self.ttft) // 2] if self.ttft else None


class Meter:
    """Times and counts one answer, which waited `queued` seconds for its turn."""

    def __init__(self, counters: Counters, queued: float = 0.0) -> None:
        self._counters = counters
        self._queued = queued
        self._start = time.monotonic()
        self._first = 0.0
        self._tokens = 0
        self._last: GenerateChunk | None = None

    def seconds(self) -> float:
        return time.monotonic() - self._start

    def saw(self, chunk: GenerateChunk) -> None:
        """Count a chunk; write the times into the last one."""
        counters = self._counters
        if not self._first:
            self._first = self.seconds()
            counters.ttft.append(self._first)
        tokens = len(chunk.token_ids)
        self._tokens += tokens
        counters.generated(tokens)
        if chunk.finish_reason is None:
            return
        self._last = chunk
        chunk.first_token = self._first
        chunk.elapsed = self.seconds()
        chunk.queued = self._queued
        if chunk.usage is not None:
            counters.prompt_tokens += chunk.usage.prompt_tokens
            counters.generated(chunk.usage.completion_tokens - self._tokens)

    def ended(self, spec: DeploymentSpec) -> GenerateChunk:
        """The last chunk. Raises BackendError when there was none with a reason."""
        if self._last is None:
            raise BackendError(f"backend {spec.backend!r} ended an answer without a reason")
        self._counters.done += 1
        return self._last


class Host:
    """Loads the backend of a resolved spec and answers requests with it."""

    def __init__(
        self,
        spec: DeploymentSpec,
        plugins: Plugins,
        *,
        worker_index: int = 0,
        placement_group: Any = None,
        report: Callable[[str], None] = lambda phase: None,
        check: bool = False,
    ) -> None:
        self.spec = spec
        self.backend_spec: BackendSpec = backend_of(spec, plugins)
        self.admission = Admission(spec.worker_concurrency, spec.max_queue)
        self.counters = Counters()
        self.breaker = CircuitBreaker(spec.model) if self.backend_spec.hosted else None
        self._plugins = plugins
        self._index = worker_index
        self._placement_group = placement_group
        self._report = report
        self._check_vendor = check
        self._backend: Backend | None = None

    @property
    def backend(self) -> Backend:
        if self._backend is None:
            raise BackendError(f"model {self.spec.model!r} is not loaded")
        return self._backend

    async def load(self) -> None:
        """Fetch the model and create the backend.

        Raises:
            ByzerLLMError: named by the backend or the model source.
            ModelLoadError: anything else, with the traceback as `remote_traceback`.
        """
        try:
            self._backend = await self._create()
        except ByzerLLMError as error:
            details = redact_data(error.details, self.spec)
            raise type(error)(redact(error.message, self.spec), **details) from None
        except Exception as error:
            trace = redact(traceback.format_exc(), self.spec)
            raise ModelLoadError(
                redact(f"{self.spec.model!r}: {type(error).__name__}: {error}", self.spec),
                remote_traceback=trace,
            ) from None

    async def _create(self) -> Backend:
        spec, backend = self.spec, self.backend_spec
        cls = backend.load()
        parameters = backend.parameters.parse(spec.infer_params, where=f"backend {backend.name!r}")
        path = None
        if spec.model_path:
            path = await asyncio.to_thread(
                resolve_path, spec.model_path, self._plugins, self._report
            )
        elif not backend.hosted and backend.formats:
            raise ModelSourceError(
                f"backend {backend.name!r} needs a model_path: a path or a reference such as "
                f"{listed_schemes(self._plugins)}"
            )
        self._report("loading")
        context = BackendContext(
            model=spec.model,
            model_path=path,
            model_type=spec.model_type,
            parameters=parameters,
            concurrency=spec.worker_concurrency,
            cpus=spec.cpus_per_worker,
            gpus=spec.gpus_per_worker,
            worker_index=self._index,
            placement_group=self._placement_group,
            report=self._report,
        )
        created = await cls.create(context)
        try:
            await created.health()
            if self._check_vendor:
                self._report("checking key and model")
                await created.check()
        except BaseException:
            await created.close()
            raise
        return created

    def set_share(self, share: float) -> None:
        """This worker's part of the limits that the whole deployment has."""
        if self._backend is not None:
            self._backend.set_share(share)

    async def answer(self, request: Request) -> Result:
        """The whole result of any request."""
        if isinstance(request, GenerateRequest):
            return await self._generate_whole(request)
        if isinstance(request, SpeechRequest):
            return await self._speak_whole(request)
        if isinstance(request, EmbedRequest):
            return await self._embed(request)
        if isinstance(request, RerankRequest):
            return await self._rerank(request)
        if isinstance(request, ImageRequest):
            return await self._admitted(self.backend.draw, request)
        if isinstance(request, TranscribeRequest):
            return await self._admitted(self.backend.transcribe, request)
        if isinstance(request, TokenizeRequest):
            return TokenizeResult(token_ids=await self.backend.tokenize(request.text))
        if isinstance(request, ApplyTemplateRequest):
            text = await self.backend.apply_chat_template(request.messages)
            return ApplyTemplateResult(text=text)
        return await self.backend.meta()

    async def stream(self, request: StreamRequest) -> AsyncGenerator[GenerateChunk, None]:
        """Chunks as the backend makes them; the last one has its times filled in."""
        if isinstance(request, GenerateRequest):
            self._check(request)
        asked = time.monotonic()
        entered = await self._enter()
        meter = Meter(self.counters, time.monotonic() - asked)
        texts: list[str] = []
        begun = False
        try:
            async with aclosing(self._chunks(request)) as chunks:
                async for chunk in chunks:
                    meter.saw(chunk)
                    texts.append(chunk.text)
                    begun = True
                    yield chunk
            meter.ended(self.spec)
            self._succeeded(entered)
        except Exception as error:
            self._failed(entered, error)
            if begun and isinstance(error, _BREAKS):
                raise _interrupted(error, "".join(texts)) from error
            raise
        finally:
            self._leave(entered, meter.seconds())

    def _chunks(self, request: StreamRequest) -> AsyncGenerator[GenerateChunk, None]:
        if isinstance(request, SpeechRequest):
            return self.backend.speak(request)
        return self.backend.generate(request)

    async def _generate_whole(self, request: GenerateRequest) -> GenerateResult:
        self._check(request)
        asked = time.monotonic()
        entered = await self._enter()
        meter = Meter(self.counters, time.monotonic() - asked)
        texts: list[str] = []
        reasoning: list[str] = []
        token_ids: list[int] = []
        logprobs: list[TokenLogprob] = []
        tool_calls: list[ToolCall] = []
        try:
            async with aclosing(self.backend.generate(request)) as chunks:
                async for chunk in chunks:
                    meter.saw(chunk)
                    texts.append(chunk.text)
                    reasoning.append(chunk.reasoning)
                    token_ids += chunk.token_ids
                    logprobs += chunk.logprobs
                    add_tool_calls(tool_calls, chunk.tool_calls)
            last = meter.ended(self.spec)
            self._succeeded(entered)
        except Exception as error:
            self._failed(entered, error)
            raise
        finally:
            self._leave(entered, meter.seconds())
        return GenerateResult(
            text="".join(texts),
            finish_reason=last.finish_reason or "stop",
            usage=last.usage or Usage(completion_tokens=len(token_ids)),
            token_ids=token_ids,
            logprobs=logprobs,
            reasoning="".join(reasoning),
            tool_calls=tool_calls,
            stop_text=last.stop_text,
            first_token=last.first_token,
            elapsed=last.elapsed,
            queued=last.queued,
        )

    async def _speak_whole(self, request: SpeechRequest) -> SpeechResult:
        pieces: list[bytes] = []
        last = None
        async with aclosing(self.stream(request)) as chunks:
            async for chunk in chunks:
                pieces.append(chunk.audio)
                last = chunk
        assert last is not None
        return SpeechResult(
            audio=b"".join(pieces),
            format=request.format,
            usage=last.usage or Usage(),
            first_token=last.first_token,
            elapsed=last.elapsed,
            queued=last.queued,
        )

    async def _embed(self, request: EmbedRequest) -> Result:
        if not request.texts:
            raise ParameterError("no texts to embed; give at least one", parameter="texts")
        result = await self._admitted(self.backend.embed, request)
        length = len(result.vectors[0])
        if request.dimensions not in (None, length):
            raise CapabilityError(
                f"model {self.spec.model!r} makes vectors of {length} numbers, none of "
                f"{request.dimensions}; leave dimensions out",
                parameter="dimensions",
            )
        return result

    async def _rerank(self, request: RerankRequest) -> Result:
        if bool(request.pairs) == bool(request.documents):
            raise ParameterError(
                "give either pairs or a query with documents, at least one", parameter="documents"
            )
        return await self._admitted(self.backend.rerank, request)

    async def _admitted(self, method: Callable[[Q], Awaitable[A]], request: Q) -> A:
        entered = await self._enter()
        start = time.monotonic()
        try:
            result = await method(request)
        except Exception as error:
            self._failed(entered, error)
            raise
        else:
            self.counters.done += 1
            self._succeeded(entered)
            return result
        finally:
            self._leave(entered, time.monotonic() - start)

    async def _enter(self) -> Entered:
        """Wait for a place; what the breaker wants to be told afterwards."""
        if self.breaker is None:
            await self.admission.enter()
            return 0, 0
        self.breaker.check()
        await self.admission.enter()
        try:
            # Once more: those that waited are refused, too, when the vendor has failed meanwhile.
            return self.breaker.enter()
        except ProviderError:
            self.admission.leave(None)
            raise

    def _succeeded(self, entered: Entered) -> None:
        if self.breaker is not None:
            self.breaker.succeeded(entered)

    def _failed(self, entered: Entered, error: Exception) -> None:
        self.counters.failed += 1
        if self.breaker is not None:
            self.breaker.failed(entered, error)

    def _leave(self, entered: Entered, seconds: float) -> None:
        if self.breaker is not None:
            self.breaker.left(entered)
        self.admission.leave(seconds)

    def _check(self, request: GenerateRequest) -> None:
        if not request.messages and request.prompt is None:
            raise ParameterError("the conversation is empty; send at least one message")
        unknown = request.sampling.extra.keys() - self.backend_spec.extra_parameters
        if unknown:
            allowed = generation_names() | self.backend_spec.extra_parameters
            raise ParameterError.unknown(
                min(unknown), allowed, where=f"generation with {self.spec.model!r}"
            )
        capabilities = self.backend_spec.capabilities
        sampling = request.sampling
        for wanted, capability in (
            (sampling.json_schema is not None or sampling.grammar is not None, "constrained"),
            (bool(request.tools), "tools"),
            (sampling.logprobs is not None, "logprobs"),
            (request.prompt is not None, "completion"),
        ):
            if wanted and capability not in capabilities:
                raise self.backend._lacks(capability)  # type: ignore[arg-type]

    def stat(self) -> dict[str, Any]:
        """Plain data for `byzerllm stat`."""
        counters, admission = self.counters, self.admission
        return {
            "running": admission.running,
            "queued": admission.queued,
            "concurrency": admission.concurrency,
            "max_queue": admission.max_queue,
            "refused": admission.refused,
            "done": counters.done,
            "failed": counters.failed,
            "prompt_tokens": counters.prompt_tokens,
            "generated_tokens": counters.generated_tokens,
            "tokens_per_second": counters.tokens_per_second(),
            "ttft_p50": counters.ttft_p50(),
            "cooling": self.breaker.cooling if self.breaker is not None else 0.0,
            "cooldowns": self.breaker.cooldowns if self.breaker is not None else 0,
        }

    async def close(self) -> None:
        """Free the model. Idempotent."""
        backend, self._backend = self._backend, None
        if backend is not None:
            await backend.close()


def _interrupted(error: ProviderError, text: str) -> StreamInterruptedError:
    details = {**error.details, "text": text, "retryable": False}
    return StreamInterruptedError(f"{error.message}; {len(text)} characters had arrived", **details)


def listed_schemes(plugins: Plugins) -> str:
    """`demo:…, hf:…`"""
    return ", ".join(f"{scheme}:…" for scheme in plugins.sources)


def encode_spec(spec: DeploymentSpec) -> bytes:
    return msgspec.msgpack.encode(spec)


def decode_spec(data: bytes) -> DeploymentSpec:
    return msgspec.msgpack.decode(data, type=DeploymentSpec)
