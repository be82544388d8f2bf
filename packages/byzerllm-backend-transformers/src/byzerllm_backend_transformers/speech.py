"""Bark: text in, speech out, a sentence after the other.

Bark speaks some 14 s at a time; a longer text is parted where sentences end, and each part is sent
as soon as it is spoken.
"""

from __future__ import annotations

import asyncio
import functools
import random
import re
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Self

import msgspec
import numpy as np
import torch
import transformers
from msgspec import Meta, Struct

from byzerllm.errors import ModelLoadError, ParameterError, RequestCancelledError, listed
from byzerllm.requests import GenerateChunk, ModelMeta, SpeechRequest, Usage
from byzerllm_backend_transformers.audio import WRITTEN, Encoder, Samples
from byzerllm_backend_transformers.loading import check_trust, explained, load
from byzerllm_backend_transformers.stopping import Watch
from byzerllm_backend_transformers.tasks import Loading, Task
from byzerllm_backend_transformers.voices import Voice, Voices

_PART_TOKENS = 60
"""Most tokens of a part: what is spoken in some 14 s, Bark's longest."""
_PAUSE = 0.25
"""Seconds of silence between parts."""
# A sentence's end: marks that a space follows, CJK marks, lines; then weaker ones.
_ENDS = (
    re.compile(r"(?<=[.!?…])\s+|(?<=[。！？])|\n+"),
    re.compile(r"(?<=[,;:])\s+|(?<=[，；：、])"),
    re.compile(r"\s+"),
)


class Options(Struct, kw_only=True, forbid_unknown_fields=True):
    """What a request may say besides text, voice and format.

    Attributes:
        temperature: of the words' and the sound's tokens; 0 takes the most probable ones. None is
            the folder's own.
        seed: makes the same speech again.
    """

    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    seed: int | None = None

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> Options:
        """Raises ParameterError for an unknown name or a wrong value."""
        allowed = [*cls.__struct_fields__, "voice", "response_format"]
        values = {name: value for name, value in given.items() if value is not None}
        for name, value in values.items():
            if name not in cls.__struct_fields__:
                raise ParameterError.unknown(name, allowed, where="speech")
            try:
                msgspec.convert({name: value}, cls, strict=False)
            except msgspec.ValidationError as error:
                reason = f"{str(error).split(' - at ')[0]} (got {value!r})"
                raise ParameterError.invalid(name, reason, where="speech") from None
        return msgspec.convert(values, cls, strict=False)


