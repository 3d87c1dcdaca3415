"""The report on a mixture's data: every plot is there, with the figures of its batches."""

import re
from pathlib import Path

import pytest

from tests.data_report import CHARTS, PAIRS, load_tool, write_mixture
from tests.launching import launch
from tests.pages import Page, assert_nothing_foreign


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """What the command prints, and the page."""
    folder = tmp_path_factory.mktemp("report")
    ended = launch(
        *("tools/data_report.py", "--output", folder / "out/report.html"),
        *("--data.mixture", write_mixture(folder), "--data.skip_damaged", "true"),
        *("--batches", "30", "--rows", "8", "--data.row_tokens", "256"),
    )
    assert ended.code == 0, ended.err
    return ended.out, (folder / "out" / "report.html").read_text(encoding="utf-8")


def test_every_plot_and_table_is_there(made: tuple[str, str]) -> None:
    page = Page(made[1])
    assert list(page.figures) == list(CHARTS)
    assert list(page.tables) == [
        *("Tasks", "Lengths in tokens", "Packing", "Sources that may run out"),
        *("Loss", "Records left out"),
    ]
    # Realised and asked of two tasks, before and after the stage, and the fill.
    lines = page.figures["Realised rates, batch by batch; asked dashed"]
    assert [one["mode"] for one in lines["data"]] == [
        *["markers", "lines", "lines"] * 2,
        "lines",
        "lines",
    ]
    assert [one for one in lines["data"] if "dash" in one.get("line", {})] == lines["data"][-2:]
    (mark,) = lines["layout"]["shapes"]
    assert mark["x0"] == 10 and made[1].count("stage from step 10") == 1


def test_figures_agree(made: tuple[str, str]) -> None:
    """Of the table, of the page's other tables, and of the terminal."""
    tables = Page(made[1]).tables
    header, raw, talk, total = tables["Tasks"]
    figures = [dict(zip(header, row, strict=True)) for row in (raw, talk, total)]
    tokens = [int(row["tokens"].replace(",", "")) for row in figures]
    assert tokens[0] + tokens[1] == tokens[2]
    facts = {row[0]: row[1] for row in tables["Packing"]}
    padding = int(facts["padding, in tokens"].replace(",", ""))
    assert tokens[2] + padding == 30 * 8 * 256
    assert facts["fill"] == f"{tokens[2] / (30 * 8 * 256):.3%}"
    assert figures[0]["asked"] == f"{(10 * 0.75 + 20 * 0.5) / 30:.2%}"
    assert figures[0]["realised"] == f"{tokens[0] / tokens[2]:.2%}"
    assert figures[0]["records"] == "150" and figures[1]["records"] == "40"
    assert figures[0]["damaged"] == figures[2]["damaged"] != "0"
    left_out = tables["Records left out"][1:]
    assert len(left_out) == int(figures[0]["damaged"])
    assert all(row[0] == "raw" and "part-00001.arrayrecord" in row[2] for row in left_out)
    assert figures[1]["epochs"] == tables["Sources that may run out"][1][1]
    loss = {row[0]: row[1:] for row in tables["Loss"]}
    assert loss["<script>x</script>"][2] == "0.5" and loss["raw"][2] == "1"
    lines = [re.split(r" {2,}", line.strip()) for line in made[0].splitlines()]
    assert lines[0] == header and lines[1] == raw and lines[2] == talk
    assert lines[3] == [cell for cell in total if cell]
    assert facts["fill"] in made[0] and "(concatenate)" in made[0]


def test_nothing_on_the_page_runs_or_is_fetched(made: tuple[str, str]) -> None:
    assert PAIRS in assert_nothing_foreign(made[1]).text  # the name of a task
    assert "\x1b" not in made[0]


def test_more_batches_than_points_are_means(tmp_path: Path) -> None:
    """None of batches on both sides of a change of rates."""
    import numpy as np

    from ipt_jax.data.statistics import Survey

    tool, none = load_tool(), np.zeros((1000, 1))
    found = Survey((), 1, none, none, none, none, (501,), none, ())
    values = np.where(np.arange(1000) < 501, 1.0, 3.0)
    steps, means = tool.thinned(found, values)
    assert 250 <= len(steps) <= 300 and set(means.tolist()) == {1.0, 3.0}
    assert [step <= 501 for step in steps] == (means == 1.0).tolist()
    steps, same = tool.thinned(found, np.arange(1, 1001.0))
    np.testing.assert_allclose(steps, same)


def test_checksums_are_the_trainings_part(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A look does not read all shards; a damaged record shows where it is drawn."""
    options = ["--data.mixture", str(write_mixture(tmp_path)), "--output", str(tmp_path / "r.html")]
    load_tool().main([*options, "--batches", "1", "--rows", "1", "--data.row_tokens", "8"])
    assert "1 rows, 100.000% filled" in capsys.readouterr().out


def test_wrong_values_are_named(tmp_path: Path) -> None:
    from ipt_jax.core.errors import UserError

    tool = load_tool()
    for key in ("batches", "rows"):
        with pytest.raises(UserError, match=f"{key}=0: must be at least 1"):
            tool.main(["--output", str(tmp_path / "r.html"), f"--{key}", "0"])
    options = ["--data.mixture", str(write_mixture(tmp_path)), "--data.skip_damaged", "true"]
    options += ["--batches", "9000", "--data.row_tokens", "256"]
    with pytest.raises(UserError, match=r"max_epochs` = 60"):
        tool.main([*options, "--output", str(tmp_path / "r.html")])
    assert not (tmp_path / "r.html").exists()
