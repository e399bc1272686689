"""Tables as plain data, as text and as Markdown."""

import pytest

from jaxkernels._tables import Table, describe, estimate, label, number


@pytest.fixture
def table() -> Table:
    rows = [["uniform", "1.25", "yes"], ["karras", "10.5*", "no"], ["log_snr", "", "no"]]
    return Table(["schedule", "W2", "held out"], rows, notes=["* the largest"])


def test_text_has_aligned_columns(table: Table):
    """Numbers to the right, also marked ones; all else, and the first column, to the left."""
    assert table.to_text().splitlines() == [
        "schedule     W2  held out",
        "uniform    1.25  yes",
        "karras    10.5*  no",
        "log_snr          no",
        "* the largest",
    ]


def test_markdown_states_the_alignment(table: Table):
    assert table.to_markdown().splitlines() == [
        "| schedule |    W2 | held out |",
        "| -------- | ----: | -------- |",
        "| uniform  |  1.25 | yes      |",
        "| karras   | 10.5* | no       |",
        "| log_snr  |       | no       |",
    ]


def test_titles():
    table = Table(["k", "t"], [["0", "1"]], title="schedule")
    assert table.to_text().splitlines()[0] == "schedule"
    assert table.to_markdown().splitlines()[:2] == ["**schedule**", ""]


@pytest.mark.parametrize(
    "cell", ["1", "-0.5", "1e-3", "**1.25**", "1.25 ± 0.03", "nan", "inf", "< 0.1", "12 ms"]
)
def test_numbers_are_recognised(cell: str):
    assert Table(["name", "value"], [["a", cell]]).right_aligned == (False, True)


@pytest.mark.parametrize("cell", ["yes", "v1", "ddim 3", "(1, 2)", "-"])
def test_words_are_not_numbers(cell: str):
    assert Table(["name", "value"], [["a", cell]]).right_aligned == (False, False)


def test_a_table_without_rows_is_its_header():
    assert Table(["schedule", "W2"], []).to_text() == "schedule  W2"


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"rows\[1\] has 1 cells; the header has 2\."):
        Table(["schedule", "W2"], [["uniform", "1"], ["karras"]])


def test_words_and_numbers_as_tables_show_them():
    assert number(0.123456) == "0.1235"
    assert estimate(0.5, 0.0123) == "0.500 ± 0.012"
    assert label("sliced_w2") == "sliced W2"
    assert label("geometric_mean") == "geometric mean"


def test_descriptions_align_their_texts():
    assert describe("Result: done", [("times", "[1 0]"), ("objective", "2")]).splitlines() == [
        "Result: done",
        "  times      [1 0]",
        "  objective  2",
    ]
    assert describe("nothing", []) == "nothing"
