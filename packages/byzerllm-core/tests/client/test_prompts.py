"""Prompt functions in every form, on real models of this process."""

# mypy: disable-error-code="empty-body"

from __future__ import annotations

import asyncio
import inspect
import logging
import pickle
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Optional

import pydantic
import pytest
from ray import cloudpickle

from byzerllm import ByzerLLM
from byzerllm.client.prompts import PromptFunction, prompt, template_text
from byzerllm.errors import InvalidAnswerError, ParameterError, TemplateError

CONTEXT = "\nA line.\nAnother {line}.\n"
RENDERED = """
Answer the question based on only the following context:

A line.
Another {line}.

Question: Why?
Answer:"""


@pytest.fixture
def llm() -> Iterator[ByzerLLM]:
    client = ByzerLLM(runtime="local", infer_backend="echo")
    for name in ("parrot", "second"):
        client.deploy(udf_name=name)
    client.setup_default_model_name("parrot")
    yield client
    for name in ("parrot", "second"):
        client.undeploy(name, force=True)


class Story(pydantic.BaseModel):
    title: str
    pages: int


@dataclass
class Point:
    x: int
    y: int


@prompt(render="simple")
def generate_answer(context: str, question: str = "Why?") -> str:
    """
    Answer the question based on only the following context:
    {context}
    Question: {question}
    Answer:
    """


class RAG:
    def __init__(self, llm: Any = None, style: str = "short") -> None:
        self.llm = llm
        self.style = style
        self._secret = "hidden"

    @prompt(lambda self: self.llm, render="simple")
    def simple(self, context: str, question: str) -> str:
        """
        {context}|{question}|{self}
        """

    @prompt(lambda self: self.llm)
    def styled(self, question: str) -> str:
        """Be {{ self.style }}: {{ question }}"""

    @prompt(lambda self: self.llm)
    def tasks(self, tasks: Any) -> str:
        """You have {{ count }}: {{ tasks }}"""
        return {"tasks": " and ".join(tasks), "count": len(tasks)}  # type: ignore[return-value]

    @prompt()
    @staticmethod
    def fixed(word: str) -> str:
        """static {{ word }}"""

    @staticmethod
    @prompt()
    def fixed_inside(word: str) -> str:
        """static {{ word }}"""

    @prompt()
    @classmethod
    def named(cls, word: str) -> str:
        """{{ cls.greeting }} {{ word }}"""

    greeting = "hello"


class Polite(RAG):
    greeting = "good day"

    @prompt(lambda self: self.llm)
    def styled(self, question: str) -> str:
        """Please. {{ base }}"""
        return {"base": super().styled.prompt(question)}  # type: ignore[return-value]


# The text.


def test_text_is_the_docstring() -> None:
    assert generate_answer(context=CONTEXT, question="Why?") == RENDERED
    assert generate_answer.prompt(CONTEXT) == RENDERED


@pytest.mark.parametrize(
    ("docstring", "text"),
    [
        ("one line", "one line"),
        ("  one line ", "one line "),
        ("first\n    second\n      third\n    ", "first\nsecond\n  third"),
        ("\n    a\n\n      b\n    ", "\na\n\n  b"),
        ("\n    a\n   \n    b", "\na\n\nb"),
        ("\n\n    a\n\n    ", "\n\na\n"),
        ("\n\ta\n\t\tb\tc\n\t", "\na\n\tb\tc"),
        ("\nat the margin\n    in\n", "\nat the margin\n    in"),
        ("   \n    a", "\na"),
    ],
)
def test_white_space(docstring: str, text: str) -> None:
    assert template_text(docstring) == text


