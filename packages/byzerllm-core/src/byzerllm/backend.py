"""The interface that every backend and every provider implements.

A plugin registers a `BackendSpec`, which is light: it names the class by a dotted path, so that
listing backends imports no engine. The class is imported inside the worker.
"""

from __future__ import annotations

import abc
import importlib
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Literal,
    Self,
    get_args,
    get_origin,
)

import pydantic
from pydantic_core import PydanticUndefined

from byzerllm.errors import CapabilityError, NotInstalledError, ParameterError

if TYPE_CHECKING:
    from byzerllm.requests import (
        EmbedRequest,
        EmbedResult,
        GenerateChunk,
        GenerateRequest,
        ImageRequest,
        ImageResult,
        ModelMeta,
        RerankRequest,
        RerankResult,
        SpeechRequest,
        TranscribeRequest,
        TranscribeResult,
    )
    from byzerllm.runtime.deployment import DeploymentSpec

Capability = Literal[
    "chat",
    "completion",
    "embedding",
    "rerank",
    "tokenize",
    "chat_template",
    "logprobs",
    "constrained",
    "tools",
    "vision",
    "speech",
    "image",
    "transcription",
]
"""What a backend can do; `CapabilityError` names the missing one."""


class Parameters(pydantic.BaseModel):
    """Base of a backend's typed `infer_params`.

    A subclass declares one field per parameter with a description and a default; values may come
    as text (`--infer_params n_ctx=2048`). Secrets are `pydantic.SecretStr`, which also keeps them
    out of every repr, log and stat.

    Class attributes:
        prefixes: what may stand before a name in `infer_params`: `backend.` or `saas.`.
    """

    model_config = pydantic.ConfigDict(
        extra="forbid",
        frozen=True,
        populate_by_name=True,
        protected_namespaces=(),
        hide_input_in_errors=True,
        defer_build=True,  # Plugins are imported to be listed; few of their parameters are used.
    )
    prefixes: ClassVar[tuple[str, ...]] = ("backend.",)

    @classmethod
    def names(cls) -> dict[str, str]:
        """Accepted spellings, prefix left out, and the field that each means."""
        spellings: dict[str, str] = {}
        for name, info in cls.model_fields.items():
            spellings[name] = name
            if info.alias:
                spellings[info.alias] = name
        return spellings

    @classmethod
    def described(cls) -> list[dict[str, Any]]:
        """Every parameter as `name` (with its first prefix), `type`, `default` (None when it must
        be given), `required` and `description`. Plain data."""
        prefix = cls.prefixes[0] if cls.prefixes else ""
        return [
            {
                "name": f"{prefix}{info.alias or name}",
                "type": _type_text(info.annotation),
                "default": _plain_default(info.default),
                "required": info.is_required(),
                "description": info.description or "",
            }
            for name, info in cls.model_fields.items()
        ]

    @classmethod
    def parse(cls, given: Mapping[str, Any], *, where: str) -> Self:
        """Check `infer_params` against the declared fields.

        Raises:
            ParameterError: an unknown key (with the nearest match), one given twice, a missing one,
                or a value of the wrong type. The value of a secret is never repeated.
        """
        spellings = cls.names()
        values: dict[str, Any] = {}
        written: dict[str, str] = {}
        for key, value in given.items():
            bare = next((key.removeprefix(p) for p in cls.prefixes if key.startswith(p)), key)
            if bare not in spellings:
                raise ParameterError.unknown(bare, spellings, where=where)
            name = spellings[bare]
            if name in written:
                reason = f"given twice, as {written[name]!r} and as {key!r}"
                raise ParameterError.invalid(key, reason, where=where)
            values[name], written[name] = value, key
        try:
            return cls(**values)
        except pydantic.ValidationError as error:
            raise cls._explain(error, written, where) from None

    @classmethod
    def _explain(
        cls, error: pydantic.ValidationError, written: Mapping[str, str], where: str
    ) -> ParameterError:
        from byzerllm.runtime.deployment import is_secret, without_login

        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0]) if first["loc"] else "?"
        name = cls.names().get(name, name)
        info = cls.model_fields.get(name)
        key = written.get(name, name)
        secret = info is None or pydantic.SecretStr in _members(info.annotation) or is_secret(key)
        got = f" (got {without_login(first['input'])!r})"
        shown = "" if secret or first["type"] == "missing" else got
        return ParameterError.invalid(key, f"{first['msg']}{shown}", where=where)


