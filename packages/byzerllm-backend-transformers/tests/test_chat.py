"""Chats on a real small model: the text is that of transformers' own `generate`, alone and in
company, and requests obey what they ask for."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from byzerllm.errors import (
    BackendError,
    CapabilityError,
    ContextLengthError,
    ParameterError,
    TemplateError,
)
from byzerllm.testing import Answer, Loaded
from hf_models.smollm2 import smollm2_folder

pytestmark = pytest.mark.model

QUESTIONS = (
    "What is the capital city of France? Answer in one sentence.",
    "Count from one to ten in words.",
    "Tell me a story about a cat.",
    "What is water made of?",
    "Why is the sky blue?",
    "List five animals.",
    "Who was Mozart? " * 20,
    "Write the alphabet.",
)
NEW = 24
# Beyond it float32 itself decides which of two logits is larger.
NEARLY_EQUAL = 1e-3


@pytest.fixture(scope="module")
def model(load: Callable[..., Loaded]) -> Loaded:
    return load(smollm2_folder(), max_model_len=1024)


def bare(model: Loaded, question: str) -> tuple[list[int], list[float]]:
    """What `generate` says, and the distance of the two best logits at each token."""
    causal = model.backend.task._model
    ids = causal.tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
    )
    with torch.inference_mode():
        output = causal.model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids)),
            max_new_tokens=NEW,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
    best = [step[0].topk(2).values.tolist() for step in output.logits]
    tokens = output.sequences[0, len(ids) :].tolist()
    return [one for one in tokens if one not in causal.end_tokens], [a - b for a, b in best]


def compare(answer: Answer, expected: list[int], distances: list[float], question: str) -> None:
    got = answer.tokens
    if got == expected:
        return
    length = min(len(got), len(expected))
    at = next((n for n in range(length) if got[n] != expected[n]), length)
    print(
        f"{question[:30]!r} differs at token {at}, where two logits are {distances[at]:.1e} apart"
    )
    assert distances[at] < NEARLY_EQUAL


def test_greedy_text_is_that_of_generate(model: Loaded) -> None:
    wanted = [bare(model, question) for question in QUESTIONS]
    alone = [model.ask(question, max_tokens=NEW) for question in QUESTIONS]

    async def together() -> list[Answer]:
        requests = [model.request(question, max_tokens=NEW) for question in QUESTIONS]
        return await asyncio.gather(*(model.gather(request) for request in requests))

    for answers in (alone, model.run(together())):
        for answer, (tokens, distances), question in zip(answers, wanted, QUESTIONS, strict=True):
            compare(answer, tokens, distances, question)


def test_answers_that_come_and_go_do_not_disturb_each_other(model: Loaded) -> None:
    lengths = (3, 17, 9, 24, 5, 12, 20, 7)
    alone = [model.ask(q, max_tokens=n) for q, n in zip(QUESTIONS, lengths, strict=True)]

    async def staggered() -> list[Answer]:
        async def later(number: int) -> Answer:
            await asyncio.sleep(0.15 * number)
            request = model.request(QUESTIONS[number], max_tokens=lengths[number])
            return await model.gather(request)

        return await asyncio.gather(*(later(number) for number in range(len(lengths))))

    assert [one.text for one in model.run(staggered())] == [one.text for one in alone]


def test_it_chats_and_streams(model: Loaded) -> None:
    answer = model.ask(QUESTIONS[0], max_tokens=40)
    assert "Paris" in answer.text
    assert answer.finish == "stop"
    assert len(answer.chunks) > 4
    assert answer.usage.completion_tokens == len(answer.tokens)
    whole = model.ask(QUESTIONS[0], max_tokens=40, stream=False)
    assert whole.text == answer.text
    assert len(whole.chunks) < len(answer.chunks)


def test_a_stop_text_ends_the_answer_and_is_no_part_of_it(model: Loaded) -> None:
    free = model.ask(QUESTIONS[1], max_tokens=NEW).text
    stop = free[8:12]
    answer = model.ask(QUESTIONS[1], max_tokens=NEW, stop=[stop])
    assert answer.text == free[: free.index(stop)]
    assert (answer.finish, answer.chunks[-1].stop_text) == ("stop", stop)


def test_stop_token_ids_and_special_stops(model: Loaded) -> None:
    tokens = model.ask(QUESTIONS[1], max_tokens=NEW).tokens
    answer = model.ask(QUESTIONS[1], max_tokens=NEW, stop_token_ids=[tokens[5]])
    assert answer.tokens == tokens[: tokens.index(tokens[5])]
    assert answer.finish == "stop"


def test_max_tokens(model: Loaded) -> None:
    answer = model.ask(QUESTIONS[2], max_tokens=5)
    assert (len(answer.tokens), answer.finish) == (5, "length")


def test_seeds_repeat_also_in_company(model: Loaded) -> None:
    options = {"max_tokens": 12, "temperature": 1.2, "top_p": 0.95}

    async def with_others(seed: int) -> str:
        requests = [model.request(QUESTIONS[2], seed=seed, **options)]
        requests += [model.request(question, max_tokens=12) for question in QUESTIONS[:3]]
        answers = await asyncio.gather(*(model.gather(request) for request in requests))
        return answers[0].text

    first = model.ask(QUESTIONS[2], seed=7, **options).text
    assert model.ask(QUESTIONS[2], seed=7, **options).text == first
    assert model.run(with_others(7)) == first
    others = {model.ask(QUESTIONS[2], seed=seed, **options).text for seed in (8, 9)}
    assert others != {first}


@pytest.mark.parametrize(
    "parameters",
    [
        {"top_k": 1},
        {"top_p": 0.0001},
        {"min_p": 1.0},
        {"epsilon_cutoff": 0.95},
        {"top_h": 0.0001},
    ],
)
def test_the_narrowest_truncation_is_greedy(model: Loaded, parameters: dict[str, Any]) -> None:
    greedy = model.ask(QUESTIONS[0], max_tokens=6).text
    assert model.ask(QUESTIONS[0], max_tokens=6, temperature=1.0, **parameters).text == greedy


def test_penalties_and_bias_change_the_answer(model: Loaded) -> None:
    prompt = "one two one two one two one two one two"
    free = model.ask(prompt=prompt, max_tokens=8)
    for parameters in (
        {"repetition_penalty": 5.0},
        {"frequency_penalty": 5.0},
        {"no_repeat_ngram_size": 2},
        {"logit_bias": {free.tokens[0]: -100}},
    ):
        assert model.ask(prompt=prompt, max_tokens=8, **parameters).tokens != free.tokens
    forced = model.ask(prompt=prompt, max_tokens=2, logit_bias={free.tokens[1]: 200})
    assert forced.tokens == [free.tokens[1]] * 2


def test_logprobs_are_those_of_the_model(model: Loaded) -> None:
    answer = model.ask(QUESTIONS[0], max_tokens=4, logprobs=3)
    assert len(answer.logprobs) == len(answer.tokens)
    for entry, token in zip(answer.logprobs, answer.tokens, strict=True):
        assert entry.id == token == entry.top[0][1]
        assert entry.logprob == entry.top[0][2] <= 0
        assert [one[2] for one in entry.top] == sorted((one[2] for one in entry.top), reverse=True)


def test_a_schema_is_kept(model: Loaded) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    for seed in range(3):
        answer = model.ask(
            "Invent a person.", max_tokens=60, temperature=1.0, seed=seed, json_schema=schema
        )
        if answer.finish != "length":
            assert json.loads(answer.text).keys() == {"name", "age"}
    grammar = 'start: "yes" | "no"'
    assert model.ask("Is water wet?", max_tokens=9, grammar=grammar).text in ("yes", "no")


def test_completions_go_on_where_the_prompt_ends(model: Loaded) -> None:
    answer = model.ask(prompt="The capital of France is", max_tokens=6)
    assert answer.text.startswith(" ")


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"said": "hi", "typical": 0.5}, ParameterError, "typical_p"),
        ({"said": "hi", "sampler_name": "ddim"}, ParameterError, "sampler_name"),
        ({"said": "hi", "repetition_penalty": 0}, ParameterError, "repetition_penalty"),
        ({"said": "hi", "stop": [""]}, ParameterError, "stop"),
        ({"said": "hi", "logit_bias": {10**6: 1}}, ParameterError, "logit_bias"),
        ({"said": "hi", "json_schema": {"type": "nothing"}}, ParameterError, "json_schema"),
        ({"said": "hi", "grammar": "root ::= ("}, ParameterError, "grammar"),
        ({"prompt": ""}, ParameterError, "empty prompt"),
        ({"messages": []}, ParameterError, "empty conversation"),
        ({"said": "word " * 2000}, ContextLengthError, "1,024"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            CapabilityError,
            "text",
        ),
    ],
)
def test_bad_requests(
    model: Loaded, options: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        model.ask(**options)
    assert model.ask(QUESTIONS[0], max_tokens=2).finish == "length"


def test_a_bad_chat_template_is_refused_before_the_weights(load: Callable[..., Loaded]) -> None:
    with pytest.raises(TemplateError, match="chat template"):
        load(smollm2_folder(), chat_template="{% broken")


def test_a_caller_that_leaves_frees_its_place(load: Callable[..., Loaded]) -> None:
    small = load(smollm2_folder(), concurrency=1, max_model_len=1024)

    async def leave() -> None:
        async with small.chunks(small.request(QUESTIONS[2], max_tokens=900)) as chunks:
            async for _ in chunks:
                break

    small.run(leave())
    left = time.monotonic()
    while small.backend.task.stats().running and time.monotonic() < left + 2:
        time.sleep(0.01)
    stats = small.backend.task.stats()
    assert (stats.running, stats.waiting) == (0, 0)
    assert small.ask(QUESTIONS[0], max_tokens=2).finish == "length"
    assert not small.backend.task._engine._rows._cache.layers, "an idle model holds no cache"


def test_a_closed_model_says_so(load: Callable[..., Loaded]) -> None:
    closed = load(smollm2_folder(), concurrency=1, max_model_len=256)
    closed.run(closed.backend.close())
    with pytest.raises(BackendError, match="closed"):
        closed.ask("hi")


def test_tokenize_and_template(model: Loaded) -> None:
    ids = model.run(model.backend.tokenize("Hello world"))
    assert model.backend.task._model.tokenizer.decode(ids) == "Hello world"
    text = model.run(model.backend.apply_chat_template([{"role": "user", "content": "hi"}]))
    assert text.endswith("<|im_start|>assistant\n")