def test_jinja_keeps_its_own_white_space() -> None:
    @prompt()
    def reminder(tasks: list[dict[str, str]]) -> str:
        """
        Tasks:
        {% for task in tasks %}
        - {{ task.name }}
        {%- endfor %}
        """

    assert reminder([{"name": "a"}, {"name": "b"}]) == "\nTasks:\n\n- a\n- b"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{name}", "V"),
        ("{{name}}", "{name}"),
        ("{{{name}}}", "{V}"),
        ("{{{{name}}}}", "{{name}}"),
        ('{"a": {"b": {name}}}', '{"a": {"b": V}}'),
        ('{"a": {name}}', '{"a": V}'),
        ("{}", "{}"),
        ("{ name }", "{ name }"),
        ("{name.__class__}", "{name.__class__}"),
        ("{name[0]}", "{name[0]}"),
        ("{name!r:>10}", "{name!r:>10}"),
        ("{other} {{other}}", "{other} {{other}}"),
        ("{0} %s $name", "{0} %s $name"),
        ("{name", "{name"),
    ],
)
def test_simple_placeholders(template: str, text: str) -> None:
    def function(name: str) -> str: ...

    function.__doc__ = template
    assert prompt(render="simple")(function)("V") == text


@pytest.mark.parametrize("render", ["simple", "jinja2"])
def test_values_are_not_templates(render: Any) -> None:
    def function(a: str, b: str) -> str: ...

    function.__doc__ = "{a}/{b}" if render == "simple" else "{{ a }}/{{ b }}"
    values = ("{b} {{ b }} {% raise %} {b.__class__}", "<&>")
    assert prompt(render=render)(function)(*values) == "/".join(values)


def test_names_from_keywords_and_rest() -> None:
    @prompt()
    def function(first: str, *rest: int, **more: str) -> str:
        """{{ first }} {{ rest | sum }} {{ colour }} {{ more }}"""

    assert function("a", 1, 2, colour="red") == "a 3 red {'colour': 'red'}"


@pytest.mark.parametrize(
    ("args", "kwargs", "says"),
    [
        ((), {}, "missing a required argument: 'context'"),
        (("a",), {"qestion": "b"}, r"'qestion' \(did you mean 'question'\?\)"),
        (("a", "b", "c"), {}, "too many positional arguments"),
        (("a",), {"context": "b"}, "multiple values for argument 'context'"),
    ],
)
def test_arguments_that_do_not_fit(args: Any, kwargs: Any, says: str) -> None:
    for call in (generate_answer, generate_answer.run, generate_answer.prompt):
        with pytest.raises(ParameterError, match=says) as caught:
            call(*args, **kwargs)
        assert "generate_answer(context: 'str', question: 'str' = 'Why?')" in str(caught.value)


def test_misspelt_name_in_jinja() -> None:
    @prompt()
    def function(question: str, data: Any = None) -> str:
        """{{ qestion }}"""

    says = r"'qestion' is undefined \(did you mean 'question'\?\); known: data, question"
    with pytest.raises(TemplateError, match=says):
        function("a")

    @prompt()
    def attribute(data: Any) -> str:
        """{{ data.nmae }}"""

    with pytest.raises(TemplateError, match="has no attribute 'nmae'"):
        attribute({"name": 1})


def test_jinja_is_sandboxed() -> None:
    @prompt()
    def reads(value: str) -> str:
        """{{ value.__class__.__mro__ }}"""

    @prompt()
    def changes(value: list[int]) -> str:
        """{{ value.append(1) }}"""

    for function in (reads, changes):
        with pytest.raises(TemplateError, match="SecurityError"):
            function([0])  # type: ignore[arg-type]


def test_mistakes_are_found_at_the_decoration() -> None:
    def unclosed(a: str) -> str:
        """
        {% if a %}
        """

    def filtered(a: str) -> str:
        """{{ a | uper }}"""

    def bare(a: str) -> str: ...

    with pytest.raises(TemplateError, match=r"unclosed', line 2 of its template: .*endif"):
        prompt()(unclosed)
    with pytest.raises(TemplateError, match="No filter named 'uper'"):
        prompt()(filtered)
    with pytest.raises(TemplateError, match="no docstring"):
        prompt()(bare)
    with pytest.raises(ParameterError, match="did you mean 'jinja2'"):
        prompt(render="jinja")  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match=r"llm: a ByzerLLM.*got 7"):
        prompt(7)  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="llm: a ByzerLLM"):
        generate_answer.with_llm(ByzerLLM)
    with pytest.raises(ParameterError, match="with parentheses"):
        prompt()("a text")  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="each method of a class"):
        prompt()(RAG)


