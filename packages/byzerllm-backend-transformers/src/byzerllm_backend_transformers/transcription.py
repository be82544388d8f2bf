"""Whisper: recordings in, text with times out.

Long recordings are gone through in windows of 30 s, as the authors of Whisper do it (Radford et
al., Robust Speech Recognition via Large-Scale Weak Supervision, 2022, section 3.8).
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

import msgspec
import torch
import transformers
from msgspec import Meta, Struct
from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

from byzerllm.errors import ModelLoadError, ParameterError, RequestCancelledError, did_you_mean
from byzerllm.recordings import recording_in
from byzerllm.requests import (
    GenerateChunk,
    GenerateRequest,
    ModelMeta,
    TranscribeRequest,
    TranscribeResult,
    Usage,
)
from byzerllm_backend_transformers.audio import Samples, read_audio
from byzerllm_backend_transformers.loading import check_trust, explained, load
from byzerllm_backend_transformers.stopping import Watch
from byzerllm_backend_transformers.tasks import Loading, Task

_TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Tried one after the other while a window's text is improbable or repeats itself: Whisper's own.
The thresholds beside them are, too; transformers' ratio is of tokens, Whisper's of text."""
_THRESHOLDS = {
    "compression_ratio_threshold": 1.35,
    "logprob_threshold": -1.0,
    "no_speech_threshold": 0.6,
}
_TASKS = ("transcribe", "translate")


class Options(Struct, kw_only=True, forbid_unknown_fields=True):
    """What a request may say besides language and prompt.

    Attributes:
        task: `translate` writes down in English what was said in another language.
        temperature: of all windows; None begins at 0 and rises where a text fails.
        seed: makes temperatures above 0 repeatable.
    """

    task: str = "transcribe"
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    seed: int | None = None

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> Options:
        """Raises ParameterError for an unknown name or a wrong value."""
        where = "transcription"
        for name in given:
            if name not in cls.__struct_fields__:
                allowed = [*cls.__struct_fields__, "language", "prompt"]
                raise ParameterError.unknown(name, allowed, where=where)
        values = {name: value for name, value in given.items() if value is not None}
        for name, value in values.items():
            try:
                msgspec.convert({name: value}, cls, strict=False)
            except msgspec.ValidationError as error:
                reason = f"{str(error).split(' - at ')[0]} (got {value!r})"
                raise ParameterError.invalid(name, reason, where=where) from None
        options = msgspec.convert(values, cls, strict=False)
        if options.task not in _TASKS:
            reason = f"one of {', '.join(_TASKS)} (got {options.task!r})"
            raise ParameterError.invalid("task", reason, where=where)
        return options


@dataclass(frozen=True)
class _Call:
    """One request on the model's thread.

    Attributes:
        language: its code; '' is to be found out.
        left: the caller is gone.
    """

    samples: Samples
    language: str
    prompt: str
    options: Options
    left: threading.Event


