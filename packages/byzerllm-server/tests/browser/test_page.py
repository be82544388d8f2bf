"""The page in a real browser, with a real model behind it."""

from __future__ import annotations

import base64
import json
import os
import random
import re
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, Request, expect

from vendors.openai import OpenAIVendor
from vendors.server import Answer

pytestmark = pytest.mark.model

ROOT = Path(__file__).parents[4]
SCREENSHOTS = os.environ.get("BYZERLLM_SCREENSHOTS")
KEY = "page-key-0123456789"
MODELS = """
version: 1
models:
  smollm2:
    model_path: "demo:smollm2-135m-instruct"
    infer_backend: llama_cpp
  echo:
    infer_backend: echo
  slow:
    infer_backend: echo
    infer_params: {delay: 0.05, chunks: 400}
  broken:
    infer_backend: echo
    infer_params: {delay: 0.05, fail_at: 3, chunks: 10}
"""
HOSTED = """
version: 1
models:
  hosted:
    pretrained_model_type: saas/openai
    infer_params:
      saas.api_key: {vendor.key}
      saas.base_url: {vendor.url}/v1
      saas.model: gpt-4o
"""
SHOWN = """
version: 1
models:
  smollm2:
    model_path: "demo:smollm2-135m-instruct"
    infer_backend: llama_cpp
  echo:
    infer_backend: echo
    infer_params: {delay: 0.02}
"""
MARKDOWN = """# Title

Some **bold**, *italic*, ***both***, ~~struck~~, `code` and [a link](https://example.org/a_(b)).
A second line with snake_case_name and https://example.org/x_y.

1. one
   - nested

   more of one
2. two

* [x] done
* [ ] open

> quoted
> more

| a | b |
|---|--:|
| 1 | x \\| y |
| 2 | `p | q` |

```python
def add(a, b):  # sums
    return "x" + 1
```

Last words, cut **in the mid"""
HOSTILE = """<script>window.harmed = 1</script>
<img src="x" onerror="window.harmed = 1">

[one](javascript:window.harmed=1) [two](JaVaScRiPt:window.harmed=1)
[three](data:text/html;base64,PHNjcmlwdD4=) ![four](https://example.org/pixel.png)
<javascript:window.harmed=1> [five](https://example.org/"onmouseover="window.harmed=1)

```html"onload="window.harmed=1
<script>window.harmed = 1</script>
```
"""


@pytest.fixture(scope="module")
def server(serving: Callable[..., Any]) -> Any:
    return serving(config=MODELS)


@pytest.fixture(scope="module")
def keyed(serving: Callable[..., Any]) -> Any:
    """A server that wants `KEY`."""
    return serving("--api_key", KEY)


@pytest.fixture
def page(visit: Callable[..., Page], server: Any) -> Page:
    return visit(server.url)


def choose(page: Page, model: str) -> None:
    page.keyboard.press("Control+k")
    page.get_by_role("combobox").fill(model)
    expect(page.get_by_role("option").first).to_contain_text(model)
    page.keyboard.press("Enter")
    expect(page.locator("#picker")).to_have_text(model)
    expect(page.locator("#question")).to_be_focused()


def ask(page: Page, question: str) -> None:
    page.locator("#question").fill(question)
    page.locator("#question").press("Enter")


def ended(page: Page, count: int = 1) -> None:
    """Wait until so many answers are there, all complete."""
    expect(page.locator(".assistant")).to_have_count(count)
    expect(page.locator(".assistant.running")).to_have_count(0, timeout=60_000)


def setting(page: Page, name: str, value: str) -> None:
    if page.locator("#settings").is_hidden():
        page.locator("#open-settings").click()
    page.locator(f"#settings [name={name}]").fill(value)


@pytest.fixture
def bodies(page: Page) -> list[Any]:
    """What the page asks the models."""
    found: list[Any] = []

    def note(request: Request) -> None:
        if request.url.endswith("/v1/chat/completions"):
            found.append(request.post_data_json)

    page.on("request", note)
    return found


