"""Models on Amazon Bedrock."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import boto3
import botocore.config
import botocore.exceptions
import pytest

from byzerllm.errors import (
    AuthenticationError,
    CapabilityError,
    HostedModelNotFoundError,
    ParameterError,
    ProviderOverloadedError,
    ProviderProtocolError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    StreamInterruptedError,
)
from byzerllm.requests import EmbedRequest, GenerateRequest
from vendors.aws_bedrock import ACCESS_KEY, REGION, TOKEN, BedrockVendor, vector
from vendors.server import NUMBERS, Answer, Cut, Garbage, Refuse, Vendor
from vendors.suite import PNG, WEATHER, Model, ProviderTests, VendorConformance

CLAUDE = "anthropic.claude-3-haiku-20240307-v1:0"
LLAMA = "meta.llama2-70b-chat-v1"


class BedrockTests(ProviderTests):
    """What all families of models have in common."""

    vendor_class = BedrockVendor
    provider = "aws_bedrock"
    model_name: ClassVar[str] = ""

    def params(self, vendor: Vendor) -> dict[str, Any]:
        return {
            "saas.aws_access_key": ACCESS_KEY,
            "saas.aws_secret_key": vendor.key,
            "saas.region_name": REGION,
            "saas.base_url": vendor.url,
            "saas.control_url": vendor.url,
            "saas.model": self.model_name,
        }

    def secrets(self, vendor: Vendor) -> list[str]:
        return [ACCESS_KEY, vendor.key]

    def wrong_key(self, vendor: Vendor) -> dict[str, Any]:
        return {**self.params(vendor), "saas.aws_secret_key": "wrong-key-0123456789"}

    @contextmanager
    def other(self, vendor: Vendor, name: str, **more: Any) -> Iterator[Model]:
        """Another model of the vendor."""
        model = Model(self.provider, {**self.params(vendor), "saas.model": name, **more})
        try:
            yield model
        finally:
            model.close()

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("aws_access_key", r"saas\.aws_access_key='\$\{AWS_ACCESS_KEY_ID\}'"),
            ("aws_secret_key", r"saas\.aws_secret_key='\$\{AWS_SECRET_ACCESS_KEY\}'"),
            ("region_name", r"region.*us-east-1"),
        ],
    )
    def test_missing_key(  # type: ignore[override]
        self, vendor: Vendor, name: str, reason: str
    ) -> None:
        params = {k: v for k, v in self.params(vendor).items() if k != f"saas.{name}"}
        with pytest.raises(ParameterError, match=reason):
            Model(self.provider, params)

    def test_address_without_scheme(self, vendor: Vendor) -> None:
        with pytest.raises(ParameterError, match=r"control_url.*begins with http:// or https://"):
            Model(self.provider, {**self.params(vendor), "saas.control_url": "bedrock.test"})

    def test_unknown_parameter(self, vendor: Vendor) -> None:
        with pytest.raises(ParameterError, match=r"region.*did you mean 'region_name'"):
            Model(self.provider, {**self.params(vendor), "saas.region_nam": "x"})


class TestBedrockClaude(BedrockTests):
    model_name = CLAUDE
    embedding_model = "amazon.titan-embed-text-v2:0"
    embedding_dimensions = 256
    has: ClassVar = frozenset(
        {
            "check",
            "embeddings",
            "images",
            "max_tokens",
            "reasoning",
            "stop",
            "stream",
            "streamed_tools",
            "tool_choice",
            "tools",
            "usage",
        }
    )

    def test_wire(self, vendor: Vendor, model: Model) -> None:
        model.chat(generation={"temperature": 0.5})
        sent = vendor.asked[-1]
        assert sent.json["anthropic_version"] == "bedrock-2023-05-31"
        assert "model" not in sent.json
        assert "stream" not in sent.json

    def test_images_behind_addresses(self, model: Model) -> None:
        part = {"type": "image_url", "image_url": {"url": "https://images.test/a.png"}}
        with pytest.raises(ParameterError, match="data URLs only"):
            model.chat(messages=[{"role": "user", "content": [part]}])

    def test_prompt(self, model: Model) -> None:
        with pytest.raises(CapabilityError, match="none that continues prompts"):
            model.ask(GenerateRequest(id="p", prompt="Count!"))

    def test_error_in_mid_stream(self, vendor: Vendor, model: Model) -> None:
        # Fast, words and error would arrive together, and nothing would have been passed on.
        vendor.pace = 0.02
        vendor.answers(Answer("a b c", finish="modelStreamErrorException_error"))
        with pytest.raises(StreamInterruptedError, match=r"failed while.*in mid") as caught:
            model.chunks()
        assert caught.value.text == "a b c"

    def test_cut_after_the_last_word(self, vendor: Vendor, model: Model) -> None:
        vendor.answers("a b").faults(Cut(6))
        chunks = model.chunks()
        assert "".join(chunk.text for chunk in chunks) == "a b"
        assert (chunks[-1].finish_reason, chunks[-1].usage.completion_tokens) == ("stop", 7)

    @pytest.mark.parametrize(
        ("kind", "raised"),
        [
            ("unknown_key", AuthenticationError),
            ("expired", AuthenticationError),
            ("slow", ProviderTimeoutError),
            ("cold", ProviderOverloadedError),
            ("model_failed", ProviderUnavailableError),
        ],
    )
    def test_other_errors(
        self, vendor: Vendor, model: Model, kind: str, raised: type[Exception]
    ) -> None:
        vendor.faults(Refuse(kind))
        with pytest.raises(raised):
            model.chat()

    # Keys and models at deploy.

    def test_temporary_key(self, vendor: Vendor) -> None:
        with self.other(vendor, CLAUDE, **{"saas.aws_session_token": TOKEN}) as model:
            assert model.chat().text == NUMBERS
        assert vendor.asked[-1].headers["x-amz-security-token"] == TOKEN

    def test_profile(self, vendor: Vendor) -> None:
        with self.other(vendor, f"us.{CLAUDE}") as model:
            assert vendor.asked[-1].path == f"/inference-profiles/us.{CLAUDE}"
            assert model.chat().text == NUMBERS

    def test_unknown_model(self, vendor: Vendor) -> None:
        with (
            pytest.raises(HostedModelNotFoundError),
            self.other(vendor, "anthropic.claude-9"),
        ):
            pass
        vendor.complaints.clear()
        with (
            pytest.raises(ParameterError, match=r"mistral.*saas\.family"),
            self.other(vendor, "mistral.mistral-7b-instruct-v0:2"),
        ):
            pass

    def test_without_a_place_to_ask(self, vendor: Vendor) -> None:
        """An endpoint of one's own says nothing of where models are known."""
        before = len(vendor.asked)
        with self.other(vendor, CLAUDE, **{"saas.control_url": ""}) as model:
            assert len(vendor.asked) == before
            assert model.host.backend.control == ""

    # Vectors.

    def test_vectors(self, vendor: Vendor) -> None:
        with self.other(vendor, self.embedding_model) as model:
            result = model.ask(EmbedRequest(id="e", texts=["a b", "c"], extra={"dimensions": 256}))
            assert result.vectors == [vector("a b") * 32, vector("c") * 32]
            assert result.usage.prompt_tokens == 3
            assert vendor.asked[-1].json["dimensions"] == 256


