"""The command line: optimize, evaluate, compare, export.

Every mistake in what is asked for is one line on standard error and exit code 2. Results
go to standard output. Whatever would make a result impossible to keep is found before
anything is computed.
"""

from ._app import run as run
