"""Commands of `byzerllm`, one module each."""

from __future__ import annotations

from pathlib import Path

from byzerllm.cli.i18n import add_catalogue

CATALOGUE = Path(__file__).parent / "locales" / "zh.po"
# Before the commands are imported: their help texts are looked up then.
add_catalogue(CATALOGUE)
