"""The tests that Qwen's text and vision models at DashScope share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dashscope
import pytest

from byzerllm.errors import (
    ContentFilteredError,
    ParameterError,
    RateLimitedError,
    StreamInterruptedError,
)
from vendors.qianwen import REQUEST_ID, QianwenVendor
from vendors.server import NUMBERS, Answer, Refuse, Vendor
from vendors.suite import Model, ProviderTests


class DashScopeTests(ProviderTests):
    """What text and vision models have in common."""

    def params(self, vendor: Vendor) -> dict[str, Any]:
        return {
            "saas.api_key": vendor.key,
            "saas.base_url": f"{vendor.url}/api/v1",
            "saas.model": vendor.models[0],
        }

    @contextmanager
    def other(self, vendor: Vendor, name: str, **more: Any) -> Iterator[Model]:
        """Another model of the vendor."""
        model = Model(self.provider, {**self.params(vendor), "saas.model": name, **more})
        try:
            yield model
        finally:
            model.close()

    @pytest.fixture
    def sdk(self, vendor: Vendor, monkeypatch: pytest.MonkeyPatch) -> Any:
        monkeypatch.setattr(dashscope, "base_http_api_url", f"{vendor.url}/api/v1")
        return dashscope

    @pytest.mark.parametrize("increments", [True, False])
    def test_both_kinds_of_events(self, vendor: Vendor, model: Model, increments: bool) -> None:
        vendor.answers("你好 a b 🌍 c")
        chunks = model.chunks(generation={"gen.incremental_output": increments})
        assert "".join(chunk.text for chunk in chunks) == "你好 a b 🌍 c"
        assert len(chunks) > 2
        assert vendor.asked[-1].json["parameters"]["incremental_output"] is increments

    def test_whole_texts_without_increments(self, vendor: Vendor, model: Model) -> None:
        """Half of a character is no text yet."""
        answer = Answer(pieces=["a", "b\ufffd"])
        vendor.answers(answer)
        answer.text = "ab好"
        chunks = model.chunks(generation={"incremental_output": False})
        assert "".join(chunk.text for chunk in chunks) == "ab好"

    def test_text_that_is_taken_back(self, vendor: Vendor, model: Model) -> None:
        answer = Answer("one two")
        vendor.answers(answer)
        answer.text = "three"
        with pytest.raises(StreamInterruptedError, match="takes back") as caught:
            model.chunks(generation={"incremental_output": False})
        assert caught.value.text == "one two"

    def test_whole_answers_have_no_increments(self, vendor: Vendor, model: Model) -> None:
        assert model.chat(generation={"incremental_output": True}).text == NUMBERS
        assert "incremental_output" not in vendor.asked[-1].json["parameters"]

    def test_increments_are_true_or_false(self, model: Model) -> None:
        with pytest.raises(ParameterError, match=r"incremental_output.*true or false.*'maybe'"):
            model.chunks(generation={"incremental_output": "maybe"})

    def test_refused_by_an_event(self, vendor: QianwenVendor, model: Model) -> None:
        vendor.refuses_by_event = True
        vendor.faults(Refuse("filtered"))
        with pytest.raises(ContentFilteredError, match="inappropriate") as caught:
            model.chunks()
        details = caught.value.details
        assert (details["status"], details["vendor_request_id"]) == (400, REQUEST_ID)

    def test_error_in_mid_stream(self, vendor: Vendor, model: Model) -> None:
        vendor.answers(Answer("", finish="error Throttling"))
        with pytest.raises(RateLimitedError) as caught:
            model.chunks()
        assert caught.value.vendor_code == "Throttling"
        vendor.pace = 0.05
        vendor.answers(Answer("a b", finish="error InternalError"))
        with pytest.raises(StreamInterruptedError) as interrupted:
            model.chunks()
        assert interrupted.value.text == "a b"

    @pytest.mark.parametrize("name", ["min_p", "frequency_penalty"])
    def test_what_dashscope_does_not_take(self, model: Model, name: str) -> None:
        with pytest.raises(ParameterError, match=rf"'{name}'.*takes .*temperature"):
            model.chat(generation={name: 1})
