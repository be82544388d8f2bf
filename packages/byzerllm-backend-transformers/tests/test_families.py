"""The types of chat models: prompts of their own, foreign code, and the way from a folder to an
answer for every architecture."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from byzerllm import ByzerLLM
from byzerllm.decoding.chat_template import ChatTemplate
from byzerllm.errors import ModelLoadError, ModelNotFoundError, TemplateError
from byzerllm_backend_transformers.chat.model import CausalModel
from byzerllm_backend_transformers.families import FAMILIES, family_of
from byzerllm_backend_transformers.folder import ModelFolder
from hf_models import causal
from hf_models.causal import loading

SEED_TYPES = {
    *("custom/llama2", "bark", "whisper", "chatglm6b", "custom/chatglm2", "moss", "dolly"),
    *("custom/alpha_moss", "falcon", "llama", "custom/starcode", "custom/visualglm"),
    *("custom/m3e", "custom/baichuan", "custom/bge", "custom/qwen_vl_chat", "custom/zephyr"),
    "custom/stable_diffusion",
}
CHAT_TYPES = sorted(t for t, f in FAMILIES.items() if f.task == "chat")
REMOTE_TYPES = sorted(t for t, f in FAMILIES.items() if f.remote_code)

TALK = [
    {"role": "system", "content": 'Be "nice".'},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "你好?"},
]
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)
DOLLY = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request."
)
PROMPTS = {
    "custom/llama2": (
        '<s>[INST] <<SYS>>\nBe "nice".\n<</SYS>>\n\nHi [/INST] Hello </s><s>[INST] 你好? [/INST]',
        "<s>[INST] Hi [/INST]",
    ),
    "llama": (
        '<s>Be "nice". USER: Hi ASSISTANT: Hello</s>USER: 你好? ASSISTANT:',
        f"<s>{VICUNA} USER: Hi ASSISTANT:",
    ),
    "falcon": (
        'System: Be "nice".\nUser: Hi\nAssistant: Hello\nUser: 你好?\nAssistant:',
        "User: Hi\nAssistant:",
    ),
    "dolly": (
        'Be "nice".\n\n### Instruction:\nHi\n\n### Response:\nHello\n\n### End\n\n'
        "### Instruction:\n你好?\n\n### Response:\n",
        f"{DOLLY}\n\n### Instruction:\nHi\n\n### Response:\n",
    ),
    "custom/starcode": (
        '<|system|>\nBe "nice".<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nHello<|end|>\n'
        "<|user|>\n你好?<|end|>\n<|assistant|>\n",
        "<|system|>\n<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\n",
    ),
    "custom/zephyr": (
        '<|system|>\nBe "nice".</s>\n<|user|>\nHi</s>\n<|assistant|>\nHello</s>\n'
        "<|user|>\n你好?</s>\n<|assistant|>\n",
        "<|user|>\nHi</s>\n<|assistant|>\n",
    ),
    "moss": (
        'Be "nice".\n<|Human|>: Hi<eoh>\n<|MOSS|>: Hello<eom>\n<|Human|>: 你好?<eoh>\n<|MOSS|>:',
        "You are an AI assistant whose name is MOSS.\n<|Human|>: Hi<eoh>\n<|MOSS|>:",
    ),
    "chatglm6b": (
        'Be "nice".\n[Round 0]\n问：Hi\n答：Hello\n[Round 1]\n问：你好?\n答：',
        "Hi",
    ),
    "custom/chatglm2": (
        'Be "nice".\n\n[Round 1]\n\n问：Hi\n\n答：Hello\n\n[Round 2]\n\n问：你好?\n\n答：',
        "[Round 1]\n\n问：Hi\n\n答：",
    ),
    "custom/baichuan": (
        'Be "nice".<reserved_102>Hi<reserved_103>Hello<reserved_102>你好?<reserved_103>',
        "<reserved_102>Hi<reserved_103>",
    ),
    "custom/baichuan2": (
        'Be "nice".<reserved_106>Hi<reserved_107>Hello<reserved_106>你好?<reserved_107>',
        "<reserved_106>Hi<reserved_107>",
    ),
}
PROMPTS["custom/alpha_moss"] = PROMPTS["moss"]


def template(model_type: str) -> ChatTemplate:
    return ChatTemplate(family_of(model_type).chat_template, bos="<s>", eos="</s>")


def test_every_type_of_old_is_known() -> None:
    assert set(FAMILIES) >= SEED_TYPES
    assert {"custom/auto", "custom/baichuan2", "custom/bge_rerank"} <= set(FAMILIES)
    assert set(PROMPTS) == set(CHAT_TYPES)


@pytest.mark.parametrize("model_type", CHAT_TYPES)
def test_prompts_are_as_published(model_type: str) -> None:
    whole, single = PROMPTS[model_type]
    assert template(model_type).render(TALK) == whole
    assert template(model_type).render(TALK[1:2]) == single


@pytest.mark.parametrize("model_type", CHAT_TYPES)
def test_roles_that_a_family_lacks_are_refused(model_type: str) -> None:
    with pytest.raises(TemplateError, match="user and assistant"):
        template(model_type).render([{"role": "tool", "content": "4"}])


# From a folder to an answer.

TYPE_OF = {
    "falcon": "falcon",
    "gpt_bigcode": "custom/starcode",
    "gpt_neox": "dolly",
    "llama": "custom/llama2",
    "mistral": "custom/zephyr",
}
QUESTIONS = ("the quick brown fox", "Hi", "seven wizards make toxic brew for king " * 2)
NEW = 12
HALF = "\ufffd"


@pytest.fixture
def llm() -> Iterator[ByzerLLM]:
    client = ByzerLLM(runtime="local", infer_backend="transformers", worker_concurrency=4)
    client.setup_default_model_name("tiny")
    yield client
    if client.is_model_exist("tiny"):
        client.undeploy("tiny", force=True)


def said(question: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}]


def prompt_of(source: str, question: str) -> str:
    return ChatTemplate(source, bos="<s>", eos="</s>").render(said(question))


def expected(folder: Path, prompt: str) -> str:
    """What `generate` of transformers answers, without an end that is half a character."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
    mask = torch.ones_like(ids)
    with torch.inference_mode():
        out = model.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False)
    text: str = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    return text.rstrip(HALF)


