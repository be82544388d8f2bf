"""llama.cpp contexts over a model, and how their cache is laid out."""

from __future__ import annotations

import ctypes
from typing import Any

import psutil

from byzerllm.errors import ModelLoadError
from byzerllm_backend_llamacpp import log
from byzerllm_backend_llamacpp.model import Model
from byzerllm_backend_llamacpp.native import llama_cpp
from byzerllm_backend_llamacpp.parameters import LlamaCppParameters

_SPLIT_CACHE_LIMIT = 2**30
"""Bytes up to which each request gets a cache of its own when `kv_unified` is not said."""

_CACHE_TYPES = {
    "f32": (llama_cpp.GGML_TYPE_F32, 4.0),
    "f16": (llama_cpp.GGML_TYPE_F16, 2.0),
    "bf16": (30, 2.0),
    "q8_0": (llama_cpp.GGML_TYPE_Q8_0, 34 / 32),
    "q5_1": (llama_cpp.GGML_TYPE_Q5_1, 24 / 32),
    "q5_0": (llama_cpp.GGML_TYPE_Q5_0, 22 / 32),
    "q4_1": (llama_cpp.GGML_TYPE_Q4_1, 20 / 32),
    "q4_0": (llama_cpp.GGML_TYPE_Q4_0, 18 / 32),
    "iq4_nl": (llama_cpp.GGML_TYPE_IQ4_NL, 18 / 32),
}
_ROPE_SCALING = {"none": 0, "linear": 1, "yarn": 2, "longrope": 3}
_FLASH_ATTENTION = {None: -1, False: 0, True: 1}


def shares_cache(model: Model, parameters: LlamaCppParameters, n_ctx: int, sequences: int) -> bool:
    """Whether all sequences use one cache of `n_ctx` tokens; see `kv_unified`."""
    if parameters.kv_unified is not None:
        return parameters.kv_unified
    needed = sequences * n_ctx * _bytes_per_token(model, parameters)
    return sequences > 1 and needed > _SPLIT_CACHE_LIMIT


def _bytes_per_token(model: Model, parameters: LlamaCppParameters) -> float:
    return model.cache_bytes_per_token(
        _CACHE_TYPES[parameters.type_k][1], _CACHE_TYPES[parameters.type_v][1]
    )


def _check_memory(model: Model, parameters: LlamaCppParameters, tokens: int) -> None:
    """Refuse a cache that main memory can never hold; llama.cpp would try for minutes."""
    needed = tokens * _bytes_per_token(model, parameters)
    memory = psutil.virtual_memory().total
    if needed > memory and not llama_cpp.llama_supports_gpu_offload():
        raise ModelLoadError(
            f"a cache of {tokens:,} tokens takes {needed / 2**30:,.0f} GiB, this machine has "
            f"{memory / 2**30:,.0f}; lower n_ctx or worker_concurrency, or take a smaller type_k "
            "and type_v"
        )


def answering_context(
    model: Model,
    parameters: LlamaCppParameters,
    *,
    n_ctx: int,
    sequences: int,
    shared: bool,
    threads: int,
) -> Any:
    """A context in which `sequences` answers grow, each of at most `n_ctx` tokens.

    Raises:
        ModelLoadError: llama.cpp cannot make it, mostly for want of memory.
    """
    params = _context_params(parameters, threads)
    cells = n_ctx if shared else n_ctx * sequences
    _check_memory(model, parameters, cells)
    params.n_ctx = cells
    params.n_batch = max(parameters.n_batch, sequences)
    params.n_ubatch = min(parameters.n_ubatch, params.n_batch)
    params.n_seq_max = sequences
    params.n_outputs_max = sequences
    params.kv_unified = shared
    return _create(model, parameters, params, f"a context of {params.n_ctx:,} tokens")


def embedding_context(
    model: Model,
    parameters: LlamaCppParameters,
    *,
    tokens: int,
    sequences: int,
    pooling: int,
    threads: int,
) -> Any:
    """A context that embeds up to `sequences` texts of `tokens` tokens in total at once.

    Raises:
        ModelLoadError: llama.cpp cannot make it.
    """
    params = _context_params(parameters, threads)
    params.embeddings = True
    params.pooling_type = pooling
    params.n_ctx = params.n_batch = params.n_ubatch = tokens
    params.n_seq_max = sequences
    params.n_outputs_max = params.n_outputs_max_per_seq = 0
    params.kv_unified = True
    return _create(model, parameters, params, f"an embedding context of {tokens:,} tokens")


def _context_params(parameters: LlamaCppParameters, threads: int) -> Any:
    params = llama_cpp.llama_context_default_params()
    params.n_threads = parameters.n_threads or threads
    params.n_threads_batch = parameters.n_threads_batch or params.n_threads
    params.flash_attn_type = _FLASH_ATTENTION[parameters.flash_attn]
    params.offload_kqv = parameters.offload_kqv
    params.op_offload = parameters.op_offload
    params.swa_full = parameters.swa_full
    params.type_k = _CACHE_TYPES[parameters.type_k][0]
    params.type_v = _CACHE_TYPES[parameters.type_v][0]
    if parameters.rope_scaling_type is not None:
        params.rope_scaling_type = _ROPE_SCALING[parameters.rope_scaling_type]
    for name in (
        "rope_freq_base",
        "rope_freq_scale",
        "yarn_ext_factor",
        "yarn_attn_factor",
        "yarn_beta_fast",
        "yarn_beta_slow",
        "yarn_orig_ctx",
    ):
        setattr(params, name, getattr(parameters, name))
    return params


def _create(model: Model, parameters: LlamaCppParameters, params: Any, what: str) -> Any:
    log.forget_errors()
    handle = llama_cpp.llama_init_from_model(model.handle, params)
    if not handle:
        reason = log.last_errors() or "no reason given"
        raise ModelLoadError(
            f"llama.cpp cannot make {what} for {model.file.name!r}: {reason}; "
            "a smaller n_ctx or worker_concurrency needs less memory"
        )
    _apply_adapters(handle, model, parameters)
    return handle


def _apply_adapters(handle: Any, model: Model, parameters: LlamaCppParameters) -> None:
    count = len(model.adapters)
    if not count:
        return
    scales = parameters.lora_scale
    if len(scales) == 1:
        scales = scales * count
    adapters = (llama_cpp.llama_adapter_lora_p_ctypes * count)(*model.adapters)
    strengths = (ctypes.c_float * count)(*scales)
    if llama_cpp.llama_set_adapters_lora(handle, adapters, count, strengths):
        llama_cpp.llama_free(handle)
        raise ModelLoadError("llama.cpp cannot apply the LoRA adapters to this model")
