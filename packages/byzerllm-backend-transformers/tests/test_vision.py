"""Vision-language models, from a deployment to answers: tiny ones of real architectures."""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import json
import threading
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
import transformers
from PIL import Image
from transformers import dynamic_module_utils

from byzerllm import ByzerLLM
from byzerllm.backend import BackendContext
from byzerllm.errors import (
    BackendError,
    ByzerLLMError,
    ContextLengthError,
    ModelLoadError,
    ModelSourceError,
    ParameterError,
    RequestCancelledError,
    TemplateError,
)
from byzerllm.requests import GenerateChunk, GenerateRequest, SamplingParams
from byzerllm.testing import BackendConformance
from byzerllm_backend_transformers import TRANSFORMERS
from byzerllm_backend_transformers.backend import TransformersBackend
from byzerllm_backend_transformers.vision import Vision
from hf_models import vision

T = TypeVar("T")
_ids = itertools.count()


def base64_of(image: Image.Image) -> str:
    target = io.BytesIO()
    image.save(target, "PNG")
    return base64.b64encode(target.getvalue()).decode()


def picture(color: str, size: tuple[int, int] = (48, 32)) -> dict[str, Any]:
    """A part with a picture of one color."""
    url = f"data:image/png;base64,{base64_of(Image.new('RGB', size, color))}"
    return {"type": "image_url", "image_url": {"url": url}}


def user(*parts: Any) -> list[dict[str, Any]]:
    texts = [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]
    return [{"role": "user", "content": texts}]


ASKED = user("what is this?", picture("red"))


