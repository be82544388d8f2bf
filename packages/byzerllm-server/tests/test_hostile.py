"""Requests that are wrong: each is refused with the right 4xx in the right shape, or its connection
is closed. Never a 5xx, a traceback or a key in the log; afterwards all is as before."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

KEY = "sk-hostile-abcdefghijklmnop"
MODELS = """
version: 1
models:
  echo: {infer_backend: echo}
  slow: {infer_backend: echo, infer_params: {delay: 0.1, chunks: 600}}
  flood: {infer_backend: echo, infer_params: {chunks: 100000000}}
"""
BODY_SECONDS = 3
"""What the server gives a caller to send its request."""
LINGER_SECONDS = 3
CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
HELD = '"model":"echo","messages":[{"role":"user","content":"hi"}]'
GOOD = {
    CHAT: HELD,
    COMPLETIONS: '"model":"echo","prompt":"hi"',
    EMBEDDINGS: '"model":"echo","input":"hi"',
}
# JSON texts of values that are no …
NO_TEXT = ["1", "true", "[]", "{}", "1.5"]
NO_NUMBER = ['"1"', "true", "[]", "{}"]
NO_LIST = ['{"a":1}', "7", "true"]
NO_OBJECT = ['"x"', "7", "[1]", "true"]
HUGE = "9" * 400
WRONG: dict[str, dict[str, list[str]]] = {
    CHAT: {
        "model": [*NO_TEXT, "null", '""'],
        "messages": [
            *NO_LIST,
            '"hi"',
            "null",
            "[]",
            "[7]",
            '["hi"]',
            "[null]",
            "[[]]",
            "[{}]",
            '[{"role":"user"},7]',
            '[{"role":"emperor","content":"x"}]',
            '[{"role":7,"content":"x"}]',
            '[{"role":null,"content":"x"}]',
            '[{"content":"x"}]',
            '[{"role":"user","content":7}]',
            '[{"role":"user","content":{}}]',
            '[{"role":"user","content":true}]',
            '[{"role":"user","content":[7]}]',
            '[{"role":"user","content":["x"]}]',
            '[{"role":"user","content":[{}]}]',
            '[{"role":"user","content":[{"type":"smell"}]}]',
            '[{"role":"user","content":[{"type":"text","text":7}]}]',
            '[{"role":"user","content":[{"type":"text"}]}]',
            '[{"role":"user","content":[{"type":"image_url"}]}]',
            '[{"role":"user","content":[{"type":"image_url","image_url":7}]}]',
            '[{"role":"user","content":[{"type":"image_url","image_url":{}}]}]',
            '[{"role":"user","content":[{"type":"input_audio","input_audio":{}}]}]',
            '[{"role":"user","content":[{"type":"input_audio","input_audio":"x"}]}]',
            '[{"role":"assistant","tool_calls":7}]',
            '[{"role":"assistant","tool_calls":[7]}]',
            '[{"role":"assistant","tool_calls":[{}]}]',
            '[{"role":"assistant","tool_calls":[{"id":"a","type":"function"}]}]',
            '[{"role":"assistant","tool_calls":[{"id":1,"type":"function","function":{}}]}]',
            '[{"role":"user","content":"x","name":7}]',
            '[{"role":"tool","content":"x","tool_call_id":7}]',
        ],
        "tools": [
            *NO_LIST,
            '"x"',
            "[7]",
            "[{}]",
            '[{"type":"function"}]',
            '[{"type":"hammer","function":{"name":"f"}}]',
            '[{"type":"function","function":{}}]',
            '[{"type":"function","function":{"name":7}}]',
            '[{"type":"function","function":{"name":"no spaces"}}]',
            '[{"type":"function","function":{"name":""}}]',
            '[{"type":"function","function":{"name":"f","parameters":7}}]',
            '[{"type":"function","function":{"name":"f","parameters":"x"}}]',
            '[{"type":"function","function":{"name":"f","strict":"yes"}}]',
        ],
        "tool_choice": ['"maybe"', "7", "true", "[]", "{}", '{"type":"function"}'],
        "response_format": [
            *NO_OBJECT,
            "{}",
            '{"type":"poem"}',
            '{"type":"json_schema"}',
            '{"type":"json_schema","json_schema":7}',
            '{"type":"json_schema","json_schema":{}}',
            '{"type":"json_schema","json_schema":{"name":"x","schema":7}}',
        ],
        "logprobs": ['"yes"', "7", "[]"],
        "top_logprobs": [*NO_NUMBER, "-1", "21", "1.5", HUGE],
        "max_completion_tokens": [*NO_NUMBER, "-1", "0", "1.5", HUGE, "4294967296"],
        "parallel_tool_calls": ['"yes"', "7"],
        "reasoning_effort": NO_TEXT,
        "chat_template_kwargs": NO_OBJECT,
        "metadata": [*NO_OBJECT, '{"a":7}'],
        "messsages": ['"x"'],
    },
    COMPLETIONS: {
        "model": [*NO_TEXT, "null", '""'],
        "prompt": ["7", "null", "true", "{}", "[]", "[null]", "[{}]", '["a",7]'],
        "logprobs": [*NO_NUMBER, "-1", "21", "1.5"],
        "echo": ["true", '"x"', "7"],
        "best_of": ["2", '"x"', "-1"],
        "suffix": ['"x"', "7"],
        "promt": ['"x"'],
    },
    EMBEDDINGS: {
        "model": [*NO_TEXT, "null", '""'],
        "input": ["7", "null", "true", "{}", "[]", "[7.5]", "[null]", "[{}]", '""', '["a",""]'],
        "encoding_format": ['"morse"', "7", "true", "[]"],
        "dimensions": [*NO_NUMBER, "0", "-1", "1.5", "1000", HUGE],
        "user": NO_TEXT,
        "temperature": ["1"],
        "inputs": ['"x"'],
    },
}
SAMPLING: dict[str, list[str]] = {
    "max_tokens": [*NO_NUMBER, "0", "-1", "1.5", HUGE, "-" + HUGE, "4294967296"],
    "temperature": [*NO_NUMBER, "-0.1", "2.1", "1e308", HUGE],
    "top_p": [*NO_NUMBER, "-0.1", "1.1"],
    "min_p": [*NO_NUMBER, "-1", "2"],
    "top_k": [*NO_NUMBER, "-2", "1.5", HUGE],
    "n": [*NO_NUMBER, "0", "-1", "17", "1.5", HUGE],
    "stream": ['"yes"', "7", "[]", "{}"],
    "stream_options": [*NO_OBJECT, '{"include_usage":7}'],
    "stop": ["7", "true", "{}", "[7]", "[null]", "[[]]", json.dumps(["x"] * 17)],
    "seed": [*NO_NUMBER, "1.5", HUGE, "18446744073709551616"],
    "presence_penalty": [*NO_NUMBER, "-2.1", "2.1"],
    "frequency_penalty": [*NO_NUMBER, "-2.1", "2.1"],
    "repetition_penalty": [*NO_NUMBER, "0", "-1"],
    "logit_bias": [*NO_OBJECT, '{"a":"b"}', '{"7":101}', '{"7":-101}', '{"7":null}'],
    "stop_token_ids": [*NO_LIST, '["a"]', "[1.5]", "[null]"],
    "ignore_eos": ['"yes"', "7"],
    "user": NO_TEXT,
}
WRONG[CHAT] |= SAMPLING
WRONG[COMPLETIONS] |= SAMPLING
TOOL = '[{"type":"function","function":{"name":"f","parameters":{"maximum":%s}}}]'
DEEP = 200_000
BAD_JSON: list[bytes] = [
    b"",
    b" ",
    b"{",
    b"}",
    b"{}x",
    b"null",
    b"7",
    b'"x"',
    b"[]",
    b"[{}]",
    b"true",
    b"{'model':'echo'}",
    b'{"model":}',
    b'{"model":"echo",}',
    b'{"model":"echo" "x":1}',
    b'{model:"echo"}',
    b'{"model":"ec',
    b'{"model":"echo\n"}',
    b'{"model":"\\x41"}',
    b'{"model":"\\u12"}',
    b'{"model":"\\ud800"}',
    b'{"model":"\\udc00\\ud800"}',
    b'{"a":\xff}',
    b'{"model":"\xff\xfe"}',
    b'{"model":"\xc3\x28"}',
    b'{"model":"\xed\xa0\x80"}',
    b'{"model":"\xf5\x80\x80\x80"}',
    b"\xef\xbb\xbf{}",
    b"\xff\xfe{\x00}\x00",
    b"\x00",
    b"\x1f\x8b\x08\x00\x00\x00\x00\x00",
    b'{"temperature":NaN}',
    b'{"temperature":Infinity}',
    b'{"temperature":-Infinity}',
    b'{"temperature":1e999}',
    b'{"temperature":-1e999}',
    b'{"temperature":01}',
    b'{"temperature":.5}',
    b'{"temperature":+1}',
    b'{"temperature":0x10}',
    b"[" * DEEP,
    b"[" * DEEP + b"]" * DEEP,
    b'{"a":' * DEEP,
    b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    b"<xml/>",
    b"model=echo&prompt=x",
    b"// comment\n{}",
    b'{"model":"echo"}{"model":"echo"}',
]
NESTED = b'{"model":"echo","messages":' + b"[" * 900 + b"]" * 900 + b"}"


def said(path: str, body: str | bytes, *more: str, method: str = "POST", key: str = KEY) -> bytes:
    """A whole request as it goes over the wire."""
    data = body.encode() if isinstance(body, str) else body
    head = [
        f"{method} {path} HTTP/1.1",
        "host: x",
        f"content-length: {len(data)}",
        "content-type: application/json",
        f"authorization: Bearer {key}",
        *more,
    ]
    return "\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + data


def head_of(*lines: str) -> bytes:
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"


@dataclass
class Case:
    """One bad caller.

    Attributes:
        pieces: what it sends, and the seconds that it waits after each.
        statuses: what it may be answered.
        parameter: the field that the refusal must name.
        closes: it is also right to be closed on without an answer.
        half: it sends no more, but reads on.
        seconds: what all may take.
    """

    name: str
    pieces: list[tuple[bytes, float]]
    statuses: set[int]
    parameter: str = ""
    closes: bool = False
    half: bool = False
    seconds: float = 10.0


def field_cases() -> Iterator[Case]:
    for path, fields in WRONG.items():
        for name, values in fields.items():
            for value in values:
                # A field that comes twice has its last value.
                body = "{" + GOOD[path] + f',"{name}":{value}' + "}"
                shown = value if len(value) < 60 else f"{value[:20]}…"
                yield Case(f"{path} {name}={shown}", [(said(path, body), 0)], {400}, parameter=name)


def json_cases() -> Iterator[Case]:
    for path in GOOD:
        for body in BAD_JSON if path == CHAT else BAD_JSON[::3]:
            yield Case(f"{path} body {body[:30]!r}", [(said(path, body), 0)], {400})
    yield Case("nested messages", [(said(CHAT, NESTED), 0)], {400})
    yield Case("no messages", [(said(CHAT, '{"model":"echo"}'), 0)], {400}, parameter="messages")
    yield Case("no model", [(said(CHAT, '{"messages":[]}'), 0)], {400})
    for name in ("nope", "echo ", "ECHO", "../echo", "echo\\u0000", "x" * 100_000, "😀", "saas/x"):
        body = f'{{"model":"{name}","messages":[{{"role":"user","content":"x"}}]}}'
        yield Case(f"model {name[:20]!r}", [(said(CHAT, body), 0)], {404})
    twice = "{" + HELD + ',"model":"nope"}'
    yield Case("model twice", [(said(CHAT, twice), 0)], {404})
    for name in ("a", "tools", "chat_template_kwargs"):
        value = {"a": HUGE, "tools": TOOL % HUGE}.get(name, '{"a":' + HUGE + "}")
        body = "{" + HELD + f',"{name}":{value}' + "}"
        yield Case(f"a huge number in {name}", [(said(CHAT, body), 0)], {200, 400})
    for stream in ("true", "false"):
        body = "{" + HELD + f',"stream":{stream},"min_tokens":"many"' + "}"
        yield Case(f"unknown to the backend, stream={stream}", [(said(CHAT, body), 0)], {400})
    for size in (33, 40):
        huge = b'{"a":"' + b"x" * (size << 20) + b'"}'
        yield Case(f"{size} MiB", [(said(CHAT, huge), 0)], {413}, seconds=30)
    lie = said(CHAT, "{}").replace(b"content-length: 2", b"content-length: 99999999999")
    yield Case("says it is huge", [(lie, 0)], {413})


def head_cases() -> Iterator[Case]:
    good = "{" + HELD + "}"
    for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "HEAD"):
        yield Case(f"{method} chat", [(said(CHAT, good, method=method), 0)], {405})
    for method in ("BREW", "get", "P0ST", "POST\t", "", "\x00"):
        yield Case(f"{method!r}", [(said(CHAT, good, method=method), 0)], {400, 405}, closes=True)
    for path in ("/v1", "/v1/chat", "/v2/chat/completions", "/v1/chat/completions/", "//", "/%00",
                 "/..%2f..%2fetc/passwd", "/%ff%fe", "/" + "a" * 5000, "/v1/models/nope",
                 "/v1/models/" + "x" * 3000, "/v1/models/%F0%9F%98%80", "/.env"):  # fmt: skip
        yield Case(f"GET {path[:30]}", [(said(path, "", method="GET"), 0)], {404, 405})
    for path in ("chat", "http://", "*", "/ö", "/a b", "", "?", "/\x00", "/a\x7f"):
        lines = head_of(f"GET {path} HTTP/1.1", "host: x")
        yield Case(f"target {path!r}", [(lines, 0)], {400, 404, 405}, closes=True)
    for version in ("HTTP/9.9", "HTTP/1.1.1", "HTTPS/1.1", "http/1.1", "HTTP/2.0", "x"):
        yield Case(version, [(head_of(f"GET /health/live {version}", "host: x"), 0)], {400})
    for kind in ("", "text/plain", "application/xml", "multipart/form-data", "json", "*/*",
                 "application/x-www-form-urlencoded", "application/jsonp", "\xff"):  # fmt: skip
        said_so = said(CHAT, good).replace(b"application/json", kind.encode("latin-1"), 1)
        yield Case(f"type {kind!r}", [(said_so, 0)], {415})
    for key in ("", "nope", "x" * 10_000, KEY[:-1], KEY + "x", KEY.upper(), "ÿ", "a b"):
        yield Case(f"key {key[:9]!r}…", [(said(CHAT, good, key=key), 0)], {401})
    for value in ("Basic eDp5", "Bearer", "bearer ", KEY, f"Token {KEY}", ""):
        lines = said(CHAT, good).replace(f"Bearer {KEY}".encode(), value.encode())
        yield Case(f"authorization {value[:9]!r}", [(lines, 0)], {401})
    for length in ("-1", "abc", "1e3", "0x10", "+5", "5 5", "5, 5", "9" * 40, ""):
        lines = said(CHAT, good).replace(
            f"content-length: {len(good)}".encode(), f"content-length: {length}".encode()
        )
        yield Case(f"length {length[:9]!r}", [(lines, 0)], {400, 413}, closes=True)
    both = ("transfer-encoding: chunked",)
    yield Case("length and chunked", [(said(CHAT, good, *both), 0)], {400})
    yield Case("two lengths", [(said(CHAT, good, "content-length: 3"), 0)], {400})
    for coding in ("gzip", "identity, gzip", "chunked, gzip", "xchunked", "chunked chunked"):
        lines = head_of(
            f"POST {CHAT} HTTP/1.1", "host: x", "content-type: application/json",
            f"authorization: Bearer {KEY}", f"transfer-encoding: {coding}",
        )  # fmt: skip
        yield Case(f"coding {coding}", [(lines + b"0\r\n\r\n", 0)], {400}, closes=True)
    for chunks in (
        b"zz\r\n",
        b"-1\r\nx\r\n",
        b"5\r\nab\r\n0\r\n\r\n",
        b"FFFFFFFFFFFFFFFFF\r\nx",
        b"1\r\nab\r\n",
        b"0x1\r\na\r\n",
        b"\r\n\r\n",
        b"1;" + b"e" * 70_000 + b"\r\na",
    ):
        lines = head_of(
            f"POST {CHAT} HTTP/1.1", "host: x", "content-type: application/json",
            f"authorization: Bearer {KEY}", "transfer-encoding: chunked",
        )  # fmt: skip
        yield Case(f"chunks {chunks[:12]!r}", [(lines + chunks, 0)], {400, 408}, closes=True)
    for line in (" folded: x", "no colon", "a b: c", ": x", "x\x00y: z", "x: a\x00b", "é: x"):
        yield Case(f"field {line!r}", [(said(CHAT, good, line), 0)], {400})
    flood = [f"x-{number}: y" for number in range(5000)]
    yield Case("5000 fields", [(said(CHAT, good, *flood), 0)], {431})
    yield Case("300 fields", [(said(CHAT, good, *flood[:300]), 0)], {431})
    yield Case("long field", [(said(CHAT, good, "x: " + "y" * 100_000), 0)], {431})
    yield Case("long name", [(said(CHAT, good, "x" * 100_000 + ": y"), 0)], {431})
    yield Case("long target", [(said("/" + "a" * 100_000, good), 0)], {431})
    endless = b"GET /health/live HTTP/1.1\r\nx: " + b"y" * 60_000
    yield Case("endless field", [(endless, 0.1), (b"y" * 60_000, 0)], {431})
    yield Case("garbage", [(bytes(range(256)) * 40, 0)], {400})
    yield Case("TLS hello", [(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 9, 0)], {400})
    yield Case("SSH", [(b"SSH-2.0-OpenSSH_9.0\r\n", 0)], {400})
    yield Case("HTTP/2", [(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 0)], {400}, closes=True)
    yield Case("CONNECT", [(head_of("CONNECT x:443 HTTP/1.1", "host: x"), 0)], {400, 404, 405},
               closes=True)  # fmt: skip
    upgrade = ("connection: upgrade", "upgrade: websocket", "sec-websocket-key: x")
    yield Case("websocket", [(head_of("GET /ws HTTP/1.1", "host: x", *upgrade), 0)], {404})
    yield Case("expect", [(said(CHAT, good, "expect: a miracle", key="no"), 0)], {401, 417})


def slow_cases() -> Iterator[Case]:
    good = said(CHAT, "{" + HELD + "}")
    patience = BODY_SECONDS + LINGER_SECONDS + 4.0
    for name, piece in (
        ("nothing", b""),
        ("a letter", b"P"),
        ("empty lines", b"\r\n"),
        ("half a head", good[:40]),
    ):
        yield Case(f"{name} and silence", [(piece, 60)], {408}, closes=True, seconds=patience)
    trickled = [(good[at : at + 1], 0.2) for at in range(60)]
    yield Case("a trickling head", trickled, {408}, closes=True, seconds=patience)
    drops = [(b"\r\n", 0.2)] * 60
    yield Case("trickling empty lines", drops, {408}, closes=True, seconds=patience)
    head, _, body = good.partition(b"\r\n\r\n")
    yield Case("no body", [(head + b"\r\n\r\n", 60)], {408}, seconds=patience)
    slow = [(head + b"\r\n\r\n", 0.1), *((body[at : at + 1], 0.3) for at in range(40))]
    yield Case("a trickling body", slow, {408}, seconds=patience)
    refused = [(said("/nope", "x" * 1000)[:-900], 0.1), *([(b"x", 0.3)] * 60)]
    yield Case("a trickling body for nobody", refused, {404, 405}, seconds=patience)
    idle = [(said("/nope", "", method="GET") + b"G", 60)]
    yield Case("a piece of a second request", idle, {404}, seconds=patience)
    for cut in (1, 20, len(head), len(head) + 4, len(good) - 1):
        yield Case(
            f"half closed after {cut}", [(good[:cut], 0)], {400, 408}, closes=True, half=True
        )
    pipelined = said("/nope", "") * 50
    yield Case("50 at once", [(pipelined, 0)], {404, 405})
    yield Case("one and garbage", [(said("/nope", "") + b"\x00\x01\x02", 0)], {404, 400, 405},
               closes=True)  # fmt: skip


CASES = [*field_cases(), *json_cases(), *head_cases(), *slow_cases()]


@dataclass
class Answer:
    """What came back. `status` 0: closed without an answer; None: neither."""

    status: int | None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


async def answer_to(case: Case, host: str, port: int) -> Answer:
    """What a case's caller gets, within its time."""
    reader, writer = await asyncio.open_connection(host, port)

    async def send() -> None:
        with contextlib.suppress(ConnectionError):
            for piece, pause in case.pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(pause)
            if case.half:
                writer.write_eof()

    sending = asyncio.create_task(send())
    try:
        async with asyncio.timeout(case.seconds):
            return await _read(reader, head_only=" HEAD" in f" {case.name}")
    except TimeoutError:
        return Answer(None)
    finally:
        sending.cancel()
        await asyncio.wait({sending})
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def _read(reader: asyncio.StreamReader, *, head_only: bool) -> Answer:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return Answer(0)
    first, *lines = head.decode("latin-1").strip().split("\r\n")
    status = int(first.split(" ")[1])
    if status == 100:
        return await _read(reader, head_only=head_only)
    headers = dict(line.lower().split(": ", 1) for line in lines)
    length = 0 if head_only else int(headers["content-length"])
    return Answer(status, headers, await reader.readexactly(length))