# The body.


def test_body_returns_values() -> None:
    assert RAG().tasks.prompt(["a", "b"]) == "You have 2: a and b"


def test_body_returns_something_else() -> None:
    @prompt()
    def text(a: str) -> str:
        """{{ a }}"""
        return "no dict"

    @prompt()
    def strange(task: str) -> str:
        """{{ task }}"""
        return {"taks": "b"}  # type: ignore[return-value]

    with pytest.raises(ParameterError, match="returned str; return a dict"):
        text("a")
    with pytest.raises(ParameterError, match=r"returned 'taks'.*did you mean 'task'"):
        strange("a")


def test_what_the_body_raises_is_raised() -> None:
    @prompt()
    def function(a: str) -> str:
        """{{ a }}"""
        raise KeyError(a)

    with pytest.raises(KeyError, match="why"):
        function("why")


# Who answers.


def test_of_a_client(llm: ByzerLLM) -> None:
    for options, tokens in (({}, "one two three"), ({"gen.max_length": 2}, "one two")):

        @prompt(llm, options=options)
        def function(words: str) -> str:
            """{{ words }} three"""

        assert function("one two") == tokens


def test_of_an_object(llm: ByzerLLM) -> None:
    rag = RAG(llm)
    assert rag.simple("a", question="b") == "\na|b|{self}"
    assert rag.styled("Why?") == "Be short: Why?"
    assert RAG(llm, "long").styled("Why?") == "Be long: Why?"
    assert RAG.styled(rag, "Why?") == "Be short: Why?"
    assert Polite(llm).styled("Why?") == "Please. Be short: Why?"
    assert rag.styled.prompt("Why?") == "Be short: Why?"


def test_of_static_and_class_methods(llm: ByzerLLM) -> None:
    for of in (RAG, RAG()):
        assert of.fixed("word") == of.fixed_inside("word") == "static word"
        assert of.named("you") == "hello you"
    assert Polite.named("you") == Polite().named("you") == "good day you"
    assert Polite.named.with_llm(llm).run("you") == "good day you"


def test_of_a_function_of_the_first_argument(llm: ByzerLLM) -> None:
    @prompt(lambda settings: settings["llm"])
    def first(settings: dict[str, Any], word: str) -> str:
        """{{ word }}"""

    @prompt(lambda: llm)
    def nothing() -> str:
        """nothing"""

    @prompt(lambda self: self.llm)
    def lost() -> str:
        """nothing"""

    assert first({"llm": llm}, "a") == "a"
    assert nothing() == "nothing"
    with pytest.raises(ParameterError, match="call it on an object"):
        lost()
    with pytest.raises(ParameterError, match=r"llm: .*got None"):
        RAG(None).styled("Why?")


