"""Models that a module loads once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from byzerllm.testing import Loaded
from byzerllm_backend_transformers import TRANSFORMERS


@pytest.fixture(scope="module")
def load() -> Iterator[Callable[..., Loaded]]:
    """Loads a folder with given parameters; everything is closed after the module.

    One thread where nothing else is said: two beside another process wait for each other.
    """
    loaded: list[Loaded] = []

    def make(path: Path, **options: Any) -> Loaded:
        loaded.append(Loaded(TRANSFORMERS, path, **{"threads": 1, **options}))
        return loaded[-1]

    yield make
    for one in loaded:
        one.close()
