"""Phases: exact sums, nesting, and readers in other threads."""

import threading
import time

import pytest

from ipt_jax.training.watchdog import Phases


def test_each_second_belongs_to_one_phase():
    begun = time.monotonic()
    phases = Phases()
    phases.switch("other")
    with phases("checkpoint"):
        time.sleep(0.02)
        with phases("data"):
            time.sleep(0.15)
        time.sleep(0.02)
    with phases("data"):
        time.sleep(0.05)
    seconds = phases.seconds
    passed = time.monotonic() - begun
    assert seconds["data"] >= 0.2 and seconds["checkpoint"] >= 0.04
    # Were the inner time counted for the outer phase as well, the sum would be 0.15 s longer.
    assert sum(seconds.values()) <= passed
    assert sum(seconds.values()) == pytest.approx(passed, abs=0.1)
    assert list(seconds) == ["starting", "other", "checkpoint", "data"]


def test_the_current_phase_and_since_when():
    phases = Phases()
    assert phases.current[0] == "starting"
    phases.switch("other")
    with phases("step"):
        time.sleep(0.05)
        name, since = phases.current
        assert name == "step" and since >= 0.05
        with phases("data"):
            assert phases.current[0] == "data"
        # Something happened: the wait for the next thing begins anew.
        assert phases.current[0] == "step" and phases.current[1] < since
    assert phases.current[0] == "other"


def test_an_error_leaves_the_phase():
    phases = Phases("other")
    with pytest.raises(ValueError), phases("data"):
        raise ValueError
    assert phases.current[0] == "other"


def test_readers_see_whole_moments_while_phases_change():
    phases, stop, wrong = Phases("other"), threading.Event(), []

    def read() -> None:
        total = 0.0
        while not stop.is_set():
            name, since = phases.current
            seconds = phases.seconds
            if name not in ("other", "data", "step") or since < 0 or sum(seconds.values()) < total:
                wrong.append((name, since, seconds, total))
            total = sum(seconds.values()) - 1e-9  # sums of the same time in another order

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(20_000):
        with phases("data"):
            pass
        with phases("step"):
            pass
    stop.set()
    reader.join()
    assert not wrong


def test_only_one_thread_enters():
    phases, errors = Phases(), []
    phases.switch("other")

    def enter() -> None:
        try:
            phases.switch("data")
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert len(errors) == 1 and phases.current[0] == "other"
