"""Import path of `ByzerRetrieval`, which lives in the package byzerllm-retrieval.

Examples import it everywhere, most without using it: the import always works, and without the
package it is the construction that says what to install.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any, NoReturn

from byzerllm.errors import NotInstalledError

__all__ = ["ByzerRetrieval"]  # noqa: F822 - comes from __getattr__


class _Missing:
    def __init__(self, *args: Any, **options: Any) -> None:
        _refuse()


def _refuse() -> NoReturn:
    raise NotInstalledError(
        "ByzerRetrieval is in the package byzerllm-retrieval, which is not installed; "
        "run: pip install 'byzerllm-core[retrieval]'"
    )


def __getattr__(name: str) -> Any:
    if name != "ByzerRetrieval":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if importlib.util.find_spec("byzerllm_retrieval") is None:
        return _Missing
    return importlib.import_module("byzerllm_retrieval").ByzerRetrieval
