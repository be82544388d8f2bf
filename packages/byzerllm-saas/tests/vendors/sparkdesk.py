"""iFLYTEK's SparkDesk: a WebSocket per version, its address signed with HMAC-SHA256.

Source: https://www.xfyun.cn/doc/spark/Web.html, …/general_url_authentication.html
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import time
from collections.abc import Iterable, Iterator
from email.utils import parsedate_to_datetime
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from aiohttp import web
from msgspec import Meta, Struct

from vendors.server import GARBAGE, Answer, Refuse, Refused, made_up
from vendors.sockets import SocketVendor

APPID = "app12345"
SECRET = "api-secret-0123456789abcdef"
CLOCK_SECONDS = 300


class Strict(Struct, forbid_unknown_fields=True, kw_only=True):
    """A message in which a field that SparkDesk does not know is refused."""


class Header(Strict):
    app_id: str
    uid: Annotated[str, Meta(max_length=32)] = ""
    patch_id: list[str] = []


class Chat(Strict):
    domain: str
    temperature: Annotated[float, Meta(gt=0, le=1)] = 0.5
    max_tokens: Annotated[int, Meta(ge=1, le=8192)] = 2048
    top_k: Annotated[int, Meta(ge=1, le=6)] = 4
    chat_id: str = ""
    auditing: str = ""
    question_type: str = ""


class Parameter(Strict):
    chat: Chat


class Text(Strict):
    role: Literal["system", "user", "assistant"]
    content: Annotated[str, Meta(min_length=1)]


class Message(Strict):
    text: Annotated[list[Text], Meta(min_length=1)]


class Function(Strict):
    name: str
    description: str
    parameters: dict[str, Any]


class Functions(Strict):
    text: Annotated[list[Function], Meta(min_length=1)]


class Payload(Strict):
    message: Message
    functions: Functions | None = None


class Question(Strict):
    header: Header
    parameter: Parameter
    payload: Payload


class SparkDeskVendor(SocketVendor):
    """See the module. A signature that is wrong is refused at the handshake, all else inside."""

    domains: ClassVar[dict[str, tuple[str, ...]]] = {
        "/v1.1/chat": ("general", "lite"),
        "/v2.1/chat": ("generalv2",),
        "/v3.1/chat": ("generalv3",),
        "/v3.5/chat": ("generalv3.5",),
        "/v4.0/chat": ("4.0Ultra",),
        "/v9.9/chat": (),
    }
    with_functions: ClassVar = ("generalv3", "generalv3.5", "4.0Ultra")
    with_system: ClassVar = ("lite", "generalv3.5", "4.0Ultra")
    errors: ClassVar[dict[str, tuple[int, str]]] = {
        "forbidden": (11200, "licc failed"),
        "no_model": (10404, "route key not found"),
        "bad_request": (10004, "schema validate error"),
        "too_long": (10907, "token numbers beyond the limit"),
        "filtered": (10013, "input content audit fail"),
        "rate_limited": (11202, "licc limit of a second"),
        "quota": (11201, "licc limit of a day"),
        "overloaded": (10008, "service capacity is not enough"),
        "failed": (10012, "engine internal error"),
    }
    at_handshake = frozenset({"wrong_key", "old_date"})
    kinds: ClassVar = frozenset({*errors, "wrong_key"})

    def routes(self) -> Iterable[web.RouteDef]:
        for path in self.domains:
            yield web.get(path, self.chat)

    def refusal(self, kind: str, message: str) -> web.Response:
        if kind == "old_date":
            text = "HMAC signature cannot be verified, a valid date header is required"
            return web.json_response({"message": text}, status=403)
        return web.json_response({"message": "HMAC signature does not match"}, status=401)

    def check_signature(self, request: web.Request) -> None:
        query = request.query
        missing = {"authorization", "date", "host"} - query.keys()
        self.expect(not missing, f"the query lacks {missing}", "wrong_key")
        self.expect(query["host"] == request.headers["host"], "another host", "wrong_key")
        age = abs(time.time() - parsedate_to_datetime(query["date"]).timestamp())
        self.expect(query["date"].endswith(" GMT"), "the date is not in GMT", "old_date")
        self.expect(age < CLOCK_SECONDS, "the date is too far away", "old_date")
        try:
            authorization = base64.b64decode(query["authorization"], validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            raise Refused("wrong_key", "authorization is no base64") from None
        parts = dict(re.findall(r'(\w+)="([^"]*)"', authorization))
        self.expect(parts.get("api_key") == self.key, "no such key", "wrong_key")
        self.expect(parts.get("algorithm") == "hmac-sha256", "another algorithm", "wrong_key")
        self.expect(parts.get("headers") == "host date request-line", "headers", "wrong_key")
        signed = f"host: {query['host']}\ndate: {query['date']}\nGET {request.path} HTTP/1.1"
        digest = hmac.new(SECRET.encode(), signed.encode(), hashlib.sha256).digest()
        right = base64.b64encode(digest).decode()
        self.expect(parts.get("signature") == right, "the signature does not match", "wrong_key")

    async def chat(self, request: web.Request) -> web.StreamResponse:
        asked = self.asked[-1]
        self.check_signature(request)
        socket = await self.opened(request)
        message, fault = await self.question(socket, asked)
        if message is None:
            return socket
        try:
            if isinstance(fault, Refuse):
                raise Refused(fault.kind, f"told to say {fault.kind}")
            frames = self.answer(request.path, message)
        except Refused as error:
            if not isinstance(fault, Refuse):
                self.complaints.append(f"{request.path}: {error}")
            frames = iter([self.error(error)])
        return await self.frames(request, socket, frames, fault, garbage=GARBAGE.decode())

    def answer(self, path: str, message: str | bytes) -> Iterator[str]:
        self.expect(isinstance(message, str), "a text message is needed")
        question = self.decode(message.encode() if isinstance(message, str) else b"", Question)
        chat, payload = question.parameter.chat, question.payload
        self.expect(question.header.app_id == APPID, "no such application", "forbidden")
        self.expect(chat.domain in self.domains[path], f"{chat.domain} at {path}", "no_model")
        knows = chat.domain in self.with_functions
        self.expect(payload.functions is None or knows, "functions are not known")
        self.check_turns(payload.message.text, chat.domain)
        answer = self.next_answer(
            lambda: made_up(payload.message.text[-1].content, max_tokens=chat.max_tokens)[0]
        )
        return self.frames_of(answer)

    def check_turns(self, texts: list[Text], domain: str) -> None:
        if texts[0].role == "system":
            self.expect(domain in self.with_system, "system is not known")
            texts = texts[1:]
        for index, text in enumerate(texts):
            role = "assistant" if index % 2 else "user"
            self.expect(text.role == role, f"the role of text {index} is {text.role}")
        self.expect(len(texts) % 2, "the last role must be user")

    def error(self, error: Refused) -> str:
        code, text = self.errors[error.kind]
        header = {"code": code, "message": f"{text}: {error}", "sid": "cht0123456789", "status": 2}
        return msgspec.json.encode({"header": header}).decode()

    def frames_of(self, answer: Answer) -> Iterator[str]:
        said: list[dict[str, Any]] = [{"content": piece} for piece in answer.pieces]
        for call in answer.tool_calls:
            function = {"name": call["name"], "arguments": call["arguments"]}
            said = [{"content": "", "content_type": "text", "function_call": function}]
        for number, one in enumerate(said):
            status = 2 if number == len(said) - 1 else min(number, 1)
            text = [{**one, "role": "assistant", "index": 0}]
            payload: dict[str, Any] = {"choices": {"status": status, "seq": number, "text": text}}
            if status == 2:
                prompt, completion = answer.usage
                payload["usage"] = {
                    "text": {
                        "question_tokens": prompt,
                        "prompt_tokens": prompt,
                        "completion_tokens": completion,
                        "total_tokens": prompt + completion,
                    }
                }
            header = {"code": 0, "message": "Success", "sid": "cht0123456789", "status": status}
            yield msgspec.json.encode({"header": header, "payload": payload}).decode()
