"""`/metrics`."""

from __future__ import annotations

from starlette.responses import Response

from byzerllm_server.operations import Context, Operation, header


async def metrics(context: Context) -> Response:
    text, media = await context.server.metrics.exposition(header(context.scope, b"accept"))
    return Response(text, headers={"content-type": media, "cache-control": "no-store"})


OPERATIONS = [
    Operation(
        name="metrics",
        method="GET",
        path="/metrics",
        summary="Figures for Prometheus",
        handler=metrics,
        media="text/plain",
        tag="Service",
    )
]
