"""The seed's command lines, word for word, and our own."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click
import pytest

from byzerllm.cli.app import root
from byzerllm.cli.deploy import absolute
from byzerllm.cli.deploy import command as deploy

HOSTED = {"cpus_per_worker": 0.001, "gpus_per_worker": 0.0, "num_workers": 1}

SEED = [
    (
        """--model_path /home/byzerllm/models/openbuddy-llama2-13b64k-v15 \
--pretrained_model_type custom/auto \
--gpu_gpus_per_worker 4 \
--num_workers 1 \
--model llama2_chat""",
        {
            "model_path": "/home/byzerllm/models/openbuddy-llama2-13b64k-v15",
            "model_type": "custom/auto",
            "gpus_per_worker": 4.0,
            "num_workers": 1,
            "model": "llama2_chat",
        },
    ),
    (
        """--pretrained_model_type saas/qianwen \
--cpus_per_worker 0.01 \
--gpus_per_worker 0 \
--num_workers 1 \
--infer_params saas.api_key=xxxxx saas.model=qwen-max \
--model qianwen_short_chat""",
        {
            "model_type": "saas/qianwen",
            "cpus_per_worker": 0.01,
            "gpus_per_worker": 0.0,
            "num_workers": 1,
            "infer_params": {"saas.api_key": "xxxxx", "saas.model": "qwen-max"},
            "model": "qianwen_short_chat",
        },
    ),
    (
        """--pretrained_model_type custom/auto \
--infer_backend llama_cpp \
--cpus_per_worker 0.001 \
--gpus_per_worker 0 \
--num_workers 1 \
--worker_concurrency 10 \
--infer_params verbose=true \
--model_path /Users/allwefantasy/Downloads/Meta-Llama-3-8B-Instruct-Q4_K_M.gguf \
--model llama_3_chat""",
        {
            **HOSTED,
            "model_type": "custom/auto",
            "backend": "llama_cpp",
            "worker_concurrency": 10,
            "infer_params": {"verbose": "true"},
            "model_path": "/Users/allwefantasy/Downloads/Meta-Llama-3-8B-Instruct-Q4_K_M.gguf",
            "model": "llama_3_chat",
        },
    ),
    (
        """--pretrained_model_type saas/qianwen \
--cpus_per_worker 0.001 \
--gpus_per_worker 0 \
--num_workers 1 \
--worker_concurrency 10 \
--infer_params saas.api_key=${MODEL_QIANWEN_TOKEN}  saas.model=qwen-max \
--model qianwen_chat""",
        {
            **HOSTED,
            "model_type": "saas/qianwen",
            "worker_concurrency": 10,
            "infer_params": {"saas.api_key": "t0ken", "saas.model": "qwen-max"},
            "model": "qianwen_chat",
        },
    ),
    (
        """ --pretrained_model_type saas/official_openai --infer_params saas.api_key=xxxxx \
saas.model=yi-vl-plus saas.base_url=https://api.lingyiwanwu.com/v1 --model yi_vl_chat""",
        {
            "model_type": "saas/official_openai",
            "infer_params": {
                "saas.api_key": "xxxxx",
                "saas.model": "yi-vl-plus",
                "saas.base_url": "https://api.lingyiwanwu.com/v1",
            },
            "model": "yi_vl_chat",
        },
    ),
    (
        """--pretrained_model_type saas/sparkdesk \
--cpus_per_worker 0.001 \
--gpus_per_worker 0 \
--num_workers 1 \
--infer_params saas.appid=xxxx  saas.api_key=xxxxx saas.api_secret=xxxxxx  \
saas.gpt_url="wss://spark-api.xf-yun.com/v3.5/chat" \
--model sparkdesk_chat""",
        {
            **HOSTED,
            "model_type": "saas/sparkdesk",
            "infer_params": {
                "saas.appid": "xxxx",
                "saas.api_key": "xxxxx",
                "saas.api_secret": "xxxxxx",
                "saas.gpt_url": "wss://spark-api.xf-yun.com/v3.5/chat",
            },
            "model": "sparkdesk_chat",
        },
    ),
    (
        """--pretrained_model_type saas/openai \
--cpus_per_worker 0.001 \
--gpus_per_worker 0 \
--worker_concurrency 10 \
--num_workers 1 \
--infer_params saas.base_url="https://api.deepseek.com/v1" \
saas.api_key=${MODEL_DEEPSEEK_TOKEN} saas.model=deepseek-chat \
--model deepseek_chat""",
        {
            **HOSTED,
            "model_type": "saas/openai",
            "worker_concurrency": 10,
            "infer_params": {
                "saas.base_url": "https://api.deepseek.com/v1",
                "saas.api_key": "t0ken",
                "saas.model": "deepseek-chat",
            },
            "model": "deepseek_chat",
        },
    ),
]


def parsed(line: str) -> dict[str, Any]:
    cli = root()
    parent = cli.make_context("byzerllm", ["deploy"], resilient_parsing=True)
    context = deploy.make_context("deploy", shlex.split(line), parent=parent)
    given = {name: value for name, value in context.params.items() if value not in (None, {})}
    for name in ("replace", "start_ray", "as_json", "ray_address"):
        if given.get(name) in (False, "auto"):
            del given[name]
    return given


@pytest.mark.parametrize(("line", "expected"), SEED)
def test_the_seeds_commands(
    line: str, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_QIANWEN_TOKEN", "t0ken")
    monkeypatch.setenv("MODEL_DEEPSEEK_TOKEN", "t0ken")
    assert parsed(line) == expected


def test_dashes_mean_underscores() -> None:
    line = "--model m --num-workers 2 --gpu-gpus-per-worker 0.5 --infer-params a=1 b=2"
    assert parsed(line) == {
        "model": "m",
        "num_workers": 2,
        "gpus_per_worker": 0.5,
        "infer_params": {"a": "1", "b": "2"},
    }


def test_the_address_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BYZERLLM_RAY_ADDRESS", "10.0.0.5:6379")
    assert parsed("--model m")["ray_address"] == "10.0.0.5:6379"
    assert parsed("--model m --ray_address h:1")["ray_address"] == "h:1"


def test_both_names_of_the_balancer() -> None:
    assert parsed("--model m --load_balance_way least_busy")["balancer"] == "least_busy"
    assert parsed("--model m --balancer lru --model-type custom/llama2") == {
        "model": "m",
        "balancer": "lru",
        "model_type": "custom/llama2",
    }


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("--model m --num_workers two", "takes a whole number, got 'two'"),
        ("--model m --num_workers 1.5", "takes a whole number"),
        ("--model m --gpus_per_worker x", "takes a number"),
        ("--model m --infer_params", "requires an argument"),
        ("--model m --infer_params verbose", "takes KEY=VALUE"),
        ("--model m --resources disk=x", "takes a positive number"),
        ("--model m extra", "unexpected extra argument"),
    ],
)
def test_wrong_options(line: str, reason: str) -> None:
    with pytest.raises(click.UsageError, match=reason):
        parsed(line)


def test_relative_paths_become_absolute_where_they_exist(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").touch()
    assert absolute("m.gguf", tmp_path) == str(tmp_path / "m.gguf")
    assert absolute("elsewhere.gguf", tmp_path) == "elsewhere.gguf"
    assert absolute("demo:smollm2-135m-instruct", tmp_path) == "demo:smollm2-135m-instruct"
    assert absolute("", tmp_path) == ""
