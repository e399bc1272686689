"""Compiled programs kept between processes: the same results bit for bit, or compiled anew."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import Array

import jaxkernels as jk
from jaxkernels import _stored
from jaxkernels._compile import kept_jit, quick_filter_jit
from jaxkernels._stored import ProgramStore, stored_programs

TARGET = jk.Gaussian([0.5, 0.0, 0.0], [1.0, 0.1, 0.01])


def of_package(fn: Callable[..., Any]) -> Callable[..., Any]:
    """A function that counts as one of the package, whose source is part of the version."""
    fn.__module__ = "jaxkernels._stored"
    return fn


@of_package
def double(x: Array) -> Array:
    return x + x


@of_package
def pair(options: Any, x: Array) -> dict[str, Array]:
    factor: Any = options(x) if callable(options) else options
    return {"scaled": x * factor, "shape": jnp.asarray(x.shape)}


def optimum() -> jk.optimize.OptimizedSchedule:
    return jk.optimize_schedule(TARGET, jk.VP(), "ddim", 3, t_min=1e-3, progress=False)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def find(folder: Path, fn: Callable[..., Any], *args: Any, filtered: bool = False) -> Any:
    """What a new process would find in a folder, or compile and write there."""
    found = ProgramStore(folder).find(fn, filtered, None, args, {})
    return None if found is None else found()


class Refused(Exception):
    """A program was to be compiled that should have been found."""


@pytest.fixture
def only_found(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on no program may be compiled for the store."""

    def refuse(*args: Any) -> None:
        raise Refused

    return lambda: monkeypatch.setattr(_stored, "_compile", refuse)


def test_an_optimum_by_stored_programs_is_the_same_bit_for_bit(
    tmp_path: Path, only_found: Callable[[], None]
):
    results = [optimum()]
    with stored_programs(tmp_path):
        results.append(optimum())
    written = files(tmp_path)
    assert any("newton_advance" in path.name for path in written)
    only_found()
    with stored_programs(tmp_path):
        results.append(optimum())
    assert files(tmp_path) == written
    plain, *others = results
    for other in others:
        assert other.objective == plain.objective
        assert other.baselines == plain.baselines
        assert np.array_equal(other.schedule.times, plain.schedule.times)
        assert np.array_equal(other.solution.z, plain.solution.z)
        assert np.array_equal(other.history, plain.history, equal_nan=True)


def test_another_process_runs_what_one_has_stored(tmp_path: Path):
    """LAPACK's functions, which the solver calls, are not registered there by lowering."""
    program = (
        "import sys; from pathlib import Path; import numpy as np, jaxkernels as jk\n"
        "from jaxkernels import _stored\n"
        "if sys.argv[2] == 'found': _stored._compile = None\n"
        "with _stored.stored_programs(Path(sys.argv[1])):\n"
        "    target = jk.Gaussian([0.5, 0.0, 0.0], [1.0, 0.1, 0.01])\n"
        "    found = jk.optimize_schedule(target, jk.VP(), 'ddim', 3, t_min=1e-3, progress=False)\n"
        "print(found.objective.hex(), [t.hex() for t in found.schedule.times.tolist()])\n"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", program, str(tmp_path), how],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for how in ("compiled", "found")
    ]
    assert outputs[0]
    assert outputs[0] == outputs[1]


class TestWhatIsFound:
    def test_by_the_same_call(self, tmp_path: Path, only_found: Callable[[], None]):
        first = find(tmp_path, double, jnp.arange(3.0))
        only_found()
        again = find(tmp_path, double, jnp.arange(3.0) + 1.0)
        assert first.tolist() == [0.0, 2.0, 4.0]
        assert again.tolist() == [2.0, 4.0, 6.0]

    @pytest.mark.parametrize(
        "other",
        [jnp.zeros(4), jnp.zeros((3, 1)), jnp.zeros(3, jnp.float32), jnp.zeros(3, int), 1.5],
        ids=["length", "rank", "precision", "type", "weak type"],
    )
    def test_not_by_another_shape_or_type(self, tmp_path: Path, other: Any):
        find(tmp_path, double, jnp.zeros(3))
        found = find(tmp_path, double, other)
        assert len(files(tmp_path)) == 2
        assert found.dtype == jax.jit(double)(other).dtype
        assert np.array_equal(found, jax.jit(double)(other))

    def test_not_in_another_precision_of_jax(self, tmp_path: Path):
        x = np.arange(3.0)
        assert find(tmp_path, double, x).dtype == jnp.float64
        with jax.enable_x64(False):
            assert find(tmp_path, double, x).dtype == jnp.float32

    def test_not_with_another_configuration(self, tmp_path: Path):
        find(tmp_path, double, jnp.zeros(3))
        with jax.default_matmul_precision("highest"):
            find(tmp_path, double, jnp.zeros(3))
        assert len(files(tmp_path)) == 2

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            (2.0, 3.0),
            (jk.DDIM(), jk.DPMSolverPP2M()),
            (jk.Newton(tolerance=1e-3), jk.Newton(tolerance=1e-4)),
            (optax.adam(0.1), optax.adam(0.2)),
            (optax.adam(0.1), optax.sgd(0.1)),
            (optax.sgd(0.1), optax.sgd(0.1, momentum=0.5)),
            (optax.cosine_decay_schedule(0.1, 5), optax.cosine_decay_schedule(0.1, 6)),
        ],
    )
    def test_not_by_another_value_that_is_no_array(self, tmp_path: Path, one: Any, other: Any):
        @of_package
        def ignored(options: Any, x: Array) -> Array:
            del options
            return x

        find(tmp_path, ignored, one, jnp.zeros(3), filtered=True)
        assert len(files(tmp_path)) == 1
        find(tmp_path, ignored, one, jnp.zeros(3), filtered=True)
        assert len(files(tmp_path)) == 1
        find(tmp_path, ignored, other, jnp.zeros(3), filtered=True)
        assert len(files(tmp_path)) == 2

    def test_the_structure_of_the_result(self, tmp_path: Path):
        for _ in range(2):
            found = find(tmp_path, pair, 3.0, jnp.ones((1, 2)), filtered=True)
            assert found["scaled"].tolist() == [[3.0, 3.0]]
            assert found["shape"].tolist() == [1, 2]


