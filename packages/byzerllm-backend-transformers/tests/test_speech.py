"""Bark, from a deployment to sound: a tiny random one of real architecture."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from byzerllm import ByzerLLM
from byzerllm.errors import BackendError, ModelLoadError, ModelSourceError, ParameterError
from byzerllm.requests import GenerateChunk, SpeechRequest
from byzerllm.testing import Loaded
from byzerllm_backend_transformers.audio import WRITTEN, Encoder, Samples, read_audio
from byzerllm_backend_transformers.speech import parts_of
from hf_models import bark, causal
from hf_models.bark import RATE, VOICE


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bark.bark(tmp_path_factory.mktemp("bark") / "tiny")


@pytest.fixture(scope="module")
def model(load: Callable[..., Loaded], folder: Path) -> Loaded:
    return load(folder, model_type="bark", threads=1)


def say(model: Loaded, text: str = "hello there.", **fields: Any) -> list[GenerateChunk]:
    known = {k: fields.pop(k) for k in ("voice", "format", "stream", "speed") if k in fields}
    request = SpeechRequest(id="s", text=text, extra={"seed": 1, **fields}, **known)

    async def gather() -> list[GenerateChunk]:
        async with aclosing(model.backend.speak(request)) as chunks:
            return [chunk async for chunk in chunks]

    return model.run(gather())


def sound(model: Loaded, text: str = "hello there.", **fields: Any) -> Samples:
    audio = b"".join(chunk.audio for chunk in say(model, text, format="wav", **fields))
    return read_audio(audio, rate=RATE, max_seconds=60)


# The whole way.


def test_the_whole_way(folder: Path) -> None:
    llm = ByzerLLM(runtime="local").setup_infer_backend("transformers")
    meta = llm.deploy(
        model_path=str(folder),
        pretrained_model_type="bark",
        udf_name="voice",
        infer_params={"threads": 1, "seed": 3},
    )
    assert meta["architectures"] == ["BarkModel"]
    asked = {"input": "Hello there. How are you?", "voice": VOICE, "response_format": "wav"}
    talk = [{"role": "user", "content": json.dumps(asked)}]
    try:
        (answer,) = llm.chat_oai(talk, model="voice")
        whole = read_audio(base64.b64decode(answer.output), rate=RATE, max_seconds=60)
        assert np.abs(whole).max() > 0.001
        assert answer.metadata["format"] == "wav"
        pieces = list(llm.stream_chat_oai(talk, model="voice", delta_mode=True))
        streamed = b"".join(audio for audio, _ in pieces if audio)
        again = read_audio(streamed, rate=RATE, max_seconds=60)
        assert np.array_equal(again, whole)
        assert sum(1 for audio, _ in pieces if audio) >= 2
        with pytest.raises(ParameterError, match="the input is empty"):
            llm.chat_oai([{"role": "user", "content": '{"input": " "}'}], model="voice")
    finally:
        llm.undeploy("voice")


# What is spoken.


def test_sentences_are_sent_as_they_are_spoken(model: Loaded) -> None:
    chunks = say(model, "One. Two three! And four?", format="pcm", stream=True)
    assert [bool(chunk.audio) for chunk in chunks] == [True, True, True, False]
    assert chunks[-1].finish_reason == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.prompt_tokens > 10
    (whole,) = say(model, "One. Two three! And four?", format="pcm")
    assert whole.audio == b"".join(chunk.audio for chunk in chunks)


def test_seed_text_and_voice_matter(model: Loaded) -> None:
    first = sound(model)
    assert np.array_equal(first, sound(model))
    others: list[dict[str, Any]] = [
        {"seed": 2},
        {"text": "goodbye now."},
        {"voice": VOICE},
        {"voice": "narrator"},
        {"temperature": 0.3},
    ]
    sounds = [first, *(sound(model, **other) for other in others)]
    assert len({one.tobytes() for one in sounds}) == len(sounds)
    still = [sound(model, temperature=0, seed=seed) for seed in (1, 2)]
    # Of the three models the last draws by its own temperature.
    assert len(still[0]) == len(still[1])


def test_default_voice(model: Loaded) -> None:
    assert np.array_equal(sound(model, voice="default"), sound(model))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("One. Two!  Three?", ["One.", "Two!", "Three?"]),
        ("3.5 is a number", ["3.5 is a number"]),
        ("你好。很高兴！", ["你好。", "很高兴！"]),
        ("a line\n\nanother", ["a line", "another"]),
        ("one two, three four, five six", ["one two,", "three four,", "five six"]),
        ("one two three four five", ["one two", "three four", "five"]),
        ("unspeakably long", ["unspeakably", "long"]),
    ],
)
def test_parts(text: str, parts: list[str]) -> None:
    def fits(part: str) -> bool:
        return len(part) <= 15 and (part.count(" ") < 2 or part.startswith("3"))

    assert list(parts_of(text, fits)) == parts


def test_a_sentence_without_an_end(model: Loaded) -> None:
    task = model.backend.task
    text = "a" * 130
    parts = list(task._parts(text))
    assert [len(part) for part in parts] == [48, 48, 34]
    assert len(sound(model, text)) > len(sound(model, "a"))


@pytest.mark.parametrize("pieces", [False, True])
@pytest.mark.parametrize("format", WRITTEN)
def test_formats(format: str, pieces: bool) -> None:
    moments = np.arange(3 * RATE) / RATE
    tone = (0.5 * np.sin(2 * np.pi * 440 * moments)).astype(np.float32)
    encoder = Encoder(format, RATE, pieces=pieces)
    parts = [encoder.add(tone[:20_000]), encoder.add(tone[20_000:])]
    assert any(parts) == pieces
    audio = b"".join([*parts, encoder.finish()])
    if format == "pcm":
        heard: Any = np.frombuffer(audio, "<i2") / 32767
    else:
        heard = read_audio(audio, rate=RATE, max_seconds=10)
    # A stream of mp3 begins with the encoder's delay.
    assert len(heard) == pytest.approx(len(tone), abs=0.1 * RATE)
    strength = np.abs(np.fft.rfft(heard))
    assert np.argmax(strength) * RATE / len(heard) == pytest.approx(440, abs=1)


# Bad input, and what comes after it.


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"text": " \n"}, "input is empty"),
        ({"voice": "v2/en_speaker_2"}, r"did you mean 'v2/en_speaker_1'"),
        ({"voice": "../../secret"}, "allowed: default, narrator, v2/en_speaker_1"),
        ({"format": "aac"}, "writes flac, mp3, ogg, opus, pcm, wav"),
        ({"speed": 1.5}, "its own speed"),
        ({"temperature": -1}, "temperature"),
        ({"instructions": "be merry"}, "unknown parameter 'instructions'"),
    ],
)
def test_bad_values(model: Loaded, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ParameterError, match=said):
        say(model, **fields)
    assert say(model, "a", format="wav")[-1].finish_reason == "stop"


def test_folders(load: Callable[..., Loaded], tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="LlamaForCausalLM; bark needs a Bark model"):
        load(causal.save(tmp_path / "llama"), model_type="bark")
    voiceless = load(bark.bark(tmp_path / "voiceless", voices=False), threads=1)
    with pytest.raises(ParameterError, match=r"allowed: default$"):
        say(voiceless, voice="narrator")
    assert len(sound(voiceless))
    (voiceless.backend.task.folder.path / "cut.npz").write_bytes(b"PK\3\4")
    other = load(voiceless.backend.task.folder.path, threads=1)
    with pytest.raises(ModelSourceError, match="cannot be read"):
        say(other, voice="cut")


def test_a_table_stays_in_its_folder(load: Callable[..., Loaded], tmp_path: Path) -> None:
    folder = bark.bark(tmp_path / "bark")
    table = {"spy": {"semantic_prompt": "../../etc/passwd"}}
    (folder / "speaker_embeddings_path.json").write_text(json.dumps(table))
    with pytest.raises(ModelSourceError, match="outside of the folder"):
        say(load(folder, threads=1), voice="spy")


@pytest.mark.parametrize("part", ["semantic", "coarse_acoustics", "fine_acoustics"])
def test_a_listener_that_leaves_stops_the_model(
    model: Loaded, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    steps = 0
    speaking = threading.Event()
    one = getattr(model.backend.task._model, part)
    compute = one.forward

    def slow(*arguments: Any, **options: Any) -> Any:
        nonlocal steps
        steps += 1
        speaking.set()
        time.sleep(0.02)
        return compute(*arguments, **options)

    monkeypatch.setattr(one, "forward", slow)
    request = SpeechRequest(id="s", text="hello. " * 50, format="wav", extra={"seed": 1})

    async def leave() -> int:
        async def listen() -> None:
            async with aclosing(model.backend.speak(request)) as chunks:
                async for _ in chunks:
                    pass

        work = asyncio.ensure_future(listen())
        await asyncio.to_thread(speaking.wait, 30)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        seen = steps
        await asyncio.wait_for(model.backend.tokenize("a"), 10)
        return steps - seen

    assert model.run(leave()) <= 2


def test_not_enough_memory_is_named(model: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    codec = model.backend.task._model
    monkeypatch.setattr(codec, "codec_decode", lambda *given: torch.empty(1 << 60))
    with pytest.raises(BackendError, match="not enough memory"):
        say(model)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Small matrices are slower on two."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
