"""ByzerLLM: one way to deploy and call every model."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Self, TypeVar, get_args

import msgspec

from byzerllm.client.calls import ChatCall, Plan, plan_of
from byzerllm.client.chat import Conversations, StreamReader, new_request_id
from byzerllm.client.exchange import META, drive, drive_async
from byzerllm.client.fallbacks import FALLBACK_ERRORS, Line, OnFallback
from byzerllm.client.media import media_of
from byzerllm.client.observers import Observers
from byzerllm.client.settings import Settings, checked_setting
from byzerllm.client.types import (
    Embeddings,
    InferBackend,
    LLMRequest,
    LLMResponse,
    Metadata,
    StreamItem,
)
from byzerllm.environment import expand_all
from byzerllm.errors import (
    ParameterError,
    TemplateError,
)
from byzerllm.messages import normalise
from byzerllm.plugins import get_plugins
from byzerllm.requests import (
    ApplyTemplateRequest,
    ApplyTemplateResult,
    EmbedRequest,
    EmbedResult,
    GenerateChunk,
    GenerateRequest,
    GenerateResult,
    MetaRequest,
    ModelMeta,
    Request,
    RequestKind,
    RerankRequest,
    RerankResult,
    Result,
    SamplingParams,
    SpeechResult,
    StreamRequest,
    TokenizeRequest,
    TokenizeResult,
)
from byzerllm.runtime.background import background_loop
from byzerllm.runtime.base import Progress, Runtime
from byzerllm.runtime.deployment import DeploymentSpec
from byzerllm.runtime.wire import kind_of
from byzerllm.templates import Template

if TYPE_CHECKING:
    from byzerllm.client.implement import ImplementationCache, Implementer
    from byzerllm.client.prompts import PromptFunction, Render
    from byzerllm.client.sandbox import Limits, SandboxMode

P = ParamSpec("P")
R = TypeVar("R")
_PIN_KINDS: tuple[RequestKind, ...] = get_args(RequestKind)
_PIN_SPELLINGS = {"complete": "chat", "complete/chat": "chat"}


class ByzerLLM:
    """A client of the models of one runtime.

    Args:
        url: a Ray address to connect to first; None uses the connection that the process has.
        verbose: log each request's id, model and times to the `byzerllm` logger.
        runtime: `ray` calls the workers of the connected cluster; `local` runs models in this
            process.
        options: deployment settings by name, as `setup` takes them.

    Raises:
        ParameterError: an unknown runtime or option.
        ClusterNotFoundError: with `ray`, at the first call, when the process is not connected.
    """

    def __init__(
        self,
        url: str | None = None,
        verbose: bool = False,
        runtime: Literal["ray", "local"] = "ray",
        **options: Any,
    ) -> None:
        if runtime not in ("ray", "local"):
            raise ParameterError.unknown(runtime, ("ray", "local"), where="runtime")
        if url:
            from byzerllm.runtime.cluster import connect_cluster

            connect_cluster(url)
        self.verbose = verbose
        self._runtime_name = runtime
        self._settings = Settings()
        self._observed: bool | None = None
        self._written: ImplementationCache | None = None
        for name, value in options.items():
            self.setup(name, value)

    # Settings. Each returns the client, so that calls can be chained.

    def setup(self, name: str, value: Any) -> Self:
        """Any deployment setting by name: `num_workers`, `gpus_per_worker`, `cpus_per_worker`,
        `worker_concurrency`, `infer_backend`, `load_balance_way`, `max_queue`, `resources`,
        `node`, `project`, `fallbacks`, and `timeout` (seconds that one request may take)."""
        canonical, checked = checked_setting(name, value)
        setattr(self._settings, canonical, checked)
        return self

    def setup_reset(self) -> Self:
        """Forget every setting."""
        self._settings = Settings()
        return self

    def setup_gpus_per_worker(self, n: float) -> Self:
        """GPUs that each worker reserves; a fraction shares one."""
        return self.setup("gpus_per_worker", n)

    def setup_cpus_per_worker(self, n: float) -> Self:
        """CPUs that each worker reserves; a fraction shares one."""
        return self.setup("cpus_per_worker", n)

    def setup_num_workers(self, n: int) -> Self:
        """Workers, each with its own copy of the model."""
        return self.setup("num_workers", n)

    def setup_worker_concurrency(self, n: int) -> Self:
        """Requests that one worker runs at once."""
        return self.setup("worker_concurrency", n)

    def setup_infer_backend(self, backend: InferBackend | str) -> Self:
        """The backend of models on our machines; ignored for `saas/…` types."""
        return self.setup("infer_backend", str(backend))

    def setup_load_balance_way(self, way: str) -> Self:
        """`lru`, `round_robin`, `least_busy`, or a plugin's balancer."""
        get_plugins().balancers.get(way)
        return self.setup("load_balance_way", way)

    def setup_default_model_name(self, model: str) -> Self:
        """The model of calls that name none."""
        self._settings.default_model_name = model
        return self

    def setup_default_emb_model_name(self, model: str) -> Self:
        """The embedding model of calls that name none."""
        self._settings.default_emb_model_name = model
        return self

    def setup_default_re_rank_model_name(self, model: str) -> Self:
        """The reranking model of calls that name none."""
        self._settings.default_re_rank_model_name = model
        return self

    def setup_template(self, model: str, template: Template | Literal["auto"]) -> Self:
        """Render this model's conversations with a template instead of the engine's own.

        Args:
            template: one of `Templates`, or `auto` for the engine's own chat template.

        Raises:
            TemplateError: `auto`, and the model has no chat template.
        """
        if template == "auto":
            return self.setup_auto(model)
        if not isinstance(template, Template):
            raise ParameterError(
                f"template {template!r} is none; pass 'auto' or one of Templates: "
                f"{', '.join(get_plugins().templates)}"
            )
        self._settings.of(model).template = template
        return self

    def setup_auto(self, model: str) -> Self:
        """Use the engine's own chat template. Raises TemplateError when the model has none."""
        meta = self.get_meta(model)
        if meta["model_deploy_type"] != "saas" and not meta["support_chat_template"]:
            raise TemplateError(
                f"model {model!r} has no chat template of its own; choose one: "
                f"llm.setup_template({model!r}, Templates.…()) with "
                f"{', '.join(get_plugins().templates)}"
            )
        self._settings.of(model).template = None
        return self

    def setup_role_mapping(self, model: str, mapping: Mapping[str, str]) -> Self:
        """Role names of the model's template, by `user`, `assistant`, `system` (or the seed's
        `user_role`, `assistant_role`, `system_msg`)."""
        self._settings.of(model).role_mapping = dict(mapping)
        return self

    def setup_max_model_length(self, model: str, n: int) -> Self:
        """The model's context in tokens, as this client shall believe."""
        self._settings.of(model).max_model_length = _positive("max_model_length", n)
        return self

    def setup_max_input_length(self, model: str, n: int) -> Self:
        """Refuse conversations of more characters."""
        self._settings.of(model).max_input_length = _positive("max_input_length", n)
        return self

    def setup_max_output_length(self, model: str, n: int) -> Self:
        """Upper limit of new tokens, also where a call asks for more."""
        self._settings.of(model).max_output_length = _positive("max_output_length", n)
        return self

    def setup_fallbacks(self, model: str, fallbacks: Sequence[str]) -> Self:
        """Models that answer chats when this one is overloaded, or its vendor fails, after the
        retries that are worth it. The answer's metadata says which `model` it was. Streams fall
        back only before their first piece."""
        if isinstance(fallbacks, str) or not all(isinstance(name, str) for name in fallbacks):
            raise ParameterError.invalid(
                "fallbacks", f"a list of model names (got {fallbacks!r})", where="setup_fallbacks"
            )
        if model in fallbacks:
            raise ParameterError(f"{model!r} cannot be its own fallback", parameter="fallbacks")
        self._settings.of(model).fallbacks = list(fallbacks)
        return self

    def setup_extra_generation_params(
        self, model: str, extra_generation_params: Mapping[str, Any]
    ) -> Self:
        """Default generation parameters of this model; a call's own win."""
        SamplingParams.parse(extra_generation_params)
        self._settings.of(model).generation = dict(extra_generation_params)
        return self

    def setup_pin_model_worker_mapping(self, mapping: Mapping[str, int]) -> Self:
        """Send kinds of requests to certain workers: `{"embedding": 0, "meta": 0}`."""
        pins: dict[str, int] = {}
        for kind, index in mapping.items():
            canonical = _PIN_SPELLINGS.get(kind, kind)
            if canonical not in _PIN_KINDS:
                raise ParameterError.unknown(kind, _PIN_KINDS, where="pin_model_worker_mapping")
            if not isinstance(index, int) or index < 0:
                raise ParameterError.invalid(
                    kind, f"a worker's number, 0 first (got {index!r})", where="pinning"
                )
            pins[canonical] = index
        self._settings.pins = pins
        return self

    def setup_function_calling_format_func(self, model: str, f: Callable[..., str]) -> Self:
        """Replace the prompt format of function calling."""
        return self._format(model, "function_calling", f)

    def setup_response_class_format_func(self, model: str, f: Callable[..., str]) -> Self:
        """Replace the prompt format of pydantic answers."""
        return self._format(model, "response_class", f)

    def setup_response_class_format_after_chat_func(
        self, model: str, f: Callable[..., str]
    ) -> Self:
        """Replace the prompt format that extracts a pydantic answer from a text."""
        return self._format(model, "response_class_after_chat", f)

    def setup_impl_func_format_func(self, model: str, f: Callable[..., str]) -> Self:
        """Replace the prompt format of generated functions."""
        return self._format(model, "impl_func", f)

    def _format(self, model: str, kind: str, f: Callable[..., str]) -> Self:
        if not callable(f):
            raise ParameterError.invalid(kind, f"a function is needed (got {f!r})", where=model)
        self._settings.of(model).formats[kind] = f
        return self

    # Deployments.

    def deploy(
        self,
        model_path: str = "",
        pretrained_model_type: str = "custom/auto",
        udf_name: str = "",
        infer_params: Mapping[str, Any] | None = None,
        *,
        replace: bool = False,
        check: bool = True,
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Deploy a model with the settings of this client.

        Args:
            model_path: a file or folder on the workers' nodes, or `demo:`, `hf:`, `modelscope:`.
            pretrained_model_type: `custom/auto`, or `saas/NAME` for a hosted model.
            udf_name: the name that the model is called by.
            infer_params: the backend's parameters; `${NAME}` in a text is taken from this
                process's environment.
            check: ask the vendor of a hosted model once whether key and model are right, where
                that is free.
            replace: take the name from a running deployment; the new one is ready before the old
                one drains, where resources allow.
            progress: called with (worker id, phase) while this waits.

        Returns:
            the model's meta, as `get_meta`. Every worker is loaded and healthy then.

        Raises:
            ParameterError, ModelExistsError, ModelSourceError, ResourcesError, ModelLoadError,
            NotInstalledError: nothing is left behind.
        """
        settings = self._settings
        spec = DeploymentSpec(
            model=udf_name,
            backend=settings.infer_backend,
            model_path=_absolute(model_path),
            model_type=pretrained_model_type,
            infer_params=expand_all(infer_params or {}, "infer_params"),
            check=check,
            num_workers=settings.num_workers,
            gpus_per_worker=settings.gpus_per_worker,
            cpus_per_worker=settings.cpus_per_worker,
            worker_concurrency=settings.worker_concurrency,
            max_queue=settings.max_queue,
            balancer=settings.load_balance_way,
            resources=settings.resources,
            node=settings.node,
            project=settings.project,
            fallbacks=settings.fallbacks,
        )
        return self.deploy_spec(spec, replace=replace, progress=progress)

    def deploy_spec(
        self, spec: DeploymentSpec, *, replace: bool = False, progress: Progress | None = None
    ) -> dict[str, Any]:
        """`deploy` for a whole specification."""
        from byzerllm.plugins import disabled_plugins

        disabled = sorted(disabled_plugins())
        if disabled and not spec.disabled_plugins:
            spec = msgspec.structs.replace(spec, disabled_plugins=disabled)
        return _shown(self._runtime.deploy(spec, replace=replace, progress=progress))

    def undeploy(self, udf_name: str, force: bool = False) -> None:
        """Drain a model and free what it holds; `force` skips the drain.

        Raises:
            ModelNotFoundError: there is none of this name.
        """
        self._runtime.undeploy(udf_name, force=force)
        self._settings.models.pop(udf_name, None)

    def scale(self, udf_name: str, num_workers: int, progress: Progress | None = None) -> None:
        """Change the number of workers; surplus ones drain first."""
        self._runtime.scale(udf_name, num_workers, progress=progress)

    def is_model_exist(self, udf_name: str) -> bool:
        """Whether a deployment has this name."""
        return any(row["model"] == udf_name for row in self.models())

    def models(self) -> list[dict[str, Any]]:
        """Every deployment: its specification with secrets masked, `state`, `ready_workers`,
        `fingerprint`, `created` (unix seconds)."""
        return self._runtime.models()

    def stat(self, model: str | None = None) -> list[dict[str, Any]]:
        """Live figures of one or all deployments and their workers. Times in seconds, memory in
        bytes, None where nothing is known yet."""
        return self._runtime.stat(model)

    def logs(self, model: str, follow: bool = False, lines: int = 200) -> Iterator[tuple[str, str]]:
        """(worker id, line) of the workers' logs; `follow` waits for new ones."""
        return self._runtime.logs(model, follow=follow, lines=lines)

    def get_meta(self, model: str | None = None) -> dict[str, Any]:
        """What a model is: `model_deploy_type`, `backend`, `support_stream`,
        `support_chat_template`, `max_model_len`, `architectures`, `model_name`,
        `embedding_mode`, `message_format`."""
        name = self._model(model)
        meta = self._call(name, MetaRequest(id=new_request_id()))
        assert isinstance(meta, ModelMeta)
        return _shown(msgspec.structs.asdict(meta))

    def abort(self, request_id: str, model: str | None = None) -> bool:
        """Stop a request wherever it runs; whether it was found running."""
        return self._runtime.abort(request_id, self._model(model))

    # Chat.

    def chat(
        self, model: str | None, request: LLMRequest, extract_params: Mapping[str, Any] = {}
    ) -> list[LLMResponse]:
        """Answer an instruction, or each of several at the same time."""
        config = {**request.generation_params(), **extract_params}
        if isinstance(request.instruction, str):
            return self.chat_oai(request.instruction, model=model, llm_config=config)

        async def answers() -> list[LLMResponse]:
            asked = (
                self.async_chat_oai(instruction, model=model, llm_config=config)
                for instruction in request.instruction
            )
            return [answer for (answer,) in await asyncio.gather(*asked)]

        return background_loop().run(answers())

    def chat_oai(
        self,
        conversations: Conversations,
        tools: Sequence[Any] = (),
        tool_choice: Any = None,
        execute_tool: bool = False,
        impl_func: Any = None,
        execute_impl_func: bool = False,
        impl_func_params: Mapping[str, Any] | None = None,
        func_params: Mapping[str, Any] | None = None,
        response_class: Any = None,
        response_after_chat: bool = False,
        enable_default_sys_message: bool = True,
        model: str | None = None,
        role_mapping: Mapping[str, str] | None = None,
        llm_config: Mapping[str, Any] = {},
        only_return_prompt: bool = False,
        extra_request_params: Mapping[str, Any] = {},
    ) -> list[Any]:
        """Answer a conversation.

        Args:
            conversations: messages in OpenAI's shape, or one string. Never changed.
            tools: functions (or dicts in OpenAI's shape) that the model may call.
            tool_choice: a function or its name that must be called; `auto` (the default),
                `required`, `none`.
            execute_tool: call what the model chose, and return what came of it in `values`.
            func_params: values for parameters of the tools that the model shall not see.
            response_class: a pydantic class or any other type; the answer's `value` is one.
            response_after_chat: let the model answer in words first, and make the `value` of them.
            impl_func: an empty function that the model writes for this question; it returns a
                `response_class`.
            execute_impl_func: run the written function, in the sandbox.
            impl_func_params: its arguments.
            enable_default_sys_message: let a template add its default system message.
            model: the name; None is the default model.
            role_mapping: role names for the model's template, this once.
            llm_config: generation parameters: `gen.X`, `generation.X` and `X` are the same.
            only_return_prompt: return what would be sent, in `input`, and send nothing.
            extra_request_params: passed on to the backend or vendor unchecked; `request_id` and
                `timeout` (seconds) are taken out of it.

        Returns:
            a list of one LLMResponse; of one LLMFunctionCallResponse with `tools`, of one
            LLMClassResponse with `response_class` or `impl_func`. A model that speaks or draws
            answers in base64 text, one response per image.

        Raises:
            ByzerLLMError: see `byzerllm.errors`. An answer that cannot be used is no error: the
                metadata has the `reason`.
        """
        plan = plan_of(
            tools=tools,
            tool_choice=tool_choice,
            execute_tool=execute_tool,
            func_params=func_params,
            response_class=response_class,
            response_after_chat=response_after_chat,
            impl_func=impl_func,
            impl_func_params=impl_func_params,
            execute_impl_func=execute_impl_func,
        )
        call = ChatCall(
            conversations=conversations,
            config=llm_config,
            extra=extra_request_params,
            role_mapping=role_mapping,
            default_system=enable_default_sys_message,
            plan=plan,
            only_prompt=only_return_prompt,
        )
        return self._chat(call, model)

    async def async_chat_oai(
        self,
        conversations: Conversations,
        tools: Sequence[Any] = (),
        tool_choice: Any = None,
        execute_tool: bool = False,
        impl_func: Any = None,
        execute_impl_func: bool = False,
        impl_func_params: Mapping[str, Any] | None = None,
        func_params: Mapping[str, Any] | None = None,
        response_class: Any = None,
        response_after_chat: bool = False,
        enable_default_sys_message: bool = True,
        model: str | None = None,
        role_mapping: Mapping[str, str] | None = None,
        llm_config: Mapping[str, Any] = {},
        only_return_prompt: bool = False,
        extra_request_params: Mapping[str, Any] = {},
    ) -> list[Any]:
        """`chat_oai` for asynchronous code; cancelling the task stops the generation."""
        plan = plan_of(
            tools=tools,
            tool_choice=tool_choice,
            execute_tool=execute_tool,
            func_params=func_params,
            response_class=response_class,
            response_after_chat=response_after_chat,
            impl_func=impl_func,
            impl_func_params=impl_func_params,
            execute_impl_func=execute_impl_func,
        )
        call = ChatCall(
            conversations=conversations,
            config=llm_config,
            extra=extra_request_params,
            role_mapping=role_mapping,
            default_system=enable_default_sys_message,
            plan=plan,
            only_prompt=only_return_prompt,
        )
        return await self._async_chat(call, model)

    def stream_chat_oai(
        self,
        conversations: Conversations,
        model: str | None = None,
        role_mapping: Mapping[str, str] | None = None,
        delta_mode: bool = False,
        llm_config: Mapping[str, Any] = {},
        extra_request_params: Mapping[str, Any] = {},
    ) -> Iterator[StreamItem]:
        """Answer a conversation piece by piece.

        Args:
            delta_mode: items carry the new piece; else the whole text so far.

        Yields:
            items that unpack as (text, metadata) and add and print as text. The metadata is one
            object that fills up; it is complete with the last item. Closing the iterator stops
            the generation.

        Raises:
            StreamInterruptedError: the worker died after the first piece; has the `text`.
        """
        call = ChatCall(
            conversations=conversations,
            config=llm_config,
            extra=extra_request_params,
            role_mapping=role_mapping,
        )
        return self._stream_chat(call, model, delta_mode)

    def async_stream_chat_oai(
        self,
        conversations: Conversations,
        model: str | None = None,
        role_mapping: Mapping[str, str] | None = None,
        delta_mode: bool = False,
        llm_config: Mapping[str, Any] = {},
        extra_request_params: Mapping[str, Any] = {},
    ) -> AsyncGenerator[StreamItem, None]:
        """`stream_chat_oai` for asynchronous code: `async for text, metadata in …`."""
        call = ChatCall(
            conversations=conversations,
            config=llm_config,
            extra=extra_request_params,
            role_mapping=role_mapping,
        )
        return self._async_stream_chat(call, model, delta_mode)

    # Functions that a model answers or writes.

    def prompt(
        self,
        model: str | None = None,
        render: Render = "jinja2",
        check_result: bool = False,
        options: Mapping[str, Any] = {},
    ) -> Callable[[Callable[P, R]], PromptFunction[P, R]]:
        """Make a function out of its docstring, which is the template of a question to this
        client's model: `@llm.prompt()`. See `byzerllm.client.prompts`."""
        from byzerllm.client.prompts import prompt

        chosen = {"model": model, **options} if model is not None else options
        return prompt(self, render, check_result, chosen)

    def impl(
        self,
        instruction: str | None = None,
        model: str | None = None,
        verbose: bool = False,
        skip_cache: bool = False,
        *,
        sandbox: SandboxMode = "namespaces",
        limits: Limits | Mapping[str, Any] | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> Implementer:
        """Let the model write the body of a function: `@llm.impl()`.

        Args:
            instruction: what is asked of the function; None asks for what its docstring says.
            verbose: show what is asked, written and returned.
            skip_cache: ask at every call and keep nothing.
            sandbox: where the written code runs: `namespaces` (Linux), `process` (limits only), or
                `inprocess` (no protection at all).
            limits: of the sandbox, by name.
            cache_dir: a folder that keeps written functions between runs of a program.
        """
        from byzerllm.client.implement import Implementer

        return Implementer(
            chat=self._planned,
            async_chat=self._async_planned,
            model_name=self._model,
            cache=self._implementations(),
            instruction=instruction,
            model=model,
            verbose=verbose or self.verbose,
            skip_cache=skip_cache,
            sandbox=sandbox,
            limits=limits,
            cache_dir=cache_dir,
        )

    def clear_impl_cache(
        self,
        model: str | None = None,
        full_func_name: str | None = None,
        instruction: str | None = None,
        *,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> int:
        """Forget functions that models wrote: all, or those of a model, a function (its full name:
        module and qualified name) or an instruction; those in the folder `cache_dir`, too.

        Returns:
            how many were forgotten.
        """
        return self._implementations().clear(model, full_func_name, instruction, cache_dir)

    def _implementations(self) -> ImplementationCache:
        from byzerllm.client.implement import ImplementationCache

        if self._written is None:
            self._written = ImplementationCache()
        return self._written

    def _planned(self, question: str, plan: Plan, model: str | None) -> list[Any]:
        return self._chat(ChatCall(conversations=question, plan=plan), model)

    async def _async_planned(self, question: str, plan: Plan, model: str | None) -> list[Any]:
        return await self._async_chat(ChatCall(conversations=question, plan=plan), model)

    # Embeddings and the tokenizer.

    def emb(
        self,
        model: str | None,
        request: LLMRequest | Sequence[str],
        *,
        dimensions: int | None = None,
        **extra: Any,
    ) -> Embeddings:
        """One vector per text.

        Args:
            dimensions: numbers per vector, on models that have vectors of several lengths.
            extra: parameters that only the model's vendor knows.

        Raises:
            CapabilityError: the model has no vectors of so many dimensions.
        """
        embed = EmbedRequest(
            id=new_request_id(), texts=_texts(request), dimensions=dimensions, extra=extra
        )
        return self._embeddings(model, embed)

    def emb_query(
        self,
        text: str,
        model: str | None = None,
        *,
        dimensions: int | None = None,
        **extra: Any,
    ) -> Embeddings:
        """The vector of one text that passages are looked up by.

        Models on our own machines that were trained with an instruction before queries (bge) get
        it put there. Args and errors as of `emb`.
        """
        embed = EmbedRequest(
            id=new_request_id(),
            texts=_texts([text]),
            dimensions=dimensions,
            query=True,
            extra=extra,
        )
        return self._embeddings(model, embed)

    def _embeddings(self, model: str | None, embed: EmbedRequest) -> Embeddings:
        name = self._model(model or self._settings.default_emb_model_name)
        result = self._call(name, embed)
        assert isinstance(result, EmbedResult)
        metadata = Metadata(
            request_id=embed.id, model=name, input_tokens_count=result.usage.prompt_tokens
        )
        return Embeddings(
            LLMResponse(output=vector, input=text, metadata=metadata)
            for text, vector in zip(embed.texts, result.vectors, strict=True)
        )

    def emb_rerank(
        self,
        model: str | None = None,
        sentence_pairs: Sequence[str] | Sequence[Sequence[str]] = (),
        **extra: Any,
    ) -> Embeddings:
        """How much a passage has to do with a query, by a reranking model.

        Args:
            model: None is the default reranking model, else the default embedding model.
            sentence_pairs: one pair `[query, passage]`, or a list of pairs.

        Returns:
            one response. Its `output` is `[pair, score]` for one pair; for a list of pairs it is
            a list of these, the highest score first. Scores are the model's raw logits.
        """
        settings = self._settings
        name = self._model(
            model or settings.default_re_rank_model_name or settings.default_emb_model_name
        )
        pairs, single = _pairs(sentence_pairs)
        request = RerankRequest(id=new_request_id(), pairs=pairs, extra=extra)
        result = self._call(name, request)
        assert isinstance(result, RerankResult)
        ranked = sorted(
            zip(result.scores, pairs, strict=True), key=lambda item: item[0], reverse=True
        )
        scored = [[list(pair), score] for score, pair in ranked]
        metadata = Metadata(
            request_id=request.id, model=name, input_tokens_count=result.usage.prompt_tokens
        )
        output = scored[0] if single else scored
        return Embeddings([LLMResponse(output=output, input=sentence_pairs, metadata=metadata)])

    def tokenize(self, model: str | None, text: str) -> list[int]:
        """The token ids of a text."""
        result = self._call(self._model(model), TokenizeRequest(id=new_request_id(), text=text))
        assert isinstance(result, TokenizeResult)
        return result.token_ids

    def apply_chat_template(self, model: str | None, messages: str | Sequence[Any]) -> str:
        """The prompt that the engine's own chat template makes of messages (a list, or JSON)."""
        if isinstance(messages, str):
            try:
                messages = msgspec.json.decode(messages)
            except msgspec.DecodeError as error:
                raise ParameterError(f"messages_json is no JSON: {error}") from None
        request = ApplyTemplateRequest(id=new_request_id(), messages=normalise(messages))
        result = self._call(self._model(model), request)
        assert isinstance(result, ApplyTemplateResult)
        return result.text

    # Requests as they are, for programs that speak another protocol: the HTTP server.

    async def async_meta(self, model: str | None = None) -> ModelMeta:
        """What a model is, asked for once per deployment."""
        return await self._async_meta(self._model(model))

    async def async_send(
        self,
        request: Request,
        model: str | None = None,
        *,
        timeout: float | None = None,
        on_fallback: OnFallback | None = None,
    ) -> Result:
        """Send one request and return its result, with no template and no setting of this client
        but pins and fallbacks applied.

        Args:
            timeout: seconds; None takes the client's.
            on_fallback: called with the model that failed, the one that is asked next, and why.

        Raises:
            ByzerLLMError: as `async_chat_oai`.
        """
        if not isinstance(request, GenerateRequest):
            return await self._async_call(self._model(model), request, timeout)
        line = self._line(model, on_fallback)
        while True:
            try:
                return await self._async_call(line.name, request, timeout)
            except FALLBACK_ERRORS as error:
                line.advance(error)

    async def async_stream(
        self,
        request: StreamRequest,
        model: str | None = None,
        *,
        timeout: float | None = None,
        on_fallback: OnFallback | None = None,
    ) -> AsyncGenerator[GenerateChunk, None]:
        """`async_send` for a request that is read chunk by chunk; falls back before the first one.
        Closing the iterator stops the generation."""
        line = self._line(model, on_fallback)
        while True:
            started = False
            try:
                chunks = self._async_chunks(line.name, request, timeout)
                async with aclosing(chunks) as source:
                    async for chunk in source:
                        started = True
                        yield chunk
                return
            except FALLBACK_ERRORS as error:
                if started or not isinstance(request, GenerateRequest):
                    raise
                line.advance(error)

    # Inside.

    @property
    def _runtime(self) -> Runtime:
        if self._runtime_name == "local":
            from byzerllm.runtime.local import local_runtime

            return local_runtime()
        from byzerllm.runtime.on_ray import ray_runtime

        return ray_runtime()

    def _model(self, model: str | None) -> str:
        name = model or self._settings.default_model_name
        if not name:
            raise ParameterError(
                "no model is named; pass model=… or call setup_default_model_name first"
            )
        return name

    def _line(self, model: str | None, on_fallback: OnFallback | None = None) -> Line:
        return Line(self._model(model), self._fallbacks, on_fallback)

    def _fallbacks(self, model: str) -> Sequence[str]:
        """What this client was told, else what the deployment says."""
        return self._settings.of(model).fallbacks or self._runtime.fallbacks(model)

    def _chat(self, call: ChatCall, model: str | None) -> list[Any]:
        limit = call.timeout
        line = self._line(model)

        def answer(step: Any) -> Any:
            return self._meta(line.name) if step is META else self._call(line.name, step, limit)

        while True:
            try:
                return drive(call.exchange(line.name, self._settings.of(line.name)), answer)
            except FALLBACK_ERRORS as error:
                line.advance(error)

    async def _async_chat(self, call: ChatCall, model: str | None) -> list[Any]:
        limit = call.timeout
        line = self._line(model)

        async def answer(step: Any) -> Any:
            if step is META:
                return await self._async_meta(line.name)
            return await self._async_call(line.name, step, limit)

        while True:
            try:
                exchange = call.exchange(line.name, self._settings.of(line.name))
                return await drive_async(exchange, answer)
            except FALLBACK_ERRORS as error:
                line.advance(error)

    def _stream_chat(self, call: ChatCall, model: str | None, delta: bool) -> Iterator[StreamItem]:
        line = self._line(model)
        # Made here, so that wrong parameters are said before the first item is asked for.
        first = self._stream_request(call, line.name)
        return self._stream_line(call, line, first, delta, call.timeout)

    def _stream_request(self, call: ChatCall, name: str) -> StreamRequest:
        return call.stream(self._settings.of(name), functools.partial(self._meta, name))

    def _stream_line(
        self,
        call: ChatCall,
        line: Line,
        request: StreamRequest,
        delta: bool,
        limit: float | None,
    ) -> Iterator[StreamItem]:
        while True:
            started = False
            try:
                with closing(self._stream(line.name, request, delta, limit)) as items:  # type: ignore[type-var]
                    for item in items:
                        started = True
                        yield item
                return
            except FALLBACK_ERRORS as error:
                if started:
                    raise
                line.advance(error)
            request = self._stream_request(call, line.name)

    def _async_stream_chat(
        self, call: ChatCall, model: str | None, delta: bool
    ) -> AsyncGenerator[StreamItem, None]:
        line = self._line(model)
        first = None
        if media_of(call.conversations) is None:
            first = call.request(self._settings.of(line.name), stream=True)
        return self._async_stream_line(call, line, first, delta, call.timeout)

    async def _async_stream_line(
        self,
        call: ChatCall,
        line: Line,
        request: StreamRequest | None,
        delta: bool,
        limit: float | None,
    ) -> AsyncGenerator[StreamItem, None]:
        while True:
            started = False
            try:
                if request is None:
                    meta = await self._async_meta(line.name)
                    request = call.stream(self._settings.of(line.name), meta)
                items = self._async_stream(line.name, request, delta, limit)
                async with aclosing(items) as source:
                    async for item in source:
                        started = True
                        yield item
                return
            except FALLBACK_ERRORS as error:
                if started:
                    raise
                line.advance(error)
            request = None

    def _meta(self, model: str) -> ModelMeta:
        """What the model is, from memory where this process has called it before."""
        runtime = self._runtime
        known = runtime.known_meta(model)
        return known or background_loop().run(runtime.meta(model, timeout=self._settings.timeout))

    async def _async_meta(self, model: str) -> ModelMeta:
        return await self._runtime.meta(model, timeout=self._settings.timeout)

    def _call(self, model: str, request: Request, timeout: float | None = None) -> Result:
        limit = timeout or self._settings.timeout
        pin = self._settings.pins.get(kind_of(request)) if self._settings.pins else None
        if not self._observes():
            return self._runtime.call_sync(model, request, pin=pin, timeout=limit)
        observers = Observers(model, request)
        if observers.answer is not None:
            return observers.answer
        with observers:
            return observers.ended(
                self._runtime.call_sync(model, observers.request, pin=pin, timeout=limit)
            )

    async def _async_call(
        self, model: str, request: Request, timeout: float | None = None
    ) -> Result:
        limit = timeout or self._settings.timeout
        pin = self._settings.pins.get(kind_of(request)) if self._settings.pins else None
        if not self._observes():
            return await self._runtime.call(model, request, pin=pin, timeout=limit)
        observers = Observers(model, request)
        if observers.answer is not None:
            return observers.answer
        with observers:
            return observers.ended(
                await self._runtime.call(model, observers.request, pin=pin, timeout=limit)
            )

    def _stream(
        self, model: str, request: StreamRequest, delta: bool, timeout: float | None
    ) -> Iterator[StreamItem]:
        observers = Observers(model, request, enabled=self._observes())
        reader = self._reader(model, request, delta)
        if observers.answer is not None:
            yield from _answered(observers.answer, reader)
            return
        with observers:
            chunks = self._runtime.stream_sync(
                model,
                observers.stream_request(),
                pin=self._settings.pins.get("chat"),
                timeout=timeout or self._settings.timeout,
            )
            with closing(chunks) as source:  # type: ignore[type-var]
                for chunk in source:
                    text = reader.read(chunk)
                    if text is not None:
                        yield StreamItem(text, reader.metadata)

    async def _async_stream(
        self, model: str, request: StreamRequest, delta: bool, timeout: float | None
    ) -> AsyncGenerator[StreamItem, None]:
        reader = self._reader(model, request, delta)
        chunks = self._async_chunks(model, request, timeout)
        async with aclosing(chunks) as source:
            async for chunk in source:
                text = reader.read(chunk)
                if text is not None:
                    yield StreamItem(text, reader.metadata)

    def _async_chunks(
        self, model: str, request: StreamRequest, timeout: float | None
    ) -> AsyncGenerator[GenerateChunk, None]:
        limit = timeout or self._settings.timeout
        pin = self._settings.pins.get("chat")
        if not self._observes():
            return self._runtime.stream(model, request, pin=pin, timeout=limit)
        return self._observed_chunks(model, request, pin, limit)

    async def _observed_chunks(
        self, model: str, request: StreamRequest, pin: int | None, limit: float
    ) -> AsyncGenerator[GenerateChunk, None]:
        observers = Observers(model, request)
        if observers.answer is not None:
            yield _as_chunk(observers.answer)
            return
        with observers:
            chunks = self._runtime.stream(model, observers.stream_request(), pin=pin, timeout=limit)
            async with aclosing(chunks) as source:
                async for chunk in source:
                    yield chunk

    def _reader(self, model: str, request: StreamRequest, delta: bool) -> StreamReader:
        template = self._settings.of(model).template
        return StreamReader(request, model, delta, template.clean if template else None)

    def _observes(self) -> bool:
        if self._observed is None:
            self._observed = get_plugins().observes_requests() or self.verbose
        return self._observed


def _answered(answer: Result, reader: StreamReader) -> Iterator[StreamItem]:
    yield StreamItem(reader.read(_as_chunk(answer)), reader.metadata)


def _as_chunk(answer: Result) -> GenerateChunk:
    if isinstance(answer, SpeechResult):
        return GenerateChunk(audio=answer.audio, finish_reason="stop", usage=answer.usage)
    result = _generated(answer)
    return GenerateChunk(text=result.text, finish_reason=result.finish_reason, usage=result.usage)


def _generated(result: Result) -> GenerateResult:
    assert isinstance(result, GenerateResult)
    return result


def _texts(request: LLMRequest | Sequence[str]) -> list[str]:
    given = request.instruction if isinstance(request, LLMRequest) else request
    texts = [given] if isinstance(given, str) else list(given)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ParameterError("emb needs a text or a list of texts, at least one")
    return texts


def _pairs(
    given: Sequence[str] | Sequence[Sequence[str]],
) -> tuple[list[tuple[str, str]], bool]:
    """The pairs, and whether they were one that stood alone."""
    single = not isinstance(given, str) and any(isinstance(item, str) for item in given)
    listed: Sequence[Any] = [given] if single else given
    pairs: list[tuple[str, str]] = []
    for pair in listed:
        texts = [] if isinstance(pair, str) or not isinstance(pair, Sequence) else list(pair)
        if len(texts) != 2 or not all(isinstance(text, str) for text in texts):
            raise ParameterError(
                f"sentence_pairs takes a pair [query, passage] of texts or a list of pairs "
                f"(got {pair!r})"
            )
        pairs.append((texts[0], texts[1]))
    if not pairs:
        raise ParameterError("sentence_pairs is empty; give at least one pair [query, passage]")
    return pairs, single


def _positive(name: str, n: int) -> int:
    if not isinstance(n, int) or n < 1:
        raise ParameterError.invalid(name, f"a whole number above 0 (got {n!r})", where="setup")
    return n


def _absolute(path: str) -> str:
    """A relative path that exists here, made absolute: workers have another working folder."""
    expanded = os.path.expanduser(path)
    return os.path.abspath(expanded) if expanded and os.path.exists(expanded) else path


def _shown(meta: dict[str, Any]) -> dict[str, Any]:
    """The seed's keys as far as they are known, and of the others those that say something."""
    return {key: value for key, value in meta.items() if _PLAIN_META.get(key, _ABSENT) != value}


_ABSENT = object()
_PLAIN_META = {"constrained": False, "tools": False, "task": "chat", "max_model_len": None}
