"""What a model folder holds, read without loading it, and what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from byzerllm.errors import ModelSourceError
from byzerllm_backend_transformers.families import Family, TaskName

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "*.pt")
_ONE_OF = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Where transformers looks for weights; the first that is there is read."""
_LFS_POINTER = b"version https://git-lfs"
ADAPTER_CONFIG = "adapter_config.json"
"""What PEFT writes beside the weights of an adapter."""


@dataclass(frozen=True)
class ModelFolder:
    """A local folder in the layout of transformers, sentence-transformers or diffusers, or a GGUF
    file, which transformers reads too.

    Attributes:
        path: the folder.
        gguf: name of the GGUF file in it, '' for none.
        adapters: folders of adapters that stand in for the model: `path` is their base.
    """

    path: Path
    gguf: str = ""
    adapters: tuple[Path, ...] = ()

    @classmethod
    def read(cls, path: Path | None) -> ModelFolder:
        """Find out what lies at `path`, and check that it is whole.

        Raises:
            ModelSourceError: nothing is there, it is no model's folder, its config cannot be read,
                or one of its weight files is missing or cut off.
        """
        if path is None:
            raise ModelSourceError("the backend transformers needs a model_path: a model's folder")
        if path.is_file() and path.suffix.lower() == ".gguf":
            _check_gguf(path)
            return cls(path.parent, gguf=path.name)
        if path.is_file():
            raise ModelSourceError(
                f"{path} is a file; the backend transformers takes a model's folder or a .gguf "
                "file (a Stable Diffusion checkpoint in one file becomes a folder by diffusers: "
                "StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER))"
            )
        if not path.is_dir():
            raise ModelSourceError(f"{path} does not exist on the worker's node")
        if (path / ADAPTER_CONFIG).is_file() and not (path / "config.json").is_file():
            base = cls.read(_base_of(path))
            return replace(base, adapters=(*base.adapters, path))
        folder = cls(path, gguf=_only_gguf(path))
        if folder.gguf:
            _check_gguf(path / folder.gguf)
        else:
            folder._check()
        return folder

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """`config.json`, or diffusers' `model_index.json`; empty for a GGUF."""
        if self.gguf:
            return {}
        file = self.path / "model_index.json"
        file = file if file.is_file() else self.path / "config.json"
        if not file.is_file() and self.is_sentence_transformer:
            return self._first_module_config()
        if not file.is_file():
            raise ModelSourceError(
                f"{self.path} has neither config.json nor model_index.json; it is no folder of "
                "transformers, sentence-transformers or diffusers"
            )
        return read_json(file)

    @property
    def architectures(self) -> list[str]:
        names = self.config.get("architectures") or [self.config.get("_class_name", "")]
        return [str(name) for name in names if name]

    @property
    def model_type(self) -> str:
        """`model_type` of the config, '' where it says none."""
        return str(self.config.get("model_type", ""))

    @property
    def own_code(self) -> bool:
        """The folder brings Python code for its model or its tokenizer."""
        return bool(self.config.get("auto_map"))

    @property
    def tokenizer_path(self) -> Path:
        """Where the tokenizer is: an adapter that brings one was trained with it."""
        own = (path for path in self.adapters if (path / "tokenizer_config.json").is_file())
        return next(own, self.path)

    @property
    def is_sentence_transformer(self) -> bool:
        return (self.path / "modules.json").is_file()

    @cached_property
    def saved_class(self) -> str:
        """The class of sentence-transformers that saved the folder, '' for none."""
        file = self.path / "config_sentence_transformers.json"
        if not self.is_sentence_transformer:
            return ""
        said = read_json(file).get("model_type") if file.is_file() else None
        return str(said or "SentenceTransformer")

    @cached_property
    def weight_files(self) -> list[Path]:
        """The files that will be read, in transformers' order of formats; some may be missing."""
        if self.gguf:
            return [self.path / self.gguf]
        for name in _ONE_OF:
            file = self.path / name
            if file.is_file():
                return _shards(file) if file.suffix == ".json" else [file]
        for pattern in _WEIGHTS:
            files = [*self.path.glob(pattern), *self.path.glob(f"*/{pattern}")]
            if files:
                return sorted(files)
        return []

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of the weight files."""
        return sum(file.stat().st_size for file in self.weight_files)

    def task(self, family: Family) -> TaskName:
        """What the folder does, by its type or, for `custom/auto`, by what it says of itself."""
        if family.task != "auto":
            return family.task
        if self.gguf:
            return "chat"
        if (self.path / "model_index.json").is_file():
            return "image"
        name = self.architectures[0] if self.architectures else ""
        if name.endswith(("ForSequenceClassification", "ForMultipleChoice")):
            return "rerank"
        if self.saved_class == "CrossEncoder":
            return "rerank"
        if self.is_sentence_transformer:
            return "embedding"
        if name.startswith("Whisper"):
            return "transcription"
        if name.startswith("Bark"):
            return "speech"
        if "vision_config" in self.config or "vision" in self.config:
            return "vision"
        if name.endswith(("ForCausalLM", "LMHeadModel")):
            return "chat"
        if name.endswith("Model") and not self.own_code:
            return "embedding"
        return "chat"

    def _first_module_config(self) -> Mapping[str, Any]:
        """Of a folder whose encoder lies in a folder of its own, or that has none."""
        files = sorted(self.path.glob("0*/config.json"))
        return read_json(files[0]) if files else {}

    def _check(self) -> None:
        """Raise for a folder that cannot be whole; the config's absence is found here, too."""
        assert isinstance(self.config, Mapping)
        if (self.path / "model_index.json").is_file():
            return
        files = self.weight_files
        if not files:
            raise ModelSourceError(
                f"{self.path} has a config but no weights (*.safetensors or pytorch_model.bin)"
            )
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise ModelSourceError(
                f"{self.path} lacks {len(missing)} of its {len(files)} weight files: "
                f"{', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}; "
                "fetch the model again"
            )
        for file in files:
            if file.suffix == ".safetensors":
                check_whole(file)
            elif _begins(file, _LFS_POINTER):
                raise _pointer(file)