def png(width: int, height: int) -> bytes:
    """A red image."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress((b"\0" + b"\xff\0\0" * width) * height)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


# Chatting.


def test_a_real_model_answers_and_its_speed_is_shown(page: Page, bodies: list[Any]) -> None:
    choose(page, "smollm2")
    setting(page, "temperature", "0")
    setting(page, "max_tokens", "40")
    setting(page, "system", "You answer in one short sentence.")
    ask(page, "What is the capital of France?")
    ended(page)
    expect(page.locator(".assistant .markdown")).to_contain_text("Paris")
    expect(page.locator(".stats")).to_contain_text(
        re.compile(r"smollm2 · \d+ tokens · [\d.,]+ tokens/s · first after [\d.]+ m?s")
    )
    (body,) = bodies
    assert body["temperature"] == 0
    assert body["max_tokens"] == 40
    assert body["messages"] == [
        {"role": "system", "content": "You answer in one short sentence."},
        {"role": "user", "content": "What is the capital of France?"},
    ]
    ask(page, "And of Italy?")
    ended(page, 2)
    assert [message["role"] for message in bodies[1]["messages"]] == [
        "system",
        "user",
        "assistant",
        "user",
    ]


def test_an_answer_is_shown_as_it_comes_and_stops_at_escape(page: Page, server: Any) -> None:
    choose(page, "slow")
    ask(page, "one two three")
    answer = page.locator(".assistant .markdown")
    expect(answer).to_contain_text("two threeone")
    early = len(answer.inner_text())
    page.wait_for_function(
        "length => document.querySelector('.assistant .markdown').innerText.length > length",
        arg=early,
    )
    expect(page.locator("#stop")).to_be_visible()
    page.keyboard.press("Escape")
    ended(page)
    expect(page.locator(".stats")).to_contain_text("stopped")
    assert len(answer.inner_text().split()) < 400
    page.wait_for_function(
        """async () => {
          const { data } = await (await fetch("ui/models")).json();
          return data.find((model) => model.name === "slow").running === 0;
        }"""
    )


def test_stop_by_button(page: Page) -> None:
    choose(page, "slow")
    ask(page, "one two three")
    expect(page.locator(".assistant .markdown")).to_contain_text("one two")
    page.locator("#stop").click()
    ended(page)
    expect(page.locator("#send")).to_be_visible()


def test_answer_again(page: Page, bodies: list[Any]) -> None:
    choose(page, "echo")
    for number, question in enumerate(["first", "second"], 1):
        ask(page, question)
        ended(page, number)
    page.locator(".again").first.click()
    expect(page.locator(".user")).to_have_count(1)
    ended(page)
    assert bodies[-1]["messages"] == bodies[0]["messages"]


def test_edit_and_send_again(page: Page, bodies: list[Any]) -> None:
    choose(page, "echo")
    for number, question in enumerate(["first", "second"], 1):
        ask(page, question)
        ended(page, number)
    page.locator(".user").first.hover()
    page.locator(".user .edit").first.click()
    page.locator(".editor textarea").fill("changed")
    page.keyboard.press("Enter")
    expect(page.locator(".user")).to_have_count(1)
    ended(page)
    expect(page.locator(".assistant .markdown")).to_have_text("changed")
    assert bodies[-1]["messages"] == [{"role": "user", "content": "changed"}]


def test_parameters_are_sent(page: Page, bodies: list[Any]) -> None:
    choose(page, "echo")
    for name, value in {"top_p": "0.5", "seed": "7", "stop": "END\n\\n\\n"}.items():
        setting(page, name, value)
    ask(page, "a word END of it")
    ended(page)
    assert {name: bodies[0][name] for name in ("top_p", "seed", "stop")} == {
        "top_p": 0.5,
        "seed": 7,
        "stop": ["END", "\n\n"],
    }
    assert "temperature" not in bodies[0]
    expect(page.locator(".assistant .markdown")).to_have_text("a word")


def test_copy(page: Page) -> None:
    choose(page, "echo")
    ask(page, "copy **me**\n\n```\nand me\n```")
    ended(page)
    page.locator(".assistant .actions .copy").click()
    expect(page.locator(".assistant .actions .copy")).to_have_attribute("aria-label", "Copied")
    assert page.evaluate("navigator.clipboard.readText()") == "copy **me**\n\n```\nand me\n```"
    page.locator(".assistant .code .copy").click()
    page.wait_for_function("async () => (await navigator.clipboard.readText()) === 'and me'")


def test_an_error_is_shown_where_it_happened(page: Page) -> None:
    choose(page, "broken")
    ask(page, "one two three four")
    ended(page)
    problem = page.locator(".assistant [role=alert]")
    expect(problem).to_contain_text("told to fail at chunk 3")
    expect(problem).to_contain_text(re.compile(r"request req_\w+"))
    expect(page.locator(".assistant .markdown")).to_have_text("one two three")
    choose(page, "echo")
    problem.get_by_role("button", name="Try again").click()
    ended(page)
    expect(page.locator(".assistant .markdown")).to_have_text("one two three four")


def test_a_wrong_parameter_is_named(page: Page) -> None:
    choose(page, "echo")
    setting(page, "temperature", "9")
    ask(page, "hello")
    ended(page)
    expect(page.locator(".assistant [role=alert]")).to_contain_text("temperature")


def test_a_server_that_is_gone(visit: Callable[..., Page], serving: Callable[..., Any]) -> None:
    lone = serving()
    page = visit(lone.url)
    choose(page, "slow")
    ask(page, "one two three")
    expect(page.locator(".assistant .markdown")).to_contain_text("one two")
    lone.process.kill()
    ended(page)
    expect(page.locator(".assistant [role=alert]")).to_contain_text("connection broke")
    ask(page, "still there?")
    ended(page, 2)
    expect(page.locator(".assistant [role=alert]").last).to_contain_text("cannot be reached")


def test_the_conversation_survives_a_reload(page: Page, bodies: list[Any]) -> None:
    choose(page, "echo")
    ask(page, "remember *this*")
    ended(page)
    page.locator("#question").fill("a draft")
    page.reload()
    expect(page.locator("#picker")).to_have_text("echo")
    expect(page.locator(".user")).to_have_text("remember *this*")
    expect(page.locator(".assistant .markdown em")).to_have_text("this")
    expect(page.locator("#question")).to_have_value("a draft")
    page.locator("#clear").click()
    expect(page.locator(".message")).to_have_count(0)
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".message")).to_have_count(2)
    page.locator("#clear").click()
    page.reload()
    expect(page.locator(".welcome")).to_be_visible()
    expect(page.locator(".message")).to_have_count(0)


def test_an_answer_that_was_left_is_kept_as_stopped(page: Page) -> None:
    choose(page, "slow")
    ask(page, "one two three")
    expect(page.locator(".assistant .markdown")).to_contain_text("two threeone")
    page.reload()
    ended(page)
    expect(page.locator(".assistant .markdown")).to_contain_text("two threeone")
    expect(page.locator(".stats")).to_contain_text("stopped")


# Images.


def test_an_image_from_a_file(page: Page, bodies: list[Any]) -> None:
    choose(page, "echo")
    data = png(3, 2)
    page.locator("#files").set_input_files(
        [{"name": f"{name}.png", "mimeType": "image/png", "buffer": data} for name in "ab"]
    )
    expect(page.locator(".thumb")).to_have_count(2)
    page.get_by_role("button", name="Remove image 2").click()
    ask(page, "what is this?")
    ended(page)
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    assert bodies[0]["messages"][0]["content"] == [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": "what is this?"},
    ]
    expect(page.locator(".thumb")).to_have_count(0)
    shown = page.locator(".user img")
    assert shown.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [3, 2]
    expect(page.locator(".assistant .markdown")).to_have_text("what is this?")


@pytest.mark.parametrize("way", ["paste", "drop"])
def test_an_image_that_is_pasted_or_dropped(page: Page, way: str) -> None:
    choose(page, "echo")
    page.evaluate(
        """async ([way, data]) => {
          const bytes = Uint8Array.from(atob(data), (sign) => sign.charCodeAt(0));
          const moved = new DataTransfer();
          moved.items.add(new File([bytes], "a.png", { type: "image/png" }));
          const target = document.getElementById("question");
          const more = { bubbles: true, cancelable: true };
          target.dispatchEvent(way === "paste"
            ? new ClipboardEvent("paste", { clipboardData: moved, ...more })
            : new DragEvent("drop", { dataTransfer: moved, ...more }));
        }""",
        [way, base64.b64encode(png(2, 2)).decode()],
    )
    expect(page.locator(".thumb")).to_have_count(1)


def test_a_large_image_is_made_smaller(page: Page, bodies: list[Any]) -> None:
    choose(page, "echo")
    page.locator("#files").set_input_files(
        {"name": "large.png", "mimeType": "image/png", "buffer": png(4096, 1024)}
    )
    expect(page.locator(".thumb")).to_have_count(1)
    ask(page, "large")
    ended(page)
    assert page.locator(".user img").evaluate("i => [i.naturalWidth, i.naturalHeight]") == [
        2048,
        512,
    ]


def test_what_is_no_image_is_refused(page: Page) -> None:
    page.locator("#files").set_input_files(
        {"name": "fake.png", "mimeType": "image/png", "buffer": b"no image"}
    )
    expect(page.locator(".toast")).to_contain_text("fake.png")
    expect(page.locator(".thumb")).to_have_count(0)


# Markdown.


def test_markdown(page: Page) -> None:
    choose(page, "echo")
    ask(page, MARKDOWN)
    ended(page)
    answer = page.locator(".assistant .markdown")
    expect(answer.locator("h3")).to_have_text("Title")
    expect(answer.locator("p strong").first).to_have_text("bold")
    expect(answer.locator("p > em")).to_have_text("italic")
    expect(answer.locator("strong > em")).to_have_text("both")
    expect(answer.locator("del")).to_have_text("struck")
    expect(answer.locator("a").first).to_have_attribute("href", "https://example.org/a_(b)")
    expect(answer.locator("a").nth(1)).to_have_attribute("href", "https://example.org/x_y")
    assert answer.locator("p").first.evaluate("p => p.querySelectorAll('em').length") == 2
    expect(answer.locator("ol > li")).to_have_count(2)
    expect(answer.locator("ol > li ul li")).to_have_text("nested")
    expect(answer.locator("li.task input")).to_have_count(2)
    expect(answer.locator("blockquote p")).to_have_text("quoted\nmore", use_inner_text=True)
    expect(answer.locator("tbody td")).to_have_text(["1", "x | y", "2", "p | q"])
    expect(answer.locator("td.right").first).to_have_text("x | y")
    expect(answer.locator(".code pre")).to_have_text('def add(a, b):  # sums\n    return "x" + 1')
    expect(answer.locator(".tok-word")).to_have_text(["def", "return"])
    expect(answer.locator(".tok-comment")).to_have_text("# sums")
    expect(answer.locator("p").last).to_have_text("Last words, cut **in the mid")


def test_markdown_does_no_harm(page: Page) -> None:
    choose(page, "echo")
    ask(page, HOSTILE)
    ended(page)
    answer = page.locator(".assistant .markdown")
    expect(answer).to_contain_text("<script>window.harmed = 1</script>")
    assert page.evaluate("window.harmed") is None
    found = answer.evaluate(
        """answer => {
          const all = [...answer.querySelectorAll("*")];
          return {
            tags: [...new Set(all.map((element) => element.localName))],
            attributes: [...new Set(all.flatMap((element) => element.getAttributeNames()))],
            addresses: [...answer.querySelectorAll("a")].map((link) => link.href),
          };
        }"""
    )
    assert not {"script", "img", "iframe", "style", "form"} & set(found["tags"])
    assert not [name for name in found["attributes"] if name.startswith("on")]
    assert all(address.startswith("https://example.org/") for address in found["addresses"])


def test_a_policy_forbids_what_the_page_does_not_do(browser: Browser, server: Any) -> None:
    page = browser.new_page()
    page.goto(server.url)
    blocked = page.evaluate(
        """async () => {
          const blocked = new Set();
          const note = (event) => blocked.add(event.effectiveDirective);
          document.addEventListener("securitypolicyviolation", note);
          const script = document.createElement("script");
          script.textContent = "window.harmed = 1";
          document.body.append(script);
          document.body.setAttribute("onclick", "window.harmed = 1");
          document.body.click();
          const image = document.createElement("img");
          image.src = "https://example.org/pixel.png";
          document.body.append(image);
          await fetch("https://example.org/").catch(() => {});
          await new Promise((resolve) => setTimeout(resolve, 200));
          return [window.harmed ?? null, [...blocked].sort()];
        }"""
    )
    page.close()
    assert blocked == [None, ["connect-src", "img-src", "script-src-attr", "script-src-elem"]]


def test_a_text_that_grows_ends_as_it_does_at_once(page: Page) -> None:
    """Every cut of the text is shown, and what was finished is not drawn again."""
    grown, whole, kept = page.evaluate(
        """async (text) => {
          const { MarkdownView, markdown } = await import("/ui/markdown.js");
          const view = new MarkdownView();
          let first = null;
          let kept = true;
          for (let length = 1; length <= text.length; length += 1) {
            view.update(text.slice(0, length));
            if (length > 60) {
              first ||= view.element.firstChild;
              kept &&= first === view.element.firstChild;
            }
          }
          view.update(text, true);
          return [view.element.innerHTML, markdown(text).innerHTML, kept];
        }""",
        MARKDOWN,
    )
    assert grown == whole
    assert kept


@pytest.mark.parametrize(
    "text",
    [
        "*" * 20_000,
        "*a " * 10_000,
        "[" * 20_000,
        "[a](" * 8_000,
        "`" * 20_001,
        "> " * 10_000,
        "- " * 10_000,
        "#" + " " * 20_000 + "x",
        "|" * 20_000 + "\n" + "|-" * 10_000,
        "http://" * 5_000,
        "_a__b___c " * 3_000,
        "1. " * 5_000,
    ],
    ids=lambda text: text[:6].strip(),
)
def test_hostile_markdown_is_shown_soon(page: Page, text: str) -> None:
    """A renderer that takes quadratic time over these hangs for minutes."""
    shown = page.evaluate(
        """async (text) => {
          const { markdown } = await import("/ui/markdown.js");
          return markdown(text).textContent.length;
        }""",
        text,
    )
    assert shown >= 0


# Reasoning and tools, of a model that has them.


@pytest.fixture(scope="module")
def vendor() -> Iterator[OpenAIVendor]:
    with OpenAIVendor() as vendor:
        yield vendor


@pytest.fixture(scope="module")
def hosted(serving: Callable[..., Any], vendor: OpenAIVendor) -> Any:
    return serving(config=HOSTED.format(vendor=vendor))


def test_reasoning_is_folded(visit: Callable[..., Page], hosted: Any, vendor: OpenAIVendor) -> None:
    vendor.answers(Answer(text="forty-two", reasoning="six times **seven**"))
    page = visit(hosted.url)
    ask(page, "six times seven?")
    ended(page)
    expect(page.locator(".assistant > .markdown")).to_have_text("forty-two")
    thought = page.locator(".reasoning .markdown")
    expect(thought).to_be_hidden()
    page.locator(".reasoning summary").click()
    expect(thought.locator("strong")).to_have_text("seven")


def test_a_tool_call_is_shown_and_its_result_goes_on(
    visit: Callable[..., Page], hosted: Any, vendor: OpenAIVendor
) -> None:
    arguments = json.dumps({"city": "Oslo"})
    vendor.answers(
        Answer(tool_calls=[{"id": "call_7", "name": "get_weather", "arguments": arguments}]),
        "It rains in Oslo.",
    )
    page = visit(hosted.url)
    page.locator("#open-settings").click()
    page.locator("[name=tools]").fill("{")
    expect(page.locator("#tools-problem")).to_contain_text("no JSON")
    ask(page, "weather?")
    expect(page.locator(".toast")).to_contain_text("no JSON")
    expect(page.locator(".message")).to_have_count(0)
    page.get_by_role("button", name="Put an example in").click()
    page.locator("#question").press("Enter")
    ended(page)
    expect(page.locator(".tool-call h3")).to_have_text("get_weather")
    expect(page.locator(".tool-call pre")).to_contain_text('"city": "Oslo"')
    page.locator(".tool-call textarea").fill('{"weather": "rain"}')
    page.get_by_role("button", name="Go on with it").click()
    ended(page, 2)
    expect(page.locator(".assistant > .markdown").last).to_have_text("It rains in Oslo.")
    sent = vendor.asked[-1].json["messages"]
    assert sent[1]["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": arguments}
    assert sent[2] == {"role": "tool", "tool_call_id": "call_7", "content": '{"weather": "rain"}'}
    assert not vendor.complaints


# The key.


def test_the_key_is_asked_for_and_stays_in_the_tab(visit: Callable[..., Page], keyed: Any) -> None:
    page = visit(keyed.url)
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("API key")
    page.locator("#api-key").fill("wrong")
    page.keyboard.press("Enter")
    expect(dialog.get_by_role("alert")).to_contain_text("does not take the key")
    page.locator("#api-key").fill(KEY)
    page.keyboard.press("Enter")
    expect(dialog).to_have_count(0)
    choose(page, "echo")
    ask(page, "let me in")
    ended(page)
    expect(page.locator(".assistant .markdown")).to_have_text("let me in")
    page.reload()
    expect(page.locator("#picker")).to_have_text("echo")
    assert page.get_by_role("dialog").count() == 0
    kept = page.evaluate("JSON.stringify(localStorage) + document.cookie + location.href")
    assert KEY not in kept
    page.locator("#tab-call").click()
    expect(page.locator("[data-example=curl] code")).to_contain_text("$BYZERLLM_API_KEY")
    assert KEY not in page.locator("body").inner_text()
    page.locator("#key").click()
    page.get_by_role("button", name="Forget key").click()
    page.locator("#tab-chat").click()
    ask(page, "and now?")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.locator("#api-key").fill(KEY)
    page.keyboard.press("Enter")
    ended(page, 2)
    expect(page.locator(".assistant .markdown").last).to_have_text("and now?")


# Language, theme, keyboard.


def test_language(visit: Callable[..., Page], server: Any) -> None:
    page = visit(server.url, locale="zh-CN")
    expect(page.locator("#tab-chat")).to_have_text("对话")
    expect(page.locator("html")).to_have_attribute("lang", "zh-CN")
    page.locator("#language").click()
    expect(page.locator("#tab-chat")).to_have_text("Chat")
    expect(page.locator("html")).to_have_attribute("lang", "en")
    page.reload()
    expect(page.locator("#tab-chat")).to_have_text("Chat")


def test_language_in_the_midst_of_an_answer(page: Page) -> None:
    choose(page, "slow")
    ask(page, "one two three")
    answer = page.locator(".assistant .markdown")
    expect(answer).to_contain_text("one two three")
    page.locator("#language").click()
    length = len(answer.inner_text())
    page.wait_for_function(
        "length => document.querySelector('.assistant .markdown').innerText.length > length",
        arg=length,
    )
    page.keyboard.press("Escape")
    ended(page)
    expect(page.locator(".stats")).to_contain_text("已停止")


def test_theme(visit: Callable[..., Page], server: Any) -> None:
    def ground(page: Page) -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    page = visit(server.url, color_scheme="dark")
    dark = ground(page)
    page.locator("#theme").click()
    light = ground(page)
    assert light == "rgb(255, 255, 255)" != dark
    page.reload()
    assert ground(page) == light
    page.locator("#theme").click()
    assert ground(page) == dark
    page.emulate_media(color_scheme="light")
    assert ground(page) == light


def test_keyboard(page: Page) -> None:
    page.keyboard.press("Control+k")
    options = page.get_by_role("option")
    expect(options).to_have_count(4)
    expect(page.locator("[role=option][aria-selected=true]")).to_have_text(re.compile("^broken"))
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    expect(page.locator("[role=option][aria-selected=true]")).to_have_text(re.compile("^slow"))
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    expect(page.locator("#picker")).to_have_text("echo")
    expect(page.locator("#question")).to_be_focused()
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    expect(page.locator("#question")).to_have_value("one\ntwo")
    page.keyboard.press("Enter")
    ended(page)
    expect(page.locator("#question")).to_have_value("")
    expect(page.locator("[role=status]").last).to_contain_text("Answer: one")
    page.keyboard.press("Control+k")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.locator("#tab-chat").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#view-models")).to_be_visible()
    expect(page.locator("#tab-models")).to_be_focused()
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_every_control_has_a_name(page: Page) -> None:
    choose(page, "echo")
    ask(page, MARKDOWN)
    ended(page)
    page.locator("#open-settings").click()
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input:not([hidden]), textarea, dialog")]
          .filter((element) => !(element.getAttribute("aria-label") || element.textContent.trim()
            || element.labels?.[0]?.textContent.trim()))
          .map((element) => element.outerHTML)"""
    )
    assert nameless == []


