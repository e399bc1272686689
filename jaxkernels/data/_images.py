"""Folders of images as arrays."""

import warnings
from pathlib import Path

import numpy as np

from ._extras import missing_extra

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")

# Pillow's modes with at most 8 bits a channel; wider ones have no range that all files agree on
_GREY_MODES = ("1", "L", "LA")
_COLOUR_MODES = ("P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB")


def read_images(folder: Path) -> np.ndarray:
    """All images of a folder, scaled to [-1, 1]."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise ValueError(f"{folder} is a folder without images ({', '.join(IMAGE_SUFFIXES)}).")
    images = [_image(path) for path in paths]
    for path, image in zip(paths, images, strict=True):
        if image.shape[:2] != images[0].shape[:2]:
            raise ValueError(
                f"images must have one size; {paths[0]} has {_size(images[0])} and {path} has "
                f"{_size(image)}."
            )
    if len({image.ndim for image in images}) > 1:
        images = [
            image if image.ndim == 3 else np.repeat(image[..., None], 3, -1) for image in images
        ]
    return np.stack(images) / 127.5 - 1.0


def _size(image: np.ndarray) -> str:
    """Width and height in words."""
    return f"{image.shape[1]} x {image.shape[0]} pixels"


def _image(path: Path) -> np.ndarray:
    """Pixels 0..255 of shape (height, width) or (height, width, 3)."""
    try:
        from PIL import Image
    except ImportError:
        raise missing_extra(f"reading {path}", "Pillow") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata, which is not used
            with Image.open(path) as image:
                if image.mode not in _GREY_MODES + _COLOUR_MODES:
                    raise ValueError(
                        f"pixels of mode {image.mode!r} have more than 8 bits per channel"
                    )
                return np.asarray(image.convert("L" if image.mode in _GREY_MODES else "RGB"))
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        fault = getattr(error, "strerror", None) or error
        raise ValueError(f"cannot read the image {path}: {fault}.") from None
