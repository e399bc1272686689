"""The application: its commands, its entry point and its exit codes."""

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from .. import __version__
from ._cache import compilation_cache
from ._commands import Compare, Evaluate, Export, Optimize
from ._options import AbstractCommand

_COMMANDS: dict[str, type[AbstractCommand]] = {
    "optimize": Optimize,
    "evaluate": Evaluate,
    "compare": Compare,
    "export": Export,
}

app = typer.Typer(
    help="Exact errors and optimal schedules for diffusion samplers.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
for _name, _command in _COMMANDS.items():
    app.command(_name)(_command)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        print(f"jaxkernels {__version__}")
        raise typer.Exit


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit code instead of raising.

    **Arguments:**

    - `arguments`: default those of the process.

    **Returns:** 0; 2 for a mistake, told in one line on standard error; 130 if interrupted; 1 if
    nobody reads the output any more.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run(given or ["--help"])
    except (ValueError, ImportError) as error:
        return _fail(str(error))
    except (typer.Abort, KeyboardInterrupt):
        print("jaxkernels: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of the output has gone; nothing is left to say to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        # typer's errors of usage are known by this method, whichever library they come from
        if not hasattr(error, "format_message"):
            raise
        message = error.format_message()  # pyright: ignore[reportAttributeAccessIssue]
        return _fail(message + _stated_value(error, given))


def _stated_value(error: Exception, arguments: Sequence[str]) -> str:
    """What was given for the option that an error of usage is about, which typer leaves out."""
    for flag in getattr(getattr(error, "param", None), "opts", ()):
        for argument, after in zip(arguments, [*arguments[1:], None], strict=True):
            name, equals, value = argument.partition("=")
            value = value if equals else after
            if name == flag and value is not None and value not in str(error):
                return f" (got {value!r})"
    return ""


def _run(arguments: list[str]) -> int:
    """Parse the arguments into a command, then run it."""
    parsed = app(arguments, prog_name="jaxkernels", standalone_mode=False)
    if not isinstance(parsed, AbstractCommand):
        # help, the version, or an exit
        return parsed if isinstance(parsed, int) else 0
    with compilation_cache(enabled=not parsed.no_cache):
        parsed.run()
    return 0


def _fail(message: str) -> int:
    """Tell a mistake in one line, and return its exit code."""
    print(f"jaxkernels: error: {' '.join(message.split())}", file=sys.stderr)
    return 2