def faults(case: Case, answer: Answer) -> str:
    """What is wrong with an answer; empty where nothing is."""
    if answer.status is None:
        return "neither answered nor closed"
    if answer.status == 0:
        return "" if case.closes else f"closed without an answer, not {case.statuses}"
    if answer.status not in case.statuses:
        return f"{answer.status} {answer.body[:200]!r}, not {case.statuses}"
    if "x-request-id" not in answer.headers:
        return "no x-request-id"
    if answer.status == 200:
        return ""
    if answer.body or "HEAD" not in case.name:
        error = json.loads(answer.body)["error"]
        if set(error) != {"message", "type", "param", "code"} or not error["message"]:
            return f"shape {error}"
        at = error["param"] or ""
        if case.parameter and not at.startswith(case.parameter):
            return f"names {at!r}, not {case.parameter!r}: {error['message'][:200]}"
        if KEY in error["message"]:
            return "tells the key"
    return ""


async def all_answers(url: str) -> list[str]:
    host, _, port = url.removeprefix("http://").partition(":")
    room = asyncio.Semaphore(30)

    async def one(case: Case) -> str:
        async with room:
            wrong = faults(case, await answer_to(case, host, int(port)))
        return f"{case.name}: {wrong}" if wrong else ""

    return [wrong for wrong in await asyncio.gather(*map(one, CASES)) if wrong]


