"""One caller of the fault tests: calls and streams in turn, one line per outcome on stdout.

python fault_caller.py ADDRESS MODEL        until its stdin is closed
python fault_caller.py ADDRESS MODEL long   one endless stream; a line per chunk
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import byzerllm
from byzerllm.errors import ByzerLLMError


def call(llm: byzerllm.ByzerLLM, text: str) -> str:
    return str(llm.chat_oai(text)[0].output)


def stream(llm: byzerllm.ByzerLLM, text: str) -> str:
    return "".join(str(item[0]) for item in llm.stream_chat_oai(text, delta_mode=True))


def outcomes(llm: byzerllm.ByzerLLM) -> Iterator[str]:
    number = 0
    while True:
        number += 1
        kind, ask = ("stream", stream) if number % 2 else ("call", call)
        text = f"request {number} of process {os.getpid()} has several words to answer with"
        try:
            yield f"{kind} {'ok' if ask(llm, text) == text else 'WRONG'}"
        except ByzerLLMError as error:
            yield f"{kind} {type(error).__name__} {error}"
            time.sleep(0.05)
        time.sleep(0.02)


def leave_with_stdin() -> None:
    sys.stdin.read()
    os._exit(0)


def main() -> None:
    address, model, *rest = sys.argv[1:]
    threading.Thread(target=leave_with_stdin, daemon=True).start()
    byzerllm.connect_cluster(address, log_to_driver=False)
    llm = byzerllm.ByzerLLM().setup_default_model_name(model)
    if rest:
        items = llm.stream_chat_oai("tick", delta_mode=True)
        with closing(items) as chunks:  # type: ignore[type-var]
            for _ in chunks:
                print("chunk", flush=True)
        return
    for line in outcomes(llm):
        print(line, flush=True)


if __name__ == "__main__":
    main()
