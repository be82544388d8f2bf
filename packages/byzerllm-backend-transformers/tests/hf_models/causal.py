"""Tiny causal models with random weights of real architectures, and a small real tokenizer."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from byzerllm.backend import BackendContext
from byzerllm_backend_transformers import TransformersParameters
from byzerllm_backend_transformers.families import family_of
from byzerllm_backend_transformers.folder import ModelFolder
from byzerllm_backend_transformers.tasks import Loading

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
LENGTH = 256
"""Most tokens of prompt and answer of every model here."""
_WORDS = "the quick brown fox jumps over a lazy dog while seven wizards make toxic brew for king"
_SIZE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": LENGTH,
}
_LLAMA = _SIZE | {"num_key_value_heads": 2, "intermediate_size": 64}
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": LENGTH}
_SLIDING = _LLAMA | {"sliding_window": 8}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom": ("BloomConfig", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "falcon": ("FalconConfig", _SIZE | {"alibi": False, "new_decoder_architecture": False}),
    "falcon-40b": ("FalconConfig", _SIZE | {"num_kv_heads": 2, "new_decoder_architecture": True}),
    "gemma3": (
        "Gemma3TextConfig",
        _SLIDING | {"head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "gpt2": ("GPT2Config", _GPT2),
    "gpt_bigcode": ("GPTBigCodeConfig", _GPT2),
    "gpt_neox": ("GPTNeoXConfig", _SIZE | {"intermediate_size": 64}),
    "llama": ("LlamaConfig", _LLAMA),
    "mamba": ("MambaConfig", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}),
    "mistral": ("MistralConfig", _SLIDING),
    "mixtral": ("MixtralConfig", _LLAMA | {"num_local_experts": 4, "sliding_window": None}),
    "phi": ("PhiConfig", _SIZE | {"intermediate_size": 64}),
    "qwen2": ("Qwen2Config", _LLAMA),
    "qwen3": ("Qwen3Config", _LLAMA | {"head_dim": 8}),
    "starcoder2": ("Starcoder2Config", _LLAMA),
}
"""Class and values of each configuration."""


@cache
def tokenizer() -> Any:
    """Byte-level BPE with a few merges: it takes every text. The padding token is the end."""
    import tokenizers
    import transformers

    core = tokenizers.Tokenizer(tokenizers.models.BPE())
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    core.train_from_iterator(
        [_WORDS],
        tokenizers.trainers.BpeTrainer(
            vocab_size=320,
            special_tokens=["<s>", "</s>", "<|end|>"],
            initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def build(name: str, **changes: Any) -> Any:
    """The model `name` of `CONFIGS`, always with the same weights; `changes` are other values."""
    import torch
    import transformers

    kind, values = CONFIGS[name]
    config = getattr(transformers, kind)(
        vocab_size=len(tokenizer()),
        bos_token_id=tokenizer().bos_token_id,
        eos_token_id=tokenizer().eos_token_id,
        pad_token_id=tokenizer().pad_token_id,
        # Larger than usual: answers differ clearly from token to token.
        initializer_range=0.2,
        **(values | changes),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.AutoModelForCausalLM.from_config(config).eval()


def save(folder: Path, name: str = "llama", *, template: str = CHAT_TEMPLATE) -> Path:
    """The model `name` with its tokenizer in `folder`; a template of '' is none."""
    build(name).save_pretrained(folder)
    save_tokenizer(folder, template=template)
    return folder


def save_tokenizer(folder: Path, *, template: str = CHAT_TEMPLATE) -> Path:
    import copy

    own = copy.deepcopy(tokenizer())
    own.chat_template = template or None
    own.save_pretrained(folder)
    return folder


def save_adapter(
    folder: Path,
    base: Path,
    *,
    name: str = "llama",
    sign: int = 1,
    target_modules: tuple[str, ...] = ("q_proj", "v_proj"),
    **changes: Any,
) -> Path:
    """A LoRA adapter with random weights, saved by PEFT, for the model in `base`.

    Args:
        name, changes: what it is made on, as in `build`.
        sign: -1 takes away what 1 adds.
    """
    import peft
    import torch

    lora = peft.LoraConfig(r=4, target_modules=list(target_modules), task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        # PEFT asks transformers by an older name.
        warnings.simplefilter("ignore", FutureWarning)
        adapted = peft.get_peft_model(build(name, **changes), lora)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for key, weight in adapted.named_parameters():
            if "lora_" in key:
                weight.normal_(0, 0.5)
            if "lora_B" in key:
                weight.mul_(sign)
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(folder)
    return folder


def loading(
    path: Path,
    model_type: str = "custom/auto",
    *,
    report: Callable[[str], None] = lambda phase: None,
    **infer_params: Any,
) -> Loading:
    """What the worker gives to a task for a model in `path`."""
    return Loading(
        context=BackendContext(
            model="tiny",
            model_path=path,
            model_type=model_type,
            parameters=TransformersParameters.parse(infer_params, where="a test"),
            report=report,
        ),
        folder=ModelFolder.read(path),
        family=family_of(model_type),
        given_up=threading.Event(),
    )
