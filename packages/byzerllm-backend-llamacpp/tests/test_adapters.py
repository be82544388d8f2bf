"""LoRA adapters: a small one is written by hand and changes what the model says."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.model

PROMPT = "The capital of France is"
WIDTH, RANK, ALIGNMENT = 576, 2, 32
STRING, FLOAT32, TENSOR_F32 = 8, 6, 0


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def adapter(path: Path, tensors: dict[str, np.ndarray[Any, Any]]) -> Path:
    """A LoRA adapter for a Llama model as GGUF version 3."""
    pairs = [
        text(key) + struct.pack("<I", STRING) + text(value)
        for key, value in (
            ("general.type", "adapter"),
            ("general.architecture", "llama"),
            ("adapter.type", "lora"),
        )
    ]
    pairs.append(text("adapter.lora.alpha") + struct.pack("<If", FLOAT32, float(RANK)))
    infos, data = b"", b""
    for name, tensor in tensors.items():
        rows, columns = tensor.shape
        infos += text(name) + struct.pack("<IQQIQ", 2, columns, rows, TENSOR_F32, len(data))
        data += tensor.astype("<f4").tobytes()
        data += bytes(-len(data) % ALIGNMENT)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs)) + b"".join(pairs) + infos
    path.write_bytes(head + bytes(-len(head) % ALIGNMENT) + data)
    return path


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dice = np.random.default_rng(0)
    tensors = {}
    for layer in range(30):
        name = f"blk.{layer}.attn_output.weight"
        tensors[f"{name}.lora_a"] = dice.normal(0, 0.3, (RANK, WIDTH))
        tensors[f"{name}.lora_b"] = dice.normal(0, 0.3, (WIDTH, RANK))
    return adapter(tmp_path_factory.mktemp("lora") / "noise.gguf", tensors)


def first(model: Any) -> float:
    """Log-probability of the likeliest next token."""
    return float(model.ask(prompt=PROMPT, max_tokens=1, logprobs=0).logprobs[0].logprob)


def test_an_adapter_acts_by_its_scale(load: Callable[..., Any], model: Any, lora: Path) -> None:
    options = {"n_ctx": 256, "concurrency": 1}
    plain = first(model)
    off = first(load(lora_path=str(lora), lora_scale=0, **options))
    on = first(load(lora_path=str(lora), **options))
    both = first(load(lora_path=f"{lora},{lora}", lora_scale="1,-1", **options))
    assert off == pytest.approx(plain, abs=0.02)
    assert abs(on - plain) > 0.1
    assert both == pytest.approx(plain, abs=0.05)
