"""A stage runs once for the same inputs and outputs."""

import pytest

from ipt_jax.core.errors import UserError
from ipt_jax.core.jobs import Stages


def test_a_stage_is_skipped_only_when_nothing_changed(tmp_path):
    output, runs = tmp_path / "out", []

    def work():
        runs.append(1)
        output.write_text("x")
        return {"run": len(runs)}

    def stage(value):
        return Stages(tmp_path).run("a", {"value": value}, [output], work)

    assert stage(1) == {"run": 1}
    assert stage(1) == {"run": 1}  # from before
    assert stage(2) == {"run": 2}  # other inputs
    output.unlink()
    assert stage(2) == {"run": 3}  # its output is gone
    assert set(Stages(tmp_path).seconds()) == {"a"}


def test_an_interrupted_stage_is_not_done(tmp_path):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Stages(tmp_path).run("a", {}, [], interrupted)
    assert Stages(tmp_path).run("a", {}, [], lambda: "now") == "now"


def test_a_stage_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match=r"missing"):
        Stages(tmp_path).run("a", {}, [tmp_path / "missing"], lambda: None)
    (tmp_path / "stages.json").write_text("{")
    with pytest.raises(UserError, match=r"stages\.json"):
        Stages(tmp_path)
