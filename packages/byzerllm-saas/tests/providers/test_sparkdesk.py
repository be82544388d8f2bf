"""SparkDesk."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest

from byzerllm.errors import (
    AuthenticationError,
    CapabilityError,
    HostedModelNotFoundError,
    ParameterError,
    ProviderProtocolError,
)
from vendors.server import NUMBERS, Answer, Empty, Refuse, Vendor
from vendors.sparkdesk import APPID, SECRET, SparkDeskVendor
from vendors.suite import CALL, WEATHER, Model, ProviderTests, VendorConformance


def address(vendor: Vendor, version: str) -> str:
    return f"{vendor.url.replace('http', 'ws')}/{version}/chat"


class TestSparkDesk(ProviderTests):
    vendor_class = SparkDeskVendor
    provider = "sparkdesk"
    has: ClassVar = frozenset({"check", "max_tokens", "stream", "streamed_tools", "tools", "usage"})

    def params(self, vendor: Vendor) -> dict[str, Any]:
        return {
            "saas.appid": APPID,
            "saas.api_key": vendor.key,
            "saas.api_secret": SECRET,
            "saas.gpt_url": address(vendor, "v3.5"),
        }

    def at(self, address: str) -> dict[str, Any]:
        return {"saas.gpt_url": f"{address.replace('http', 'ws')}/v3.5/chat"}

    def secrets(self, vendor: Vendor) -> list[str]:
        return [vendor.key, SECRET]

    @contextmanager
    def version(self, vendor: Vendor, version: str, **more: Any) -> Iterator[Model]:
        params = {**self.params(vendor), "saas.gpt_url": address(vendor, version), **more}
        model = Model("sparkdesk", params)
        try:
            yield model
        finally:
            model.close()

    # Versions and domains.

    @pytest.mark.parametrize(
        ("version", "domain"),
        [
            ("v1.1", "general"),
            ("v2.1", "generalv2"),
            ("v3.1", "generalv3"),
            ("v3.5", "generalv3.5"),
            ("v4.0", "4.0Ultra"),
        ],
    )
    def test_versions(self, vendor: Vendor, version: str, domain: str) -> None:
        with self.version(vendor, version) as model:
            assert model.chat().text == NUMBERS
            assert vendor.asked[-1].json["parameter"]["chat"]["domain"] == domain
        with self.version(vendor, version, **{"saas.domain": domain}) as model:
            assert model.chat().text == NUMBERS

    def test_lite_is_the_other_domain_of_its_path(self, vendor: Vendor) -> None:
        with self.version(vendor, "v1.1", **{"saas.model": "lite"}) as model:
            assert model.chat().text == NUMBERS

    def test_domain_of_another_version(self, vendor: Vendor) -> None:
        before = len(vendor.asked)
        with (
            pytest.raises(ParameterError, match=r"domain.*/v3\.5/chat it is generalv3\.5"),
            self.version(vendor, "v3.5", **{"saas.domain": "generalv2"}),
        ):
            pass
        assert len(vendor.asked) == before

    def test_address_that_is_not_known(self, vendor: Vendor) -> None:
        with (
            pytest.raises(ParameterError, match=r"domain.*is needed"),
            self.version(vendor, "v9.9"),
        ):
            pass
        with (
            self.version(vendor, "v9.9", **{"saas.domain": "generalv9"}) as model,
            pytest.raises(HostedModelNotFoundError, match="10404"),
        ):
            model.chat()
        vendor.complaints.clear()

    def test_system_of_a_version_that_knows_none(self, vendor: Vendor) -> None:
        messages = [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "Count!"},
        ]
        with self.version(vendor, "v2.1") as model:
            assert model.chat(messages=messages).text == NUMBERS
        (only,) = vendor.asked[-1].json["payload"]["message"]["text"]
        assert only == {"role": "user", "content": "Be short.\n\nCount!"}

    def test_functions_of_a_version_that_knows_none(self, vendor: Vendor) -> None:
        with self.version(vendor, "v2.1") as model:
            assert not model.run(model.host.backend.meta()).tools
            with pytest.raises(CapabilityError, match="generalv2 calls no functions"):
                model.chat(tools=[WEATHER])

    # Addresses and keys.

    def test_wrong_secret(self, vendor: Vendor) -> None:
        with pytest.raises(AuthenticationError, match="401"):
            Model("sparkdesk", {**self.params(vendor), "saas.api_secret": "wrong-0123456789"})
        vendor.complaints.clear()

    def test_clock(self, vendor: Vendor, model: Model) -> None:
        vendor.faults(Refuse("old_date"))
        with pytest.raises(AuthenticationError, match="403"):
            model.chat()

    @pytest.mark.parametrize(
        ("name", "value", "reason"),
        [
            ("appid", "", "appid.*is needed"),
            ("api_secret", "", r"api_secret.*\$\{SPARKDESK_API_SECRET\}"),
            ("gpt_url", "https://spark-api.xf-yun.com/v3.5/chat", "begins with wss:// or ws://"),
            ("api_keys", "key-one-1234, key-two-1234", "api_secret.*one API key"),
        ],
    )
    def test_bad_parameters(self, vendor: Vendor, name: str, value: str, reason: str) -> None:
        with pytest.raises(ParameterError, match=reason):
            Model("sparkdesk", {**self.params(vendor), f"saas.{name}": value})

    def test_names_without_prefix(self, vendor: Vendor) -> None:
        """The seed's SQL says `gpt_url` without `saas.`."""
        params = self.params(vendor)
        params["gpt_url"] = params.pop("saas.gpt_url")
        model = Model("sparkdesk", params)
        assert model.chat().text == NUMBERS
        model.close()

    # The wire.

    def test_question(self, vendor: Vendor, model: Model) -> None:
        model.chat(
            generation={"temperature": 0, "top_k": 2, "max_tokens": 100},
            extra={"uid": "me", "chat_id": "c1"},
        )
        sent = vendor.asked[-1].json
        assert sent["header"] == {"app_id": APPID, "uid": "me"}
        assert sent["parameter"]["chat"] == {
            "domain": "generalv3.5",
            "temperature": 0.01,
            "top_k": 2,
            "max_tokens": 100,
            "chat_id": "c1",
        }

    @pytest.mark.parametrize("name", ["seed", "stop", "top_p"])
    def test_what_it_does_not_take(self, model: Model, name: str) -> None:
        value: Any = ["x"] if name == "stop" else 1
        with pytest.raises(ParameterError, match=rf"'{name}'.*takes .*top_k"):
            model.chat(generation={name: value})

    def test_roles_take_turns(self, vendor: Vendor, model: Model) -> None:
        said = [("user", "a"), ("user", "b"), ("assistant", "c"), ("user", "d")]
        model.chat(messages=[{"role": role, "content": text} for role, text in said])
        texts = vendor.asked[-1].json["payload"]["message"]["text"]
        assert [text["content"] for text in texts] == ["a\n\nb", "c", "d"]
        with pytest.raises(ParameterError, match="last message"):
            model.chat(messages=[{"role": role, "content": text} for role, text in said[:3]])

    def test_streamed_tools(self, vendor: Vendor, model: Model) -> None:
        vendor.answers(Answer(tool_calls=[CALL]))
        last = model.chunks("weather?", tools=[WEATHER])[-1]
        assert last.finish_reason == "tool_calls"
        assert [(c.name, c.arguments) for c in last.tool_calls] == [
            (CALL["name"], CALL["arguments"])
        ]
        with pytest.raises(ParameterError, match="tool_choice"):
            model.chat(tools=[WEATHER], tool_choice="required")

    def test_closed_without_an_answer(self, vendor: Vendor, model: Model) -> None:
        vendor.faults(Empty())
        with pytest.raises(ProviderProtocolError, match="closed without an answer"):
            model.chunks()

    def test_no_images(self, model: Model) -> None:
        part = {"type": "image_url", "image_url": {"url": "https://images.test/a.png"}}
        with pytest.raises(CapabilityError, match="image_url"):
            model.chat(messages=[{"role": "user", "content": [part]}])

    # The server is iFLYTEK's as far as its own SDK can tell.

    @pytest.mark.skipif(
        importlib.util.find_spec("sparkai") is None, reason="iFLYTEK's SDK is not installed"
    )
    def test_sdk(self, vendor: Vendor) -> None:
        vendor.answers("one two", "three four", Answer(tool_calls=[CALL]))
        settings = {
            "spark_api_url": address(vendor, "v3.5"),
            "spark_app_id": APPID,
            "spark_api_key": vendor.key,
            "spark_api_secret": SECRET,
            "spark_llm_domain": "generalv3.5",
        }
        told = _run_sdk(json.dumps(settings))
        assert told["whole"] == "one two"
        assert "".join(told["stream"]) == "three four"
        assert told["call"]["name"] == "weather"
        assert told["tokens"] == 7
        assert "10404" in told["error"]
        vendor.complaints.clear()


class TestConformance(VendorConformance):
    tests = TestSparkDesk
    exceptions: ClassVar = {"test_stop_text": "SparkDesk takes no stop texts"}


# In a process of its own: it is of the times of another pydantic, and starts threads.
_SDK = """
import json, sys
from sparkai.llm.llm import ChatSparkLLM
from sparkai.core.messages import ChatMessage
settings = json.loads(sys.argv[1])
asked = [ChatMessage(role="user", content="Count!")]
whole = ChatSparkLLM(**settings).generate([asked])
told = {"whole": whole.generations[0][0].text}
told["tokens"] = whole.llm_output["token_usage"]["completion_tokens"]
told["stream"] = [m.content for m in ChatSparkLLM(streaming=True, **settings).stream(asked)]
function = {"name": "weather", "description": "x", "parameters": {"type": "object"}}
called = ChatSparkLLM(**settings).generate([asked], function_definition=[function])
told["call"] = called.generations[0][0].message.function_call
try:
    ChatSparkLLM(**{**settings, "spark_llm_domain": "generalv2"}).generate([asked])
except Exception as error:
    told["error"] = repr(error)
print(json.dumps(told))
"""


def _run_sdk(settings: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _SDK, settings],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])
