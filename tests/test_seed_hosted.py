"""The examples about hosted models that users of earlier releases know, from the command line and
from Python, on a live cluster; each vendor is played by a local server that speaks its wire.

The lines and parameters are the examples'; keys and addresses are the local servers'. What is left
of a vendor's address is added where the example relies on the vendor's own.
"""

from __future__ import annotations

import base64
import contextlib
import importlib
import itertools
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import byzerllm
from byzerllm.errors import ModelNotFoundError
from byzerllm.utils.client import ByzerLLM
from vendors import aws_bedrock, minimax, sparkdesk, volcengine
from vendors.server import NUMBERS, Vendor

pytestmark = pytest.mark.cluster

Start = Callable[[str], Vendor]
VENDORS = {
    "openai": "vendors.openai:OpenAIVendor",
    "azure_openai": "vendors.azure_openai:AzureOpenAIVendor",
    "qianwen": "vendors.qianwen:QianwenVendor",
    "qianwen_vl": "vendors.qianwen_vl:QianwenVLVendor",
    "zhipu": "vendors.zhipu:ZhipuVendor",
    "baichuan": "vendors.baichuan:BaichuanVendor",
    "minimax": "vendors.minimax:MiniMaxVendor",
    "sparkdesk": "vendors.sparkdesk:SparkDeskVendor",
    "aws_bedrock": "vendors.aws_bedrock:BedrockVendor",
    "claude": "vendors.claude:ClaudeVendor",
    "gemini": "vendors.gemini:GeminiVendor",
    "volcengine": "vendors.volcengine:VolcengineVendor",
    "azure": "vendors.azure:AzureVendor",
}
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8/5+hHgAHggJ/PchI7wAAAABJRU5ErkJg"
    "gg=="
)


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    """`start("openai")`: the vendor's server, the same for the whole module."""
    running: dict[str, Vendor] = {}
    with contextlib.ExitStack() as ending:

        def get(name: str) -> Vendor:
            if name not in running:
                module, _, cls = VENDORS[name].partition(":")
                vendor = getattr(importlib.import_module(module), cls)()
                running[name] = ending.enter_context(vendor)
            return running[name]

        yield get
        assert {name: v.complaints for name, v in running.items() if v.complaints} == {}


@pytest.fixture
def cli(cluster: Any) -> Iterator[Callable[..., str]]:
    """Runs a `byzerllm` line, and takes off what it deployed."""
    deployed: list[str] = []

    def run(line: str, **environment: str) -> str:
        words = shlex.split(line)
        done = subprocess.run(
            [sys.executable, "-m", *words, "--ray_address", cluster.address],
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, **environment},
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert all(value not in done.stdout + done.stderr for value in environment.values())
        if words[1] == "deploy":
            deployed.append(words[words.index("--model") + 1])
        return done.stdout

    yield run
    for name in deployed:
        with contextlib.suppress(ModelNotFoundError):
            ByzerLLM().undeploy(name, force=True)


@pytest.fixture
def llm(cluster: Any) -> Iterator[ByzerLLM]:
    """A client; what it deploys is taken off at the end."""
    llm = ByzerLLM(verbose=True)
    llm.setup_num_workers(1).setup_gpus_per_worker(0).setup_cpus_per_worker(0.001)
    before = {row["model"] for row in llm.models()}
    yield llm
    for row in llm.models():
        if row["model"] not in before:
            llm.undeploy(row["model"], force=True)


