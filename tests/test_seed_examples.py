"""The Python examples that the users of earlier releases know, against a live cluster.

Names, keys and order of calls are theirs; paths, sizes, addresses and the backend are this test's:
the echo backend stands for the engines. Slips that are corrected are listed in seed_slips.md.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from byzerllm.errors import ParameterError
from byzerllm.utils.client import ByzerLLM, InferBackend, LLMRequest, Templates

pytestmark = pytest.mark.cluster
CHAT = "chat"


def small(llm: ByzerLLM) -> ByzerLLM:
    """What stands for the GPUs and the engine of the examples."""
    return llm.setup_gpus_per_worker(0).setup_cpus_per_worker(0.1).setup_infer_backend("echo")


@pytest.fixture(scope="module")
def deployed(cluster: object) -> Iterator[ByzerLLM]:
    llm = ByzerLLM()
    small(llm).setup_num_workers(4)
    llm.deploy(pretrained_model_type="custom/auto", udf_name=CHAT, infer_params={})
    yield llm
    llm.undeploy(udf_name=CHAT)


@pytest.fixture
def llm(deployed: ByzerLLM) -> ByzerLLM:
    """A client of the deployment `chat`, as the later examples presume one."""
    return ByzerLLM().setup_default_model_name(CHAT)


QUICK_START = """
import sys
import ray
from byzerllm.utils.client import ByzerLLM,LLMRequest,InferBackend

ray.init(address=sys.argv[1],namespace="default",ignore_reinit_error=True)

llm = ByzerLLM()

llm.setup_gpus_per_worker(0).setup_num_workers(1)
llm.setup_infer_backend("echo")

llm.deploy(model_path="",
           pretrained_model_type="custom/auto",
           udf_name="llama2_chat",infer_params={})

llm_client = ByzerLLM()
llm_client.setup_template("llama2_chat","auto")

v = llm_client.chat_oai(model="llama2_chat",conversations=[{
    "role":"user",
    "content":"hello",
}])

print(v[0].output)
"""

FROM_OUTSIDE = """
import sys
import byzerllm
from byzerllm.utils.client.types import Templates

byzerllm.connect_cluster(address=sys.argv[1])

model_name = "llama2_chat"
llm = byzerllm.ByzerLLM()
llm.setup_template(model=model_name,template=Templates.default())
llm.setup_default_model_name(model_name)

t = llm.chat_oai(conversations=[{
    "role":"user",
    "content":"你好"}])
