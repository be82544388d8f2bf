"""Clients of other projects, as they are, against one server: whole answers and streams.

Behind it are echo models, and OpenAI's models at the local server that plays OpenAI. What imports
much runs in a process of its own, as its users run it.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from server_process import serving
from vendors.openai import PIXEL, OpenAIVendor, spoken, vector
from vendors.server import NUMBERS, Answer

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SCRIPT_SECONDS = 120
WAV = b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(100)
QUESTION = [{"role": "user", "content": "Count to twenty."}]
MODELS = {
    "gpt": "gpt-4o",
    # Those of docs/http-api.md.
    "smollm2": "gpt-4o",
    "embedder": "text-embedding-3-small",
    "voice": "tts-1",
    "ear": "whisper-1",
    "painter": "dall-e-3",
}
HOSTED = """
  {name}:
    pretrained_model_type: saas/openai
    infer_params: {{saas.api_key: {key}, saas.base_url: {url}/v1, saas.model: {model}}}
"""
LOCAL = """
version: 1
models:
  echo: {infer_backend: echo}
  wenxin_chat: {infer_backend: echo}
"""
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
CALL = {"name": "weather", "arguments": '{"city": "Paris"}', "id": "call_7"}


@pytest.fixture(scope="module")
def vendor() -> Iterator[OpenAIVendor]:
    with OpenAIVendor() as played:
        yield played
        assert played.complaints == []


@pytest.fixture(scope="module")
def url(vendor: OpenAIVendor, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the server."""
    config = tmp_path_factory.mktemp("clients") / "byzerllm.yaml"
    models = [
        HOSTED.format(name=name, model=model, key=vendor.key, url=vendor.url)
        for name, model in MODELS.items()
    ]
    config.write_text(LOCAL + "".join(models))
    with serving("auto", "--runtime", "local", "--config", str(config)) as served:
        yield served.url


# openai.


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="simple", max_retries=0) as made:
        yield made