SMALL = "--cpus_per_worker 0.001 --gpus_per_worker 0"
LINES = {
    "qianwen": (
        f"--pretrained_model_type saas/qianwen {SMALL} --num_workers 1 --worker_concurrency 10 "
        "--infer_params saas.api_key=${KEY}  saas.model=qwen-max saas.base_url={url}/api/v1 "
        "--model qianwen_chat"
    ),
    "openai": (
        f"--pretrained_model_type saas/openai {SMALL} --worker_concurrency 10 --num_workers 1 "
        "--infer_params saas.api_key=${KEY} saas.model=gpt-3.5-turbo-0125 saas.base_url={url}/v1 "
        "--model gpt3_5_chat"
    ),
    "claude": (
        f"--pretrained_model_type saas/claude {SMALL} --num_workers 1 "
        "--infer_params saas.api_key=${KEY} saas.model=claude-3-haiku-20240307 "
        "saas.base_url={url} --model haiku_chat"
    ),
    "gemini": (
        f"--pretrained_model_type saas/gemini {SMALL} --num_workers 1 "
        "--infer_params saas.api_key=${KEY} saas.model=gemini-pro saas.base_url={url} "
        "--model gemini_chat"
    ),
    "kimi": (
        f"--pretrained_model_type saas/openai {SMALL} --num_workers 2 "
        '--infer_params saas.api_key=${KEY} saas.base_url="{url}/v1" saas.model=moonshot-v1-8k '
        "--model kimi_8k_chat"
    ),
    "deepseek": (
        f"--pretrained_model_type saas/openai {SMALL} --worker_concurrency 10 --num_workers 1 "
        '--infer_params saas.base_url="{url}/v1" saas.api_key=${KEY} saas.model=deepseek-chat '
        "--model deepseek_chat"
    ),
}
SPEAKS_LIKE = {"kimi": "openai", "deepseek": "openai"}


