"""Tuning an encoder on pairs of texts that go together or do not: FineInstructions, section 3.2.

The loss is the squared distance of a pair's cosine from its label, 1 or 0 (sentence-transformers'
cosine similarity loss), on the vector of the whole text or on that of one of its chunks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ipt_jax.core.bounds import Above, Amount, Config, Fraction, Positive
from ipt_jax.core.errors import UserError
from ipt_jax.core.files import naming, sync_folder
from ipt_jax.core.seeds import generator_of, seed_of

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True, kw_only=True)
class TuningSteps(Config):
    """How an encoder is tuned; the paper gives no numbers, all are ours."""

    epochs: Positive = 1
    """Times that each pair is seen."""
    batch_pairs: Positive = 32
    """Pairs of a step."""
    peak_learning_rate: Annotated[float, Above(0)] = 2e-5
    """Of AdamW; it rises and falls linearly."""
    warmup_fraction: Fraction = 0.1
    """Share of the steps in which it rises."""
    weight_decay: Amount = 0.01
    """Of all weights."""
    checkpoint_steps: Positive = 200
    """Steps that a killed run loses at most."""
    seed: int = 0
    """Of order and dropout."""


@dataclass(frozen=True)
class LabelledPair:
    """Two texts, and whether their vectors are to be near."""

    text: str
    """A document."""
    chunk: int
    """0: the vector of the whole of it; k: of its k-th chunk."""
    other: str
    """What it is compared with, whole."""
    fits: bool


def pair_scores(model: Any, pairs: Sequence[LabelledPair], batch_pairs: int = 32) -> np.ndarray:
    """Cosine of each pair, float32 [N]; NaN where a text has no vector."""
    found = [np.empty(0, np.float32)]
    with torch.inference_mode():
        for first in range(0, len(pairs), batch_pairs):
            found.append(_cosines(model, pairs[first : first + batch_pairs]).cpu().numpy())
    return np.concatenate(found)


def tune_encoder(
    model: Any,
    pairs: Sequence[LabelledPair],
    steps: TuningSteps,
    folder: Path,
    progress: Callable[[int, int, float], None] = lambda step, total, loss: None,
) -> list[float]:
    """Tune a SentenceTransformer with Gaussian pooling in place; gives the mean loss of each tenth.

    `folder` holds a checkpoint while it runs: a run that was killed goes on there, and ends with
    the same weights.

    Raises:
      UserError: a loss that is no number.
    """
    total = steps.epochs * -(-len(pairs) // steps.batch_pairs)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=0.0, weight_decay=steps.weight_decay)
    losses = _restore(folder / CHECKPOINT, model, optimizer, weights)
    warmup = max(1, round(total * steps.warmup_fraction))
    model.train()
    for step, batch in enumerate(_batches(len(pairs), steps)):
        if step < len(losses):
            continue
        torch.manual_seed(seed_of(steps.seed, "dropout", step))
        share = min((step + 1) / warmup, (total - step) / max(1, total - warmup))
        for group in optimizer.param_groups:
            group["lr"] = steps.peak_learning_rate * share
        chosen = [pairs[row] for row in batch]
        labels_N = torch.tensor([float(pair.fits) for pair in chosen], device=model.device)
        loss = (_cosines(model, chosen) - labels_N).square().mean()
        if not torch.isfinite(loss):
            raise UserError(
                f"the loss of step {step + 1} is no number: lower `steps.peak_learning_rate`, or "
                "take out texts that have no vector.",
                key="steps.peak_learning_rate",
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        losses.append(loss.item())
        progress(step + 1, total, losses[-1])
        if (step + 1) % steps.checkpoint_steps == 0 and step + 1 < total:
            _save(folder / CHECKPOINT, model, optimizer, weights, losses)
    model.eval()
    return [float(np.mean(tenth)) for tenth in np.array_split(losses, min(10, len(losses)))]


def _cosines(model: Any, pairs: Sequence[LabelledPair]) -> torch.Tensor:
    """float32 [N]."""
    vectors_NCE = _vectors(model, [pair.text for pair in pairs])
    chunks_N = torch.tensor([pair.chunk for pair in pairs], device=vectors_NCE.device)
    ours_NE = vectors_NCE[torch.arange(len(pairs), device=vectors_NCE.device), chunks_N]
    theirs_NE = _vectors(model, [pair.other for pair in pairs])[:, 0]
    return (ours_NE * theirs_NE).sum(-1)


def _vectors(model: Any, texts: Sequence[str]) -> torch.Tensor:
    """[N, C + 1, E] of length 1."""
    features = model.preprocess(list(texts))
    features = {
        name: value.to(model.device) if isinstance(value, torch.Tensor) else value
        for name, value in features.items()
    }
    return model[1].split(model(features)["sentence_embedding"])


def _batches(count: int, steps: TuningSteps) -> Iterator[np.ndarray]:
    for epoch in range(steps.epochs):
        order = generator_of(steps.seed, "order", epoch).permutation(count)
        for first in range(0, count, steps.batch_pairs):
            yield order[first : first + steps.batch_pairs]


def _save(path: Path, model: Any, optimizer: Any, weights: Any, losses: list[float]) -> None:
    tensors = {f"model/{name}": value.contiguous() for name, value in model.state_dict().items()}
    for number, weight in enumerate(weights):
        for name, value in optimizer.state[weight].items():
            tensors[f"optimizer/{number}/{name}"] = value.contiguous()
    tensors["losses"] = torch.tensor(losses, dtype=torch.float64)
    unfinished = path.with_suffix(".tmp")
    with naming(path):
        save_file({name: value.clone() for name, value in tensors.items()}, unfinished)
        with open(unfinished, "rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    sync_folder(path.parent)


def _restore(path: Path, model: Any, optimizer: Any, weights: Any) -> list[float]:
    """Put a checkpoint back where there is one; the losses of the steps that it has behind it."""
    if not path.is_file():
        return []
    with safe_open(path, "pt") as file:
        names = set(file.keys())
        model.load_state_dict(
            {
                name.removeprefix("model/"): file.get_tensor(name)
                for name in names
                if "model/" in name
            }
        )
        for number, weight in enumerate(weights):
            prefix = f"optimizer/{number}/"
            optimizer.state[weight] = {
                name.removeprefix(prefix): file.get_tensor(name).to(
                    weight.device if not name.endswith("/step") else "cpu"
                )
                for name in names
                if name.startswith(prefix)
            }
        return file.get_tensor("losses").tolist()