def test_openai_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="gpt", messages=QUESTION)  # type: ignore[call-overload]
    assert answer.choices[0].message.content == NUMBERS
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 20
    stream = client.chat.completions.create(  # type: ignore[call-overload]
        model="gpt", messages=QUESTION, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = stream
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == NUMBERS
    assert last.usage == answer.usage
    with client.chat.completions.stream(model="echo", messages=QUESTION) as events:  # type: ignore[arg-type]
        assert events.get_final_completion().choices[0].message.content == "Count to twenty."


def test_openai_tools(client: openai.OpenAI, vendor: OpenAIVendor) -> None:
    vendor.answers(Answer(tool_calls=[CALL]), Answer(tool_calls=[CALL]))
    answer = client.chat.completions.create(  # type: ignore[call-overload]
        model="gpt", messages=QUESTION, tools=[WEATHER]
    )
    (call,) = answer.choices[0].message.tool_calls
    assert (call.id, call.function.name) == ("call_7", "weather")
    with client.chat.completions.stream(
        model="gpt",
        messages=QUESTION,  # type: ignore[arg-type]
        tools=[WEATHER],  # type: ignore[list-item]
    ) as events:
        message = events.get_final_completion().choices[0].message
    assert message.tool_calls is not None
    assert message.tool_calls[0].function.arguments == '{"city": "Paris"}'


def test_openai_completions(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="echo", prompt=["a b", "c"], n=2)
    assert [choice.text for choice in whole.choices] == ["a b", "a b", "c", "c"]
    pieces = client.completions.create(model="echo", prompt="one two three", stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == "one two three"


def test_openai_embeddings(client: openai.OpenAI) -> None:
    found = client.embeddings.create(model="embedder", input=["a", "b"])
    assert [item.embedding for item in found.data] == [vector("a"), vector("b")]
    (item,) = client.embeddings.create(
        model="embedder", input="a", dimensions=3, encoding_format="float"
    ).data
    assert item.embedding == vector("a")[:3]


def test_openai_responses(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="gpt", input="Count to twenty.")
    assert (answer.output_text, answer.status) == (NUMBERS, "completed")
    with client.responses.stream(model="gpt", input="Count to twenty.") as events:
        deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
        final = events.get_final_response()
    assert "".join(deltas) == final.output_text == NUMBERS


def test_openai_audio(client: openai.OpenAI, tmp_path: Path) -> None:
    speech: dict[str, Any] = {"model": "voice", "input": "hello", "voice": "nova"}
    assert client.audio.speech.create(**speech).read() == spoken("hello")
    with client.audio.speech.with_streaming_response.create(**speech) as streamed:
        assert b"".join(streamed.iter_bytes(100)) == spoken("hello")
    with client.audio.speech.with_streaming_response.create(
        **speech, stream_format="sse"
    ) as streamed:
        events = [json.loads(line[6:]) for line in streamed.iter_lines() if line[:6] == "data: "]
    assert b"".join(base64.b64decode(e["audio"]) for e in events[:-1]) == spoken("hello")

    file = tmp_path / "a.wav"
    file.write_bytes(WAV)
    heard = client.audio.transcriptions.create(model="ear", file=file, language="en")
    assert heard.text == f"{len(WAV)} bytes were heard"
    verbose = client.audio.transcriptions.create(
        model="ear",
        file=file,
        response_format="verbose_json",
        timestamp_granularities=["segment"],
    )
    assert verbose.segments is not None
    assert (verbose.duration, verbose.segments[0].end) == (1.5, 1.5)
    srt = client.audio.transcriptions.create(model="ear", file=file, response_format="srt")
    assert srt.startswith("1\n00:00:00,000 --> 00:00:01,500\n")
    stream = client.audio.transcriptions.create(model="ear", file=file, stream=True)
    assert [event.type for event in stream] == ["transcript.text.delta", "transcript.text.done"]


def test_openai_images(client: openai.OpenAI) -> None:
    drawn = client.images.generate(model="painter", prompt="a cat", size="1024x1024")
    assert drawn.data is not None
    assert base64.b64decode(drawn.data[0].b64_json or "") == PIXEL


def test_openai_models_and_errors(client: openai.OpenAI) -> None:
    assert {*MODELS, "echo", "wenxin_chat"} == {model.id for model in client.models.list()}
    assert client.models.retrieve("echo").id == "echo"
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gtp", messages=QUESTION)  # type: ignore[call-overload]
    assert missing.value.code == "model_not_found"
    assert missing.value.request_id
    with pytest.raises(openai.BadRequestError) as wrong:
        client.embeddings.create(model="echo", input="a", dimensions=77)
    assert wrong.value.param == "dimensions"


@pytest.mark.parametrize("stream", [False, True])
def test_openai_asynchronous(url: str, stream: bool) -> None:
    import asyncio

    async def ask() -> str:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="simple") as asked:
            answer = await asked.chat.completions.create(  # type: ignore[call-overload]
                model="gpt", messages=QUESTION, stream=stream
            )
            if not stream:
                return str(answer.choices[0].message.content)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in answer])

    assert asyncio.run(ask()) == NUMBERS


# anthropic.


def test_anthropic(url: str, vendor: OpenAIVendor) -> None:
    vendor.answers(NUMBERS, NUMBERS, Answer(tool_calls=[CALL]))
    tool = {
        "name": "weather",
        "input_schema": WEATHER["function"]["parameters"],  # type: ignore[index]
    }
    asked: dict[str, Any] = {"model": "gpt", "max_tokens": 99, "messages": QUESTION}
    with anthropic.Anthropic(base_url=url, api_key="simple", max_retries=0) as client:
        answer = client.messages.create(**asked)
        assert answer.content[0].text == NUMBERS
        assert answer.stop_reason == "end_turn"
        with client.messages.stream(**asked) as stream:
            assert "".join(stream.text_stream) == NUMBERS
        called = client.messages.create(**asked, tools=[tool])
        assert called.content[-1].input == {"city": "Paris"}
        tokens = client.messages.count_tokens(model="echo", messages=QUESTION)  # type: ignore[arg-type]
        assert tokens.input_tokens > 0


