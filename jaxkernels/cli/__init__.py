"""The command line."""

from ._commands import run as run
