"""The sampling parameters of chats and completions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from byzerllm.requests import SamplingParams
from byzerllm_server.schemas.openai import Sampling

_COMMON = (
    "max_tokens",
    "temperature",
    "top_p",
    "stop",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "top_k",
    "min_p",
    "repetition_penalty",
    "stop_token_ids",
    "ignore_eos",
)


def sampling_config(body: Sampling, extra: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that were given, by the client's names; those that only a backend or a vendor
    knows are checked in the worker."""
    config = {name: getattr(body, name) for name in _COMMON if getattr(body, name) is not None}
    if body.logit_bias:
        config["logit_bias"] = body.logit_bias
    if config.get("top_k") == -1:
        del config["top_k"]
    return {**extra, **config}


def sampling_params(config: Mapping[str, Any], index: int = 0) -> SamplingParams:
    """The parameters of one of `n` answers: with a seed each has its own.

    Raises:
        ParameterError: a value that is none.
    """
    if index and config.get("seed") is not None:
        config = {**config, "seed": config["seed"] + index}
    return SamplingParams.parse(config)
