"""The examples about Python and models that users of earlier releases know, on a live cluster.

The model is a vendor's, played by a local server that speaks OpenAI's wire and answers what this
file tells it to. Names, keys and the order of calls are the examples'.
"""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import pydantic
import pytest
from dateutil.relativedelta import relativedelta

import byzerllm
from byzerllm.utils import (
    function_calling_format,
    function_impl_format,
    response_class_format,
    response_class_format_after_chat,
    serialize_function_to_json,
)
from byzerllm.utils.client import ByzerLLM, Templates, code_utils, message_utils
from vendors.openai import OpenAIVendor
from vendors.server import Answer

pytestmark = pytest.mark.cluster
CHAT = "chat"


@pytest.fixture(scope="module")
def vendor() -> Iterator[OpenAIVendor]:
    with OpenAIVendor() as vendor:
        yield vendor
        assert vendor.complaints == []


@pytest.fixture(scope="module")
def deployed(cluster: object, vendor: OpenAIVendor) -> Iterator[None]:
    llm = ByzerLLM()
    llm.setup_gpus_per_worker(0).setup_cpus_per_worker(0.001).setup_num_workers(1)
    for name in (CHAT, "sparkdesk_chat"):
        llm.deploy(
            model_path="",
            pretrained_model_type="saas/openai",
            udf_name=name,
            infer_params={
                "saas.api_key": vendor.key,
                "saas.base_url": f"{vendor.url}/v1",
                "saas.model": "gpt-4o",
            },
        )
    yield
    for name in (CHAT, "sparkdesk_chat"):
        llm.undeploy(name)


@pytest.fixture
def llm(deployed: None) -> ByzerLLM:
    llm = ByzerLLM()
    llm.setup_default_model_name(CHAT)
    meta = llm.get_meta()
    llm.setup_max_model_length(CHAT, meta.get("max_model_len", 32000))
    return llm


def called(name: str, **arguments: Any) -> Answer:
    return Answer(tool_calls=[{"name": name, "arguments": json.dumps(arguments)}])


def question(vendor: OpenAIVendor) -> str:
    """What the vendor was asked last."""
    asked: str = vendor.asked[-1].json["messages"][-1]["content"]
    return asked


def user(content: str) -> list[dict[str, str]]:
    return [{"content": content, "role": "user"}]


# Function calling.


def compute_date_range(
    count: Annotated[int, "时间跨度，数值类型"],
    unit: Annotated[str, "时间单位，字符串类型", {"enum": ["day", "week", "month", "year"]}],
) -> list[str]:
    """
    计算日期范围

    Args:
        count: 时间跨度，数值类型
        unit: 时间单位，字符串类型，可选值为 day,week,month,year
    """
    now = datetime.datetime.now()  # noqa: DTZ005 - as users write it
    start = now - relativedelta(**{f"{unit}s": count})  # type: ignore[arg-type]
    return [start.strftime("%Y-%m-%d %H:%M:%S"), now.strftime("%Y-%m-%d %H:%M:%S")]


def compute_now() -> str:
    """
    计算当前时间
    """
    return datetime.datetime.now().strftime("%Y-%m-%d %H:%M:%S")  # noqa: DTZ005


TOOLS: list[Callable[..., Any]] = [compute_date_range, compute_now]


def seconds_between(earlier: str, later: str) -> float:
    form = "%Y-%m-%d %H:%M:%S"
    parse = datetime.datetime.strptime
    return (parse(later, form) - parse(earlier, form)).total_seconds()


def test_function_calling_without_arguments(llm: ByzerLLM, vendor: OpenAIVendor) -> None:
    vendor.answers(called("compute_now"))
    t = llm.chat_oai(user("计算当前时间"), tools=TOOLS, execute_tool=True)
    (value,) = t[0].values
    assert abs(seconds_between(value, compute_now())) < 60
    offered = vendor.asked[-1].json["tools"]
    assert [tool["function"]["name"] for tool in offered] == ["compute_date_range", "compute_now"]
    unit = offered[0]["function"]["parameters"]["properties"]["unit"]
    assert unit["enum"] == ["day", "week", "month", "year"]


