"""`/v1/images/generations`, by a hosted model."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from vendors.openai import OpenAIVendor

PATH = "/v1/images/generations"
BODY = {"model": "painter", "prompt": "a cat"}
PNG = b"\x89PNG\r\n\x1a\n"


def test_an_image(hosted: httpx.Client) -> None:
    answer = hosted.post(PATH, json=BODY).json()
    (image,) = answer["data"]
    assert base64.b64decode(image["b64_json"]).startswith(PNG)
    assert image["revised_prompt"] == "a cat, in detail"
    assert answer["output_format"] == "png"
    assert isinstance(answer["created"], int)


def test_an_address_that_holds_the_image(hosted: httpx.Client) -> None:
    (image,) = hosted.post(PATH, json={**BODY, "response_format": "url"}).json()["data"]
    head, _, data = image["url"].partition(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(data).startswith(PNG)
    assert "b64_json" not in image


def test_what_is_asked_for_reaches_the_vendor(
    hosted: httpx.Client, openai_vendor: OpenAIVendor
) -> None:
    wanted = {"size": "1792x1024", "quality": "hd", "style": "natural", "user": "someone"}
    assert hosted.post(PATH, json={**BODY, **wanted}).status_code == 200
    asked = openai_vendor.asked[-1].json
    assert {name: asked[name] for name in wanted} == wanted
    several = {"model": "sketcher", "prompt": "a cat", "n": 3, "size": "auto"}
    assert len(hosted.post(PATH, json=several).json()["data"]) == 3
    assert "size" not in openai_vendor.asked[-1].json


@pytest.mark.parametrize(
    ("change", "parameter"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"n": 0}, "n"),
        ({"n": 11}, "n"),
        ({"size": "big"}, "size"),
        ({"size": "0x10"}, "size"),
        ({"response_format": "hex"}, "response_format"),
        ({"stream": True}, "stream"),
        ({"output_compression": 101}, "output_compression"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_what_is_wrong_is_named(
    hosted: httpx.Client, change: dict[str, Any], parameter: str
) -> None:
    response = hosted.post(PATH, json={**BODY, **change})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == parameter


@pytest.mark.parametrize("change", [{"n": 2}, {"size": "7x7"}, {"style": "grim"}])
def test_what_the_vendor_refuses_is_a_bad_request(
    hosted: httpx.Client, change: dict[str, Any]
) -> None:
    response = hosted.post(PATH, json={**BODY, **change})
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_a_model_that_does_not_draw_says_so(hosted: httpx.Client) -> None:
    response = hosted.post(PATH, json={**BODY, "model": "chat"})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "unsupported_by_model"