class TestBedrockLlama(BedrockTests):
    model_name = LLAMA
    has: ClassVar = frozenset({"check", "max_tokens", "stream", "usage"})

    def test_seed(self, vendor: Vendor) -> None:
        """The seed's parameters: the version is Claude's business."""
        with self.other(vendor, LLAMA, **{"saas.model_api_version": "v1"}) as model:
            generation = {"temperature": 0.1, "top_p": 0.9, "max_length": 512}
            model.chat(generation=generation)
        sent = vendor.asked[-1].json
        assert sent == {
            "prompt": "<s>[INST] Count! [/INST]",
            "max_gen_len": 512,
            "temperature": 0.1,
            "top_p": 0.9,
        }

    def test_prompt_of_llama_2(self, vendor: Vendor, model: Model) -> None:
        model.chat(messages=_CONVERSATION)
        assert vendor.asked[-1].json["prompt"] == (
            "<s>[INST] <<SYS>>\nBe short.\n<</SYS>>\n\na\n\nb [/INST] c </s><s>[INST] d [/INST]"
        )

    def test_prompt_of_llama_3(self, vendor: Vendor) -> None:
        with self.other(vendor, "meta.llama3-8b-instruct-v1:0") as model:
            model.chat(messages=_CONVERSATION)
        assert vendor.asked[-1].json["prompt"] == (
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe short.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\na\n\nb<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nc<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nd<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n"
        )

    def test_prompt(self, vendor: Vendor, model: Model) -> None:
        assert model.ask(GenerateRequest(id="p", prompt="one two")).text == NUMBERS
        assert vendor.asked[-1].json == {"prompt": "one two"}

    @pytest.mark.parametrize("name", ["stop", "top_k", "seed", "thinking"])
    def test_what_llama_does_not_take(self, model: Model, name: str) -> None:
        value: Any = ["x"] if name == "stop" else 1
        with pytest.raises(ParameterError, match=rf"'{name}'.*takes .*temperature"):
            model.chat(generation={name: value})

    def test_tools_and_images(self, model: Model) -> None:
        with pytest.raises(CapabilityError, match="tools"):
            model.chat(tools=[WEATHER])
        image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
        with pytest.raises(ParameterError, match="text alone"):
            model.chat(messages=[{"role": "user", "content": [image]}])

    def test_frame_that_is_broken(self, vendor: Vendor, model: Model) -> None:
        vendor.faults(Garbage())
        with pytest.raises(ProviderProtocolError, match="frame of the stream is broken"):
            model.chunks()


