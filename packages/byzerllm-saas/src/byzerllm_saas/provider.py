"""Base of every provider: what all vendors share.

A vendor's module is one file that reads like this:

    class AcmeParameters(KeyParameters):
        key_variable = "ACME_API_KEY"
        model: str = Field("acme-1", description="Acme's name of the model")
        base_url: str = Field("https://api.acme.test/v1", description="address of Acme's API")

    SPEC = BackendSpec(
        name="acme", path="byzerllm_saas.providers.acme:Acme", parameters=AcmeParameters,
        description="Acme's models", capabilities=frozenset({"chat"}), default_concurrency=10,
        hosted=True, install="pip install 'byzerllm-saas[acme]'",
    )

    class Acme(Provider):
        spec = SPEC
        errors_table = ErrorTable(codes={"no_money": QuotaExceededError})

        async def generate(self, request):
            async with self.turn("chat", request) as turn:
                answer = await self.http.send("POST", …, headers={"x-key": turn.key}, json=…)
                …
                yield turn.last(GenerateChunk(text=…, finish_reason=…, usage=…))

    @hookimpl
    def register_providers(register): register(SPEC)
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, ClassVar, Self

from byzerllm.backend import Backend, BackendContext, BackendSpec
from byzerllm.errors import (
    BadRequestError,
    ByzerLLMError,
    CapabilityError,
    HostedModelNotFoundError,
    ParameterError,
    ProviderError,
)
from byzerllm.requests import (
    EmbedRequest,
    EmbedResult,
    GenerateRequest,
    ImageRequest,
    ModelMeta,
    SpeechRequest,
    Task,
    TranscribeRequest,
    Usage,
)
from byzerllm_saas.errors import ErrorTable, VendorErrors
from byzerllm_saas.http import Answer, Http
from byzerllm_saas.keys import KeyRing
from byzerllm_saas.limits import RateLimit, Ticket
from byzerllm_saas.parameters import SaasParameters
from byzerllm_saas.tasks import DOES, task_of

logger = logging.getLogger(__name__)

ProviderRequest = GenerateRequest | EmbedRequest | SpeechRequest | ImageRequest | TranscribeRequest

CHARACTERS_PER_TOKEN = 3
"""A low guess over languages, for the tokens of a request that has not been counted."""
BATCHES_AT_ONCE = 4
"""Calls for vectors that one request has in flight."""
_COSTLY: frozenset[Task] = frozenset({"speech", "image", "transcription"})


class Provider(Backend):
    """One hosted model, as one worker reaches it.

    Class attributes:
        spec: the vendor's; `spec.name` is what errors call it.
        errors_table: how the vendor speaks of errors.
        default_task: what a model does whose name says nothing.

    Attributes:
        parameters: an instance of the spec's `parameters`.
        model: the vendor's name of the model.
        task: what the model does.
        http: the way to the vendor.
        errors: makes this deployment's errors.
    """

    spec: ClassVar[BackendSpec]
    errors_table: ClassVar[ErrorTable] = ErrorTable()
    default_task: ClassVar[Task] = "chat"

    parameters: SaasParameters

    def __init__(self, context: BackendContext) -> None:
        given: SaasParameters = context.parameters
        self.context = context
        self.parameters = given
        self.model = self.model_name()
        self.task: Task = given.task or self._known_task()
        self.keys = KeyRing(self.key_texts())
        self.errors = VendorErrors(
            self.spec.name, self.model, self.errors_table, secrets=self.secrets()
        )
        self.http = Http(given, self.errors, repeatable=self.task not in _COSTLY)
        self.limit = RateLimit(given.rpm, given.tpm, longest=given.rate_wait)

    @classmethod
    async def create(cls, context: BackendContext) -> Self:
        """Open the way to the vendor; nothing is sent yet.

        Raises:
            ParameterError: something in `infer_params` cannot be used.
        """
        provider = cls(context)
        try:
            await provider.open()
        except BaseException:
            await provider.close()
            raise
        return provider

    # What a vendor may replace.

    def model_name(self) -> str:
        """The vendor's name of the model.

        Raises:
            ParameterError: the vendor has no default and none is given.
        """
        if not self.parameters.model:
            raise ParameterError.invalid(
                "saas.model", "the vendor's name of the model is needed", where=self.spec.name
            )
        return self.parameters.model

    def key_texts(self) -> list[str]:
        """The keys that `turn` hands out, as texts."""
        keys = getattr(self.parameters, "keys", None)
        return keys() if keys is not None else []

    def secrets(self) -> list[str]:
        """Texts that no error may show. Whatever is a SecretStr in the parameters is one."""
        return [*self.keys.texts(), *_secret_texts(self.parameters)]

    async def open(self) -> None:
        """Make what is needed to call the vendor; a vendor with an SDK makes its client here."""
        await self.http.open()

    async def check(self) -> None:
        """Ask the vendor, at no cost, whether it knows the key and the model.

        Called once, when a deployment is made. A vendor without a free way leaves it as it is.

        Raises:
            ProviderError: it does not.
        """
        self.context.report("not checked: the vendor has no free way to do it")

    def map_error(self, error: Exception) -> Exception:
        """The error of the tree for what a vendor's SDK raised; itself where nothing is known."""
        return error

    def set_share(self, share: float) -> None:
        """This worker's part of `rpm` and `tpm`."""
        self.limit.set_share(share)

    async def close(self) -> None:
        await self.http.close()

    # What vendors use.

    def turn(self, task: Task, request: ProviderRequest) -> Turn:
        """Around one call to the vendor: `async with self.turn("chat", request) as turn`.

        Refuses a request that the model cannot answer, waits for `rpm` and `tpm`, hands out
        `turn.key`, maps the errors of SDKs, and lets a refused key rest.
        """
        return Turn(self, task, request)

    def unsupported(self, name: str, allowed: Any = None) -> ParameterError:
        """A generation parameter that the vendor does not take."""
        hint = f"; it takes {', '.join(sorted(allowed))}" if allowed else ""
        return ParameterError.invalid(
            name,
            f"the vendor does not take it{hint}; extra_request_params passes names on unchecked",
            where=f"saas/{self.spec.name}",
        )

    async def check_key(self, url: str, headers: Mapping[str, str]) -> Answer | None:
        """For `check` of a vendor that has no list of models: a free GET that shows the key.

        What the vendor says of anything but the key is no failure; then there is no answer.

        Raises:
            ProviderError: it does not know the key, or cannot be reached.
        """
        try:
            return await self.http.send("GET", url, headers=headers)
        except (HostedModelNotFoundError, BadRequestError):
            self.context.report("not checked: the vendor has no answer to the call that shows it")
            return None

    async def in_batches(
        self,
        request: EmbedRequest,
        size: int,
        embed: Callable[[Sequence[str], EmbedRequest], Awaitable[EmbedResult]],
    ) -> EmbedResult:
        """The vectors of all texts of a request, at most `size` with one call of `embed`, a few
        calls side by side. The first error ends all."""
        texts = request.texts
        if len(texts) <= size:
            return await embed(texts, request)
        free = asyncio.Semaphore(BATCHES_AT_ONCE)

        async def one(start: int) -> EmbedResult:
            async with free:
                return await embed(texts[start : start + size], request)

        calls = [asyncio.ensure_future(one(at)) for at in range(0, len(texts), size)]
        try:
            results = await asyncio.gather(*calls)
        finally:
            for call in calls:
                call.cancel()
        usage = Usage(
            prompt_tokens=sum(result.usage.prompt_tokens for result in results),
            completion_tokens=sum(result.usage.completion_tokens for result in results),
        )
        return EmbedResult(
            vectors=[vector for result in results for vector in result.vectors], usage=usage
        )

    def no_dimensions(self, request: EmbedRequest) -> None:
        """For vendors whose call cannot ask for vectors of another length. Raises
        CapabilityError."""
        if request.dimensions is not None:
            raise CapabilityError(
                f"{self.spec.name} has vectors of one length for each model; leave dimensions out",
                parameter="dimensions",
                vendor=self.spec.name,
            )

    # The rest of the interface.

    async def meta(self) -> ModelMeta:
        capabilities = self.spec.capabilities
        chat = self.task == "chat"
        return ModelMeta(
            model_deploy_type="saas",
            backend="saas",
            support_stream=self.task in ("chat", "speech"),
            model_name=self.model,
            embedding_mode=self.task == "embedding",
            constrained=chat and "constrained" in capabilities,
            tools=chat and "tools" in capabilities,
            task=self.task,
        )

    def _known_task(self) -> Task:
        found = task_of(self.model)
        return found if found != "chat" else self.default_task


