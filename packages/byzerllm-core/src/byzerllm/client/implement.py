"""Generated functions: a model writes the body of an empty function, and the sandbox runs it.

`implement_exchange` is the chat behind `chat_oai(impl_func=…)`, and `Implementer` what `llm.impl()`
decorates with. A function that fails is asked for once more, with its traceback. What the model
wrote is kept by model, function and instruction (`ImplementationCache`).
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import json
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import pydantic

from byzerllm.client.code_utils import extract_code
from byzerllm.client.exchange import Conversation, Exchange, Run
from byzerllm.client.formats import function_impl_format, language_of
from byzerllm.client.sandbox import Limits, Outcome, SandboxMode, checked_mode, run_function, wire
from byzerllm.client.schema import (
    class_schema,
    describe_type,
    explain,
    function_schema,
    type_adapter,
    type_hints,
)
from byzerllm.client.structured import ASKS, AnswerError, Totals, parse_answer, parse_json
from byzerllm.client.types import LLMClassResponse, LLMResponse
from byzerllm.errors import (
    GeneratedFunctionError,
    ParameterError,
    SandboxError,
    SandboxUnavailableError,
)
from byzerllm.messages import Message

__all__ = [
    "ImplementationCache",
    "Implementer",
    "implement_exchange",
]

logger = logging.getLogger("byzerllm.impl")

Plan = Callable[[Conversation], Exchange]
Chat = Callable[[str, Plan, str | None], list[Any]]
AsyncChat = Callable[[str, Plan, str | None], Awaitable[list[Any]]]
Function = TypeVar("Function", bound=Callable[..., Any])

_PYTHON = ("python", "py", "python3", "unknown", "")
_LONGEST_COMPLAINT = 4_000


@dataclass(frozen=True)
class Target:
    """The function that is wanted.

    Attributes:
        func: the empty function, or a description of it as text.
        name: empty where the text does not say it.
        returns: the type that the result must have, or a JSON schema as text, which is not
            checked.
    """

    func: Callable[..., Any] | str
    name: str
    returns: Any

    @classmethod
    def of(cls, func: Callable[..., Any] | str, response_class: Any = None) -> Target:
        """Raises ParameterError for a function or type that cannot be described to a model."""
        if isinstance(func, str):
            returns = Any if response_class is None else response_class
            return cls(func, _described_name(func), returns)
        schema = function_schema(func)
        returns = response_class
        if returns is None:
            returns = type_hints(func, schema.name).get("return", Any)
        if not isinstance(returns, str):
            type_adapter(returns)
        return cls(func, schema.name, returns)

    def arguments(self, given: Mapping[str, Any] | None) -> dict[str, Any]:
        """The arguments in the types of the annotations. Defaults are passed too: what the model
        wrote may not have them.

        Raises:
            ParameterError: one is unknown, missing or does not fit.
        """
        given = dict(given or {})
        if isinstance(self.func, str):
            return given
        schema = function_schema(self.func)
        try:
            return {**_defaults(schema.signature), **schema.validate(given)}
        except ValueError as error:
            raise ParameterError(f"arguments of function {self.name!r}: {error}") from None

    def code(self, answer: str) -> str:
        """The module in a model's answer that defines the function.

        Raises:
            GeneratedFunctionError: there is none.
        """
        blocks = [code for language, code in extract_code(answer) if language in _PYTHON]
        reason = "the answer has no Python code block"
        for code in reversed(blocks or [answer]):
            try:
                defined = _defined(code)
            except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
                if blocks:
                    reason = f"the code does not parse: {error}"
                continue
            if self.name in defined or (defined and not self.name):
                return code
            if blocks:
                reason = f"the code does not define a function {self.name!r}"
        raise GeneratedFunctionError(reason, code="\n\n".join(blocks))

    def function_in(self, code: str) -> str:
        """The name to call: the target's, or where it has none the last one defined."""
        return self.name or list(_defined(code))[-1]

    def validated(self, value: Any, code: str) -> Any:
        """The value in the type that is asked for.

        Raises:
            GeneratedFunctionError: it does not fit.
        """
        if isinstance(self.returns, str):
            return _parsed(value)
        adapter = type_adapter(self.returns)
        try:
            return adapter.validate_python(value)
        except pydantic.ValidationError as error:
            reason = explain(error)
        try:
            if isinstance(value, str):
                return parse_answer(value, self.returns)
            # Models that are strict about Python's types are less so about JSON's.
            return adapter.validate_json(json.dumps(value))
        except (ValueError, TypeError, RecursionError):
            raise GeneratedFunctionError(
                f"what generated function {self.name!r} returned is no "
                f"{describe_type(self.returns)}: {reason}",
                code=code,
            ) from None


