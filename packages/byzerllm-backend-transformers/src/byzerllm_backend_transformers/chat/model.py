"""A causal language model and its tokenizer, ready to answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from byzerllm.decoding.chat_template import template_source
from byzerllm.errors import ModelLoadError, ModelSourceError, ParameterError
from byzerllm_backend_transformers.chat.adapters import adapters_of, merge
from byzerllm_backend_transformers.folder import ModelFolder
from byzerllm_backend_transformers.loading import check_gguf, check_trust, explained, load
from byzerllm_backend_transformers.tasks import Loading

_TOKENIZER_FILES = (
    "tokenizer.json",
    "*.model",
    "vocab*",
    "merges.txt",
    "*.tiktoken",
    "tekken.json",
)
_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")
# State space models have no end; a request of theirs ends somewhere.
_ENDLESS = 131_072

_WHERE = "backend 'transformers'"


@dataclass(frozen=True, kw_only=True)
class CausalModel:
    """What a chat runs on.

    Attributes:
        model: transformers' model in eval mode, LoRA adapters merged.
        tokenizer: transformers' tokenizer.
        device: where inputs go.
        max_model_len: most tokens of prompt and answer.
        end_tokens: ids of the tokens that end an answer.
        chat_template: Jinja text, '' for none.
        stop: the family's stop texts.
        adds_special_tokens: chat prompts get the tokenizer's special tokens, which the template
            cannot write.
        defaults: the folder's `generation_config.json`.
    """

    model: Any
    tokenizer: Any
    device: torch.device
    max_model_len: int
    end_tokens: frozenset[int]
    chat_template: str
    stop: tuple[str, ...]
    defaults: transformers.GenerationConfig
    adds_special_tokens: bool = False

    @classmethod
    def load(cls, loading: Loading) -> Self:
        """Load weights, tokenizer and adapters. Blocking.

        Raises:
            ModelSourceError: the folder is not whole, or an adapter does not fit it.
            ModelLoadError: another kind of model; memory, platform or trust.
            NotInstalledError: an extra is missing.
            ParameterError: `max_model_len` is more than the model was made for.
            TemplateError: the chat template cannot be read.
        """
        check_trust(loading)
        check_gguf(loading)
        check_causal(loading.folder)
        # What is quick and may fail comes before the weights.
        adapters = adapters_of(loading)
        tokenizer = load_tokenizer(loading)
        family = loading.family
        own = _own_template(tokenizer)
        template = template_source(loading.parameters.chat_template, own or family.chat_template)
        model = load(loading, transformers.AutoModelForCausalLM.from_pretrained, complete=True)
        model = merge(loading, model, adapters).eval()
        return cls(
            model=model,
            tokenizer=tokenizer,
            device=model.get_input_embeddings().weight.device,
            max_model_len=context_length(loading, model.config, tokenizer),
            end_tokens=_end_tokens(model, tokenizer, family.stop),
            chat_template=template,
            stop=family.stop,
            defaults=model.generation_config,
            adds_special_tokens=family.adds_special_tokens and not own,
        )


def check_causal(folder: ModelFolder) -> None:
    """Refuse a folder of another kind of model, which transformers would load with random weights.

    Raises:
        ModelLoadError: says what the folder holds.
    """
    if folder.gguf or "AutoModelForCausalLM" in folder.config.get("auto_map", {}):
        return
    name = next(iter(folder.architectures), "")
    if folder.config.get("is_encoder_decoder"):
        raise _other_kind(folder, f"an encoder-decoder model ({name or folder.model_type})")
    if name and name not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        raise _other_kind(folder, f"a {name}")
    if not name and folder.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise _other_kind(folder, f"a model of type {folder.model_type!r}")


def load_tokenizer(loading: Loading) -> Any:
    """The folder's tokenizer.

    Raises:
        ModelSourceError: there is none, or it cannot be read.
    """
    folder, parameters = loading.folder, loading.parameters
    loading.report("loading the tokenizer")
    options: dict[str, Any] = {
        "trust_remote_code": parameters.trust_remote_code,
        "local_files_only": True,
    }
    if folder.gguf:
        options["gguf_file"] = folder.gguf
    elif not any(any(folder.tokenizer_path.glob(pattern)) for pattern in _TOKENIZER_FILES):
        raise ModelSourceError(
            f"{folder.tokenizer_path} has no tokenizer (tokenizer.json, or a vocabulary); put the "
            "files of the model's tokenizer beside its weights"
        )
    with explained(loading, what="the tokenizer of "):
        return transformers.AutoTokenizer.from_pretrained(folder.tokenizer_path, **options)


def _own_template(tokenizer: Any) -> str:
    own = getattr(tokenizer, "chat_template", None) or ""
    if isinstance(own, dict):
        own = own.get("default") or next(iter(own.values()), "")
    return str(own)


def context_length(loading: Loading, config: Any, tokenizer: Any) -> int:
    """Most tokens of prompt and answer: what was asked for, else what the model was made for.

    Raises:
        ParameterError: more than it was made for.
    """
    text = config.get_text_config(decoder=True)
    lengths = (getattr(text, name, None) for name in _LENGTHS)
    made_for = next((n for n in lengths if isinstance(n, int) and n > 0), None)
    given = loading.parameters.max_model_len
    if given is not None and made_for is not None and given > made_for:
        raise ParameterError.invalid(
            "max_model_len", f"the model was made for at most {made_for:,} tokens", where=_WHERE
        )
    if given is not None:
        return given
    # transformers says "no limit" with a number beyond all use.
    told = getattr(tokenizer, "model_max_length", _ENDLESS)
    return made_for or min(int(told), _ENDLESS)


def _end_tokens(model: Any, tokenizer: Any, stop: tuple[str, ...]) -> frozenset[int]:
    """A stop text that is one special token never shows as text, so it is among these."""
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    added = tokenizer.get_added_vocab()
    spelled = [added.get(text) for text in stop]
    return frozenset(
        int(end) for end in [*ends, tokenizer.eos_token_id, *spelled] if end is not None
    )


def _other_kind(folder: ModelFolder, what: str) -> ModelLoadError:
    return ModelLoadError(
        f"{folder.path} holds {what}, no causal language model; deploy it with "
        "--pretrained_model_type custom/auto, or with the type that fits what it does"
    )