# The other views.


def test_models_are_polled_while_they_are_looked_at(page: Page) -> None:
    polls: list[str] = []
    choose(page, "echo")
    ask(page, "some tokens to count")
    ended(page)
    page.on(
        "request", lambda request: polls.append(request.url) if "ui/models" in request.url else None
    )
    page.locator("#tab-models").click()
    card = page.get_by_role("article", name="echo")
    expect(card).to_contain_text("ready")
    expect(card.get_by_role("img")).to_have_count(3)
    expect(card).to_contain_text(re.compile(r"[1-9]\d* answered"))
    expect(card).to_contain_text("1 of 1 workers ready")
    card.locator("summary").click()
    expect(card.locator("tbody tr")).to_have_count(1)
    page.wait_for_function(
        "() => document.querySelector('.card .sparkline .line').getAttribute('d').includes('L')"
    )
    expect(card.locator("details")).to_have_attribute("open", "")
    assert len(polls) >= 2
    page.locator("#tab-chat").click()
    page.wait_for_timeout(500)
    before = len(polls)
    page.wait_for_timeout(2500)
    assert len(polls) == before


def test_load_of_a_model_is_live(page: Page) -> None:
    choose(page, "slow")
    ask(page, "one two three")
    expect(page.locator(".assistant .markdown")).to_contain_text("one two")
    page.locator("#tab-models").click()
    card = page.get_by_role("article", name="slow")
    expect(card).to_contain_text("1 of 1,000 running, 0 waiting")
    card.get_by_role("button", name="Chat").click()
    page.keyboard.press("Escape")
    ended(page)


