"""The OpenAPI document, made of the same rows as the routes.

Source: the OpenAPI Specification 3.1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

import byzerllm_server
from byzerllm_server.forms import FORM
from byzerllm_server.operations import JSON, Operation
from byzerllm_server.schemas.anthropic import Error as AnthropicError
from byzerllm_server.schemas.openai import Error as OpenAIError

_PARAMETER = re.compile(r"\{(?P<name>\w+)(?::(?P<kind>\w+))?\}")
_REF = "#/components/schemas/{name}"
_REFUSALS = {
    "400": "The request is wrong",
    "401": "The key is missing or not valid",
    "403": "The key may not do this",
    "404": "There is no such model",
    "408": "The body did not come in time",
    "413": "The body is too long",
    "415": "The body is not JSON",
    "429": "Too many requests; see retry-after",
    "500": "The server or the engine failed",
    "502": "The vendor of the model failed",
    "503": "No worker is able to answer now; see retry-after",
    "504": "The model did not answer in time",
}


def document(operations: Sequence[Operation], *, keys: bool) -> bytes:
    """The document as JSON.

    Args:
        keys: the server asks for keys.
    """
    operations = [operation for operation in operations if operation.documented]
    types = list(_types(operations))
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    by_type = dict(zip([id(kind) for kind in types], schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        path = _PARAMETER.sub(lambda found: "{" + found["name"] + "}", operation.path)
        paths.setdefault(path, {})[operation.method.lower()] = _operation(
            operation, by_type, keys=keys
        )
        if operation.body is not None and not operation.extra:
            components[operation.body.__name__]["additionalProperties"] = False
        if operation.form is not None:
            form = components[operation.form.__name__]
            paths[path]["post"]["requestBody"] = _content(FORM, _form(form, operation.file))
    whole: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "Byzer-LLM",
            "version": byzerllm_server.__version__,
            "description": "All models of one Byzer-LLM runtime at one address.",
        },
        "paths": paths,
        "components": {"schemas": components},
    }
    if keys:
        whole["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        }
    return msgspec.json.encode(whole)


def _types(operations: Sequence[Operation]) -> Iterable[Any]:
    seen: set[int] = set()
    for operation in operations:
        for kind in (operation.body, operation.form, operation.answer, operation.event):
            if kind is not None and id(kind) not in seen:
                seen.add(id(kind))
                yield kind
    yield OpenAIError
    yield AnthropicError


def _operation(operation: Operation, schemas: dict[int, Any], *, keys: bool) -> dict[str, Any]:
    guarded = keys and not operation.open
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "tags": [operation.tag],
        "responses": _responses(operation, schemas, guarded=guarded),
    }
    if guarded:
        described["security"] = [{"bearer": []}, {"x-api-key": []}]
    parameters = [
        {"name": found["name"], "in": "path", "required": True, "schema": {"type": "string"}}
        for found in _PARAMETER.finditer(operation.path)
    ]
    if parameters:
        described["parameters"] = parameters
    if operation.body is not None:
        described["requestBody"] = _content(JSON, schemas[id(operation.body)])
    return described


def _form(texts: dict[str, Any], file: str) -> dict[str, Any]:
    """The schema of a form: its texts, and the file."""
    return {
        **texts,
        "properties": {**texts["properties"], file: {"type": "string", "format": "binary"}},
        "required": [*texts["required"], file],
        "additionalProperties": False,
    }


def _content(media: str, schema: Any) -> dict[str, Any]:
    return {"required": True, "content": {media: {"schema": schema}}}


def _responses(operation: Operation, schemas: dict[int, Any], *, guarded: bool) -> dict[str, Any]:
    good: dict[str, Any] = {}
    if operation.answer is not None:
        good[JSON] = {"schema": schemas[id(operation.answer)]}
    if operation.answer is None or operation.media != JSON:
        good[operation.media] = {"schema": {"type": "string"}}
    if operation.event is not None:
        # As OpenAPI 3.2 describes an event: its `data` is JSON, but for OpenAI's last one.
        payload = {
            "type": "string",
            "contentMediaType": JSON,
            "contentSchema": schemas[id(operation.event)],
        }
        openai = operation.dialect == "openai"
        data = {"anyOf": [{"const": "[DONE]"}, payload]} if openai else payload
        good["text/event-stream"] = {
            "schema": {
                "type": "object",
                "properties": {"event": {"type": "string"}, "data": data},
                "required": ["data"],
            }
        }
    responses: dict[str, Any] = {"200": {"description": "The answer", "content": good}}
    error = AnthropicError if operation.dialect == "anthropic" else OpenAIError
    for status, description in _REFUSALS.items():
        if _may_answer(operation, status, guarded=guarded):
            responses[status] = {
                "description": description,
                "content": {JSON: {"schema": schemas[id(error)]}},
            }
    return responses


def _may_answer(operation: Operation, status: str, *, guarded: bool) -> bool:
    if status in ("401", "403"):
        return guarded
    takes_body = operation.body is not None or operation.form is not None
    if status in ("400", "408", "413", "415", "429", "502", "504"):
        return takes_body
    if status == "404":
        return takes_body or "{" in operation.path
    return True
