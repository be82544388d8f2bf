"""What embedding and reranking share: a model of sentence-transformers that computes texts of all
requests together."""

from __future__ import annotations

import asyncio
import copy
import itertools
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

from byzerllm.errors import ModelLoadError, ModelSourceError, ParameterError
from byzerllm_backend_transformers.batching import Batches
from byzerllm_backend_transformers.tasks import Loading, Task

T = TypeVar("T")

# A CPU's time grows with what is padded; a GPU's with the number of batches.
_NEAR_ON_A_CPU = 0.8
_LONGEST_LIMIT = 1_000_000


class Encoder(Task):
    """A model that makes something of each text in one pass: a subclass says what, in `rows`.

    Args:
        model: a `SentenceTransformer` or a `CrossEncoder`.
    """

    def __init__(self, loading: Loading, model: Any) -> None:
        super().__init__(loading)
        self._model = model
        self.max_length = _limit(loading, model)
        # Tokenizers are changed by their use and must not be used by two threads.
        self._tokenizer = copy.deepcopy(getattr(model, "tokenizer", None))
        _check_vocabulary(loading, self._tokenizer)
        self._tokenizing = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")
        on_cpu = torch.device(model.device).type == "cpu"
        self._batches: Batches[Any, Any] = Batches(
            self._thread,
            self._rows,
            size=self.parameters.batch_size,
            near=_NEAR_ON_A_CPU if on_cpu else 0.0,
        )

    def rows(self, kind: Any, texts: list[Any]) -> list[Any]:
        """One row per text; blocking, on the model's thread."""
        raise NotImplementedError

    def stats(self) -> dict[str, int]:
        """Requests and texts that wait for the model."""
        return self._batches.stats()

    async def tokenize(self, text: str) -> list[int]:
        """Token ids of `text`, none added, none cut."""
        self.check_open()
        if self._tokenizer is None:
            raise self._lacks("tokenize")
        check_texts([text], "text", empty=True)
        return await asyncio.get_running_loop().run_in_executor(
            self._tokenizing, self._token_ids, text
        )

    async def close(self) -> None:
        """Fail what waits, free the model; repeatable."""
        self._batches.close()
        self._tokenizing.shutdown(wait=False, cancel_futures=True)
        await super().close()

    def free(self) -> None:
        self._model = None

    def pass_through(self, features: Any, **options: Any) -> Any:
        """What the model's modules make of tokenized texts."""
        features = {
            name: value.to(self._model.device) if isinstance(value, torch.Tensor) else value
            for name, value in features.items()
        }
        return self._model(features, **options)

    def _rows(self, kind: Hashable, texts: Sequence[Any]) -> list[Any]:
        try:
            with torch.inference_mode():
                return self.rows(kind, list(texts))
        except Exception:
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
            raise

    def _token_ids(self, text: str) -> list[int]:
        assert self._tokenizer is not None
        ids: list[int] = self._tokenizer(
            text, add_special_tokens=False, truncation=False, verbose=False
        )["input_ids"]
        return ids


def check_texts(texts: Any, what: str, *, empty: bool = False) -> None:
    """Refuse what is no list of texts.

    Args:
        what: how errors name one of them.
        empty: whether a text may be empty.

    Raises:
        ParameterError: naming the first that is wrong.
    """
    for position, text in enumerate(texts):
        name = f"{what} {position}" if len(texts) > 1 else f"the {what}"
        if not isinstance(text, str):
            raise ParameterError(f"{name} is a {type(text).__name__}; it must be text")
        if not text.strip() and not empty:
            raise ParameterError(f"{name} is empty; there is nothing to compute")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ParameterError(
                f"{name} holds half of a character ({text[error.start]!r} at {error.start}), "
                "which is no text"
            ) from None


def token_counts(features: Any, count: int) -> list[int]:
    """Tokens of each text that the model looks at; zeros where its tokenizer does not say."""
    mask = features.get("attention_mask")
    if mask is not None:
        sums: list[int] = mask.sum(dim=1).tolist()
        return sums
    offsets = features.get("offsets")  # Where each text begins in one long row of ids.
    if offsets is not None:
        begins = [*offsets.tolist(), len(features["input_ids"])]
        return [after - begin for begin, after in itertools.pairwise(begins)]
    ends = features.get("cu_seq_lens_q")
    if ends is not None:
        both = ends.tolist()
        return [after - begin for begin, after in itertools.pairwise(both)]
    return [0] * count


def _check_vocabulary(loading: Loading, tokenizer: Any) -> None:
    """Refuse a tokenizer that transformers made up because its files are missing."""
    special = getattr(tokenizer, "all_special_tokens", None)
    if special is not None and len(tokenizer) <= len(special):
        raise ModelSourceError(
            f"{loading.folder.path} has no tokenizer (tokenizer.json or its vocabulary); "
            "fetch the whole model"
        )


def _limit(loading: Loading, model: Any) -> int | None:
    """Set and return the tokens of a text that the model looks at.

    Raises:
        ModelLoadError: more were asked for than it has positions.
    """
    positions = _positions(model)
    own = model.max_seq_length
    own = own if isinstance(own, int) and own < _LONGEST_LIMIT else None
    given = loading.parameters.max_seq_length
    if given is not None and positions is not None and given > positions:
        raise ModelLoadError(
            f"max_seq_length {given:,} is more than the {positions:,} tokens that "
            f"{loading.folder.path.name} was made for"
        )
    limit = given or own or positions
    if positions is not None and limit is not None:
        limit = min(limit, positions)
    if limit is not None and limit != own:
        model.max_seq_length = limit
    return limit


def _positions(model: Any) -> int | None:
    """How many positions the model can tell apart; None for any number."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            # RoBERTa's begin after that of padding.
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            return int(module.num_embeddings) - first
    config = getattr(model, "config", None)
    positions = getattr(config, "max_position_embeddings", None)
    return positions if isinstance(positions, int) and positions > 0 else None
