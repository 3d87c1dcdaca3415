"""Local lm-eval tasks: YAML whose files are named relative to it, and what all of them hold."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ipt_jax.core.errors import UserError
from ipt_jax.core.fingerprint import digest_of, file_digest, folder_digest, path_digest

TASKS_FOLDER = Path(__file__).parent / "tasks"
"""The tasks that come with the package."""
_BUILDERS = ("json", "csv", "parquet", "arrow", "text")  # as `dataset_path`: how, not what is read


def render_tasks(names: Sequence[str], folder: Path, output: Path) -> dict[str, str]:
    """Write those of `names` that `folder` holds to `output`, each whole and with absolute paths.

    lm-eval looks for data in the working directory; here it lies beside the YAML that names it,
    be that the task's own or one that it includes. Names that `folder` lacks are lm-eval's own and
    left to it.

    Returns:
      name -> digest of each task written: its YAML and those it includes, its data, and where a
      `!function` names a module beside them, all files there and the modules below.

    Raises:
      UserError: a YAML that cannot be read, or a file that is named and not there.
    """
    output.mkdir(parents=True, exist_ok=True)
    written = {}
    for path in sorted(folder.glob("*.yaml")):
        seen: list[Path] = []
        task = _read(path, seen)
        if not isinstance(name := task.get("task"), str) or name not in names:
            continue
        modules: dict[Path, str] = {}
        task = {key: _with_modules(value, output, modules) for key, value in task.items()}
        text = yaml.dump(task, Dumper=_Dumper, sort_keys=False)
        (output / path.name).write_text(text, encoding="utf-8")
        data = [path_digest(p) for p in _data(task, path)]
        code = [folder_digest(place, ("*", "**/*.py")) for place in modules]
        written[name] = digest_of([[file_digest(p) for p in seen], data, code])
    return written


def _read(path: Path, seen: list[Path]) -> dict[str, Any]:
    """A task with what it includes; files and functions know the folder of the YAML naming them."""
    if path.resolve() in seen:
        raise UserError(
            f"includes itself, over {len(seen)} file(s)", path=path, advice="take one out"
        )
    seen.append(path.resolve())
    try:
        with open(path, "rb") as file:  # whose name tells a function its folder
            own = yaml.load(file, _Loader)
    except (OSError, yaml.YAMLError) as error:
        raise UserError(
            f"not a readable task ({error})", path=path, advice="mend the YAML"
        ) from error
    if not isinstance(own, dict):
        return {}
    dataset, kwargs = own.get("dataset_path"), own.get("dataset_kwargs")
    if isinstance(dataset, str) and dataset not in _BUILDERS and (path.parent / dataset).exists():
        own["dataset_path"] = str((path.parent / dataset).resolve())
    if isinstance(kwargs, dict):
        own["dataset_kwargs"] = kwargs | {
            key: _absolute(kwargs[key], path.parent)
            for key in ("data_files", "data_dir")
            if key in kwargs
        }
    included = own.pop("include", [])
    merged: dict[str, Any] = {}
    for name in included if isinstance(included, list) else [included]:
        merged |= _read(path.parent / str(name), seen)
        merged.pop("task_list", None)  # as lm-eval: it is of the included file alone
    return merged | own


def _absolute(files: Any, folder: Path) -> Any:
    if isinstance(files, dict):
        return {key: _absolute(value, folder) for key, value in files.items()}
    if isinstance(files, list):
        return [_absolute(value, folder) for value in files]
    return files if "://" in str(files) else str((folder / str(files)).resolve())


def _data(task: Mapping[str, Any], path: Path) -> list[Path]:
    """Local files and folders that a task reads, in the order it names them."""
    kwargs = task.get("dataset_kwargs") or {}
    named = [kwargs[key] for key in ("data_files", "data_dir") if key in kwargs]
    found: list[Path] = []
    while named:
        one = named.pop(0)
        if isinstance(one, dict | list):
            named = [*(one.values() if isinstance(one, dict) else one), *named]
        elif "://" not in str(one):
            there = [one] if Path(one).exists() else sorted(glob.glob(one, recursive=True))
            if not there:
                raise UserError(f"its data file {one} is not there", path=path, advice="mend it")
            found += map(Path, there)
    dataset = Path(str(task.get("dataset_path")))
    return [*found, dataset] if dataset.is_absolute() else found


class _Function(str):
    """The argument of lm-eval's `!function` tag, carried through."""

    folder: Path
    """Of the YAML, where its module is looked for."""


def _with_modules(value: Any, output: Path, modules: dict[Path, str]) -> Any:
    """Link the modules that functions are in below `output`, each folder's under its own name.

    lm-eval follows the link, so that a module finds its own files where it lies. A function whose
    module is not beside its YAML is one that Python can import.
    """
    if isinstance(value, dict):
        return {key: _with_modules(inner, output, modules) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_modules(inner, output, modules) for inner in value]
    if not isinstance(value, _Function):
        return value
    file = value.rpartition(".")[0].replace(".", "/") + ".py"
    source = (value.folder / file).resolve()
    if not source.is_file():
        return value
    place = modules.setdefault(
        value.folder.resolve(), f"modules_{digest_of(value.folder.resolve())}"
    )
    link = output / place / file
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.exists():
        link.symlink_to(source)
    return _Function(f"{place}.{value}")


class _Loader(yaml.SafeLoader):
    pass


class _Dumper(yaml.SafeDumper):
    pass


def _function(loader: Any, node: Any) -> _Function:
    made = _Function(node.value)
    made.folder = Path(loader.name).parent
    return made


_Loader.add_constructor("!function", _function)
_Dumper.add_representer(
    _Function, lambda dumper, value: dumper.represent_scalar("!function", str(value))
)