@pytest.mark.parametrize(
    ("asked", "count", "unit", "days"),
    [("最近三个月趋势", 3, "month", (89, 92)), ("最近三天", 3, "day", (3, 3))],
)
def test_function_calling_with_arguments(
    llm: ByzerLLM, vendor: OpenAIVendor, asked: str, count: int, unit: str, days: tuple[int, int]
) -> None:
    vendor.answers(called("compute_date_range", count=count, unit=unit))
    t = llm.chat_oai(user(asked), tools=TOOLS, execute_tool=True)
    ((start, end),) = t[0].values
    least, most = days
    assert least <= seconds_between(start, end) / 86_400 <= most


def test_function_calling_that_chooses_no_tool(llm: ByzerLLM, vendor: OpenAIVendor) -> None:
    vendor.answers("您好，我是一个人工智能语言模型，暂时无法吃饭。")
    t = llm.chat_oai(user("你吃饭了么？"), tools=TOOLS, execute_tool=True)
    assert not t[0].values
    assert t[0].response.output == "您好，我是一个人工智能语言模型，暂时无法吃饭。"


def test_own_function_calling_format(llm: ByzerLLM, vendor: OpenAIVendor) -> None:
    def custom_function_calling_format(
        prompt: str, tools: list[Callable[..., Any]], tool_choice: Callable[..., Any] | None
    ) -> str:
        return f"{function_calling_format(prompt, tools, tool_choice)}\n(custom)"

    llm.setup_function_calling_format_func(CHAT, custom_function_calling_format)
    vendor.answers('```json\n{"tool_calls": [{"name": "compute_now", "arguments": {}}]}\n```')
    t = llm.chat_oai(user("计算当前时间"), tools=TOOLS, execute_tool=True)
    assert len(t[0].values) == 1
    assert question(vendor).endswith("问题：计算当前时间\n(custom)")


# Respond with a pydantic class.


class Story(pydantic.BaseModel):
    """
    故事
    """

    title: str = pydantic.Field(description="故事的标题")
    body: str = pydantic.Field(description="故事主体")


TELL = "请给我讲个故事，分成两个部分，一个标题，一个故事主体"
TOLD = Story(title="勇敢的小兔子", body="在一个美丽的森林里，住着一只可爱的小兔子。")


def test_response_class(llm: ByzerLLM, vendor: OpenAIVendor) -> None:
    vendor.answers(TOLD.model_dump_json())
    t = llm.chat_oai(user(TELL), response_class=Story)
    assert t[0].value == TOLD
    assert vendor.asked[-1].json["response_format"]["type"] == "json_schema"


def test_response_class_after_chat(llm: ByzerLLM, vendor: OpenAIVendor) -> None:
    vendor.answers("从前有一只勇敢的小兔子。", f"```json\n{TOLD.model_dump_json()}\n```")
    t = llm.chat_oai(user(TELL), response_class=Story, response_after_chat=True)
    assert t[0].value == TOLD
    messages = vendor.asked[-1].json["messages"]
    assert messages[1] == {"role": "assistant", "content": "从前有一只勇敢的小兔子。"}
    assert messages[2]["content"] == response_class_format_after_chat(Story)


def test_own_response_class_format(llm: ByzerLLM, vendor: OpenAIVendor) -> None:
    def custom_response_class_format(prompt: str, cls: type[pydantic.BaseModel]) -> str:
        return f"{response_class_format(prompt, cls)}\n(custom)"

    llm.setup_response_class_format_func(CHAT, custom_response_class_format)
    vendor.answers(TOLD.model_dump_json())
    assert llm.chat_oai(user(TELL), response_class=Story)[0].value == TOLD
    assert question(vendor).startswith(TELL)
    assert question(vendor).endswith("(custom)")


# Function implementation.


class Time(pydantic.BaseModel):
    time: str = pydantic.Field(..., description="时间，时间格式为 yyyy-MM-dd")


