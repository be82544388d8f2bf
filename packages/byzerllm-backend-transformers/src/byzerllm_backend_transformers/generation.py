"""Answers of a model's own `generate`, one after the other on the model's thread.

For models that no batching engine runs: whatever their inputs are besides tokens, transformers'
`generate` knows what to do with them. What is drawn, when an answer ends and what of it may leave
is decided as for chats.
"""

from __future__ import annotations

import asyncio
import functools
import threading
import traceback
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers

from byzerllm.decoding.answer import Answer, Inbox
from byzerllm.decoding.json_schema import SchemaCompiler
from byzerllm.decoding.text import AnswerText
from byzerllm.errors import (
    BackendError,
    ByzerLLMError,
    ContextLengthError,
    ParameterError,
    RequestCancelledError,
)
from byzerllm.requests import GenerateChunk, GenerateRequest
from byzerllm_backend_transformers.chat.sampling import (
    Mask,
    Recipe,
    Sampler,
    TransformersSampling,
    token_logprob,
)
from byzerllm_backend_transformers.chat.text import TokenText
from byzerllm_backend_transformers.tasks import Task
from byzerllm_backend_transformers.vocabulary import read_vocabulary, stop_ids

Inputs = Mapping[str, Any]
Prepare = Callable[[], Inputs]
"""Makes the model's inputs, `input_ids` of shape (1, length) among them; on the model's thread."""

_KEPT = (
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "cache_implementation",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "pad_token_id",
    "suppress_tokens",
)
"""What of a folder's generation config is left to `generate`; the rest is done here, or would make
it search several answers at once."""


def extra_of(request: GenerateRequest) -> TransformersSampling:
    """The parameters of a request that only transformers knows.

    Raises:
        ParameterError: an unknown name, or a value of the wrong type.
    """
    return TransformersSampling.parse({**request.sampling.extra, **request.extra})


@dataclass(kw_only=True)
class Generation:
    """Generates the answers of one model.

    Args:
        task: whose thread the model computes on.
        model, tokenizer: transformers'.
        max_length: most tokens of prompt and answer.
        stop: texts that end every answer.
        spelled: special tokens that are text, and how they are written; others are left out.
    """

    task: Task
    model: Any
    tokenizer: Any
    max_length: int
    stop: tuple[str, ...] = ()
    spelled: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._defaults = self.model.generation_config
        self._ends = _end_tokens(self._defaults, self.tokenizer)
        vocab_size = int(self.model.config.get_text_config(decoder=True).vocab_size)
        self._schemas = SchemaCompiler(
            lambda: read_vocabulary(self.tokenizer, vocab_size, self._ends), vocab_size
        )
        kept = {name: getattr(self._defaults, name, None) for name in _KEPT}
        self.model.generation_config = transformers.GenerationConfig(do_sample=False, **kept)

    async def answer(
        self, request: GenerateRequest, prepare: Prepare
    ) -> AsyncGenerator[GenerateChunk, None]:
        """The answer to what `prepare` makes; leaving the iterator stops it within a token.

        Raises:
            ParameterError: a bad generation parameter, or what `prepare` says.
            ContextLengthError: the prompt fills the context.
            RequestCancelledError: the model was closed.
            BackendError: no memory, or what else the model says.
        """
        recipe = Recipe(
            request.sampling, extra_of(request), self._defaults, self.task.parameters.seed
        )
        mask = await asyncio.to_thread(self._schemas.constraint, request.sampling)
        call = _Call(request, recipe, mask, Inbox(self.task.check_open), threading.Event())
        work = asyncio.ensure_future(self.task.compute(self._run, call, prepare))
        work.add_done_callback(functools.partial(_tell_error, call.inbox))
        try:
            async for chunk in call.inbox.chunks():
                yield chunk
        finally:
            call.left.set()
            work.cancel()

    def _run(self, call: _Call, prepare: Prepare) -> None:
        """One answer from its inputs to its last chunk; on the model's thread."""
        self._check_wanted(call)
        inputs = prepare()
        answer = self._begun(call, inputs["input_ids"][0].tolist())
        device = inputs["input_ids"].device
        growth = _Growth(self, call, answer, device)
        self._check_wanted(call)
        self.model.generate(
            **inputs,
            generation_config=transformers.GenerationConfig(
                max_new_tokens=answer.limit,
                do_sample=False,
                pad_token_id=self.tokenizer.pad_token_id,
            ),
            logits_processor=[growth.choose],
            stopping_criteria=[growth.grow],
        )
        self._check_wanted(call)

    def _begun(self, call: _Call, tokens: list[int]) -> Answer:
        params = call.request.sampling
        room = self.max_length - len(tokens)
        if not tokens:
            raise ParameterError("an empty prompt; give at least one character")
        self._check_weights(tokens)
        if room < 1:
            raise ContextLengthError(
                f"the prompt has {len(tokens):,} tokens, the model takes {self.max_length:,} with "
                "at least one for the answer; shorten it, or send fewer or smaller pictures",
                prompt_tokens=len(tokens),
                max_model_len=self.max_length,
            )
        return Answer(
            tokens=tokens,
            prompt_length=len(tokens),
            limit=room if params.max_tokens is None else min(params.max_tokens, room),
            text=AnswerText([*params.stop, *self.stop]),
            inbox=call.inbox,
            stop_ids=stop_ids(params, self._ends, self.tokenizer),
            logprobs=params.logprobs,
            stream=call.request.stream,
        )

    def _check_weights(self, tokens: list[int]) -> None:
        """A token without weights would end a GPU's process, not just its request."""
        rows = self.model.get_input_embeddings().weight.shape[0]
        config = self.model.config
        # Pictures are put in the place of theirs.
        pictures = [getattr(config, name, None) for name in ("image_token_id", "image_token_index")]
        wrong = [token for token in tokens if token >= rows and token not in pictures]
        if wrong:
            raise ParameterError(
                f"the prompt has the token {wrong[0]} "
                f"({self.tokenizer.convert_ids_to_tokens(wrong[0])!r}), for which the model has no "
                "weights; leave it out"
            )

    def _check_wanted(self, call: _Call) -> None:
        if self.task.closed:
            raise RequestCancelledError("the model was closed while it answered")
        if call.left.is_set():
            raise RequestCancelledError("its caller left")


