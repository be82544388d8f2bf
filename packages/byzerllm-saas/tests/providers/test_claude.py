"""Anthropic's Claude."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import anthropic
import pytest

from byzerllm.errors import (
    BadRequestError,
    CapabilityError,
    HostedModelNotFoundError,
    ParameterError,
    ProviderTimeoutError,
    QuotaExceededError,
    StreamInterruptedError,
)
from byzerllm.requests import GenerateRequest, ToolCall, add_tool_calls
from vendors.claude import ClaudeVendor
from vendors.server import NUMBERS, Answer, Cut, Refuse, Vendor
from vendors.suite import CALL, PNG, SCHEMA, WEATHER, Model, ProviderTests, VendorConformance

NEW = "claude-haiku-4-5"


class TestClaude(ProviderTests):
    vendor_class = ClaudeVendor
    provider = "claude"
    has: ClassVar = frozenset(
        {
            "check",
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
        return {"saas.api_key": vendor.key, "saas.base_url": vendor.url, "saas.model": NEW}

    @contextmanager
    def other(self, vendor: Vendor, name: str, **more: Any) -> Iterator[Model]:
        """Another model of the vendor."""
        model = Model(self.provider, {**self.params(vendor), "saas.model": name, **more})
        try:
            yield model
        finally:
            model.close()

    # The wire.

    def test_seed(self, vendor: Vendor) -> None:
        """The seed's parameters, the address apart."""
        with self.other(vendor, "claude-3-haiku-20240307") as model:
            assert model.chat(generation={"temperature": 0.1, "top_k": 5}).text == NUMBERS
        sent = vendor.asked[-1]
        assert sent.path == "/v1/messages"
        assert sent.headers["anthropic-version"] == "2023-06-01"
        assert sent.json["max_tokens"] == 4096

    def test_limit_of_the_deployment(self, vendor: Vendor) -> None:
        with self.other(vendor, NEW, **{"saas.max_tokens": 2}) as model:
            assert model.chat().text == "one two"

    def test_turns(self, vendor: Vendor, model: Model) -> None:
        """System messages go on top, neighbours of one role become one message."""
        messages = [
            {"role": "system", "content": "A"},
            {"role": "user", "content": "b"},
            {"role": "user", "content": "c"},
            {"role": "developer", "content": "D"},
            {"role": "user", "content": [{"type": "text", "text": ""}]},
        ]
        model.chat(messages=messages)
        sent = vendor.asked[-1].json
        assert sent["system"] == "A\n\nD"
        assert sent["messages"] == [
            {"role": "user", "content": [{"type": "text", "text": t} for t in "bc"]}
        ]

    def test_results_of_several_calls(self, vendor: Vendor, model: Model) -> None:
        """All results stand in the one message after the calls."""
        vendor.answers(Answer(tool_calls=[CALL, {"name": "weather", "arguments": "{}"}]))
        calls = model.chat("weather?", tools=[WEATHER]).tool_calls
        history: list[dict[str, Any]] = [{"role": "user", "content": "weather?"}]
        history.append({"role": "assistant", "content": "", "tool_calls": _given_back(calls)})
        history += [{"role": "tool", "tool_call_id": c.id, "content": "26°"} for c in calls]
        history.append({"role": "user", "content": "and?"})
        assert model.chat(messages=history, tools=[WEATHER]).text == NUMBERS
        assert len(vendor.asked[-1].json["messages"]) == 3
        # Without tools of its own the request still declares those that were called.
        assert model.chat(messages=history).text == NUMBERS
        assert vendor.asked[-1].json["tool_choice"] == {"type": "none"}

    @pytest.mark.parametrize("stream", [False, True])
    def test_thoughts_come_back_with_the_result(
        self, vendor: Vendor, model: Model, stream: bool
    ) -> None:
        vendor.answers(Answer(tool_calls=[CALL, CALL], reasoning="look it up"))
        extra = {"thinking": {"type": "enabled", "budget_tokens": 1024}}
        asked: dict[str, Any] = {"tools": [WEATHER], "generation": extra}
        calls: list[ToolCall] = []
        if stream:
            for chunk in model.chunks("weather?", **asked):
                add_tool_calls(calls, chunk.tool_calls)
        else:
            calls = model.chat("weather?", **asked).tool_calls
        history: list[dict[str, Any]] = [{"role": "user", "content": "weather?"}]
        history.append({"role": "assistant", "content": None, "tool_calls": _given_back(calls)})
        history += [{"role": "tool", "tool_call_id": c.id, "content": "26°"} for c in calls]
        assert model.chat(messages=history, **asked).text == NUMBERS
        kinds = [block["type"] for block in vendor.asked[-1].json["messages"][1]["content"]]
        assert kinds == ["thinking", "tool_use", "tool_use"]

    def test_call_without_arguments(self, vendor: Vendor, model: Model) -> None:
        vendor.answers(*[Answer(tool_calls=[{"name": "weather", "arguments": "{}"}])] * 2)
        assert model.chat(tools=[WEATHER]).tool_calls[0].arguments == "{}"
        calls: list[ToolCall] = []
        for chunk in model.chunks(tools=[WEATHER]):
            add_tool_calls(calls, chunk.tool_calls)
        assert calls[0].arguments == "{}"

    def test_error_in_mid_stream(self, vendor: Vendor, model: Model) -> None:
        # Fast, words and error would arrive together, and nothing would have been passed on.
        vendor.pace = 0.02
        vendor.answers(Answer("a b c", finish="overloaded_error"))
        with pytest.raises(StreamInterruptedError, match=r"overloaded.*in mid-stream") as caught:
            model.chunks()
        assert caught.value.text == "a b c"

    def test_cut_after_the_last_word(self, vendor: Vendor, model: Model) -> None:
        vendor.answers("a b").faults(Cut(7))
        chunks = model.chunks()
        assert "".join(chunk.text for chunk in chunks) == "a b"
        assert (chunks[-1].finish_reason, chunks[-1].usage.completion_tokens) == ("stop", 7)

    @pytest.mark.parametrize(
        ("said", "finish"),
        [
            ("refusal", "content_filter"),
            ("model_context_window_exceeded", "length"),
            ("pause_turn", "stop"),
        ],
    )
    def test_finish_reasons(self, vendor: Vendor, model: Model, said: str, finish: str) -> None:
        vendor.answers(Answer("half", finish=said))
        assert model.chat().finish_reason == finish

    @pytest.mark.parametrize(
        ("kind", "raised"),
        [
            ("no_credit", QuotaExceededError),
            ("too_large", BadRequestError),
            ("slow", ProviderTimeoutError),
        ],
    )
    def test_other_errors(
        self, vendor: Vendor, model: Model, kind: str, raised: type[Exception]
    ) -> None:
        vendor.faults(Refuse(kind))
        with pytest.raises(raised):
            model.chat()

    def test_schema_beyond_what_is_constrained(self, vendor: Vendor, model: Model) -> None:
        schema = {
            "type": "object",
            "properties": {"n": {"type": "integer", "minimum": 3, "description": "a number"}},
        }
        assert json.loads(model.chat(generation={"json_schema": schema}).text) == {"n": 7}
        sent = vendor.asked[-1].json["output_config"]["format"]["schema"]["properties"]
        assert sent == {"n": {"type": "integer", "description": "a number; minimum: 3"}}

    def test_schemas_of_older_models(self, vendor: Vendor) -> None:
        with self.other(vendor, "claude-3-haiku-20240307") as model:
            assert not model.run(model.host.backend.meta()).constrained
            with pytest.raises((CapabilityError, ParameterError), match=r"json_schema|constrained"):
                model.chat(generation={"json_schema": SCHEMA})

    # What cannot be.

    @pytest.mark.parametrize("name", ["seed", "presence_penalty", "min_p", "logprobs"])
    def test_what_claude_does_not_take(self, model: Model, name: str) -> None:
        with pytest.raises((CapabilityError, ParameterError), match=name):
            model.chat(generation={name: 1})

    @pytest.mark.parametrize(
        ("part", "reason"),
        [
            ({"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}, "no base64"),
            (
                {"type": "image_url", "image_url": {"url": "data:text/plain;base64,aGk="}},
                "no image",
            ),
            ({"type": "image_url", "image_url": {"url": "a.png"}}, "data URL in base64"),
            ({"type": "input_audio", "input_audio": {"data": ""}}, "text and images are"),
        ],
    )
    def test_parts_that_cannot_be(
        self, vendor: Vendor, model: Model, part: dict[str, Any], reason: str
    ) -> None:
        before = len(vendor.asked)
        with pytest.raises(ParameterError, match=reason):
            model.chat(messages=[{"role": "user", "content": [part]}])
        assert len(vendor.asked) == before

    def test_prompt(self, model: Model) -> None:
        with pytest.raises(CapabilityError, match="completion"):
            model.ask(GenerateRequest(id="p", prompt="Count!"))

    def test_unknown_model_at_deploy(self, vendor: Vendor) -> None:
        with pytest.raises(HostedModelNotFoundError), self.other(vendor, "claude-9"):
            pass
        vendor.complaints.clear()

    # The server is Anthropic's as far as its own SDK can tell.

    @pytest.fixture
    def sdk(self, vendor: Vendor) -> Iterator[anthropic.Anthropic]:
        with anthropic.Anthropic(api_key=vendor.key, base_url=vendor.url, max_retries=0) as client:
            yield client

    def test_sdk(self, vendor: Vendor, sdk: anthropic.Anthropic) -> None:
        asked: Any = {
            "model": NEW,
            "max_tokens": 100,
            "messages": [{"role": "user", "content": "Count!"}],
        }
        message = sdk.messages.create(**asked)
        assert [block.text for block in message.content if block.type == "text"] == [NUMBERS]
        vendor.answers(Answer("26 degrees", reasoning="look it up", tool_calls=[CALL]))
        tool: Any = {
            "name": "weather",
            "input_schema": WEATHER["function"]["parameters"],  # type: ignore[index]
        }
        with sdk.messages.stream(**asked, tools=[tool]) as stream:
            final = stream.get_final_message()
        assert [block.type for block in final.content] == ["thinking", "text", "tool_use"]
        assert final.content[2].input == {"place": "杭州"}  # type: ignore[union-attr]
        assert (final.stop_reason, final.usage.output_tokens) == ("tool_use", 7)
        assert sdk.models.retrieve(NEW).id == NEW

    def test_sdk_image(self, vendor: Vendor, sdk: anthropic.Anthropic) -> None:
        source: Any = {"type": "base64", "media_type": "image/png", "data": PNG}
        content: Any = [{"type": "image", "source": source}]
        asked: Any = {"model": NEW, "max_tokens": 9}
        sdk.messages.create(**asked, messages=[{"role": "user", "content": content}])
        source["data"] = base64.b64encode(b"no image").decode()
        with pytest.raises(anthropic.BadRequestError, match="Could not process image"):
            sdk.messages.create(**asked, messages=[{"role": "user", "content": content}])
        vendor.complaints.clear()

    @pytest.mark.parametrize(
        ("kind", "raised"),
        [
            ("wrong_key", anthropic.AuthenticationError),
            ("forbidden", anthropic.PermissionDeniedError),
            ("no_model", anthropic.NotFoundError),
            ("bad_request", anthropic.BadRequestError),
            ("rate_limited", anthropic.RateLimitError),
            ("failed", anthropic.InternalServerError),
        ],
    )
    def test_sdk_errors(
        self, vendor: Vendor, sdk: anthropic.Anthropic, kind: str, raised: type[Exception]
    ) -> None:
        vendor.faults(Refuse(kind))
        with pytest.raises(raised):
            sdk.messages.create(
                model=NEW, max_tokens=9, messages=[{"role": "user", "content": "x"}]
            )


class TestConformance(VendorConformance):
    tests = TestClaude


def _given_back(calls: list[ToolCall]) -> list[dict[str, Any]]:
    return [
        {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
        for c in calls
    ]
