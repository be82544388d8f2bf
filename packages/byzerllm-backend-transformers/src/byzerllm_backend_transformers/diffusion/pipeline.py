"""Loading a diffusers folder: which of its files are read, whether they fit, and how far it is."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch

from byzerllm.errors import ModelLoadError, ModelSourceError
from byzerllm_backend_transformers import loading as loading_
from byzerllm_backend_transformers.folder import ModelFolder, check_whole, tensors
from byzerllm_backend_transformers.tasks import Loading

PIPELINES = {
    "StableDiffusionPipeline": "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline": "StableDiffusionPipeline",
    "StableDiffusionXLPipeline": "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline": "StableDiffusionXLPipeline",
}
"""Pipelines that a folder may name, and the one that draws from text with its parts."""

_FROM_IMAGE = {
    "StableDiffusionPipeline": "StableDiffusionImg2ImgPipeline",
    "StableDiffusionXLPipeline": "StableDiffusionXLImg2ImgPipeline",
}
_STANDARD = re.compile(r"(model|diffusion_pytorch_model|pytorch_model)(-\d+-of-\d+)?\.\w+")
_HALF = re.compile(
    r"(model|diffusion_pytorch_model|pytorch_model)(\.fp16)?(-\d+-of-\d+)?(\.fp16)?\.\w+"
)
# What a folder may hold of these is read and has no weights.
_WITHOUT_WEIGHTS = ("tokenizer", "scheduler", "feature_extractor", "processor")


def load_pipeline(loading: Loading) -> Any:
    """The pipeline of a folder, on its device.

    Raises:
        ModelSourceError: not a folder of Stable Diffusion, or one that is not whole.
        ModelLoadError: no memory, or a parameter that does not go with pictures.
    """
    folder = loading.folder
    name = _pipeline_name(loading)
    _check_parameters(loading)
    loading_.set_threads(loading)
    device = loading_.device_of(loading)
    dtype = loading_.dtype_of(loading, device)
    variant, files = _files(folder)
    loading_.check_memory(loading, device, dtype, weights=_bytes(files, dtype))
    arguments: dict[str, Any] = {"dtype": dtype, "local_files_only": True}
    if variant:
        arguments["variant"] = variant
    if loading.parameters.device_map is not None:
        arguments["device_map"] = loading.parameters.device_map
    with _components_reported(loading):
        pipeline = loading_.load(loading, getattr(diffusers, name).from_pretrained, arguments)
    channels = pipeline.unet.config.in_channels
    if channels != pipeline.vae.config.latent_channels:
        raise ModelSourceError(
            f"{folder.path} is made for another task than drawing from text: its unet takes "
            f"{channels} channels (inpainting, depth or editing)"
        )
    if loading.parameters.device_map is None:
        with loading_.explained(loading):
            pipeline.to(device)
    # One picture at a time is decoded: a batch needs no more memory for that than one.
    pipeline.vae.enable_slicing()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def redrawing(pipeline: Any) -> Any:
    """The pipeline that begins with a picture, of the same parts."""
    cls = getattr(diffusers, _FROM_IMAGE[type(pipeline).__name__])
    parts = pipeline.components
    accepted = inspect.signature(cls.__init__).parameters.keys() - parts.keys()
    settings = {name: value for name, value in pipeline.config.items() if name in accepted}
    again = cls(**parts, **settings)
    again.set_progress_bar_config(disable=True)
    return again


def _pipeline_name(loading: Loading) -> str:
    folder = loading.folder
    if folder.gguf or not (folder.path / "model_index.json").is_file():
        raise ModelSourceError(
            f"{folder.path} is no folder of diffusers: it has no model_index.json; "
            f"{loading.family.type} needs a Stable Diffusion folder"
        )
    named = folder.config.get("_class_name")
    if not isinstance(named, str) or named not in PIPELINES:
        raise ModelSourceError(
            f"{folder.path} is for the pipeline {named!r}; the backend transformers draws with "
            f"{', '.join(PIPELINES)}"
        )
    return PIPELINES[named]


def _check_parameters(loading: Loading) -> None:
    parameters = loading.parameters
    for name, given in (
        ("quantization", parameters.quantization is not None),
        ("lora_path", bool(parameters.lora_path)),
    ):
        if given:
            raise ModelLoadError(f"{name} is not for models of pictures; leave it out")


def _files(folder: ModelFolder) -> tuple[str, list[Path]]:
    """The variant to read (`fp16` or '') and the weight files of all parts."""
    parts = [
        name
        for name, entry in folder.config.items()
        if isinstance(entry, list)
        and len(entry) == 2
        and all(entry)
        and not name.startswith(_WITHOUT_WEIGHTS)
    ]
    for name in ("unet", "vae", "text_encoder"):
        if name not in parts:
            raise ModelSourceError(f"{folder.path}: its model_index.json names no {name}")
    variant = "" if _weights(folder.path / "unet", _STANDARD) else "fp16"
    found: list[Path] = []
    for name in parts:
        files = _weights(folder.path / name, _HALF if variant else _STANDARD)
        if not files:
            raise ModelSourceError(
                f"{folder.path} lacks the weights of its {name} "
                f"({name}/*.safetensors); fetch the model again"
            )
        found += files
    for file in found:
        if file.suffix == ".safetensors":
            check_whole(file)
    return variant, found


def _weights(folder: Path, names: re.Pattern[str]) -> list[Path]:
    """The files that diffusers reads: safetensors, else PyTorch's own."""
    for suffix in (".safetensors", ".bin"):
        files = [f for f in folder.glob(f"*{suffix}") if names.fullmatch(f.name)]
        half = [f for f in files if ".fp16" in f.name]
        if files:
            return sorted(half or files)
    return []


def _bytes(files: Iterable[Path], dtype: torch.dtype) -> int:
    size = int(torch.empty(0, dtype=dtype).element_size())
    total = 0
    for file in files:
        if file.suffix == ".safetensors":
            total += sum(_count(shape) for _, _, shape, _ in tensors(file)) * size
        else:
            total += file.stat().st_size
    return total


def _count(shape: Iterable[int]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count


@contextmanager
def _components_reported(loading: Loading) -> Iterator[None]:
    """Reports each part of a pipeline as it is loaded, in place of diffusers' bar."""
    logging = diffusers.utils.logging
    before = logging.tqdm

    def bar(parts: Any, **options: Any) -> Iterator[Any]:
        named = list(parts)
        for number, part in enumerate(named, 1):
            loading.report(f"loading {part[0]} ({number} of {len(named)})")
            yield part

    logging.tqdm = bar
    try:
        yield
    finally:
        logging.tqdm = before
