"""The terminal side of `byzerllm chat`: reading lines, editing keys, slash commands."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.formatted_text import HTML
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from byzerllm.cli.conversation import Conversation
from byzerllm.cli.failures import show_error
from byzerllm.cli.i18n import _, nearest
from byzerllm.cli.session import session
from byzerllm.errors import ByzerLLMError


class ChatTerminal:
    """Asks, answers, and obeys the slash commands until Ctrl-D or /quit."""

    def __init__(self, conversation: Conversation) -> None:
        self.conversation = conversation
        self.commands: dict[str, tuple[Callable[[str], None], str]] = {
            "/help": (self._help, _("show the commands and keys")),
            "/system": (self._system, _("TEXT: set the system message; alone: show it")),
            "/clear": (self._clear, _("forget the conversation")),
            "/model": (self._model, _("NAME: go on with another model; alone: list them")),
            "/save": (self._save, _("FILE: write the conversation as JSON")),
            "/quit": (self._quit, _("leave (Ctrl-D does it too)")),
        }
        self.prompt: PromptSession[str] = PromptSession(
            history=_history(),
            multiline=True,
            key_bindings=_keys(),
            completer=WordCompleter(list(self.commands), sentence=True),
            complete_while_typing=False,
            prompt_continuation=lambda width, line, wrapped: "… ".rjust(width),
        )

    def run(self) -> None:
        """Until the user leaves."""
        session.hint(
            _("talking to {model}; Alt+Enter: new line, Ctrl-C: stop, Ctrl-D: leave, /help").format(
                model=self.conversation.model
            )
        )
        while True:
            try:
                text = self.prompt.prompt(HTML("<b><ansigreen>&gt; </ansigreen></b>")).strip()
            except KeyboardInterrupt:
                session.hint(_("Ctrl-D leaves"))
                continue
            except EOFError:
                return
            try:
                self._turn(text)
            except EOFError:
                return
            except ByzerLLMError as error:
                show_error(error)

    def _turn(self, text: str) -> None:
        if not text:
            return
        word, _space, rest = text.partition(" ")
        if word in self.commands:
            self.commands[word][0](rest.strip())
        elif text.startswith("/") and word[1:].isalpha():
            session.hint(
                _("no command {name!r}{nearest}; /help lists them").format(
                    name=word, nearest=nearest(word, self.commands)
                )
            )
        elif not self.conversation.answer(text, sys.stdout):
            session.hint(_("(stopped)"))

    def _help(self, rest: str) -> None:
        from byzerllm.cli.render import key_values

        session.out.print(key_values({name: text for name, (_do, text) in self.commands.items()}))
        session.hint(_("Enter sends, Alt+Enter or Esc Enter begins a new line, arrows recall"))

    def _system(self, rest: str) -> None:
        if rest:
            self.conversation.system = rest
        session.hint(_("system message: {text}").format(text=self.conversation.system or "–"))

    def _clear(self, rest: str) -> None:
        self.conversation.clear()
        session.hint(_("the conversation begins anew"))

    def _model(self, rest: str) -> None:
        if rest:
            self.conversation.switch(rest)
            session.hint(_("talking to {model}").format(model=rest))
            return
        names = [entry["model"] for entry in self.conversation.llm.models()]
        session.hint(_("deployed: {models}").format(models=", ".join(names)))

    def _save(self, rest: str) -> None:
        if not rest:
            session.hint(_("a file name is missing: /save FILE"))
            return
        session.hint(_("written: {path}").format(path=self.conversation.save(rest)))

    def _quit(self, rest: str) -> None:
        raise EOFError


def _keys() -> KeyBindings:
    bindings = KeyBindings()

    @bindings.add("enter")
    def _send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings


def _history() -> History:
    """What was typed before, in the user's data folder; in memory where that cannot be written."""
    with contextlib.suppress(OSError):
        file = data_folder() / "chat_history"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)
        return FileHistory(str(file))
    return InMemoryHistory()


def data_folder() -> Path:
    """Where programs keep a user's data: XDG's folder, or Apple's."""
    chosen = os.environ.get("XDG_DATA_HOME")
    if chosen:
        return Path(chosen) / "byzerllm"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "byzerllm"
    return Path.home() / ".local" / "share" / "byzerllm"
