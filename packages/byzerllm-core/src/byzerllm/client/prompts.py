"""Prompt functions: functions whose docstring is the template of a question to a model.

    @llm.prompt()
    def tell_story(hero: str) -> str:
        '''
        Tell a story about {{ hero }} in two sentences.
        '''

    tell_story("a fox")                 # asks, returns the model's text
    tell_story.prompt("a fox")          # the rendered text, nothing is sent

The text of a template. The docstring's common indentation is taken away, the first line left out
of the reckoning; tabs stay tabs. The line break after the opening quotes stays, and so do blank
lines, which become empty; the last line break is dropped together with the indentation of the
closing quotes. So the example above renders to a line break and one line, `Tell a story …`.

`render="jinja2"` is Jinja with its own rules for white space, in a sandbox: names that begin with
an underscore cannot be read and no object can be changed. Every parameter is a name, a method's
`self` too; a name that is none is an error.

`render="simple"` replaces `{name}` where `name` is a parameter; values are written as `str` makes
them and are not looked at again. There are no attributes, indexes or format specifications. Doubled
braces around a parameter's name are read as `str.format` reads them: `{{name}}` writes `{name}`.
All other braces stay as they are, so JSON can stand in a template.
"""

from __future__ import annotations

import copy
import functools
import inspect
import logging
import re
import sys
import textwrap
import types
import typing
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
)
from contextlib import aclosing, closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Concatenate, Generic, Literal, ParamSpec, TypeVar, cast

from byzerllm.errors import InvalidAnswerError, ParameterError, TemplateError, did_you_mean, listed

if TYPE_CHECKING:
    import jinja2

    from byzerllm.client.llm import ByzerLLM

__all__ = ["PromptFunction", "Render", "prompt"]

Render = Literal["jinja2", "simple"]
P = ParamSpec("P")
P2 = ParamSpec("P2")
R = TypeVar("R")
Values = dict[str, Any]

_log = logging.getLogger("byzerllm")
_RENDERS = typing.get_args(Render)
_RECEIVERS = ("self", "cls")
_PLACEHOLDER = re.compile(r"(\{+)([^\W\d]\w*)(\}+)")
_STREAMS = (Iterator, Iterable, Generator)
_ASYNC_STREAMS = (AsyncIterator, AsyncIterable, AsyncGenerator)
_STREAM_OPTIONS = ("model", "role_mapping", "extra_request_params")
_CALL_OPTIONS = (*_STREAM_OPTIONS, "enable_default_sys_message", "response_after_chat")
_UNBOUND: Any = object()


def prompt(
    llm: ByzerLLM | str | Callable[..., Any] | None = None,
    render: Render = "jinja2",
    check_result: bool = False,
    options: Mapping[str, Any] = {},
) -> Callable[[Callable[P, R]], PromptFunction[P, R]]:
    """Make a function out of its docstring, see the module for the template.

    The body runs first. A dict that it returns replaces parameters before the rendering, or adds
    names that the template uses; None leaves them.

    The return annotation decides what a call returns: `str` (or nothing) the model's text;
    `Iterator[str]` or `Generator[str, None, None]` its pieces as they come; a pydantic class, a
    dataclass, a list of them or any other type that pydantic can check, a value of it.
    `async def` functions are awaited; `AsyncIterator[str]` is read with `async for`.

    Args:
        llm: who answers: a client; the name of a model on the connected cluster; or a function
            that returns one of both and is called with the first argument, which for a method
            is its object (`lambda self: self.llm`), or with nothing if it takes nothing. None: a
            call returns the rendered text.
        render: `jinja2` or `simple`.
        check_result: raise InvalidAnswerError when the answer does not fit the annotation. False:
            the call returns None then, and the reason is logged as a warning.
        options: as `PromptFunction.options` takes them.

    Raises:
        ParameterError: an unknown `render`, an option, or a return type that nothing can be made
            of; or a call whose arguments do not fit the signature.
        TemplateError: no docstring, a template that does not parse, or, in a call, a name that
            is none.
    """
    if render not in _RENDERS:
        raise ParameterError.unknown(str(render), _RENDERS, where="render")
    if llm is not None and not _may_answer(llm):
        raise _no_llm(llm)
    settings = _Options().merged(options)

    def decorate(function: Callable[P, R]) -> PromptFunction[P, R]:
        kind, plain = _unwrapped(function)
        definition = _Definition(plain, render, kind, _scope(sys._getframe(1)))
        return PromptFunction(definition, llm, check_result, settings)

    return decorate


