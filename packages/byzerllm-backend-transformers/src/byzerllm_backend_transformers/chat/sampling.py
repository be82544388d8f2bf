"""Picks the next token of one answer, with transformers' own logits processors.

The order is that of `generate`: what the schema or grammar allows, logit bias and penalties,
temperature, then the truncating samplers, then the draw. A request that says nothing gets what the
folder's `generation_config.json` says, which is greedy unless it sets `do_sample`.
"""

from __future__ import annotations

import random
from typing import Annotated, Any, Protocol

import numpy.typing as npt
import torch
import transformers
from msgspec import Meta, Struct

from byzerllm.decoding.sampling import check_sampling, parse_extra
from byzerllm.errors import ParameterError
from byzerllm.requests import Probability, SamplingParams, TokenLogprob

_WHERE = "generation on backend 'transformers'"
_SEEDS = 2**63


class TransformersSampling(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Generation parameters that only transformers has (`SamplingParams.extra`).

    Attributes:
        typical_p: locally typical sampling; 1 is off.
        top_h: entropy-bounded sampling; 0 is off.
        epsilon_cutoff, eta_cutoff: drop tokens below a fixed, or an entropy-dependent, probability.
        no_repeat_ngram_size: no run of so many tokens comes twice; 0 is off.
        chat_template_kwargs: further variables for the chat template.
    """

    typical_p: Probability | None = None
    top_h: Probability | None = None
    epsilon_cutoff: Probability | None = None
    eta_cutoff: Probability | None = None
    no_repeat_ngram_size: Annotated[int, Meta(ge=0)] | None = None
    chat_template_kwargs: dict[str, Any] = {}

    @classmethod
    def parse(cls, extra: dict[str, Any]) -> TransformersSampling:
        """Raises ParameterError for a name or a value that chat on transformers does not take."""
        return parse_extra(cls, extra, where=_WHERE)


class Mask(Protocol):
    """Which tokens may follow; `byzerllm.decoding.json_schema.SchemaMatcher` is one."""

    @property
    def complete(self) -> bool: ...

    def allowed(self) -> npt.NDArray[Any]: ...

    def accept(self, token: int) -> None: ...


class Recipe:
    """Everything that decides how an answer is drawn, the model's defaults filled in.

    Args:
        params: what the request says.
        extra: and what of it only transformers knows.
        defaults: the folder's generation config.
        seed: the deployment's, for requests that bring none.

    Attributes:
        greedy: the best token is always taken.

    Raises:
        ParameterError: parameters that contradict each other, or that transformers cannot do.
    """

    def __init__(
        self,
        params: SamplingParams,
        extra: TransformersSampling,
        defaults: transformers.GenerationConfig,
        seed: int | None,
    ) -> None:
        check_sampling(params, where=_WHERE)
        self.params = params
        self._extra = extra
        self._defaults = defaults
        self.temperature = self._temperature()
        self.greedy = self.temperature == 0 or params.top_k == 1
        chosen = seed if params.seed is None else params.seed
        self.seed = (random.randrange(_SEEDS) if chosen is None else chosen) % _SEEDS

    def processors(self, prompt_length: int, device: torch.device) -> list[Any]:
        """The chain, in its order."""
        params = self.params
        chain: list[Any] = []
        if params.logit_bias:
            chain.append(_Bias(params.logit_bias, device))
        penalty = self._value("repetition_penalty")
        if penalty not in (None, 1.0):
            chain.append(transformers.RepetitionPenaltyLogitsProcessor(penalty))
        if params.presence_penalty or params.frequency_penalty:
            chain.append(
                _CountPenalty(
                    prompt_length, params.presence_penalty or 0.0, params.frequency_penalty or 0.0
                )
            )
        if ngram := self._value("no_repeat_ngram_size"):
            chain.append(transformers.NoRepeatNGramLogitsProcessor(ngram))
        return chain if self.greedy else [*chain, *self._warpers(device)]

    def _warpers(self, device: torch.device) -> list[Any]:
        chain: list[Any] = []
        if self.temperature != 1:
            chain.append(transformers.TemperatureLogitsWarper(self.temperature))
        if 0 < (top_h := self._value("top_h") or 0.0) < 1:
            chain.append(transformers.TopHLogitsWarper(top_h))
        if (top_k := self._value("top_k") or 0) > 0:
            chain.append(transformers.TopKLogitsWarper(top_k))
        if (top_p := self._value("top_p")) is not None and top_p < 1:
            chain.append(transformers.TopPLogitsWarper(top_p))
        if min_p := self._value("min_p"):
            chain.append(transformers.MinPLogitsWarper(min_p))
        if 0 < (typical := self._value("typical_p") or 1.0) < 1:
            chain.append(transformers.TypicalLogitsWarper(typical))
        if 0 < (epsilon := self._value("epsilon_cutoff") or 0.0) < 1:
            chain.append(transformers.EpsilonLogitsWarper(epsilon))
        if 0 < (eta := self._value("eta_cutoff") or 0.0) < 1:
            chain.append(transformers.EtaLogitsWarper(eta, device=str(device)))
        return chain

    def _temperature(self) -> float:
        params = self.params
        if params.temperature is not None:
            return params.temperature
        given = (params.top_p, params.top_k, params.min_p, self._extra.typical_p)
        wanted = any(value is not None for value in given)
        if not (wanted or self._defaults.do_sample):
            return 0.0
        default = self._defaults.temperature
        return 1.0 if default is None else float(default)

    def _value(self, name: str) -> Any:
        """What the request says, else the folder."""
        for source in (self.params, self._extra):
            value = getattr(source, name, None)
            if value is not None:
                return value
        return getattr(self._defaults, name, None)


class Sampler:
    """Draws the tokens of one answer. Made anywhere, then used by the engine's thread only."""

    def __init__(
        self, recipe: Recipe, prompt_length: int, device: torch.device, mask: Mask | None = None
    ) -> None:
        self._recipe = recipe
        self._chain = recipe.processors(prompt_length, device)
        self._mask = mask
        self._device = device
        self._generator = torch.Generator(device).manual_seed(recipe.seed)

    @property
    def takes_the_best(self) -> bool:
        """Nothing stands between the logits and the choice of their largest."""
        return self._recipe.greedy and not self._chain and self._mask is None

    @property
    def complete(self) -> bool:
        """Whether nothing but an end token may follow."""
        return self._mask is not None and self._mask.complete

    def draw(self, logits: torch.Tensor, tokens: list[int]) -> int:
        """The next token.

        Args:
            logits: in shape (V,); not changed.
            tokens: prompt and answer so far.

        Raises:
            ParameterError: the schema costs more per token than an answer may.
        """
        scores = logits.float()[None]
        if self._mask is not None:
            allowed = torch.from_numpy(self._mask.allowed()).to(scores.device)
            scores = scores.masked_fill(~allowed[: scores.shape[1]], -torch.inf)
        if self._chain:
            ids = torch.tensor([tokens], device=scores.device)
            for process in self._chain:
                scores = process(ids, scores)
        token = self._chosen(scores[0])
        if self._mask is not None:
            self._mask.accept(token)
        return token

    def _chosen(self, scores: torch.Tensor) -> int:
        if self._recipe.greedy:
            return int(scores.argmax())
        chances = scores.softmax(-1)
        return int(torch.multinomial(chances, 1, generator=self._generator))


class _Bias:
    """OpenAI's `logit_bias`."""

    def __init__(self, bias: dict[int, float], device: torch.device) -> None:
        self._ids = torch.tensor([int(token) for token in bias], device=device)
        self._values = torch.tensor([float(value) for value in bias.values()], device=device)

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if int(self._ids.max()) >= scores.shape[1] or int(self._ids.min()) < 0:
            reason = f"token ids are 0 to {scores.shape[1] - 1}"
            raise ParameterError.invalid("logit_bias", reason, where=_WHERE)
        return scores.index_add(1, self._ids, self._values[None])


class _CountPenalty:
    """OpenAI's presence and frequency penalties, over the answer alone:
    https://platform.openai.com/docs/api-reference/chat/create."""

    def __init__(self, prompt_length: int, presence: float, frequency: float) -> None:
        self._begin = prompt_length
        self._presence = presence
        self._frequency = frequency

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        tokens, counts = ids[0, self._begin :].unique(return_counts=True)
        penalties = self._presence + self._frequency * counts
        return scores.index_add(1, tokens, -penalties[None].to(scores.dtype))


def token_logprob(
    logits: torch.Tensor, token: int, alternatives: int, text_of: Any
) -> TokenLogprob:
    """What the model itself thought of a token, before penalties and truncation.

    Args:
        text_of: the text of one token id.
    """
    row = logits.float().log_softmax(-1)
    best = row.topk(min(alternatives, row.shape[0])) if alternatives else None
    top = [] if best is None else zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return TokenLogprob(
        token=text_of(token),
        id=token,
        logprob=float(row[token]),
        top=[(text_of(one), one, value) for one, value in top],
    )
