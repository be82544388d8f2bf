"""Picks the next token of one answer, with llama.cpp's samplers.

The order of a chain is that of llama.cpp's own tools: logit bias, penalties, top-n-sigma, top-k,
typical, top-p, min-p, XTC, temperature, draw.

With a JSON schema the chain sees only the tokens that may follow, so an answer is drawn from the
model's distribution over them and truncated among them; where one token is left it is taken as it
is. Finding them costs a small part of a decode step.

A GBNF grammar is slow to ask about all tokens. It is asked about the drawn token first; only when
it refuses, all tokens are checked and one is drawn anew, as llama.cpp's own tools do. At
temperature 0, or without truncating samplers, that is the same distribution; else tokens that the
truncation would keep among all tokens are somewhat favoured.
"""

from __future__ import annotations

import ctypes
import math
import random
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from msgspec import Meta, Struct

from byzerllm.decoding.json_schema import SchemaMatcher
from byzerllm.decoding.sampling import check_sampling, parse_extra
from byzerllm.errors import BackendError, ParameterError
from byzerllm.requests import NonNegative, Probability, SamplingParams, TokenLogprob
from byzerllm_backend_llamacpp.grammar import grammar_sampler
from byzerllm_backend_llamacpp.model import Model
from byzerllm_backend_llamacpp.native import llama_cpp

CHAT_TEMPERATURE = 0.2
COMPLETION_TEMPERATURE = 0.8
TOP_K = 40
TOP_P = 0.95
MIN_P = 0.05
"""Defaults of `llama_cpp.Llama.create_chat_completion` and `create_completion`."""

_WHERE = "generation on backend 'llama_cpp'"
_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
_SEEDS = 0xFFFFFFFF
_NO_TOKEN = "the grammar or JSON schema allows no token of this model at this point"

Logits = npt.NDArray[np.float32]
TokenIds = npt.NDArray[np.integer[Any]]


