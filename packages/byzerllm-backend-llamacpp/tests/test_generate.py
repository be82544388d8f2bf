"""Answers of a real model: text, ends, limits, sampling, log-probabilities."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest

from byzerllm.errors import (
    BackendError,
    CapabilityError,
    ContextLengthError,
    ParameterError,
    TemplateError,
)
from byzerllm.requests import SamplingParams
from byzerllm_backend_llamacpp.native import llama_cpp
from byzerllm_backend_llamacpp.sampling import MIN_P, TOP_K, TOP_P, LlamaSampling, Recipe

pytestmark = pytest.mark.model

FRANCE = "What is the capital city of France? Answer in one sentence."
COUNT = "Count from one to twenty in words."


def test_the_capital_of_france(model: Any) -> None:
    answer = model.ask(FRANCE)
    assert "Paris" in answer.text
    assert answer.finish == "stop"
    assert answer.usage.completion_tokens == len(answer.tokens)
    assert answer.usage.prompt_tokens == len(
        model.backend._model.prompt_tokens(
            model.run(model.backend.apply_chat_template([{"role": "user", "content": FRANCE}]))
        )
    )


def test_a_stream_comes_in_pieces_and_a_whole_answer_in_two(model: Any) -> None:
    streamed, whole = model.ask(FRANCE), model.ask(FRANCE, stream=False)
    assert len(streamed.chunks) > 4
    assert len(whole.chunks) <= 2
    assert whole.text == streamed.text
    assert whole.tokens == streamed.tokens


def test_tokens_make_the_text(model: Any) -> None:
    answer = model.ask(COUNT, max_tokens=30)
    pieces = b"".join(model.backend._model.piece(token) for token in answer.tokens)
    assert pieces.decode() == answer.text


def test_characters_of_several_tokens_stay_whole(model: Any) -> None:
    text = "你好，世界！🌍 ¿Qué?"
    ids = model.run(model.backend.tokenize(text))
    assert len(ids) > len(text.split())
    # A strong bias makes the model write the characters whose bytes lie in several tokens.
    answer = model.ask(
        prompt="🌍🌍🌍🌍🌍🌍🌍🌍", max_tokens=24, logit_bias=dict.fromkeys(ids, 30.0)
    )
    assert answer.tokens
    for chunk in answer.chunks:
        assert chunk.text.encode().decode() == chunk.text
    whole = b"".join(model.backend._model.piece(token) for token in answer.tokens)
    assert whole.decode("utf-8", "replace").startswith(answer.text)
    assert any(len(chunk.token_ids) > 1 or not chunk.text for chunk in answer.chunks)


def test_max_tokens(model: Any) -> None:
    answer = model.ask(COUNT, max_tokens=5)
    assert answer.finish == "length"
    assert answer.usage.completion_tokens == 5


def test_a_stop_string_ends_the_answer_and_is_no_part_of_it(model: Any) -> None:
    text = model.ask(COUNT, max_tokens=40).text
    stop = text[20:26]
    answer = model.ask(COUNT, max_tokens=40, stop=[stop, "never said"])
    assert answer.text == text.partition(stop)[0]
    assert answer.finish == "stop"
    begin = b"".join(model.backend._model.piece(token) for token in answer.tokens).decode()
    assert begin.startswith(answer.text)
    assert stop not in begin.removesuffix(stop)


def test_stop_token_ids(model: Any) -> None:
    plain = model.ask(COUNT, max_tokens=20)
    stop = plain.tokens[6]
    answer = model.ask(COUNT, max_tokens=20, stop_token_ids=[stop, 10**9])
    assert answer.finish == "stop"
    assert answer.tokens == plain.tokens[: plain.tokens.index(stop)]


def test_a_control_token_stops_by_its_text(model: Any) -> None:
    plain = model.ask(FRANCE)
    answer = model.ask(FRANCE, ignore_eos=True, max_tokens=30, stop=["<|im_end|>"])
    assert answer.text.startswith(plain.text)
    assert "<|im_end|>" not in answer.text
    model_of = model.backend._model
    assert model_of.control_token("<|im_end|>") in model_of.end_tokens


def test_ignore_eos_goes_on(model: Any) -> None:
    plain = model.ask(FRANCE)
    longer = plain.usage.completion_tokens + 10
    answer = model.ask(FRANCE, ignore_eos=True, max_tokens=longer)
    assert answer.finish == "length"
    assert answer.usage.completion_tokens == longer
    assert not set(answer.tokens) & model.backend._model.end_tokens


def test_a_seed_repeats(model: Any) -> None:
    options = {"temperature": 1.5, "max_tokens": 24, "top_k": 0, "top_p": 1, "min_p": 0}
    first = model.ask(COUNT, seed=7, **options)
    assert model.ask(COUNT, seed=7, **options).tokens == first.tokens
    assert model.ask(COUNT, seed=8, **options).tokens != first.tokens
    assert model.ask(COUNT, seed=-1, max_tokens=2).text


def test_without_a_seed_answers_differ(model: Any) -> None:
    texts = {model.ask(COUNT, temperature=1.5, max_tokens=24, top_p=1).text for _ in range(4)}
    assert len(texts) > 1


def test_the_deployments_seed_is_the_default(load: Callable[..., Any]) -> None:
    seeded = load(seed=3, n_ctx=256, concurrency=1, cache_prompt=False)
    texts = {seeded.ask(COUNT, temperature=1.5, max_tokens=12, top_p=1).text for _ in range(3)}
    assert len(texts) == 1


def test_defaults_are_those_of_llama_cpp() -> None:
    for chat, function in (
        (True, llama_cpp.Llama.create_chat_completion),
        (False, llama_cpp.Llama.create_completion),
    ):
        theirs = inspect.signature(function).parameters
        ours = Recipe.of(SamplingParams(), LlamaSampling(), chat=chat, seed=None)
        assert ours.temperature == theirs["temperature"].default
        assert theirs["top_k"].default == TOP_K
        assert theirs["top_p"].default == TOP_P
        assert theirs["min_p"].default == MIN_P


def test_penalties_and_biases(model: Any) -> None:
    plain = model.ask(prompt="one one one one one one", max_tokens=12)
    penal = model.ask(
        prompt="one one one one one one", max_tokens=12, repetition_penalty=2.0, repeat_last_n=-1
    )
    assert plain.text != penal.text
    banned = plain.tokens[0]
    answer = model.ask(
        prompt="one one one one one one", max_tokens=12, logit_bias={banned: -math.inf}
    )
    assert banned not in answer.tokens
    once = model.ask(
        prompt="one one one one one one", max_tokens=12, presence_penalty=2, frequency_penalty=2
    )
    assert len(set(once.tokens)) > len(set(plain.tokens))


@pytest.mark.parametrize(
    "options",
    [
        {"mirostat": 1},
        {"mirostat": 2, "mirostat_tau": 3.0},
        {"typical_p": 0.8},
        {"top_n_sigma": 1.0},
        {"xtc_probability": 1.0, "xtc_threshold": 0.05},
    ],
)
def test_samplers_of_llama_cpp_alone(model: Any, options: dict[str, Any]) -> None:
    answer = model.ask(COUNT, temperature=0.9, max_tokens=8, seed=1, **options)
    assert answer.usage.completion_tokens == 8 or answer.finish == "stop"
    again = model.ask(COUNT, temperature=0.9, max_tokens=8, seed=1, **options)
    assert again.tokens == answer.tokens


def test_logprobs_are_natural_and_of_the_raw_distribution(model: Any) -> None:
    answer = model.ask(COUNT, max_tokens=8, logprobs=5, temperature=0.9, seed=1)
    assert [entry.id for entry in answer.logprobs] == answer.tokens
    for entry in answer.logprobs:
        ranked = [logprob for _, _, logprob in entry.top]
        assert len(ranked) == 5
        assert ranked == sorted(ranked, reverse=True)
        assert sum(math.exp(one) for one in ranked) <= 1 + 1e-6
        assert entry.logprob <= ranked[0]
        assert entry.token == model.backend._model.token_text(entry.id)
    everything = model.ask(prompt="The", max_tokens=1, logprobs=20).logprobs[0].top
    assert len({token for _, token, _ in everything}) == 20


def test_logprobs_equal_llama_cpps(model: Any, model_path: Any) -> None:
    prompt = "The capital of France is the city of"
    ours = model.ask(prompt=prompt, max_tokens=1, logprobs=3).logprobs[0]
    llama = llama_cpp.Llama(str(model_path), n_ctx=256, logits_all=True, verbose=False)
    try:
        theirs = llama.create_completion(prompt, max_tokens=1, temperature=0, logprobs=3)
        top = theirs["choices"][0]["logprobs"]["top_logprobs"][0]
    finally:
        llama.close()
    best = {text: logprob for text, _, logprob in ours.top}
    assert set(best) == set(top)
    for text, logprob in best.items():
        assert logprob == pytest.approx(top[text], abs=0.1)


def test_logprobs_without_alternatives_and_with_a_stop(model: Any) -> None:
    assert model.ask(COUNT, max_tokens=3, logprobs=0).logprobs[0].top == []
    text = model.ask(COUNT, max_tokens=30).text
    answer = model.ask(COUNT, max_tokens=30, stop=[text[10:18]], logprobs=0)
    assert [entry.id for entry in answer.logprobs] == answer.tokens


def test_a_prompt_that_fills_the_context(model: Any) -> None:
    with pytest.raises(ContextLengthError, match="1,024") as got:
        model.ask(prompt="word " * 3000, max_tokens=3)
    assert got.value.prompt_tokens > 3000
    assert got.value.max_model_len == 1024
    assert f"{got.value.prompt_tokens:,}" in got.value.message


def test_the_end_of_the_context_is_a_length(load: Callable[..., Any]) -> None:
    small = load(n_ctx=96, concurrency=2)
    answer = small.ask(prompt="word " * 60, ignore_eos=True)
    assert answer.finish == "length"
    assert answer.usage.prompt_tokens + answer.usage.completion_tokens == 96


def test_a_completion_continues_its_prompt(model: Any) -> None:
    answer = model.ask(prompt="The capital of France is", max_tokens=5)
    assert "Paris" in answer.text


def test_no_second_bos(model: Any) -> None:
    loaded = model.backend._model
    loaded.adds_bos = True
    try:
        plain = loaded.prompt_tokens("hello")
        assert plain[0] == loaded.bos
        assert loaded.prompt_tokens(loaded.special_text(loaded.bos) + "hello") == plain
    finally:
        loaded.adds_bos = False
    assert loaded.prompt_tokens("hello") == plain[1:]


def test_tokenize(model: Any) -> None:
    def tokens(text: str) -> list[int]:
        return model.run(model.backend.tokenize(text))  # type: ignore[no-any-return]

    assert tokens("") == []
    assert len(tokens("<|im_end|>")) == 1
    loaded = model.backend._model
    long = "many words " * 2000
    assert b"".join(loaded.piece(token) for token in tokens(long)).decode() == long


def test_chat_template(model: Any) -> None:
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    text = model.run(model.backend.apply_chat_template(messages))
    assert text == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    with pytest.raises(ParameterError, match="empty conversation"):
        model.run(model.backend.apply_chat_template([]))


def test_a_chat_template_of_ones_own(load: Callable[..., Any]) -> None:
    own = load(
        chat_template="{{ greeting }} {{ messages[-1].content }} is", n_ctx=256, concurrency=1
    )
    answer = own.ask("The capital of France", max_tokens=5, chat_template_kwargs={"greeting": ""})
    assert "Paris" in answer.text
    with pytest.raises(TemplateError, match="compiled"):
        load(chat_template="{% broken", n_ctx=256)


def test_meta(model: Any) -> None:
    meta = model.run(model.backend.meta())
    assert meta.backend == "llama_cpp"
    assert meta.model_deploy_type == "proprietary"
    assert meta.architectures == ["llama"]
    assert meta.max_model_len == 1024
    assert "Smollm2" in meta.model_name
    assert meta.support_chat_template
    assert meta.constrained
    assert not meta.embedding_mode


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"messages": []}, ParameterError, "empty conversation"),
        ({"prompt": ""}, ParameterError, "empty prompt"),
        ({"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, ParameterError, "either"),
        ({"prompt": "a", "stop": [""]}, ParameterError, "empty text"),
        ({"prompt": "a", "logit_bias": {10**6: 1.0}}, ParameterError, "token id 1000000"),
        ({"prompt": "a", "logit_bias": {-1: 1.0}}, ParameterError, "token id -1"),
        ({"prompt": "a", "logit_bias": {1: math.inf}}, ParameterError, "no bias"),
        ({"prompt": "a", "presence_penalty": math.inf}, ParameterError, "finite"),
        ({"prompt": "a", "repetition_penalty": 0}, ParameterError, "above 0"),
        ({"prompt": "a", "mirostat": 3}, ParameterError, "mirostat"),
        ({"prompt": "a", "typical": 0.5}, ParameterError, "typical_p"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            CapabilityError,
            "image_url",
        ),
    ],
)
def test_what_is_refused(
    model: Any, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        model.ask(**options)
    assert model.run(model.idle())


def test_a_closed_backend_says_so(load: Callable[..., Any]) -> None:
    closed = load(n_ctx=256, concurrency=1)
    closed.run(closed.backend.close())
    closed.run(closed.backend.close())
    with pytest.raises(BackendError, match="closed"):
        closed.ask(FRANCE)
    with pytest.raises(BackendError, match="closed"):
        closed.run(closed.backend.health())
    with pytest.raises(BackendError, match="closed"):
        closed.run(closed.backend.tokenize("a"))