@pytest.mark.parametrize("example", ["curl", "openai", "byzerllm"])
def test_the_examples_work_as_they_are_shown(
    visit: Callable[..., Page], keyed: Any, tmp_path: Path, example: str
) -> None:
    page = visit(keyed.url)
    page.locator("#api-key").fill(KEY)
    page.keyboard.press("Enter")
    choose(page, "echo")
    page.locator("#tab-call").click()
    code = page.locator(f"[data-example={example}] pre").inner_text()
    script = tmp_path / "example.py"
    script.write_text(code)
    command = ["bash", "-c", code] if example == "curl" else [sys.executable, str(script)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "BYZERLLM_API_KEY": KEY},
    )
    assert done.returncode == 0, done.stderr
    assert "Hello!" in done.stdout


def test_the_example_for_the_cluster_names_the_model(page: Page) -> None:
    choose(page, "echo")
    page.locator("#tab-call").click()
    code = page.locator("[data-example=cluster] pre").inner_text()
    compile(code, "cluster", "exec")
    assert 'model="echo"' in code
    assert page.evaluate("location.hash") == "#call"


@pytest.mark.parametrize("view", ["chat", "models", "call"])
def test_a_phone_needs_no_scrolling_sideways(
    visit: Callable[..., Page], server: Any, view: str
) -> None:
    page = visit(server.url, viewport={"width": 360, "height": 740})
    choose(page, "echo")
    ask(page, f"{MARKDOWN}\n{'x' * 300}")
    ended(page)
    page.locator(f"#tab-{view}").click()
    expect(page.locator(f"#view-{view}")).to_be_visible()
    page.wait_for_timeout(300)
    widths = page.evaluate(
        """view => {
          const element = document.getElementById(`view-${view}`);
          return [document.documentElement.scrollWidth, element.scrollWidth];
        }""",
        view,
    )
    assert max(widths) <= 360


