"""Optional libraries."""


def missing_extra(what: str, library: str, extra: str = "cli") -> ImportError:
    """An error that says how to install a library."""
    return ImportError(
        f'{what} needs {library}, which is not installed: pip install "jaxkernels[{extra}]".'
    )
