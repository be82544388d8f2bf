"""OpenAI, and whoever speaks its wire."""

from __future__ import annotations

from typing import Any, ClassVar

from vendors.openai import OpenAIVendor
from vendors.server import Vendor
from vendors.suite import ProviderTests


class TestOpenAI(ProviderTests):
    vendor_class = OpenAIVendor
    provider = "openai"
    has: ClassVar = frozenset(
        {
            "chat",
            "image_urls",
            "images",
            "json_schema",
            "max_tokens",
            "reasoning",
            "retry_after",
            "stop",
            "stream",
            "streamed_tools",
            "tool_choice",
            "tools",
            "usage",
        }
    )

    def params(self, vendor: Vendor) -> dict[str, Any]:
        return {
            "saas.api_key": vendor.key,
            "saas.base_url": f"{vendor.url}/v1",
            "saas.model": "gpt-4o",
        }
