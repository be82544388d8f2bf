"""transformers' processors, which turn text and pictures into a model's inputs."""

from __future__ import annotations

from typing import Any

import transformers
from transformers.models.auto import processing_auto

from byzerllm.errors import ModelLoadError
from byzerllm_backend_transformers.loading import explained
from byzerllm_backend_transformers.tasks import Loading

_VIDEOS = "video_processor"


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
    """The folder's class of processors, less its processor of videos, which needs torchvision; None
    where it has none or torchvision is there."""
    name = processing_auto.PROCESSOR_MAPPING_NAMES.get(loading.folder.model_type)
    if name is None or transformers.utils.is_torchvision_available():
        return None
    cls: Any = processing_auto.processor_class_from_name(name)
    attributes = [] if cls is None else cls.get_attributes()
    if _VIDEOS not in attributes:
        return None
    kept = [attribute for attribute in attributes if attribute != _VIDEOS]
    parts: Any = type(cls.__name__, (cls,), {"get_attributes": classmethod(lambda cls: kept)})

    def arguments(_: Any, *given: Any, **options: Any) -> list[Any]:
        loaded = list(parts._get_arguments_from_pretrained(*given, **options))
        return [None if one == _VIDEOS else loaded.pop(0) for one in attributes]

    def check(self: Any, argument_name: str, argument: Any) -> Any:
        if argument_name == _VIDEOS and argument is None:
            return None
        return cls.check_argument_for_proper_class(self, argument_name, argument)

    changes = {
        "_get_arguments_from_pretrained": classmethod(arguments),
        "check_argument_for_proper_class": check,
    }
    return type(cls.__name__, (cls,), changes)
