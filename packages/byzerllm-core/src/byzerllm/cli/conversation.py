"""A conversation with a model: its messages, and one answer at a time."""

from __future__ import annotations

import json
import os
from contextlib import closing
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from byzerllm.cli import interrupts
from byzerllm.cli.i18n import _
from byzerllm.errors import ByzerLLMError, UsageError

if TYPE_CHECKING:
    from byzerllm.client import ByzerLLM


class Conversation:
    """Keeps the messages and streams the answers.

    Args:
        config: the `llm_config` of every turn.
        system: text of the system message, or None.
    """

    def __init__(
        self, llm: ByzerLLM, model: str, config: dict[str, Any], system: str | None = None
    ) -> None:
        self.llm = llm
        self.model = model
        self.config = config
        self.system = system
        self.turns: list[dict[str, Any]] = []

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation in OpenAI's shape."""
        first = [{"role": "system", "content": self.system}] if self.system else []
        return first + self.turns

    def answer(self, text: str, out: IO[str]) -> bool:
        """Stream the answer to `text` to `out`.

        Returns:
            false when Ctrl-C stopped it; what had come stays part of the conversation.

        Raises:
            ByzerLLMError: the request failed; the conversation is as it was before.
        """
        self.turns.append({"role": "user", "content": text})
        pieces: list[str] = []
        finished = True
        try:
            self._stream(pieces, out)
        except KeyboardInterrupt:
            interrupts.forget()
            finished = False
        except ByzerLLMError:
            self.turns.pop()
            raise
        finally:
            out.write("\n")
            out.flush()
        if pieces:
            self.turns.append({"role": "assistant", "content": "".join(pieces)})
        else:
            self.turns.pop()
        return finished

    def _stream(self, pieces: list[str], out: IO[str]) -> None:
        stream = self.llm.stream_chat_oai(
            conversations=self.messages, model=self.model, delta_mode=True, llm_config=self.config
        )
        # Closing cancels: the worker stops generating.
        with closing(stream):  # type: ignore[type-var]
            for piece, _metadata in stream:
                pieces.append(str(piece))
                out.write(str(piece))
                out.flush()

    def clear(self) -> None:
        """Forget all turns; the system message stays."""
        self.turns = []

    def switch(self, model: str) -> None:
        """Go on with another model. Raises ModelNotFoundError when it is not deployed."""
        self.llm.get_meta(model)
        self.model = model

    def save(self, file: str) -> Path:
        """Write the conversation as JSON in OpenAI's shape, readable by its owner only.

        Raises:
            UsageError: the file exists or cannot be written.
        """
        path = Path(file).expanduser()
        text = json.dumps(self.messages, ensure_ascii=False, indent=2)
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise UsageError(
                _("cannot write {path}: {reason}").format(path=path, reason=error.strerror)
            ) from None
        with open(handle, "w", encoding="utf-8") as opened:
            opened.write(text + "\n")
        return path
