from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, ClassVar, Literal, Optional, Self

import pydantic
import pytest

from byzerllm.backend import Backend, BackendContext, BackendSpec, Parameters, single_bundle
from byzerllm.errors import CapabilityError, NotInstalledError, ParameterError
from byzerllm.requests import (
    EmbedRequest,
    GenerateChunk,
    GenerateRequest,
    ModelMeta,
)
from byzerllm.runtime.deployment import DeploymentSpec


class Engine(Parameters):
    n_ctx: int = 4096
    verbose: bool = False
    split: Literal["row", "layer"] = "layer"
    num_gpu_layers: int = pydantic.Field(0, alias="n_gpu_layers")
    api_key: pydantic.SecretStr | None = None
    token: pydantic.SecretStr = pydantic.SecretStr("")
    ratio: float | None = None
    maybe_secret: Optional[pydantic.SecretStr] = None  # noqa: UP045
    keys: list[pydantic.SecretStr] = pydantic.Field(default_factory=list)
    hf_token: str = ""


class Hosted(Parameters):
    prefixes: ClassVar[tuple[str, ...]] = ("saas.",)
    model: str
    api_key: pydantic.SecretStr


def test_values_may_come_as_text() -> None:
    found = Engine.parse(
        {"n_ctx": "2048", "verbose": "true", "backend.split": "row", "ratio": "0.5"}, where="x"
    )
    assert (found.n_ctx, found.verbose, found.split, found.ratio) == (2048, True, "row", 0.5)


@pytest.mark.parametrize("key", ["num_gpu_layers", "n_gpu_layers", "backend.n_gpu_layers"])
def test_every_spelling(key: str) -> None:
    assert Engine.parse({key: 3}, where="x").num_gpu_layers == 3


def test_prefixes() -> None:
    found = Hosted.parse({"saas.model": "m", "saas.api_key": "sk-1"}, where="x")
    assert (found.model, found.api_key.get_secret_value()) == ("m", "sk-1")
    with pytest.raises(ParameterError, match=r"unknown parameter 'backend\.model'"):
        Hosted.parse({"backend.model": "m", "api_key": "k"}, where="x")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            {"n_ctxx": 1},
            r"unknown parameter 'n_ctxx' for backend 'e' \(did you mean 'n_ctx'\?\); allowed: a",
        ),
        ({"backend.n_ctxx": 1}, r"unknown parameter 'n_ctxx'.*did you mean 'n_ctx'"),
        ({"n_ctx": "many"}, r"parameter 'n_ctx' for backend 'e': .*integer.* \(got 'many'\)"),
        ({"split": "column"}, r"'split'.*'row' or 'layer'.*\(got 'column'\)"),
        ({"n_gpu_layers": "x"}, r"'n_gpu_layers'.*\(got 'x'\)"),
        ({"num_gpu_layers": "x"}, r"'num_gpu_layers'.*\(got 'x'\)"),
        ({"n_ctx": 1, "backend.n_ctx": 2}, "given twice"),
        ({"num_gpu_layers": 1, "n_gpu_layers": 2}, "given twice"),
    ],
)
def test_what_is_wrong_is_named(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ParameterError, match=says):
        Engine.parse(given, where="backend 'e'")


def test_missing_ones_are_named() -> None:
    with pytest.raises(ParameterError, match=r"parameter 'model' for x: Field required$"):
        Hosted.parse({"api_key": "k"}, where="x")


@pytest.mark.parametrize("name", ["api_key", "token", "maybe_secret", "keys", "hf_token"])
def test_secrets_are_never_repeated(name: str) -> None:
    with pytest.raises(ParameterError) as caught:
        Engine.parse({name: {"sk-secret-value": 1}}, where="x")
    assert caught.value.parameter == name
    assert "sk-secret" not in f"{caught.value!r} {caught.value.details} {caught.value.__context__}"


@pytest.mark.parametrize("name", ["api_key", "token", "maybe_secret"])
def test_secrets_are_never_shown(name: str) -> None:
    shown = Engine.parse({name: "sk-secret-value"}, where="x")
    assert "sk-secret" not in f"{shown!r} {shown} {shown.model_dump()} {shown.model_dump_json()}"


def test_parameters_are_frozen() -> None:
    found = Engine.parse({}, where="x")
    with pytest.raises(pydantic.ValidationError):
        found.n_ctx = 1  # type: ignore[misc]


class Silent(Backend):
    """Implements only what it must."""

    @classmethod
    async def create(cls, context: BackendContext) -> Self:
        return cls()

    async def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateChunk]:
        yield GenerateChunk(finish_reason="stop")

    async def meta(self) -> ModelMeta:
        return ModelMeta(model_deploy_type="proprietary", backend="silent")


def test_what_is_not_implemented_is_named() -> None:
    async def check() -> None:
        backend = await Silent.create(
            BackendContext(model="m", model_path=Path(), model_type="custom/auto", parameters=None)
        )
        for call, capability in (
            (backend.embed(EmbedRequest(id="1", texts=["a"])), "embedding"),
            (backend.tokenize("a"), "tokenize"),
            (backend.apply_chat_template([]), "chat_template"),
        ):
            with pytest.raises(CapabilityError, match=f"Silent has no capability '{capability}'"):
                await call
        await backend.health()
        await backend.close()

    asyncio.run(check())


def spec(**fields: Any) -> BackendSpec:
    return BackendSpec(
        **{"name": "e", "path": f"{__name__}:Silent", "parameters": Engine, **fields}
    )


def test_load() -> None:
    from byzerllm.testing.echo import EchoBackend

    assert spec(path="byzerllm.testing.echo:EchoBackend").load() is EchoBackend


def test_load_names_what_is_missing() -> None:
    lacking = spec(path="no_such_engine.backend:B", install="pip install no-such-engine")
    with pytest.raises(NotInstalledError) as caught:
        lacking.load()
    assert str(caught.value) == (
        "backend 'e' needs the package 'no_such_engine'; run: pip install no-such-engine"
    )
    with pytest.raises(NotInstalledError, match=r"needs the package 'no_such_engine'$"):
        spec(path="no_such_engine:B").load()


def test_load_names_a_wrong_path() -> None:
    with pytest.raises(AttributeError, match="Ehco"):
        spec(path="byzerllm.testing.echo:Ehco").load()


def test_model_types() -> None:
    types = spec(model_types=("custom/auto", "saas/*"))
    assert types.accepts_type("custom/auto")
    assert types.accepts_type("saas/openai")
    assert not types.accepts_type("custom/auto2")
    assert not types.accepts_type("")


def test_placement_is_one_bundle() -> None:
    deployment = DeploymentSpec(
        model="m", cpus_per_worker=2, gpus_per_worker=0.5, resources={"tpu": 1}
    )
    placement = single_bundle(deployment)
    assert placement.bundles == [{"CPU": 2, "GPU": 0.5, "tpu": 1}]
    assert spec().placement(deployment) == placement
