"""Images as arrays."""

import io
import warnings
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float

from .._extras import missing_extra

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")

# Pillow's modes with at most 8 bits a channel; wider ones have no range that all files agree on
_GREY_MODES = ("1", "L", "LA")
_COLOUR_MODES = ("P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB")


def read_images(
    names: Sequence[str], contents: Iterable[bytes]
) -> Float[np.ndarray, "n height width *channels"]:
    """Images of one size, scaled to [-1, 1], with three channels if any has colour."""
    images: list[np.ndarray] = []
    for name, content in zip(names, contents, strict=True):
        image = _decode(name, content)
        images.append(image)
        if image.shape[:2] != images[0].shape[:2]:
            raise ValueError(
                f"images must have one size; {names[0]} has {_size(images[0])} and {name} has "
                f"{_size(image)}. Crop or resize them as for the network."
            )
    colour = any(image.ndim == 3 for image in images)
    shape = (*images[0].shape[:2], *((3,) if colour else ()))
    found = np.empty((len(images), *shape), np.float32)
    for row, image in zip(found, images, strict=True):
        row[...] = image[..., None] if colour and image.ndim == 2 else image
    found /= 127.5
    found -= 1.0
    return found


def _size(image: np.ndarray) -> str:
    """Width and height in words."""
    return f"{image.shape[1]} x {image.shape[0]} pixels"


def _decode(name: str, content: bytes) -> np.ndarray:
    """Pixels 0..255 of shape (height, width) or (height, width, 3)."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise missing_extra(f"reading {name}", "Pillow") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata, which is not used
            with Image.open(io.BytesIO(content)) as image:
                if image.mode not in _GREY_MODES + _COLOUR_MODES:
                    raise ValueError(
                        f"pixels of mode {image.mode!r} have more than 8 bits per channel"
                    )
                frames = getattr(image, "n_frames", 1)
                # telephones append a preview to a JPEG
                if frames > 1 and image.format != "MPO":
                    raise ValueError(f"it holds {frames} pages or frames; give each its own file")
                return np.asarray(image.convert("L" if image.mode in _GREY_MODES else "RGB"))
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        fault = getattr(error, "strerror", None) or error
        if isinstance(error, UnidentifiedImageError):
            fault = "it is damaged, or in no format that Pillow knows"
        raise ValueError(f"cannot read the image {name}: {fault}.") from None