class Transcription(Task):
    """One Whisper model, which answers one request at a time."""

    capability: ClassVar[str] = "transcription"

    def __init__(self, loading: Loading, model: Any, features: Any, tokenizer: Any) -> None:
        super().__init__(loading)
        self._model = model
        self._features = features
        self._tokenizer = tokenizer
        config = model.generation_config
        names = getattr(config, "lang_to_id", None) or {}
        self._languages = {int(token): name.strip("<|>") for name, token in names.items()}
        self._multilingual = bool(getattr(config, "is_multilingual", bool(names)) and names)
        self._first_special = int(tokenizer.eos_token_id)

    @classmethod
    def load(cls, loading: Loading) -> Self:
        check_trust(loading)
        folder = loading.folder
        if folder.model_type != "whisper":
            what = ", ".join(folder.architectures) or folder.model_type or "a model of unknown type"
            raise ModelLoadError(
                f"{folder.path} holds {what}; {loading.family.type} needs a Whisper model "
                "(WhisperForConditionalGeneration)"
            )
        loading.report("loading the tokenizer")
        with explained(loading):
            features = transformers.WhisperFeatureExtractor.from_pretrained(
                folder.path, local_files_only=True
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                folder.path, local_files_only=True
            )
        model = load(
            loading, transformers.WhisperForConditionalGeneration.from_pretrained, complete=True
        )
        if getattr(model.generation_config, "no_timestamps_token_id", None) is None:
            raise ModelLoadError(
                f"{folder.path} has no generation_config.json with no_timestamps_token_id, without "
                "which no times are told; fetch the model again"
            )
        return cls(loading, model.eval(), features, tokenizer)

    async def transcribe(self, request: TranscribeRequest) -> TranscribeResult:
        """Write down a recording; a caller that leaves stops it within a token.

        Raises:
            ParameterError: no audio, 0 s of it, too much of it, a language that the model does not
                know, or another bad value.
            RequestCancelledError: the model was closed.
            BackendError: not enough memory.
        """
        self.check_open()
        options = Options.parse(request.extra)
        language = self._language(request.language, options)
        samples = await asyncio.to_thread(
            read_audio,
            request.audio,
            rate=int(self._features.sampling_rate),
            max_seconds=self.parameters.max_audio_seconds,
        )
        left = threading.Event()
        call = _Call(samples, language, request.prompt, options, left)
        try:
            return await self.compute(self._run, call)
        finally:
            left.set()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        """Answer a chat whose last message has a recording with its text.

        Raises:
            ParameterError: no recording, or what `transcribe` says.
        """
        if not request.messages:
            raise ParameterError("a model that writes down speech takes messages, not a prompt")
        recording = recording_in(request.messages[-1].get("content"))
        said = {**request.sampling.extra, **recording.options, **request.extra}
        sampling = request.sampling
        if sampling.temperature is not None:
            said.setdefault("temperature", sampling.temperature)
        if sampling.seed is not None:
            said.setdefault("seed", sampling.seed)
        result = await self.transcribe(
            TranscribeRequest(
                id=request.id,
                audio=recording.data(),
                language=str(said.pop("language", None) or ""),
                prompt=str(said.pop("prompt", None) or recording.text),
                extra=said,
            )
        )
        yield GenerateChunk(
            text=result.text,
            finish_reason="stop",
            usage=Usage(completion_tokens=len(self._ids(result.text))),
        )

    async def tokenize(self, text: str) -> list[int]:
        return await self.compute(self._ids, text)

    async def meta(self) -> ModelMeta:
        return ModelMeta(
            model_deploy_type="proprietary",
            backend="transformers",
            max_model_len=int(self._model.config.max_target_positions),
            architectures=self.folder.architectures,
            model_name=self.folder.path.name,
            task="transcription",
        )

    def free(self) -> None:
        self._model = None

    def _language(self, given: str, options: Options) -> str:
        """The code of an asked language, one of the model's; '' for none."""
        name = given.strip().lower()
        code = str(TO_LANGUAGE_CODE.get(name, name.replace("_", "-").partition("-")[0]))
        if not self._multilingual:
            if code not in ("", "en") or options.task != "transcribe":
                raise ParameterError.invalid(
                    "language" if code not in ("", "en") else "task",
                    f"this model writes down English and no more (got {given or options.task!r})",
                    where="transcription",
                )
            return ""
        known = sorted(self._languages.values())
        if code and code not in known:
            names = [*known, *(LANGUAGES[one] for one in known if one in LANGUAGES)]
            raise ParameterError.invalid(
                "language",
                f"unknown to this model: {given!r}{did_you_mean(name, names)}; "
                f"allowed: {', '.join(known)}",
                where="transcription",
            )
        return code

    def _run(self, call: _Call) -> TranscribeResult:
        """One recording; on the model's thread."""
        self._check_wanted(call)
        rate = int(self._features.sampling_rate)
        duration = len(call.samples) / rate
        features = self._features_of(call.samples)
        language = call.language
        arguments: dict[str, Any] = {"prompt_ids": self._prompt(call.prompt)}
        with (
            torch.random.fork_rng(devices=self._generators()),
            torch.inference_mode(),
            _encoded_once(self._model.get_encoder()),
        ):
            torch.manual_seed(self._seed(call.options))
            if self._multilingual:
                language = language or self._spoken(features)
                arguments |= {"language": language, "task": call.options.task}
            self._check_wanted(call)
            heard = self._model.generate(
                input_features=features,
                return_timestamps=True,
                return_segments=True,
                stopping_criteria=[Watch(lambda: self._check_wanted(call))],
                condition_on_prev_tokens=False,
                **self._sampling(call.options),
                **arguments,
            )
        segments, text = self._segments(heard["segments"][0], duration)
        return TranscribeResult(
            text=text,
            language=language or ("" if self._multilingual else "en"),
            duration=round(duration, 3),
            segments=segments,
        )

    def _features_of(self, samples: Samples) -> torch.Tensor:
        """Log-mel features of shape (1, bands, frames); 30 s at least."""
        long = len(samples) > self._features.n_samples
        features = self._features(
            samples,
            sampling_rate=self._features.sampling_rate,
            return_tensors="pt",
            truncation=False,
            padding="longest" if long else "max_length",
        )["input_features"]
        moved: torch.Tensor = features.to(self._model.device, self._model.dtype)
        return moved

    def _spoken(self, features: torch.Tensor) -> str:
        """The language of the first 30 s."""
        found = self._model.detect_language(
            input_features=features[:, :, : self._features.nb_max_frames]
        )
        return str(self._languages.get(int(found[0]), ""))

    def _prompt(self, text: str) -> torch.Tensor | None:
        """Tokens of the prompt: its end, where it is longer than half of what the model takes."""
        if not text.strip():
            return None
        try:
            ids = self._tokenizer.get_prompt_ids(text, return_tensors="np").tolist()
        except ValueError as error:
            raise ParameterError.invalid("prompt", str(error), where="transcription") from None
        most = int(self._model.config.max_target_positions) // 2 - 2
        return torch.tensor([ids[0], *ids[1:][-most:]], device=self._model.device)

    def _sampling(self, options: Options) -> dict[str, Any]:
        if options.temperature is not None:
            return {"temperature": options.temperature}
        return {"temperature": _TEMPERATURES, **_THRESHOLDS}

    def _seed(self, options: Options) -> int:
        seed = options.seed if options.seed is not None else self.parameters.seed
        return seed if seed is not None else random.getrandbits(63)

    def _generators(self) -> list[int]:
        device = self._model.device
        return [device.index or 0] if device.type == "cuda" else []

    def _segments(
        self, heard: list[dict[str, Any]], duration: float
    ) -> tuple[list[dict[str, Any]], str]:
        """Segments with `start` and `end` in seconds, and the text of all."""
        segments: list[dict[str, Any]] = []
        every: list[int] = []
        for one in heard:
            tokens = [int(token) for token in one["tokens"] if int(token) < self._first_special]
            text = self._text(tokens)
            if not text.strip():
                continue
            every += tokens
            start, end = (min(round(float(one[key]), 2), duration) for key in ("start", "end"))
            segments.append({"start": start, "end": max(start, end), "text": text})
        return segments, self._text(every).strip()

    def _text(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _check_wanted(self, call: _Call) -> None:
        if self.closed:
            raise RequestCancelledError("the model was closed while it listened")
        if call.left.is_set():
            raise RequestCancelledError("its caller left")


@contextmanager
def _encoded_once(encoder: Any) -> Iterator[None]:
    """A window is encoded once, though its language, its text, whether it is silent and each new
    try at another temperature all begin with it; encoding is most of the work of a short
    recording."""
    compute = encoder.forward
    last: list[tuple[torch.Tensor, Any]] = []

    def forward(input_features: torch.Tensor, **options: Any) -> Any:
        if last and torch.equal(last[0][0], input_features):
            return last[0][1]
        last[:] = [(input_features, compute(input_features, **options))]
        return last[0][1]

    encoder.forward = forward
    try:
        yield
    finally:
        encoder.forward = compute
