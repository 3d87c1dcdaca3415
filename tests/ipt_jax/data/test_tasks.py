"""Tasks, mixtures, their registries and their YAML."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from tokenizers import Tokenizer, models, processors

from ipt_jax.core.errors import UserError
from ipt_jax.core.records import Record, ShardWriter
from ipt_jax.core.tokenizers import load_tokenizer
from ipt_jax.data.encode import extra_tokens, read_examples
from ipt_jax.data.mixture import DataConfig, load_mixture, load_mixture_config
from ipt_jax.data.sources import open_source
from ipt_jax.data.tasks import (
    Mixture,
    Stage,
    Task,
    get_mixture,
    get_task,
    register_mixture,
    register_task,
    unregister,
)

TASKS = (Task("raw", "a"), Task("augmented", "b"))
CONFIGS = Path(__file__).parents[3] / "configs" / "mixtures"


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"raw": -1, "augmented": 1}, "`rates.raw` is -1"),
        ({"raw": 0, "augmented": 0}, "all rates are zero"),
        ({"raw": float("nan"), "augmented": 1}, "`rates.raw` is nan"),
        ({"raw": "much", "augmented": 1}, "`rates.raw` is 'much'"),
        ({"raw": 1, "augmentd": 1}, "`rates.augmentd` is no task. The nearest is 'augmented'"),
        ({"raw": 1}, "'augmented' has no rate: add `rates.augmented`"),
        ("naturel", "'natural'"),
    ],
)
def test_rates_that_cannot_be(rates, message):
    with pytest.raises(UserError, match=message):
        Mixture("m", TASKS, rates)


def test_other_impossible_mixtures():
    with pytest.raises(UserError, match=r"no tasks"):
        Mixture("m", ())
    with pytest.raises(UserError, match=r"'raw' twice"):
        Mixture("m", (TASKS[0], TASKS[0]))
    with pytest.raises(UserError, match=r"tokenizers"):
        Mixture("m", (TASKS[0], Task("x", "c", tokenizer="llama3")))
    with pytest.raises(UserError, match=r"`by` is 'bytes'"):
        Mixture("m", TASKS, by="bytes")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"`tasks.x.loss` is 'some'"):
        Task("x", "a", loss="some")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"`tasks.x.max_epochs` is 0"):
        Task("x", "a", max_epochs=0)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([Stage(0, {"raw": 1, "augmented": 1})], "`stages.0.from_step` is 0: .* above 0"),
        ([Stage(True, {"raw": 1, "augmented": 1})], "`stages.0.from_step` is True"),
        ([Stage(2.5, {"raw": 1, "augmented": 1})], "`stages.0.from_step` is 2.5"),  # type: ignore[arg-type]
        (
            [Stage(7, {"raw": 1, "augmented": 1}), Stage(7, {"raw": 1, "augmented": 1})],
            "`stages.1.from_step` is 7: .* above 7",
        ),
        ([Stage(1, {"raw": -2, "augmented": 1})], "`stages.0.rates.raw` is -2"),
        ([Stage(1, {"raw": 1})], "add `stages.0.rates.augmented`"),
        ([Stage(1, {"raw": 0, "augmented": 0})], "all rates are zero .*stages.0.rates.raw"),
        ([Stage(1, {"raw": 1, "augmentd": 1})], "`stages.0.rates.augmentd` is no task"),
        ([Stage(1, "natural")], "`stages.0.rates` is 'natural'"),  # type: ignore[arg-type]
    ],
)
def test_stages_that_cannot_be(stages, message):
    with pytest.raises(UserError, match=message):
        Mixture("m", TASKS, {"raw": 1, "augmented": 1}, stages=tuple(stages))
    with pytest.raises(UserError, match="`rates` is 'natural' and `stages` change them"):
        Mixture("m", TASKS, stages=(Stage(1, {"raw": 1, "augmented": 1}),))


def test_registries():
    try:
        for task in TASKS:
            assert register_task(task) is task
        register_task(Task("raw", "a"))  # the same again does no harm
        with pytest.raises(UserError, match=r"already registered as 'raw'"):
            register_task(Task("raw", "elsewhere"))
        made = register_mixture("both", {"raw": 3, "augmented": 1})
        assert get_mixture("both") == made == Mixture("both", TASKS, {"raw": 3, "augmented": 1})
        stages = [Stage(9, {"raw": 0, "augmented": 1})]
        staged = register_mixture("staged", {"raw": 3, "augmented": 1}, stages=stages)
        assert get_mixture("staged").stages == staged.stages == tuple(stages)
        with pytest.raises(UserError, match=r"'augment'. The nearest is 'augmented'"):
            get_task("augment")
        with pytest.raises(UserError, match=r"'bot'. The nearest is 'both'"):
            get_mixture("bot")
    finally:
        for name in ("raw", "augmented", "both", "staged"):
            unregister(name)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_configs_load(path):
    mixture = load_mixture_config(path, root="elsewhere")
    assert mixture.name == path.stem
    assert all(task.source.startswith("elsewhere/") for task in mixture.tasks)


def test_a_file_and_its_overrides(tmp_path):
    path = tmp_path / "mine.yaml"
    tasks = {"raw": {"source": "raw", "max_epochs": 4}, "qa": {"source": "/qa", "bos": False}}
    content = {"root": "/data", "rates": {"raw": 4, "qa": 1}, "tasks": tasks}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    expected = Mixture(
        "mine",
        (Task("raw", "/data/raw", max_epochs=4), Task("qa", "/qa", bos=False)),
        {"raw": 4, "qa": 1},
    )
    assert load_mixture_config(path) == expected
    config = DataConfig(str(path), root="/other", rates={"raw": 1, "qa": 1}, tokenizer="llama3")
    mixture = load_mixture(config)
    assert mixture.rates == {"raw": 1, "qa": 1}
    assert [t.source for t in mixture.tasks] == ["/other/raw", "/qa"]
    assert {t.tokenizer for t in mixture.tasks} == {"llama3"}
    assert load_mixture(DataConfig({**content, "name": "mine"})) == expected


def test_stages_in_a_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "rates: {raw: 4, qa: 0}\n"
        "stages:\n"
        "- {from_step: 100, rates: {raw: 1, qa: 1}}\n"
        "- {from_step: 250, rates: {raw: 0, qa: 2.5}}\n"
        "tasks: {raw: {source: raw}, qa: {source: qa}}\n"
    )
    stages = (Stage(100, {"raw": 1, "qa": 1}), Stage(250, {"raw": 0, "qa": 2.5}))
    mixture = load_mixture(DataConfig(str(path)))
    assert (mixture.rates, mixture.stages) == ({"raw": 4, "qa": 0}, stages)
    inline = yaml.safe_load(path.read_text())
    assert load_mixture(DataConfig(inline)).stages == stages
    with pytest.raises(UserError, match=r"mine\.yaml: `rates` are given beside it.*`stages`"):
        load_mixture(DataConfig(str(path), rates={"raw": 1, "qa": 1}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: {}", "unknown key `task`. The nearest is 'tasks'"),
        ("tasks: {a: {source: x, epochs: 3}}", "`tasks.a.epochs`. The nearest is 'max_epochs'"),
        ("tasks: {a: {}}", "`tasks.a` needs a `source`"),
        ("tasks: {a: {source: x, loss: none}}", "`tasks.a.loss`"),
        ("tasks: {a: {source: x}}\nrates: {b: 1}", "`rates.b` is no task"),
        ("tasks: {a: {source: x, max_epochs: many}}", "max_epochs"),
        ("tasks: {a: {source: x}}\nrates: {a: 1}\nstages: {a: 1}", "`stages` must be a list"),
        ("tasks: {a: {source: x}}\nrates: {a: 1}\nstages: [3]", "`stages.0` is 3"),
        (
            "tasks: {a: {source: x}}\nrates: {a: 1}\nstages: [{until: 3, rates: {a: 1}}]",
            "unknown key `stages.0.until`. The nearest is 'rates'",
        ),
        (
            "tasks: {a: {source: x}}\nrates: {a: 1}\nstages: [{from_step: 3}]",
            "`stages.0` needs `rates`",
        ),
        (
            "tasks: {a: {source: x}}\nrates: {a: 1}\nstages: [{from_step: x, rates: {a: 1}}]",
            "`stages.0.from_step` is 'x'",
        ),
        ("tasks: [", "is not YAML"),
        ("", "holds no keys"),
        ("rates: natural", "`tasks` must map"),
    ],
)
def test_what_a_bad_file_gets(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"bad\.yaml") as error:
        load_mixture_config(path)
    assert message in str(error.value)


def test_a_missing_file():
    with pytest.raises(UserError, match=r"nowhere\.yaml cannot be read"):
        load_mixture_config("nowhere.yaml")


def test_impossible_data_configs():
    for key, value in (("row_tokens", 1), ("worker_count", -1), ("seed", -1)):
        with pytest.raises(UserError, match=f"`{key}` is {value}"):
            DataConfig(**{key: value})  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"`packing` is 'bestfit'.*'concatenate' or 'best_fit'"):
        DataConfig(packing="bestfit")  # type: ignore[arg-type]


@pytest.mark.parametrize("adds", [False, True])
def test_bos_is_what_the_tokenizer_puts_before_a_text(tmp_path, adds):
    fast = Tokenizer(models.BPE({"<s>": 0, "</s>": 1, "a": 2, "b": 3}, []))
    fast.add_special_tokens(["<s>", "</s>"])
    if adds:
        fast.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 0)])
    fast.save(str(tmp_path / "tokenizer.json"))
    # `add_bos_token` decides nothing: transformers drops it beside a tokenizer.json.
    said = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": not adds}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    with ShardWriter(tmp_path / "shards") as shards:
        shards.write(Record("r", "ab", "test", ("ab",), (1.0,)))
    task = Task("raw", str(tmp_path / "shards"), tokenizer=str(tmp_path), loss="responses")
    tokenizer = load_tokenizer(str(tmp_path))
    (example,) = read_examples(open_source(task), task, tokenizer, [0])
    assert example.tokens.tolist() == [*fast.encode("ab").ids, 1] == [0] * adds + [2, 3, 1]
    assert example.loss is not None and example.loss.tolist() == [0.0] * adds + [1.0] * 3
    assert extra_tokens(task) == 1 + adds
    assert not replace(task, bos=False).adds_bos
    if adds:
        assert replace(task, bos=True).adds_bos
    else:
        with pytest.raises(UserError, match=r"`tasks\.raw\.bos` is True, but .* puts no BOS"):
            extra_tokens(replace(task, bos=True))
    with pytest.raises(UserError, match="true or false, or null for what the tokenizer does"):
        replace(task, bos="yes")  # pyright: ignore[reportArgumentType]
