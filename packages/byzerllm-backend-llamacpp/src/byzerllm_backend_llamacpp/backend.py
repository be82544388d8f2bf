"""The llama.cpp backend: one GGUF model whose requests decode together."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator
from typing import Any, Self

from byzerllm.backend import Backend, BackendContext
from byzerllm.decoding.answer import Inbox
from byzerllm.decoding.chat_template import ChatTemplate, template_source
from byzerllm.decoding.json_schema import SchemaCompiler
from byzerllm.decoding.text import AnswerText
from byzerllm.decoding.threads import thread_count
from byzerllm.errors import BackendError, CapabilityError, ContextLengthError, ParameterError
from byzerllm.requests import (
    EmbedRequest,
    EmbedResult,
    GenerateChunk,
    GenerateRequest,
    ModelMeta,
    Usage,
)
from byzerllm_backend_llamacpp.answer import Sequence
from byzerllm_backend_llamacpp.cache import Cache
from byzerllm_backend_llamacpp.context import answering_context, shares_cache
from byzerllm_backend_llamacpp.embedding import Embedder
from byzerllm_backend_llamacpp.engine import Engine, EngineStats
from byzerllm_backend_llamacpp.gguf import check_gguf, find_gguf
from byzerllm_backend_llamacpp.model import Model, initialise
from byzerllm_backend_llamacpp.native import llama_cpp
from byzerllm_backend_llamacpp.parameters import LlamaCppParameters
from byzerllm_backend_llamacpp.sampling import LlamaSampling, Recipe, Sampler
from byzerllm_backend_llamacpp.vocabulary import read_vocabulary

logger = logging.getLogger(__name__)

# Longer texts are tokenised off the loop.
_INLINE_CHARACTERS = 8_000


class LlamaCppBackend(Backend):
    """One loaded GGUF model.

    Defaults of a request that says nothing: temperature 0.2 for a chat and 0.8 for a prompt,
    top_k 40, top_p 0.95, min_p 0.05, no penalties, a random seed, and an answer until the model
    ends it or the context is full, which is what `llama_cpp.Llama` does.
    """

    def __init__(
        self,
        model: Model,
        parameters: LlamaCppParameters,
        *,
        n_ctx: int,
        template: ChatTemplate,
        engine: Engine | None,
        embedder: Embedder,
    ) -> None:
        self._model = model
        self._parameters = parameters
        self._n_ctx = n_ctx
        self._template = template
        self._engine = engine
        self._embedder = embedder
        self._schemas = SchemaCompiler(lambda: read_vocabulary(model), model.vocab_size)
        self._closed = False

    @classmethod
    async def create(cls, context: BackendContext) -> Self:
        """Load the model off the loop; cancelling gives up loading.

        Raises:
            ModelSourceError: no GGUF at the path, a damaged one, or one llama.cpp cannot load.
            ModelLoadError: no memory for the context.
            TemplateError: `chat_template` is no template.
            CapabilityError: an encoder-decoder model.
        """
        given_up = threading.Event()
        loading = asyncio.ensure_future(asyncio.to_thread(cls._load, context, given_up))
        try:
            return await asyncio.shield(loading)
        except asyncio.CancelledError:
            given_up.set()
            loading.add_done_callback(_discard)  # type: ignore[arg-type]
            raise

    @classmethod
    def _load(cls, context: BackendContext, given_up: threading.Event) -> Self:
        parameters: LlamaCppParameters = context.parameters
        initialise(parameters)
        file = find_gguf(context.model_path)
        check_gguf(file)
        model = Model(
            file,
            parameters,
            gpu_layers=_gpu_layers(parameters, context),
            progress=_Progress(context, given_up),
        )
        try:
            return cls._around(model, context)
        except BaseException:
            model.close()
            raise

    @classmethod
    def _around(cls, model: Model, context: BackendContext) -> Self:
        parameters: LlamaCppParameters = context.parameters
        template = ChatTemplate(
            template_source(parameters.chat_template, model.metadata("tokenizer.chat_template")),
            bos=model.special_text(model.bos),
            eos=model.special_text(model.eos),
        )
        n_ctx = parameters.n_ctx or model.trained_context
        threads = thread_count(context.cpus)
        engine = None
        if not (parameters.embedding or model.only_embeds):
            context.report("making the context")
            engine = _engine(model, parameters, n_ctx, context.concurrency, threads)
        embedder = Embedder(model, parameters, n_ctx=n_ctx, threads=threads)
        return cls(
            model, parameters, n_ctx=n_ctx, template=template, engine=engine, embedder=embedder
        )

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        """Answer a chat or continue a prompt.

        Raises:
            ParameterError: an empty conversation or prompt, or a bad generation parameter.
            ContextLengthError: the prompt fills the context.
            TemplateError: the model's chat template is missing or refuses the messages.
            CapabilityError: an embedding model, or a message part that is no text.
            BackendError: the engine failed.
        """
        engine = self._answering()
        sequence = await self._prepare(request, engine)
        try:
            engine.submit(sequence)
        except BaseException:
            sequence.sampler.close()
            raise
        try:
            async for chunk in sequence.inbox.chunks():
                yield chunk
        finally:
            sequence.cancelled = True

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        """One vector per text, pooled as the model says (else the mean), not normalised.

        Raises:
            ParameterError: no texts, an empty one, or an extra parameter.
            ContextLengthError: a text that is too long; it is never cut.
        """
        self._check_open()
        if not request.texts:
            raise ParameterError("no texts to embed; give at least one")
        if request.extra:
            raise ParameterError.unknown(min(request.extra), (), where="embedding with llama.cpp")
        vectors, tokens = await asyncio.to_thread(self._embedder.embed, request.texts)
        return EmbedResult(vectors=vectors, usage=Usage(prompt_tokens=tokens))

    async def tokenize(self, text: str) -> list[int]:
        """Token ids of `text`; written-out special tokens are one token, none are added."""
        self._check_open()
        if len(text) <= _INLINE_CHARACTERS:
            return self._model.tokenize(text)
        return await asyncio.to_thread(self._model.tokenize, text)

    async def apply_chat_template(self, messages: list[dict[str, Any]]) -> str:
        """The prompt for `messages`, open for the assistant's answer."""
        return self._template.render(messages)

    async def meta(self) -> ModelMeta:
        return ModelMeta(
            model_deploy_type="proprietary",
            backend="llama_cpp",
            support_stream=self._engine is not None,
            support_chat_template=self._template.available,
            max_model_len=self._n_ctx,
            architectures=[self._model.architecture],
            model_name=self._model.name,
            embedding_mode=self._engine is None,
            constrained=self._engine is not None,
        )

    async def health(self) -> None:
        """Raises BackendError when the engine's thread is gone."""
        self._check_open()
        if self._engine is not None:
            self._engine.check()

    def stats(self) -> EngineStats:
        """What the engine does; raises CapabilityError for a model that only embeds."""
        return self._answering().stats()

    async def close(self) -> None:
        """End all answers and free the model; repeatable."""
        if not self._closed:
            self._closed = True
            await asyncio.to_thread(self._free)

    def _free(self) -> None:
        if self._engine is not None:
            self._engine.close()
        self._embedder.close()
        self._model.close()

    def _check_open(self) -> None:
        if self._closed:
            raise BackendError(f"model {self._model.file.name!r} is closed")

    def _answering(self) -> Engine:
        self._check_open()
        if self._engine is None:
            raise CapabilityError(
                f"model {self._model.name!r} only embeds; it cannot answer or continue text"
            )
        return self._engine

    async def _prepare(self, request: GenerateRequest, engine: Engine) -> Sequence:
        chat = request.prompt is None
        extra = LlamaSampling.parse({**request.sampling.extra, **request.extra})
        text = self._prompt(request, extra)
        heavy = request.sampling.json_schema is not None or request.sampling.grammar is not None
        if heavy or len(text) > _INLINE_CHARACTERS:
            tokens, sampler = await asyncio.to_thread(self._ingredients, request, extra, text, chat)
        else:
            tokens, sampler = self._ingredients(request, extra, text, chat)
        params = request.sampling
        limit = self._n_ctx - len(tokens)
        return Sequence(
            tokens=tokens,
            prompt_length=len(tokens),
            limit=limit if params.max_tokens is None else min(params.max_tokens, limit),
            sampler=sampler,
            text=AnswerText(params.stop),
            inbox=Inbox(engine.check),
            stop_ids=self._stop_ids(request),
            logprobs=params.logprobs,
            stream=request.stream,
            reuse=params.seed is None,
        )

    def _prompt(self, request: GenerateRequest, extra: LlamaSampling) -> str:
        if request.prompt is not None and request.messages is None:
            return request.prompt
        if request.prompt is None and request.messages is not None:
            return self._template.render(request.messages, extra.chat_template_kwargs)
        raise ParameterError("a request has either messages or a prompt")

    def _ingredients(
        self, request: GenerateRequest, extra: LlamaSampling, text: str, chat: bool
    ) -> tuple[list[int], Sampler]:
        """The prompt's tokens and the sampler, which may take long."""
        recipe = Recipe.of(request.sampling, extra, chat=chat, seed=self._parameters.seed)
        tokens = self._model.prompt_tokens(text)
        if not tokens:
            raise ParameterError("an empty prompt; give at least one character")
        if len(tokens) >= self._n_ctx:
            raise ContextLengthError(
                f"the prompt has {len(tokens):,} tokens, the context holds {self._n_ctx:,} with "
                "at least one for the answer; shorten it, or deploy with a larger n_ctx",
                prompt_tokens=len(tokens),
                max_model_len=self._n_ctx,
            )
        schema = request.sampling.json_schema
        matcher = None if schema is None else self._schemas.matcher(schema)
        return tokens, Sampler(self._model, recipe, tokens, self._n_ctx, matcher)

    def _stop_ids(self, request: GenerateRequest) -> frozenset[int]:
        params = request.sampling
        spelled = {self._model.control_token(stop) for stop in params.stop} - {None}
        ends = frozenset() if params.ignore_eos else self._model.end_tokens
        return ends.union(params.stop_token_ids, (one for one in spelled if one is not None))


