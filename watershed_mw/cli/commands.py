"""The group of the commands ``connect``, ``echo`` and ``proxy``; errors become a line on stderr and an exit status."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version

import click
from rich.console import Console

from .._implementation import implementation
from .connect import connect
from .echo import echo
from .output import Failure, escape, say
from .proxy import proxy

__all__ = ["cli", "run"]

_PROGRAM = "watershed-mw"


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(
    version("watershed-mw"),
    prog_name=_PROGRAM,
    message=f"%(prog)s %(version)s ({implementation}, Python {platform.python_version()})",
)
def cli() -> None:
    """WebSockets on the command line.

    \b
    watershed-mw connect wss://example.org/chat      talk to a server; in a pipe, a line is a message
    watershed-mw echo                                an echo server
    watershed-mw proxy --listen :8080 --to ws://127.0.0.1:9000
    """


cli.add_command(connect)
cli.add_command(echo)
cli.add_command(proxy)


def run(arguments: Sequence[str]) -> int:
    """Run the command in ``arguments`` and return its exit status."""
    try:
        status = cli.main(arguments or ["--help"], _PROGRAM, standalone_mode=False)
    except click.ClickException as error:
        message = escape(" ".join(error.format_message().split()))
        if not isinstance(error, Failure):
            context = getattr(error, "ctx", None)
            message += f" (see {context.command_path if context else _PROGRAM} --help)"
        say(Console(stderr=True), f"{_PROGRAM}: {message}", "red")
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for the interpreter's flush at exit
        return 0
    return status if isinstance(status, int) else 0