@pytest.mark.parametrize("name", sorted(causal.CONFIGS))
def test_every_architecture_answers(name: str, llm: ByzerLLM, tmp_path: Path) -> None:
    """By its type where it has one, with that type's prompt, else by what its folder says."""
    model_type = TYPE_OF.get(name, "custom/auto")
    own = "" if name in TYPE_OF else causal.CHAT_TEMPLATE
    folder = causal.save(tmp_path, name, template=own)
    phases: list[str] = []
    llm.deploy(
        str(folder), model_type, udf_name="tiny", progress=lambda _, phase: phases.append(phase)
    )
    prompt = prompt_of(own or family_of(model_type).chat_template, QUESTIONS[0])
    config = {"temperature": 0, "max_length": NEW}

    (alone,) = llm.chat_oai(said(QUESTIONS[0]), llm_config=config)
    *_, streamed = [text for text, _ in llm.stream_chat_oai(said(QUESTIONS[0]), llm_config=config)]
    with ThreadPoolExecutor(len(QUESTIONS)) as callers:
        asked = callers.map(lambda q: llm.chat_oai(said(q), llm_config=config), QUESTIONS)
        together = [answer.output for (answer,) in asked]

    assert alone.output.rstrip(HALF) == expected(folder, prompt)
    assert streamed == alone.output
    assert together[0] == alone.output
    assert any(phase.startswith("needs about ") for phase in phases)
    assert "loading weights" in phases
    llm.undeploy("tiny")
    with pytest.raises(ModelNotFoundError):
        llm.chat_oai(said("Hi"))