def _unwrapped(function: Any) -> tuple[str, Callable[..., Any]]:
    if isinstance(function, staticmethod):
        return "static", function.__func__
    if isinstance(function, classmethod):
        return "class", function.__func__
    if not callable(function) or inspect.isclass(function):
        raise ParameterError(
            f"a prompt is made of a function with a docstring (got {function!r}); write "
            "@byzerllm.prompt() with parentheses above it, and above each method of a class"
        )
    return "function", function


@dataclass(frozen=True)
class _Options:
    """What a prompt function passes to `chat_oai` beside the conversation."""

    call: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)

    def merged(self, given: Mapping[str, Any]) -> _Options:
        if not isinstance(given, Mapping):
            raise ParameterError(f"options: a dict is needed (got {type(given).__name__})")
        config = given.get("llm_config", {})
        if not isinstance(config, Mapping):
            raise ParameterError.invalid(
                "llm_config", f"a dict is needed (got {type(config).__name__})", where="options"
            )
        model = given.get("model", "")
        if not isinstance(model, str):
            raise ParameterError.invalid(
                "model",
                f"a model's name is needed (got {model!r}); a decorator is written with "
                "parentheses, @llm.prompt()",
                where="options",
            )
        call = {key: value for key, value in given.items() if key in _CALL_OPTIONS}
        bare = {k: v for k, v in given.items() if k not in _CALL_OPTIONS and k != "llm_config"}
        return _Options({**self.call, **call}, {**self.config, **config, **bare})

    def arguments(self, *, stream: bool, typed: bool) -> dict[str, Any]:
        if stream:
            allowed: tuple[str, ...] = _STREAM_OPTIONS
        else:
            allowed = _CALL_OPTIONS if typed else _CALL_OPTIONS[:-1]
        for name in self.call:
            if name not in allowed:
                what = "a prompt function that streams" if stream else "one that returns text"
                raise ParameterError.invalid(name, f"does nothing for {what}", where="options")
        return {**self.call, "llm_config": dict(self.config)}


@dataclass(frozen=True)
class _Answer:
    """What a call returns. `type`: None for text; else what pydantic checks the answer against."""

    stream: bool = False
    asynchronous: bool = False
    type: Any = None


