"""Acme's own tests: the suite that every provider passes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from byzerllm.plugins import get_plugins
from byzerllm.testing import ProviderConformance


class TestAcme(ProviderConformance):
    spec = get_plugins().providers.get("acme")
    infer_params: ClassVar = {"saas.api_key": "open-sesame"}
    deterministic = True

    def wrong_key(self) -> Mapping[str, Any]:
        return {"saas.api_key": "expired-sesame"}
