"""Whisper, from a deployment to text: a tiny random one, and the real base model."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import transformers

from byzerllm import ByzerLLM
from byzerllm.errors import BackendError, CapabilityError, ModelLoadError, ParameterError
from byzerllm.requests import EmbedRequest, TranscribeRequest, TranscribeResult
from byzerllm.testing import Loaded
from byzerllm_backend_transformers.audio import read_audio
from hf_models import causal, whisper
from hf_models.whisper import RATE, Samples

GERMAN = "Guten Morgen, wie geht es Ihnen heute?"
SPANISH = "Buenos días, mi hermano vive en Madrid."


def noise(seconds: float, rate: int = RATE) -> Samples:
    return np.random.default_rng(0).normal(0, 0.1, int(seconds * rate)).astype(np.float32)


def file(samples: Samples, format: str = "WAV", rate: int = RATE, **more: Any) -> bytes:
    target = io.BytesIO()
    soundfile.write(target, samples, rate, format=format, **more)
    return target.getvalue()


def hear(model: Loaded, audio: bytes, **fields: Any) -> TranscribeResult:
    known = {name: fields.pop(name) for name in ("language", "prompt") if name in fields}
    request = TranscribeRequest(id="t", audio=audio, extra=fields, **known)
    result: TranscribeResult = model.run(model.backend.transcribe(request))
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whisper.tiny_whisper(tmp_path_factory.mktemp("whisper") / "tiny")


@pytest.fixture(scope="module")
def model(load: Callable[..., Loaded], folder: Path) -> Loaded:
    return load(folder, model_type="whisper", threads=1, max_audio_seconds=100)


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[ByzerLLM]:
    llm = ByzerLLM(runtime="local").setup_infer_backend("transformers")
    llm.deploy(
        model_path=str(folder),
        pretrained_model_type="whisper",
        udf_name="ear",
        infer_params={"threads": 1},
    )
    yield llm
    llm.undeploy("ear")


# The whole way.


def said_as(form: str, audio: bytes) -> Any:
    encoded = base64.b64encode(audio).decode()
    return {
        "base64": encoded,
        "data URL": f"data:audio/wav;base64,{encoded}",
        "part": [{"type": "input_audio", "input_audio": {"data": encoded, "format": "wav"}}],
        "JSON": json.dumps({"input": encoded}),
    }[form]


@pytest.mark.parametrize("form", ["base64", "data URL", "part", "JSON"])
def test_the_whole_way(llm: ByzerLLM, form: str) -> None:
    talk = [{"role": "user", "content": said_as(form, file(noise(1)))}]
    config = {"language": "de", "temperature": 0}
    (answer,) = llm.chat_oai(talk, model="ear", llm_config=config)
    assert answer.output
    assert answer.metadata["language"] == "de"
    assert answer.metadata["duration"] == 1
    segments = answer.metadata["segments"]
    assert "".join(segment["text"] for segment in segments).strip() == answer.output
    assert all(0 <= one["start"] <= one["end"] <= 1 for one in segments)
    *_, (streamed, meta) = llm.stream_chat_oai(talk, model="ear", llm_config=config)
    assert streamed == answer.output
    assert meta is not None


def test_meta(llm: ByzerLLM) -> None:
    meta = llm.get_meta("ear")
    assert meta["architectures"] == ["WhisperForConditionalGeneration"]
    assert meta["backend"] == "transformers"


def test_text_is_none_to_hear(llm: ByzerLLM) -> None:
    for content in ("What is the capital of France?", [{"type": "text", "text": "hello"}]):
        with pytest.raises(ParameterError, match="audio"):
            llm.chat_oai([{"role": "user", "content": content}], model="ear")
    with pytest.raises(ParameterError, match="nothing is fetched"):
        llm.chat_oai([{"role": "user", "content": "https://example.com/hello.wav"}], model="ear")


# What is heard.


def test_tokens_are_those_of_generate(model: Loaded, folder: Path) -> None:
    bare = transformers.WhisperForConditionalGeneration.from_pretrained(folder)
    features = transformers.WhisperFeatureExtractor.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for seconds in (2, 70):
        samples = noise(seconds)
        inputs = features(
            samples,
            sampling_rate=RATE,
            return_tensors="pt",
            truncation=False,
            padding="longest" if seconds > 30 else "max_length",
        )["input_features"]
        expected = bare.generate(
            inputs, language="fr", task="transcribe", return_timestamps=True, temperature=0.0
        )
        text = tokenizer.decode(expected[0], skip_special_tokens=True)
        heard = hear(model, file(samples, subtype="FLOAT"), language="fr", temperature=0)
        assert heard.text == text.strip()
        assert heard.duration == seconds
        assert len(heard.segments) >= 1 + (seconds > 30)
        starts = [segment["start"] for segment in heard.segments]
        assert starts == sorted(starts)
        assert (starts[-1] > 30) == (seconds > 60)


@pytest.mark.parametrize(
    ("format", "subtype"),
    [("WAV", "PCM_24"), ("FLAC", None), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)],
)
def test_formats_and_rates(format: str, subtype: str | None) -> None:
    rate = 48_000
    time_ = np.arange(2 * rate) / rate
    tone = (0.5 * np.sin(2 * np.pi * 440 * time_)).astype(np.float32)
    both = np.stack([tone, np.zeros_like(tone)], axis=1)
    audio = file(both, format, rate, subtype=subtype)  # type: ignore[arg-type]
    samples = read_audio(audio, rate=RATE, max_seconds=10)
    assert len(samples) == pytest.approx(2 * RATE, rel=0.01)
    strength = np.abs(np.fft.rfft(samples))
    loudest = np.argmax(strength) * RATE / len(samples)
    assert loudest == pytest.approx(440, abs=1)
    assert np.abs(samples[4000:-4000]).max() == pytest.approx(0.25, rel=0.1)


def test_language_is_found_or_asked_for(model: Loaded) -> None:
    audio = file(noise(1))
    assert hear(model, audio, temperature=0).language in ("en", "de", "fr", "zh")
    for asked, code in (("fr", "fr"), ("German", "de"), ("zh-CN", "zh"), ("EN", "en")):
        assert hear(model, audio, language=asked, temperature=0).language == code
    with pytest.raises(ParameterError, match=r"'frensh' \(did you mean 'french'\?\)"):
        hear(model, audio, language="frensh")


def test_language_task_and_prompt_matter(model: Loaded) -> None:
    audio = file(noise(1))
    texts = [
        hear(model, audio, language="de", temperature=0, **more).text
        for more in ({}, {"task": "translate"}, {"prompt": "abc"}, {"prompt": "z" * 500})
    ]
    assert len(set(texts)) == 4


def test_seed_repeats(model: Loaded) -> None:
    audio = file(noise(1))
    texts = [hear(model, audio, language="de", temperature=1, seed=seed).text for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_an_english_model(load: Callable[..., Loaded], tmp_path: Path) -> None:
    model = load(whisper.tiny_whisper(tmp_path / "en", multilingual=False), threads=1)
    for language in ("", "en"):
        heard = hear(model, file(noise(1)), language=language, temperature=0)
        assert heard.text
        assert heard.language == "en"
    with pytest.raises(ParameterError, match="English and no more"):
        hear(model, file(noise(1)), language="de")


# Bad input, and what comes after it.


def broken() -> dict[str, tuple[bytes, str]]:
    wav = file(noise(1))
    bad = np.full(100, np.nan, np.float32)
    return {
        "nothing": (b"", "it is empty"),
        "no seconds": (file(np.zeros(0, np.float32)), "0 s of sound"),
        "a text": (b"hello, I am no sound", "no audio file that can be read"),
        "half a head": (wav[:20], "no audio file that can be read|0 s of sound"),
        "noise for a flac": (b"fLaC" + wav[44:2000], "no audio file that can be read"),
        "no numbers": (file(bad, subtype="FLOAT"), "no numbers"),
        "too long": (file(np.zeros(8000 * 101, np.float32), "FLAC", 8000), "longer than 100 s"),
        "too slow": (file(np.zeros(100, np.float32), rate=10), "10 samples a second"),
    }


@pytest.mark.parametrize("name", list(broken()))
def test_bad_audio_is_one_clear_error(model: Loaded, name: str) -> None:
    audio, said = broken()[name]
    with pytest.raises(ParameterError, match=said) as caught:
        hear(model, audio)
    assert caught.value.parameter == "audio"
    assert hear(model, file(noise(0.1)), language="de", temperature=0).duration == 0.1


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"task": "summarize"}, "one of transcribe, translate"),
        ({"temperature": 3}, "temperature"),
        ({"tempurature": 1}, "did you mean 'temperature'"),
        ({"prompt": "<|startoftranscript|>"}, "prompt"),
    ],
)
def test_bad_values(model: Loaded, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ParameterError, match=said):
        hear(model, file(noise(1)), **fields)


def test_what_it_cannot_do(model: Loaded) -> None:
    with pytest.raises(CapabilityError):
        model.run(model.backend.embed(EmbedRequest(id="e", texts=["a"])))


def test_a_folder_of_another_type(load: Callable[..., Loaded], tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="LlamaForCausalLM; whisper needs a Whisper model"):
        load(causal.save(tmp_path), model_type="whisper")


def test_a_caller_that_leaves_stops_the_model(
    model: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 0
    listening = threading.Event()
    decoder = model.backend.task._model.model.decoder
    compute = decoder.forward

    def slow(*arguments: Any, **options: Any) -> Any:
        nonlocal steps
        steps += 1
        listening.set()
        time.sleep(0.02)
        return compute(*arguments, **options)

    monkeypatch.setattr(decoder, "forward", slow)
    request = TranscribeRequest(id="t", audio=file(noise(90)), language="de")

    async def leave() -> int:
        work = asyncio.ensure_future(model.backend.transcribe(request))
        await asyncio.to_thread(listening.wait, 30)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        seen = steps
        # The thread is free again as soon as the token is done.
        await asyncio.wait_for(model.backend.tokenize("a"), 10)
        return steps - seen

    assert model.run(leave()) <= 2


def test_several_callers(model: Loaded) -> None:
    audios = [file(noise(seconds)) for seconds in (1, 2, 3)]
    alone = [hear(model, audio, language="de", temperature=0).text for audio in audios]

    async def together() -> list[TranscribeResult]:
        requests = [
            TranscribeRequest(id=f"t{n}", audio=audio, language="de", extra={"temperature": 0})
            for n, audio in enumerate(audios)
        ]
        return await asyncio.gather(*(model.backend.transcribe(one) for one in requests))

    assert [heard.text for heard in model.run(together())] == alone


def test_not_enough_memory_is_named(model: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = model.backend.task._model.get_encoder()

    def full(*arguments: Any, **options: Any) -> Any:
        return torch.empty(1 << 60)

    monkeypatch.setattr(encoder, "forward", full)
    with pytest.raises(BackendError, match="not enough memory"):
        hear(model, file(noise(1)))


# The real model.


@pytest.fixture(scope="module")
def real(load: Callable[..., Loaded]) -> Loaded:
    return load(whisper.whisper_base(), model_type="whisper")


@pytest.mark.model
def test_real_whisper_writes_down_what_was_said(real: Loaded) -> None:
    samples = whisper.spoken(SPANISH, "es")
    heard = hear(real, file(samples))
    assert heard.text == SPANISH
    assert heard.language == "es"
    assert heard.segments[-1]["end"] == pytest.approx(len(samples) / RATE, abs=0.3)


@pytest.mark.model
def test_real_whisper_over_windows(real: Loaded) -> None:
    """A sentence at the begin and one in the second window, silence between them."""
    first, second = whisper.spoken(GERMAN, "de"), whisper.spoken(GERMAN, "de")
    silence = np.zeros(int(RATE * 31) - len(first), np.float32)
    heard = hear(real, file(np.concatenate([first, silence, second])), temperature=0)
    assert heard.text.startswith(f"{GERMAN} Guten Morgen, wie geht es ")
    assert heard.language == "de"
    assert heard.segments[0]["end"] < 4
    assert heard.segments[-1]["start"] == pytest.approx(31, abs=1.1)
