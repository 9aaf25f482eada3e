"""The verb `serve`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cerebras_jais.commandline import Number
from cerebras_jais.commands.model_options import ALLOW_PICKLE, CONFIG, MODEL, TOKENIZER, WEIGHTS
from cerebras_jais.ranges import COUNT_OR_NONE, PORT, SECONDS, SIZE

if TYPE_CHECKING:
    from cerebras_jais.chat.weights import Weights


@click.command()
@MODEL
@TOKENIZER
@CONFIG
@ALLOW_PICKLE
@WEIGHTS
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at; 0.0.0.0 is every one.")
@click.option("--port", type=Number(PORT), default=8000, show_default=True, help="Port; 0 takes one that is free.")
@click.option("--key-variable", metavar="NAME", help="Environment variable with the key that requests must have.")
@click.option("--allow-host", multiple=True, metavar="NAME", help="Name under which clients may ask; repeatable.")
@click.option(
    "--max-tokens",
    type=Number(SIZE),
    help="Tokens of a prompt and its answer together. Default: the context that the model was trained with.",
)
@click.option(
    "--queue", type=Number(COUNT_OR_NONE), default=64, show_default=True, help="Requests that may wait for the model."
)
@click.option(
    "--grace",
    type=Number(SECONDS),
    default=30.0,
    show_default=True,
    help="Seconds that the answer under way has after Ctrl-C or SIGTERM.",
)
@click.option("--log-requests", is_flag=True, help="A line for each request on standard error, without its text.")
def serve(
    path: Path,
    tokenizer: Path | None,
    config: Path | None,
    allow_pickle: bool,
    weights: Weights,
    host: str,
    port: int,
    key_variable: str | None,
    allow_host: tuple[str, ...],
    max_tokens: int | None,
    queue: int,
    grace: float,
    log_requests: bool,
) -> None:
    """Serve a model on this machine: OpenAI's interface at /v1, and a page to chat with it at /.

    \b
      cerebras-jais serve demo_output/chat-release
      curl http://127.0.0.1:8000/v1/chat/completions \\
          -d '{"messages": [{"role": "user", "content": "ما هي عاصمة الإمارات؟"}]}'

    A client of OpenAI's takes http://127.0.0.1:8000/v1 as its base URL. Only programs of this machine can ask, unless
    --host says otherwise; then give --key-variable too. Ctrl-C and SIGTERM let the answer under way end.
    docs/chat.md says what may be asked.
    """
    import threading

    from cerebras_jais.chat.engine import open_engine
    from cerebras_jais.endpoint.client import key_from
    from cerebras_jais.errors import UserError
    from cerebras_jais.serve.access import is_loopback
    from cerebras_jais.serve.server import Server, Settings, listen, url_of

    key = key_from(key_variable)
    with listen(host, port) as listener:
        engine = open_engine(path, tokenizer=tokenizer, config=config, weights=weights, allow_pickle=allow_pickle)
        if key is None and not is_loopback(host):
            click.echo(
                f"note: whoever reaches {host} can use the model; give --key-variable to ask for a key", err=True
            )
        if max_tokens is not None and max_tokens > engine.context:
            said = f"--max-tokens {max_tokens}: the model was trained with a context of {engine.context}"
            if engine.positions == "rotary":
                raise UserError(f"{said}, beyond which rotary positions do not work; give {engine.context} or less")
            click.echo(f"note: {said}; what it makes of longer texts is its own extrapolation (ALiBi)", err=True)
        settings = Settings(
            most_tokens=max_tokens or engine.context,
            key=key,
            hosts=frozenset(name.lower() for name in (*allow_host, host)),
            most_waiting=queue,
            most_connections=queue + 128,
            log=(lambda line: click.echo(line, err=True)) if log_requests else None,
        )
        server = Server(engine, listener, settings)
        try:
            click.echo(f"{engine.name} answers at {url_of(listener)}; Ctrl-C ends it")
            threading.Event().wait()
        finally:
            click.echo("note: ending; an answer under way ends first", err=True)
            server.stop(grace)
