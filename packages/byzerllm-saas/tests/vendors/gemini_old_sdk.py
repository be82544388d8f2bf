"""Asks the server with google-generativeai over REST, in that package's own environment; prints
what it saw as JSON. Arguments: the server's address and key."""

from __future__ import annotations

import json
import sys
from typing import Any

import google.generativeai as genai  # type: ignore[import-not-found]
from google.api_core import exceptions  # type: ignore[import-untyped]

address, key = sys.argv[1:]


def configure(key: str) -> None:
    genai.configure(api_key=key, transport="rest", client_options={"api_endpoint": address})


def ask(**fields: Any) -> Any:
    model = genai.GenerativeModel("gemini-pro", generation_config={"temperature": 0.1})
    return model.generate_content("Count!", request_options={"retry": None}, **fields)


configure(key)
whole = ask()
seen: dict[str, Any] = {"whole": whole.text, "finish": whole.candidates[0].finish_reason.name}
seen["stream"] = "".join(piece.text for piece in ask(stream=True) if piece.parts)
seen["blocked"] = ask().prompt_feedback.block_reason.name
found = genai.embed_content(model="models/gemini-embedding-001", content="a")
seen["vector"] = found["embedding"]
configure("wrong-key-0123456789")
try:
    ask()
except exceptions.GoogleAPICallError as error:
    seen["wrong_key"] = type(error).__name__
json.dump(seen, sys.stdout)
