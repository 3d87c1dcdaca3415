"""A real trace of a real step."""

from typing import Any

import jax
import jax.numpy as jnp

from ipt_jax.training.hooks import ProfileConfig, Profiler


def run(folder, config: ProfileConfig, first: int, last: int) -> None:
    step = jax.jit(lambda x: jnp.sin(x @ x))
    x: Any = jnp.ones((64, 64))
    with Profiler(folder, config) as profiler:
        for position in range(first, last + 1):
            profiler.before_step(position)
            profiler.after_launch(position, step(x))


def traced_steps(folder) -> list[list[int]]:
    """The step numbers in each trace, read from the event file itself."""
    found = []
    for path in sorted((folder / "profile").rglob("*.xplane.pb")):
        events = [
            event
            for plane in jax.profiler.ProfileData.from_file(str(path)).planes
            for line in plane.lines
            for event in line.events
            if event.name == "train"
        ]
        found.append(sorted({dict(event.stats)["step_num"] for event in events}))
    return found


def test_the_asked_steps_are_traced(tmp_path, capsys):
    run(tmp_path, ProfileConfig(start=3, steps=2), 1, 6)
    assert traced_steps(tmp_path) == [[3, 4]]
    assert "3 to 4" in capsys.readouterr().out


def test_a_run_that_ends_or_starts_inside_the_span(tmp_path):
    config = ProfileConfig(start=3, steps=5)
    run(tmp_path / "ends", config, 1, 4)
    assert traced_steps(tmp_path / "ends") == [[3, 4]]
    run(tmp_path / "starts", config, 6, 9)
    assert traced_steps(tmp_path / "starts") == [[6, 7]]
    run(tmp_path / "later", config, 8, 9)
    assert traced_steps(tmp_path / "later") == []


def test_no_trace_unless_asked(tmp_path):
    run(tmp_path, ProfileConfig(), 1, 3)
    assert not (tmp_path / "profile").exists()
