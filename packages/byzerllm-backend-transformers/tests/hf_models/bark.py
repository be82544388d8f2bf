"""A random Bark of real architecture: three small transformers and Encodec."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

RATE = 24_000
VOICE = "v2/en_speaker_1"
_LETTERS = "abcdefghijklmnopqrstuvwxyz.,!?'"
_CODES = 32
_SEMANTIC = 100
_TEXT = 48


def bark(folder: Path, *, voices: bool = True, sentence: int = 12) -> Path:
    """Writes the model; a part has `sentence` semantic tokens, a fiftieth of a second each."""
    words = ["[PAD]", "[UNK]", *_LETTERS, *(f"##{letter}" for letter in _LETTERS)]
    pieces = models.WordPiece(
        {word: i for i, word in enumerate(words)}, unk_token="[UNK]", max_input_chars_per_word=200
    )
    core = Tokenizer(pieces)
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]"
    )
    # Semantic tokens, their end, then the text's; the first model's last two are pad and infer.
    offset, vocabulary = _SEMANTIC + 4, _SEMANTIC + 4 + len(words) + 2
    size: dict[str, Any] = {
        "hidden_size": 16,
        "num_layers": 1,
        "num_heads": 2,
        "block_size": 256,
        "initializer_range": 0.6,
    }
    coarse = _SEMANTIC + 2 * _CODES + 3
    config = transformers.BarkConfig(
        semantic_config={
            **size,
            "input_vocab_size": vocabulary,
            "output_vocab_size": _SEMANTIC + 1,
        },
        coarse_acoustics_config={
            **size,
            "input_vocab_size": coarse,
            "output_vocab_size": coarse,
        },
        fine_acoustics_config={
            **size,
            "input_vocab_size": _CODES + 1,
            "output_vocab_size": _CODES + 1,
            "n_codes_total": 8,
            "n_codes_given": 1,
        },
        codec_config={
            "model_type": "encodec",
            "sampling_rate": RATE,
            "codebook_size": _CODES,
            "hidden_size": 16,
            "codebook_dim": 16,
            "num_filters": 4,
            "target_bandwidths": [6.0],
            "num_lstm_layers": 1,
        },
        initializer_range=0.3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.BarkModel(config).eval()
        for book in model.codec_model.quantizer.layers:
            book.codebook.embed.normal_()
    model.generation_config = transformers.GenerationConfig(
        semantic_config={
            "eos_token_id": _SEMANTIC,
            "semantic_pad_token": _SEMANTIC,
            "semantic_vocab_size": _SEMANTIC,
            "text_encoding_offset": offset,
            "text_pad_token": vocabulary - 2,
            "semantic_infer_token": vocabulary - 1,
            "max_input_semantic_length": _TEXT,
            "max_new_tokens": sentence,
            "do_sample": True,
            "semantic_rate_hz": 50,
        },
        coarse_acoustics_config={
            "coarse_semantic_pad_token": coarse - 3,
            "coarse_infer_token": coarse - 2,
            "max_coarse_input_length": 32,
            "max_coarse_history": 60,
            "sliding_window_len": 20,
            "do_sample": True,
            "coarse_rate_hz": 75,
            "n_coarse_codebooks": 2,
        },
        fine_acoustics_config={
            "max_fine_history_length": 32,
            "max_fine_input_length": 64,
            "n_fine_codebooks": 8,
            "temperature": 0.5,
        },
        sample_rate=RATE,
        codebook_size=_CODES,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if voices:
        _voices(folder, tokenizer)
    return folder


def _voices(folder: Path, tokenizer: Any) -> None:
    """One as transformers writes it, one as Bark's authors do."""
    import json

    random = np.random.default_rng(0)
    parts = {
        "semantic_prompt": random.integers(0, _SEMANTIC, 30),
        "coarse_prompt": random.integers(0, _CODES, (2, 45)),
        "fine_prompt": random.integers(0, _CODES, (8, 45)),
    }
    where = folder / "speaker_embeddings"
    (where / "v2").mkdir(parents=True)
    table = {}
    for name, part in parts.items():
        np.save(where / f"{VOICE}_{name}.npy", part)
        table[name] = f"speaker_embeddings/{VOICE}_{name}.npy"
    (folder / "speaker_embeddings_path.json").write_text(
        json.dumps({"repo_or_path": "bark", VOICE: table})
    )
    np.savez(where / "narrator.npz", **{k: v[..., ::-1] for k, v in parts.items()})
