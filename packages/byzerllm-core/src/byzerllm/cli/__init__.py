"""The `byzerllm` command: one module per verb, imported only when the verb is used."""

from __future__ import annotations

import sys


def main() -> None:
    """Console script. Ends the process with 0, 1 (failed), 2 (wrong usage) or 130 (Ctrl-C)."""
    from byzerllm.cli.program import run

    sys.exit(run(sys.argv[1:]))
