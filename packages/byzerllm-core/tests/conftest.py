"""A model whose answers a test writes: a real plugin on the runtime of this process."""

from __future__ import annotations

import itertools
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Self

import pytest
from pydantic import Field

import byzerllm
from byzerllm import Backend, BackendContext, BackendSpec, ByzerLLM, Parameters
from byzerllm.errors import ParameterError
from byzerllm.plugins import get_plugins
from byzerllm.requests import (
    GenerateChunk,
    GenerateRequest,
    ModelMeta,
    ToolCallDelta,
    Usage,
)

Answer = str | list[tuple[str, str]] | tuple[str, str | Exception] | Exception


@dataclass
class Script:
    """What the model answers, one item per request, and what it was asked.

    An answer is a text, a list of tool calls (name, arguments as JSON), an error, or (text, finish
    reason or error).
    """

    answers: list[Answer] = field(default_factory=list)
    requests: list[GenerateRequest] = field(default_factory=list)
    llm: ByzerLLM = field(default_factory=lambda: ByzerLLM(runtime="local"))

    def asked(self, index: int = -1) -> str:
        """The text of the last message of a request."""
        messages = self.requests[index].messages
        assert messages is not None
        content = messages[-1]["content"]
        assert isinstance(content, str)
        return content


_MODULE = "scripted_model_of_the_tests"
_scripts: dict[str, Script] = {}
_names = itertools.count(1)


class ScriptedParameters(Parameters):
    constrained: bool = Field(False, description="takes json_schema")
    tools: bool = Field(False, description="takes tools")
    hosted: bool = Field(False, description="says that it lives at a vendor")
    refuses_schemas: bool = Field(False, description="cannot make a grammar of any schema")


class ScriptedBackend(Backend):
    def __init__(self, context: BackendContext) -> None:
        self._given: ScriptedParameters = context.parameters
        self._script = _scripts[context.model]

    @classmethod
    async def create(cls, context: BackendContext) -> Self:
        return cls(context)

    async def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateChunk]:
        self._script.requests.append(request)
        if request.sampling.json_schema is not None and self._given.refuses_schemas:
            raise ParameterError.invalid("json_schema", "no grammar can be made", where="decoding")
        answer = self._script.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        usage = Usage(prompt_tokens=3, completion_tokens=2)
        if isinstance(answer, list):
            yield GenerateChunk(
                tool_calls=[
                    ToolCallDelta(index=index, id=f"call-{index}", name=name, arguments=arguments)
                    for index, (name, arguments) in enumerate(answer)
                ]
            )
            yield GenerateChunk(finish_reason="tool_calls", usage=usage)
            return
        text, reason = answer if isinstance(answer, tuple) else (answer, "stop")
        yield GenerateChunk(text=text)
        if isinstance(reason, Exception):
            raise reason
        yield GenerateChunk(finish_reason=reason, usage=usage)  # type: ignore[arg-type]

    async def meta(self) -> ModelMeta:
        return ModelMeta(
            model_deploy_type="saas" if self._given.hosted else "proprietary",
            backend="scripted",
            constrained=self._given.constrained,
            tools=self._given.tools,
        )


def _register_backends(register: Callable[[BackendSpec], None]) -> None:
    register(
        BackendSpec(
            name="scripted",
            path=f"{_MODULE}:ScriptedBackend",
            parameters=ScriptedParameters,
            capabilities=frozenset({"chat", "completion", "constrained", "tools"}),
        )
    )


@pytest.fixture(scope="session")
def _scripted_plugin() -> Iterator[None]:
    plugins = get_plugins()
    module = ModuleType(_MODULE)
    module.register_backends = byzerllm.hookimpl(_register_backends)  # type: ignore[attr-defined]
    module.ScriptedBackend = ScriptedBackend  # type: ignore[attr-defined]
    sys.modules[_MODULE] = module
    plugins.register(module, _MODULE)
    yield
    plugins.hooks.unregister(name=_MODULE)
    for registry in plugins._registries():
        registry.drop(_MODULE)
    plugins.records = [record for record in plugins.records if record.name != _MODULE]
    del sys.modules[_MODULE]


@pytest.fixture
def scripted(_scripted_plugin: None) -> Iterator[Callable[..., Script]]:
    """`scripted("first answer", "second", tools=True)`: a script whose `llm` has the model."""
    made: list[str] = []

    def make(*answers: Answer, **flags: bool) -> Script:
        name = f"scripted-{next(_names)}"
        script = _scripts[name] = Script(list(answers))
        made.append(name)
        script.llm.setup_infer_backend("scripted")
        script.llm.deploy(udf_name=name, infer_params=flags)
        script.llm.setup_default_model_name(name)
        return script

    yield make
    for name in made:
        ByzerLLM(runtime="local").undeploy(name, force=True)
        del _scripts[name]
