"""The budget of the tests: sums by file, what is told, what is light."""

from types import SimpleNamespace

from tests import budget


def report(node, seconds):
    return SimpleNamespace(nodeid=node, duration=seconds)


def test_seconds_are_summed_by_file_and_what_grew_is_named(tmp_path, monkeypatch):
    stats = {
        "passed": [report("tests/a.py::one", 4.0), report("tests/b.py::x[y::z]", 9.0)],
        "": [report("tests/a.py::one", 3.0), report("tests/c.py::quick", 0.1)],
        "deselected": [SimpleNamespace(nodeid="tests/d.py::no")],
    }
    took = budget.spent(stats)
    assert took == {"tests/b.py": 9.0, "tests/a.py": 7.0}
    assert budget.over_budget(took, {"tests/a.py": 4.0, "tests/b.py": 8.0}) == [
        "tests/a.py: 7 s, budget 4 s"
    ]
    monkeypatch.setattr(budget, "BUDGET", tmp_path / "budget.json")
    assert budget.budgets() == {}
    budget.write(took)
    assert budget.budgets() == took


def test_every_file_of_the_budget_is_there(root):
    missing = [file for file in budget.budgets() if not (root / file).is_file()]
    assert not missing, "write it anew: IPT_BUDGET=write make test"
