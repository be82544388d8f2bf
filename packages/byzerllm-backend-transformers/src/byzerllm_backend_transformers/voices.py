"""The voices that a folder of Bark brings: the tokens of something that each has said before."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from byzerllm.errors import ModelSourceError, ParameterError, did_you_mean
from byzerllm_backend_transformers.folder import read_json

Voice = Mapping[str, np.ndarray[Any, Any]]
"""`semantic_prompt` of shape (n,), `coarse_prompt` (2, n) and `fine_prompt` (8, n)."""

_TABLE = "speaker_embeddings_path.json"
_FOLDER = "speaker_embeddings"
_RANKS = {"semantic_prompt": 1, "coarse_prompt": 2, "fine_prompt": 2}
_DEFAULTS = ("", "default")
_SHOWN = 20


class Voices:
    """Names and files of the voices in a folder: `speaker_embeddings_path.json` as transformers
    writes it, and `*.npz` files as Bark's authors do, in the folder or in `speaker_embeddings`.

    Raises:
        ModelSourceError: the table cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._tables: dict[str, dict[str, str]] = {}
        self._files: dict[str, Path] = {}
        table = folder / _TABLE
        if table.is_file():
            said = read_json(table)
            self._tables = {k: v for k, v in said.items() if isinstance(v, dict)}
        for root in (folder, folder / _FOLDER):
            for file in sorted(root.rglob("*.npz") if root != folder else root.glob("*.npz")):
                self._files.setdefault(file.relative_to(root).with_suffix("").as_posix(), file)

    @property
    def names(self) -> list[str]:
        return sorted({*self._tables, *self._files})

    def read(self, name: str) -> Voice | None:
        """A voice by its name; None, which lets the model choose, for '' and `default`. Blocking.

        Raises:
            ParameterError: no such voice; names some.
            ModelSourceError: its files are missing or none.
        """
        if name in self._tables:
            return self._of_table(name)
        if name in self._files:
            return self._of_file(name)
        if name in _DEFAULTS:
            return None
        known = self.names
        some = ", ".join(["default", *known[:_SHOWN]]) + (", …" if len(known) > _SHOWN else "")
        raise ParameterError.invalid(
            "voice",
            f"unknown to this model: {name!r}{did_you_mean(name, known)}; allowed: {some}",
            where="speech",
        )

    def _of_table(self, name: str) -> Voice:
        parts = {}
        for part in _RANKS:
            file = (self._folder / str(self._tables[name].get(part, ""))).absolute()
            if ".." in file.parts or not file.is_relative_to(self._folder):
                raise ModelSourceError(f"{_TABLE}: {name!r} names a file outside of the folder")
            parts[part] = self._load(file, name)
        return self._checked(parts, name)

    def _of_file(self, name: str) -> Voice:
        loaded = self._load(self._files[name], name)
        return self._checked({part: loaded[part] for part in _RANKS if part in loaded}, name)

    def _load(self, file: Path, name: str) -> Any:
        try:
            with file.open("rb") as stream:
                loaded = np.load(stream, allow_pickle=False)
                return loaded if isinstance(loaded, np.ndarray) else dict(loaded)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ModelSourceError(f"voice {name!r}: {file} cannot be read: {error}") from None

    def _checked(self, parts: dict[str, Any], name: str) -> Voice:
        for part, rank in _RANKS.items():
            found = parts.get(part)
            if not isinstance(found, np.ndarray) or found.ndim != rank or not found.size:
                raise ModelSourceError(f"voice {name!r} lacks a {part} of {rank} dimensions")
            parts[part] = found.astype(np.int64)
        return parts