class _Definition:
    """What the programmer wrote: shared by all copies of one prompt function."""

    def __init__(
        self,
        function: Callable[..., Any],
        render: Render,
        kind: str,
        scope: Mapping[str, Any],
    ) -> None:
        self.function = function
        self.kind = kind
        self.render = render
        self.name = getattr(function, "__qualname__", type(function).__name__)
        self.awaits = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
        self.signature = inspect.signature(function)
        first = next(iter(self.signature.parameters), "")
        self.receiver = first if first in _RECEIVERS else ""
        self.source = self._source()
        self._known_answer = self._answer(scope, late=False)
        if render == "jinja2":
            self._names = self._checked()
        else:
            self._names = frozenset(found[2] for found in _PLACEHOLDER.finditer(self.source))

    def __getstate__(self) -> dict[str, Any]:
        # Compiled templates hold code objects, which do not pickle.
        return {key: value for key, value in self.__dict__.items() if key != "_template"}

    def _source(self) -> str:
        doc = self.function.__doc__
        if not doc or not doc.strip():
            raise TemplateError(
                f"prompt function {self.name!r} has no docstring, which is its template (an "
                "f-string is none, and python -OO removes them)"
            )
        return template_text(doc)

    # Arguments and rendering.

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> inspect.BoundArguments:
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise ParameterError(
                f"{self.name}{self.signature}: {error}{self._near(kwargs)}"
            ) from None
        bound.apply_defaults()
        return bound

    def _near(self, kwargs: Mapping[str, Any]) -> str:
        strange = [name for name in kwargs if name not in self.signature.parameters]
        return did_you_mean(strange[0], self.signature.parameters) if strange else ""

    def text(self, bound: inspect.BoundArguments) -> str:
        """The rendered template, of a function whose body needs no awaiting."""
        outcome = self.function(*bound.args, **bound.kwargs)
        if inspect.isgenerator(outcome):
            outcome = _first(outcome)
        return self._rendered(bound, outcome)

    async def text_async(self, bound: inspect.BoundArguments) -> str:
        outcome = self.function(*bound.args, **bound.kwargs)
        if inspect.isasyncgen(outcome):
            async with aclosing(outcome):
                outcome = await anext(outcome, None)
        elif inspect.isawaitable(outcome):
            outcome = await outcome
        return self._rendered(bound, outcome)

    def _rendered(self, bound: inspect.BoundArguments, outcome: Any) -> str:
        values = self._values(bound)
        if outcome is not None:
            values.update(self._overrides(outcome, values))
        if self.render == "simple":
            values.pop(self.receiver, None)
            return _fill(self.source, values)
        return self._jinja(values)

    def _values(self, bound: inspect.BoundArguments) -> Values:
        values = dict(bound.arguments)
        for parameter in self.signature.parameters.values():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                values = {**values[parameter.name], **values}
        return values

    def _overrides(self, outcome: Any, values: Values) -> Values:
        if not isinstance(outcome, Mapping):
            raise ParameterError(
                f"prompt function {self.name!r}: its body returned {type(outcome).__name__}; "
                "return a dict of values for the template, or None"
            )
        for name in outcome:
            if name not in values and name not in self._names:
                allowed = {*values, *self._names} - {self.receiver}
                near = did_you_mean(name, allowed) if isinstance(name, str) else ""
                raise ParameterError(
                    f"prompt function {self.name!r}: its body returned {name!r}, which is neither "
                    f"a parameter nor in the template{near}; known: {listed(allowed)}"
                )
        return dict(outcome)

    def _jinja(self, values: Values) -> str:
        import jinja2

        # Jinja keeps the name `self` for itself.
        given = {f"_{name}_" if name == self.receiver else name: v for name, v in values.items()}
        try:
            return self._template.render(given)
        except jinja2.UndefinedError as error:
            known = set(values)
            missing = re.match(r"'(\w+)' is undefined$", str(error))
            near = did_you_mean(missing[1], known) if missing else ""
            raise TemplateError(
                f"prompt function {self.name!r}: {error}{near}; known: {listed(known)}"
            ) from None
        except Exception as error:
            raise TemplateError(
                f"prompt function {self.name!r}: the template cannot be rendered: "
                f"{type(error).__name__}: {error}"
            ) from error

    @functools.cached_property
    def _template(self) -> jinja2.Template:
        template: jinja2.Template = _environment().from_string(self._tree()[0])
        return template

    def _tree(self) -> tuple[jinja2.nodes.Template, set[str]]:
        """The template's syntax tree, and the names that it takes from outside."""
        from jinja2 import meta, nodes

        tree = _environment().parse(self.source)
        if self.receiver:
            for node in tree.find_all(nodes.Name):
                if node.name == self.receiver:
                    node.name = f"_{self.receiver}_"
        return tree, meta.find_undeclared_variables(tree)

    def _checked(self) -> frozenset[str]:
        """Compile, so that mistakes show at the decoration; the names from outside."""
        import jinja2

        try:
            names = self._tree()[1]
            self._template  # noqa: B018 - compiles
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(
                f"prompt function {self.name!r}, line {error.lineno} of its template: "
                f"{error.message}"
            ) from None
        return frozenset(names - {f"_{self.receiver}_"})

    # What a call returns.

    @property
    def answer(self) -> _Answer:
        if self._known_answer is None:
            self._known_answer = self._answer({}, late=True)
        assert self._known_answer is not None
        return self._known_answer

    def _answer(self, scope: Mapping[str, Any], *, late: bool) -> _Answer | None:
        try:
            annotation = _return_annotation(self.function, scope)
        except NameError as error:
            # A class that is defined below the function is known at the first call.
            if not late:
                return None
            raise ParameterError(
                f"prompt function {self.name!r}: its return annotation cannot be read: {error}"
            ) from None
        return self._answer_of(annotation)

    def _answer_of(self, annotation: Any) -> _Answer:
        function = self.function
        if annotation is inspect.Parameter.empty:
            if inspect.isasyncgenfunction(function):
                annotation = AsyncIterator[str]
            elif inspect.isgeneratorfunction(function):
                annotation = Iterator[str]
            else:
                annotation = str
        origin = typing.get_origin(annotation) or annotation
        if origin in _STREAMS or origin in _ASYNC_STREAMS:
            return self._stream_answer(annotation, asynchronous=origin in _ASYNC_STREAMS)
        if annotation is None or annotation is type(None):
            raise self._wrong_return("None; write `-> str` for the model's text")
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise self._wrong_return(
                f"{annotation!r}, but the body yields; write Iterator[str] or AsyncIterator[str]"
            )
        members = typing.get_args(annotation) if _is_union(origin) else (annotation,)
        text = all(member in (str, Any, type(None)) for member in members)
        return _Answer(asynchronous=self.awaits, type=None if text else annotation)

    def _stream_answer(self, annotation: Any, *, asynchronous: bool) -> _Answer:
        items = typing.get_args(annotation)[:1]
        if items not in ((), (str,), (Any,)):
            raise self._wrong_return(f"{annotation!r}; a stream has items of str")
        if self.awaits and not asynchronous:
            raise self._wrong_return(
                f"{annotation!r} of an async function; write AsyncIterator[str]"
            )
        return _Answer(stream=True, asynchronous=asynchronous)

    def _wrong_return(self, what: str) -> ParameterError:
        return ParameterError(f"prompt function {self.name!r} returns {what}")