class TimeRange(pydantic.BaseModel):
    """
    时间区间
    格式需要如下： yyyy-MM-dd
    """

    start: str = pydantic.Field(..., description="开始时间.时间格式为 yyyy-MM-dd")
    end: str = pydantic.Field(..., description="截止时间.时间格式为 yyyy-MM-dd")


NOW = """先取当前日期。
```python
from datetime import datetime

def calculate_current_time():
    return {"time": datetime.now().strftime("%Y-%m-%d")}
```"""
NEXT_DAY = """
```python
from datetime import timedelta

def add_one_day(current_day):
    return {"time": (current_day + timedelta(days=1)).strftime("%Y-%m-%d")}
```"""
RANGE = """去年的三月到七月。
```python
from datetime import datetime

def calculate_time_range():
    year = datetime.now().year - 1
    return {"start": f"{year}-03-01", "end": f"{year}-07-31"}
```"""
LAST_YEAR = datetime.date.today().year - 1  # noqa: DTZ011
MARCH_TO_JULY = TimeRange(start=f"{LAST_YEAR}-03-01", end=f"{LAST_YEAR}-07-31")


def test_impl_and_its_cache(llm: ByzerLLM, vendor: OpenAIVendor) -> None:
    @llm.impl()
    def calculate_current_time() -> Time:
        """
        计算当前时间
        """

    vendor.answers(NOW)
    today = Time(time=datetime.date.today().isoformat())  # noqa: DTZ011
    assert calculate_current_time() == today
    asked = len(vendor.asked)
    start = time.monotonic()
    assert calculate_current_time() == today
    print(f"second time cost: {time.monotonic() - start}")
    assert len(vendor.asked) == asked

    llm.clear_impl_cache()
    vendor.answers(NOW)
    assert calculate_current_time() == today
    assert len(vendor.asked) == asked + 1


def test_impl_with_parameters(llm: ByzerLLM, vendor: OpenAIVendor) -> None:
    @llm.impl(verbose=True)
    def add_one_day(
        current_day: Annotated[datetime.datetime, "当前日期，类型是datatime.datetime"],
    ) -> Time:
        """
        给传入的日期加一天，得到明天的时间
        """

    vendor.answers(NEXT_DAY)
    assert add_one_day(datetime.datetime(2024, 1, 28)) == Time(time="2024-01-29")  # noqa: DTZ001


def test_impl_with_an_instruction(llm: ByzerLLM, vendor: OpenAIVendor) -> None:
    @llm.impl(instruction="去年三月到七月")
    def calculate_time_range() -> TimeRange:
        """
        计算时间区间，时间格式为 yyyy-MM-dd.
        """

    vendor.answers(RANGE)
    assert calculate_time_range() == MARCH_TO_JULY
    assert "去年三月到七月" in question(vendor)


def calculate_time_range() -> TimeRange:  # type: ignore[empty-body]
    """
    计算时间区间，时间格式为 yyyy-MM-dd.
    """


def test_impl_in_its_call_form(llm: ByzerLLM, vendor: OpenAIVendor) -> None:
    vendor.answers(RANGE)
    assert llm.impl(instruction="去年三月到七月")(calculate_time_range)() == MARCH_TO_JULY


@pytest.mark.parametrize("given", [{}, {"impl_func_params": {}}])
def test_chat_oai_implements_a_function(
    llm: ByzerLLM, vendor: OpenAIVendor, given: dict[str, Any]
) -> None:
    vendor.answers(RANGE)
    t = llm.chat_oai(
        user("去年三月到七月"),
        impl_func=calculate_time_range,
        response_class=TimeRange,
        execute_impl_func=True,
        **given,
    )
    assert t[0].value == MARCH_TO_JULY
    assert t[0].metadata.get("resason", "") == ""


def test_the_reason_of_a_function_that_does_not_work(llm: ByzerLLM, vendor: OpenAIVendor) -> None:
    vendor.answers(*["```python\ndef calculate_time_range():\n    return 1 / 0\n```"] * 2)
    t = llm.chat_oai(
        user("去年三月到七月"),
        impl_func=calculate_time_range,
        response_class=TimeRange,
        execute_impl_func=True,
    )
    assert t[0].value is None
    assert "ZeroDivisionError" in t[0].metadata.get("resason", "")