class Loaded:
    """A backend on an event loop of its own."""

    def __init__(self, folder: Path, model_type: str = "custom/auto", **infer_params: Any) -> None:
        self.runner = asyncio.Runner()
        self.reports: list[str] = []
        context = BackendContext(
            model="tested",
            model_path=folder,
            model_type=model_type,
            # Further threads only wait for each other in models of this size.
            parameters=TRANSFORMERS.parameters.parse(
                {"threads": 1, **infer_params}, where="a test"
            ),
            report=self.reports.append,
        )
        try:
            self.backend = self.run(TransformersBackend.create(context))
        except BaseException:
            self.runner.close()
            raise
        assert isinstance(self.backend.task, Vision)
        self.task: Vision = self.backend.task

    def run(self, work: Coroutine[Any, Any, T], limit: float = 60.0) -> T:
        return self.runner.run(asyncio.wait_for(work, limit))

    def close(self) -> None:
        self.run(self.backend.close())
        self.runner.close()

    def request(
        self, messages: Any = ASKED, *, stream: bool = True, **more: Any
    ) -> GenerateRequest:
        prompt = more.pop("prompt", None)
        return GenerateRequest(
            id=f"v{next(_ids)}",
            messages=None if prompt is not None else messages,
            prompt=prompt,
            sampling=SamplingParams.parse({"max_tokens": 16, **more}),
            stream=stream,
        )

    def chunks(self, request: GenerateRequest) -> aclosing[AsyncGenerator[GenerateChunk, None]]:
        return aclosing(self.backend.generate(request))

    def ask(self, messages: Any = ASKED, **more: Any) -> list[GenerateChunk]:
        async def gather() -> list[GenerateChunk]:
            async with self.chunks(self.request(messages, **more)) as chunks:
                return [chunk async for chunk in chunks]

        return self.run(gather())

    def tokens(self, messages: Any = ASKED, **more: Any) -> list[int]:
        return [token for chunk in self.ask(messages, **more) for token in chunk.token_ids]

    def text(self, messages: Any = ASKED, **more: Any) -> str:
        return "".join(chunk.text for chunk in self.ask(messages, **more))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder of each family, made when it is first asked for."""
    root = tmp_path_factory.mktemp("vision")

    def folder(name: str) -> Path:
        path = root / name
        return path if path.is_dir() else vision.FAMILIES[name](path)

    return folder


@pytest.fixture(scope="module")
def load() -> Iterator[Callable[..., Loaded]]:
    loaded: list[Loaded] = []

    def make(*arguments: Any, **options: Any) -> Loaded:
        loaded.append(Loaded(*arguments, **options))
        return loaded[-1]

    yield make
    for one in loaded:
        one.close()


@pytest.fixture(scope="module")
def model(load: Callable[..., Loaded], folders: Callable[[str], Path]) -> Loaded:
    return load(folders("qwen2_vl"))


def long(model: Loaded, **more: Any) -> GenerateRequest:
    """A request that is answered for seconds."""
    return model.request(max_tokens=900, ignore_eos=True, **more)


# Each family, from a deployment to an answer and back.


# transformers' own processor of PaliGemma makes an array of a tensor.
paligemma_warns = pytest.mark.filterwarnings("ignore:__array__ impl:DeprecationWarning")


@paligemma_warns
@pytest.mark.parametrize("family", list(vision.FAMILIES))
def test_the_whole_way(family: str, folders: Callable[[str], Path]) -> None:
    llm = ByzerLLM(runtime="local").setup_infer_backend("transformers")
    meta = llm.deploy(
        model_path=str(folders(family)),
        pretrained_model_type="custom/auto",
        udf_name=f"seen_{family}",
        infer_params={"threads": 1},
    )
    try:
        assert meta["backend"] == "transformers"
        assert meta["architectures"][0].endswith("ForConditionalGeneration")
        config = {"max_length": 12, "temperature": 0}
        question = user(picture("blue"), "caption")
        (answer,) = llm.chat_oai(question, model=f"seen_{family}", llm_config=config)
        assert answer.metadata["generated_tokens_count"] in range(1, 13)
        pieces = llm.stream_chat_oai(
            question, model=f"seen_{family}", llm_config=config, delta_mode=True
        )
        assert "".join(text for text, _ in pieces) == answer.output
        (other,) = llm.chat_oai(
            user(picture("blue", (64, 64)), "caption"), model=f"seen_{family}", llm_config=config
        )
        counted = [one.metadata["input_tokens_count"] for one in (answer, other)]
        # Qwen's cut large pictures into more pieces, the others scale them to one size.
        assert (counted[1] > counted[0]) == family.startswith("qwen"), counted
    finally:
        llm.undeploy(f"seen_{family}")


@pytest.mark.parametrize("family", [*vision.FAMILIES][:-1])
def test_greedy_tokens_are_those_of_generate(
    family: str, folders: Callable[[str], Path], load: Callable[..., Loaded]
) -> None:
    folder = folders(family)
    loaded = load(folder)
    images = [
        Image.new("RGB", size, color) for size, color in (((48, 32), "red"), ((40, 40), "blue"))
    ]
    messages = user(picture("red"), "and", picture("blue", (40, 40)), "what?")
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder)
    processor = loaded.task._processor
    prompt = loaded.run(loaded.backend.apply_chat_template(messages))
    inputs = processor(text=[prompt], images=[images], return_tensors="pt")
    expected = model.generate(**inputs, max_new_tokens=16, do_sample=False)[0]
    expected = expected[inputs["input_ids"].shape[1] :].tolist()
    if processor.tokenizer.eos_token_id in expected:
        expected = expected[: expected.index(processor.tokenizer.eos_token_id)]
    chunks = loaded.ask(messages, temperature=0, logprobs=0)
    assert [token for chunk in chunks for token in chunk.token_ids] == expected
    swapped = user(picture("blue", (40, 40)), "and", picture("red"), "what?")
    other = loaded.ask(swapped, temperature=0, logprobs=0)
    assert other[0].logprobs[0].logprob != pytest.approx(chunks[0].logprobs[0].logprob, abs=1e-7)


# Answers.


def test_what_a_picture_shows_matters(model: Loaded) -> None:
    noise = Image.effect_noise((48, 32), 200).convert("RGB")
    url = {"type": "image_url", "image_url": {"url": base64_of(noise)}}
    first = model.ask(logprobs=0, max_tokens=2)[0].logprobs[0]
    second = model.ask(user("what is this?", url), logprobs=0, max_tokens=2)[0].logprobs[0]
    assert first.logprob != pytest.approx(second.logprob, abs=1e-6)


def test_text_alone(model: Loaded) -> None:
    chunks = model.ask([{"role": "user", "content": "hello"}], max_tokens=4)
    assert chunks[-1].finish_reason is not None
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.prompt_tokens < 30


def test_several_rounds_and_pictures(model: Loaded) -> None:
    rounds = [
        {"role": "system", "content": "be brief"},
        *user(picture("red"), "what is this?"),
        {"role": "assistant", "content": "red"},
        *user("and these?", picture("blue"), picture("green")),
    ]
    prompt = model.run(model.backend.apply_chat_template(rounds))
    assert prompt.count("<|image_pad|>") == 3
    assert model.ask(rounds, max_tokens=3)[-1].finish_reason == "length"


def test_a_prompt_is_continued(model: Loaded) -> None:
    chunks = model.ask(prompt="what is in this picture", max_tokens=5)
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens <= 5


def test_a_stream_comes_in_pieces_and_a_whole_answer_in_two(model: Loaded) -> None:
    options: dict[str, Any] = {"max_tokens": 200, "temperature": 2, "seed": 1, "ignore_eos": True}
    pieces, whole = model.ask(**options), model.ask(stream=False, **options)
    assert len(pieces) > 3
    assert len(whole) <= 2
    assert "".join(chunk.text for chunk in whole) == "".join(chunk.text for chunk in pieces)


def test_a_seed_repeats(model: Loaded) -> None:
    options: dict[str, Any] = {"temperature": 3, "max_tokens": 16, "ignore_eos": True}
    first = model.tokens(seed=7, **options)
    torch.manual_seed(99)
    assert model.tokens(seed=7, **options) == first
    assert model.tokens(seed=8, **options) != first
    assert model.tokens(**options) != model.tokens(**options)


def test_sampling_parameters(model: Loaded) -> None:
    best = model.tokens(temperature=0, ignore_eos=True)
    assert model.tokens(temperature=5, top_k=1, ignore_eos=True) == best
    assert model.tokens(temperature=5, top_p=0, ignore_eos=True) == best
    assert model.tokens(temperature=0, logit_bias={65: 100.0}) == [65] * 16
    penalised = model.tokens(temperature=0, ignore_eos=True, frequency_penalty=2.0)
    assert len(set(penalised)) > len(set(best))
    assert len(set(model.tokens(temperature=0, ignore_eos=True, no_repeat_ngram_size=1))) == 16


def test_stop_strings(model: Loaded) -> None:
    options: dict[str, Any] = {"temperature": 2, "seed": 3, "max_tokens": 60, "ignore_eos": True}
    text = model.text(**options)
    stop = text[9:12]
    chunks = model.ask(stop=[stop, "never said"], **options)
    assert "".join(chunk.text for chunk in chunks) == text.partition(stop)[0]
    assert chunks[-1].finish_reason == "stop"
    assert chunks[-1].stop_text == stop


def test_a_special_token_stops_by_its_text(model: Loaded) -> None:
    token = model.task._processor.tokenizer.convert_tokens_to_ids("<|box_end|>")
    chunks = model.ask(logit_bias={token: 100.0}, stop=["<|box_end|>"])
    assert chunks[-1].finish_reason == "stop"
    assert model.text(logit_bias={token: 100.0}) == ""


def test_max_tokens_and_usage(model: Loaded) -> None:
    (*_, last) = model.ask(max_tokens=5, ignore_eos=True)
    assert last.finish_reason == "length"
    assert last.usage is not None
    assert last.usage.completion_tokens == 5
    assert last.usage.prompt_tokens > 24  # a picture of 48 x 32 is 6 x 4 patches of 8 x 8


def test_log_probabilities(model: Loaded) -> None:
    chunks = model.ask(logprobs=2, max_tokens=6, temperature=0, ignore_eos=True)
    entries = [entry for chunk in chunks for entry in chunk.logprobs]
    assert [entry.id for entry in entries] == [t for chunk in chunks for t in chunk.token_ids]
    for entry in entries:
        assert entry.top[0][1] == entry.id
        assert entry.top[0][2] == pytest.approx(entry.logprob)
        assert entry.top[1][2] <= entry.logprob < 0


def test_a_schema_is_kept(model: Loaded) -> None:
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "blue"]}, "count": {"type": "integer"}},
        "required": ["colour", "count"],
        "additionalProperties": False,
    }
    text = model.text(json_schema=schema, max_tokens=200, temperature=2, seed=1)
    assert json.loads(text)["colour"] in ("red", "blue")


def test_characters_stay_whole(model: Loaded) -> None:
    tokens = model.run(model.backend.tokenize("图🌍"))
    assert len(tokens) > 2
    chunks = model.ask(logit_bias=dict.fromkeys(tokens, 30.0), temperature=3, max_tokens=120)
    assert len(chunks) > 2
    whole = model.task._processor.tokenizer.decode(
        [token for chunk in chunks for token in chunk.token_ids]
    )
    text = "".join(chunk.text for chunk in chunks)
    assert text.rstrip("\ufffd") == whole[: len(text)].rstrip("\ufffd")


# Ends.


def test_leaving_stops_within_a_token(model: Loaded) -> None:
    async def leave() -> float:
        async with model.chunks(long(model, logprobs=0)) as chunks:
            async for chunk in chunks:
                if chunk.token_ids:
                    break
        left = time.monotonic()
        await model.task.compute(lambda: None)
        return time.monotonic() - left

    assert model.run(leave()) < 0.5


def test_one_that_waits_can_leave(model: Loaded) -> None:
    async def crowd() -> None:
        async with model.chunks(long(model, logprobs=0)) as first:
            await anext(first)
            waiting = asyncio.ensure_future(anext(model.backend.generate(model.request())))
            await asyncio.sleep(0.05)
            waiting.cancel()
            await asyncio.wait([waiting])
            assert waiting.cancelled()
            await anext(first)

    model.run(crowd())
    assert model.ask()[-1].finish_reason is not None


def test_requests_are_answered_in_turn(model: Loaded) -> None:
    expected = model.tokens(temperature=0)

    async def ask() -> list[int]:
        async with model.chunks(model.request(temperature=0)) as chunks:
            return [token async for chunk in chunks for token in chunk.token_ids]

    async def crowd() -> list[list[int]]:
        return await asyncio.gather(*(ask() for _ in range(4)))

    assert model.run(crowd()) == [expected] * 4


def test_tokens_are_counted_while_an_answer_grows(model: Loaded) -> None:
    async def count() -> None:
        async with model.chunks(long(model, logprobs=0)) as chunks:
            await anext(chunks)
            assert len(await model.backend.tokenize("what is in this picture?")) > 3
            await anext(chunks)

    model.run(count())


def test_closing_ends_answers(folders: Callable[[str], Path]) -> None:
    loaded = Loaded(folders("qwen2_vl"))

    async def close() -> None:
        async with loaded.chunks(long(loaded)) as running:
            await anext(running)
            waiting = asyncio.ensure_future(anext(loaded.backend.generate(loaded.request())))
            await asyncio.sleep(0.05)
            begun = time.monotonic()
            await loaded.backend.close()
            assert time.monotonic() - begun < 2
            with pytest.raises(RequestCancelledError):
                async for _ in running:
                    pass
            with pytest.raises(RequestCancelledError):
                await waiting

    loaded.run(close())
    with pytest.raises(BackendError, match="closed"):
        loaded.ask()
    loaded.close()


def test_the_loop_is_not_blocked(model: Loaded) -> None:
    async def longest_gap() -> float:
        gap, last = 0.0, time.monotonic()
        async with model.chunks(long(model)) as chunks:
            reading = asyncio.ensure_future(anext(chunks))
            for _ in range(60):
                await asyncio.sleep(0.005)
                gap, last = max(gap, time.monotonic() - last), time.monotonic()
            await reading
        return gap

    assert model.run(longest_gap()) < 0.5


def test_the_folder_s_generation_config(tmp_path: Path) -> None:
    folder = vision.qwen2_vl(tmp_path)
    file = folder / "generation_config.json"
    config = {"do_sample": True, "temperature": 4.0, "num_beams": 3, "max_length": 20}
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
    loaded = Loaded(folder)
    try:
        options = {"max_tokens": 12, "ignore_eos": True}
        drawn = {tuple(loaded.tokens(**options)) for _ in range(3)}
        assert len(drawn) == 3
        assert {len(tokens) for tokens in drawn} == {12}
        best = {tuple(loaded.tokens(temperature=0, **options)) for _ in range(2)}
        assert len(best) == 1
    finally:
        loaded.close()


# Bad input: one clear error, and the model answers the next request.


def bad_part(kind: str) -> dict[str, Any]:
    return {"type": kind, kind: {"url": "data:,x", "data": "x", "format": "wav"}}


BAD: list[tuple[Any, type[ByzerLLMError], str]] = [
    (user(picture("red") | {"image_url": {"url": "bm90IGEgcGljdHVyZQ=="}}), ParameterError, "PNG"),
    (user(picture("red") | {"image_url": {"url": "https://x/a.png"}}), ParameterError, "data URL"),
    (user(picture("red") | {"image_url": {"url": "/etc/passwd"}}), ParameterError, "data URL"),
    (user(picture("red") | {"image_url": {}}), ParameterError, "type 'image_url'"),
    (user(bad_part("video_url")), ParameterError, "type 'video_url'.*text and image_url"),
    (user(bad_part("input_audio")), ParameterError, "type 'input_audio'"),
    (user(picture("red", (2, 900)), "?"), ParameterError, "processor"),
    (user("<|image_pad|> what?"), ParameterError, "message 0.*stands for a picture"),
    ([{"role": "user", "content": 3}], ParameterError, "int"),
    ([{"content": "x"}], ParameterError, "role"),
    (user(*[picture("red", (64, 64))] * 17), ContextLengthError, "fewer or smaller"),
]


@pytest.mark.parametrize(
    ("messages", "error", "text"),
    BAD,
    ids=[
        "none",
        "http",
        "path",
        "empty",
        "video",
        "audio",
        "thin",
        "placeholder",
        "number",
        "role",
        "many",
    ],
)
def test_bad_messages(model: Loaded, messages: Any, error: type[ByzerLLMError], text: str) -> None:
    with pytest.raises(error, match=text):
        model.ask(messages)
    assert model.ask()[-1].finish_reason is not None


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"logit_bias": {100_000: 1.0}}, "logit_bias"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"typical_p": "much"}, "typical_p"),
        ({"enable_hires": True}, "enable_hires"),
        ({"stop": [""]}, "stop"),
    ],
)
def test_bad_parameters(model: Loaded, given: dict[str, Any], name: str) -> None:
    with pytest.raises(ParameterError, match=name):
        model.ask(**given)
    assert model.ask()[-1].finish_reason is not None


def test_a_token_without_weights(tmp_path: Path) -> None:
    folder = vision.llava(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<unlearned>"])
    tokenizer.save_pretrained(folder)
    loaded = Loaded(folder)
    try:
        with pytest.raises(ParameterError, match=r"unlearned.*no weights"):
            loaded.ask(user("what is <unlearned>?", picture("red")))
        assert loaded.ask()[-1].finish_reason is not None
    finally:
        loaded.close()


def test_a_context_that_is_longer_than_the_model(model: Loaded) -> None:
    with pytest.raises(ParameterError, match="max_model_len"):
        Loaded(model.task.folder.path, max_model_len=2000)


def test_a_shorter_context(model: Loaded, load: Callable[..., Loaded]) -> None:
    loaded = load(model.task.folder.path, max_model_len=60)
    (*_, last) = loaded.ask(max_tokens=100, ignore_eos=True)
    assert last.usage is not None
    assert last.usage.prompt_tokens + last.usage.completion_tokens == 60


def test_a_template_that_refuses(model: Loaded, load: Callable[..., Loaded]) -> None:
    refusing = load(model.task.folder.path, chat_template="{{ raise_exception('no, never') }}")
    with pytest.raises(TemplateError, match="no, never"):
        refusing.ask()


def test_a_template_that_takes_texts_only(model: Loaded, load: Callable[..., Loaded]) -> None:
    plain = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    loaded = load(model.task.folder.path, chat_template=plain)
    prompt = loaded.run(loaded.backend.apply_chat_template(ASKED))
    assert prompt == "user: what is this?\n<|image_pad|>\n"
    assert loaded.ask()[-1].finish_reason is not None


def test_no_memory_for_a_request(model: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**ignored: Any) -> None:
        torch.empty(2**60)

    with monkeypatch.context() as patched:
        patched.setattr(model.task._model, "generate", full)
        with pytest.raises(BackendError, match="not enough memory"):
            model.ask()
    assert model.ask()[-1].finish_reason is not None


@paligemma_warns
def test_a_model_that_needs_a_picture(
    load: Callable[..., Loaded], folders: Callable[[str], Path]
) -> None:
    loaded = load(folders("paligemma"))
    with pytest.raises(ParameterError, match="image"):
        loaded.ask(user("caption"))
    with pytest.raises(TemplateError, match="one user message"):
        loaded.ask([*ASKED, {"role": "assistant", "content": "a"}, *ASKED])
    assert loaded.ask()[-1].finish_reason is not None


# Bad folders.


def test_a_folder_of_another_kind(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match=r"LlamaForCausalLM.*image-text-to-text"):
        Loaded(tmp_path, "custom/qwen_vl_chat")


def test_a_folder_without_its_processor(tmp_path: Path) -> None:
    folder = vision.qwen2_vl(tmp_path)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises((ModelLoadError, ModelSourceError), match=r"preprocessor_config|processor"):
        Loaded(folder)


def test_the_first_qwen_vl_needs_trust(tmp_path: Path) -> None:
    folder = vision.llava(tmp_path)
    config = {
        "architectures": ["QWenLMHeadModel"],
        "model_type": "qwen",
        "auto_map": {
            "AutoConfig": "configuration_qwen.QWenConfig",
            "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel",
        },
        "visual": {"heads": 16},
    }
    (folder / "config.json").write_text(json.dumps(config))
    for model_type in ("custom/qwen_vl_chat", "custom/auto", "custom/visualglm"):
        with pytest.raises(ModelLoadError, match="trust_remote_code=true"):
            Loaded(folder, model_type)


REMOTE = """
from transformers import Idefics3Config, Idefics3ForConditionalGeneration

