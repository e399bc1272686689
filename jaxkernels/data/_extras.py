"""Libraries that come with the command line only."""


def missing_extra(what: str, library: str) -> ImportError:
    """An error that says how to install a library."""
    return ImportError(
        f'{what} needs {library}, which is not installed: pip install "jaxkernels[cli]".'
    )
