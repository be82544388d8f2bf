"""Messages for models that want the roles user and assistant in strict alternation.

Both functions return new messages in OpenAI's shape: the system messages first, then a conversation
that begins and ends with the user's side. Results of tools stand directly after the message that
called for them, whatever stood between; a conversation may end with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from byzerllm.messages import Message, normalise

__all__ = ["ASSISTANT_FILLER", "USER_FILLER", "padding_messages_expand", "padding_messages_merge"]

USER_FILLER = "continue"
ASSISTANT_FILLER = "ok"

_SYSTEM = ("system", "developer")
_RESULTS = ("tool", "function")
Turn = list[Message]


def padding_messages_merge(
    messages: str | Sequence[Any],
    *,
    user_filler: str = USER_FILLER,
) -> list[Message]:
    """Make roles alternate by merging neighbours of one role.

    Texts are joined by a line break; where one content has parts, the parts follow each other. Tool
    calls follow each other too. A `name` on which the merged messages differ is left out, of other
    keys the later message's counts. System messages become one.

    Args:
        messages: as `chat_oai` takes them; never changed.
        user_filler: what the user says where a conversation does not begin or end with the user.

    Raises:
        ParameterError: no messages, or one that is none; names its index.
    """
    system, turns = _arranged(messages)
    merged: list[Turn] = []
    for turn in turns:
        head, *results = turn
        if merged and len(merged[-1]) == 1 and merged[-1][0]["role"] == head["role"]:
            merged[-1] = [_merged(merged[-1][0], head), *results]
        else:
            merged.append(turn)
    one_system: list[Message] = []
    for message in system:
        one_system = [_merged(one_system[0], message)] if one_system else [message]
    return [*one_system, *_framed(merged, user_filler)]


def padding_messages_expand(
    messages: str | Sequence[Any],
    *,
    user_filler: str = USER_FILLER,
    assistant_filler: str = ASSISTANT_FILLER,
) -> list[Message]:
    """Make roles alternate by putting a filler of the other role between neighbours of one role.

    Every message stays as it is. Several system messages stay several.

    Args:
        messages: as `chat_oai` takes them; never changed.
        user_filler, assistant_filler: the contents of what is put in.

    Raises:
        ParameterError: no messages, or one that is none; names its index.
    """
    system, turns = _arranged(messages)
    fillers = {
        "user": _said("assistant", assistant_filler),
        "assistant": _said("user", user_filler),
    }
    expanded: list[Turn] = []
    for turn in turns:
        role = turn[0]["role"]
        # Results count as the user's side: the assistant may go on after them.
        if expanded and len(expanded[-1]) == 1 and expanded[-1][0]["role"] == role:
            expanded.append([dict(fillers[role])])
        expanded.append(turn)
    return [*system, *_framed(expanded, user_filler)]


def _arranged(messages: str | Sequence[Any]) -> tuple[list[Message], list[Turn]]:
    """System messages, and turns: a message of the user or the assistant and the tool results that
    belong to it."""
    system: list[Message] = []
    turns: list[Turn] = []
    calls: dict[str, Turn] = {}
    for message in normalise(messages):
        role = message["role"]
        if role in _SYSTEM:
            system.append(message)
        elif role in _RESULTS and turns:
            calls.get(message.get("tool_call_id", ""), turns[-1]).append(message)
        else:
            turn = [message]
            turns.append(turn)
            for call in message.get("tool_calls") or ():
                calls[call.get("id", "")] = turn
    return system, turns


def _framed(turns: list[Turn], user_filler: str) -> list[Message]:
    filler = _said("user", user_filler)
    conversation = [message for turn in turns for message in turn]
    if not conversation or conversation[0]["role"] == "assistant":
        conversation.insert(0, dict(filler))
    if conversation[-1]["role"] == "assistant":
        conversation.append(filler)
    return conversation


def _said(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _merged(first: Message, second: Message) -> Message:
    merged = {**first, **second, "content": _joined(first.get("content"), second.get("content"))}
    if first.get("name") != second.get("name"):
        merged.pop("name", None)
    calls = [*(first.get("tool_calls") or ()), *(second.get("tool_calls") or ())]
    if calls:
        merged["tool_calls"] = calls
    return merged


def _joined(first: Any, second: Any) -> Any:
    if not first or not second:
        return first or second
    if isinstance(first, str) and isinstance(second, str):
        return f"{first}\n{second}"
    return [*_parts(first), *_parts(second)]


def _parts(content: Any) -> list[Any]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