class TestWhatIsNotKept:
    def test_a_users_function_in_the_arguments(self, tmp_path: Path):
        def squared(x: Array) -> Array:
            return x

        assert find(tmp_path, pair, squared, jnp.ones((2, 2)), filtered=True) is None
        assert not files(tmp_path)

    def test_a_users_class_in_the_arguments(self, tmp_path: Path):
        class Custom(eqx.Module):
            factor: float = eqx.field(static=True)

            def __call__(self, x: Array) -> Array:
                return self.factor * x

        assert find(tmp_path, pair, Custom(2.0), jnp.ones((2, 2)), filtered=True) is None
        assert not files(tmp_path)

    def test_a_users_function(self, tmp_path: Path):
        def users(x: Array) -> Array:
            return x

        assert find(tmp_path, users, jnp.ones(3)) is None

    def test_a_program_that_calls_python(self, tmp_path: Path):
        @of_package
        def checked(x: Array) -> Array:
            return eqx.error_if(x, x[0] < 0, "negative")

        assert find(tmp_path, checked, jnp.ones(3)) is None
        assert not files(tmp_path)

    def test_it_runs_all_the_same(self, tmp_path: Path):
        calls = quick_filter_jit(pair)
        with stored_programs(tmp_path):
            found = calls(lambda x: x + 1.0, jnp.ones((2, 2)))
        assert np.array_equal(found["scaled"], np.full((2, 2), 2.0))

    def test_under_a_transformation(self, tmp_path: Path):
        with stored_programs(tmp_path):
            assert jax.grad(kept_jit(double))(1.0) == 2.0
        assert not files(tmp_path)

    def test_without_a_store(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.chdir(tmp_path)
        assert kept_jit(double)(jnp.ones(1)).tolist() == [2.0]
        assert not files(tmp_path)


class TestFiles:
    @pytest.mark.parametrize("damage", ["flipped", "cut off", "empty", "other bytes"])
    def test_a_damaged_file_is_written_anew(self, tmp_path: Path, damage: str):
        find(tmp_path, double, jnp.zeros(3))
        (path,) = files(tmp_path)
        content = bytearray(path.read_bytes())
        if damage == "flipped":
            content[len(content) // 2] ^= 1
        damaged = {"cut off": content[:-9], "empty": b"", "other bytes": b"x" * 99}
        path.write_bytes(damaged.get(damage, content))
        assert find(tmp_path, double, jnp.ones(3)).tolist() == [2.0, 2.0, 2.0]
        assert files(tmp_path) == [path]
        assert _stored._read(path) is not None

    def test_what_another_version_stored_is_removed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        find(tmp_path, double, jnp.zeros(3))
        kept = tmp_path / "other"
        kept.write_text("not ours")
        monkeypatch.setattr(_stored, "_version", lambda: "another")
        find(tmp_path, double, jnp.zeros(3))
        (program,) = (path for path in files(tmp_path) if path != kept)
        assert program.parent.name == "programs-another"
        assert kept.exists()

    def test_a_folder_that_cannot_be_written_is_no_mistake(self, tmp_path: Path):
        (tmp_path / "file").write_text("in the way")
        assert find(tmp_path / "file", double, jnp.ones(1)).tolist() == [2.0]

    def test_the_folder_is_closed_to_others(self, tmp_path: Path):
        find(tmp_path, double, jnp.zeros(3))
        (path,) = files(tmp_path)
        assert path.parent.stat().st_mode & 0o077 == 0

    def test_a_folder_that_others_can_write_to_is_not_used(self, tmp_path: Path):
        find(tmp_path, double, jnp.zeros(3))
        (path,) = files(tmp_path)
        path.parent.chmod(0o777)
        assert _stored._read(path) is None
        assert find(tmp_path, double, jnp.ones(5)).tolist() == [2.0] * 5
        assert files(tmp_path) == [path]
        path.parent.chmod(0o700)
        assert _stored._read(path) is not None

    def test_the_version_is_that_of_the_source(self):
        assert _stored._version() == _stored._version()
        assert len(_stored._version()) == 16