# The server is Amazon's as far as its own SDK can tell.


@pytest.fixture
def bedrock() -> Iterator[Vendor]:
    with BedrockVendor() as vendor:
        yield vendor
    assert vendor.complaints == []


def _client(vendor: Vendor, service: str) -> Any:
    return boto3.client(
        service,
        region_name=REGION,
        endpoint_url=vendor.url,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=vendor.key,
        config=botocore.config.Config(retries={"total_max_attempts": 1}),
    )


def test_sdk(bedrock: Vendor) -> None:
    client = _client(bedrock, "bedrock-runtime")
    message = {"role": "user", "content": "Count!"}
    asked: dict[str, Any] = {
        "anthropic_version": "bedrock-2023-05-31",
        "max_tokens": 100,
        "messages": [message],
    }
    answer = client.invoke_model(modelId=CLAUDE, body=json.dumps(asked))
    assert json.loads(answer["body"].read())["content"][0]["text"] == NUMBERS
    stream = client.invoke_model_with_response_stream(modelId=CLAUDE, body=json.dumps(asked))
    events = [json.loads(event["chunk"]["bytes"]) for event in stream["body"]]
    said = [event["delta"]["text"] for event in events if "text" in event.get("delta", {})]
    assert "".join(said) == NUMBERS
    assert events[-1]["type"] == "message_stop"
    control = _client(bedrock, "bedrock")
    assert control.get_foundation_model(modelIdentifier=CLAUDE)["modelDetails"]
    bedrock.answers(Answer("a b", finish="throttlingException_error"))
    stream = client.invoke_model_with_response_stream(modelId=CLAUDE, body=json.dumps(asked))
    with pytest.raises(botocore.exceptions.EventStreamError, match="throttlingException"):
        list(stream["body"])


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("wrong_key", "InvalidSignatureException"),
        ("forbidden", "AccessDeniedException"),
        ("rate_limited", "ThrottlingException"),
        ("bad_request", "ValidationException"),
        ("failed", "InternalServerException"),
    ],
)
def test_sdk_errors(bedrock: Vendor, kind: str, code: str) -> None:
    bedrock.faults(Refuse(kind))
    with pytest.raises(botocore.exceptions.ClientError) as caught:
        _client(bedrock, "bedrock-runtime").invoke_model(modelId=LLAMA, body='{"prompt": "x"}')
    assert caught.value.response["Error"]["Code"] == code


class TestConformance(VendorConformance):
    tests = TestBedrockClaude

    def test_completion(self) -> None:
        """Prompts are Llama's."""
        cls = type(self)
        chats, cls._host = cls._host, self.load({**self.infer_params, "saas.model": LLAMA})
        try:
            super().test_completion()
        finally:
            self.run(cls._host.close())
            cls._host = chats


_CONVERSATION = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "a"},
    {"role": "user", "content": "b"},
    {"role": "assistant", "content": "c"},
    {"role": "user", "content": "d"},
]
