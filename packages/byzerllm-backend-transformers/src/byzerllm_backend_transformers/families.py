"""The model types that this backend takes, and what is special about each: one table.

A type says which task a folder does and what its authors' own prompt looks like where the folder
brings no chat template. `custom/auto` looks into the folder instead; see `folder.ModelFolder.task`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TaskName = Literal[
    "chat", "embedding", "rerank", "vision", "transcription", "speech", "image", "auto"
]


@dataclass(frozen=True, kw_only=True)
class Family:
    """One `pretrained_model_type`.

    Attributes:
        type: its name.
        task: what such a model does; `auto` is read from the folder.
        remote_code: its code lies in the folder, not in transformers; `trust_remote_code` must be
            asked for.
        chat_template: the family's Jinja chat template for folders that have none.
        stop: texts that end its answers, beyond its end tokens.
        query_instruction: what the family puts before a query that is embedded.
    """

    type: str
    task: TaskName = "chat"
    remote_code: bool = False
    chat_template: str = ""
    stop: tuple[str, ...] = ()
    query_instruction: str = ""


FAMILIES: dict[str, Family] = {
    family.type: family
    for family in (
        Family(type="custom/auto", task="auto"),
        Family(type="custom/llama2"),
        Family(type="llama"),
        Family(type="falcon"),
        Family(type="dolly"),
        Family(type="custom/starcode"),
        Family(type="custom/zephyr"),
        Family(type="moss", remote_code=True),
        Family(type="custom/alpha_moss", remote_code=True),
        Family(type="chatglm6b", remote_code=True),
        Family(type="custom/chatglm2", remote_code=True),
        Family(type="custom/baichuan", remote_code=True),
        Family(type="custom/baichuan2", remote_code=True),
        Family(type="custom/visualglm", task="vision", remote_code=True),
        Family(type="custom/qwen_vl_chat", task="vision"),
        Family(type="custom/bge", task="embedding"),
        Family(type="custom/m3e", task="embedding"),
        Family(type="custom/bge_rerank", task="rerank"),
        Family(type="whisper", task="transcription"),
        Family(type="bark", task="speech"),
        Family(type="custom/stable_diffusion", task="image"),
    )
}


def family_of(model_type: str) -> Family:
    """The family of an accepted type; the backend's spec has refused all others."""
    return FAMILIES[model_type]