def test_own_implementation_format(llm: ByzerLLM, vendor: OpenAIVendor) -> None:
    def function_impl_format2(
        prompt: str, func: Callable[..., Any] | str, cls: type[pydantic.BaseModel] | str
    ) -> str:
        tool_choice_ser = serialize_function_to_json(func)
        _cls = cls if isinstance(cls, str) else json.dumps(cls.model_json_schema())
        assert function_impl_format(prompt, func, cls)
        return f"生成一个python函数\n{tool_choice_ser}\n{_cls}\n用户的问题是：{prompt}"

    llm.setup_impl_func_format_func(CHAT, function_impl_format2)
    vendor.answers(RANGE)
    t = llm.chat_oai(
        user("去年三月到七月"),
        impl_func=calculate_time_range,
        response_class=TimeRange,
        execute_impl_func=True,
    )
    assert t[0].value == MARCH_TO_JULY
    assert question(vendor).startswith("生成一个python函数")


# A function that is friendly to the model.


def test_llm_friendly_function() -> None:
    described = json.loads(serialize_function_to_json(compute_date_range))
    assert described["name"] == "compute_date_range"
    assert "计算日期范围" in described["description"]
    assert described["parameters"]["properties"] == {
        "count": {"type": "integer", "description": "时间跨度，数值类型"},
        "unit": {
            "type": "string",
            "enum": ["day", "week", "month", "year"],
            "description": "时间单位，字符串类型",
        },
    }


# Prompt functions and prompt classes.

CONTEXT = """
Byzer产品栈从底层存储到大模型管理和serving再到应用开发框架：
1. Byzer-Retrieval, 一个支持向量+搜索的混合检索数据库。
2. Byzer-SQL， 一套全SQL方言，支持ETL，数据分析等工作。
"""
RENDERED = f"""
Answer the question based on only the following context:
{CONTEXT}
Question: Byzer SQL是什么？
Answer:"""


def test_prompt_function(llm: ByzerLLM, vendor: OpenAIVendor) -> None:
    @llm.prompt(render="simple")
    def generate_answer(context: str, question: str) -> str:
        """
        Answer the question based on only the following context:
        {context}
        Question: {question}
        Answer:
        """

    vendor.answers("Byzer SQL 是一个全SQL方言")
    answer = generate_answer(context=CONTEXT, question="Byzer SQL是什么？")
    assert answer == "Byzer SQL 是一个全SQL方言"
    assert question(vendor) == RENDERED


class ByzerProductDesc(pydantic.BaseModel):
    byzer_retrieval: str
    byzer_llm: str
    byzer_agent: str
    byzer_perf: str
    byzer_evaluation: str
    byzer_sql: str


DATA = {
    "name": "Jane Doe",
    "task_count": 3,
    "tasks": [
        {"name": "Submit report", "due_date": "2024-03-10"},
        {"name": "Finish project", "due_date": "2024-03-15"},
        {"name": "Reply to emails", "due_date": "2024-03-08"},
    ],
}
REMINDER = """
Hello Jane Doe,

This is a reminder that you have 3 pending tasks:

- Task: Submit report | Due: 2024-03-10
- Task: Finish project | Due: 2024-03-15
- Task: Reply to emails | Due: 2024-03-08

Best regards,
Your Reminder System"""


