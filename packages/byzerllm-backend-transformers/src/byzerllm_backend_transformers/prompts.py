"""Chat templates of families whose model folders often bring none, as Jinja text.

Written after the formats that the families' authors published:

- Llama 2: https://www.llama.com/docs/model-cards-and-prompt-formats/meta-llama-2
- Vicuna 1.1 and later: https://github.com/lm-sys/FastChat/blob/main/docs/vicuna_weights_version.md
- Falcon: https://huggingface.co/blog/falcon
- Dolly 2: https://huggingface.co/databricks/dolly-v2-12b (`instruct_pipeline.py`)
- StarChat: https://huggingface.co/HuggingFaceH4/starchat-beta
- Zephyr: https://huggingface.co/HuggingFaceH4/zephyr-7b-beta
- MOSS: https://github.com/OpenLMLab/MOSS
- ChatGLM: https://huggingface.co/THUDM/chatglm-6b and chatglm2-6b (`chat` and `build_prompt`)
- Baichuan: https://huggingface.co/baichuan-inc/Baichuan-13B-Chat and Baichuan2-13B-Chat
  (`generation_utils.py`; 195 and 196 are the tokens of their roles)
"""

from __future__ import annotations

import json
import re

_ROLES = "this family's chat template knows the roles system (first), user and assistant"


def _turns(
    *,
    user: str,
    assistant: str,
    opening: str,
    system: str = "{}\n",
    default_system: str | None = None,
    begin: bool = False,
) -> str:
    """A template of independent turns.

    Args:
        user, assistant, system: a turn's text; `{}` is what was said, `{eos}` the end token.
        opening: what stands before the answer to come.
        default_system: said when the messages bring no system message; None says nothing.
        begin: the model's first token comes first.
    """
    default = ""
    if default_system is not None:
        said = _text(system, json.dumps(default_system))
        default = "{% if messages[0]['role'] != 'system' %}" + said + "{% endif %}"
    return (
        ("{{ bos_token }}" if begin else "")
        + default
        + "{% for message in messages %}"
        + "{% if message['role'] == 'user' %}"
        + _text(user)
        + "{% elif message['role'] == 'assistant' %}"
        + _text(assistant)
        + "{% elif message['role'] == 'system' and loop.first %}"
        + _text(system)
        + "{% else %}{{ raise_exception("
        + json.dumps(_ROLES)
        + ") }}{% endif %}{% endfor %}{% if add_generation_prompt %}"
        + _text(opening)
        + "{% endif %}"
    )


def _text(pattern: str, said: str = "message['content']") -> str:
    """Jinja that writes `pattern`."""
    slots = {"{}": said, "{eos}": "eos_token"}
    parts = [part for part in re.split(r"(\{\}|\{eos\})", pattern) if part]
    return "{{ " + " + ".join(slots.get(part) or json.dumps(part) for part in parts) + " }}"


LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}"
    "{% set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}"
    "{% set turns = messages[1:] %}"
    "{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
    "{% for message in turns %}"
    "{% if message['role'] != ('user' if loop.index0 % 2 == 0 else 'assistant') %}"
    "{{ raise_exception('Llama 2 takes user and assistant in turn, after one system message') }}"
    "{% elif message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + (system if loop.first else '') + message['content'] | trim"
    " + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] | trim + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)

VICUNA = _turns(
    begin=True,
    system="{} ",
    default_system="A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    user="USER: {} ",
    assistant="ASSISTANT: {}{eos}",
    opening="ASSISTANT:",
)

FALCON = _turns(
    system="System: {}\n", user="User: {}\n", assistant="Assistant: {}\n", opening="Assistant:"
)

DOLLY = _turns(
    system="{}\n\n",
    default_system="Below is an instruction that describes a task. Write a response that "
    "appropriately completes the request.",
    user="### Instruction:\n{}\n\n",
    assistant="### Response:\n{}\n\n### End\n\n",
    opening="### Response:\n",
)

STARCHAT = _turns(
    system="<|system|>\n{}<|end|>\n",
    default_system="",
    user="<|user|>\n{}<|end|>\n",
    assistant="<|assistant|>\n{}<|end|>\n",
    opening="<|assistant|>\n",
)

ZEPHYR = _turns(
    system="<|system|>\n{}{eos}\n",
    user="<|user|>\n{}{eos}\n",
    assistant="<|assistant|>\n{}{eos}\n",
    opening="<|assistant|>\n",
)

MOSS = _turns(
    default_system="You are an AI assistant whose name is MOSS.",
    user="<|Human|>: {}<eoh>\n",
    assistant="<|MOSS|>: {}<eom>\n",
    opening="<|MOSS|>:",
)


def _rounds(*, first: int, gap: str, bare_question: bool) -> str:
    """ChatGLM's numbered rounds.

    Args:
        first: number of the first round.
        gap: what separates the parts of a round.
        bare_question: a first question stands for itself.
    """
    question = (
        f"'[Round ' ~ (counter.round + {first}) ~ ']{gap}问：' ~ message['content'] ~ '{gap}'"
    )
    return (
        "{% set counter = namespace(round=0) %}"
        "{% for message in messages %}"
        "{% if message['role'] == 'user' %}"
        + (
            "{% if messages | selectattr('role', 'eq', 'user') | list | length == 1"
            " and loop.last %}{{ message['content'] }}{% set counter.bare = true %}{% else %}"
            if bare_question
            else ""
        )
        + "{{ "
        + question
        + " }}{% set counter.round = counter.round + 1 %}"
        + ("{% endif %}" if bare_question else "")
        + "{% elif message['role'] == 'assistant' %}"
        + f"{{{{ '答：' ~ message['content'] ~ '{gap}' }}}}"
        + "{% elif message['role'] == 'system' and loop.first %}"
        + f"{{{{ message['content'] ~ '{gap}' }}}}"
        + "{% else %}{{ raise_exception("
        + json.dumps(_ROLES)
        + ") }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt and not counter.bare %}答：{% endif %}"
    )


CHATGLM = _rounds(first=0, gap="\\n", bare_question=True)
CHATGLM2 = _rounds(first=1, gap="\\n\\n", bare_question=False)

BAICHUAN = _turns(
    system="{}", user="<reserved_102>{}", assistant="<reserved_103>{}", opening="<reserved_103>"
)
BAICHUAN2 = _turns(
    system="{}", user="<reserved_106>{}", assistant="<reserved_107>{}", opening="<reserved_107>"
)
