"""LoRA adapters in PEFT's layout: checked and merged into the model's weights."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from byzerllm.errors import ByzerLLMError, ModelSourceError
from byzerllm_backend_transformers.folder import ADAPTER_CONFIG, check_whole, read_json
from byzerllm_backend_transformers.tasks import Loading

_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


def merge(loading: Loading, model: Any, folders: Iterable[Path]) -> Any:
    """`model` with adapters merged into it, in their order.

    Args:
        folders: what `adapters_of` found before the weights were read.

    Raises:
        ModelSourceError: an adapter is for another model.
    """
    for folder in folders:
        loading.report(f"merging the adapter {folder.name}")
        model = _merged(model, folder, str(loading.folder.path))
    return model


def adapters_of(loading: Loading) -> list[Path]:
    """The adapter folders, each looked at: the deployed one and those of `lora_path`.

    Raises:
        ModelSourceError: a folder that is no adapter's.
    """
    given = [Path(path).expanduser() for path in loading.parameters.lora_path]
    folders = [*loading.folder.adapters, *given]
    for folder in folders:
        _check(folder)
    return folders


def _check(folder: Path) -> None:
    if not (folder / ADAPTER_CONFIG).is_file():
        raise ModelSourceError(
            f"lora_path: {folder} has no {ADAPTER_CONFIG}; it must be the folder of a LoRA adapter "
            "that PEFT saved, on the worker's node"
        )
    if not any((folder / name).is_file() for name in _WEIGHTS):
        raise ModelSourceError(
            f"lora_path: {folder} has no weights ({' or '.join(_WEIGHTS)}); copy the adapter again"
        )
    for file in folder.glob("adapter_model.safetensors"):
        check_whole(file)
    config = read_json(folder / ADAPTER_CONFIG)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ModelSourceError(f"lora_path: {folder} is an adapter of type {kind!r}, not LORA")


def _merged(model: Any, folder: Path, base: str) -> Any:
    import peft

    try:
        with warnings.catch_warnings():
            # Missing keys, and int8 weights that are rounded once more.
            warnings.simplefilter("ignore")
            adapted = peft.PeftModel.from_pretrained(model, str(folder))
            return adapted.merge_and_unload(safe_merge=True)
    except ByzerLLMError:
        raise
    except (ValueError, RuntimeError, KeyError, TypeError, OSError) as error:
        made_for = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
        said = f" (it says that it was made for {made_for!r})" if made_for else ""
        raise ModelSourceError(
            f"the adapter {folder} does not fit the model {base}{said}: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error
