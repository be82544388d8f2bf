"""The README's table of vendors says what is tested: it is made of the test classes' own words.

Run as a script, with this folder in PYTHONPATH, the module writes the table into the README.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from byzerllm.plugins import get_plugins

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
BEGIN, END = "<!-- vendors: made by tests/test_table.py -->", "<!-- end of vendors -->"
COLUMNS = {
    "stream": "stream",
    "tools": "tools",
    "streamed_tools": "tools in streams",
    "json_schema": "JSON schema",
    "images": "images",
    "reasoning": "reasoning",
    "embeddings": "vectors",
    "drawing": "drawing",
    "speech": "speech",
    "transcription": "transcription",
    "usage": "usage",
    "check": "check at deploy",
}


def cells_by_provider() -> dict[str, tuple[frozenset[str], int]]:
    """By provider: the cells that its test classes have, and how many kinds of errors."""
    found: dict[str, tuple[frozenset[str], int]] = {}
    for path in sorted((HERE / "providers").glob("test_*.py")):
        module = importlib.import_module(f"providers.{path.stem}")
        for item in vars(module).values():
            if not _has_cells(item) or item.__module__ != module.__name__:
                continue
            cells, errors = found.get(item.provider, (frozenset(), 0))
            kinds = len(item.vendor_class.kinds)
            found[item.provider] = (cells | item.has, max(errors, kinds))
    return found


def _has_cells(item: Any) -> bool:
    return isinstance(item, type) and bool(getattr(item, "provider", "")) and hasattr(item, "has")


def table() -> str:
    heads = ["vendor", "chat", *COLUMNS.values(), "kinds of errors"]
    rows = [heads, ["---"] * len(heads)]
    for provider, (cells, errors) in sorted(cells_by_provider().items()):
        does = get_plugins().providers.get(provider).capabilities
        marks = ["✓" if "chat" in does else ""]
        marks += ["✓" if cell in cells else "" for cell in COLUMNS]
        rows.append([f"`{provider}`", *marks, str(errors)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def test_readme_has_the_table() -> None:
    shown = README.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].strip()
    assert shown == table(), "run: PYTHONPATH=tests python tests/test_table.py"


def test_every_provider_is_tested() -> None:
    ours = {
        spec.name
        for spec in get_plugins().providers.values()
        if spec.path.startswith("byzerllm_saas.")
    }
    assert ours <= cells_by_provider().keys()


def test_what_is_declared_is_tested() -> None:
    """A capability in the spec has a test of its own."""
    cells = {
        "embedding": "embeddings",
        "image": "drawing",
        "speech": "speech",
        "tools": "tools",
        "transcription": "transcription",
        "vision": "images",
        "constrained": "json_schema",
    }
    for provider, (has, _) in cells_by_provider().items():
        for capability in get_plugins().providers.get(provider).capabilities & cells.keys():
            assert cells[capability] in has, f"{provider}: {capability}"


if __name__ == "__main__":
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    README.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}", encoding="utf-8")
