"""Reading samples and spectra: what comes back, and that every fault of a file is named."""

import io
import json
import re
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import h5py
import jax.numpy as jnp
import numpy as np
import pandas
import pyarrow
import pyarrow.parquet
import pytest
import safetensors.flax
import safetensors.numpy
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
        "binary text": (
            "x.csv",
            lambda p: p.write_bytes(b"\xff\xfe\x00"),
            "is damaged, cut off or not in UTF-8",
        ),
        "folder": ("x", lambda p: p.mkdir(), "holds no images or arrays"),
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

    def test_a_file_that_is_no_image(self, tmp_path: Path):
        (tmp_path / "a.png").write_bytes(b"none")
        with pytest.raises(ValueError, match=r"a\.png: it is damaged, or in no format that Pillow"):
            load(tmp_path)

    def test_image_of_16_bits(self, tmp_path: Path):
        _image(tmp_path / "a.png", mode="I;16", value=700)
        with pytest.raises(ValueError, match=r"a\.png.*more than 8 bits"):
            load(tmp_path)

    def test_key_for_a_file_without_keys(self, tmp_path: Path):
        (tmp_path / "images").mkdir()
        np.save(tmp_path / "x.npy", SAMPLES)
        _image(tmp_path / "images" / "a.png")
        for source in (tmp_path / "x.npy", tmp_path / "images", "digits"):
            with pytest.raises(ValueError, match=r"key = 'a' is for \.npz files"):
                load(source, key="a")


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


def _load(source: Path, **options) -> tuple[np.ndarray, list[str]]:
    """The samples, and what was said of them."""
    notes: list[str] = []
    return load(source, report=notes.append, **options), notes


class TestPandas:
    """Tables as pandas writes them come back without their header and index."""

    FRAME = pandas.DataFrame(SAMPLES)

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({}, ["line 1 is the header ('', 0, 1, 2)", "the first column is the index"]),
            ({"index": False}, ["line 1 is the header (0, 1, 2)"]),
            ({"index": False, "header": False}, []),
            ({"index_label": "index"}, ["(index, 0, 1, 2)", "the first column is the index"]),
            ({"sep": ";", "decimal": ","}, ["('', 0, 1, 2)", "the first column is the index"]),
            ({"sep": ";", "index": False}, ["line 1 is the header (0, 1, 2)"]),
            ({"sep": "\t", "index": False}, ["line 1 is the header (0, 1, 2)"]),
        ],
    )
    def test_what_to_csv_writes(self, tmp_path: Path, options: dict, said: list[str]):
        self.FRAME.to_csv(tmp_path / "x.csv", **options)
        values, notes = _load(tmp_path / "x.csv")
        np.testing.assert_array_equal(values, SAMPLES)
        assert len(notes) == len(said)
        assert all(text in note for text, note in zip(said, notes))

    def test_an_index_of_words(self, tmp_path: Path):
        self.FRAME.rename(index={0: "a", 1: "b"}).to_csv(tmp_path / "x.csv")
        np.testing.assert_array_equal(_load(tmp_path / "x.csv")[0], SAMPLES)

    @pytest.mark.parametrize("columns", [[3, 7, 12], [1, 2, 3], [0.0, 1.0, 2.0], [-1, 0, 1]])
    @pytest.mark.parametrize("index", [False, True])
    def test_columns_named_by_other_integers(self, tmp_path: Path, columns: list, index: bool):
        """Selected columns, and those that are counted from 1; fractions below tell them apart."""
        values = np.array([[0.5, 3.0, 2.0], [1.0, 0.25, 7.0]])
        pandas.DataFrame(values, columns=columns).to_csv(tmp_path / "x.csv", index=index)
        found, notes = _load(tmp_path / "x.csv")
        np.testing.assert_array_equal(found, values)
        assert f"{columns[0]}, {columns[1]}, {columns[2]})" in notes[0]

    def test_columns_named_by_fractions_have_an_index_before_them(self, tmp_path: Path):
        frame = pandas.DataFrame(SAMPLES, columns=pandas.Index([400.0, 410.5, 421.0]))
        frame.to_csv(tmp_path / "x.csv")
        np.testing.assert_array_equal(_load(tmp_path / "x.csv")[0], SAMPLES)

    @pytest.mark.parametrize("text", ["1,2\n3,4\n", "4,2\n0.5,1\n", "1,2\ninf,5\n"])
    def test_integers_that_may_be_a_sample_are_one(self, tmp_path: Path, text: str):
        (tmp_path / "x.csv").write_text(text)
        if "inf" in text:
            with pytest.raises(ValueError, match=r"\[1, 0\] = inf"):
                _load(tmp_path / "x.csv")
        else:
            assert _load(tmp_path / "x.csv")[0].shape == (2, 2)

    def test_a_first_line_that_may_be_names_is_told(self, tmp_path: Path):
        """Wavenumbers, or years, that nothing tells from a sample."""
        pandas.DataFrame(SAMPLES, columns=pandas.Index([400.0, 410.5, 421.0])).to_csv(
            tmp_path / "x.csv", index=False
        )
        found, notes = _load(tmp_path / "x.csv")
        np.testing.assert_array_equal(found, [[400.0, 410.5, 421.0], *SAMPLES])
        assert notes == [f"{tmp_path / 'x.csv'}: line 1 is no header, but a sample that increases"]

    def test_names_in_two_lines(self, tmp_path: Path):
        columns = pandas.MultiIndex.from_product([["x"], [0, 1, 2]])
        pandas.DataFrame(SAMPLES, columns=columns).to_csv(tmp_path / "x.csv")
        with pytest.raises(ValueError, match=r"line 2 has no entry for the index.*in one line"):
            load(tmp_path / "x.csv")

    def test_a_spectrum(self, tmp_path: Path):
        pandas.Series([3.0, 0.5]).to_csv(tmp_path / "s.csv")
        values = load_spectrum(tmp_path / "s.csv", report=lambda text: None)
        np.testing.assert_array_equal(values, [3.0, 0.5])

    def test_parquet(self, tmp_path: Path):
        named = self.FRAME.rename(columns=str)
        named.to_parquet(tmp_path / "x.parquet")
        np.testing.assert_array_equal(_load(tmp_path / "x.parquet")[0], SAMPLES)
        named.assign(label=["a", "b"]).to_parquet(tmp_path / "y.parquet")
        with pytest.raises(ValueError, match=r"column 'label' holds .*string, not numbers"):
            load(tmp_path / "y.parquet")