def check_whole(file: Path) -> None:
    """Raise ModelSourceError for a safetensors file that was cut off."""
    size, promised = file.stat().st_size, _promised_size(file)
    if size < promised:
        raise ModelSourceError(
            f"{file} is cut off: it has {size:,} bytes, its header promises {promised:,}; "
            "fetch the model again"
        )


def tensors(file: Path) -> Iterator[tuple[str, str, list[int], int]]:
    """Name, dtype (`F32`, `BF16`, …), shape and bytes of each tensor of a safetensors file, by its
    header: https://huggingface.co/docs/safetensors/index#format.

    Raises:
        ModelSourceError: the file is none.
    """
    for name, entry in _header(file)[0].items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            yield name, entry["dtype"], entry["shape"], end - begin


def _promised_size(file: Path) -> int:
    header, begin = _header(file)
    ends = [e["data_offsets"][1] for name, e in header.items() if name != "__metadata__"]
    return begin + max(ends, default=0)


def _header(file: Path) -> tuple[dict[str, Any], int]:
    try:
        with file.open("rb") as stream:
            first = stream.read(8)
            if _LFS_POINTER.startswith(first) and first:
                raise _pointer(file)
            length = int.from_bytes(first, "little")
            if length > 100_000_000:
                raise ValueError(f"a header of {length:,} bytes")
            return json.loads(stream.read(length)), 8 + length
    except (OSError, ValueError, UnicodeDecodeError) as error:
        raise ModelSourceError(f"{file} is no safetensors file: {error}") from None


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ModelSourceError: there is none that can be read.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelSourceError(f"{file} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise ModelSourceError(f"{file} holds no JSON object")
    return value


def _shards(index: Path) -> list[Path]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict):
        raise ModelSourceError(f"{index} has no weight_map; fetch the model again")
    return [index.parent / name for name in sorted({str(name) for name in names.values()})]


def _check_gguf(file: Path) -> None:
    if _begins(file, _LFS_POINTER):
        raise _pointer(file)
    if not _begins(file, b"GGUF"):
        raise ModelSourceError(f"{file} is no GGUF file; fetch the model again")


def _begins(file: Path, start: bytes) -> bool:
    try:
        with file.open("rb") as stream:
            return stream.read(len(start)) == start
    except OSError as error:
        raise ModelSourceError(f"{file} cannot be read: {error.strerror}") from None


def _pointer(file: Path) -> ModelSourceError:
    return ModelSourceError(
        f"{file} is a pointer of Git LFS and no weights; run git lfs pull in its folder, or fetch "
        "the model again"
    )


def _base_of(adapter: Path) -> Path:
    name = str(read_json(adapter / ADAPTER_CONFIG).get("base_model_name_or_path") or "")
    base = Path(name).expanduser()
    if name and base.is_dir():
        return base
    raise ModelSourceError(
        f"{adapter} holds an adapter, whose base {name or '(not said)'} is no folder on the "
        "worker's node; deploy the base model's folder with --infer_params "
        f"lora_path={adapter}"
    )


def _only_gguf(path: Path) -> str:
    """The GGUF of a folder that has no config of its own."""
    if (path / "config.json").is_file() or (path / "model_index.json").is_file():
        return ""
    found = sorted(path.glob("*.gguf"))
    return found[0].name if len(found) == 1 else ""