@pytest.mark.timeout(180)
def test_bad_requests(serving: Callable[..., Any]) -> None:
    assert len(CASES) >= 500
    served = serving("--api_key", KEY, "--body_timeout", str(BODY_SECONDS), config=MODELS)
    wrong = asyncio.run(all_answers(served.url))
    assert not wrong, f"{len(wrong)} of {len(CASES)}:\n" + "\n".join(wrong)
    after_all_that(served)


def after_all_that(served: Any) -> None:
    """It answers, nothing runs, and the log is clean."""
    key = {"authorization": f"Bearer {KEY}"}
    body = json.loads("{" + HELD + "}")
    answer = httpx.post(f"{served.url}{CHAT}", json=body, headers=key, timeout=10)
    assert answer.json()["choices"][0]["message"]["content"] == "hi"
    output = served.output
    assert "Traceback" not in output
    assert " failed" not in output
    assert KEY not in output
    # Had anything been running, stopping would have waited for it.
    start = time.monotonic()
    assert served.stop() == 0
    assert time.monotonic() - start < 5
    assert "cut off" not in served.output


async def _leave(url: str, count: int, *, read: bool) -> None:
    host, _, port = url.removeprefix("http://").partition(":")
    body = '{"model":"slow","stream":true,"messages":[{"role":"user","content":"hi"}]}'
    for _ in range(count):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(said(CHAT, body))
        await writer.drain()
        if read:
            await reader.read(10)
        writer.transport.abort()