def test_a_name_is_asked_for_on_the_cluster() -> None:
    # In a process of its own: other tests may have connected this one.
    code = (
        "from byzerllm.client.prompts import prompt\n"
        "from byzerllm.errors import ClusterNotFoundError\n"
        "@prompt('chat')\n"
        "def function() -> str: 'text'\n"
        "assert function.prompt() == 'text'\n"
        "try: function()\n"
        "except ClusterNotFoundError: print('not connected')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "not connected\n"


def test_with_llm_options_prompt_and_run(llm: ByzerLLM) -> None:
    other = ByzerLLM(runtime="local").setup_default_model_name("second")
    asked = generate_answer.with_llm(llm)
    assert asked.run(CONTEXT) == asked(CONTEXT) == asked.prompt(CONTEXT) == RENDERED
    short = asked.options({"llm_config": {"max_length": 2}}).options(temperature=0.5)
    assert short(CONTEXT) == "\nAnswer the"
    assert short._options.config == {"max_length": 2, "temperature": 0.5}
    assert short.with_llm(other).run(CONTEXT) == "\nAnswer the"
    assert asked(CONTEXT) == generate_answer(CONTEXT) == RENDERED
    with pytest.raises(ParameterError, match=r"no model to ask.*with_llm"):
        generate_answer.run(CONTEXT)
    rag = RAG(llm)
    assert rag.styled.options({"gen.max_length": 1}).run("Why?") == "Be"
    assert rag.styled("Why?") == "Be short: Why?"
    assert RAG().styled.with_llm(llm).run("Why?") == "Be short: Why?"


def test_which_model_answers(llm: ByzerLLM, scripted: Any) -> None:
    script = scripted("from the script")
    name = script.llm._settings.default_model_name

    @prompt(llm)
    def function() -> str:
        """echoed"""

    assert function.with_llm(name).run() == "from the script"
    assert function.with_llm(name).with_llm(llm).run() == "echoed"
    assert function.options(model="second").run() == "echoed"
    assert llm.stat("second")[0]["workers"][0]["done"] == 1


def test_options_that_are_none(llm: ByzerLLM) -> None:
    asked = generate_answer.with_llm(llm)
    with pytest.raises(ParameterError, match="did you mean 'temperature'"):
        asked.options(temprature=1).run(CONTEXT)
    with pytest.raises(ParameterError, match="a dict is needed"):
        asked.options({"llm_config": 5})
    with pytest.raises(ParameterError, match=r"a model's name is needed.*@llm\.prompt\(\)"):
        asked.options(model=print)
    with pytest.raises(ParameterError, match="options: a dict is needed"):
        asked.options("llm_config")  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="returns text"):
        asked.options(response_after_chat=True).run(CONTEXT)


def test_it_looks_like_the_function() -> None:
    assert isinstance(generate_answer, PromptFunction)
    assert generate_answer.__name__ == generate_answer.__qualname__ == "generate_answer"
    assert "Answer the question" in (generate_answer.__doc__ or "")
    assert generate_answer.__module__ == __name__
    assert list(inspect.signature(generate_answer).parameters) == ["context", "question"]
    assert inspect.unwrap(generate_answer) is generate_answer.__wrapped__  # type: ignore[arg-type]
    assert list(inspect.signature(RAG().styled).parameters) == ["question"]
    assert list(inspect.signature(RAG.styled).parameters) == ["self", "question"]
    assert list(inspect.signature(RAG.named).parameters) == ["word"]
    assert repr(RAG().styled) == "<prompt function RAG.styled(question: 'str') -> 'str'>"


def test_it_crosses_processes() -> None:
    for function in (generate_answer, generate_answer.options(top_p=0.5)):
        found = pickle.loads(cloudpickle.dumps(function))
        assert found(CONTEXT) == RENDERED
        assert found._options == function._options
    rag = pickle.loads(cloudpickle.dumps(RAG(style="long")))
    assert rag.styled.prompt("Why?") == "Be long: Why?"


def test_a_template_is_compiled_once() -> None:
    definition = RAG.__dict__["styled"]._definition
    first = definition._template
    RAG(style="a").styled.prompt("b")
    assert RAG().styled.options(top_p=1)._definition._template is first


# Typed answers.


GOOD = '{"title": "Fox", "pages": 3}'


@pytest.mark.parametrize("annotation", [Story, "Story", Optional[Story]])  # noqa: UP045
def test_pydantic_answer(scripted: Any, annotation: Any) -> None:
    script = scripted(f"Here it is:\n```json\n{GOOD}\n```")

    def function(hero: str) -> Any:
        """Write about {{ hero }}"""

    function.__annotations__["return"] = annotation
    assert prompt(script.llm)(function)("a fox") == Story(title="Fox", pages=3)
    assert "Write about a fox" in script.asked()


