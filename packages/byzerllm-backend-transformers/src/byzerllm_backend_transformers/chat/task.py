"""Chats and completions of one causal language model, whose requests grow together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, Self

import torch

from byzerllm.decoding.answer import Inbox
from byzerllm.decoding.chat_template import ChatTemplate
from byzerllm.decoding.json_schema import SchemaCompiler
from byzerllm.decoding.text import AnswerText
from byzerllm.errors import ContextLengthError, ParameterError
from byzerllm.requests import GenerateChunk, GenerateRequest, ModelMeta
from byzerllm_backend_transformers.chat.engine import Engine, EngineStats, Sequence
from byzerllm_backend_transformers.chat.model import CausalModel
from byzerllm_backend_transformers.chat.rows import rows_of
from byzerllm_backend_transformers.chat.sampling import Mask, Recipe, Sampler, TransformersSampling
from byzerllm_backend_transformers.chat.text import TokenText
from byzerllm_backend_transformers.tasks import Loading, Task
from byzerllm_backend_transformers.vocabulary import read_vocabulary, stop_ids

# Longer texts are tokenised off the loop.
_INLINE_CHARACTERS = 8_000


class Chat(Task):
    """One loaded causal model. Defaults of a request that says nothing are the folder's
    `generation_config.json`, and an answer until the model ends it or the context is full."""

    capability = "chat"

    def __init__(self, loading: Loading, model: CausalModel) -> None:
        super().__init__(loading)
        self._model = model
        tokenizer = model.tokenizer
        self._template = ChatTemplate(
            model.chat_template, bos=tokenizer.bos_token or "", eos=tokenizer.eos_token or ""
        )
        vocab_size = int(model.model.get_output_embeddings().weight.shape[0])
        self._vocab_size = vocab_size
        self._schemas = SchemaCompiler(
            lambda: read_vocabulary(tokenizer, vocab_size, model.end_tokens), vocab_size
        )
        self._engine = Engine(
            rows_of(model.model, model.device),
            places=max(1, loading.context.concurrency),
            text_of=self._text_of,
            threads=torch.get_num_threads(),
        )

    @classmethod
    def load(cls, loading: Loading) -> Self:
        return cls(loading, CausalModel.load(loading))

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        """Answer a chat or continue a prompt.

        Raises:
            ParameterError: an empty conversation or prompt, or a bad generation parameter.
            ContextLengthError: the prompt fills the context.
            TemplateError: the chat template is missing or refuses the messages.
            CapabilityError: a message part that is no text.
            BackendError: the engine failed, or there is no memory for this request.
        """
        self.check_open()
        sequence = await self._prepare(request)
        self._engine.submit(sequence)
        try:
            async for chunk in sequence.inbox.chunks():
                yield chunk
        finally:
            sequence.cancelled = True

    async def tokenize(self, text: str) -> list[int]:
        """Token ids of `text`; written-out special tokens are one token, none are added."""
        self.check_open()
        if len(text) <= _INLINE_CHARACTERS:
            return self._ids(text, special=False)
        return await asyncio.to_thread(self._ids, text, special=False)

    async def apply_chat_template(self, messages: list[dict[str, Any]]) -> str:
        """The prompt for `messages`, open for the assistant's answer."""
        return self._template.render(messages)

    async def meta(self) -> ModelMeta:
        return ModelMeta(
            model_deploy_type="proprietary",
            backend="transformers",
            support_chat_template=self._template.available,
            max_model_len=self._model.max_model_len,
            architectures=self.folder.architectures or [type(self._model.model).__name__],
            model_name=self.folder.path.name,
            constrained=True,
        )

    async def health(self) -> None:
        """Raises BackendError when the engine's thread is gone."""
        self.check_open()
        self._engine.check()

    def stats(self) -> EngineStats:
        return self._engine.stats()

    async def close(self) -> None:
        if not self._closed:
            await asyncio.to_thread(self._engine.close)
        await super().close()

    def free(self) -> None:
        self._engine.close()

    async def _prepare(self, request: GenerateRequest) -> Sequence:
        extra = TransformersSampling.parse({**request.sampling.extra, **request.extra})
        recipe = Recipe(request.sampling, extra, self._model.defaults, self.parameters.seed)
        text = self._prompt(request, extra)
        params = request.sampling
        heavy = params.json_schema is not None or params.grammar is not None
        chat = request.prompt is None
        if heavy or len(text) > _INLINE_CHARACTERS:
            tokens, mask = await asyncio.to_thread(self._ingredients, request, text, chat)
        else:
            tokens, mask = self._ingredients(request, text, chat)
        limit = self._model.max_model_len - len(tokens)
        stops = [*params.stop, *(stop for stop in self._model.stop if stop not in params.stop)]
        return Sequence(
            tokens=tokens,
            prompt_length=len(tokens),
            limit=limit if params.max_tokens is None else min(params.max_tokens, limit),
            sampler=Sampler(recipe, len(tokens), self._model.device, mask),
            token_text=TokenText(self._model.tokenizer, [] if chat else tokens),
            text=AnswerText(stops),
            inbox=Inbox(self._engine.check),
            stop_ids=stop_ids(params, self._model.end_tokens, self._model.tokenizer),
            logprobs=params.logprobs,
            stream=request.stream,
        )

    def _prompt(self, request: GenerateRequest, extra: TransformersSampling) -> str:
        if request.prompt is not None and request.messages is None:
            return request.prompt
        if request.prompt is None and request.messages is not None:
            return self._template.render(request.messages, extra.chat_template_kwargs)
        raise ParameterError("a request has either messages or a prompt")

    def _ingredients(
        self, request: GenerateRequest, text: str, chat: bool
    ) -> tuple[list[int], Mask | None]:
        """The prompt's tokens and the mask of its answer, which may take long."""
        tokens = self._ids(text, special=not chat or self._model.adds_special_tokens)
        if not tokens:
            raise ParameterError("an empty prompt; give at least one character")
        if max(tokens) >= self._vocab_size:
            strange = self._model.tokenizer.convert_ids_to_tokens(max(tokens))
            raise ParameterError(
                f"the prompt has {strange!r}, which the tokenizer knows and the model's weights do "
                "not; leave it out"
            )
        if len(tokens) >= self._model.max_model_len:
            raise ContextLengthError(
                f"the prompt has {len(tokens):,} tokens, the context holds "
                f"{self._model.max_model_len:,} with at least one for the answer; shorten it",
                prompt_tokens=len(tokens),
                max_model_len=self._model.max_model_len,
            )
        return tokens, self._schemas.constraint(request.sampling)

    def _ids(self, text: str, *, special: bool) -> list[int]:
        ids: list[int] = self._model.tokenizer(text, add_special_tokens=special)["input_ids"]
        return ids

    def _text_of(self, token: int) -> str:
        text: str = self._model.tokenizer.decode([token])
        return text
