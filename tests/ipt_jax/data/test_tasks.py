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
    Task,
    get_mixture,
    get_task,
    register_mixture,
    register_task,
    unregister,
)
from ipt_jax.data.tasks import (
    MixtureStage as Stage,
)

TASKS = (Task("raw", "a"), Task("augmented", "b"))
CONFIGS = Path(__file__).parents[3] / "configs" / "mixtures"


EQUAL = {"raw": 1, "augmented": 1}


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"rates": {"raw": -1, "augmented": 1}}, "rates.raw"),
        ({"rates": {"raw": float("nan"), "augmented": 1}}, "rates.raw"),
        ({"rates": {"raw": "much", "augmented": 1}}, "rates.raw"),
        ({"rates": {"raw": 0, "augmented": 0}}, "rates"),
        ({"rates": {"raw": 1, "augmentd": 1}}, "rates.augmentd"),
        ({"rates": {"raw": 1}}, "rates.augmented"),
        ({"tasks": (TASKS[0], TASKS[0])}, "tasks.raw"),
        ({"tasks": (TASKS[0], Task("x", "c", tokenizer="llama3"))}, "tasks"),
        ({"stages": (Stage(1, EQUAL),)}, "rates"),  # natural, and they change them
        ({"rates": EQUAL, "stages": (Stage(7, EQUAL), Stage(7, EQUAL))}, "stages.1.from_step"),
        ({"rates": EQUAL, "stages": (Stage(1, {"raw": 1}),)}, "stages.0.rates.augmented"),
        ({"rates": EQUAL, "stages": (Stage(1, {"raw": 0, "augmented": 0}),)}, "stages.0.rates"),
        (
            {"rates": EQUAL, "stages": (Stage(1, {"raw": 1, "augmentd": 1}),)},
            "stages.0.rates.augmentd",
        ),
    ],
)
def test_mixtures_that_cannot_be(values, key):
    with pytest.raises(UserError, match="mixture 'm': ") as refused:
        Mixture(**{"name": "m", "tasks": TASKS} | values)
    assert refused.value.key == key


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


ONE = "tasks: {a: {source: x}}\nrates: {a: 1}\n"


@pytest.mark.parametrize(
    ("text", "key", "said"),
    [
        ("task: {}", "task", "The nearest is 'tasks'"),
        ("tasks: {a: {source: x, epochs: 3}}", "tasks.a.epochs", "The nearest is 'max_epochs'"),
        ("tasks: {a: {}}", "tasks.a.source", ""),
        ("tasks: {a: {source: x, loss: none}}", "tasks.a.loss", ""),
        ("tasks: {a: {source: x}}\nrates: {b: 1}", "rates.b", "no task"),
        ("tasks: {a: {source: x, max_epochs: many}}", "tasks.a.max_epochs", "'many'"),
        (ONE + "stages: {a: 1}", "stages", "a list"),
        (ONE + "stages: [3]", "stages.0", "a mapping"),
        (ONE + "stages: [{until: 3, rates: {a: 1}}]", "stages.0.until", "The nearest is 'rates'"),
        (ONE + "stages: [{from_step: 3}]", "stages.0.rates", "missing"),
        (ONE + "stages: [{from_step: x, rates: {a: 1}}]", "stages.0.from_step", "'x'"),
        ("tasks: [", None, "is not YAML"),
        ("", None, "holds no keys"),
        ("rates: natural", "tasks", ""),
    ],
)
def test_what_a_bad_file_gets(tmp_path, text, key, said):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=f"bad.yaml.*{said}") as refused:
        load_mixture_config(path)
    assert refused.value.key == key


def test_a_missing_file():
    with pytest.raises(UserError, match=r"nowhere\.yaml cannot be read"):
        load_mixture_config("nowhere.yaml")


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