# Pictures for the documents.


@pytest.fixture(scope="module")
def shown(serving: Callable[..., Any]) -> Iterator[str]:
    """The address of a server that has something to do."""
    url = serving(config=SHOWN).url
    stopping = threading.Event()

    def ask_on(model: str, pause: float) -> None:
        sentence = {"role": "user", "content": "Write a sentence about the sea."}
        body = {"model": model, "messages": [sentence], "max_tokens": 40}
        with httpx.Client(base_url=url, timeout=60) as client:
            while not stopping.wait(random.uniform(0.1, pause)):
                client.post("/v1/chat/completions", json={**body, "stream": True})

    asking = [("smollm2", 3.0), ("smollm2", 5.0), ("echo", 0.6)]
    threads = [threading.Thread(target=ask_on, args=row) for row in asking]
    for thread in threads:
        thread.start()
    yield url
    stopping.set()
    for thread in threads:
        thread.join()


@pytest.mark.skipif(not SCREENSHOTS, reason="BYZERLLM_SCREENSHOTS=1 writes docs/images")
@pytest.mark.parametrize(("locale", "theme"), [("en-US", "dark"), ("zh-CN", "light")])
def test_screenshots_of_models(
    visit: Callable[..., Page], shown: str, locale: str, theme: str
) -> None:
    size = {"width": 1200, "height": 480}
    page = visit(f"{shown}#models", locale=locale, color_scheme=theme, viewport=size)
    page.wait_for_timeout(75_000)
    page.screenshot(path=picture("models", locale, theme), animations="disabled")


@pytest.mark.skipif(not SCREENSHOTS, reason="BYZERLLM_SCREENSHOTS=1 writes docs/images")
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_screenshots(visit: Callable[..., Page], server: Any, locale: str, theme: str) -> None:
    size = {"width": 1200, "height": 720}
    page = visit(server.url, locale=locale, color_scheme=theme, viewport=size)
    choose(page, "smollm2")
    setting(page, "temperature", "0")
    setting(page, "max_tokens", "160")
    # What the small model adds to its answer is of little interest.
    setting(page, "stop", "The `*`")
    page.locator("#open-settings").click()
    ask(page, "Write a Python function that merges two sorted lists.")
    ended(page)
    page.locator(".scroller").evaluate("element => element.scrollTo(0, 0)")
    page.screenshot(path=picture("chat", locale, theme), animations="disabled")


def picture(view: str, locale: str, theme: str) -> Path:
    folder = ROOT / "docs" / "images"
    folder.mkdir(exist_ok=True)
    return folder / f"{view}-{locale[:2]}-{theme}.png"