class Speech(Task):
    """One Bark model, which speaks one part of one text at a time."""

    capability: ClassVar[str] = "speech"

    def __init__(self, loading: Loading, model: Any, tokenizer: Any, voices: Voices) -> None:
        super().__init__(loading)
        self._model = model
        self._tokenizer = tokenizer
        self._voices = voices
        config = model.generation_config
        self._rate = int(config.sample_rate)
        self._length = int(config.semantic_config["max_input_semantic_length"])
        self._part_tokens = min(_PART_TOKENS, self._length)
        self._left = threading.Event()
        self._watch_windows(model.fine_acoustics)

    @classmethod
    def load(cls, loading: Loading) -> Self:
        check_trust(loading)
        folder = loading.folder
        if folder.model_type != "bark":
            what = ", ".join(folder.architectures) or folder.model_type or "a model of unknown type"
            raise ModelLoadError(
                f"{folder.path} holds {what}; {loading.family.type} needs a Bark model (BarkModel)"
            )
        loading.report("loading the tokenizer")
        with explained(loading):
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                folder.path, local_files_only=True
            )
        voices = Voices(folder.path)
        model = load(loading, transformers.BarkModel.from_pretrained, complete=True)
        if not getattr(model.generation_config, "semantic_config", None):
            raise ModelLoadError(
                f"{folder.path} has no generation_config.json of Bark; fetch the model again"
            )
        return cls(loading, model.eval(), tokenizer, voices)

    async def speak(self, request: SpeechRequest) -> AsyncGenerator[GenerateChunk, None]:
        """Speak a text; leaving the iterator stops it within a token.

        Raises:
            ParameterError: an empty text, a voice that the folder does not have, a format that is
                not written here, or another bad value.
            RequestCancelledError: the model was closed.
            BackendError: not enough memory.
        """
        self.check_open()
        options, format_ = Options.parse(request.extra), _format_of(request)
        if not request.text.strip():
            raise ParameterError("the input is empty", parameter="input")
        voice = await asyncio.to_thread(self._voices.read, request.voice)
        seed = options.seed if options.seed is not None else self.parameters.seed
        seed = random.getrandbits(63) if seed is None else seed
        encoder = Encoder(format_, self._rate, pieces=request.stream)
        left = threading.Event()
        spoken = 0
        try:
            parts = await asyncio.to_thread(lambda: list(self._parts(request.text)))
            for number, ids in enumerate(parts):
                work = functools.partial(self._say, ids, voice, options, seed + number, left)
                samples = await self.compute(work)
                spoken += len(ids)
                if number:
                    samples = np.concatenate([self._silence(), samples])
                audio = await asyncio.to_thread(encoder.add, samples)
                if audio:
                    yield GenerateChunk(audio=audio)
            audio = await asyncio.to_thread(encoder.finish)
            usage = Usage(prompt_tokens=spoken)
            yield GenerateChunk(audio=audio, finish_reason="stop", usage=usage)
        finally:
            left.set()

    async def tokenize(self, text: str) -> list[int]:
        return await self.compute(self._ids, text)

    async def meta(self) -> ModelMeta:
        return ModelMeta(
            model_deploy_type="proprietary",
            backend="transformers",
            architectures=self.folder.architectures,
            model_name=self.folder.path.name,
            task="speech",
        )

    def free(self) -> None:
        self._model = None

    def _say(
        self,
        ids: list[int],
        voice: Voice | None,
        options: Options,
        seed: int,
        left: threading.Event,
    ) -> Samples:
        """One part; on the model's thread."""
        self._left = left
        self._check_wanted()
        device = self._model.device
        padded = torch.zeros((1, self._length), dtype=torch.long, device=device)
        padded[0, : len(ids)] = torch.tensor(ids[: self._length], device=device)
        mask = (torch.arange(self._length, device=device) < len(ids)).long()[None]
        history = None
        if voice is not None:
            history = {name: torch.tensor(one, device=device) for name, one in voice.items()}
        devices = [device.index or 0] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.inference_mode():
            torch.manual_seed(seed)
            sound = self._model.generate(
                padded,
                attention_mask=mask,
                history_prompt=history,
                stopping_criteria=[Watch(self._check_wanted)],
                # A part that nothing is said to would have no sound to put together.
                semantic_min_new_tokens=2,
                **_sampling(options),
            )
        samples: Samples = sound[0].float().cpu().numpy()
        return samples

    def _watch_windows(self, model: Any) -> None:
        """The last of the three models has no stopping criteria, and calls its own `forward`, which
        hooks do not see."""
        compute = model.forward

        def forward(*arguments: Any, **options: Any) -> Any:
            self._check_wanted()
            return compute(*arguments, **options)

        model.forward = forward

    def _check_wanted(self) -> None:
        if self.closed:
            raise RequestCancelledError("the model was closed while it spoke")
        if self._left.is_set():
            raise RequestCancelledError("its caller left")

    def _silence(self) -> Samples:
        return np.zeros(int(self._rate * _PAUSE), np.float32)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _parts(self, text: str) -> Iterator[list[int]]:
        """The tokens of each sentence of a text; long ones are parted at weaker marks, at words, at
        last between any tokens."""
        for sentence in parts_of(text, self._fits):
            ids = self._ids(sentence)
            for start in range(0, len(ids), self._part_tokens):
                yield ids[start : start + self._part_tokens]

    def _fits(self, text: str) -> bool:
        return len(self._ids(text)) <= self._part_tokens


def parts_of(text: str, fits: Callable[[str], bool], level: int = 0) -> Iterator[str]:
    """A text parted at its sentences' ends, what does not fit at weaker marks. Pieces below a
    sentence are put together again as far as they fit."""
    if level == len(_ENDS):
        yield text
        return
    held = ""
    for piece in (one.strip() for one in _ENDS[level].split(text)):
        if not piece:
            continue
        joined = f"{held} {piece}".strip()
        if level and fits(joined):
            held = joined
            continue
        if held:
            yield held
        held = ""
        if fits(piece):
            held = piece if level else ""
            if not level:
                yield piece
        else:
            yield from parts_of(piece, fits, level + 1)
    if held:
        yield held


def _sampling(options: Options) -> dict[str, Any]:
    if options.temperature is None:
        return {}
    if options.temperature == 0:
        return {"do_sample": False, "fine_temperature": None}
    return {"do_sample": True, "temperature": options.temperature}


def _format_of(request: SpeechRequest) -> str:
    name = request.format.lower().removeprefix(".") or "mp3"
    if name not in WRITTEN:
        reason = f"this model writes {listed(WRITTEN)} (got {request.format!r})"
        raise ParameterError.invalid("response_format", reason, where="speech")
    if request.speed != 1.0:
        reason = f"Bark speaks at its own speed, 1.0 (got {request.speed:g})"
        raise ParameterError.invalid("speed", reason, where="speech")
    return name
