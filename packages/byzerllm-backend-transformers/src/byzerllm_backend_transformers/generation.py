"""Answers of a model's own `generate`, one after the other on the model's thread.

For models that no batching engine runs: whatever their inputs are besides tokens, transformers'
`generate` knows what to do with them. Drawing, ends and text are ours, so that a seed repeats
whatever else the process draws, and that text leaves while the answer grows.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import threading
import traceback
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

import msgspec
import torch
import transformers
from msgspec import Meta, Struct

from byzerllm.decoding.answer import Answer, Inbox
from byzerllm.decoding.text import AnswerText
from byzerllm.errors import (
    BackendError,
    ByzerLLMError,
    CapabilityError,
    ContextLengthError,
    ParameterError,
    RequestCancelledError,
)
from byzerllm.requests import (
    GenerateChunk,
    GenerateRequest,
    SamplingParams,
    TokenLogprob,
)
from byzerllm_backend_transformers.tasks import Task

_WHERE = "generation on backend 'transformers'"
# Below it a temperature leaves one token only, and divides logits into infinities.
_COLD = 1e-5
_SEEDS = 2**63 - 1
_UNFINISHED = "\ufffd"

Number = TypeVar("Number", int, float)
Inputs = Mapping[str, Any]
Prepare = Callable[[], Inputs]
"""Makes the model's inputs, `input_ids` of shape (1, length) among them; on the model's thread."""

_Open = Annotated[float, Meta(ge=0, lt=1)]


class ExtraSampling(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Generation parameters that only transformers has (`SamplingParams.extra`).

    Attributes:
        typical_p: locally typical sampling; 1 is off.
        epsilon_cutoff: least probability of a token; 0 is off.
        eta_cutoff: eta sampling; 0 is off.
        top_h: entropy-bounded sampling; 1 is off.
        no_repeat_ngram_size: no n-gram comes twice; 0 is off.
        chat_template_kwargs: further variables for the chat template.
    """

    typical_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    epsilon_cutoff: _Open = 0.0
    eta_cutoff: _Open = 0.0
    top_h: Annotated[float, Meta(gt=0, le=1)] = 1.0
    no_repeat_ngram_size: Annotated[int, Meta(ge=0)] = 0
    chat_template_kwargs: dict[str, Any] = {}

    @classmethod
    def parse(cls, request: GenerateRequest) -> ExtraSampling:
        """Raises ParameterError for a name or a value that transformers does not take."""
        given = {**request.sampling.extra, **request.extra}
        for name, value in given.items():
            if name not in cls.__struct_fields__:
                raise ParameterError.unknown(name, cls.__struct_fields__, where=_WHERE)
            try:
                msgspec.convert({name: value}, cls, strict=False)
            except msgspec.ValidationError as error:
                reason = f"{str(error).split(' - at ')[0]} (got {value!r})"
                raise ParameterError.invalid(name, reason, where=_WHERE) from None
        return msgspec.convert(given, cls, strict=False)


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What a model's `generation_config.json` says of answers that ask for nothing.

    Attributes:
        temperature: 0 where it says `do_sample: false`, which is transformers' own default.
        end_ids: tokens that end an answer.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    end_ids: frozenset[int] = frozenset()

    @classmethod
    def take(cls, model: Any, tokenizer: Any) -> Defaults:
        """Read them, and leave `generate` with nothing of its own that draws or ends."""
        config = copy.deepcopy(model.generation_config)
        ends = config.eos_token_id
        ids = {*(ends if isinstance(ends, list | tuple) else (ends,)), tokenizer.eos_token_id}
        sampled = bool(config.do_sample)
        temperature = 1.0 if config.temperature is None else float(config.temperature)
        defaults = cls(
            temperature=temperature if sampled else 0.0,
            top_p=float(config.top_p or 1.0) if sampled else 1.0,
            # transformers' own default where the folder says nothing.
            top_k=int(50 if config.top_k is None else config.top_k) if sampled else 0,
            min_p=float(getattr(config, "min_p", None) or 0.0) if sampled else 0.0,
            repetition_penalty=float(config.repetition_penalty or 1.0),
            end_ids=frozenset(int(one) for one in ids if one is not None),
        )
        for name in (
            "temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff",
            "repetition_penalty", "eos_token_id", "max_length", "max_new_tokens",
        ):  # fmt: skip
            setattr(config, name, None)
        config.do_sample = False
        model.generation_config = config
        return defaults


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
        self._defaults = Defaults.take(self.model, self.tokenizer)
        self._hidden = frozenset(self.tokenizer.all_special_ids) | self._added_special_ids()
        self._vocab_size = int(self.model.config.get_text_config(decoder=True).vocab_size)

    async def answer(
        self, request: GenerateRequest, prepare: Prepare
    ) -> AsyncGenerator[GenerateChunk, None]:
        """The answer to what `prepare` makes; leaving the iterator stops it within a token.

        Raises:
            ParameterError: a bad generation parameter, or what `prepare` says.
            ContextLengthError: the prompt fills the context.
            CapabilityError: a schema or a grammar.
            RequestCancelledError: the model was closed.
            BackendError: no memory, or what else the model says.
        """
        recipe = self._recipe(request)
        inbox = Inbox(self.task.check_open)
        left = threading.Event()
        work = asyncio.ensure_future(
            self.task.compute(self._run, _Call(request, recipe, inbox, left), prepare)
        )
        work.add_done_callback(functools.partial(_tell_error, inbox))
        try:
            async for chunk in inbox.chunks():
                yield chunk
        finally:
            left.set()
            work.cancel()

    def _run(self, call: _Call, prepare: Prepare) -> None:
        """One answer from its inputs to its last chunk; on the model's thread."""
        self._check_wanted(call)
        inputs = prepare()
        tokens: list[int] = inputs["input_ids"][0].tolist()
        answer = self._begun(call, tokens)
        growth = _Growth(self, call, answer)
        self._check_wanted(call)
        self.model.generate(
            **inputs,
            generation_config=transformers.GenerationConfig(
                max_new_tokens=answer.limit,
                do_sample=False,
                pad_token_id=self.tokenizer.pad_token_id,
            ),
            logits_processor=growth.processors(),
            stopping_criteria=[growth],
        )
        self._check_wanted(call)

    def _begun(self, call: _Call, tokens: list[int]) -> Answer:
        params = call.request.sampling
        room = self.max_length - len(tokens)
        if room < 1:
            raise ContextLengthError(
                f"the prompt has {len(tokens):,} tokens, images included; the model takes "
                f"{self.max_length:,} with at least one for the answer; shorten it, or send fewer "
                "or smaller images",
                prompt_tokens=len(tokens),
                max_model_len=self.max_length,
            )
        return Answer(
            tokens=tokens,
            prompt_length=len(tokens),
            limit=room if params.max_tokens is None else min(params.max_tokens, room),
            text=AnswerText([*params.stop, *self.stop]),
            inbox=call.inbox,
            stop_ids=self._stop_ids(params),
            logprobs=params.logprobs,
            stream=call.request.stream,
        )

    def _check_wanted(self, call: _Call) -> None:
        if call.left.is_set():
            raise RequestCancelledError("its caller left")
        if self.task.closed:
            raise RequestCancelledError("the model was closed while it answered")

    def _recipe(self, request: GenerateRequest) -> Recipe:
        params = request.sampling
        if params.json_schema is not None or params.grammar is not None:
            raise CapabilityError(
                "this model's answers cannot be held to a schema or a grammar; leave json_schema "
                "and grammar out"
            )
        if "" in params.stop:
            raise ParameterError("stop holds an empty text, which would end every answer at once")
        wrong = [token for token in params.logit_bias or () if not 0 <= token < self._vocab_size]
        if wrong:
            reason = f"{wrong[0]} is no token id; 0 to {self._vocab_size - 1} are"
            raise ParameterError.invalid("logit_bias", reason, where=_WHERE)
        return Recipe.of(
            params,
            ExtraSampling.parse(request),
            self._defaults,
            seed=self.task.parameters.seed,
            never=self._defaults.end_ids if params.ignore_eos else frozenset(),
        )

    def _stop_ids(self, params: SamplingParams) -> frozenset[int]:
        ends = frozenset() if params.ignore_eos else self._defaults.end_ids
        named = (self.tokenizer.convert_tokens_to_ids(stop) for stop in params.stop)
        # Special tokens are no part of the text, where a stop string would be looked for.
        return ends.union(params.stop_token_ids, (one for one in named if one in self._hidden))

    def _added_special_ids(self) -> frozenset[int]:
        added = self.tokenizer.added_tokens_decoder
        return frozenset(id_ for id_, token in added.items() if token.special)

    def text_of_tokens(self) -> TokenText:
        """A reader of the tokens of one answer."""
        return TokenText(self.tokenizer, self._hidden, self.spelled)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one answer is drawn; see `SamplingParams` and `ExtraSampling` for the parts.

    Attributes:
        never: tokens that are not drawn.
    """

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int | None
    logit_bias: Mapping[int, float]
    extra: ExtraSampling
    never: frozenset[int]

    @classmethod
    def of(
        cls,
        params: SamplingParams,
        extra: ExtraSampling,
        defaults: Defaults,
        *,
        seed: int | None,
        never: frozenset[int],
    ) -> Recipe:
        """The request's values where it has them, else the model's.

        Raises:
            ParameterError: a repetition_penalty of 0.
        """
        repetition = _either(params.repetition_penalty, defaults.repetition_penalty)
        if repetition == 0:
            raise ParameterError.invalid("repetition_penalty", "above 0 (got 0)", where=_WHERE)
        return cls(
            temperature=_either(params.temperature, defaults.temperature),
            top_p=_either(params.top_p, defaults.top_p),
            top_k=_either(params.top_k, defaults.top_k),
            min_p=_either(params.min_p, defaults.min_p),
            repetition_penalty=repetition,
            presence_penalty=params.presence_penalty or 0.0,
            frequency_penalty=params.frequency_penalty or 0.0,
            seed=params.seed if params.seed is not None else seed,
            logit_bias=params.logit_bias or {},
            extra=extra,
            never=never,
        )

    @property
    def draws(self) -> bool:
        """Tokens are drawn; else the best one is taken."""
        return self.temperature >= _COLD

    def processors(self, prompt_length: int) -> list[Any]:
        """transformers' logits processors, ours where it has none; the best of what they leave is
        the next token."""
        steps: list[Any] = []
        if self.logit_bias or self.never:
            steps.append(_Bias({**self.logit_bias, **dict.fromkeys(self.never, -torch.inf)}))
        if self.repetition_penalty != 1:
            steps.append(transformers.RepetitionPenaltyLogitsProcessor(self.repetition_penalty))
        if self.presence_penalty or self.frequency_penalty:
            steps.append(_Penalty(self.presence_penalty, self.frequency_penalty, prompt_length))
        if self.extra.no_repeat_ngram_size:
            steps.append(transformers.NoRepeatNGramLogitsProcessor(self.extra.no_repeat_ngram_size))
        return [*steps, *self._drawing()] if self.draws else steps

    def _drawing(self) -> list[Any]:
        steps: list[Any] = []
        if self.temperature != 1:
            steps.append(transformers.TemperatureLogitsWarper(float(self.temperature)))
        if self.extra.top_h < 1:
            steps.append(transformers.TopHLogitsWarper(self.extra.top_h))
        if self.top_k > 0:
            steps.append(transformers.TopKLogitsWarper(self.top_k))
        if self.top_p < 1:
            steps.append(transformers.TopPLogitsWarper(float(self.top_p)))
        if self.min_p > 0:
            steps.append(transformers.MinPLogitsWarper(float(self.min_p)))
        if self.extra.typical_p < 1:
            steps.append(transformers.TypicalLogitsWarper(self.extra.typical_p))
        if self.extra.epsilon_cutoff > 0:
            steps.append(transformers.EpsilonLogitsWarper(self.extra.epsilon_cutoff))
        if self.extra.eta_cutoff > 0:
            steps.append(transformers.EtaLogitsWarper(self.extra.eta_cutoff, device="cpu"))
        return [*steps, _Draw(self.seed)]


class TokenText:
    """Whole characters out of the tokens of one answer.

    Args:
        hidden: tokens that are no text.
        spelled: tokens that are written in a way of their own.
    """

    def __init__(self, tokenizer: Any, hidden: Collection[int], spelled: Mapping[int, str]) -> None:
        self._tokenizer = tokenizer
        self._hidden = hidden
        self._spelled = spelled
        # Those before `_read` have been given out; they are decoded again, for some tokenizers
        # write the first token of a text in another way than those that follow it.
        self._ids: list[int] = []
        self._read = 0

    def push(self, token: int) -> str:
        """The characters that are complete with one more token."""
        if token in self._spelled:
            self._ids, self._read = [], 0
            return self._spelled[token]
        if token in self._hidden:
            return ""
        self._ids.append(token)
        before = self._decoded(self._ids[: self._read])
        text = self._decoded(self._ids)
        if len(text) <= len(before) or text.endswith(_UNFINISHED):
            return ""
        self._ids, self._read = self._ids[self._read :], len(self._ids) - self._read
        return text[len(before) :]

    def _decoded(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, clean_up_tokenization_spaces=False)) if ids else ""


@dataclass(frozen=True)
class _Call:
    request: GenerateRequest
    recipe: Recipe
    inbox: Inbox
    left: threading.Event


class _Growth:
    """Lets an answer grow by what `generate` draws: a stopping criterion of transformers."""

    def __init__(self, generation: Generation, call: _Call, answer: Answer) -> None:
        self._generation = generation
        self._call = call
        self._answer = answer
        self._text = generation.text_of_tokens()
        self._logits: torch.Tensor | None = None

    def processors(self) -> list[Any]:
        keep = [self._keep] if self._answer.logprobs is not None else []
        return [*keep, *self._call.recipe.processors(self._answer.prompt_length)]

    def __call__(self, input_ids: torch.Tensor, scores: Any, **ignored: Any) -> torch.Tensor:
        ended = self._gone() or self._grow(int(input_ids[0, -1]))
        return torch.full((input_ids.shape[0],), ended, device=input_ids.device)

    def _gone(self) -> bool:
        return self._call.left.is_set() or self._generation.task.closed

    def _grow(self, token: int) -> bool:
        answer = self._answer
        piece = "" if token in answer.stop_ids else self._text.push(token)
        finish = answer.accept(token, piece, self._logprob(token))
        return self._send(answer.chunk(finish)) or finish is not None

    def _send(self, chunk: GenerateChunk | None) -> bool:
        """Whether the caller is gone."""
        if chunk is None:
            return False
        inbox = self._call.inbox
        try:
            inbox.loop.call_soon_threadsafe(inbox.put, chunk)
        except RuntimeError:  # its loop is closed
            self._call.left.set()
            return True
        return False

    def _keep(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self._logits = scores.clone()
        return scores

    def _logprob(self, token: int) -> TokenLogprob | None:
        count = self._answer.logprobs
        if count is None or self._logits is None:
            return None
        logprobs = torch.log_softmax(self._logits[0].float(), dim=-1)
        best = torch.topk(logprobs, count)
        spell = self._generation.tokenizer.decode
        return TokenLogprob(
            token=spell([token]),
            id=token,
            logprob=float(logprobs[token]),
            top=[
                (spell([one]), one, value)
                for one, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
            ],
        )


class _Bias:
    """Adds to the logits of some tokens."""

    def __init__(self, biases: Mapping[int, float]) -> None:
        self._ids = list(biases)
        self._values = list(biases.values())

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        changed = scores.clone()
        changed[:, self._ids] += torch.tensor(self._values, device=scores.device)
        return changed


class _Penalty:
    """OpenAI's presence and frequency penalty, over the answer."""

    def __init__(self, presence: float, frequency: float, prompt_length: int) -> None:
        self._presence = presence
        self._frequency = frequency
        self._prompt_length = prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        said = input_ids[0, self._prompt_length :]
        counts = torch.bincount(said, minlength=scores.shape[-1]).to(scores.dtype)
        return scores - counts * self._frequency - (counts > 0) * self._presence


class _Draw:
    """Makes the best token one that is drawn from the distribution: the logits less the logarithm
    of exponential noise (the Gumbel-max trick), from a generator of its own."""

    def __init__(self, seed: int | None) -> None:
        # On the CPU whatever the model is on, so that a seed means the same everywhere.
        self._random = torch.Generator()
        if seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(seed & _SEEDS)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        noise = torch.empty(scores.shape).exponential_(generator=self._random)
        return scores - noise.log().to(scores.device)


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


def _either(given: Number | None, default: Number) -> Number:
    return default if given is None else given
