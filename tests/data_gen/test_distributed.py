"""Engines in the actors of a real Ray cluster: the same bytes, also when a node dies."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_gen.engines import EngineConfig, RayConfig, Request, SamplingParams, open_engine
from data_gen.engines.distributed import RayEngine
from data_gen.instruction_pretrain.config import SynthesisConfig
from data_gen.methods import synthesize
from ipt_jax.core.errors import UserError
from tests.data_gen.fakes import FakeEngine
from tests.data_gen.tiny_model import write_base
from tests.data_gen.written import written

ray = pytest.importorskip("ray", reason="Ray is an extra (ray)")
ONE = RayConfig(actors=1, cpus_per_actor=0, resources={"engine": 1})


class Slow(FakeEngine):
    """Runs in an actor; says which requests reached it, in a file that all nodes see."""

    poison = ""

    def __init__(self, log: Path, delay_seconds: float, poison: str = "") -> None:
        super().__init__(log, delay_seconds)
        self.poison = poison

    def answer(self, request: Request) -> Any:
        if self.poison and request.id.endswith(self.poison):
            raise ValueError("poison")
        return super().answer(request)


def started[T](start: Callable[[], T], tries: int = 10) -> T:
    """Ray gives a node 30 seconds and parts of it 15, which a busy machine does not keep."""
    for left in reversed(range(tries)):
        try:
            return start()
        except Exception:
            if not left:
                raise
    raise AssertionError("no try")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    # Each node is several processes that import Ray: the head has room for engines too.
    head = {"num_cpus": 0, "resources": {"engine": 1, "mortal": 1}, "include_dashboard": False}
    made = started(lambda: Cluster(initialize_head=True, head_node_args=head))
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    yield made
    ray.shutdown()
    made.shutdown()


def engine_on(open_one: Callable[[], Any], config: RayConfig) -> RayEngine:
    return RayEngine(
        open_one, config, name="fake", version="1", model="fake-model", revision="r1",
        count_tokens=lambda prompt: len(str(prompt).split()),
    )  # fmt: skip


def test_a_node_that_dies_loses_and_doubles_nothing(cluster: Any, tmp_path: Path) -> None:
    node = started(lambda: cluster.add_node(num_cpus=0, resources={"mortal": 1}))
    corpus, log = tmp_path / "corpus.jsonl", tmp_path / "log"
    lines = [json.dumps({"id": f"d{n}", "text": f"Text number {n}."}) for n in range(240)]
    corpus.write_text("\n".join(lines))
    config = SynthesisConfig(
        input=[str(corpus)], output=str(tmp_path / "out"), fraction=0.9, rounds=3,
        records_per_shard=60,
    )  # fmt: skip
    two = RayConfig(actors=2, cpus_per_actor=0, resources={"mortal": 1}, in_flight=20)
    # Slow enough that the node is gone before all is answered.
    engine = engine_on(lambda: Slow(log, 0.05), two)

    def kill() -> None:
        while not log.exists() or len(log.read_text().splitlines()) < 60:
            time.sleep(0.01)
        cluster.remove_node(node, allow_graceful=False)

    killer = threading.Thread(target=kill)
    killer.start()
    summary = synthesize(config, engine=engine)
    killer.join()
    assert engine.lost_actors == 1
    engine.close()
    whole = tmp_path / "whole"
    config = SynthesisConfig(**{**vars(config), "output": str(whole)})
    assert synthesize(config, engine=FakeEngine())["pairs"] == summary["pairs"]
    assert written(tmp_path / "out") == written(whole)
    assert summary["completions"] == 216
    asked = [line.split(":")[1] for line in log.read_text().splitlines()]
    assert len(set(asked)) == 216 < len(asked)  # what the dead node had not answered came again
    assert len(asked) <= 216 + 20 + 2


def test_a_poison_costs_itself_alone_and_a_second_call_is_apart(
    cluster: Any, tmp_path: Path
) -> None:
    one = replace(ONE, in_flight=20)
    engine = engine_on(lambda: Slow(tmp_path / "log", 0.0, "r7"), one)
    asked = [Request(f"r{n}", f"prompt {n}", SamplingParams()) for n in range(50)]
    first = engine.generate(asked)
    next(first)
    first.close()  # given up in the middle
    found = {one.request_id: one for one in engine.generate(asked)}
    assert len(found) == 50 and found["r7"].finish_reason == "error"
    assert found["r7"].text == "ValueError: poison"
    expected = {one.request_id: one.text for one in FakeEngine().generate(asked)}
    assert {k: v.text for k, v in found.items() if k != "r7"} == {
        k: v for k, v in expected.items() if k != "r7"
    }
    engine.close()


def test_a_cluster_without_room_and_an_engine_that_cannot_open_are_told(
    cluster: Any, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"no Ray actor has loaded its engine after 1 s.*`ray stat"):
        engine_on(FakeEngine, RayConfig(1, resources={"nowhere": 1}, start_seconds=1.0))


class Killed(FakeEngine):
    """The first of them dies while it loads."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        try:
            (folder / "began").mkdir()
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)


def test_an_actor_killed_while_it_loads_is_replaced(cluster: Any, tmp_path: Path) -> None:
    engine = engine_on(lambda: Killed(tmp_path), ONE)
    (answer,) = engine.generate([Request("a", "b", SamplingParams())])
    assert answer.request_id == "a" and engine.lost_actors == 1
    engine.close()
    with pytest.raises(UserError, match="could not open its engine.*no model"):
        engine_on(broken, ONE)


def broken() -> Any:
    raise ValueError("no model")


def test_a_real_model_answers_in_actors_as_it_does_here(cluster: Any, tmp_path: Path) -> None:
    config = EngineConfig(model=str(write_base(tmp_path / "model")), batch_size=2)
    asked = [
        Request(
            f"r{n}", f"The number {n} is", SamplingParams(max_tokens=4, temperature=0.8), seed=n
        )
        for n in range(4)
    ]
    here = open_engine(config)
    expected = {one.request_id: one for one in here.generate(asked)}
    assert here.count_tokens("The number 3 is") > 3
    away = open_engine(replace(config, ray=ONE))
    assert (away.model, away.revision, away.version) == (here.model, here.revision, here.version)
    assert away.count_tokens("The number 3 is") == here.count_tokens("The number 3 is")
    assert {one.request_id: one for one in away.generate(asked)} == expected
    here.close()
    away.close()
