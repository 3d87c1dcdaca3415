"""Local lm-eval tasks: YAML whose data files are named relative to it."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ipt_jax.errors import UserError

TASKS_FOLDER = Path(__file__).parent / "tasks"
"""The tasks that come with the package."""


def render_tasks(names: Sequence[str], folder: Path, output: Path) -> dict[str, str]:
    """Copy those of `names` that `folder` holds to `output`, with absolute data file paths.

    lm-eval resolves `data_files` against the working directory; a task that is shipped in a
    package cannot know that. Names that `folder` lacks are lm-eval's own and left to it.

    Returns:
      name -> sha256 over the YAML and its data, for each task copied.

    Raises:
      UserError: a YAML that cannot be read, or a data file that is not there.
    """
    output.mkdir(parents=True, exist_ok=True)
    for module in sorted(folder.glob("*.py")):  # what `!function module.name` refers to
        shutil.copy(module, output)
    hashes = {}
    for path in sorted(folder.glob("*.yaml")):
        try:
            task = yaml.load(path.read_text(encoding="utf-8"), _Loader)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not a readable task ({error}); mend the YAML.") from error
        if not isinstance(task, dict) or task.get("task") not in names:
            continue
        digest = hashlib.sha256(path.read_bytes())
        kwargs = task.get("dataset_kwargs") or {}
        if "data_files" in kwargs:
            kwargs["data_files"] = _absolute(kwargs["data_files"], path, digest)
        if "include" in task:
            task["include"] = str((path.parent / task["include"]).resolve())
        rendered = output / path.name
        rendered.write_text(yaml.dump(task, Dumper=_Dumper, sort_keys=False), encoding="utf-8")
        hashes[task["task"]] = digest.hexdigest()
    return hashes


def _absolute(files: Any, task_path: Path, digest: Any) -> Any:
    if isinstance(files, dict):
        return {key: _absolute(value, task_path, digest) for key, value in files.items()}
    if isinstance(files, list):
        return [_absolute(value, task_path, digest) for value in files]
    if "://" in str(files):
        return files
    path = (task_path.parent / files).resolve()
    if not path.is_file():
        raise UserError(f"{task_path}: its data file {path} is not there; put it there or mend it.")
    digest.update(path.read_bytes())
    return str(path)


class _Function(str):
    """The argument of lm-eval's `!function` tag, carried through."""


class _Loader(yaml.SafeLoader):
    pass


class _Dumper(yaml.SafeDumper):
    pass


_Loader.add_constructor("!function", lambda loader, node: _Function(node.value))
_Dumper.add_representer(
    _Function, lambda dumper, value: dumper.represent_scalar("!function", str(value))
)