class RAG:
    def __init__(self) -> None:
        self.llm = ByzerLLM()
        self.llm.setup_template(model="sparkdesk_chat", template="auto")
        self.llm.setup_default_model_name("sparkdesk_chat")

    @byzerllm.prompt(lambda self: self.llm, render="simple")
    def generate_answer(self, context: str, question: str) -> str:
        """
        Answer the question based on only the following context:
        {context}
        Question: {question}
        Answer:
        """

    @byzerllm.prompt(render="simple")
    def only_the_prompt(self, context: str, question: str) -> str:
        """
        Answer the question based on only the following context:
        {context}
        Question: {question}
        Answer:
        """

    @byzerllm.prompt(lambda self: self.llm, render="simple")
    def describe(self, context: str, question: str) -> ByzerProductDesc:
        """
        Answer the question based on only the following context:
        {context}
        Question: {question}
        Answer:
        """

    @byzerllm.prompt(lambda self: self.llm, render="jinja2")
    def remind(self, name: str, task_count: int, tasks: list[dict[str, str]]) -> str:
        """
        Hello {{ name }},

        This is a reminder that you have {{ task_count }} pending tasks:
        {% for task in tasks %}
        - Task: {{ task.name }} | Due: {{ task.due_date }}
        {% endfor %}

        Best regards,
        Your Reminder System
        """

    @byzerllm.prompt(lambda self: self.llm, render="jinja2")
    def remind_by_code(self, name: str, task_count: int, tasks: list[dict[str, str]]) -> str:
        """
        Hello {{ name }},

        This is a reminder that you have {{ task_count }} pending tasks:

        {{ tasks }}

        Best regards,
        Your Reminder System
        """
        tasks_str = "\n".join(f"- Task: {t['name']} | Due: {t['due_date']}" for t in tasks)
        return {"tasks": tasks_str}  # type: ignore[return-value]


@pytest.fixture
def rag(deployed: None) -> RAG:
    return RAG()


def test_prompt_class(rag: RAG, vendor: OpenAIVendor) -> None:
    vendor.answers("一套全SQL方言")
    answer = rag.generate_answer(context=CONTEXT, question="Byzer SQL是什么？")
    assert answer == "一套全SQL方言"
    assert question(vendor) == RENDERED


def test_the_prompt_alone(rag: RAG, vendor: OpenAIVendor) -> None:
    asked = len(vendor.asked)
    assert rag.only_the_prompt(context=CONTEXT, question="Byzer SQL是什么？") == RENDERED
    assert len(vendor.asked) == asked


def test_a_model_by_its_name(deployed: None, vendor: OpenAIVendor) -> None:
    @byzerllm.prompt("sparkdesk_chat", render="simple")
    def greet(name: str) -> str:
        """Hello {name}"""

    vendor.answers("Hi")
    assert greet("you") == "Hi"
    assert question(vendor) == "Hello you"


def test_a_prompt_function_returns_a_class(rag: RAG, vendor: OpenAIVendor) -> None:
    wanted = ByzerProductDesc(**dict.fromkeys(ByzerProductDesc.model_fields, "一套全SQL方言"))
    vendor.answers(wanted.model_dump_json())
    byzer_product = rag.describe(context=CONTEXT, question="Byzer 产品列表")
    assert byzer_product.byzer_sql == "一套全SQL方言"


def test_prompts_with_jinja(rag: RAG, vendor: OpenAIVendor) -> None:
    vendor.answers("Hello! Is there anything else I can assist you with?")
    response = rag.remind(**DATA)
    assert response == "Hello! Is there anything else I can assist you with?"
    lines = [line for line in question(vendor).splitlines() if line]
    assert lines == [line for line in REMINDER.splitlines() if line]


def test_the_body_changes_parameters(rag: RAG, vendor: OpenAIVendor) -> None:
    vendor.answers("done")
    assert rag.remind_by_code(**DATA) == "done"
    assert question(vendor) == REMINDER


# Default generation parameters, and the modules that the examples import.


def test_default_generation_parameters(llm: ByzerLLM, vendor: OpenAIVendor) -> None:
    llm.setup_extra_generation_params(CHAT, {"generation.stop_token_ids": [7]})
    llm.setup_extra_generation_params(CHAT, {"generation.max_length": 2, "gen.temperature": 0.5})
    vendor.answers()
    assert llm.chat_oai(user("count"))[0].output == "one two"
    assert vendor.asked[-1].json["temperature"] == 0.5


def test_modules_of_the_examples() -> None:
    assert code_utils.extract_code(NOW)[0][0] == "python"
    merged = message_utils.padding_messages_merge([*user("a"), *user("b")])
    assert [message["role"] for message in merged] == ["user"]
    assert Templates.qwen()
