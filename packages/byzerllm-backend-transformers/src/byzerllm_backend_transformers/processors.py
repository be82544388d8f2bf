"""transformers' processors, which turn text and pictures into a model's inputs."""

from __future__ import annotations

from typing import Any

import transformers
from transformers.models.auto import processing_auto

from byzerllm.errors import ModelLoadError
from byzerllm_backend_transformers.loading import explained
from byzerllm_backend_transformers.tasks import Loading


def load_processor(loading: Loading) -> Any:
    """The folder's processor. Without torchvision it takes no videos, which nothing here sends.

    Raises:
        ModelSourceError: it cannot be loaded.
        ModelLoadError: the folder has a tokenizer and no more.
    """
    options = {
        "local_files_only": True,
        "trust_remote_code": loading.parameters.trust_remote_code,
    }
    cls = _without_videos(loading) or transformers.AutoProcessor
    with explained(loading):
        processor = cls.from_pretrained(loading.folder.path, **options)
    if not hasattr(processor, "image_processor"):
        raise ModelLoadError(
            f"{loading.folder.path} has no processor for images that transformers knows "
            "(preprocessor_config.json); fetch the model again, or take one that has: of the first "
            "Qwen-VL's kin, Qwen2-VL and later ones"
        )
    return processor


def _without_videos(loading: Loading) -> Any:
    """The folder's class of processors less its processor of videos, which needs torchvision; None
    where it has none or torchvision is there."""
    name = processing_auto.PROCESSOR_MAPPING_NAMES.get(loading.folder.model_type)
    if name is None or transformers.utils.is_torchvision_available():
        return None
    cls: Any = processing_auto.processor_class_from_name(name)
    attributes = [] if cls is None else cls.get_attributes()
    if "video_processor" not in attributes:
        return None
    kept = [attribute for attribute in attributes if attribute != "video_processor"]
    return type(cls.__name__, (cls,), {"get_attributes": classmethod(lambda cls: kept)})
