"""Reading samples and spectra: what comes back, and that every fault of a file is named."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from jaxkernels import data
from jaxkernels.data import load, load_numbers, load_spectrum

SAMPLES = np.array([[0.5, -1.0, 2.0], [1.5, 0.25, -3.0]])


def _image(path: Path, size: tuple[int, int] = (4, 3), mode: str = "L", value: int = 0) -> None:
    pixel = {"L": value, "RGB": (value, 0, 0), "I;16": value, "P": value}[mode]
    Image.new(mode, size, pixel).save(path)


def _save_as_archive(path: Path) -> None:
    np.save(path.with_suffix(".npy"), SAMPLES)
    path.with_suffix(".npy").rename(path)


def test_the_namespace_shows_public_functions_only():
    # the suite's type checker adds a name of its own to every module
    shown = {name for name in dir(data) if not name.startswith("_")} - {"jaxtyping"}
    assert shown == {"load", "load_numbers", "load_spectrum"}


class TestSamples:
    def test_digits_are_scaled_to_plus_minus_one(self):
        x = load("digits")
        assert x.shape == (1797, 8, 8)
        assert (x.min(), x.max()) == (-1.0, 1.0)

    def test_arrays_keep_their_shape_and_numbers(self, tmp_path: Path):
        x = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
        np.save(tmp_path / "x.npy", x)
        np.testing.assert_array_equal(load(tmp_path / "x.npy"), x)

    def test_archive_of_one_needs_no_key(self, tmp_path: Path):
        np.savez(tmp_path / "x.npz", x=SAMPLES)
        np.testing.assert_array_equal(load(tmp_path / "x.npz"), SAMPLES)

    def test_archive_of_several_is_read_by_key(self, tmp_path: Path):
        np.savez_compressed(tmp_path / "x.npz", a=SAMPLES, b=2 * SAMPLES)
        np.testing.assert_array_equal(load(tmp_path / "x.npz", key="b"), 2 * SAMPLES)
        with pytest.raises(ValueError, match=r"x\.npz holds 2 arrays; select one by key: a, b"):
            load(tmp_path / "x.npz")
        with pytest.raises(ValueError, match="key='c' is not known"):
            load(tmp_path / "x.npz", key="c")

    @pytest.mark.parametrize(
        "header", ["", "height,width,depth\n", "# a remark\n\n", '"a","b","c"\n']
    )
    def test_text_with_and_without_names(self, tmp_path: Path, header: str):
        (tmp_path / "x.csv").write_text(header + '0.5,-1,"2"\n\n1.5,0.25,-3e0\n')
        np.testing.assert_array_equal(load(tmp_path / "x.csv"), SAMPLES)

    def test_grey_images_in_the_order_of_their_names(self, tmp_path: Path):
        _image(tmp_path / "b.png", value=255)
        _image(tmp_path / "a.png", value=0)
        (tmp_path / "notes.txt").write_text("not an image")
        x = load(tmp_path)
        assert x.shape == (2, 3, 4)
        np.testing.assert_array_equal(x[:, 0, 0], [-1.0, 1.0])

    def test_one_colour_image_makes_all_three_channelled(self, tmp_path: Path):
        _image(tmp_path / "a.png", value=255)
        _image(tmp_path / "b.png", mode="RGB", value=255)
        x = load(tmp_path)
        assert x.shape == (2, 3, 4, 3)
        np.testing.assert_array_equal(x[:, 0, 0], [[1.0, 1.0, 1.0], [1.0, -1.0, -1.0]])


class TestFaultsOfSamples:
    """Each file is made by a function of its path; the error must name it and the fault."""

    CASES: ClassVar[dict[str, tuple[str, Callable[[Path], object], str]]] = {
        "missing": (
            "x.npy",
            lambda p: None,
            "no file or folder that exists, nor the name of a data set",
        ),
        "suffix": ("x.xyz", lambda p: p.touch(), "suffix '.xyz'; files that can be read are .npy"),
        "empty file": ("x.npy", lambda p: p.touch(), "damaged or cut off"),
        "empty text": ("x.csv", lambda p: p.touch(), "holds no numbers"),
        "only names": ("x.csv", lambda p: p.write_text("a,b\n"), "holds no numbers"),
        "no rows": ("x.npy", lambda p: np.save(p, np.empty((0, 3))), "is empty"),
        "one row": ("x.npy", lambda p: np.save(p, SAMPLES[:1]), "holds 1 sample; at least 2"),
        "one line": ("x.csv", lambda p: p.write_text("1,2,3\n"), "holds 1 sample; at least 2"),
        "flat": ("x.npy", lambda p: np.save(p, SAMPLES[0]), "shape (3,)"),
        "nan": ("x.npy", lambda p: np.save(p, [[1.0, 2.0], [np.nan, 3.0]]), "[1, 0] = nan"),
        "infinity": ("x.csv", lambda p: p.write_text("1,2\n3,inf\n"), "[1, 1] = inf"),
        "ragged": (
            "x.csv",
            lambda p: p.write_text("1,2\n3,4,5\n"),
            "line 2 has 3 entries where line 1 has 2",
        ),
        "word": ("x.csv", lambda p: p.write_text("1,2\n3,four\n"), "line 2 has 'four'"),
        "gap": ("x.csv", lambda p: p.write_text("1,2\n3,\n"), "line 2 has ''"),
        "pickle": ("x.npy", lambda p: np.save(p, np.array([[{}], [1]])), "not a plain NumPy array"),
        "words": ("x.npy", lambda p: np.save(p, np.array([["a"], ["b"]])), "real numbers"),
        "text as array": ("x.npy", lambda p: p.write_text("1,2\n3,4\n"), "damaged, cut off or not"),
        "array as archive": ("x.npz", _save_as_archive, "a .npy file by content"),
        "binary text": ("x.csv", lambda p: p.write_bytes(b"\xff\xfe\x00"), "damaged or cut off"),
        "folder": ("x", lambda p: p.mkdir(), "a folder without images"),
    }

    @pytest.mark.parametrize("case", CASES)
    def test_named(self, tmp_path: Path, case: str):
        name, make, fault = self.CASES[case]
        make(tmp_path / name)
        with pytest.raises(ValueError, match=re.escape(fault)) as raised:
            load(tmp_path / name)
        assert name in str(raised.value)

    @pytest.mark.parametrize("name", ["x.npy", "x.npz"])
    @pytest.mark.parametrize("kept", [0.3, 0.9])
    def test_cut_off(self, tmp_path: Path, name: str, kept: float):
        path = tmp_path / name
        (np.save if name.endswith("npy") else np.savez)(
            path, np.random.default_rng(0).normal(size=(50, 7))
        )
        path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
        with pytest.raises(ValueError, match=name):
            load(path)

    def test_images_of_two_sizes(self, tmp_path: Path):
        _image(tmp_path / "a.png")
        _image(tmp_path / "b.png", size=(5, 3))
        with pytest.raises(
            ValueError, match=r"a\.png has 4 x 3 pixels and .*b\.png has 5 x 3 pixels"
        ):
            load(tmp_path)

    def test_image_cut_off(self, tmp_path: Path):
        _image(tmp_path / "a.png")
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)).save(
            tmp_path / "b.png"
        )
        content = (tmp_path / "b.png").read_bytes()
        (tmp_path / "b.png").write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match=r"cannot read the image .*b\.png"):
            load(tmp_path)

    def test_image_of_16_bits(self, tmp_path: Path):
        _image(tmp_path / "a.png", mode="I;16", value=700)
        with pytest.raises(ValueError, match=r"a\.png.*more than 8 bits"):
            load(tmp_path)

    def test_key_for_a_file_without_keys(self, tmp_path: Path):
        np.save(tmp_path / "x.npy", SAMPLES)
        with pytest.raises(ValueError, match=r"key = 'a' is for \.npz files"):
            load(tmp_path / "x.npy", key="a")


class TestSpectrum:
    VALUES = (3.0, 0.5, 0.0)

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("s.csv", "3,0.5,0\n"),
            ("s.txt", "3\n0.5\n0\n"),
            ("s.txt", "3 0.5 0"),
            ("s.json", "[3, 0.5, 0]"),
        ],
    )
    def test_text(self, tmp_path: Path, name: str, text: str):
        (tmp_path / name).write_text(text)
        np.testing.assert_array_equal(load_spectrum(tmp_path / name), self.VALUES)

    def test_array(self, tmp_path: Path):
        np.save(tmp_path / "s.npy", np.asarray(self.VALUES, np.float32))
        np.testing.assert_array_equal(load_spectrum(tmp_path / "s.npy"), self.VALUES)

    def test_single_number(self, tmp_path: Path):
        (tmp_path / "s.json").write_text("[2]")
        np.testing.assert_array_equal(load_numbers(tmp_path / "s.json"), [2.0])

    @pytest.mark.parametrize(
        ("text", "fault"),
        [
            ("[1, -0.25]", r"s\.json: eigenvalues\[1\] = -0.25 is negative"),
            ("[1, NaN]", r"s\.json\[1\] = nan"),
            ("[]", "is empty"),
            ("[1, 2", "not a complete JSON file"),
            ('{"a": 1}', "holds a dict"),
            ("[[1, 2], [3, 4]]", r"shape \(2, 2\)"),
            ('["x"]', "real numbers"),
        ],
    )
    def test_faults(self, tmp_path: Path, text: str, fault: str):
        (tmp_path / "s.json").write_text(text)
        with pytest.raises(ValueError, match=fault):
            load_spectrum(tmp_path / "s.json")

    def test_json_is_for_lists_only(self, tmp_path: Path):
        (tmp_path / "x.json").write_text(json.dumps([[1, 2], [3, 4]]))
        with pytest.raises(ValueError, match=r"suffix '\.json'"):
            load(tmp_path / "x.json")
