"""Which models are served, under which names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from byzerllm.errors import ModelNotFoundError


class Catalog:
    """Names that callers use.

    Args:
        served_names: what callers say, and the deployment that it means. Where it is empty, every
            deployment is served under its own name.
    """

    def __init__(self, served_names: Mapping[str, str]) -> None:
        self._served = dict(served_names)

    def deployment(self, name: str) -> str:
        """The deployment behind a name. Without served names it may not exist: the runtime says
        so, and which there are.

        Raises:
            ModelNotFoundError: it is not served.
        """
        if not self._served:
            return name
        if name not in self._served:
            raise ModelNotFoundError.unknown(name, self._served)
        return self._served[name]

    def names(self, deployed: Iterable[str]) -> dict[str, str]:
        """Every name that is served now, and its deployment."""
        existing = set(deployed)
        if not self._served:
            return {name: name for name in sorted(existing)}
        return {name: model for name, model in self._served.items() if model in existing}