class TestFormats:
    """What other libraries write comes back."""

    LATENTS = np.random.default_rng(0).normal(size=(6, 4, 3, 2)).astype(np.float32)

    def test_safetensors(self, tmp_path: Path):
        safetensors.numpy.save_file({"a": self.LATENTS, "b": SAMPLES}, tmp_path / "x.safetensors")
        found = load(tmp_path / "x.safetensors", key="a")
        np.testing.assert_array_equal(found, self.LATENTS)
        assert found.dtype == np.float32
        halves = {"z": jnp.asarray(SAMPLES, jnp.bfloat16)}  # SAMPLES have few digits
        safetensors.flax.save_file(halves, tmp_path / "y.safetensors")
        np.testing.assert_array_equal(load(tmp_path / "y.safetensors"), SAMPLES)
        with pytest.raises(ValueError, match="holds 2 arrays; select one by key: a, b"):
            load(tmp_path / "x.safetensors")
        eights = {"z": jnp.asarray(SAMPLES, jnp.float8_e4m3fn)}
        safetensors.flax.save_file(eights, tmp_path / "z.safetensors")
        np.testing.assert_array_equal(load(tmp_path / "z.safetensors"), SAMPLES)

    def test_hdf5(self, tmp_path: Path):
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file["group/latents"] = self.LATENTS
        np.testing.assert_array_equal(load(tmp_path / "x.h5"), self.LATENTS)
        h5py.File(tmp_path / "empty.h5", "w").close()
        with pytest.raises(ValueError, match=r"empty\.h5 holds no array"):
            load(tmp_path / "empty.h5")
        (tmp_path / "y.h5").write_bytes(b"no such file")
        with pytest.raises(ValueError, match=r"y\.h5 is damaged"):
            load(tmp_path / "y.h5")

    def test_torch(self, tmp_path: Path):
        torch = pytest.importorskip("torch")
        torch.save(torch.tensor(self.LATENTS), tmp_path / "x.pt")
        np.testing.assert_array_equal(load(tmp_path / "x.pt"), self.LATENTS)
        torch.save({"z": torch.tensor(SAMPLES).bfloat16(), "step": 3}, tmp_path / "y.pt")
        np.testing.assert_array_equal(load(tmp_path / "y.pt"), SAMPLES)
        # SAMPLES have few digits
        few = torch.tensor(SAMPLES).float()
        for tensor in (few.to_sparse(), few.to(torch.float8_e4m3fn), few.requires_grad_()):
            torch.save(tensor, tmp_path / "z.pt")
            np.testing.assert_array_equal(load(tmp_path / "z.pt"), SAMPLES)
        torch.save({"state": {"weight": torch.ones(2, 2)}}, tmp_path / "nested.pt")
        with pytest.raises(ValueError, match=r"nested\.pt holds no array"):
            load(tmp_path / "nested.pt")

    def test_missing_libraries_are_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        for suffix, library in [("h5", "h5py"), ("parquet", "pyarrow"), ("pt", "torch")]:
            (tmp_path / f"x.{suffix}").touch()
            monkeypatch.setitem(sys.modules, library, None)
            with pytest.raises(ImportError, match=r"pip install \"jaxkernels\[formats\]\""):
                load(tmp_path / f"x.{suffix}")

    def test_a_data_set_of_hugging_face(self, tmp_path: Path):
        """The layout of `Dataset.save_to_disk`: shards of an Arrow stream, and an index."""
        content = io.BytesIO()
        Image.new("L", (4, 3), 255).save(content, "PNG")
        cells = [{"bytes": content.getvalue(), "path": None}] * 2
        kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
        for i in range(2):
            table = pyarrow.table({"image": pyarrow.array(cells, kind), "label": [0, 1]})
            with (
                pyarrow.OSFile(str(tmp_path / f"data-0000{i}-of-00002.arrow"), "wb") as file,
                pyarrow.ipc.new_stream(file, table.schema) as stream,
            ):
                stream.write_table(table)
        for state in ({}, {"_data_files": [{"filename": f.name} for f in tmp_path.iterdir()]}):
            (tmp_path / "state.json").write_text(json.dumps(state))
            found, _ = _load(tmp_path)
            assert found.shape == (4, 3, 4)
            assert np.all(found == 1.0)
        # what `filter` and `map` leave there is no part of it
        table = pyarrow.table({"indices": [0]})
        with (
            pyarrow.OSFile(str(tmp_path / "cache-28f4.arrow"), "wb") as file,
            pyarrow.ipc.new_stream(file, table.schema) as stream,
        ):
            stream.write_table(table)
        assert _load(tmp_path)[0].shape == (4, 3, 4)

    def test_one_split_of_a_data_set_is_asked_for(self, tmp_path: Path):
        (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
        with pytest.raises(ValueError, match=r"several splits .* give one of .*train, .*test"):
            load(tmp_path)

    def test_lists_of_parquet(self, tmp_path: Path):
        nested = pyarrow.table({"z": self.LATENTS.tolist(), "label": list(range(6))})
        pyarrow.parquet.write_table(nested, tmp_path / "x.parquet", row_group_size=2)
        np.testing.assert_array_equal(load(tmp_path / "x.parquet"), self.LATENTS)
        found, notes = _load(tmp_path / "x.parquet", max_samples=3, seed=1)
        assert all(any(np.array_equal(row, z) for z in self.LATENTS) for row in found)
        assert len(found) == 3
        assert "3 of 6 samples, at random" in notes[0]

    def test_shards_of_webdataset(self, tmp_path: Path):
        with tarfile.open(tmp_path / "0000.tar", "w") as archive:
            for i, z in enumerate(self.LATENTS):
                for name, content in ((f"{i:03}.npy", _npy(z)), (f"{i:03}.cls", b"1")):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
        for source in (tmp_path / "0000.tar", tmp_path):
            found, notes = _load(source)
            np.testing.assert_array_equal(found, self.LATENTS)
            assert notes == ["6 .npy files of one sample each, of shape (4, 3, 2)"]
        with pytest.raises(ValueError, match=r"key = 'png' is no extension .* there are npy\."):
            load(tmp_path / "0000.tar", "png")

    def test_shards_with_several_files_of_each_sample(self, tmp_path: Path):
        """Webdataset's extension begins at the first dot, and one is asked for."""
        path = tmp_path / "0.tar"
        with tarfile.open(path, "w") as archive:
            for i, z in enumerate(self.LATENTS):
                for end, values in (("npy", z), ("text.npy", z[0, 0])):
                    member = tarfile.TarInfo(f"{i:03}.{end}")
                    member.size = len(_npy(values))
                    archive.addfile(member, io.BytesIO(_npy(values)))
        with pytest.raises(ValueError, match=r"select one by key, its extension: npy, text\.npy\."):
            load(path)
        np.testing.assert_array_equal(_load(path, key="npy")[0], self.LATENTS)
        np.testing.assert_array_equal(_load(path, key="text.npy")[0], self.LATENTS[:, 0, 0])

    def test_a_compressed_shard(self, tmp_path: Path):
        """Its members cannot be read in place; each would be called damaged."""
        with tarfile.open(tmp_path / "0.tar", "w:gz") as archive:
            member = tarfile.TarInfo("0.npy")
            member.size = len(_npy(self.LATENTS[0]))
            archive.addfile(member, io.BytesIO(_npy(self.LATENTS[0])))
        with pytest.raises(ValueError, match=r"0\.tar is damaged, cut off or compressed"):
            load(tmp_path / "0.tar")

    def test_columns_and_files_that_are_taken_together_are_told(self, tmp_path: Path):
        """A label would be a part of the samples, and a test split one of them."""
        frame = pandas.DataFrame(SAMPLES, columns=["a", "b", "label"])
        for name in ("test", "train"):
            frame.to_parquet(tmp_path / f"{name}.parquet")
        assert _load(tmp_path)[1] == [
            f"{tmp_path}: 2 .parquet files are taken together: test.parquet, train.parquet",
            f"{tmp_path / 'test.parquet'}: a sample is the numbers of 3 columns: a, b, label",
        ]


def _npy(values: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, values)
    return content.getvalue()


class TestFolders:
    LATENTS = TestFormats.LATENTS

    def test_classes_in_subfolders(self, tmp_path: Path):
        for i, name in enumerate(["cat", "dog", ".hidden"]):
            (tmp_path / name).mkdir()
            _image(tmp_path / name / "a.png", value=255 * i)
        found, notes = _load(tmp_path)
        np.testing.assert_array_equal(found[:, 0, 0], [-1.0, 1.0])
        assert notes == [f"{tmp_path}: the files of 2 subfolders are taken together"]

    def test_links_to_folders_are_followed(self, tmp_path: Path):
        """Classes are selected that way; one that leads back is not followed for ever."""
        classes = tmp_path / "all"
        for i, name in enumerate(["cat", "dog"]):
            (classes / name).mkdir(parents=True)
            _image(classes / name / "a.png", value=255 * i)
        mine = tmp_path / "mine"
        (mine / "cat").mkdir(parents=True)
        _image(mine / "cat" / "a.png")
        (mine / "dog").symlink_to(classes / "dog")
        (mine / "cat" / "up").symlink_to(mine)
        found, notes = _load(mine)
        np.testing.assert_array_equal(found[:, 0, 0], [-1.0, 1.0])
        assert notes == [f"{mine}: the files of 2 subfolders are taken together"]
        (mine / "z.png").symlink_to(tmp_path / "gone.png")
        with pytest.raises(ValueError, match=r"cannot read .*z\.png: No such file"):
            load(mine)

    def test_a_folder_whose_name_is_that_of_an_image(self, tmp_path: Path):
        (tmp_path / "x.png").mkdir()
        for i in range(2):
            _image(tmp_path / "x.png" / f"{i}.png", value=255 * i)
        np.testing.assert_array_equal(_load(tmp_path)[0][:, 0, 0], [-1.0, 1.0])

    def test_hdf5_files(self, tmp_path: Path):
        for i in range(2):
            with h5py.File(tmp_path / f"{i}.h5", "w") as file:
                file["x"] = SAMPLES + i
        found, notes = _load(tmp_path)
        np.testing.assert_array_equal(found, np.concatenate([SAMPLES, SAMPLES + 1]))
        assert notes == [f"{tmp_path}: 2 .h5 files are taken together: 0.h5, 1.h5"]

    def test_files_of_several_samples_in_a_shard(self, tmp_path: Path):
        pandas.DataFrame({"a": [1.0, 2.0]}).to_parquet(tmp_path / "a.parquet")
        with tarfile.open(tmp_path / "x.tar", "w") as archive:
            archive.add(tmp_path / "a.parquet", "a.parquet")
        with pytest.raises(ValueError, match=r"x\.tar holds \.parquet files, .* unpack it"):
            load(tmp_path / "x.tar")

    @pytest.mark.parametrize("sizes", [(10, 11, 12), (10, 12)])
    def test_sounds_of_several_lengths(self, tmp_path: Path, sizes: tuple[int, ...]):
        """They were read as that many samples of one number each."""
        for i, size in enumerate(sizes):
            np.save(tmp_path / f"{i}.npy", np.zeros(size))
        with pytest.raises(ValueError, match=r"must have one shape.*0\.npy has \(10,\)"):
            load(tmp_path)

    def test_images_of_several_pages(self, tmp_path: Path):
        """Slices of a volume, of which the first alone was read."""
        page = Image.new("L", (4, 3))
        for i in range(2):
            page.save(tmp_path / f"{i}.tif", save_all=True, append_images=[page])
        with pytest.raises(ValueError, match=r"0\.tif: it holds 2 pages or frames; give each"):
            load(tmp_path)

    def test_one_latent_per_file(self, tmp_path: Path):
        for i, z in enumerate(self.LATENTS):
            np.save(tmp_path / f"{i}.npy", z)
        np.testing.assert_array_equal(_load(tmp_path)[0], self.LATENTS)

    def test_several_samples_per_file(self, tmp_path: Path):
        np.save(tmp_path / "a.npy", self.LATENTS[:2])
        np.save(tmp_path / "b.npy", self.LATENTS[2:])
        found, notes = _load(tmp_path)
        np.testing.assert_array_equal(found, self.LATENTS)
        assert notes == ["2 .npy files of several samples each, of shape (4, 3, 2)"]

    def test_a_subset_is_random_and_the_same_again(self, tmp_path: Path):
        for i in range(9):
            np.save(tmp_path / f"{i}.npy", [float(i)])
        first, notes = _load(tmp_path, max_samples=4)
        assert notes[-1] == f"{tmp_path}: 4 of 9 samples, at random"
        np.testing.assert_array_equal(first, _load(tmp_path, max_samples=4)[0])
        assert np.all(np.diff(first[:, 0]) > 0)
        assert not np.array_equal(first, _load(tmp_path, max_samples=4, seed=1)[0])
        np.testing.assert_array_equal(_load(tmp_path, max_samples=9)[0][:, 0], np.arange(9.0))

    @pytest.mark.parametrize("value", [1, 0])
    def test_a_subset_has_two_samples_or_more(self, value: int):
        with pytest.raises(ValueError, match="max_samples = "):
            load("digits", max_samples=value)

    def test_kinds_are_not_mixed(self, tmp_path: Path):
        _image(tmp_path / "a.png")
        np.save(tmp_path / "a.npy", SAMPLES)
        with pytest.raises(ValueError, match=r"one kind; it holds 1 \.npy, 1 images"):
            load(tmp_path)

    def test_latents_of_two_shapes(self, tmp_path: Path):
        for i, shape in enumerate([(2, 3), (2, 4), (2, 3)]):
            np.save(tmp_path / f"{i}.npy", np.zeros(shape))
        with pytest.raises(ValueError, match=r"0\.npy has \(2, 3\) and .*1\.npy has \(2, 4\)"):
            _load(tmp_path)


def test_rounding_of_a_spectrum_is_zero_and_said(tmp_path: Path):
    np.save(tmp_path / "s.npy", [2.0, 0.5, -1.7e-15])
    notes: list[str] = []
    values = load_spectrum(tmp_path / "s.npy", report=notes.append)
    np.testing.assert_array_equal(values, [2.0, 0.5, 0.0])
    assert notes == [f"{tmp_path / 's.npy'}: 1 eigenvalues >= -1.7e-15, of rounding, are now 0"]
