"""The form in which `custom/qwen_vl_chat` talks, that of the first Qwen-VL.

An answer is JSON text: `response`, and `history`, the conversation with it, which the caller sends
back with the next question. In a history a picture stands as `Picture 1: <img>NAME</img>` before
the text of its message. A name is a digest of the picture's file and of nothing else: no file lies
behind it, no worker keeps anything, and a picture that is sent again, as each round does, is found
under its name on whichever worker the round comes to.

Source of the notation: https://github.com/QwenLM/Qwen-VL/blob/master/TUTORIAL.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from byzerllm.errors import ParameterError
from byzerllm.requests import GenerateChunk
from byzerllm_backend_transformers.pictures import Picture

TYPE = "custom/qwen_vl_chat"

Message = dict[str, Any]

_PICTURE = re.compile(r"Picture \d+: ?<img>(?P<name>[^<>]*)</img>\n?")
_SPELLINGS = {
    "<|object_ref_start|>": "<ref>",
    "<|object_ref_end|>": "</ref>",
    "<|box_start|>": "<box>",
    "<|box_end|>": "</box>",
    "<|quad_start|>": "<quad>",
    "<|quad_end|>": "</quad>",
}
"""How later models write what the first one wrote as text."""


def spelled(tokenizer: Any) -> dict[int, str]:
    """The tokens of places in a picture, as the first Qwen-VL spelled them."""
    known = tokenizer.get_vocab()
    return {known[token]: text for token, text in _SPELLINGS.items() if token in known}


@dataclass(frozen=True)
class Talk:
    """A conversation in this form.

    Attributes:
        messages: lists of parts, pictures before texts.
        pictures: those of the `image` parts, in their order.
        history: as the answer gives it back.
    """

    messages: list[Message]
    pictures: list[Picture]
    history: list[dict[str, str]]

    @classmethod
    def of(cls, messages: Sequence[Message], pictures: Sequence[Picture]) -> Talk:
        """Put the pictures where the history names them; those that it does not name stay.

        Args:
            messages: with lists of parts for contents; `pictures` are their `image` parts'.

        Raises:
            ParameterError: a history that names a picture which the request does not bring.
        """
        sent = {picture.name: picture for picture in pictures}
        remaining = iter(pictures)
        named: set[str] = set()
        placed: list[tuple[str, list[Picture], str]] = []
        for position, message in enumerate(messages):
            names, text = _split(message)
            own = [next(remaining) for part in message["content"] if part["type"] == "image"]
            found = [_named(name, sent, position) for name in names]
            named.update(names)
            placed.append((message["role"], [*found, *own], text))
        return cls._numbered(placed, named)

    @classmethod
    def _numbered(cls, placed: Sequence[tuple[str, list[Picture], str]], named: set[str]) -> Talk:
        messages: list[Message] = []
        history: list[dict[str, str]] = []
        pictures: list[Picture] = []
        seen: set[str] = set()
        for role, own, text in placed:
            # A picture that the history names comes again with each round, and counts once.
            fresh = [p for p in own if p.name not in named or p.name not in seen]
            seen.update(picture.name for picture in fresh)
            first = len(pictures) + 1
            pictures += fresh
            tags = [f"Picture {n}: <img>{p.name}</img>\n" for n, p in enumerate(fresh, first)]
            images = [{"type": "image"} for _ in fresh]
            texts = [{"type": "text", "text": text}] if text else []
            messages.append({"role": role, "content": [*images, *texts]})
            history.append({"role": role, "content": "".join(tags) + text})
        return cls(messages, pictures, history)

    async def as_json(
        self, chunks: AsyncGenerator[GenerateChunk, None]
    ) -> AsyncGenerator[GenerateChunk, None]:
        """The chunks of an answer as those of its JSON text, which grows with it."""
        said = ""
        before = '{"response": "'
        async with aclosing(chunks):
            async for chunk in chunks:
                said += chunk.text
                chunk.text = before + _escaped(chunk.text)
                before = ""
                if chunk.finish_reason is not None:
                    history = [*self.history, {"role": "assistant", "content": said}]
                    chunk.text += f'", "history": {_json(history)}}}'
                yield chunk


def _split(message: Message) -> tuple[list[str], str]:
    """The names of the pictures before a user's text, and the text."""
    text = "\n".join(part["text"] for part in message["content"] if part["type"] == "text")
    names: list[str] = []
    while message["role"] == "user" and (found := _PICTURE.match(text)):
        names.append(found["name"])
        text = text[found.end() :]
    return names, text


def _named(name: str, sent: dict[str, Picture], position: int) -> Picture:
    if name in sent:
        return sent[name]
    raise ParameterError.invalid(
        "image",
        f"the history names the picture {name[:80]!r}, which this request does not bring; send the "
        'same picture with each round (llm_config={"image": …}), further ones as parts of the '
        "last message",
        where=f"message {position}",
    )


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _escaped(text: str) -> str:
    return _json(text)[1:-1]
