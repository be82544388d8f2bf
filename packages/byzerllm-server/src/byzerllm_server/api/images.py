"""`/v1/images/generations`."""

from __future__ import annotations

import base64
import time

import msgspec
from starlette.responses import Response

from byzerllm.requests import ImageRequest, ImageResult
from byzerllm_server.operations import Context, Operation
from byzerllm_server.schemas import media as schema


async def draw(context: Context, body: schema.ImageGenerationRequest) -> Response:
    call = context.call
    gateway = context.server.gateway
    gateway.open(call, body.model)
    request = ImageRequest(
        id=call.id,
        prompt=body.prompt,
        n=body.n or 1,
        size="" if body.size in (None, "auto") else body.size,
        quality=body.quality or "",
        extra=body.vendor_fields(),
    )
    result = await gateway.send(call, request)
    assert isinstance(result, ImageResult)
    answer = schema.Images(
        created=int(time.time()),
        data=[_image(image, result, body.response_format == "url") for image in result.images],
        output_format=result.format,
    )
    return Response(msgspec.json.encode(answer), media_type="application/json")


def _image(data: bytes, result: ImageResult, as_url: bool) -> schema.Image:
    encoded = base64.b64encode(data).decode("ascii")
    image = schema.Image()
    if as_url:
        image.url = f"data:image/{result.format};base64,{encoded}"
    else:
        image.b64_json = encoded
    if result.revised_prompt:
        image.revised_prompt = result.revised_prompt
    return image


OPERATIONS = [
    Operation(
        name="images",
        method="POST",
        path="/v1/images/generations",
        summary="Make images of a text",
        handler=draw,
        body=schema.ImageGenerationRequest,
        answer=schema.Images,
    )
]