@pytest.mark.parametrize("name", LINES)
def test_deployed_from_the_command_line(
    name: str, cli: Callable[..., str], start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    vendor = start(SPEAKS_LIKE.get(name, name))
    model = LINES[name].partition("saas.model=")[2].split()[0]
    monkeypatch.setattr(type(vendor), "models", (*type(vendor).models, model))
    line = LINES[name].replace("${KEY}", "'${KEY}'").replace("{url}", vendor.url)
    cli(f"byzerllm deploy {line}", KEY=vendor.key)
    deployed = line.rpartition(" ")[2]
    assert cli(f"byzerllm query --model {deployed} --query '你好'").strip() == NUMBERS
    cli(f"byzerllm undeploy --model {deployed}")


def test_sparkdesk_from_the_command_line(cli: Callable[..., str], start: Start) -> None:
    vendor: Any = start("sparkdesk")
    cli(
        f"byzerllm deploy --pretrained_model_type saas/sparkdesk {SMALL} --num_workers 1 "
        f"--infer_params saas.appid={sparkdesk.APPID}  'saas.api_key=${{KEY}}' "
        "'saas.api_secret=${SECRET}'  "
        f'saas.gpt_url="{vendor.url.replace("http", "ws")}/v3.5/chat" --model sparkdesk_chat',
        KEY=vendor.key,
        SECRET=sparkdesk.SECRET,
    )
    assert cli("byzerllm query --model sparkdesk_chat --query '你好'").strip() == NUMBERS
    cli("byzerllm undeploy --model sparkdesk_chat")


def test_embeddings_of_qianwen(cli: Callable[..., str], start: Start, llm: ByzerLLM) -> None:
    vendor = start("qianwen")
    cli(
        f"byzerllm deploy --pretrained_model_type saas/qianwen {SMALL} --num_workers 2 "
        "--infer_params 'saas.api_key=${MODEL_QIANWEN_TOKEN}'  saas.model=text-embedding-v2 "
        f"saas.base_url={vendor.url}/api/v1 --model qianwen_emb",
        MODEL_QIANWEN_TOKEN=vendor.key,
    )
    vectors = llm.emb("qianwen_emb", ["你好", "再见"])
    assert len(vectors) == 2
    assert len(vectors[0].output) == len(vectors[1].output) > 1


def hosted(name: str, vendor: Any) -> dict[str, Any]:
    """`infer_params` of the Python examples."""
    key = vendor.key
    return {
        "baichuan": {
            "saas.api_key": key,
            "saas.model": "Baichuan2-Turbo",
            "saas.base_url": f"{vendor.url}/v1",
        },
        "openai": {
            "saas.api_key": key,
            "saas.model": "gpt-3.5-turbo-1106",
            "saas.base_url": f"{vendor.url}/v1",
        },
        "zhipu": {
            "saas.api_key": key,
            "saas.model": "glm-4",
            "saas.base_url": f"{vendor.url}/api/paas/v4",
        },
        "azure_openai": {
            "saas.api_type": "azure",
            "saas.api_key": key,
            "saas.api_base": vendor.url,
            "saas.api_version": "2023-07-01-preview",
            "saas.deployment_id": "chat-here",
        },
        "minimax": {
            "saas.api_key": key,
            "saas.group_id": minimax.GROUP,
            "saas.model": "abab5.5-chat",
            "saas.api_url": f"{vendor.url}/v1/text/chatcompletion_pro",
        },
        "sparkdesk": {
            "saas.appid": sparkdesk.APPID,
            "saas.api_key": key,
            "saas.api_secret": sparkdesk.SECRET,
            "saas.gpt_url": f"{vendor.url.replace('http', 'ws')}/v3.1/chat",
            "saas.domain": "generalv3",
        },
        "aws_bedrock": {
            "saas.aws_access_key": aws_bedrock.ACCESS_KEY,
            "saas.aws_secret_key": key,
            "saas.region_name": aws_bedrock.REGION,
            "saas.model_api_version": "v1",
            "saas.model": "meta.llama2-70b-chat-v1",
            "saas.base_url": vendor.url,
            "saas.control_url": vendor.url,
        },
    }[name]


@pytest.mark.parametrize(
    "name",
    ["baichuan", "openai", "zhipu", "azure_openai", "minimax", "sparkdesk", "aws_bedrock"],
)
def test_deployed_from_python(
    name: str, llm: ByzerLLM, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    vendor = start(name)
    params = hosted(name, vendor)
    if "saas.model" in params:
        models = (*type(vendor).models, params["saas.model"])
        monkeypatch.setattr(type(vendor), "models", models)
    chat_name = f"{name}_chat"
    if llm.is_model_exist(chat_name):
        llm.undeploy(udf_name=chat_name)
    llm.deploy(
        model_path="",
        pretrained_model_type=f"saas/{name}",
        udf_name=chat_name,
        infer_params=params,
    )
    v = llm.chat_oai(model=chat_name, conversations=[{"role": "user", "content": "你好"}])
    assert v[0].output.strip() == NUMBERS
    llm.setup_template(model=chat_name, template="auto")


@pytest.mark.parametrize("incremental", [False, True])
def test_streams_of_qianwen(llm: ByzerLLM, start: Start, incremental: bool) -> None:
    vendor = start("qianwen")
    chat_name = "qianwen_chat"
    llm.deploy(
        model_path="",
        pretrained_model_type="saas/qianwen",
        udf_name=chat_name,
        infer_params={
            "saas.api_key": vendor.key,
            "saas.model": "qwen-turbo",
            "saas.base_url": f"{vendor.url}/api/v1",
        },
    )
    v = llm.stream_chat_oai(
        model=chat_name,
        conversations=[{"role": "user", "content": "你好，你是谁"}],
        llm_config={"gen.incremental_output": incremental},
    )
    texts = []
    for t in v:
        print(t, flush=True)
        texts.append(t[0])
    assert texts[-1] == NUMBERS
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(texts))
    assert len(texts) > 3


# Images in messages.


def test_yi_vl_plus(cli: Callable[..., str], llm: ByzerLLM, start: Start) -> None:
    vendor = start("openai")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(vendor), "models", (*type(vendor).models, "yi-vl-plus"))
        cli(
            "byzerllm deploy  --pretrained_model_type saas/official_openai --infer_params "
            f"'saas.api_key=${{KEY}}' saas.model=yi-vl-plus saas.base_url={vendor.url}/v1 "
            "--model yi_vl_chat",
            KEY=vendor.key,
        )
        image_url = base64.b64encode(PIXEL).decode()
        v = llm.chat_oai(
            model="yi_vl_chat",
            conversations=[
                {
                    "role": "user",
                    "content": json.dumps(
                        [
                            {"text": "详细描述图片里都有啥"},
                            {"image": f"data:image/jpg,{image_url}"},
                        ],
                        ensure_ascii=False,
                    ),
                }
            ],
        )
    assert v[0].output == NUMBERS
    parts = vendor.asked[-1].json["messages"][0]["content"]
    assert parts[0] == {"type": "text", "text": "详细描述图片里都有啥"}
    assert parts[1]["image_url"]["url"].endswith(f";base64,{image_url}")


