"""`python -m jaxkernels` and the command `jaxkernels`."""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec

# What the command line is built on; the other packages of its extra are asked for when
# they are used.
_NEEDED = ("typer", "rich")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    **Arguments:**

    - `arguments`: default those of the process.

    **Returns:** the exit code.
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        print(
            f"jaxkernels: the command line needs {missing[0]}, which is not installed: "
            'pip install "jaxkernels[cli]"',
            file=sys.stderr,
        )
        return 2
    return import_module("jaxkernels.cli").run(arguments)


if __name__ == "__main__":
    sys.exit(main())