def _defaults(signature: inspect.Signature) -> dict[str, Any]:
    """The defaults that are data; a marker of the author's own is left to the function."""
    found = {}
    for name, parameter in signature.parameters.items():
        default = parameter.default
        if isinstance(default, pydantic.fields.FieldInfo):
            if default.is_required():
                continue
            default = default.get_default(call_default_factory=True, validated_data={})
        if default is not inspect.Parameter.empty and wire.is_data(default):
            found[name] = default
    return found


def _described_name(text: str) -> str:
    """The name in a description: JSON of a function, or the text of one."""
    try:
        described = json.loads(text)
    except ValueError:
        described = None
    if isinstance(described, dict):
        inner = described.get("function", described)
        return str(inner.get("name", "")) if isinstance(inner, dict) else ""
    try:
        return next(iter(_defined(text)), "")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""


def _defined(code: str) -> dict[str, None]:
    """The names that a module defines functions under, in order."""
    names: dict[str, None] = {}
    for node in ast.parse(code).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names[node.name] = None
        elif isinstance(node, ast.Assign):
            names.update({t.id: None for t in node.targets if isinstance(t, ast.Name)})
    return names


def _parsed(value: Any) -> Any:
    """The data in a text of JSON; anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value)
    except AnswerError:
        return value


@dataclass(frozen=True)
class Generated:
    """What came of asking for a function: its code and value, or the error of the last attempt."""

    response: LLMResponse
    total: Totals
    code: str = ""
    value: Any = None
    output: str = ""
    error: SandboxError | None = None


@dataclass(frozen=True)
class Job:
    """One function to be written and run.

    Attributes:
        sandbox, limits: as `run_function` takes them.
        execute: whether it is run; else only written.
        verbose: show what is asked, written and returned.
    """

    target: Target
    arguments: Mapping[str, Any]
    sandbox: SandboxMode = "namespaces"
    limits: Limits = field(default_factory=Limits)
    execute: bool = True
    verbose: bool = False

    def run(self, code: str) -> tuple[Any, Outcome]:
        """The result in its type, and what the sandbox says. Blocks.

        Raises:
            SandboxError: as `run_function`, and when the result does not fit.
        """
        outcome = run_function(
            code,
            self.target.function_in(code),
            self.arguments,
            sandbox=self.sandbox,
            limits=self.limits,
        )
        return self.target.validated(outcome.value, code), outcome

    def generate(
        self, conversation: Conversation, failed: SandboxError | None = None
    ) -> Generator[Any, Any, Generated]:
        """Ask for the function and run it; once more when it fails.

        Args:
            failed: the error of the code that was kept from an earlier call, which counts as the
                first attempt.
        """
        messages = conversation.asking(_prompt(conversation, self.target))
        total = Totals()
        attempts = ASKS
        if failed is not None:
            attempts -= 1
            messages = _asked_again(conversation, messages, _fenced(failed), failed)
        while True:
            attempts -= 1
            self.show("asked", str(messages[-1].get("content")))
            make = conversation.again if total.responses else conversation.request
            request = make(messages)
            response = total.add(conversation.response(request, (yield request)))
            self.show("answered", response.output)
            try:
                code = self.target.code(response.output)
                if not self.execute:
                    return Generated(response, total, code)
                value, outcome = yield Run(functools.partial(self.run, code))
            except SandboxUnavailableError:
                raise
            except SandboxError as error:
                self.show("failed", f"{error}\n{error.details.get('remote_traceback', '')}")
                if not attempts:
                    code = error.details.get("code", "")
                    return Generated(response, total, code, error=error)
                messages = _asked_again(conversation, messages, response.output, error)
            else:
                self.show_outcome(value, outcome)
                return Generated(response, total, code, value, outcome.output)

    def show_outcome(self, value: Any, outcome: Outcome) -> None:
        if outcome.output:
            self.show("printed", outcome.output)
        self.show("returned", f"{value!r} after {outcome.seconds:.3f} s")

    def show(self, what: str, text: str) -> None:
        """To the logger `byzerllm.impl`; where that shows nothing and `verbose` asks for it, to
        standard error."""
        if logger.isEnabledFor(logging.INFO) and logger.hasHandlers():
            logger.info("%s %s: %s", self.target.name, what, text)
        elif self.verbose:
            print(f"[{self.target.name}] {what}: {text}", file=sys.stderr)


def _prompt(conversation: Conversation, target: Target) -> str:
    custom = conversation.settings.formats.get("impl_func")
    if custom is None:
        return function_impl_format(conversation.question, target.func, target.returns)
    returns = target.returns
    if not isinstance(returns, str) and not hasattr(returns, "model_json_schema"):
        returns = json.dumps(class_schema(returns), ensure_ascii=False)
    return custom(conversation.question, target.func, returns)


def _asked_again(
    conversation: Conversation, messages: list[Message], answer: str, error: SandboxError
) -> list[Message]:
    complaint = str(error)
    if "remote_traceback" in error.details:
        complaint = f"{complaint}\n\n{error.details['remote_traceback']}"
    complaint = complaint[-_LONGEST_COMPLAINT:]
    if language_of(conversation.question) == "zh":
        again = f"这个函数没有成功运行：\n\n{complaint}\n\n请改正后，在一个 ```python 代码块里重新给出完整的函数。"  # noqa: E501
    else:
        again = (
            f"That function did not work:\n\n{complaint}\n\nCorrect it and give the whole "
            "function again, in one ```python block."
        )
    return [
        *messages,
        {"role": "assistant", "content": answer or " "},
        {"role": "user", "content": again},
    ]


def _fenced(error: SandboxError) -> str:
    return f"```python\n{error.details.get('code', '')}\n```"


def implement_exchange(
    conversation: Conversation,
    *,
    func: Callable[..., Any] | str,
    params: Mapping[str, Any] | None = None,
    execute: bool = False,
    response_class: Any = None,
    sandbox: SandboxMode = "namespaces",
    limits: Limits | Mapping[str, Any] | None = None,
) -> Exchange:
    """The chat behind `chat_oai(impl_func=…)`.

    Args:
        func: the empty function, or a description of it as text.
        params: its arguments by name.
        execute: run what the model wrote; else `value` is None.
        response_class: the type of the result; None is the function's own annotation.

    Returns:
        a list of one LLMClassResponse. Its metadata has the `code`, what the code printed in
        `output`, and when the value is None the `reason` (also as `resason`).

    Raises:
        ParameterError: an argument does not fit the function.
        SandboxUnavailableError: the code cannot be isolated on this machine.
    """
    target = Target.of(func, response_class)
    job = Job(
        target,
        target.arguments(params) if execute else {},
        checked_mode(sandbox),
        Limits.of(limits),
        execute,
    )
    done = yield from job.generate(conversation)
    reason = _reason(done.error) if done.error is not None else ""
    metadata = done.total.metadata(done.response, reason)
    metadata["code"] = done.code
    metadata["output"] = done.output
    return [LLMClassResponse(done.response, done.value, metadata)]


def _reason(error: SandboxError) -> str:
    trace = error.details.get("remote_traceback", "")
    return f"{error}\n{trace}" if trace else str(error)


@dataclass(frozen=True)
class Entry:
    """What a kept function is known by."""

    model: str
    function: str
    source: str
    returns: str
    instruction: str

    @property
    def digest(self) -> str:
        parts = [self.model, self.function, self.source, self.returns, self.instruction]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def matches(self, model: str | None, function: str | None, instruction: str | None) -> bool:
        return (
            model in (None, self.model)
            and (function is None or _is_called(self.function, function))
            and instruction in (None, self.instruction)
        )


def _is_called(full: str, name: str) -> bool:
    return full == name or full.endswith(f".{name}")


class ImplementationCache:
    """The code that models wrote, in memory and, where asked for, as files of a folder.

    Kept by model, function (name, source and type of the result) and instruction. A file holds one
    function; several processes may share a folder.
    """

    def __init__(self) -> None:
        self._codes: dict[str, tuple[Entry, str]] = {}
        self._folders: set[Path] = set()
        self._lock = threading.Lock()

    def get(self, entry: Entry, folder: Path | None = None) -> str | None:
        with self._lock:
            kept = self._codes.get(entry.digest)
            if folder is not None:
                self._folders.add(folder)
        if kept is not None:
            if folder is not None and not _file(folder, entry).exists():
                self.put(entry, kept[1], folder)
            return kept[1]
        code = _read(folder, entry) if folder is not None else None
        if code is not None:
            self.put(entry, code)
        return code

    def put(self, entry: Entry, code: str, folder: Path | None = None) -> None:
        with self._lock:
            self._codes[entry.digest] = (entry, code)
            if folder is not None:
                self._folders.add(folder)
        if folder is not None:
            _write(folder, entry, code)

    def clear(
        self,
        model: str | None = None,
        full_func_name: str | None = None,
        instruction: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> int:
        """Forget what fits all that is given; without arguments everything.

        Args:
            full_func_name: `module.name`, or its end: `Class.method`, `name`.
            cache_dir: a folder to clear besides those that this cache has used.

        Returns:
            how many functions were forgotten.
        """
        with self._lock:
            gone = {
                digest
                for digest, (entry, _) in self._codes.items()
                if entry.matches(model, full_func_name, instruction)
            }
            for digest in gone:
                del self._codes[digest]
            folders = set(self._folders)
        if cache_dir is not None:
            folders.add(Path(cache_dir))
        for folder in folders:
            for path in folder.glob("*.json"):
                found = _loaded(path)
                if found and found[0].matches(model, full_func_name, instruction):
                    path.unlink(missing_ok=True)
                    gone.add(path.stem)
        return len(gone)


def _file(folder: Path, entry: Entry) -> Path:
    return folder / f"{entry.digest}.json"


def _read(folder: Path, entry: Entry) -> str | None:
    found = _loaded(_file(folder, entry))
    return found[1] if found is not None and found[0] == entry else None


def _loaded(path: Path) -> tuple[Entry, str] | None:
    """A kept function, or None where there is none: a damaged file is asked for anew."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        code = data.pop("code")
        entry = Entry(**data)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        logger.warning("%s holds no generated function: %s", path, error)
        return None
    return (entry, code) if isinstance(code, str) else None