class TinyConfig(Idefics3Config):
    model_type = "tiny_vl"

class TinyModel(Idefics3ForConditionalGeneration):
    config_class = TinyConfig
"""


def test_code_in_the_folder_runs_when_it_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # transformers copies the code there, and imports it.
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    folder = vision.idefics3(tmp_path / "tiny_vl")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "tiny_vl",
        "architectures": ["TinyModel"],
        "auto_map": {
            "AutoConfig": "tiny_code.TinyConfig",
            "AutoModelForImageTextToText": "tiny_code.TinyModel",
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tiny_code.py").write_text(REMOTE)
    with pytest.raises(ModelLoadError, match="trust_remote_code=true"):
        Loaded(folder)
    loaded = Loaded(folder, trust_remote_code=True)
    try:
        assert type(loaded.task._model).__name__ == "TinyModel"
        assert loaded.ask()[-1].finish_reason is not None
    finally:
        loaded.close()


class TestConformance(BackendConformance):
    """The suite of plugin authors, on a tiny Qwen2-VL."""

    spec = TRANSFORMERS
    infer_params = {"threads": 1}  # noqa: RUF012
    generation = {"max_tokens": 24, "temperature": 1.5, "seed": 1}  # noqa: RUF012
    deterministic = True
    exceptions = {  # noqa: RUF012
        "test_embedding": "other models of the same backend embed",
        "test_rerank": "other models of the same backend rerank",
        "test_text_is_whole_unicode": "random weights write bytes that are no characters",
    }

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _folder(cls, folders: Callable[[str], Path]) -> None:
        cls.model_path = str(folders("qwen2_vl"))

    def busy(self, backend: Any) -> bool:
        """Whether the model's thread has something to do."""
        idle = threading.Event()
        backend.task._thread.submit(idle.set)
        return not idle.wait(0.05)
