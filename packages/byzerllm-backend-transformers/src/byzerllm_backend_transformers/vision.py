"""Vision-language models: pictures and text in, text out.

Any image-text-to-text model of transformers, in OpenAI's message form; `custom/qwen_vl_chat` speaks
the form of the first Qwen-VL (see `qwen_vl`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from functools import cached_property
from typing import Any, ClassVar, Self

import jinja2
import torch
import transformers
from transformers.models.auto import modeling_auto

from byzerllm.decoding.chat_template import template_source
from byzerllm.errors import ModelLoadError, ParameterError, TemplateError
from byzerllm.requests import GenerateChunk, GenerateRequest, ModelMeta
from byzerllm_backend_transformers import qwen_vl
from byzerllm_backend_transformers.chat.adapters import adapters_of, merge
from byzerllm_backend_transformers.chat.model import context_length
from byzerllm_backend_transformers.conversation import as_texts, check_placeholders, with_parts
from byzerllm_backend_transformers.generation import Generation, Inputs, extra_of
from byzerllm_backend_transformers.loading import check_trust, load
from byzerllm_backend_transformers.pictures import Picture, read_pictures
from byzerllm_backend_transformers.processors import load_processor
from byzerllm_backend_transformers.tasks import Loading, Task, is_out_of_memory

Message = dict[str, Any]

_PLACEHOLDERS = ("image_token", "video_token", "audio_token")


class Vision(Task):
    """One image-text-to-text model, which answers one request at a time."""

    capability: ClassVar[str] = "vision"

    def __init__(self, loading: Loading, model: Any, processor: Any) -> None:
        super().__init__(loading)
        self._processor = processor
        self._model = model
        self._template = template_source(
            self.parameters.chat_template, str(getattr(processor, "chat_template", None) or "")
        )
        tokens = [getattr(processor, name, None) for name in _PLACEHOLDERS]
        self._placeholders = [token for token in tokens if isinstance(token, str) and token]
        self._seed_form = self.family.type == qwen_vl.TYPE
        self._generation = Generation(
            task=self,
            model=model,
            tokenizer=processor.tokenizer,
            max_length=context_length(loading, model.config, processor.tokenizer),
            stop=self.family.stop,
            spelled=qwen_vl.spelled(processor.tokenizer) if self._seed_form else {},
        )

    @classmethod
    def load(cls, loading: Loading) -> Self:
        check_trust(loading)
        _check_type(loading)
        loading.report("loading the processor")
        processor = load_processor(loading)
        adapters = adapters_of(loading)
        auto = transformers.AutoModelForImageTextToText
        model = load(loading, auto.from_pretrained, complete=True)
        return cls(loading, merge(loading, model, adapters).eval(), processor)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        """Answer a conversation with or without pictures, or continue a prompt.

        Raises:
            ParameterError: a part that is neither text nor a picture, a picture that is none or too
                large, a conversation that the model's processor refuses, or a bad generation
                parameter.
            ContextLengthError: text and pictures fill the context.
            TemplateError: the model has no chat template, or it refuses the messages.
            BackendError: not enough memory.
        """
        self.check_open()
        if request.prompt is None and request.messages:
            chunks = self._chat(request, request.messages)
        elif request.prompt and request.messages is None:
            chunks = self._generation.answer(request, lambda: self._inputs(request.prompt, []))
        else:
            raise ParameterError("a request has either messages or a prompt, and it is not empty")
        async with aclosing(chunks):
            async for chunk in chunks:
                yield chunk

    async def apply_chat_template(self, messages: list[Message]) -> str:
        """The prompt for `messages`, a placeholder for each picture."""
        return self._render(with_parts(messages)[0], {})

    async def tokenize(self, text: str) -> list[int]:
        """Token ids of `text`; written-out special tokens are one token, none are added."""
        self.check_open()
        # Not on the model's thread: it may be busy with an answer for minutes.
        return await asyncio.to_thread(self._tokens, text)

    async def meta(self) -> ModelMeta:
        return ModelMeta(
            model_deploy_type="proprietary",
            backend="transformers",
            support_chat_template=bool(self._template),
            max_model_len=self._generation.max_length,
            architectures=self.folder.architectures,
            model_name=self.folder.path.name,
            constrained=True,
        )

    def free(self) -> None:
        self._model = self._generation.model = None

    async def _chat(
        self, request: GenerateRequest, given: list[Message]
    ) -> AsyncGenerator[GenerateChunk, None]:
        variables = extra_of(request).chat_template_kwargs
        messages, sent = with_parts(given)
        pictures = await asyncio.to_thread(read_pictures, sent)
        talk = qwen_vl.Talk.of(messages, pictures) if self._seed_form else None
        if talk is not None:
            messages, pictures = talk.messages, talk.pictures
        prompt = self._render(messages, variables)
        chunks = self._generation.answer(request, lambda: self._inputs(prompt, pictures))
        async with aclosing(chunks if talk is None else talk.as_json(chunks)) as answer:
            async for chunk in answer:
                yield chunk

    def _render(self, messages: list[Message], variables: Mapping[str, Any]) -> str:
        check_placeholders(messages, self._placeholders)
        if not self._template:
            return self._bare(messages)
        if not self._takes_parts:
            messages = as_texts(messages, self._placeholder)
        return self._rendered(messages, variables)

    @cached_property
    def _takes_parts(self) -> bool:
        """Whether the chat template reads lists of parts; else it prints them like any value."""
        probe = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
        try:
            return "'type'" not in self._rendered(probe, {})
        except TemplateError:
            return True

    @property
    def _placeholder(self) -> str:
        return self._placeholders[0] if self._placeholders else ""

    def _rendered(self, messages: list[Message], variables: Mapping[str, Any]) -> str:
        try:
            # Those of some processors ask their processor of videos, which may not be there.
            return str(
                self._processor.tokenizer.apply_chat_template(
                    messages,
                    chat_template=self._template,
                    add_generation_prompt=True,
                    tokenize=False,
                    **variables,
                )
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise TemplateError(
                f"the model's chat template cannot render these messages: {error}"
            ) from error

    def _bare(self, messages: list[Message]) -> str:
        """The prompt of a model without a chat template, such as PaliGemma: one question."""
        if len(messages) > 1:
            raise TemplateError(
                "the model has no chat template and takes one user message alone; give "
                "chat_template in infer_params for conversations"
            )
        parts = messages[0]["content"]
        texts = [part["text"] for part in parts if part["type"] == "text"]
        return self._placeholder * (len(parts) - len(texts)) + "\n".join(texts)

    def _inputs(self, text: str | None, pictures: Sequence[Picture]) -> Inputs:
        """The model's inputs, on its device."""
        images = [[picture.image for picture in pictures]] if pictures else None
        bos = self._processor.tokenizer.bos_token
        has_bos = bos is not None and str(text).startswith(bos)
        try:
            inputs = self._processor(
                text=[text], images=images, add_special_tokens=not has_bos, return_tensors="pt"
            )
        except Exception as error:
            if is_out_of_memory(error):
                raise
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise ParameterError(
                f"the model's processor does not take this text with {len(pictures)} images: "
                f"{reason}",
                parameter="messages",
            ) from error
        return {name: self._moved(value) for name, value in inputs.items()}

    def _moved(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        dtype = self._model.dtype if value.is_floating_point() else None
        return value.to(self._model.device, dtype=dtype)

    def _tokens(self, text: str) -> list[int]:
        ids: list[int] = self._processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def _check_type(loading: Loading) -> None:
    """Refuse a folder that cannot answer with text to pictures."""
    folder = loading.folder
    known = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    if folder.own_code or folder.model_type in known:
        return
    what = ", ".join(folder.architectures) or folder.model_type or "a model of unknown type"
    raise ModelLoadError(
        f"{folder.path} holds {what}, which takes no pictures and text to answer with text; "
        f"{loading.family.type} needs an image-text-to-text model of transformers"
    )
