"""One contender of tools/bench_train.py in a process of its own.

python tools/bench_workers.py KIND SIZE: prints a line of JSON when ready, then reads a number of
steps, and what to do besides, from each line of stdin, runs them and prints their seconds.
"""

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from ipt_jax.core.errors import importing

with importing():
    import numpy as np

# Sizes of two models of 8 blocks, float32: width, MLP width, heads, head width, vocabulary, B, T.
SIZES = {
    "S": (256, 704, 8, 32, 4096, 8, 256),
    "M": (512, 1408, 8, 64, 32000, 4, 512),
    "tiny": (32, 64, 2, 16, 256, 2, 32),
}
LAYERS = 8
LEARNING_RATE, BETAS, WEIGHT_DECAY, CLIP_NORM = 3e-4, (0.9, 0.95), 0.1, 1.0
Run = Callable[[int, str], float]


def ours(size: str) -> tuple[Run, int]:
    """The train step of ipt_jax; besides, with "metrics" or with one "checkpoint" in the run."""
    import jax

    from ipt_jax.models.config import DecoderConfig
    from ipt_jax.models.sharding import BATCH, MeshConfig, make_mesh
    from ipt_jax.training.checkpoints import CheckpointConfig, Checkpoints
    from ipt_jax.training.metrics import MetricsConfig, MetricsLog
    from ipt_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
    from ipt_jax.training.startup import configure_malloc
    from ipt_jax.training.step import TrainSetup
    from ipt_jax.training.watchdog import Phases

    configure_malloc()  # as launch/train.py does
    width, mlp_width, heads, head_width, vocabulary, B, T = SIZES[size]
    decoder = DecoderConfig(
        vocabulary_size=vocabulary,
        width=width,
        mlp_width=mlp_width,
        layers=LAYERS,
        heads=heads,
        kv_heads=heads,
        head_width=head_width,
        max_positions=T,
        compute_dtype="float32",
    )
    mesh, settings = make_mesh(MeshConfig()), OptimizerConfig(peak_learning_rate=LEARNING_RATE)
    optimizer, schedule = make_optimizer(settings, 10_000), make_schedule(settings, 10_000)
    setup = TrainSetup(decoder, mesh, optimizer, schedule, 1)
    step, state = setup.step_function, setup.init_state(0)
    place = jax.sharding.NamedSharding(mesh, BATCH)
    ones = np.ones((B, T), np.int32)
    batches = [
        jax.device_put(
            {
                "tokens": rows[:, :-1].astype(np.int32),
                "targets": rows[:, 1:].astype(np.int32),
                "positions": np.arange(T, dtype=np.int32) * ones,
                "segment_ids": ones,
                "loss_weights": ones.astype(np.float32),
                "source_ids": 0 * ones,
            },
            place,
        )
        for rows in _rows(vocabulary, B, T)
    ]
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    log = MetricsLog(
        folder,
        sources=("raw",),
        steps=10**9,
        first_position=0,
        config=MetricsConfig(every_steps=10),
        progress={},
        phases=Phases(),
        flops=(1.0, 1.0),
        devices=1,
        device=None,
        write=True,
    )
    log.__enter__()  # open for as long as the process lives
    saver = Checkpoints(folder / "checkpoints", CheckpointConfig())
    position = 0

    def run(steps: int, besides: str) -> float:
        nonlocal state, position
        pending = None
        if besides == "checkpoint":
            saver.save(position, state, {})
        for _ in range(steps):
            state, found = step(state, batches[position % len(batches)])
            position += 1
            if besides == "metrics" and pending is not None:
                log.after_step(position - 1, jax.device_get(pending))
            elif pending is not None:
                float(pending["loss"])  # as the loop does: at most two steps are under way
            pending = found
        if besides == "checkpoint":
            saver.wait()
        if besides == "metrics" and pending is not None:
            log.after_step(position, jax.device_get(pending))
        return float(pending["loss"]) if pending is not None else 0.0

    return run, decoder.parameter_count()


def torch_peer(size: str, *, compiled: bool = False) -> tuple[Run, int]:
    """Hugging Face transformers' Llama with torch's AdamW."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    width, mlp_width, heads, head_width, vocabulary, B, T = SIZES[size]
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=mlp_width,
            num_hidden_layers=LAYERS,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=head_width,
            max_position_embeddings=T,
            tie_word_embeddings=False,
            use_cache=False,
        )
    ).train()
    forward = torch.compile(model) if compiled else model
    # The fused AdamW is the fastest that torch has on a CPU.
    optimizer = torch.optim.AdamW(
        model.parameters(), LEARNING_RATE, BETAS, weight_decay=WEIGHT_DECAY, fused=True
    )
    batches = [torch.from_numpy(rows) for rows in _rows(vocabulary, B, T)]
    position = 0

    def run(steps: int, besides: str) -> float:
        nonlocal position
        assert not besides
        loss = 0.0
        for _ in range(steps):
            rows = batches[position % len(batches)]
            position += 1
            targets = rows[:, 1:].contiguous()
            out = forward(input_ids=rows[:, :-1], labels=targets, shift_labels=targets)
            out.loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            loss = float(out.loss.detach())
        return loss

    return run, sum(p.numel() for p in model.parameters())


def _rows(vocabulary: int, B: int, T: int) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, vocabulary, (B, T + 1)) for _ in range(4)]


KINDS: dict[str, Callable[[str], tuple[Run, int]]] = {
    "ours": ours,
    "torch": torch_peer,
    "torch tuned": torch_peer,  # its matrix library is told by the environment
    "torch tuned, same memory settings": torch_peer,
    "torch tuned and compiled": lambda size: torch_peer(size, compiled=True),
}


def main() -> None:
    kind, size = sys.argv[1:]
    run, parameters = KINDS[kind](size)
    loss = run(2, "")  # compiles
    *_, B, T = SIZES[size]
    print(json.dumps({"parameters": parameters, "tokens": B * T, "loss": loss}), flush=True)
    for line in sys.stdin:
        count, _, besides = line.strip().partition(" ")
        steps = int(count)
        before, since = _cpu_seconds(), time.perf_counter()
        loss = run(steps, besides)
        wall, cpu = time.perf_counter() - since, _cpu_seconds() - before
        found = {"wall": wall / steps, "cpu": cpu / steps, "loss": loss}
        print(json.dumps(found), flush=True)


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
