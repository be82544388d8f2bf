"""OpenAI's models on Azure.

Source: https://learn.microsoft.com/azure/ai-services/openai/reference
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

from aiohttp import web

from vendors.openai import CREATED, ChatBody, EmbeddingBody, OpenAIVendor
from vendors.server import Answer, Refused

_FILTER = {"hate": {"filtered": False, "severity": "safe"}}


class AzureOpenAIVendor(OpenAIVendor):
    """Deployments by name; versions are dates."""

    deployments: ClassVar = {
        "chat-here": "gpt-4o",
        "vectors-here": "text-embedding-3-small",
        "images-here": "dall-e-3",
        "voice-here": "tts-1",
        "ears-here": "whisper-1",
    }
    versions: ClassVar = ("2023-07-01-preview", "2024-06-01", "2024-10-21")
    errors: ClassVar = {
        "wrong_key": (401, "401", ""),
        "forbidden": (403, "403", ""),
        "no_model": (404, "DeploymentNotFound", ""),
        "no_version": (404, "404", ""),
        "bad_request": (400, "invalid_value", "invalid_request_error"),
        "too_long": (400, "context_length_exceeded", "invalid_request_error"),
        "filtered": (400, "content_filter", ""),
        "rate_limited": (429, "429", ""),
        "quota": (429, "insufficient_quota", "insufficient_quota"),
        "overloaded": (503, "ServiceUnavailable", ""),
        "failed": (500, "InternalServerError", ""),
        "long": (400, "string_above_max_length", "invalid_request_error"),
    }

    def routes(self) -> Iterable[web.RouteDef]:
        yield web.get("/openai/models", self.list_models)
        place = "/openai/deployments/{deployment}"
        yield web.post(f"{place}/chat/completions", self.chat)
        yield web.post(f"{place}/completions", self.complete)
        yield web.post(f"{place}/embeddings", self.embed)
        yield web.post(f"{place}/images/generations", self.draw)
        yield web.post(f"{place}/audio/speech", self.speak)
        yield web.post(f"{place}/audio/transcriptions", self.transcribe)

    def refusal(self, kind: str, message: str) -> web.Response:
        status, code, _ = self.errors[kind]
        error: dict[str, Any] = {"code": code, "message": message}
        if kind == "filtered":
            error["innererror"] = {"code": "ResponsibleAIPolicyViolation"}
        return web.json_response(
            {"error": error}, status=status, headers={"apim-request-id": "apim-0123456789"}
        )

    def check_key(self, request: web.Request) -> None:
        version = request.query.get("api-version")
        self.expect(version in self.versions, "Resource not found", "no_version")
        self.expect("authorization" not in request.headers, "two keys", "wrong_key")
        self.expect(
            request.headers.get("api-key") == self.key,
            "Access denied due to invalid subscription key or wrong API endpoint.",
            "wrong_key",
        )
        deployment = request.match_info.get("deployment")
        if deployment is not None:
            known = deployment in self.deployments
            self.expect(known, "The API deployment for this resource does not exist.", "no_model")

    def decode(self, body: bytes, wanted: Any) -> Any:
        """The deployment says which model it is; the field may be left out."""
        kind = self.deployments["vectors-here" if wanted is EmbeddingBody else "chat-here"]
        if b'"model"' not in body[:30]:
            body = b'{"model":"%s",' % kind.encode() + body[1:]
        return super().decode(body, wanted)

    def check_model(self, model: str) -> None:
        """Whatever the field says, it is the deployment that answers."""

    async def chat(self, request: web.Request) -> web.StreamResponse:
        self._version = request.query.get("api-version", "")
        return await super().chat(request)

    def check_chat(self, body: ChatBody) -> None:
        super().check_chat(body)
        if body.stream_options is not None and self._version < "2024-09":
            raise Refused("bad_request", "Unrecognized request argument supplied: stream_options")

    def completion(self, body: ChatBody, answer: Answer, reason: str) -> dict[str, Any]:
        whole = super().completion(body, answer, reason)
        whole["prompt_filter_results"] = [{"prompt_index": 0, "content_filter_results": _FILTER}]
        whole["choices"][0]["content_filter_results"] = _FILTER
        return whole

    def chunks(self, body: ChatBody, answer: Answer, reason: str) -> Iterator[dict[str, Any]]:
        yield {
            "id": "",
            "object": "",
            "created": 0,
            "model": "",
            "choices": [],
            "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": _FILTER}],
        }
        for chunk in super().chunks(body, answer, reason):
            for choice in chunk["choices"]:
                choice["content_filter_results"] = _FILTER
            yield chunk

    @staticmethod
    def model_object(model: str) -> dict[str, Any]:
        return {
            "id": model,
            "object": "model",
            "created_at": CREATED,
            "status": "succeeded",
            "capabilities": {"inference": True, "chat_completion": True},
        }
