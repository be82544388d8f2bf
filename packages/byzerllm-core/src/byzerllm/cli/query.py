"""`byzerllm query`."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

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
from byzerllm.cli.session import connect, session
from byzerllm.errors import UsageError

if TYPE_CHECKING:
    from byzerllm.client import ByzerLLM

_EXAMPLES = (
    (_("one question"), "byzerllm query --model my_chat --query 'What is the capital of France?'"),
    (
        _("a question from a file or a pipe"),
        "byzerllm query --model my_chat --query - --system 'Sum it up.' < report.txt",
    ),
    (
        _("speech or a picture into a file"),
        "byzerllm query --model tts --query 'Hello' --output_file hello.mp3",
    ),
)


def use_template(llm: ByzerLLM, model: str, template: str | None) -> None:
    """Render the model's conversations with a template by name; None leaves it to the engine."""
    if template is None:
        return
    from byzerllm.plugins import get_plugins

    chosen = "auto" if template == "auto" else get_plugins().templates.get(template)()
    llm.setup_template(model, chosen)  # type: ignore[arg-type]


def generation(
    max_length: int | None, temperature: float | None, llm_config: dict[str, str]
) -> dict[str, Any]:
    """The `llm_config` of the options that were given."""
    given = {"max_length": max_length, "temperature": temperature}
    return {**llm_config, **{name: value for name, value in given.items() if value is not None}}


def print_stream(
    llm: ByzerLLM, messages: list[dict[str, Any]], model: str, config: dict[str, Any]
) -> dict[str, Any]:
    """Print an answer as it comes.

    Returns:
        what is known of it, as `chat_oai`'s metadata.
    """
    known: dict[str, Any] = {}
    stream = llm.stream_chat_oai(
        conversations=messages, model=model, delta_mode=True, llm_config=config
    )
    with closing(stream):  # type: ignore[type-var]
        for piece, metadata in stream:
            if not isinstance(piece, str):
                raise UsageError(_("the answer is no text; give --output_file to keep it"))
            click.echo(piece, nl=False)
            sys.stdout.flush()
            known = metadata
    click.echo()
    return known


@verb("query", help=_("Ask a model one question and print its answer."), examples=_EXAMPLES)
@model_option()
@option("--query", required=True, metavar="TEXT", help=_("The question; - reads standard input."))
@option("--system", metavar="TEXT", help=_("A system message before the question."))
@option("--image", "images", multiple=True, metavar="FILE|URL", help=_("A picture to look at."))
@option(
    "--template",
    type=Chosen("templates", extra=["auto"]),
    help=_("Chat template; auto or none is the model's own."),
)
@option("--max_length", type=Number(int, least=1), help=_("Limit of new tokens."))
@option("--temperature", type=Number(float, least=0), help=_("0 is always the likeliest answer."))
@pairs_option("--llm_config", help=_("Other generation parameters, such as top_p=0.9 stop=END."))
@option(
    "--stream/--no-stream",
    default=None,
    help=_("Print the answer as it grows; the default on a terminal."),
)
@option(
    "--output_file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help=_("Write the answer there; sound and pictures are decoded."),
)
@address_option()
def command(
    model: str,
    query: str,
    system: str | None,
    images: tuple[str, ...],
    template: str | None,
    max_length: int | None,
    temperature: float | None,
    llm_config: dict[str, str],
    stream: bool | None,
    output_file: Path | None,
    ray_address: str,
) -> None:
    messages = _messages(query, system, images)
    config = generation(max_length, temperature, llm_config)
    llm = connect(ray_address)
    use_template(llm, model, template)
    if stream is None:
        stream = sys.stdout.isatty()
    if stream and output_file is None:
        metadata = print_stream(llm, messages, model, config)
    else:
        answer = llm.chat_oai(conversations=messages, model=model, llm_config=config)[0]
        metadata = answer.metadata
        _show(answer.output, output_file)
    if session.verbose:
        session.hint(str(dict(metadata)))


def _messages(query: str, system: str | None, images: tuple[str, ...]) -> list[dict[str, Any]]:
    from byzerllm.cli.media import image_part

    text = sys.stdin.read().strip() if query == "-" else query
    if not text.strip():
        raise UsageError(_("the question is empty"))
    content: Any = text
    if images:
        content = [{"type": "text", "text": text}, *(image_part(image) for image in images)]
    messages = [{"role": "user", "content": content}]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    return messages


def _show(answer: Any, output_file: Path | None) -> None:
    from byzerllm.cli.media import decode, write_answer
    from byzerllm.cli.render import size

    if output_file is not None:
        for path in write_answer(answer, output_file):
            session.hint(
                _("written: {path} ({size})").format(path=path, size=size(path.stat().st_size))
            )
        return
    media = decode(answer) if sys.stdout.isatty() else []
    if media:
        raise UsageError(
            _("the answer is {type}, {size}; give --output_file to keep it").format(
                type=media[0].type, size=size(len(media[0].data))
            )
        )
    click.echo(answer)
