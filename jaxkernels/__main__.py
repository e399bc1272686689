"""`python -m jaxkernels` and the command `jaxkernels`."""

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line on `arguments` (default: those of the process). Returns the exit code."""
    try:
        import rich as rich
        import typer as typer
    except ImportError as error:
        print(
            f'jaxkernels: the command line needs {error.name}, which is not installed: pip install "jaxkernels[cli]"',
            file=sys.stderr,
        )
        return 2
    from .cli import run

    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
