"""What a hosted model does, known by its name.

Vendors have no call that says it. A name that no line knows is a chat model; `saas.task` says
otherwise.
"""

from __future__ import annotations

import re

from byzerllm.requests import Task

# The first line that matches wins. Patterns are looked for at the start of a name's part: after
# its beginning, a slash, a dot, a dash or an underscore.
_PATTERNS: tuple[tuple[Task, str], ...] = (
    ("transcription", r"whisper|transcribe|paraformer|sensevoice|asr\b|gummy"),
    ("speech", r"tts\b|cosyvoice|sambert|speech-0|volcano_tts"),
    ("image", r"dall-e|gpt-image|cogview|wanx|imagen|stable-diffusion|sdxl|flux|irag|titan-image"),
    (
        "embedding",
        r"embed|embedding|embeddings|bge|gte|m3e|tao-8k|embo-\d|e5-(small|base|large|mistral)",
    ),
)
_COMPILED = [
    (task, re.compile(rf"(^|[/._-])({names})", re.IGNORECASE)) for task, names in _PATTERNS
]

DOES: dict[Task, str] = {
    "chat": "answers chats",
    "embedding": "turns texts into vectors",
    "speech": "speaks texts",
    "image": "draws images",
    "transcription": "writes down speech",
}
"""What a model of each task does, for messages."""


def task_of(model: str) -> Task:
    """The task of a model name; `chat` for names that are not known."""
    return next((task for task, pattern in _COMPILED if pattern.search(model)), "chat")
