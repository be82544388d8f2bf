from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest
import rich.console

from byzerllm import hookimpl
from byzerllm.backend import BackendSpec, Parameters
from byzerllm.errors import ModelSourceError, NotInstalledError, ParameterError
from byzerllm.plugins import Plugins
from byzerllm.runtime.deployment import (
    MASK,
    DeploymentSpec,
    backend_of,
    is_secret,
    plugins_format,
    redact,
    resolve,
)
from byzerllm.sources import ModelSource


class Options(Parameters):
    n_ctx: int = 0


class HostedOptions(Parameters):
    prefixes = ("saas.",)
    model: str = ""
    api_key: str = ""


def backend(name: str, **fields: Any) -> BackendSpec:
    return BackendSpec(**{"name": name, "path": "x:Y", "parameters": Options, **fields})


LLAMA = backend("llama_cpp", formats=("gguf",), default_concurrency=10)
VLLM = backend("ray/vllm", aliases=("vllm",), default_concurrency=100)
TRANSFORMERS = backend("transformers", model_types=("custom/auto", "custom/*"))
OPENAI = backend("openai", parameters=HostedOptions, hosted=True, default_concurrency=10)


class Shelf(ModelSource):
    scheme = "shelf"

    def fetch(self, reference: str, report: Callable[[str], None]) -> Path:
        raise NotImplementedError

    def format_of(self, reference: str) -> str:
        return "gguf" if reference == "small" else super().format_of(reference)


def plugins(*backends: BackendSpec, providers: tuple[BackendSpec, ...] = ()) -> Plugins:
    from byzerllm import balancers

    def register_backends(register: Callable[[BackendSpec], None]) -> None:
        for one in backends:
            register(one)

    def register_providers(register: Callable[[BackendSpec], None]) -> None:
        for one in providers:
            register(one)

    def register_model_sources(register: Callable[[ModelSource], None]) -> None:
        register(Shelf())

    module = ModuleType("mine")
    for function in (register_backends, register_providers, register_model_sources):
        setattr(module, function.__name__, hookimpl(function))
    found = Plugins()
    found.register(balancers, "balancers")
    found.register(module, "mine")
    return found


ALL = plugins(LLAMA, VLLM, TRANSFORMERS, providers=(OPENAI,))


def spec(**fields: Any) -> DeploymentSpec:
    return DeploymentSpec(**{"model": "m", "model_path": "/models/m", **fields})


@pytest.mark.parametrize(
    ("fields", "chosen", "concurrency"),
    [
        ({"model_path": "/m.gguf"}, "llama_cpp", 10),
        ({"model_path": "/m.GGUF", "gpus_per_worker": 1}, "llama_cpp", 10),
        ({"model_path": "shelf:small"}, "llama_cpp", 10),
        ({"model_path": "shelf:big"}, "transformers", 1),
        ({}, "transformers", 1),
        ({"gpus_per_worker": 0.5}, "ray/vllm", 100),
        ({"gpus_per_worker": 2, "backend": "transformers"}, "transformers", 1),
        ({"backend": "vllm"}, "ray/vllm", 100),
        ({"backend": "ray/vllm", "worker_concurrency": 7}, "ray/vllm", 7),
        ({"model_type": "custom/llama2"}, "transformers", 1),
        ({"model_type": "saas/openai"}, "saas/openai", 10),
        ({"model_type": "saas/openai", "backend": "vllm", "model_path": ""}, "saas/openai", 10),
        ({"backend": "saas/openai", "model_path": ""}, "saas/openai", 10),
    ],
)
def test_the_backend_is_chosen(fields: dict[str, Any], chosen: str, concurrency: int) -> None:
    asked = spec(**fields)
    found, one = resolve(asked, ALL)
    assert (found.backend, found.worker_concurrency) == (chosen, concurrency)
    assert found.model_path == asked.model_path
    assert backend_of(found, ALL) is one
    assert resolve(found, ALL) == (found, one)