def _write(folder: Path, entry: Entry, code: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    data = {**vars(entry), "code": code}
    descriptor, temporary = tempfile.mkstemp(dir=folder, suffix=".part")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(data, file, ensure_ascii=False, indent=1)
        Path(temporary).replace(_file(folder, entry))
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@dataclass(frozen=True, kw_only=True)
class Implementer:
    """The decorator behind `llm.impl()`: calls of the function run what the model wrote for it.

    The first call asks the model; the function that it wrote is kept and run again by the next
    ones, each time in the sandbox, so that a result which depends on the day is today's.

    Attributes:
        chat, async_chat: run a plan as a chat: (question, plan, model) → the plan's list.
        model_name: resolves `model`, None being the default one.
        cache: the client's.
        instruction: what is asked of the function; None asks for what its docstring says.
        model: the model's name.
        verbose: show what is asked, written and returned.
        skip_cache: ask at every call and keep nothing.
        sandbox: `namespaces`, `process` or `inprocess`: see `run_function`.
        limits: `Limits`, or some of them by name.
        cache_dir: a folder that keeps functions from one run of a program to the next.

    Raises:
        ParameterError: unknown `sandbox` or limits.
    """

    chat: Chat
    async_chat: AsyncChat
    model_name: Callable[[str | None], str]
    cache: ImplementationCache
    instruction: str | None = None
    model: str | None = None
    verbose: bool = False
    skip_cache: bool = False
    sandbox: SandboxMode = "namespaces"
    limits: Limits | Mapping[str, Any] | None = None
    cache_dir: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        checked_mode(self.sandbox)
        Limits.of(self.limits)

    def __call__(self, func: Function) -> Function:
        """Raises ParameterError for what is no function. What its annotations say is read at its
        first call, when they may name classes that are defined below it."""
        if not inspect.isroutine(func):
            raise ParameterError(f"impl decorates a function (got {func!r})")
        if inspect.iscoroutinefunction(func):

            @functools.wraps(func)
            async def implemented_async(*args: Any, **kwargs: Any) -> Any:
                return await _Call(self, func, args, kwargs).run_async()

            return cast("Function", implemented_async)

        @functools.wraps(func)
        def implemented(*args: Any, **kwargs: Any) -> Any:
            return _Call(self, func, args, kwargs).run()

        return cast("Function", implemented)


class _Call:
    """One call of a decorated function."""

    def __init__(
        self,
        options: Implementer,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        target = Target.of(func)
        self.options = options
        self.job = Job(
            target,
            target.arguments(_bound(func, args, kwargs)),
            options.sandbox,
            Limits.of(options.limits),
            verbose=options.verbose,
        )
        self.model = options.model_name(options.model)
        self.question = options.instruction or inspect.getdoc(func) or target.name
        self.folder = None if options.cache_dir is None else Path(options.cache_dir)
        self.entry = Entry(
            model=self.model,
            function=f"{func.__module__}.{func.__qualname__}",
            source=_source(func),
            returns=json.dumps(class_schema(target.returns), sort_keys=True),
            instruction=options.instruction or "",
        )

    def run(self) -> Any:
        code = self._kept()
        failed = None
        if code is not None:
            try:
                return self._finish(self.job.run(code))
            except SandboxUnavailableError:
                raise
            except SandboxError as error:
                failed = self._failed(error)
        return self._value(self.options.chat(self.question, self._plan(failed), self.model))

    async def run_async(self) -> Any:
        import asyncio

        code = await asyncio.to_thread(self._kept)
        failed = None
        if code is not None:
            try:
                return self._finish(await asyncio.to_thread(self.job.run, code))
            except SandboxUnavailableError:
                raise
            except SandboxError as error:
                failed = self._failed(error)
        done = await self.options.async_chat(self.question, self._plan(failed), self.model)
        return await asyncio.to_thread(self._value, done)

    def _kept(self) -> str | None:
        return None if self.options.skip_cache else self.options.cache.get(self.entry, self.folder)

    def _finish(self, done: tuple[Any, Outcome]) -> Any:
        self.job.show_outcome(*done)
        return done[0]

    def _failed(self, error: SandboxError) -> SandboxError:
        self.job.show("failed", f"the kept function: {error}")
        return error

    def _plan(self, failed: SandboxError | None) -> Plan:
        def plan(conversation: Conversation) -> Exchange:
            return [(yield from self.job.generate(conversation, failed))]

        return plan

    def _value(self, done: list[Any]) -> Any:
        generated: Generated = done[0]
        if generated.error is not None:
            raise generated.error
        if not self.options.skip_cache:
            self.options.cache.put(self.entry, generated.code, self.folder)
        return generated.value


def _bound(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The arguments by name, as the sandbox passes them."""
    bound = inspect.signature(func).bind(*args, **kwargs)
    arguments = {}
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            arguments.update(value)
        elif kind is not inspect.Parameter.VAR_POSITIONAL:
            arguments[name] = value
        elif value:
            raise ParameterError(
                f"generated function {func.__name__!r} takes its arguments by name; "
                f"*{name} has none",
                parameter=name,
            )
    return arguments


def _source(func: Callable[..., Any]) -> str:
    """What tells one version of the function from another."""
    try:
        return inspect.getsource(func)
    except (OSError, TypeError):
        return f"{func.__qualname__}{inspect.signature(func)}\n{inspect.getdoc(func) or ''}"