class Turn:
    """One call to the vendor.

    Attributes:
        key: the key to use; empty where the vendor has none of the usual kind.
    """

    __slots__ = ("_provider", "_request", "_task", "_ticket", "key")

    def __init__(self, provider: Provider, task: Task, request: ProviderRequest) -> None:
        self._provider = provider
        self._task = task
        self._request = request
        self._ticket: Ticket | None = None
        self.key = ""

    async def __aenter__(self) -> Self:
        provider = self._provider
        if provider.task != self._task:
            raise CapabilityError(
                f"model {provider.model!r} of {provider.spec.name} {DOES[provider.task]}, it is "
                f"not one that {DOES[self._task]}; if it is, deploy with saas.task={self._task}",
                vendor=provider.spec.name,
                vendor_model=provider.model,
            )
        if provider.limit.limited:
            self._ticket = await provider.limit.enter(_guess_tokens(self._request))
        self.key = provider.keys.pick()
        return self

    def used(self, usage: Usage | None) -> None:
        """Tell the limiter what the call really took."""
        if self._ticket is not None and usage is not None:
            self._ticket.used(usage.prompt_tokens + usage.completion_tokens)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None or not isinstance(error, Exception):
            return
        named = error if isinstance(error, ByzerLLMError) else self._provider.map_error(error)
        if isinstance(named, ByzerLLMError):
            self._note(named)
        if named is not error:
            raise named from error

    def _note(self, error: ByzerLLMError) -> None:
        details = error.details
        if self._provider.keys.failed(self.key, error):
            details["retryable"] = True
            details["retry_after"] = 0.0
        elif self._task in _COSTLY and isinstance(error, ProviderError):
            # The vendor may have done the work and charged for it.
            status = details.get("status")
            if status is not None and status >= 500:
                details["retryable"] = False


def _secret_texts(parameters: SaasParameters) -> list[str]:
    from pydantic import SecretStr

    found: list[str] = []
    for name in type(parameters).model_fields:
        value = getattr(parameters, name)
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, SecretStr):
                found.append(item.get_secret_value())
    if parameters.proxies and "@" in parameters.proxies:
        found.append(parameters.proxies.partition("//")[2].rpartition("@")[0])
    return found


def _guess_tokens(request: ProviderRequest) -> int:
    """About how many tokens a request takes, question and answer."""
    if isinstance(request, GenerateRequest):
        characters = len(request.prompt or "")
        for message in request.messages or ():
            content = message.get("content")
            if isinstance(content, str):
                characters += len(content)
            else:
                characters += sum(len(part.get("text", "")) for part in content or ())
        return characters // CHARACTERS_PER_TOKEN + (request.sampling.max_tokens or 0)
    if isinstance(request, EmbedRequest):
        return sum(map(len, request.texts)) // CHARACTERS_PER_TOKEN
    return 1
