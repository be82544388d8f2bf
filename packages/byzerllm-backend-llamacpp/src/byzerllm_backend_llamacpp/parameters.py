"""The `infer_params` of the llama.cpp backend. Imports no engine."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from byzerllm.backend import Parameters

CacheType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]
Pooling = Literal["mean", "cls", "last"]
SplitMode = Literal["none", "layer", "row", "tensor"]
RopeScaling = Literal["none", "linear", "yarn", "longrope"]
Numa = Literal["disabled", "distribute", "isolate", "numactl"]


def _items(value: Any) -> Any:
    """A list out of a number, `a,b` or a JSON list, as the command line gives it."""
    if isinstance(value, int | float):
        return [value]
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.startswith("["):
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            return value
    return [part.strip() for part in text.split(",") if part.strip()]


def _numa(value: Any) -> Any:
    if isinstance(value, str):
        value = {"true": True, "false": False}.get(value.lower(), value)
    if isinstance(value, bool):
        return "distribute" if value else "disabled"
    return value


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _split_mode(value: Any) -> Any:
    """llama.cpp's numbers are taken too."""
    numbers = {"0": "none", "1": "layer", "2": "row", "3": "tensor"}
    return numbers.get(str(value), _lower(value))


Lower = BeforeValidator(_lower)
Floats = Annotated[tuple[float, ...], BeforeValidator(_items)]
Texts = Annotated[tuple[str, ...], BeforeValidator(_items)]


