"""Import path of earlier releases; use `byzerllm.client.formats` and `byzerllm.client.schema`."""

from typing import TYPE_CHECKING

from byzerllm.lazy import lazy_names

if TYPE_CHECKING:
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

__getattr__ = lazy_names(
    __name__,
    {
        "function_calling_format": "byzerllm.client.formats",
        "function_impl_format": "byzerllm.client.formats",
        "response_class_format": "byzerllm.client.formats",
        "response_class_format_after_chat": "byzerllm.client.formats",
        "serialize_function_to_json": "byzerllm.client.schema",
    },
)
