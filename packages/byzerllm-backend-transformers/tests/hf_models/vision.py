"""Vision-language models of real architectures with random weights, small enough to build in tests.

Each function writes a folder as transformers' own `save_pretrained` does, and returns it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<image>",
    "<fake_token_around_image>",
    "<global-img>",
    *(f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)),
]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% for part in m.content %}{% if part.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAVA = (
    "{% for m in messages %}{{ m.role }}: "
    "{% for part in m.content %}{% if part.type == 'image' %}<image>\n{% else %}"
    "{{ part.text }}{% endif %}{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def tokenizer(chat_template: str | None, **tokens: Any) -> Any:
    """Byte-level BPE with the special tokens of all the families."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False
    )
    bpe.train_from_iterator(["what is in this picture? a dog on the beach"] * 4, trainer)
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>", **tokens
    )
    made.chat_template = chat_template
    return made


def _text_config(tokens: Any, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokens),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 1024,
        "bos_token_id": None,
        "eos_token_id": tokens.eos_token_id,
        "pad_token_id": tokens.pad_token_id,
        **more,
    }


def _saved(folder: Path, model: Any, *parts: Any) -> Path:
    model.generation_config = transformers.GenerationConfig(
        eos_token_id=model.config.get_text_config().eos_token_id
    )
    for one in (model.eval(), *parts):
        one.save_pretrained(folder)
    return folder


def _qwen(folder: Path, config: Any, model: Any, vision: dict[str, Any], seed: int) -> Path:
    tokens = tokenizer(CHATML)
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    id_of = tokens.convert_tokens_to_ids
    made = config(
        text_config=_text_config(tokens, rope_parameters=rope),
        vision_config={
            "depth": 1,
            "num_heads": 2,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            **vision,
        },
        image_token_id=id_of("<|image_pad|>"),
        video_token_id=id_of("<|video_pad|>"),
        vision_start_token_id=id_of("<|vision_start|>"),
        vision_end_token_id=id_of("<|vision_end|>"),
    )
    torch.manual_seed(seed)
    images = transformers.Qwen2VLImageProcessorPil(
        patch_size=4,
        merge_size=2,
        temporal_patch_size=2,
        size={"shortest_edge": 64, "longest_edge": 4096},
    )
    return _saved(folder, model(made), tokens, images)


def qwen2_vl(folder: Path, seed: int = 0) -> Path:
    return _qwen(
        folder,
        transformers.Qwen2VLConfig,
        transformers.Qwen2VLForConditionalGeneration,
        {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2},
        seed,
    )


def qwen2_5_vl(folder: Path, seed: int = 0) -> Path:
    return _qwen(
        folder,
        transformers.Qwen2_5_VLConfig,
        transformers.Qwen2_5_VLForConditionalGeneration,
        {
            "hidden_size": 32,
            "intermediate_size": 64,
            "out_hidden_size": 32,
            "window_size": 16,
            "fullatt_block_indexes": [0],
        },
        seed,
    )


def llava(folder: Path, seed: int = 0) -> Path:
    tokens = tokenizer(LLAVA)
    config = transformers.LlavaConfig(
        text_config={"model_type": "llama", **_text_config(tokens)},
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
            "projection_dim": 32,
        },
        image_token_index=tokens.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
    )
    torch.manual_seed(seed)
    side = {"height": 32, "width": 32}
    images = transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=side)
    processor = transformers.LlavaProcessor(
        images,
        tokens,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA,
    )
    return _saved(folder, transformers.LlavaForConditionalGeneration(config), processor)


def idefics3(folder: Path, seed: int = 0) -> Path:
    tokens = tokenizer(LLAVA)
    config = transformers.Idefics3Config(
        text_config={"model_type": "llama", **_text_config(tokens)},
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
        },
        image_token_id=tokens.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=tokens.pad_token_id,
    )
    torch.manual_seed(seed)
    images = transformers.Idefics3ImageProcessorPil(
        size={"longest_edge": 64}, max_image_size={"longest_edge": 32}
    )
    processor = transformers.Idefics3Processor(images, tokens, image_seq_len=4, chat_template=LLAVA)
    return _saved(folder, transformers.Idefics3ForConditionalGeneration(config), processor)


def qwen3_vl(folder: Path, seed: int = 0) -> Path:
    return _qwen(
        folder,
        transformers.Qwen3VLConfig,
        transformers.Qwen3VLForConditionalGeneration,
        {
            "hidden_size": 32,
            "intermediate_size": 64,
            "out_hidden_size": 32,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
        },
        seed,
    )


def gemma3(folder: Path, seed: int = 0) -> Path:
    tokens = tokenizer(
        LLAVA.replace("<image>", "<|vision_start|>"),
        bos_token="<|im_start|>",
        extra_special_tokens={
            "image_token": "<image>",
            "boi_token": "<|vision_start|>",
            "eoi_token": "<|vision_end|>",
        },
    )
    config = transformers.Gemma3Config(
        text_config={"head_dim": 16, **_text_config(tokens)},
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
            "vision_use_head": False,
        },
        image_token_index=tokens.convert_tokens_to_ids("<image>"),
        boi_token_index=tokens.convert_tokens_to_ids("<|vision_start|>"),
        eoi_token_index=tokens.convert_tokens_to_ids("<|vision_end|>"),
        mm_tokens_per_image=4,
    )
    torch.manual_seed(seed)
    images = transformers.Gemma3ImageProcessorPil(size={"height": 32, "width": 32})
    processor = transformers.Gemma3Processor(
        images, tokens, chat_template=tokens.chat_template, image_seq_length=4
    )
    model = transformers.Gemma3ForConditionalGeneration(config)
    # Zeros as transformers makes it, which would blind the model.
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight)
    return _saved(folder, model, processor)


def paligemma(folder: Path, seed: int = 0) -> Path:
    """No chat template: its authors give it a picture and one line of text."""
    tokens = tokenizer(None, bos_token="<|im_start|>")
    tokens.add_special_tokens({"additional_special_tokens": ["<image>"]})
    config = transformers.PaliGemmaConfig(
        text_config={"model_type": "gemma", "head_dim": 16, **_text_config(tokens)},
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
            "projection_dim": 32,
            "vision_use_head": False,
        },
        image_token_index=tokens.convert_tokens_to_ids("<image>"),
        projection_dim=32,
    )
    torch.manual_seed(seed)
    images = transformers.SiglipImageProcessorPil(size={"height": 32, "width": 32})
    images.image_seq_length = 16
    processor = transformers.PaliGemmaProcessor(images, tokens)
    return _saved(folder, transformers.PaliGemmaForConditionalGeneration(config), processor)


FAMILIES = {
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "llava": llava,
    "idefics3": idefics3,
    "gemma3": gemma3,
    "paligemma": paligemma,
}