def _type_text(annotation: Any) -> str:
    """A type as users think of it."""
    members = [m for m in get_args(annotation) if m is not type(None)]
    if annotation is pydantic.SecretStr or pydantic.SecretStr in members:
        return "secret" if annotation is pydantic.SecretStr or len(members) == 1 else "secrets"
    origin = get_origin(annotation)
    if origin is Literal:
        return " | ".join(str(member) for member in members)
    if origin is Annotated:
        return _type_text(members[0])
    if origin in (list, tuple, set, frozenset):
        return f"list of {_type_text(members[0])}" if members else "list"
    if origin is dict:
        return "mapping"
    if members:
        return " | ".join(_type_text(member) for member in members)
    return {str: "text", bool: "true | false", int: "int", float: "number"}.get(
        annotation, getattr(annotation, "__name__", str(annotation))
    )


def _plain_default(value: Any) -> Any:
    if value is PydanticUndefined or value is None:
        return None
    if isinstance(value, tuple | set | frozenset):
        return [*value]
    return value if isinstance(value, str | int | float | list | dict) else str(value)


def _members(annotation: Any) -> Iterator[Any]:
    """The annotation and everything inside it (`SecretStr | None`, `list[SecretStr]`)."""
    yield annotation
    for inner in get_args(annotation):
        yield from _members(inner)


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What one worker reserves: resource bundles and how they may spread over nodes.

    Attributes:
        bundles: one dict of Ray resources per process of the worker (`{"CPU": 1, "GPU": 1}`); the
            worker actor itself runs in the first.
        strategy: Ray's placement group strategy.
    """

    bundles: Sequence[Mapping[str, float]]
    strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "STRICT_PACK"


def single_bundle(spec: DeploymentSpec) -> Placement:
    """All of a worker's CPUs, GPUs and custom resources in one bundle."""
    return Placement(bundles=[spec.worker_resources()])


@dataclass(frozen=True, kw_only=True)
class BackendSpec:
    """What the system must know of a backend before it loads one.

    Attributes:
        name: the `--infer_backend` value; for a provider, what follows `saas/`.
        path: `package.module:Class` of the `Backend`, imported in the worker only.
        parameters: the typed `infer_params`.
        description: one line for tables.
        aliases: other spellings of the name (`InferBackend` values, `backend` in `get_meta`).
        model_types: accepted `pretrained_model_type`s; an entry that ends in `*` is a prefix.
        formats: model formats that choose this backend when none is named (`gguf`).
        capabilities: what the class implements.
        extra_parameters: generation parameters beyond the common ones that requests may carry.
        default_concurrency: requests that one worker runs at once when nothing is said.
        retryable: false when a request costs money or is not safe to repeat.
        hosted: the model lives at a vendor; no `model_path` is needed.
        placement: what one worker reserves.
        install: the `pip install` line that brings the engine.
    """

    name: str
    path: str
    parameters: type[Parameters]
    description: str = ""
    aliases: tuple[str, ...] = ()
    model_types: tuple[str, ...] = ("custom/auto",)
    formats: tuple[str, ...] = ()
    capabilities: frozenset[Capability] = frozenset({"chat"})
    extra_parameters: frozenset[str] = frozenset()
    default_concurrency: int = 1
    retryable: bool = True
    hosted: bool = False
    placement: Callable[[DeploymentSpec], Placement] = single_bundle
    install: str = ""

    def accepts_type(self, model_type: str) -> bool:
        return any(
            model_type.startswith(t[:-1]) if t.endswith("*") else model_type == t
            for t in self.model_types
        )

    def load(self) -> type[Backend]:
        """Import the class.

        Raises:
            NotInstalledError: the engine is missing; names the pip line.
        """
        module, _, attribute = self.path.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)  # type: ignore[no-any-return]
        except ModuleNotFoundError as error:
            hint = f"; run: {self.install}" if self.install else ""
            raise NotInstalledError(
                f"backend {self.name!r} needs the package {error.name!r}{hint}"
            ) from error


