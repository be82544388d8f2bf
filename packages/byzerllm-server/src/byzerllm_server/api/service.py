"""What tells of the server itself: models, health, version, the OpenAPI document."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import msgspec
from msgspec import Struct
from starlette.responses import Response

import byzerllm_server
from byzerllm.errors import ByzerLLMError, ModelNotFoundError
from byzerllm_server.errors import HTTPError
from byzerllm_server.operations import Context, Operation, header
from byzerllm_server.schemas import anthropic
from byzerllm_server.schemas import openai as schema

HEALTH_SECONDS = 5.0


class Health(Struct, kw_only=True):
    """`status` is `ok`, or says what is wrong."""

    status: str


class Readiness(Struct, kw_only=True):
    """`models`: names that can be called now."""

    status: str
    models: list[str]


class Version(Struct, kw_only=True):
    version: str


def _json(answer: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(answer), status, media_type="application/json")


async def list_models(context: Context) -> Response:
    for_anthropic = _asks_as_anthropic(context)
    models = await _models(context)
    if for_anthropic:
        return _json(anthropic.ModelList.of([_anthropic_model(model) for model in models]))
    return _json(schema.ModelList(data=models))


async def one_model(context: Context) -> Response:
    for_anthropic = _asks_as_anthropic(context)
    name = context.scope["path_params"]["model"]
    models = await _models(context)
    for model in models:
        if model.id == name:
            return _json(_anthropic_model(model) if for_anthropic else model)
    raise ModelNotFoundError.unknown(name, [model.id for model in models])


def _asks_as_anthropic(context: Context) -> bool:
    """Both vendors have their models under one path; the header that Anthropic demands of every
    request tells them apart."""
    if not header(context.scope, b"anthropic-version"):
        return False
    context.call.dialect = "anthropic"
    return True


def _anthropic_model(model: schema.Model) -> anthropic.Model:
    created = datetime.fromtimestamp(model.created, UTC)
    return anthropic.Model(id=model.id, display_name=model.id, created_at=created)


async def _models(context: Context) -> list[schema.Model]:
    deployed = {row["model"]: row for row in await context.server.gateway.models()}
    names = context.server.gateway.catalog.names(deployed)
    return [
        schema.Model(
            id=name,
            created=int(deployed[model]["created"]),
            owned_by="byzerllm",
            root=model,
        )
        for name, model in names.items()
        if context.call.may_use(name)
    ]


async def live(context: Context) -> Response:
    """The process answers."""
    return _json(Health(status="ok"))


async def ready(context: Context) -> Response:
    """At least one model can be called."""
    server = context.server
    if server.closing:
        raise HTTPError(503, "the server is stopping", code="stopping")
    try:
        async with asyncio.timeout(HEALTH_SECONDS):
            deployed = await server.gateway.models()
    except (TimeoutError, ByzerLLMError) as error:
        raise HTTPError(
            503, f"the models cannot be reached: {error}", code="cluster_unavailable"
        ) from None
    able = [row["model"] for row in deployed if row["ready_workers"]]
    names = list(server.gateway.catalog.names(able))
    if not names:
        raise HTTPError(503, "no model is ready", code="no_model")
    return _json(Readiness(status="ok", models=names))


async def version(context: Context) -> Response:
    return _json(Version(version=byzerllm_server.__version__))


async def openapi(context: Context) -> Response:
    return Response(context.server.openapi, media_type="application/json")


OPERATIONS = [
    Operation(
        name="models",
        method="GET",
        path="/v1/models",
        summary="List the models",
        handler=list_models,
        answer=schema.ModelList,
    ),
    Operation(
        name="model",
        method="GET",
        path="/v1/models/{model:path}",
        summary="One model",
        handler=one_model,
        answer=schema.Model,
    ),
    Operation(
        name="live",
        method="GET",
        path="/health/live",
        summary="Whether the process answers",
        handler=live,
        answer=Health,
        open=True,
        tag="Service",
    ),
    Operation(
        name="ready",
        method="GET",
        path="/health/ready",
        summary="Whether a model can be called",
        handler=ready,
        answer=Readiness,
        open=True,
        tag="Service",
    ),
    Operation(
        name="health",
        method="GET",
        path="/health",
        summary="As /health/ready",
        handler=ready,
        answer=Readiness,
        open=True,
        tag="Service",
    ),
    Operation(
        name="version",
        method="GET",
        path="/version",
        summary="The version of the server",
        handler=version,
        answer=Version,
        open=True,
        tag="Service",
    ),
    Operation(
        name="openapi",
        method="GET",
        path="/openapi.json",
        summary="This document",
        handler=openapi,
        answer=dict,
        open=True,
        tag="Service",
    ),
]
