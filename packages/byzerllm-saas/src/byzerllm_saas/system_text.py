"""System messages for models that know users and assistants alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from byzerllm.errors import ParameterError
from byzerllm_saas.conversation import plain_text, without_system
from byzerllm_saas.provider import Provider


def system_with_user(
    provider: Provider, messages: Sequence[dict[str, Any]]
) -> list[dict[str, str]]:
    """Messages of users and assistants, text alone; what the system says stands before the first
    user's text.

    Raises:
        CapabilityError: a message has more than text.
        ParameterError: no user speaks, or a tool does.
    """
    system, rest = without_system(provider, messages)
    plain = [{"role": m["role"], "content": plain_text(provider, m)} for m in rest]
    other = next((m["role"] for m in plain if m["role"] not in ("user", "assistant")), None)
    if other is not None:
        raise ParameterError(
            f"saas/{provider.spec.name}: {provider.model!r} takes messages of system, user and "
            f"assistant (got {other!r})",
            parameter="conversations",
        )
    if system:
        first = next((m for m in plain if m["role"] == "user"), None)
        if first is None:
            raise ParameterError("the conversation has no user message; add one")
        first["content"] = f"{system}\n\n{first['content']}"
    return plain