def test_qianwen_vl(llm: ByzerLLM, start: Start) -> None:
    vendor = start("qianwen_vl")
    chat_name = "qianwen_vl_chat"
    llm.deploy(
        model_path="",
        pretrained_model_type="saas/qianwen_vl",
        udf_name=chat_name,
        infer_params={
            "saas.api_key": vendor.key,
            "saas.model": "qwen-vl-plus",
            "saas.base_url": f"{vendor.url}/api/v1",
        },
    )
    llm = byzerllm.ByzerLLM()
    llm.setup_template(model=chat_name, template="auto")
    llm.setup_default_model_name(chat_name)
    image = base64.b64encode(PIXEL).decode("utf-8")
    t = llm.chat_oai(
        conversations=[
            {
                "role": "user",
                "content": json.dumps(
                    [{"image": image, "text": "图片里有什么"}], ensure_ascii=False
                ),
            }
        ]
    )
    assert t[0].output == NUMBERS


# Speech and images out of models.


def speech(name: str, vendor: Any) -> dict[str, Any]:
    return {
        "openai": {
            "saas.api_key": vendor.key,
            "saas.model": "tts-1",
            "saas.base_url": f"{vendor.url}/v1",
        },
        "volcengine": {
            "saas.api_key": vendor.key,
            "saas.app_id": volcengine.APP,
            "saas.model": "volcano_tts",
            "saas.base_url": vendor.url,
        },
        "azure": {
            "saas.api_key": vendor.key,
            "saas.service_region": "eastus",
            "saas.base_url": vendor.url,
        },
    }[name]


@pytest.mark.parametrize(
    ("name", "text", "voice"),
    [
        ("openai", "hello, open_tts", "alloy"),
        ("volcengine", "你好，大帅哥", "BV705_streaming"),
        ("azure", "你好，azure_tts", "zh-CN-XiaoxiaoNeural"),
    ],
)
def test_speech(name: str, text: str, voice: str, llm: ByzerLLM, start: Start) -> None:
    vendor = start(name)
    model = f"{name}_tts"
    llm.deploy(
        pretrained_model_type=f"saas/{name}", udf_name=model, infer_params=speech(name, vendor)
    )
    llm.setup_default_model_name(model)
    asked = {"input": text, "voice": voice, "response_format": "mp3"}
    conversations = [{"role": "user", "content": json.dumps(asked, ensure_ascii=False)}]
    t = llm.chat_oai(conversations=conversations)
    whole = base64.b64decode(t[0].output)
    assert len(whole) > 10
    pieces = [s[0] for s in llm.stream_chat_oai(conversations=conversations)]
    assert all(isinstance(piece, bytes) for piece in pieces)
    assert b"".join(pieces) == whole


def test_image_generation(llm: ByzerLLM, start: Start) -> None:
    vendor = start("openai")
    llm.deploy(
        pretrained_model_type="saas/openai",
        udf_name="openai_image_gen",
        infer_params={
            "saas.api_key": vendor.key,
            "saas.model": "dall-e-3",
            "saas.base_url": f"{vendor.url}/v1",
        },
    )
    llm.setup_default_model_name("openai_image_gen")
    asked = {"input": "a white siamese cat", "size": "1024x1024", "quality": "standard"}
    t = llm.chat_oai(conversations=[{"role": "user", "content": json.dumps(asked)}])
    assert base64.b64decode(t[0].output).startswith(b"\x89PNG")
