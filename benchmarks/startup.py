"""How long the first moments take: `import byzerllm`, `byzerllm --help`, and what they load.

    python benchmarks/startup.py [--rounds 15]

Each round runs every command once, beside an interpreter that does nothing; wall time in seconds.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

COMMANDS: dict[str, tuple[str, ...]] = {
    "python -c pass": (sys.executable, "-c", "pass"),
    "import byzerllm": (sys.executable, "-c", "import byzerllm"),
    "byzerllm.ByzerLLM()": (sys.executable, "-c", "import byzerllm; byzerllm.ByzerLLM()"),
    "byzerllm --help": (str(Path(sys.executable).with_name("byzerllm")), "--help"),
    "byzerllm deploy --help": (
        str(Path(sys.executable).with_name("byzerllm")),
        "deploy",
        "--help",
    ),
}


def seconds(command: tuple[str, ...]) -> float:
    """Wall time of one run."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=60)
    return time.perf_counter() - start


def measure(rounds: int) -> dict[str, list[float]]:
    """Times of every command, round by round."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, command in COMMANDS.items():
            times[name].append(seconds(command))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=15)
    table = Table("command", "median", "least", "most")
    for name, times in measure(parser.parse_args().rounds).items():
        figures = (statistics.median(times), min(times), max(times))
        table.add_row(name, *(f"{figure:.3f}" for figure in figures))
    Console().print(table)


if __name__ == "__main__":
    main()
