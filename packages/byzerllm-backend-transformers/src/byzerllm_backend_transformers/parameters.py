"""The `infer_params` of the transformers backend. Imports no engine."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from byzerllm.backend import Parameters

Dtype = Literal["auto", "float32", "float16", "bfloat16"]
Bits = Literal[4, 8]

_DTYPES = {"fp32": "float32", "fp16": "float16", "half": "float16", "bf16": "bfloat16"}
_BITS = {"4": 4, "8": 8, "true": 4, "false": None, "int4": 4, "int8": 8, "": None}


def _dtype(value: Any) -> Any:
    text = str(value).lower().removeprefix("torch.")
    return _DTYPES.get(text, text)


def _bits(value: Any) -> Any:
    """The seed's spellings: 4, 8, true (int4) and false."""
    return _BITS.get(str(value).lower(), value)


def _texts(value: Any) -> Any:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


class TransformersParameters(Parameters):
    """How a model is loaded and run. What concerns one task only says so."""

    dtype: Annotated[Dtype, BeforeValidator(_dtype)] = Field(
        default="auto",
        alias="torch_dtype",
        description="Numbers that the model computes with. Default: the folder's own on a GPU, "
        "float32 on a CPU.",
    )
    device: str | None = Field(
        default=None,
        description="cpu, cuda, cuda:1, mps, …. Default: the GPU that the worker reserved, else "
        "the CPU.",
    )
    device_map: str | None = Field(
        default=None,
        description="How several GPUs share the model: auto, balanced, balanced_low_0, sequential. "
        "Default: auto where the worker reserved more than one.",
    )
    quantization: Annotated[Bits | None, BeforeValidator(_bits)] = Field(
        default=None,
        alias="quatization",
        description="8: int8. 4 or true: int4. false: none. Needs the extra quantization.",
    )
    trust_remote_code: bool = Field(
        default=False,
        description="Run the Python code that lies in the model's folder. Only for folders whose "
        "authors you trust.",
    )
    attn_implementation: str | None = Field(
        default=None, description="sdpa, eager, flash_attention_2, …. Default: transformers' own."
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        le=512,
        description="CPU threads. Default: cpus_per_worker when it is 2 or more, else all physical "
        "cores that the process may use.",
    )
    max_model_len: int | None = Field(
        default=None,
        ge=1,
        description="Chat: most tokens of prompt and answer. Default: what the model was made for.",
    )
    lora_path: Annotated[tuple[str, ...], BeforeValidator(_texts)] = Field(
        default=(),
        alias="lora_paths",
        description="Chat: folders of LoRA adapters (PEFT), merged into the model in their order; "
        "paths on the worker's node, separated by commas.",
    )
    chat_template: str | None = Field(
        default=None,
        description="Chat: a Jinja chat template, or the path of a file that holds one, in place "
        "of the model's own.",
    )
    seed: int | None = Field(
        default=None, description="Seed of requests that bring none. Default: random."
    )
    batch_size: int = Field(
        default=32,
        ge=1,
        le=4096,
        description="Embedding, reranking: texts that are computed at once, whatever requests they "
        "come from.",
    )
    max_seq_length: int | None = Field(
        default=None,
        ge=1,
        description="Embedding, reranking: tokens of a text that are looked at. Default: the "
        "model's own.",
    )
    normalize_embeddings: bool | None = Field(
        default=None,
        description="Embedding: scale each vector to length 1. Default: as the folder says; "
        "custom/bge and custom/m3e do.",
    )
    query_instruction: str | None = Field(
        default=None,
        description="Embedding: text put before a query (emb_query). Default: the family's or the "
        "folder's own.",
    )
    max_audio_seconds: float = Field(
        default=3600,
        gt=0,
        le=86400,
        description="Transcription: seconds of sound that one request may have.",
    )
