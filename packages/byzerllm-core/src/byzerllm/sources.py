"""Model sources: what turns a `--model_path` into files on the worker's node."""

from __future__ import annotations

import abc
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar


class ModelSource(abc.ABC):
    """Fetches models that a `scheme:reference` names.

    Class attributes:
        scheme: what stands before the colon.
        description: one line for tables.
    """

    scheme: ClassVar[str]
    description: ClassVar[str] = ""

    @abc.abstractmethod
    def fetch(self, reference: str, report: Callable[[str], None]) -> Path:
        """The local file or folder, downloaded when it must be. Blocking; runs in a thread.

        `report` takes short texts such as `downloading 40 %`.
        """

    def format_of(self, reference: str) -> str:
        """`gguf` when the reference shows that without a download, else ''."""
        return "gguf" if reference.lower().endswith(".gguf") else ""
