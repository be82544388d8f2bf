"""English and Chinese texts.

The English text is the key; `locales/zh.po` holds the Chinese ones, and a plugin that adds commands
has a catalogue of its own (`add_catalogue`). `BYZERLLM_LANG` (`en`, `zh`)
chooses, else the locale (`LC_ALL`, `LC_MESSAGES`, `LANG`, the first that is set).
"""

from __future__ import annotations

import difflib
import functools
import os
import re
from collections.abc import Iterable
from pathlib import Path

from byzerllm.errors import UsageError

LANGUAGES = ("en", "zh")
VARIABLE = "BYZERLLM_LANG"
CATALOGUE = Path(__file__).parent / "locales" / "zh.po"


_catalogues = [CATALOGUE]


def add_catalogue(path: Path) -> None:
    """Have Chinese texts looked up in a further `.po` file."""
    if path not in _catalogues:
        _catalogues.append(path)
        _chinese.cache_clear()


@functools.cache
def language() -> str:
    """`en` or `zh`.

    Raises:
        UsageError: `BYZERLLM_LANG` names neither.
    """
    chosen = os.environ.get(VARIABLE, "")
    if chosen:
        code = re.split(r"[_.@-]", chosen.strip().lower())[0]
        if code not in LANGUAGES:
            raise UsageError(f"{VARIABLE}={chosen!r} is no language; allowed: en, zh")
        return code
    locale = next((v for n in ("LC_ALL", "LC_MESSAGES", "LANG") if (v := os.environ.get(n))), "")
    return "zh" if locale.lower().startswith("zh") else "en"


@functools.cache
def _chinese() -> dict[str, str]:
    import polib

    entries = (entry for path in _catalogues for entry in polib.pofile(str(path)))
    return {entry.msgid: entry.msgstr for entry in entries if entry.msgstr}


def _(text: str) -> str:
    """`text` in the user's language; placeholders in braces are filled in by the caller."""
    return text if language() == "en" else _chinese().get(text, text)


def nearest(name: str, allowed: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the nearest of `allowed`, or an empty string."""
    near = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.6)
    return _(" (did you mean {name!r}?)").format(name=near[0]) if near else ""
