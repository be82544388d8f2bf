"""How the tokens of several answers go through one model: together where its cache allows it.

`BatchedRows` are for models whose memory of the past is keys and values per position. Others (state
space models, linear attention, code from the model's folder) keep a memory of their own per answer
and take one step after the other in `SeparateRows`, by the protocol of transformers' `generate`.
"""

from __future__ import annotations

import abc
import inspect
from typing import Any, ClassVar

import torch
from transformers.cache_utils import DynamicCache

from byzerllm_backend_transformers.chat.cache import BatchCache

_LAYERS = frozenset({"full_attention", "sliding_attention"})
# Their rotary positions depend on the longest row of a batch.
_BATCH_DEPENDENT_ROPE = frozenset({"dynamic", "longrope"})


class Rows(abc.ABC):
    """The answers that grow. Used by one thread, under `torch.inference_mode`.

    Class attributes:
        whole_prompts: a prompt cannot be read in parts.
    """

    whole_prompts: ClassVar[bool] = False

    @abc.abstractmethod
    def begin(self) -> Any:
        """What a new prompt is read into."""

    @abc.abstractmethod
    def read(self, prompt: Any, tokens: list[int]) -> torch.Tensor:
        """Read the next tokens of a prompt; the logits after the last one, in shape (1, V)."""

    @abc.abstractmethod
    def join(self, prompt: Any) -> None:
        """Add a prompt that was read to its end as the last row."""

    @abc.abstractmethod
    def leave(self, row: int) -> None:
        """Take a row out; the last one takes its number."""

    @abc.abstractmethod
    def step(self, tokens: list[int]) -> torch.Tensor:
        """Add a token to every row; the logits after them, in shape (rows, V)."""


def rows_of(model: Any, device: torch.device) -> Rows:
    """The rows that fit a model."""
    return BatchedRows(model, device) if _can_batch(model) else SeparateRows(model, device)


def _can_batch(model: Any) -> bool:
    config = model.config.get_text_config(decoder=True)
    layers = getattr(config, "layer_types", None) or ["full_attention"]
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = {rope.get("rope_type")} | {
        one.get("rope_type") for one in rope.values() if isinstance(one, dict)
    }
    takes = inspect.signature(model.forward).parameters
    return (
        type(model).__module__.startswith("transformers.")
        and not getattr(model, "_is_stateful", False)
        and set(layers) <= _LAYERS
        and not kinds & _BATCH_DEPENDENT_ROPE
        and {"past_key_values", "attention_mask"} <= takes.keys()
    )


class BatchedRows(Rows):
    """All rows in one forward pass."""

    def __init__(self, model: Any, device: torch.device) -> None:
        takes = inspect.signature(model.forward).parameters
        self._model = model
        self._device = device
        self._cache = BatchCache()
        self._positions = "position_ids" in takes
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}

    def begin(self) -> DynamicCache:
        # Without a config all layers keep all positions, which rows of one batch need.
        return DynamicCache()

    def read(self, prompt: DynamicCache, tokens: list[int]) -> torch.Tensor:
        ids = torch.tensor([tokens], device=self._device)
        seen = prompt.get_seq_length()
        more = dict(self._last_only)
        if self._positions:
            end = seen + len(tokens)
            more["position_ids"] = torch.arange(seen, end, device=self._device)[None]
        output = self._model(input_ids=ids, past_key_values=prompt, use_cache=True, **more)
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def join(self, prompt: DynamicCache) -> None:
        self._cache.join(prompt)

    def leave(self, row: int) -> None:
        self._cache.leave(row)

    def step(self, tokens: list[int]) -> torch.Tensor:
        cache = self._cache
        cache.make_room()
        more: dict[str, Any] = {}
        if cache.ragged:
            more["attention_mask"] = cache.mask().to(self._device)
        if self._positions:
            positions = [[cache.end - start] for start in cache.starts]
            more["position_ids"] = torch.tensor(positions, device=self._device)
        ids = torch.tensor(tokens, device=self._device)[:, None]
        output = self._model(input_ids=ids, past_key_values=cache, use_cache=True, **more)
        cache.grow()
        logits: torch.Tensor = output.logits[:, -1]
        return logits


class SeparateRows(Rows):
    """A forward pass per row, each with the model's own memory."""

    whole_prompts = True

    def __init__(self, model: Any, device: torch.device) -> None:
        self._model = model
        self._device = device
        self._rows: list[dict[str, Any]] = []

    def begin(self) -> dict[str, Any]:
        return {"ids": torch.empty((1, 0), dtype=torch.long, device=self._device), "more": {}}

    def read(self, prompt: dict[str, Any], tokens: list[int]) -> torch.Tensor:
        fresh = torch.tensor([tokens], device=self._device)
        first = not prompt["more"]
        prompt["ids"] = ids = torch.cat([prompt["ids"], fresh], dim=1)
        if first:
            prompt["more"] = {"use_cache": True}
        # What the model has seen is in its memory; the mask covers all.
        prompt["more"]["attention_mask"] = torch.ones_like(ids)
        inputs = self._model.prepare_inputs_for_generation(
            ids, is_first_iteration=first, next_sequence_length=len(tokens), **prompt["more"]
        )
        output = self._model(**inputs, return_dict=True)
        prompt["more"] = self._model._update_model_kwargs_for_generation(output, prompt["more"])
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def join(self, prompt: dict[str, Any]) -> None:
        self._rows.append(prompt)

    def leave(self, row: int) -> None:
        last = self._rows.pop()
        if row < len(self._rows):
            self._rows[row] = last

    def step(self, tokens: list[int]) -> torch.Tensor:
        logits = [self.read(row, [token]) for row, token in zip(self._rows, tokens, strict=True)]
        return torch.cat(logits)
