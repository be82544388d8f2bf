"""Qianfan, v1 and v2."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import subprocess
import sys
from typing import Any, ClassVar

import openai
import pytest

from byzerllm.errors import (
    AuthenticationError,
    CapabilityError,
    HostedModelNotFoundError,
    ParameterError,
)
from byzerllm.requests import EmbedRequest
from vendors.openai import vector
from vendors.qianfan import SECRET, QianfanV2Vendor, QianfanVendor
from vendors.server import NUMBERS, Answer, Refuse, Vendor
from vendors.suite import (
    CALL,
    SCHEMA,
    WEATHER,
    Model,
    ProviderTests,
    VendorConformance,
    request,
)

TOKEN = "/oauth/2.0/token"
needs_sdk = pytest.mark.skipif(
    importlib.util.find_spec("qianfan") is None, reason="Baidu's SDK is not installed"
)


class TestV1(ProviderTests):
    vendor_class = QianfanVendor
    provider = "qianfan"
    embedding_model = "Embedding-V1"
    has: ClassVar = frozenset(
        {"check", "embeddings", "max_tokens", "stop", "stream", "streamed_tools", "tools", "usage"}
    )

    def params(self, vendor: Vendor) -> dict[str, Any]:
        return {
            "saas.api_key": vendor.key,
            "saas.secret_key": SECRET,
            "saas.base_url": vendor.url,
            "saas.model": "ERNIE-3.5-8K",
        }

    def secrets(self, vendor: Vendor) -> list[str]:
        assert isinstance(vendor, QianfanVendor)
        return [vendor.key, SECRET, *vendor.tokens]

    def tokens_asked(self, vendor: Vendor) -> int:
        return sum(asked.path == TOKEN for asked in vendor.asked)

    # The token.

    def test_one_token_for_many(self, vendor: Vendor, model: Model) -> None:
        async def many() -> list[Any]:
            return await asyncio.gather(*[model.host.answer(request()) for _ in range(8)])

        assert [result.text for result in model.run(many())] == [NUMBERS] * 8
        assert self.tokens_asked(vendor) == 1

    @pytest.mark.parametrize("kind", ["bad_token", "old_token"])
    @pytest.mark.parametrize("stream", [False, True])
    def test_stale_token(self, vendor: Vendor, model: Model, kind: str, stream: bool) -> None:
        vendor.faults(Refuse(kind))
        text = "".join(c.text for c in model.chunks()) if stream else model.chat().text
        assert text == NUMBERS
        assert self.tokens_asked(vendor) == 2

    def test_stale_token_of_many(self, vendor: Vendor, model: Model) -> None:
        """A new token ends the old one; whoever had the old one gets the new one, once."""
        model.chat()
        assert isinstance(vendor, QianfanVendor)
        vendor.tokens.append("24.another-client-got-this-one")

        async def many() -> list[Any]:
            return await asyncio.gather(*[model.host.answer(request()) for _ in range(8)])

        assert [result.text for result in model.run(many())] == [NUMBERS] * 8
        assert self.tokens_asked(vendor) == 2
        vendor.complaints.clear()

    def test_token_that_stays_stale(self, vendor: Vendor, model: Model) -> None:
        vendor.faults(Refuse("bad_token"), Refuse("bad_token"))
        with pytest.raises(AuthenticationError, match="110"):
            model.chat()

    def test_token_in_no_error(self, vendor: Vendor, model: Model) -> None:
        """Baidu repeats the token in its message; we do not."""
        model.chat()
        assert isinstance(vendor, QianfanVendor)
        first = vendor.tokens[0]
        vendor.tokens.append("24.another-client-got-this-one")
        model.chat()
        (complaint,) = vendor.complaints
        assert first in complaint
        assert first not in model.host.backend.errors.clean(complaint)
        vendor.complaints.clear()

    def test_stale_token_of_vectors(self, vendor: Vendor) -> None:
        model = Model("qianfan", self.embedding_params(vendor))
        vendor.faults(Refuse("old_token"))
        assert model.ask(EmbedRequest(id="e", texts=["a"])).vectors == [vector("a")]
        model.close()

    def test_wrong_secret(self, vendor: Vendor) -> None:
        with pytest.raises(AuthenticationError, match="Client authentication failed") as caught:
            Model("qianfan", {**self.params(vendor), "saas.secret_key": "wrong-secret-0123"})
        assert "wrong-secret" not in f"{caught.value!r} {caught.value.details}"
        vendor.complaints.clear()

    def test_several_keys_have_no_secrets(self, vendor: Vendor) -> None:
        with pytest.raises(ParameterError, match=r"secret_key.*one API key"):
            Model("qianfan", {**self.params(vendor), "saas.api_keys": "a-key-1234, b-key-1234"})

    # The wire.

    def test_roles_take_turns(self, vendor: Vendor, model: Model) -> None:
        said = [
            ("system", "Be short."),
            ("user", "a"),
            ("user", "b"),
            ("assistant", "c"),
            ("system", "Be kind."),
            ("user", "d"),
        ]
        model.chat(messages=[{"role": role, "content": text} for role, text in said])
        sent = vendor.asked[-1].json
        assert sent["system"] == "Be short.\n\nBe kind."
        assert [m["content"] for m in sent["messages"]] == ["a\n\nb", "c", "d"]

    @pytest.mark.parametrize("roles", ["assistant user", "user assistant", "system"])
    def test_roles_that_do_not(self, vendor: Vendor, model: Model, roles: str) -> None:
        before = len(vendor.asked)
        with pytest.raises(ParameterError, match="user"):
            model.chat(messages=[{"role": role, "content": "x"} for role in roles.split()])
        assert len(vendor.asked) == before

    def test_places(self, vendor: Vendor) -> None:
        for name, place in (
            ("ERNIE-Bot-4", "completions_pro"),
            ("ERNIE-Speed-128K", "ernie-speed-128k"),
            ("my_service", "my_service"),
        ):
            model = Model("qianfan", {**self.params(vendor), "saas.model": name})
            assert model.chat().text == NUMBERS
            model.close()
            assert vendor.asked[-1].path.endswith(f"/chat/{place}")

    def test_wrong_model(self, vendor: Vendor) -> None:
        model = Model("qianfan", {**self.params(vendor), "saas.model": "ernie-99"})
        with pytest.raises(HostedModelNotFoundError):
            model.chat()
        model.close()
        vendor.complaints.clear()

    def test_filtered_answer(self, vendor: Vendor, model: Model) -> None:
        assert isinstance(vendor, QianfanVendor)
        vendor.filters = True
        assert model.chat().finish_reason == "content_filter"
        assert model.chunks()[-1].finish_reason == "content_filter"

    def test_streamed_tools(self, vendor: Vendor, model: Model) -> None:
        vendor.answers(Answer(tool_calls=[CALL]))
        last = model.chunks("weather?", tools=[WEATHER])[-1]
        assert last.finish_reason == "tool_calls"
        assert last.reasoning == "I need the weather."
        assert [(c.name, c.arguments) for c in last.tool_calls] == [
            (CALL["name"], CALL["arguments"])
        ]

    def test_choice_of_tool(self, vendor: Vendor, model: Model) -> None:
        named = {"type": "function", "function": {"name": "weather"}}
        model.chat(tools=[WEATHER], tool_choice=named)
        assert vendor.asked[-1].json["tool_choice"] == named
        with pytest.raises(ParameterError, match="required"):
            model.chat(tools=[WEATHER], tool_choice="required")

    def test_result_of_a_call_has_its_name(self, vendor: Vendor, model: Model) -> None:
        vendor.answers(Answer(tool_calls=[CALL]))
        (call,) = model.chat("weather?", tools=[WEATHER]).tool_calls
        model.chat(messages=self.conversation(call), tools=[WEATHER])
        last = vendor.asked[-1].json["messages"][-1]
        assert last == {"role": "function", "name": "weather", "content": "26°"}

    def test_several_calls_at_once(self, model: Model) -> None:
        call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        messages = [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": None, "tool_calls": [call, {**call, "id": "2"}]},
            {"role": "tool", "tool_call_id": "1", "content": "y"},
        ]
        with pytest.raises(ParameterError, match="one function call"):
            model.chat(messages=messages)

    def test_generation_parameters(self, vendor: Vendor, model: Model) -> None:
        model.chat(
            generation={"temperature": 0, "repetition_penalty": 1.2, "disable_search": True},
            extra={"user_id": "me"},
        )
        sent = vendor.asked[-1].json
        assert (sent["temperature"], sent["penalty_score"]) == (0.01, 1.2)
        assert (sent["disable_search"], sent["user_id"]) == (True, "me")
        with pytest.raises(ParameterError, match="json_schema"):
            model.chat(generation={"json_schema": SCHEMA})
        assert not model.run(model.host.backend.meta()).constrained

    def test_no_images(self, model: Model) -> None:
        part = {"type": "image_url", "image_url": {"url": "https://images.test/a.png"}}
        with pytest.raises(CapabilityError, match="image_url"):
            model.chat(messages=[{"role": "user", "content": [part]}])

    def test_one_text_a_call(self, vendor: Vendor) -> None:
        model = Model("qianfan", {**self.params(vendor), "saas.model": "tao-8k"})
        result = model.ask(EmbedRequest(id="e", texts=["a", "b"]))
        assert result.vectors == [vector("a"), vector("b")]
        model.close()

    # The server is Baidu's as far as its own SDK can tell.

    @needs_sdk
    def test_sdk(self, vendor: Vendor) -> None:
        vendor.answers("one two", "three four", Answer(tool_calls=[CALL]))
        told = _run_sdk(_SDK_V1, QIANFAN_BASE_URL=vendor.url, QIANFAN_AK=vendor.key)
        assert told["whole"] == "one two"
        assert told["stream"] == ["three", " four"]
        assert told["ended"] == [False, True]
        assert told["call"]["name"] == "weather"
        assert told["vectors"] == [vector("a"), vector("b")]
        assert told["error"] == "336003"
        vendor.complaints.clear()

    @needs_sdk
    def test_sdk_with_a_stale_token(self, vendor: Vendor) -> None:
        vendor.faults(Refuse("old_token")).answers("one two", "three four")
        told = _run_sdk(_SDK_STALE, QIANFAN_BASE_URL=vendor.url, QIANFAN_AK=vendor.key)
        assert told == "one two"
        assert self.tokens_asked(vendor) == 2


class TestV2(ProviderTests):
    vendor_class = QianfanV2Vendor
    provider = "qianfan"
    embedding_model = "bge-large-zh"
    has: ClassVar = frozenset(
        {
            "check",
            "embeddings",
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
            "saas.base_url": vendor.url,
            "saas.model": "ernie-4.5-turbo-vl",
        }

    def test_application(self, vendor: Vendor) -> None:
        model = Model("qianfan", {**self.params(vendor), "saas.appid": "app-12345"})
        model.chat(generation={"repetition_penalty": 1.2, "web_search": {"enable": True}})
        asked = vendor.asked[-1]
        assert asked.headers["appid"] == "app-12345"
        assert asked.json["penalty_score"] == 1.2
        model.close()

    def test_sdk(self, vendor: Vendor) -> None:
        """OpenAI's own, as Baidu's pages tell to."""
        vendor.answers("one two", "three four")
        with openai.OpenAI(
            api_key=vendor.key, base_url=f"{vendor.url}/v2", max_retries=0
        ) as client:
            asked: Any = {"model": "ernie-3.5-8k", "messages": [{"role": "user", "content": "x"}]}
            assert client.chat.completions.create(**asked).choices[0].message.content == "one two"
            chunks = list(client.chat.completions.create(**asked, stream=True))
            said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            assert said == "three four"
            vendor.faults(Refuse("rate_limited"))
            with pytest.raises(openai.RateLimitError, match="429"):
                client.chat.completions.create(**asked)


class TestConformanceV1(VendorConformance):
    tests = TestV1
    exceptions: ClassVar = {"test_json_schema": "v1 has none, v2 does; they share a spec"}


class TestConformanceV2(VendorConformance):
    tests = TestV2


# In a process of its own: the SDK changes logging and reads its settings once.
_SDK_V1 = """
import json, qianfan
from qianfan.errors import APIError
chat = qianfan.ChatCompletion(model="ERNIE-3.5-8K")
asked = {"messages": [{"role": "user", "content": "Count!"}]}
told = {"whole": chat.do(**asked)["result"]}
events = list(chat.do(stream=True, **asked))
told["stream"] = [event["result"] for event in events]
told["ended"] = [event["is_end"] for event in events]
function = {"name": "weather", "description": "of a place", "parameters": {"type": "object"}}
told["call"] = chat.do(functions=[function], **asked)["function_call"]
found = qianfan.Embedding(model="Embedding-V1").do(texts=["a", "b"])
data = sorted(found["data"], key=lambda one: one["index"])
told["vectors"] = [one["embedding"] for one in data]
try:
    chat.do(messages=asked["messages"], temperature=0)
except APIError as error:
    told["error"] = str(error.error_code)
print(json.dumps(told))
"""
_SDK_STALE = """
import json, qianfan
chat = qianfan.ChatCompletion(model="ERNIE-3.5-8K")
print(json.dumps(chat.do(messages=[{"role": "user", "content": "Count!"}])["result"]))
"""


def _run_sdk(program: str, **settings: str) -> Any:
    env = {
        "PATH": os.environ["PATH"],
        "QIANFAN_SK": SECRET,
        "QIANFAN_LLM_API_RETRY_COUNT": "1",
        "QIANFAN_ACCESS_TOKEN_REFRESH_MIN_INTERVAL": "0",
        "QIANFAN_DISABLE_CACHE": "true",
        **settings,
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])