@pytest.mark.parametrize(
    ("annotation", "answer", "value"),
    [
        (list[Story], f"[{GOOD}]", [Story(title="Fox", pages=3)]),
        (Point, '{"x": 1, "y": 2}', Point(1, 2)),
        (int, "42", 42),
        (dict[str, int], '{"a": 1}', {"a": 1}),
        (Annotated[list[int], {"a": "hint"}], "[1]", [1]),
        (Story | Point, '{"x": 1, "y": 2}', Point(1, 2)),
    ],
)
def test_other_types(scripted: Any, annotation: Any, answer: str, value: Any) -> None:
    script = scripted(answer)

    def function() -> Any:
        """Answer."""

    function.__annotations__["return"] = annotation
    assert prompt(script.llm)(function)() == value


def test_answer_that_does_not_fit(scripted: Any, caplog: pytest.LogCaptureFixture) -> None:
    script = scripted("no", "no", "no", '{"title": 1}')

    @prompt(script.llm)
    def lenient() -> Story:
        """Answer."""

    @prompt(script.llm, check_result=True)
    def strict() -> Story:
        """Answer."""

    with caplog.at_level(logging.WARNING, "byzerllm"):
        assert lenient() is None
    assert "lenient' returns None, the answer does not fit: " in caplog.text
    with pytest.raises(InvalidAnswerError, match=r"strict': the answer does not fit: .*pages") as e:
        strict()
    assert e.value.text == '{"title": 1}'
    assert "pages" in e.value.reason
    assert isinstance(e.value, ValueError)


def test_none_may_be_the_answer(scripted: Any) -> None:
    @prompt(scripted("null").llm, check_result=True)
    def function() -> Story | None:
        """Answer."""

    assert function() is None


def test_local_classes_are_found(scripted: Any) -> None:
    class Local(pydantic.BaseModel):
        a: int

    class Asker:
        @prompt(scripted('{"a": 1}').llm)
        def ask(self) -> Local:
            """Answer."""

    assert Asker().ask() == Local(a=1)


def test_classes_defined_later_are_found(scripted: Any) -> None:
    @prompt(scripted('{"after": 1}').llm)
    def function() -> Later:
        """Answer."""

    assert function() == Later(after=1)

    @prompt()
    def never() -> Nowhere:  # type: ignore[name-defined]  # noqa: F821
        """Answer."""

    with pytest.raises(ParameterError, match=r"annotation cannot be read: .*'Nowhere'"):
        never()


class Later(pydantic.BaseModel):
    after: int


def returning(annotation: Any) -> Callable[..., Any]:
    def function() -> Any:
        """Answer."""

    function.__annotations__["return"] = annotation
    return function


@pytest.mark.parametrize(
    ("annotation", "says"),
    [
        (None, "write `-> str`"),
        (Iterator[Story], "items of str"),
        (AsyncIterator[int], "items of str"),
    ],
)
def test_return_types_that_are_none(annotation: Any, says: str) -> None:
    with pytest.raises(ParameterError, match=says):
        prompt()(returning(annotation))


@pytest.mark.parametrize("annotation", [Any, Optional[str], "str"])  # noqa: UP045
def test_text_answers(llm: ByzerLLM, annotation: Any) -> None:
    assert prompt(llm)(returning(annotation))() == "Answer."


# Streams and asynchronous functions.


@prompt()
def counted(words: str) -> Iterator[str]:
    """{{ words }}"""


@prompt()
def generated(words: str) -> Generator[str, None, None]:
    """{{ words }}{{ end }}"""
    yield {"end": "!"}  # type: ignore[misc]


@prompt()
async def awaited(words: str) -> str:
    """{{ words }}"""
    await asyncio.sleep(0)
    return {"words": words.upper()}  # type: ignore[return-value]