# Code in folders.

_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class HomeConfig(LlamaConfig):
    model_type = "home_made"

class HomeForCausalLM(LlamaForCausalLM):
    config_class = HomeConfig
"""


@pytest.fixture
def home_made(tmp_path: Path) -> Path:
    """A Llama under another name, whose code lies in its folder."""
    folder = causal.save(tmp_path / "home")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "home_made",
        "architectures": ["HomeForCausalLM"],
        "auto_map": {
            "AutoConfig": "modeling_home.HomeConfig",
            "AutoModelForCausalLM": "modeling_home.HomeForCausalLM",
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_home.py").write_text(_CODE)
    return folder


@pytest.mark.parametrize("model_type", ["custom/auto", *REMOTE_TYPES])
def test_code_in_a_folder_runs_only_when_asked(
    model_type: str, llm: ByzerLLM, home_made: Path
) -> None:
    with pytest.raises(ModelLoadError, match="trust_remote_code=true"):
        llm.deploy(str(home_made), model_type, udf_name="tiny")


@pytest.mark.parametrize("model_type", REMOTE_TYPES)
def test_code_that_is_nowhere_is_missed(model_type: str, llm: ByzerLLM, home_made: Path) -> None:
    config = json.loads((home_made / "config.json").read_text())
    del config["auto_map"]
    (home_made / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelLoadError, match=r"fetch it with its \*\.py files"):
        llm.deploy(
            str(home_made), model_type, udf_name="tiny", infer_params={"trust_remote_code": True}
        )


def test_trusted_code_runs(
    llm: ByzerLLM, home_made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    llm.deploy(
        str(home_made),
        "custom/baichuan2",
        udf_name="tiny",
        infer_params={"trust_remote_code": "true"},
    )
    (answer,) = llm.chat_oai(said("Hi"), llm_config={"temperature": 0, "max_length": NEW})
    plain = causal.save(tmp_path / "plain")
    assert answer.output.rstrip(HALF) == expected(plain, prompt_of(causal.CHAT_TEMPLATE, "Hi"))


def test_own_template_of_a_folder_wins(tmp_path: Path) -> None:
    folder = causal.save(tmp_path)
    assert CausalModel.load(loading(folder, "custom/llama2")).chat_template == causal.CHAT_TEMPLATE
    bare = causal.save(tmp_path / "bare", template="")
    model = CausalModel.load(loading(bare, "custom/llama2"))
    assert model.chat_template == family_of("custom/llama2").chat_template
    given = CausalModel.load(loading(bare, "custom/llama2", chat_template="{{ messages }}"))
    assert given.chat_template == "{{ messages }}"
    assert CausalModel.load(loading(bare)).chat_template == ""


def test_stop_texts_that_are_tokens_end_answers(tmp_path: Path) -> None:
    model = CausalModel.load(loading(causal.save(tmp_path), "custom/starcode"))
    assert model.end_tokens == {1, model.tokenizer.get_added_vocab()["<|end|>"]}


def test_a_folder_says_what_it_does(tmp_path: Path) -> None:
    def task(**config: Any) -> str:
        (tmp_path / "config.json").write_text(json.dumps(config))
        return ModelFolder(tmp_path).task(family_of("custom/auto"))

    assert task(architectures=["LlamaForCausalLM"]) == "chat"
    assert task(architectures=["GPT2LMHeadModel"]) == "chat"
    assert task(architectures=["BertForSequenceClassification"]) == "rerank"
    assert task(architectures=["BertModel"]) == "embedding"
    assert task(architectures=["WhisperForConditionalGeneration"]) == "transcription"
    assert task(architectures=["BarkModel"]) == "speech"
    assert task(architectures=["Qwen2VLForConditionalGeneration"], vision_config={}) == "vision"
