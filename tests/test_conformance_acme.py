"""A provider of a third party passes the suite of providers."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from byzerllm.plugins import Plugins
from byzerllm.testing import ProviderConformance

sys.path.append(str(Path(__file__).with_name("plugins") / "acme" / "src"))
import byzerllm_acme


def acme() -> Any:
    plugins = Plugins()
    plugins.register(byzerllm_acme, "acme")
    return plugins.providers.get("acme")


class TestAcme(ProviderConformance):
    spec = acme()
    infer_params: ClassVar = {"saas.api_key": "k-0123456789"}
    deterministic = True
    exceptions: ClassVar = {
        "test_entry_point_registers_it": "test_packaging.py installs it; here it is a folder",
    }

    def wrong_key(self) -> Mapping[str, Any]:
        return {"saas.api_key": "expired-0123456789"}