@dataclass(frozen=True)
class _Call:
    """One request, and what its caller and the model's thread share.

    Attributes:
        left: the caller is gone.
    """

    request: GenerateRequest
    recipe: Recipe
    mask: Mask | None
    inbox: Inbox
    left: threading.Event


class _Growth:
    """Chooses each token for `generate`, lets the answer grow by it, and says when it ends."""

    def __init__(
        self, generation: Generation, call: _Call, answer: Answer, device: torch.device
    ) -> None:
        self._generation = generation
        self._call = call
        self._answer = answer
        self._sampler = Sampler(call.recipe, answer.prompt_length, device, call.mask)
        # A prompt's own text goes on; an answer of a chat begins.
        prompt = answer.tokens if call.request.prompt is not None else []
        self._text = TokenText(generation.tokenizer, prompt)
        self._logits = torch.empty(0)

    def choose(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """A logits processor of transformers that leaves one token."""
        if self._sampler.takes_the_best and self._answer.logprobs is None:
            return scores
        self._logits = scores[0]
        token = self._sampler.draw(scores[0], self._answer.tokens)
        chosen = torch.full_like(scores, -torch.inf)
        chosen[0, token] = 0
        return chosen

    def grow(self, input_ids: torch.Tensor, scores: Any, **ignored: Any) -> torch.Tensor:
        """A stopping criterion of transformers."""
        ended = self._gone() or self._add(int(input_ids[0, -1]))
        return torch.full((1,), ended, device=input_ids.device)

    def _gone(self) -> bool:
        return self._call.left.is_set() or self._generation.task.closed

    def _add(self, token: int) -> bool:
        answer = self._answer
        piece = "" if token in answer.stop_ids else self._piece(token)
        logprob = None
        if answer.logprobs is not None:
            logprob = token_logprob(self._logits, token, answer.logprobs, self._text_of)
        finish = answer.accept(token, piece, logprob, complete=self._sampler.complete)
        chunk = answer.chunk(finish)
        if chunk is not None:
            self._send(chunk)
        return finish is not None

    def _piece(self, token: int) -> str:
        return self._generation.spelled.get(token) or self._text.add(token)

    def _send(self, chunk: GenerateChunk) -> None:
        inbox = self._call.inbox
        try:
            inbox.loop.call_soon_threadsafe(inbox.put, chunk)
        except RuntimeError:  # its loop is closed
            self._call.left.set()

    def _text_of(self, token: int) -> str:
        return str(self._generation.tokenizer.decode([token]))


def _end_tokens(config: Any, tokenizer: Any) -> frozenset[int]:
    ends = config.eos_token_id
    ids = [*(ends if isinstance(ends, list | tuple) else [ends]), tokenizer.eos_token_id]
    return frozenset(int(one) for one in ids if one is not None)


def _tell_error(inbox: Inbox, work: asyncio.Future[None]) -> None:
    """Put what ended the work of an answer into its inbox."""
    if work.cancelled():
        inbox.put(RequestCancelledError("the model was closed while the request waited"))
        return
    error = work.exception()
    if error is None:
        return
    if not isinstance(error, ByzerLLMError):
        trace = "".join(traceback.format_exception(error))
        error = BackendError(f"{type(error).__name__}: {error}", remote_traceback=trace)
    inbox.put(error)
