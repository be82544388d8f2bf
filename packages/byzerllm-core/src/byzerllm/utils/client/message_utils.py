"""Import path of earlier releases; use `byzerllm.client.message_utils`."""

from byzerllm.client.message_utils import padding_messages_expand, padding_messages_merge

__all__ = ["padding_messages_expand", "padding_messages_merge"]