class _Progress:
    """Reports loading in steps of a tenth, and stops it when nobody waits any more."""

    def __init__(self, context: BackendContext, given_up: threading.Event) -> None:
        self._context = context
        self._given_up = given_up
        self._tenth = -1

    def __call__(self, share: float) -> bool:
        tenth = int(share * 10)
        if tenth > self._tenth:
            self._tenth = tenth
            self._context.report(f"loading weights {tenth * 10} %")
        return not self._given_up.is_set()


def _engine(
    model: Model, parameters: LlamaCppParameters, n_ctx: int, concurrency: int, threads: int
) -> Engine:
    sequences = max(1, min(concurrency, llama_cpp.llama_max_parallel_sequences()))
    shared = shares_cache(model, parameters, n_ctx, sequences)
    handle = answering_context(
        model, parameters, n_ctx=n_ctx, sequences=sequences, shared=shared, threads=threads
    )
    cache = Cache(
        llama_cpp.llama_get_memory(handle),
        slots=sequences,
        n_ctx=n_ctx,
        shared=shared,
        keep=parameters.cache_prompt,
    )
    return Engine(model, handle, cache, max(parameters.n_batch, sequences))


def _gpu_layers(parameters: LlamaCppParameters, context: BackendContext) -> int:
    wanted = parameters.num_gpu_layers
    if wanted is None:
        wanted = -1 if context.gpus > 0 else 0
    if wanted and not llama_cpp.llama_supports_gpu_offload():
        message = (
            "this build of llama-cpp-python has no GPU support, all layers stay on the CPU; "
            "for NVIDIA install it with CMAKE_ARGS=-DGGML_CUDA=on"
        )
        context.report(message)
        logger.warning(message)
        return 0
    return wanted


def _discard(loading: asyncio.Future[LlamaCppBackend]) -> None:
    """Free a model that was loaded after its caller had left."""
    if not loading.cancelled() and loading.exception() is None:
        loading.result()._free()