class PromptFunction(Generic[P, R]):
    """A function whose docstring is a prompt; `prompt` makes them.

    Calling it asks the model, or returns the rendered text when there is none (a streaming function
    gives it as its one piece). It has the name, docstring and signature of the function it was
    made of. In a class it is a method. It never changes: `with_llm` and `options` return copies.
    """

    __name__: str
    __qualname__: str
    __wrapped__: Callable[P, R]

    def __init__(
        self, definition: _Definition, llm: Any, check_result: bool, options: _Options
    ) -> None:
        functools.update_wrapper(self, definition.function)
        self._definition = definition
        self._llm = llm
        self._check_result = check_result
        self._options = options
        self._receiver = _UNBOUND

    @typing.overload
    def __get__(self, instance: None, owner: type) -> PromptFunction[P, R]: ...
    @typing.overload
    def __get__(
        self: PromptFunction[Concatenate[Any, P2], R], instance: object, owner: type | None = None
    ) -> PromptFunction[P2, R]: ...
    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        kind = self._definition.kind
        if kind == "static" or (kind == "function" and instance is None):
            return self
        bound = copy.copy(self)
        bound._receiver = (owner or type(instance)) if kind == "class" else instance
        return bound

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if state["_receiver"] is _UNBOUND:
            del state["_receiver"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({"_receiver": _UNBOUND, **state})

    def __repr__(self) -> str:
        return f"<prompt function {self._definition.name}{self.__signature__}>"

    @property
    def __signature__(self) -> inspect.Signature:
        signature = self._definition.signature
        if self._receiver is _UNBOUND:
            return signature
        return signature.replace(parameters=list(signature.parameters.values())[1:])

    def with_llm(self, llm: ByzerLLM | str | Callable[..., Any]) -> PromptFunction[P, R]:
        """A copy that someone else answers.

        Args:
            llm: as `byzerllm.prompt` takes it. A client's default model answers; a model's name is
                asked for at the client that this function has, if it has one.

        Raises:
            ParameterError: it is none of these.
        """
        if isinstance(llm, str) and self._llm is not None and not isinstance(self._llm, str):
            return self.options({"model": llm})
        if not _may_answer(llm):
            raise _no_llm(llm)
        changed = copy.copy(self)
        changed._llm = llm
        call = {key: value for key, value in self._options.call.items() if key != "model"}
        changed._options = _Options(call, self._options.config)
        return changed

    def options(self, options: Mapping[str, Any] = {}, /, **more: Any) -> PromptFunction[P, R]:
        """A copy with further options; those given before stay unless they are given again.

        Args:
            options: generation parameters (`temperature`, `gen.max_length`, …), alone or as
                `llm_config`; and of `chat_oai`: `model`, `role_mapping`, `extra_request_params`,
                `enable_default_sys_message`, `response_after_chat`.
            more: the same as keywords.
        """
        changed = copy.copy(self)
        changed._options = self._options.merged(options).merged(more)
        return changed

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Ask the model, or return the rendered text when there is none."""
        return cast(R, self._call(self._bind(args, kwargs), must_ask=False))

    def run(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Ask the model. Raises ParameterError when there is none."""
        return cast(R, self._call(self._bind(args, kwargs), must_ask=True))

    def prompt(self, /, *args: P.args, **kwargs: P.kwargs) -> str:
        """The rendered text; nothing is sent. An `async def` function's is awaited."""
        bound = self._bind(args, kwargs)
        if self._definition.awaits:
            return cast(str, self._definition.text_async(bound))
        return self._definition.text(bound)

    def _bind(self, args: Any, kwargs: Any) -> inspect.BoundArguments:
        if self._receiver is not _UNBOUND:
            args = (self._receiver, *args)
        return self._definition.bind(args, kwargs)

    def _call(self, bound: inspect.BoundArguments, *, must_ask: bool) -> Any:
        answer = self._definition.answer
        client = self._client(bound)
        if client is None and must_ask:
            raise ParameterError(
                f"prompt function {self._definition.name!r} has no model to ask; name one: "
                ".with_llm(llm).run(…)"
            )
        if answer.stream:
            if not answer.asynchronous:
                return self._stream(client, self._definition.text(bound))
            if self._definition.awaits:
                return self._async_stream(client, bound)
            return self._async_pieces(client, self._definition.text(bound))
        if answer.asynchronous:
            return self._ask_async(client, bound)
        return self._ask(client, self._definition.text(bound))

    # Asking.

    def _client(self, bound: inspect.BoundArguments) -> Any:
        source = self._llm
        if source is None:
            return None
        if callable(source) and not _is_client(source):
            source = self._called(source, bound)
        if isinstance(source, str):
            from byzerllm.client.llm import ByzerLLM

            return ByzerLLM().setup_default_model_name(source)
        if not _is_client(source):
            raise _no_llm(source)
        return source

    def _called(self, source: Callable[..., Any], bound: inspect.BoundArguments) -> Any:
        if not inspect.signature(source).parameters:
            return source()
        if not bound.arguments:
            raise ParameterError(
                f"prompt function {self._definition.name!r}: its llm is a function of the first "
                "argument, and there is none; call it on an object, or let the function take none"
            )
        return source(next(iter(bound.arguments.values())))

    def _arguments(self) -> dict[str, Any]:
        answer = self._definition.answer
        arguments = self._options.arguments(stream=answer.stream, typed=answer.type is not None)
        if answer.type is not None:
            arguments["response_class"] = answer.type
        return arguments

    def _ask(self, client: Any, text: str) -> Any:
        if client is None:
            return text
        return self._result(client.chat_oai(_question(text), **self._arguments()))

    async def _ask_async(self, client: Any, bound: inspect.BoundArguments) -> Any:
        text = await self._definition.text_async(bound)
        if client is None:
            return text
        return self._result(await client.async_chat_oai(_question(text), **self._arguments()))

    def _result(self, responses: list[Any]) -> Any:
        response = responses[0]
        if self._definition.answer.type is None:
            return response.output
        reason = response.metadata.get("reason")
        if not reason:
            return response.value
        name = self._definition.name
        if self._check_result:
            text = response.response.output
            raise InvalidAnswerError(
                f"prompt function {name!r}: the answer does not fit: {reason}",
                text=text,
                reason=reason,
            )
        _log.warning("prompt function %r returns None, the answer does not fit: %s", name, reason)
        return None

    def _stream(self, client: Any, text: str) -> Iterator[str]:
        if client is None:
            return iter((text,))
        arguments = self._arguments()
        return _pieces(client.stream_chat_oai(_question(text), delta_mode=True, **arguments))

    async def _async_stream(
        self, client: Any, bound: inspect.BoundArguments
    ) -> AsyncGenerator[str, None]:
        text = await self._definition.text_async(bound)
        async with aclosing(self._async_pieces(client, text)) as pieces:
            async for piece in pieces:
                yield piece

    def _async_pieces(self, client: Any, text: str) -> AsyncGenerator[str, None]:
        if client is None:
            return _alone(text)
        arguments = self._arguments()
        items = client.async_stream_chat_oai(_question(text), delta_mode=True, **arguments)
        return _read(items)


def template_text(docstring: str) -> str:
    """The template in a docstring, as the module describes it."""
    first, line_break, rest = docstring.partition("\n")
    text = first.lstrip() + line_break + textwrap.dedent(rest)
    return text.removesuffix("\n")


def _fill(source: str, values: Mapping[str, Any]) -> str:
    def filled(found: re.Match[str]) -> str:
        opening, name, closing_ = found.groups()
        if name not in values:
            return found[0]
        count = min(len(opening), len(closing_))
        inner = str(values[name]) if count % 2 else name
        kept = count // 2
        left, right = len(opening) - count + kept, len(closing_) - count + kept
        return "{" * left + inner + "}" * right

    return _PLACEHOLDER.sub(filled, source)


@functools.lru_cache(maxsize=1)
def _environment() -> Any:
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    # The one line break that Jinja drops at the end is not ours: `template_text` dropped that.
    return ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False
    )


