"""Whisper and Bark of one server, by OpenAI's client."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import openai
import pytest
import soundfile

from byzerllm_backend_transformers.audio import read_audio
from hf_models import bark, whisper

CONFIG = """
version: 1
models:
  ear:
    pretrained_model_type: whisper
    infer_backend: transformers
    model_path: {ear}
    infer_params: {{threads: 1}}
  voice:
    pretrained_model_type: bark
    infer_backend: transformers
    model_path: {voice}
    infer_params: {{threads: 1, seed: 1}}
"""


def test_speech_over_http(tmp_path: Path) -> None:
    pytest.importorskip("byzerllm_server")
    from server_process import running

    file = tmp_path / "byzerllm.yaml"
    ear, voice = whisper.tiny_whisper(tmp_path / "ear"), bark.bark(tmp_path / "voice")
    file.write_text(CONFIG.format(ear=ear, voice=voice))
    with (
        running("--runtime", "local", "--config", str(file), OMP_NUM_THREADS="1") as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        spoken = client.audio.speech.create(
            model="voice",
            input="Hello there. How are you?",
            voice="narrator",
            response_format="wav",
        ).content
        sound = read_audio(spoken, rate=16_000, max_seconds=60)
        with client.audio.speech.with_streaming_response.create(
            model="voice", input="Hello there.", voice="default", response_format="mp3"
        ) as response:
            streamed = b"".join(response.iter_bytes())
        assert len(read_audio(streamed, rate=16_000, max_seconds=60)) > 1000
        heard = client.audio.transcriptions.create(
            model="ear", file=("speech.wav", spoken), response_format="verbose_json", language="de"
        )
        assert heard.text
        assert heard.language == "de"
        assert heard.duration == pytest.approx(len(sound) / 16_000, abs=0.01)
        assert heard.segments
        silence = io.BytesIO()
        soundfile.write(silence, np.zeros(0, np.float32), 16_000, format="WAV")
        for bad, said in ((b"no sound", "no audio file"), (silence.getvalue(), "0 s of sound")):
            with pytest.raises(openai.BadRequestError, match=said):
                client.audio.transcriptions.create(model="ear", file=("speech.wav", bad))
        with pytest.raises(openai.BadRequestError, match="unknown to this model"):
            client.audio.speech.create(model="voice", input="Hello", voice="nobody")