# Clients that import much: each in a process of its own.

LANGCHAIN = """
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from langchain_core.tools import tool

chat = ChatOpenAI(base_url=URL + "/v1", api_key="simple", model="gpt", max_retries=0)
answer = chat.invoke("Count to twenty.")
assert answer.content == NUMBERS, answer
assert answer.usage_metadata["output_tokens"] == 7
pieces = list(chat.stream("Count to twenty."))
assert "".join(piece.content for piece in pieces) == NUMBERS
assert len(pieces) > 10
assert chat.batch(["a", "b"])[1].content == NUMBERS

@tool
def weather(city: str) -> str:
    "The weather of a city."
    return "fine"

(call,) = chat.bind_tools([weather]).invoke("What is the weather in TOOL?").tool_calls
assert (call["name"], call["args"]) == ("weather", {"city": "Paris"}), call

responses = ChatOpenAI(
    base_url=URL + "/v1", api_key="simple", model="gpt", use_responses_api=True, max_retries=0
)
assert responses.invoke("Count to twenty.").text == NUMBERS

# Its default is to send tokens of OpenAI's own tokenizer instead of texts.
vectors = OpenAIEmbeddings(
    base_url=URL + "/v1", api_key="simple", model="embedder", check_embedding_ctx_length=False
)
assert len(vectors.embed_documents(["a", "b"])) == 2
assert len(vectors.embed_query("a")) == 8
"""

LLAMA_INDEX = """
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

def model(**more):
    return OpenAILike(api_base=URL + "/v1", api_key="simple", max_retries=0, **more)

chat = model(model="gpt", is_chat_model=True, context_window=4096)
asked = [ChatMessage(role="user", content="Count to twenty.")]
assert chat.chat(asked).message.content == NUMBERS
pieces = list(chat.stream_chat(asked))
assert "".join(piece.delta for piece in pieces) == NUMBERS
assert pieces[-1].message.content == NUMBERS
assert chat.complete("Count to twenty.").text == NUMBERS

plain = model(model="echo", is_chat_model=False)
assert plain.complete("one two three").text == "one two three"
assert "".join(piece.delta for piece in plain.stream_complete("a b c")) == "a b c"
"""

LITELLM = """
import litellm

common = {"api_base": URL + "/v1", "api_key": "simple", "num_retries": 0}
asked = {"model": "openai/gpt", "messages": [{"role": "user", "content": "Count to twenty."}]}
answer = litellm.completion(**asked, **common)
assert answer.choices[0].message.content == NUMBERS
pieces = list(litellm.completion(**asked, **common, stream=True))
assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == NUMBERS

text = {"model": "text-completion-openai/echo", "prompt": "one two three"}
assert litellm.text_completion(**text, **common).choices[0].text == "one two three"
pieces = litellm.text_completion(**text, **common, stream=True)
assert "".join(piece.choices[0].text or "" for piece in pieces) == "one two three"

vectors = litellm.embedding(model="openai/embedder", input=["a", "b"], **common)
assert [len(item["embedding"]) for item in vectors.data] == [8, 8]
answer = litellm.responses(model="openai/gpt", input="Count to twenty.", **common)
assert answer.output[0].content[0].text == NUMBERS
drawn = litellm.image_generation(model="openai/painter", prompt="a cat", **common)
assert drawn.data[0].b64_json
spoken = litellm.speech(model="openai/voice", input="hello", voice="nova", **common)
assert spoken.content.startswith(b"ID3")
with open("speech.wav", "rb") as file:
    heard = litellm.transcription(model="openai/ear", file=file, **common)
assert "bytes were heard" in heard.text
ranked = litellm.rerank(
    model="cohere/echo",
    query="a panda",
    documents=["hi", "the panda is a bear"],
    api_base=URL + "/v1/rerank",
    api_key="simple",
)
assert [item["index"] for item in ranked.results] == [1, 0]
"""


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., str]:
    """Runs a program in a process of its own, in a folder with `speech.wav`."""
    (tmp_path / "speech.wav").write_bytes(WAV)

    def start(*command: str) -> str:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=SCRIPT_SECONDS,
            check=False,
            cwd=tmp_path,
            env={
                **os.environ,
                "LITELLM_LOCAL_MODEL_COST_MAP": "True",
                "LANGSMITH_TRACING": "false",
                "NO_PROXY": "127.0.0.1",
            },
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout

    return start


