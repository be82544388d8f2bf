"""Pictures of a model of our own over HTTP: a tiny random Stable Diffusion."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from hf_models.diffusion import stable_diffusion

CONFIG = """
version: 1
models:
  painter:
    pretrained_model_type: custom/stable_diffusion
    infer_backend: transformers
    model_path: {folder}
    gpus_per_worker: 0
    infer_params: {{threads: 1}}
"""
PNG = b"\x89PNG\r\n\x1a\n"
SMALL = {"width": 64, "height": 64, "sampling_steps": 3}


@pytest.fixture(scope="module")
def server(
    serving: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    folder = stable_diffusion(tmp_path_factory.mktemp("models") / "sd")
    served = serving(config=CONFIG.format(folder=folder))
    with httpx.Client(base_url=served.url, timeout=60) as client:
        yield client


def test_images_generations(server: httpx.Client) -> None:
    body = {"model": "painter", "prompt": "a cat", "n": 2, "size": "128x64", "user": "me"}
    answer = server.post("/v1/images/generations", json=body)
    assert answer.status_code == 200, answer.text
    files = [base64.b64decode(image["b64_json"]) for image in answer.json()["data"]]
    assert len(set(files)) == 2
    for file in files:
        assert file.startswith(PNG)
        # Width and height in the file's head.
        assert (int.from_bytes(file[16:20]), int.from_bytes(file[20:24])) == (128, 64)


@pytest.mark.parametrize("change", [{"size": "100x64"}, {"quality": "hd"}, {"style": "vivid"}])
def test_images_that_are_refused(server: httpx.Client, change: dict[str, str]) -> None:
    body = {"model": "painter", "prompt": "a cat", "size": "64x64", **change}
    answer = server.post("/v1/images/generations", json=body)
    assert answer.status_code == 400
    assert next(iter(change)) in answer.json()["error"]["message"]


def test_the_table_in_a_chat(server: httpx.Client) -> None:
    body = {
        "model": "painter",
        "messages": [{"role": "user", "content": "a cat"}],
        "seed": 7,
        "sampler_name": "ddim",
        **SMALL,
    }
    answer = server.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    (picture,) = json.loads(answer.json()["choices"][0]["message"]["content"])
    assert base64.b64decode(picture["img64"]).startswith(PNG)
    assert (picture["seed"], picture["sampler_name"]) == (7, "ddim")
    refused = server.post("/v1/chat/completions", json={**body, "sampler_name": "dimm"})
    assert refused.status_code == 400
    assert "did you mean 'ddim'" in refused.json()["error"]["message"]


def test_steps_in_a_stream(server: httpx.Client) -> None:
    body = {
        "model": "painter",
        "messages": [{"role": "user", "content": "a cat"}],
        "stream": True,
        **SMALL,
    }
    with server.stream("POST", "/v1/chat/completions", json=body) as answer:
        events = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert events[-1] == "[DONE]"
    deltas = [json.loads(event)["choices"][0]["delta"] for event in events[:-1]]
    steps = [d["reasoning_content"] for d in deltas if d.get("reasoning_content")]
    assert "".join(steps) == "step 1 of 3\nstep 2 of 3\nstep 3 of 3\n"
    text = "".join(delta.get("content") or "" for delta in deltas)
    assert json.loads(text)[0]["img64"]