@dataclass(frozen=True, kw_only=True)
class BackendContext:
    """What a backend gets when it is created inside its worker.

    Attributes:
        model: the deployment's name.
        model_path: a local file or folder, already fetched; None for a hosted model.
        model_type: the `pretrained_model_type` asked for.
        parameters: an instance of the spec's `parameters`.
        concurrency: requests that the worker will run at once.
        cpus, gpus: what the worker reserved; fractions are possible.
        worker_index: 0 to number of workers - 1.
        placement_group: Ray's group of this worker for engines that start ranks; None without Ray.
        report: tells the one who waits for `deploy` what goes on (`report("loading weights")`).
    """

    model: str
    model_path: Path | None
    model_type: str
    parameters: Any
    concurrency: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    worker_index: int = 0
    placement_group: Any = None
    report: Callable[[str], None] = field(default=lambda phase: None)


class Backend(abc.ABC):
    """One loaded model. Methods run on the worker's event loop and must not block it.

    Cancelling is asyncio's: the worker closes the iterator of `generate` or cancels the task, and
    the engine must then stop working on the request before the next token.
    """

    @classmethod
    @abc.abstractmethod
    async def create(cls, context: BackendContext) -> Self:
        """Load the model.

        Raises:
            ByzerLLMError: named where the cause is known; any other exception becomes a
                `ModelLoadError` with its traceback.
        """

    def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        """Answer a chat or a completion; the last chunk has `finish_reason` and `usage`."""
        raise self._lacks("chat")

    @abc.abstractmethod
    async def meta(self) -> ModelMeta:
        """What the model is; cheap."""

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        """One vector per text."""
        raise self._lacks("embedding")

    async def rerank(self, request: RerankRequest) -> RerankResult:
        """One raw score per pair of a query and a document."""
        raise self._lacks("rerank")

    def speak(self, request: SpeechRequest) -> AsyncGenerator[GenerateChunk, None]:
        """Speak a text: chunks of `audio`; the last one has `finish_reason` `stop`."""
        raise self._lacks("speech")

    async def draw(self, request: ImageRequest) -> ImageResult:
        """Make images of a text."""
        raise self._lacks("image")

    async def transcribe(self, request: TranscribeRequest) -> TranscribeResult:
        """Turn speech into text."""
        raise self._lacks("transcription")

    async def tokenize(self, text: str) -> list[int]:
        """Token ids of a text, no special tokens added."""
        raise self._lacks("tokenize")

    async def apply_chat_template(self, messages: list[dict[str, Any]]) -> str:
        """The prompt that the model's own chat template makes of `messages`."""
        raise self._lacks("chat_template")

    async def health(self) -> None:  # noqa: B027 - optional
        """Raise when the engine cannot answer any more; cheap and local."""

    async def check(self) -> None:  # noqa: B027 - optional
        """Ask the vendor once whether key and model are right, where that is free.

        Called when a deployment is made, never when a worker is replaced.
        """

    def set_share(self, share: float) -> None:  # noqa: B027 - optional
        """This worker's part, 0 to 1, of limits that the whole deployment has (`saas.rpm`)."""

    async def close(self) -> None:  # noqa: B027 - optional
        """Free what the model holds. Called once, after the last request."""

    def _lacks(self, capability: Capability) -> CapabilityError:
        return CapabilityError(f"{type(self).__name__} has no capability {capability!r}")