class LlamaCppParameters(Parameters):
    """How a GGUF model is loaded. Defaults are llama.cpp's own where nothing else is said."""

    num_gpu_layers: int | None = Field(
        default=None,
        alias="n_gpu_layers",
        ge=-1,
        description="Layers kept in GPU memory; -1 is all of them. "
        "Default: all when the worker reserves a GPU, else none.",
    )
    n_ctx: int = Field(
        default=0,
        ge=0,
        le=2**31 - 1,
        description="Context of one request in tokens, prompt and answer together; "
        "0 takes the model's own. How requests share the cache: see kv_unified.",
    )
    kv_unified: bool | None = Field(
        default=None,
        description="true: all requests of the worker share one cache of n_ctx tokens; one request "
        "may fill it when it is free, a request that finds no room waits. false: each has a cache "
        "of n_ctx tokens of its own (worker_concurrency times the memory), which decodes faster. "
        "Default: false where that takes at most 1 GiB, else true.",
    )
    n_batch: int = Field(
        default=512,
        ge=32,
        le=65536,
        description="Most tokens of one decode step: one per growing answer, the rest prompts.",
    )
    n_ubatch: int = Field(
        default=512,
        ge=32,
        le=65536,
        description="Tokens that are computed at once; never more than n_batch. An embedded text "
        "may have max(n_ubatch, 2048) tokens.",
    )
    n_threads: int | None = Field(
        default=None,
        ge=1,
        le=512,
        description="CPU threads while one answer grows. Default: cpus_per_worker when it is 2 or "
        "more, else all physical cores that the process may use. Several workers on one machine "
        "should divide its cores: set cpus_per_worker or this.",
    )
    n_threads_batch: int | None = Field(
        default=None,
        ge=1,
        le=512,
        description="CPU threads for prompts and for several answers at once. Default: n_threads.",
    )
    cache_prompt: bool = Field(
        default=True,
        description="Keep the cache of ended requests and reuse the prefix that a new prompt "
        "shares with one of them. Requests with a seed never reuse, so that they repeat exactly.",
    )
    use_mmap: bool = Field(default=True, description="Map the file instead of reading it.")
    use_mlock: bool = Field(default=False, description="Keep the model from being swapped out.")
    check_tensors: bool = Field(
        default=False, description="Look for invalid numbers in the tensors while loading."
    )
    flash_attn: bool | None = Field(
        default=None, description="Flash attention. Default: where the device has it."
    )
    offload_kqv: bool = Field(
        default=True, description="Keep the cache on the GPU together with the layers."
    )
    op_offload: bool = Field(
        default=True, description="Let the GPU compute on tensors that lie in main memory."
    )
    swa_full: bool = Field(
        default=True,
        description="Full-size cache for sliding-window attention; needed to reuse prefixes.",
    )
    main_gpu: int = Field(
        default=0, ge=0, description="The GPU of the whole model with split_mode=none."
    )
    split_mode: Annotated[SplitMode, BeforeValidator(_split_mode)] = Field(
        default="layer", description="How several GPUs share a model."
    )
    tensor_split: Floats = Field(
        default=(), description="Share of the model per GPU, such as 0.6,0.4. Default: even."
    )
    type_k: Annotated[CacheType, Lower] = Field(
        default="f16", description="Data type of the cached keys."
    )
    type_v: Annotated[CacheType, Lower] = Field(
        default="f16", description="Data type of the cached values; quantised needs flash_attn."
    )
    rope_scaling_type: Annotated[RopeScaling, Lower] | None = Field(
        default=None, description="RoPE scaling. Default: the model's."
    )
    rope_freq_base: float = Field(
        default=0.0, ge=0, description="RoPE base frequency; 0 takes the model's."
    )
    rope_freq_scale: float = Field(
        default=0.0, ge=0, description="RoPE frequency factor; 0 takes the model's."
    )
    yarn_ext_factor: float = Field(
        default=-1.0, description="YaRN extrapolation mix; negative takes the model's."
    )
    yarn_attn_factor: float = Field(
        default=-1.0, description="YaRN attention factor; negative takes the model's."
    )
    yarn_beta_fast: float = Field(
        default=-1.0, description="YaRN low correction dimension; negative takes the model's."
    )
    yarn_beta_slow: float = Field(
        default=-1.0, description="YaRN high correction dimension; negative takes the model's."
    )
    yarn_orig_ctx: int = Field(
        default=0, ge=0, description="YaRN original context in tokens; 0 takes the model's."
    )
    numa: Annotated[Numa, BeforeValidator(_numa)] = Field(
        default="disabled",
        description="NUMA strategy of the whole process; true is distribute.",
    )
    embedding: bool = Field(
        default=False,
        description="The model only embeds; no context for answers is made. Models that cannot "
        "answer, such as BERT, are recognised without it.",
    )
    pooling_type: Annotated[Pooling, Lower] | None = Field(
        default=None,
        description="How token vectors become one. Default: the model's own, else mean.",
    )
    normalize_embeddings: bool = Field(
        default=False, description="Scale each vector to length 1. llama.cpp's own default is not."
    )
    chat_template: str | None = Field(
        default=None,
        description="A Jinja chat template, or the path of a file that holds one, in place of the "
        "model's own.",
    )
    lora_path: Texts = Field(
        default=(),
        alias="lora_paths",
        description="LoRA adapters in GGUF, paths on the worker's node, separated by commas.",
    )
    lora_scale: Floats = Field(
        default=(1.0,), description="Strength of the adapters: one for all, or one for each."
    )
    seed: int | None = Field(
        default=None, description="Seed of requests that bring none. Default: random."
    )
    verbose: bool = Field(default=False, description="Show llama.cpp's own log on stderr.")

    @field_validator("type_v")
    @classmethod
    def _needs_flash_attention(cls, value: str, info: ValidationInfo) -> str:
        if info.data.get("flash_attn") is False and value not in ("f32", "f16", "bf16"):
            raise ValueError("a quantised cache needs flash attention; leave out flash_attn=false")
        return value

    @field_validator("lora_scale")
    @classmethod
    def _one_or_each(cls, value: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        adapters = len(info.data.get("lora_path", ()))
        if len(value) not in (1, adapters):
            raise ValueError(f"one number, or one for each of the {adapters} adapters")
        return value