def _return_annotation(function: Callable[..., Any], scope: Mapping[str, Any]) -> Any:
    annotations = getattr(function, "__annotations__", {})
    if "return" not in annotations:
        return inspect.Parameter.empty
    described = types.SimpleNamespace(__annotations__={"return": annotations["return"]})
    if annotations["return"] is None:
        return None
    globals_ = getattr(inspect.unwrap(function), "__globals__", {})
    return typing.get_type_hints(described, globals_, dict(scope), include_extras=True)["return"]


def _scope(frame: types.FrameType) -> dict[str, Any]:
    """Names of the functions and classes around a decorator, which annotations kept as text may
    use; a module's own are found through the function."""
    scope: dict[str, Any] = {}
    current: types.FrameType | None = frame
    while current is not None and current.f_locals is not current.f_globals:
        scope = {**current.f_locals, **scope}
        # A class body's frame stands inside the frame of the function that defines the class.
        if "__qualname__" not in current.f_locals:
            break
        current = current.f_back
    return scope


def _is_union(origin: Any) -> bool:
    return origin is typing.Union or origin is types.UnionType


def _is_client(llm: Any) -> bool:
    return hasattr(llm, "chat_oai") and not inspect.isclass(llm)


def _may_answer(llm: Any) -> bool:
    return isinstance(llm, str) or _is_client(llm) or (callable(llm) and not inspect.isclass(llm))


def _no_llm(llm: Any) -> ParameterError:
    return ParameterError(
        f"llm: a ByzerLLM, a model's name, or a function that returns one is needed (got {llm!r})"
    )


def _question(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def _first(body: Generator[Any, Any, Any]) -> Any:
    """What a body that yields gives: the first item, or what it returns without one."""
    with closing(body):
        try:
            return next(body)
        except StopIteration as end:
            return end.value


def _pieces(items: Any) -> Iterator[str]:
    with closing(items):
        for text, _ in items:
            if text:
                yield text


async def _read(items: Any) -> AsyncGenerator[str, None]:
    async with aclosing(items):
        async for text, _ in items:
            if text:
                yield text


async def _alone(text: str) -> AsyncGenerator[str, None]:
    yield text
