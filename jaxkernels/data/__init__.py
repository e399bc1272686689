"""Data sets and spectra from files and installed packages."""

from ._load import (
    load as load,
    load_numbers as load_numbers,
    load_spectrum as load_spectrum,
)