def test_callers_that_leave_end_their_generations(serving: Callable[..., Any]) -> None:
    served = serving("--api_key", KEY, config=MODELS)
    for read in (True, False):
        asyncio.run(_leave(served.url, 20, read=read))
    time.sleep(1)
    after_all_that(served)


async def _never_read(url: str) -> float:
    """Ask for an endless answer and read nothing of it; the seconds until one is hung up on."""
    host, _, port = url.removeprefix("http://").partition(":")
    _, writer = await asyncio.open_connection(host, int(port), limit=1)
    writer.write(
        said(CHAT, '{"model":"flood","stream":true,"messages":[{"role":"user","content":"hi"}]}')
    )
    start = time.monotonic()
    async with asyncio.timeout(BODY_SECONDS + 10):
        while not writer.transport.is_closing():
            await asyncio.sleep(0.1)
            # Nothing else tells a caller that does not read of the end.
            with contextlib.suppress(ConnectionError):
                writer.write(b"\r\n")
    return time.monotonic() - start


def test_a_caller_that_does_not_read(serving: Callable[..., Any]) -> None:
    served = serving("--api_key", KEY, "--body_timeout", str(BODY_SECONDS), config=MODELS)
    assert BODY_SECONDS - 1 < asyncio.run(_never_read(served.url)) < BODY_SECONDS + 5
    after_all_that(served)