def test_what_is_not_installed_is_named() -> None:
    nothing = plugins()
    for fields, says in (
        ({"model_path": "m.gguf"}, r"pip install 'byzerllm-core\[llamacpp\]'"),
        ({}, r"pip install 'byzerllm-core\[transformers\]'"),
        ({"backend": "vllm"}, r"pip install 'byzerllm-core\[vllm\]'"),
        ({"model_type": "saas/openai"}, "pip install byzerllm-saas"),
    ):
        with pytest.raises(NotInstalledError, match=says):
            resolve(spec(**fields), nothing)
    # Without vLLM, GPUs go to transformers.
    assert resolve(spec(gpus_per_worker=1), plugins(TRANSFORMERS))[0].backend == "transformers"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"model": ""}, r"parameter 'model' for deploy: a name of 1 to 100"),
        ({"model": "a b"}, "'model'"),
        ({"model": "a/b"}, "'model'"),
        ({"model": "a:b"}, "'model'"),
        ({"model": "a\n"}, "'model'"),
        ({"model": "a" * 101}, "'model'"),
        ({"model": 3}, r"'model' for deploy: Expected `str`, got `int` \(got 3\)"),
        ({"num_workers": 0}, r"'num_workers' for deploy: at least 1 \(got 0\)"),
        ({"num_workers": "2"}, "'num_workers' for deploy: Expected `int`, got `str`"),
        ({"num_workers": 1.5}, "'num_workers'"),
        ({"worker_concurrency": -1}, "'worker_concurrency' for deploy: at least 1"),
        ({"max_queue": -1}, "'max_queue' for deploy: at least 0"),
        ({"gpus_per_worker": -1}, "'gpus_per_worker' for deploy: at least 0"),
        ({"gpus_per_worker": 1.5}, r"whole GPUs above 1 \(got 1.5\)"),
        ({"gpus_per_worker": float("inf")}, "'gpus_per_worker' for deploy: at least 0"),
        ({"cpus_per_worker": float("nan")}, "'cpus_per_worker' for deploy: at least 0"),
        ({"cpus_per_worker": None}, "'cpus_per_worker' for deploy: Expected `float`"),
        ({"resources": {"tpu": -1}}, r"\"resources\['tpu'\]\" for deploy: at least 0"),
        ({"resources": {"tpu": "x"}}, "'resources' for deploy: Expected `float`"),
        ({"resources": {"GPU": 1}}, "custom ones only; GPU is set by gpus_per_worker"),
        ({"infer_params": ["a"]}, "'infer_params' for deploy: Expected `object`"),
        ({"balancer": "lur"}, r"'lur' for a balancer \(did you mean 'lru'\?\)"),
        ({"backend": "llamacpp"}, r"'llamacpp' for a backend \(did you mean 'llama_cpp'"),
        ({"model_type": "saas/opnai"}, r"'saas/opnai' \(did you mean 'saas/openai'"),
        (
            {"model_type": "custom/llama2", "backend": "vllm"},
            "'custom/llama2' for pretrained_model_type of ray/vllm.*allowed: custom/auto",
        ),
        ({"infer_params": {"n_ctxx": 1}}, r"'n_ctxx' for backend 'transformers' \(did you mean"),
        ({"infer_params": {"n_ctx": "x"}}, "'n_ctx' for backend 'transformers'"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ParameterError, match=says):
        resolve(spec(**fields), ALL)


def test_a_backend_that_loads_files_needs_a_path() -> None:
    with pytest.raises(ModelSourceError, match=r"'llama_cpp' needs a model_path.*schemes shelf"):
        resolve(spec(backend="llama_cpp", model_path=""), ALL)
    assert resolve(spec(backend="vllm", model_path=""), ALL)[0].model_path == ""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/a/m.gguf", "gguf"),
        ("/a/m.safetensors", ""),
        ("shelf:small", "gguf"),
        ("shelf:", ""),
        ("unknown:m.gguf", "gguf"),
        ("", ""),
    ],
)
def test_formats(path: str, kind: str) -> None:
    assert plugins_format(path, ALL) == kind


def test_worker_resources() -> None:
    assert spec().worker_resources() == {"CPU": 1.0}
    assert spec(cpus_per_worker=0).worker_resources() == {"CPU": 0.001}
    assert spec(
        cpus_per_worker=0, gpus_per_worker=0.5, resources={"tpu": 2, "none": 0}, node="10.0.0.1"
    ).worker_resources() == {"GPU": 0.5, "tpu": 2, "node:10.0.0.1": 0.001}


@pytest.mark.parametrize(
    "key",
    [
        "saas.api_key",
        "api_key",
        "saas.apikey",
        "saas.secret_key",
        "saas.aws_secret_key",
        "saas.api_secret",
        "saas.api_keys",
        "hf_token",
        "token",
        "access_tokens",
        "API_KEY",
        "password",
        "credentials",
    ],
)
def test_secrets(key: str) -> None:
    assert is_secret(key)


@pytest.mark.parametrize(
    "key",
    [
        "n_ctx",
        "max_tokens",
        "backend.max_num_batched_tokens",
        "eos_token",
        "tokenizer",
        "saas.model",
    ],
)
def test_no_secrets(key: str) -> None:
    assert not is_secret(key)


SECRETS = {"saas.api_key": "sk-1234567", "saas.secret_key": "sk-1234567-longer", "n_ctx": "4096"}


def test_secrets_are_masked_wherever_a_spec_is_shown() -> None:
    one = spec(infer_params=SECRETS)
    console = rich.console.Console(file=io.StringIO(), width=200)
    console.print(one)
    shown = f"{one!r} {one} {one.masked()} {console.file.getvalue()}"  # type: ignore[attr-defined]
    assert "sk-1234567" not in shown
    assert shown.count(MASK) >= 8
    assert "4096" in shown
    assert one.infer_params == SECRETS


def test_redact() -> None:
    one = spec(infer_params={**SECRETS, "token": "abc"})
    text = "key sk-1234567-longer and sk-1234567 with 4096 and abc"
    assert redact(text, one) == f"key {MASK} and {MASK} with 4096 and abc"


def test_it_crosses_the_wire() -> None:
    one = spec(infer_params=SECRETS, resources={"tpu": 1.0}, disabled_plugins=["x"])
    raw = msgspec.msgpack.encode(one)
    assert msgspec.msgpack.decode(raw, type=DeploymentSpec) == one
    newer = msgspec.msgpack.encode({**msgspec.to_builtins(one), "a_new_field": 1})
    assert msgspec.msgpack.decode(newer, type=DeploymentSpec) == one


def test_several_keys_and_logins_are_secrets() -> None:
    spec = DeploymentSpec(
        model="m",
        infer_params={
            "saas.api_keys": ["first-key", "second-key"],
            "saas.keys": "third-key, fourth-key",
            "saas.proxies": "http://user:password@proxy.test:3128",
        },
    )
    shown = f"{spec!r} {spec.masked()}"
    said = "first-key second-key third-key fourth-key of user:password"
    cut = redact(said, spec)
    for secret in ("first-key", "second-key", "third-key", "fourth-key", "password"):
        assert secret not in shown
        assert secret not in cut
    assert "@proxy.test:3128" in shown
