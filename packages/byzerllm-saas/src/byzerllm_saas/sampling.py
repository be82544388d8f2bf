"""What a request says about how its answer is made."""

from __future__ import annotations

from typing import Any

from byzerllm.requests import SamplingParams

# What a prompt has to do with: a template brings them, and its stop texts say the same.
_IGNORED = frozenset({"extra", "stop_token_ids"})
_DEFAULTS = {
    name: getattr(SamplingParams(), name)
    for name in SamplingParams.__struct_fields__
    if name not in _IGNORED
}


def given(sampling: SamplingParams) -> list[tuple[str, Any]]:
    """The generation parameters that a request sets, by the project's names."""
    return [
        (name, value)
        for name, default in _DEFAULTS.items()
        if (value := getattr(sampling, name)) != default
    ]
