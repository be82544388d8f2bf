"""Stopping transformers' `generate` between two tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers


class Watch(transformers.StoppingCriteria):  # type: ignore[misc]
    """Looks between tokens whether anybody waits for the answer.

    Args:
        check: raises where nobody does. A stop would be no way out: `generate` of Whisper takes it
            for the end of a window and goes on with the next.
    """

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check

    def __call__(self, input_ids: torch.Tensor, scores: Any, **ignored: Any) -> torch.Tensor:
        self._check()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
