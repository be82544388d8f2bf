"""Tiny random Stable Diffusion folders: real architectures, no meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)


def stable_diffusion(folder: Path, **parts: Any) -> Path:
    """Stable Diffusion 1.x: 8 pixels a latent, 64 × 64 pixels its own size."""
    torch.manual_seed(0)
    pipeline = diffusers.StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(_text_config()).eval(),
        tokenizer=_tokenizer(),
        unet=_unet(cross_attention_dim=32),
        scheduler=_scheduler(),
        **{
            "safety_checker": None,
            "feature_extractor": None,
            "requires_safety_checker": False,
            **parts,
        },
    )
    pipeline.save_pretrained(folder)
    return folder


def stable_diffusion_xl(folder: Path) -> Path:
    """Stable Diffusion XL: two text encoders."""
    torch.manual_seed(0)
    tokenizer = _tokenizer()
    pipeline = diffusers.StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(_text_config()).eval(),
        text_encoder_2=CLIPTextModelWithProjection(_text_config()).eval(),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=_unet(
            cross_attention_dim=64,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 32,
        ),
        scheduler=_scheduler(),
    )
    pipeline.save_pretrained(folder)
    return folder


def safety_checker() -> dict[str, Any]:
    """Parts of a folder whose safety checker finds every picture unsafe."""
    vision = {
        "hidden_size": 32,
        "intermediate_size": 37,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
        "projection_dim": 32,
    }
    checker = StableDiffusionSafetyChecker(
        CLIPConfig(vision_config=vision, text_config=_text_config().to_dict(), projection_dim=32)
    ).eval()
    checker.concept_embeds_weights.data.fill_(-2)
    size = {"height": 32, "width": 32}
    return {
        "safety_checker": checker,
        "feature_extractor": CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size),
        "requires_safety_checker": True,
    }


def _vae() -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=[4, 4, 4, 4],
        norm_num_groups=2,
        in_channels=3,
        out_channels=3,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        latent_channels=4,
        sample_size=128,
    ).eval()


def _unet(**more: Any) -> Any:
    return diffusers.UNet2DConditionModel(
        block_out_channels=(4, 4, 8, 8),
        norm_num_groups=2,
        layers_per_block=1,
        sample_size=8,
        in_channels=4,
        out_channels=4,
        # Attention is left to the small end: pictures of the default size are to be quick.
        down_block_types=("DownBlock2D",) * 2 + ("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",) * 2,
        attention_head_dim=2,
        **more,
    ).eval()


def _scheduler() -> Any:
    """As Stable Diffusion 1.5 has it."""
    return diffusers.PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        steps_offset=1,
    )


def _text_config() -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=1000,
        hidden_size=32,
        projection_dim=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )


def _tokenizer() -> CLIPTokenizer:
    """A token per byte, as CLIP writes them."""
    letters = sorted(ByteLevel.alphabet())
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary = {word: number for number, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)
