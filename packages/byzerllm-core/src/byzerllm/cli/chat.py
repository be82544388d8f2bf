"""`byzerllm chat`."""

from __future__ import annotations

import sys

from byzerllm.cli.i18n import _
from byzerllm.cli.options import (
    Chosen,
    Number,
    address_option,
    model_option,
    option,
    pairs_option,
    verb,
)
from byzerllm.cli.session import connect


@verb(
    "chat",
    help=_(
        "Have a conversation in the terminal.\n\n"
        "Enter sends, Alt+Enter begins a new line, Ctrl-C stops the answer, Ctrl-D leaves, /help "
        "shows the commands. Without a terminal each line of standard input is one turn."
    ),
    examples=(
        (_("talk"), "byzerllm chat --model my_chat"),
        (_("with a system message"), "byzerllm chat --model my_chat --system 'Answer in French.'"),
    ),
)
@model_option()
@option("--system", metavar="TEXT", help=_("A system message that the conversation begins with."))
@option(
    "--template",
    type=Chosen("templates", extra=["auto"]),
    help=_("Chat template; auto or none is the model's own."),
)
@option("--max_length", type=Number(int, least=1), help=_("Limit of new tokens."))
@option("--temperature", type=Number(float, least=0), help=_("0 is always the likeliest answer."))
@pairs_option("--llm_config", help=_("Other generation parameters, such as top_p=0.9 stop=END."))
@address_option()
def command(
    model: str,
    system: str | None,
    template: str | None,
    max_length: int | None,
    temperature: float | None,
    llm_config: dict[str, str],
    ray_address: str,
) -> None:
    from byzerllm.cli.conversation import Conversation
    from byzerllm.cli.query import generation, use_template

    llm = connect(ray_address)
    # An unknown model is told before the first line is typed.
    llm.get_meta(model)
    use_template(llm, model, template)
    config = generation(max_length, temperature, llm_config)
    conversation = Conversation(llm, model, config, system)
    if sys.stdin.isatty() and sys.stdout.isatty():
        from byzerllm.cli.terminal import ChatTerminal

        ChatTerminal(conversation).run()
        return
    for line in sys.stdin:
        if line.strip():
            conversation.answer(line.strip(), sys.stdout)
