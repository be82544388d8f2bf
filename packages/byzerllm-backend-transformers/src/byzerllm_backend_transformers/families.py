"""The model types that this backend takes, and what is special about each: one table.

A type says which task a folder does and what its authors' own prompt looks like where the folder
brings no chat template. `custom/auto` looks into the folder instead; see `folder.ModelFolder.task`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from byzerllm_backend_transformers import prompts

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
        adds_special_tokens: its prompts begin with tokens that no text is read as; the tokenizer
            adds them.
        query_instructions: what the family puts before a query that is embedded, by the size of the
            folder's vocabulary, which tells its language.
        pooling: how a plain encoder's tokens become one vector.
        normalized: its vectors have length 1.
    """

    type: str
    task: TaskName = "chat"
    remote_code: bool = False
    chat_template: str = ""
    stop: tuple[str, ...] = ()
    adds_special_tokens: bool = False
    query_instructions: Mapping[int, str] = field(default_factory=dict)
    pooling: Literal["mean", "cls"] = "mean"
    normalized: bool = False


# https://github.com/FlagOpen/FlagEmbedding: of the Chinese and the English models. BGE-M3, with
# 250,002 tokens, takes none.
_BGE_QUERY = {
    21128: "为这个句子生成表示以用于检索相关文章：",
    30522: "Represent this sentence for searching relevant passages: ",
}

FAMILIES: dict[str, Family] = {
    family.type: family
    for family in (
        Family(type="custom/auto", task="auto"),
        Family(type="custom/llama2", chat_template=prompts.LLAMA2),
        Family(type="llama", chat_template=prompts.VICUNA),
        Family(type="falcon", chat_template=prompts.FALCON, stop=("\nUser:",)),
        Family(type="dolly", chat_template=prompts.DOLLY, stop=("### End",)),
        Family(type="custom/starcode", chat_template=prompts.STARCHAT, stop=("<|end|>",)),
        Family(type="custom/zephyr", chat_template=prompts.ZEPHYR),
        Family(type="moss", remote_code=True, chat_template=prompts.MOSS, stop=("<eom>",)),
        Family(
            type="custom/alpha_moss", remote_code=True, chat_template=prompts.MOSS, stop=("<eom>",)
        ),
        Family(
            type="chatglm6b",
            remote_code=True,
            chat_template=prompts.CHATGLM,
            adds_special_tokens=True,
        ),
        Family(
            type="custom/chatglm2",
            remote_code=True,
            chat_template=prompts.CHATGLM2,
            adds_special_tokens=True,
        ),
        Family(
            type="custom/baichuan",
            remote_code=True,
            chat_template=prompts.BAICHUAN,
            stop=("<reserved_102>",),
        ),
        Family(
            type="custom/baichuan2",
            remote_code=True,
            chat_template=prompts.BAICHUAN2,
            stop=("<reserved_106>",),
        ),
        Family(type="custom/visualglm", task="vision", remote_code=True),
        Family(type="custom/qwen_vl_chat", task="vision"),
        Family(
            type="custom/bge",
            task="embedding",
            query_instructions=_BGE_QUERY,
            pooling="cls",
            normalized=True,
        ),
        Family(type="custom/m3e", task="embedding", normalized=True),
        Family(type="custom/bge_rerank", task="rerank"),
        Family(type="whisper", task="transcription"),
        Family(type="bark", task="speech"),
        Family(type="custom/stable_diffusion", task="image"),
    )
}


def family_of(model_type: str) -> Family:
    """The family of an accepted type; the backend's spec has refused all others."""
    return FAMILIES[model_type]