print(t[0].output)
"""


def run(code: str, address: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, address],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def test_quick_start_and_connecting_from_outside(cluster: Any) -> None:
    assert run(QUICK_START, cluster.address) == "hello"
    try:
        # The echo answers with its prompt, which the default template writes.
        answer = run(FROM_OUTSIDE, cluster.client_address)
        assert answer.endswith("answer the user question correctly.")
    finally:
        ByzerLLM().undeploy(udf_name="llama2_chat")


def test_embedding(cluster: object) -> None:
    llm = ByzerLLM()
    small(llm.setup_gpus_per_worker(0.4).setup_num_workers(2))
    llm.deploy(model_path="", pretrained_model_type="custom/auto", udf_name="emb", infer_params={})
    try:
        t = llm.emb("emb", LLMRequest(instruction="wow"))
        assert t[0].output == [3.0, 0.0]
        llm.setup_default_emb_model_name("emb")
        v = llm.emb(None, LLMRequest(instruction="你好"))
        assert v.output == [2.0, 0.0]
    finally:
        if llm.is_model_exist("emb"):
            llm.undeploy(udf_name="emb")
    assert not llm.is_model_exist("emb")


def test_chat_with_a_request(llm: ByzerLLM) -> None:
    assert llm.chat("chat", LLMRequest(instruction="hello world"))[0].output == "hello world"


def test_model_meta(llm: ByzerLLM) -> None:
    meta = llm.get_meta(model="chat")
    assert {
        "model_deploy_type",
        "backend",
        "support_stream",
        "support_chat_template",
        "max_model_len",
        "architectures",
    } <= set(meta)
    assert meta["model_deploy_type"] == "proprietary"
    llm.setup_auto("chat")
    llm.setup_max_model_length("chat", meta.get("max_model_len", 32000))


def test_chat_template(llm: ByzerLLM) -> None:
    llm.setup_template("chat", Templates.qwen())
    prompt = llm.chat_oai("hi", only_return_prompt=True)[0].input
    assert "<|im_start|>user\nhi<|im_end|>" in prompt
    llm.setup_template("chat", "auto")
    assert llm.chat_oai("hi")[0].output == "hi"


def test_default_generation_parameters(llm: ByzerLLM) -> None:
    llm.setup_extra_generation_params("chat", {"generation.stop_token_ids": [7]})
    assert llm.chat_oai("hi")[0].output == "hi"
    llm.setup_extra_generation_params("chat", {"generation.max_length": 2})
    assert llm.chat_oai("one two three")[0].output == "one two"


def test_pin_model_worker_mapping(llm: ByzerLLM) -> None:
    llm.setup_pin_model_worker_mapping(
        {
            "embedding": 0,
            "tokenizer": 0,
            "apply_chat_template": 0,
            "meta": 0,
        }
    )
    before = [worker["done"] for worker in llm.stat("chat")[0]["workers"]]
    for _ in range(3):
        llm.emb("chat", LLMRequest(instruction="wow"))
    after = [worker["done"] for worker in llm.stat("chat")[0]["workers"]]
    assert [b - a for a, b in zip(before, after, strict=True)] == [3, 0, 0, 0]
    assert llm.tokenize("chat", "a") == [97]
    assert llm.get_meta("chat")


VLLM_PARAMS = {
    "backend.gpu_memory_utilization": 0.8,
    "backend.enforce_eager": False,
    "backend.trust_remote_code": True,
    "backend.max_model_len": 1024 * 4,
    "backend.quantization": "gptq",
}


def test_model_worker_load_balance(cluster: object) -> None:
    llm = ByzerLLM()
    small(llm.setup_num_workers(2))
    llm.setup_worker_concurrency(999)
    llm.setup_load_balance_way("round_robin")
    # The prefix is every backend's; the names behind it are the engine's own.
    infer_params = {"backend.context": 1024 * 4, "backend.delay": 0}
    llm.deploy(
        model_path="",
        pretrained_model_type="custom/auto",
        udf_name="balanced",
        infer_params=infer_params,
    )
    try:
        row = llm.stat("balanced")[0]
        assert row["balancer"] == "round_robin"
        assert [worker["concurrency"] for worker in row["workers"]] == [999, 999]
        for _ in range(4):
            llm.chat_oai("hi", model="balanced")
        assert [worker["done"] for worker in llm.stat("balanced")[0]["workers"]] == [2, 2]
        assert llm.get_meta("balanced")["max_model_len"] == 4096
    finally:
        llm.undeploy("balanced")


def test_parameters_of_another_engine_are_refused_by_name(cluster: object) -> None:
    llm = small(ByzerLLM())
    with pytest.raises(ParameterError, match="unknown parameter 'gpu_memory_utilization'"):
        llm.deploy(udf_name="balanced", infer_params=VLLM_PARAMS)


def test_stream_chat(llm: ByzerLLM, capsys: pytest.CaptureFixture[str]) -> None:
    llm.setup_default_model_name("chat")

    t = llm.stream_chat_oai(conversations=[{"role": "user", "content": "Hello, how are you?"}])

    for line in t:
        print(line + "\n")
    shown = capsys.readouterr().out.split("\n\n")
    assert shown[0] == "Hello,"
    assert "Hello, how are you?" in shown


def test_qwen(llm: ByzerLLM) -> None:
    llm.setup_template("chat", Templates.qwen())

    t = llm.chat_oai(conversations=[{"role": "user", "content": "你好,给我讲个100字的笑话吧?"}])
    assert "<|im_end|>" not in t[0].output
    assert "<|im_end|>" in t[0].input


def test_names_of_the_backends() -> None:
    assert InferBackend.transformers == InferBackend.Transformers == "transformers"
    assert (InferBackend.VLLM, InferBackend.LLAMA_CPP) == ("ray/vllm", "llama_cpp")
    assert InferBackend.DeepSpeed == "ray/deepspeed"
    llm = ByzerLLM().setup_infer_backend(InferBackend.VLLM)
    assert llm._settings.infer_backend == "ray/vllm"
