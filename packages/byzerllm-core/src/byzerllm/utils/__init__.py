"""Import path of earlier releases; use `byzerllm.client.formats` and `byzerllm.client.schema`."""

from byzerllm.client.formats import (
    function_calling_format,
    function_impl_format,
    response_class_format,
    response_class_format_after_chat,
)
from byzerllm.client.schema import serialize_function_to_json

__all__ = [
    "function_calling_format",
    "function_impl_format",
    "response_class_format",
    "response_class_format_after_chat",
    "serialize_function_to_json",
]