@pytest.mark.parametrize(
    ("package", "program"),
    [
        ("langchain_openai", LANGCHAIN),
        ("llama_index.llms.openai_like", LLAMA_INDEX),
        ("litellm", LITELLM),
    ],
)
def test_other_clients(
    url: str, vendor: OpenAIVendor, run: Callable[..., str], package: str, program: str
) -> None:
    if not _installed(package):
        pytest.skip(f"{package} is not installed: pip install --no-deps -r constraints/clients.txt")
    if "TOOL" in program:
        # What comes before the call of the tool.
        vendor.answers(*[NUMBERS] * 4, Answer(tool_calls=[CALL]))
    run(sys.executable, "-c", f"URL = {url!r}\nNUMBERS = {NUMBERS!r}\n{program}")


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


# What the documents say.


def blocks(page: str, kind: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text()
    return [code for info, code in BLOCK.findall(text) if info == kind]


def at(url: str, text: str) -> str:
    return re.sub(r"http://127\.0\.0\.1:\d+", url, text)


@pytest.mark.parametrize("page", ["http-api.md", "media-api.md"])
def test_curl_as_in_the_documents(url: str, run: Callable[..., str], page: str) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    lines = [code for code in blocks(page, "bash") if code.startswith("curl ")]
    assert lines
    for line in lines:
        run("sh", "-c", at(url, line).replace("curl ", "curl --fail-with-body -sS ", 1))


def test_curl_streams(url: str, run: Callable[..., str]) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    body = json.dumps({"model": "echo", "messages": QUESTION, "stream": True})
    said = run("curl", "-sSN", f"{url}/v1/chat/completions", "--json", body)
    assert said.endswith("data: [DONE]\n\n")
    assert said.count("data: ") >= 4


def test_python_as_on_the_page_of_media(url: str, run: Callable[..., str]) -> None:
    program = at(url, "".join(blocks("media-api.md", "python")))
    assert "bytes were heard" in run(sys.executable, "-c", program)


SEED = """
from openai import OpenAI
client = OpenAI(
    base_url="http://127.0.0.1:8000/v1",
    api_key="xxxx"
)

chat_completion = client.chat.completions.create(
    model="wenxin_chat",
    messages=[{"role": "user", "content": "写一个排序算法"}],
    stream=False
)

print(chat_completion.choices[0].message.content)
"""

SEED_STREAM = """

from openai import OpenAI
client = OpenAI(
    base_url="http://127.0.0.1:8000/v1",
    api_key="simple"
)

chat_completion = client.chat.completions.create(
    model="wenxin_chat",
    messages=[{"role": "user", "content": "写一个排序算法"}],
    stream=True
)

for chunk in chat_completion:
    print(chunk.choices[0].delta.content or "", end="")
"""


@pytest.mark.parametrize("program", [SEED, SEED_STREAM])
def test_the_seeds_snippets(url: str, run: Callable[..., str], program: str) -> None:
    assert run(sys.executable, "-c", at(url, program)).strip() == "写一个排序算法"