class LlamaSampling(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Generation parameters that only llama.cpp has (`SamplingParams.extra`).

    Attributes:
        repeat_last_n: tokens that `repetition_penalty` looks back on; -1 is the whole context.
        typical_p: locally typical sampling; 1 is off.
        top_n_sigma: keep tokens within n standard deviations of the best; -1 is off.
        xtc_probability, xtc_threshold: exclude top choices; probability 0 is off.
        mirostat: 1 or 2 replaces the truncating samplers by Mirostat; 0 is off.
        mirostat_tau, mirostat_eta: its target entropy and learning rate.
        chat_template_kwargs: further variables for the chat template.
    """

    repeat_last_n: Annotated[int, Meta(ge=-1)] = 64
    typical_p: Probability = 1.0
    top_n_sigma: float = -1.0
    xtc_probability: Probability = 0.0
    xtc_threshold: Probability = 0.1
    mirostat: Literal[0, 1, 2] = 0
    mirostat_tau: NonNegative = 5.0
    mirostat_eta: NonNegative = 0.1
    chat_template_kwargs: dict[str, Any] = {}

    @classmethod
    def parse(cls, extra: dict[str, Any]) -> LlamaSampling:
        """Raises ParameterError for a name or a value that llama.cpp does not take."""
        return parse_extra(cls, extra, where=_WHERE)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides how an answer is drawn, defaults filled in."""

    params: SamplingParams
    extra: LlamaSampling
    temperature: float
    seed: int

    @classmethod
    def of(
        cls, params: SamplingParams, extra: LlamaSampling, *, chat: bool, seed: int | None
    ) -> Recipe:
        """Fill in defaults; `seed` is the deployment's.

        Raises:
            ParameterError: parameters that contradict each other.
        """
        default = CHAT_TEMPERATURE if chat else COMPLETION_TEMPERATURE
        chosen = seed if params.seed is None else params.seed
        check_sampling(params, where=_WHERE)
        _check_finite(params)
        _check_finite(extra)
        return cls(
            params=params,
            extra=extra,
            temperature=default if params.temperature is None else params.temperature,
            seed=(random.randrange(_SEEDS) if chosen is None else chosen) % _SEEDS,
        )

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


class Sampler:
    """The samplers of one answer. Made anywhere, then used by the engine's thread only.

    Args:
        model: whose tokens are drawn.
        recipe: how.
        prompt: its tokens count for the repetition penalty.
        context_size: longest window of a penalty.
        matcher: the recipe's JSON schema at the beginning of the answer.

    Raises:
        ParameterError: a bad grammar or a token id that the model has not.
    """

    def __init__(
        self,
        model: Model,
        recipe: Recipe,
        prompt: list[int],
        context_size: int,
        matcher: SchemaMatcher | None = None,
    ) -> None:
        self._vocab_size = model.vocab_size
        self._matcher = matcher
        self._grammar: Any = None
        self._chain: Any = None
        biases = _biases(model, recipe.params)
        self._banned = np.array([t for t, bias in biases.items() if bias == -math.inf], np.int32)
        if recipe.params.grammar is not None:
            self._grammar = grammar_sampler(model.vocab, recipe.params.grammar)
        parts = [
            *_bias_sampler(model, biases),
            *_penalties(model, recipe, prompt, context_size),
        ]
        self._argmax = recipe.greedy and not parts and self._grammar is None
        if self._argmax:  # over all tokens, or over those that the schema allows
            return
        self._chain = llama_cpp.llama_sampler_chain_init(
            llama_cpp.llama_sampler_chain_default_params()
        )
        for part in [*parts, *_choice(model, recipe)]:
            llama_cpp.llama_sampler_chain_add(self._chain, part)

    def sample(self, context: Any, index: int) -> int:
        """The next token, from the logits of batch position `index`.

        Raises:
            BackendError: the schema or grammar allows no token of the model any more.
            ParameterError: the schema needs more work per token than an answer may cost.
        """
        if self._matcher is not None:
            return self._matching(self._matcher, logits(context, index, self._vocab_size))
        if self._argmax:
            return int(logits(context, index, self._vocab_size).argmax())
        if self._grammar is None:
            return int(llama_cpp.llama_sampler_sample(self._chain, context, index))
        return self._constrained(logits(context, index, self._vocab_size))

    @property
    def complete(self) -> bool:
        """Whether the answer is a whole value that nothing can follow."""
        return self._matcher is not None and self._matcher.complete

    def _matching(self, matcher: SchemaMatcher, row: Logits) -> int:
        allowed = matcher.allowed()
        allowed[self._banned] = False
        best = int(row.argmax()) if self._argmax else None
        if best is not None and allowed[best]:
            token = best
        else:
            token = self._draw(row, np.flatnonzero(allowed))
        if self._chain is not None:
            llama_cpp.llama_sampler_accept(self._chain, token)
        matcher.accept(token)
        return token

    def _draw(self, row: Logits, ids: TokenIds) -> int:
        if not ids.size:
            raise BackendError(_NO_TOKEN)
        if ids.size == 1:
            return int(ids[0])
        among = row.take(ids)
        if self._argmax:
            return int(ids[among.argmax()])
        return _Candidates(among, ids).draw(self._chain)

    def _constrained(self, row: Logits) -> int:
        token = _Candidates(row).draw(self._chain)
        if not self._allows(token):
            candidates = _Candidates(row)
            candidates.apply(self._grammar)
            token = candidates.draw(self._chain)
            # llama.cpp aborts the process when a grammar is told to accept what it refuses.
            if not self._allows(token):
                raise BackendError(_NO_TOKEN)
        llama_cpp.llama_sampler_accept(self._chain, token)
        llama_cpp.llama_sampler_accept(self._grammar, token)
        return token

    def _allows(self, token: int) -> bool:
        single = _Candidates(np.zeros(1, np.float32), np.array([token]))
        single.apply(self._grammar)
        return single.allowed()

    def close(self) -> None:
        """Free the samplers."""
        for sampler in (self._chain, self._grammar):
            if sampler is not None:
                llama_cpp.llama_sampler_free(sampler)
        self._chain = self._grammar = self._matcher = None


class _Candidates:
    """llama.cpp's `llama_token_data_array` over logits and their tokens, by default all."""

    def __init__(self, row: Logits, ids: TokenIds | None = None) -> None:
        self._data = np.empty(len(row), _CANDIDATE)
        self._data["id"] = np.arange(len(row), dtype=np.int32) if ids is None else ids
        self._data["logit"] = row
        self._data["p"] = 0
        self._array = llama_cpp.llama_token_data_array(
            data=self._data.ctypes.data_as(llama_cpp.llama_token_data_p),
            size=len(row),
            selected=-1,
            sorted=False,
        )

    def apply(self, sampler: Any) -> None:
        llama_cpp.llama_sampler_apply(sampler, ctypes.byref(self._array))

    def draw(self, chain: Any) -> int:
        self.apply(chain)
        return int(self._array.data[self._array.selected].id)

    def allowed(self) -> bool:
        return not np.isneginf(self._data["logit"][0])


def logits(context: Any, index: int, vocab_size: int) -> Logits:
    """llama.cpp's own row of raw logits for batch position `index`; valid until the next decode."""
    row = llama_cpp.llama_get_logits_ith(context, index)
    if not row:
        raise BackendError(f"llama.cpp has no logits for batch position {index}")
    memory = (ctypes.c_float * vocab_size).from_address(ctypes.addressof(row.contents))
    return np.frombuffer(memoryview(memory), dtype=np.float32)


def token_logprob(model: Model, row: Logits, token: int, alternatives: int) -> TokenLogprob:
    """Natural log-probability of `token`, and of the best tokens, over the raw distribution."""
    best = float(row.max())
    total = best + math.log(float(np.exp(row - best, dtype=np.float64).sum()))

    def entry(candidate: int) -> tuple[str, int, float]:
        return model.token_text(candidate), candidate, float(row[candidate]) - total

    top: list[tuple[str, int, float]] = []
    if alternatives:
        nearest = np.argpartition(row, -alternatives)[-alternatives:]
        ranked = nearest[np.argsort(-row[nearest], kind="stable")]
        top = [entry(int(candidate)) for candidate in ranked]
    text, _, logprob = entry(token)
    return TokenLogprob(token=text, id=token, logprob=logprob, top=top)


def _check_finite(values: Struct) -> None:
    """llama.cpp aborts the process on some numbers that are none."""
    for name in values.__struct_fields__:
        value = getattr(values, name)
        if isinstance(value, float) and not math.isfinite(value):
            raise ParameterError.invalid(name, f"a finite number (got {value})", where=_WHERE)


def _biases(model: Model, params: SamplingParams) -> dict[int, float]:
    biases = dict(params.logit_bias or {})
    for token, bias in biases.items():
        if not 0 <= token < model.vocab_size:
            raise ParameterError.invalid(
                "logit_bias",
                f"token id {token} is not one of the model's 0 to {model.vocab_size - 1}",
                where=_WHERE,
            )
        if math.isnan(bias) or bias == math.inf:
            raise ParameterError.invalid("logit_bias", f"{bias} is no bias", where=_WHERE)
    if params.ignore_eos:
        biases.update(dict.fromkeys(model.end_tokens, -math.inf))
    return biases


def _bias_sampler(model: Model, biases: dict[int, float]) -> list[Any]:
    if not biases:
        return []
    array = (llama_cpp.llama_logit_bias * len(biases))()
    for slot, (token, bias) in zip(array, biases.items(), strict=True):
        slot.token, slot.bias = token, bias
    return [llama_cpp.llama_sampler_init_logit_bias(model.vocab_size, len(biases), array)]


def _penalties(model: Model, recipe: Recipe, prompt: list[int], context_size: int) -> list[Any]:
    params, window = recipe.params, recipe.extra.repeat_last_n
    made = []
    if params.repetition_penalty not in (None, 1.0) and window != 0:
        window = context_size if window < 0 else window
        repeat = llama_cpp.llama_sampler_init_penalties(
            model.vocab_size, window, params.repetition_penalty, 0.0, 0.0
        )
        for token in prompt[-window:]:
            llama_cpp.llama_sampler_accept(repeat, token)
        made.append(repeat)
    if params.presence_penalty or params.frequency_penalty:
        made.append(
            llama_cpp.llama_sampler_init_penalties(
                model.vocab_size,
                context_size,
                1.0,
                params.frequency_penalty or 0.0,
                params.presence_penalty or 0.0,
            )
        )
    return made


def _choice(model: Model, recipe: Recipe) -> list[Any]:
    """The samplers that end in one token."""
    params, extra, seed = recipe.params, recipe.extra, recipe.seed
    if recipe.greedy:
        return [llama_cpp.llama_sampler_init_greedy()]
    temperature = llama_cpp.llama_sampler_init_temp(recipe.temperature)
    tau, eta = extra.mirostat_tau, extra.mirostat_eta
    if extra.mirostat == 1:
        return [
            temperature,
            llama_cpp.llama_sampler_init_mirostat(model.vocab_size, seed, tau, eta, 100),
        ]
    if extra.mirostat == 2:
        return [temperature, llama_cpp.llama_sampler_init_mirostat_v2(seed, tau, eta)]
    made = []
    if extra.top_n_sigma >= 0:
        made.append(llama_cpp.llama_sampler_init_top_n_sigma(extra.top_n_sigma))
    top_k = TOP_K if params.top_k is None else params.top_k
    top_p = TOP_P if params.top_p is None else params.top_p
    min_p = MIN_P if params.min_p is None else params.min_p
    made.append(llama_cpp.llama_sampler_init_top_k(max(0, top_k)))
    if extra.typical_p < 1:
        made.append(llama_cpp.llama_sampler_init_typical(extra.typical_p, 1))
    made.append(llama_cpp.llama_sampler_init_top_p(top_p, 1))
    made.append(llama_cpp.llama_sampler_init_min_p(min_p, 1))
    if extra.xtc_probability > 0:
        made.append(
            llama_cpp.llama_sampler_init_xtc(extra.xtc_probability, extra.xtc_threshold, 1, seed)
        )
    return [*made, temperature, llama_cpp.llama_sampler_init_dist(seed)]
