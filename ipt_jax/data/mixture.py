"""A mixture made ready: its shards checked, its lengths known, its rates in numbers."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ipt_jax.core.errors import DamagedRecord, UserError
from ipt_jax.core.run_folder import prints_of
from ipt_jax.core.tokenizers import Tokenizer, load_tokenizer
from ipt_jax.data.bad_records import DamageLog, read_records
from ipt_jax.data.config import DataConfig, load_mixture
from ipt_jax.data.encode import extra_tokens
from ipt_jax.data.lengths import Lengths, index_lengths
from ipt_jax.data.sources import Source, open_source
from ipt_jax.data.tasks import NATURAL, Mixture


@dataclass(frozen=True)
class OpenMixture:
    """A mixture whose shards are checked and whose lengths are known."""

    mixture: Mixture
    config: DataConfig
    """Where row_tokens, seed and worker_count come from unless ``batches`` is told."""
    tokenizer: Tokenizer
    sources: tuple[Source | None, ...]
    """In the order of the tasks; None where the rate is 0."""
    lengths: tuple[Lengths | None, ...]
    epoch_tokens: tuple[int, ...]
    """Tokens of one epoch of each task, BOS and EOS included."""
    asked_rates: dict[str, float] = field(default_factory=dict)
    """Share of each task at the first step, adding up to 1, by ``mixture.by``."""
    damaged: DamageLog = field(default_factory=DamageLog)
    """The records this process found damaged and left out (``skip_damaged``)."""

    @property
    def task_names(self) -> tuple[str, ...]:
        """What ``source_ids`` index."""
        return tuple(task.name for task in self.mixture.tasks)

    @property
    def stages(self) -> tuple[tuple[int, dict[str, float]], ...]:
        """The step each stage begins at, from 0, and its shares, which add up to 1."""
        later = [(stage.from_step, _shares(stage.rates)) for stage in self.mixture.stages]
        return ((0, self.asked_rates), *later)

    def asked_over(self, steps: int) -> dict[str, float]:
        """Share of each task in a run of so many steps, over all its stages."""
        if not self.mixture.stages:
            return dict(self.asked_rates)
        begins = [min(step, steps) for step, _ in self.stages] + [steps]
        asked = dict.fromkeys(self.task_names, 0.0)
        for (_, rates), first, last in zip(self.stages, begins, begins[1:], strict=False):
            for name in asked:
                asked[name] += rates[name] * (last - first) / steps
        return asked

    def token_shares(self, rates: Mapping[str, float]) -> dict[str, float]:
        """Of ``rates``, shares of the mixture's unit: the share of each task in all tokens."""
        if self.mixture.by == "tokens":
            return dict(rates)
        tokens = dict.fromkeys(self.task_names, 0.0)
        for name, index, size in zip(self.task_names, self.lengths, self.epoch_tokens, strict=True):
            if index is not None and rates[name]:
                # A record without tokens, and a damaged one, is drawn like the others.
                tokens[name] = rates[name] * size / index.records
        return _shares(tokens)

    def prints(self) -> dict[str, str]:
        """What rows are made of, by name, for a run's fingerprint: all of it by content.

        Sources, files and tokenizers may move or be renamed; limits (`max_epochs`) may be raised.
        """
        mixture, rates = self.mixture, self.mixture.rates  # of which 9 and 9.0 are the same
        settings: dict[str, Any] = {
            "mixture.by": mixture.by,
            "mixture.rates": rates if isinstance(rates, str) else _floats(rates),
            "mixture.stages": [(s.from_step, _floats(s.rates)) for s in mixture.stages],
            "tasks": list(self.task_names),
            "tokenizer": self.tokenizer.prints(),
        }
        for task, source in zip(mixture.tasks, self.sources, strict=True):
            values = asdict(task)
            for key in ("name", "source", "tokenizer", "max_epochs"):
                del values[key]
            settings[f"tasks.{task.name}"] = values
            settings[f"sources/{task.name}"] = source and source.fingerprint
        return prints_of(settings)

    def leave_out(self, task: int, index: int) -> None:
        """Count and log a record that could not be read."""
        name, source, lengths = self.task_names[task], self.sources[task], self.lengths[task]
        assert source is not None and lengths is not None  # only tasks of rate 0 have none
        if (name, index) in self.damaged.records:
            return
        found = read_records(source.read, source, [index], skip=True)[0]
        if isinstance(found, DamagedRecord):
            what = str(found)
        else:
            what = f"{source.where(index)} could not be read before, but can be now"
            if lengths.array[index] < 0:
                what += f"; for a new run that has it, delete {lengths.path}"
        self.damaged.add(name, index, what)


def _floats(rates: Mapping[str, float]) -> dict[str, float]:
    return {name: float(rate) for name, rate in rates.items()}


def _shares(rates: Mapping[str, float]) -> dict[str, float]:
    total = sum(rates.values())
    return {name: rate / total for name, rate in rates.items()}


def open_mixture(
    data: DataConfig | Mixture,
    *,
    verify: bool | None = None,
    progress: Callable[[str, int, int], None] = lambda task, done, total: None,
) -> OpenMixture:
    """Check the shards of a mixture, load its tokenizer, count tokens where not yet counted.

    ``verify`` overrides the config's ``verify_checksums``; ``progress`` gets a task's name,
    records counted and in all. Raises UserError for what is missing, damaged or empty.
    """
    if isinstance(data, Mixture):
        config, mixture = DataConfig(tokenizer=data.tasks[0].tokenizer), data
    else:
        config, mixture = data, load_mixture(data)
    check = config.verify_checksums if verify is None else verify
    tokenizer = load_tokenizer(mixture.tasks[0].tokenizer)
    asked = {task.name: 1.0 for task in mixture.tasks}
    if not isinstance(mixture.rates, str):
        asked = {task.name: float(mixture.rates[task.name]) for task in mixture.tasks}
    sources: list[Source | None] = []
    lengths: list[Lengths | None] = []
    sizes: list[int] = []
    for task in mixture.tasks:
        if not any([asked[task.name], *(stage.rates[task.name] for stage in mixture.stages)]):
            sources.append(None)
            lengths.append(None)
            sizes.append(0)
            continue
        source = open_source(
            task,
            verify=check,
            index_folder=config.index_folder,
            skip_damaged=config.skip_damaged,
        )
        index = index_lengths(
            source,
            tokenizer,
            lambda done, total, name=task.name: progress(name, done, total),
            skip_damaged=config.skip_damaged,
            encode=task.encode,
        )
        tokens = index.tokens(extra_tokens(task))
        if mixture.rates == NATURAL:
            size = tokens if mixture.by == "tokens" else len(source)
            asked[task.name] = float(size) if tokens else 0.0
        elif tokens == 0:
            raise UserError(
                f"mixture {mixture.name!r} asks for `rates.{task.name}` = {asked[task.name]:g} but "
                f"{task.source} holds no tokens: set that rate to 0 or fill the source."
            )
        sources.append(source)
        lengths.append(index)
        sizes.append(tokens)
    if not sum(asked.values()) > 0:
        raise UserError(
            f"all sources of mixture {mixture.name!r} are empty "
            f"({', '.join(task.source for task in mixture.tasks)}): fill at least one."
        )
    opened = OpenMixture(
        mixture=mixture,
        config=config,
        tokenizer=tokenizer,
        sources=tuple(sources),
        lengths=tuple(lengths),
        epoch_tokens=tuple(sizes),
        asked_rates=_shares(asked),
    )
    for task, index in enumerate(lengths):
        for record in index.damaged.tolist() if index is not None else ():
            opened.leave_out(task, record)
    return opened