@prompt()
async def streamed(words: str) -> AsyncIterator[str]:
    """{{ words }}"""
    await asyncio.sleep(0)
    yield {"words": words.upper()}  # type: ignore[misc]


@prompt()
def streamed_plainly(words: str) -> AsyncIterator[str]:
    """{{ words }}"""


def test_streams(llm: ByzerLLM) -> None:
    assert list(counted.with_llm(llm)("one two three")) == ["one", " two", " three"]
    assert list(generated.with_llm(llm)("one two")) == ["one", " two!"]
    assert list(counted("one two")) == ["one two"]
    assert generated.prompt("one") == "one!"
    short = counted.with_llm(llm).options(max_length=1)
    assert "".join(short("one two three")) == "one"
    with pytest.raises(ParameterError, match="prompt function that streams"):
        short.options(response_after_chat=True)("one")


def test_a_stream_that_is_left_ends(llm: ByzerLLM) -> None:
    llm.deploy(udf_name="slow", infer_params={"delay": 0.02, "chunks": 10_000})
    try:
        pieces = counted.with_llm(llm).options(model="slow").run("one")
        assert next(pieces) == "one"
        pieces.close()  # type: ignore[attr-defined]
        end = time.monotonic() + 5
        while llm.stat("slow")[0]["workers"][0]["running"]:
            assert time.monotonic() < end
            time.sleep(0.01)
    finally:
        llm.undeploy("slow", force=True)


def test_asynchronous(llm: ByzerLLM) -> None:
    async def main() -> None:
        assert await awaited("one") == "ONE"
        assert await awaited.prompt("one") == "ONE"  # type: ignore[misc]
        assert await awaited.with_llm(llm)("one two") == "ONE TWO"
        assert await awaited.with_llm(llm).options(max_length=1).run("one two") == "ONE"
        for function, expected in (
            (streamed, ["ONE", " TWO"]),
            (streamed_plainly, ["one", " two"]),
        ):
            asked = function.with_llm(llm)
            assert [piece async for piece in asked("one two")] == expected
            assert [piece async for piece in function("one two")] == ["".join(expected)]
        assert await streamed.prompt("one") == "ONE"  # type: ignore[misc]
        assert streamed_plainly.prompt("one") == "one"
        many = await asyncio.gather(*(awaited.with_llm(llm)(str(n)) for n in range(20)))
        assert many == [str(n) for n in range(20)]

    asyncio.run(main())


def test_asynchronous_typed_answer(scripted: Any) -> None:
    class Teller:
        def __init__(self) -> None:
            self.llm = scripted(GOOD, "no", "no").llm

        @prompt(lambda self: self.llm, check_result=True)
        async def tell(self, hero: str) -> Story:
            """Write about {{ hero }}"""

    async def main() -> None:
        teller = Teller()
        assert (await teller.tell("a fox")).title == "Fox"
        with pytest.raises(InvalidAnswerError):
            await teller.tell("a fox")

    asyncio.run(main())


def test_kinds_that_do_not_go_together() -> None:
    async def plain_stream() -> Iterator[str]:
        """a"""

    def yields() -> str:  # type: ignore[misc]
        """a"""
        yield {}

    with pytest.raises(ParameterError, match=r"write AsyncIterator\[str\]"):
        prompt()(plain_stream)
    with pytest.raises(ParameterError, match="the body yields; write Iterator"):
        prompt()(yields)


def test_of_the_client_itself(llm: ByzerLLM) -> None:
    @llm.prompt()
    def plain(a: str) -> str:
        """{{ a }}"""

    @llm.prompt(model="second", render="simple", options={"max_length": 1})
    def other(a: str) -> str:
        """{a} b"""

    assert plain("one two") == "one two"
    assert other("one") == "one"
    assert llm.stat("second")[0]["workers"][0]["done"] == 1
