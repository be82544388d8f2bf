"""The example of pictures that users of earlier releases know: names, keys and the order of calls
are the example's. The model is a tiny Qwen2-VL with random weights, on the CPU."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from byzerllm.errors import ParameterError
from byzerllm.utils.client import ByzerLLM, InferBackend

chat_model_name = "qwen_vl_chat"


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ByzerLLM]:
    from hf_models import vision

    model_location = str(vision.qwen2_vl(tmp_path_factory.mktemp("models") / "Qwen-VL-Chat"))
    llm = ByzerLLM(runtime="local")
    llm.setup_gpus_per_worker(0).setup_num_workers(1).setup_infer_backend(InferBackend.Transformers)
    llm.deploy(
        model_path=model_location,
        pretrained_model_type="custom/qwen_vl_chat",
        udf_name=chat_model_name,
        infer_params={},
    )
    yield llm
    llm.undeploy(chat_model_name)


@pytest.fixture(scope="module")
def image_content(tmp_path_factory: pytest.TempPathFactory) -> str:
    image_path = tmp_path_factory.mktemp("pictures") / "1.jpg"
    Image.effect_noise((60, 40), 120).convert("RGB").save(image_path)
    with open(image_path, "rb") as f:
        return base64.b64encode(f.read()).decode("utf-8")


def test_multi_modal(llm: ByzerLLM, image_content: str) -> None:
    t = llm.chat_oai(
        conversations=[{"role": "user", "content": "这是什么"}],
        model=chat_model_name,
        llm_config={"image": image_content, "max_length": 12},
    )
    answer = json.loads(t[0].output)
    assert set(answer) == {"response", "history"}
    assert re.fullmatch(
        r"Picture 1: <img>[^<>]+\.jpeg</img>\n这是什么", answer["history"][0]["content"]
    )
    assert answer["history"][1:] == [{"role": "assistant", "content": answer["response"]}]

    history = json.loads(t[0].output)["history"]
    rounds = []
    for question in ("能圈出狗么？", "还有什么？"):
        t = llm.chat_oai(
            conversations=[*history, {"role": "user", "content": question}],
            model=chat_model_name,
            llm_config={"image": image_content, "max_length": 12},
        )
        history = json.loads(t[0].output)["history"]
        rounds.append(t[0].metadata["input_tokens_count"])
    assert [message["role"] for message in history] == ["user", "assistant"] * 3
    assert history[0] == answer["history"][0]
    assert history[2] == {"role": "user", "content": "能圈出狗么？"}
    # The picture, which comes with each round, was looked at once: 7 x 5 patches of it and 16
    # tokens of text at most have come with the second question.
    assert rounds[1] - rounds[0] < 100


def test_a_stream_is_the_same_json(llm: ByzerLLM, image_content: str) -> None:
    pieces = [
        text
        for text, _ in llm.stream_chat_oai(
            conversations=[{"role": "user", "content": "这是什么"}],
            model=chat_model_name,
            llm_config={"image": image_content, "max_length": 40},
            delta_mode=True,
        )
    ]
    assert len(pieces) > 2
    assert pieces[0].startswith('{"response": "')
    assert set(json.loads("".join(pieces))) == {"response", "history"}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("path", ["{file}", "/etc/passwd"])
def test_a_path_of_the_caller_is_not_read(
    llm: ByzerLLM, image_content: str, tmp_path: Path, path: str
) -> None:
    # Whoever opens it to read waits for a writer who never comes.
    secret = tmp_path / "secret.png"
    os.mkfifo(secret)
    history = [
        {"role": "user", "content": f"Picture 1: <img>{path.format(file=secret)}</img>\n这是什么"},
        {"role": "assistant", "content": "?"},
    ]
    with pytest.raises(ParameterError, match="does not bring"):
        llm.chat_oai(
            conversations=[*history, {"role": "user", "content": "能圈出狗么？"}],
            model=chat_model_name,
            llm_config={"image": image_content},
        )


def test_no_picture(llm: ByzerLLM) -> None:
    with pytest.raises(ParameterError, match="image"):
        llm.chat_oai(
            conversations=[{"role": "user", "content": "这是什么"}],
            model=chat_model_name,
            llm_config={"image": base64.b64encode(b"no picture at all").decode()},
        )
    t = llm.chat_oai(
        conversations=[{"role": "user", "content": "这是什么"}],
        model=chat_model_name,
        llm_config={"max_length": 3},
    )
    assert json.loads(t[0].output)["history"][0]["content"] == "这是什么"
