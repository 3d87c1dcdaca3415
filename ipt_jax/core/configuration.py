"""From YAML and the command line to one frozen dataclass, and from there to a run folder."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import errno
import json
import os
import platform
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Sequence
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any, TextIO, get_args, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from ipt_jax.core.bounds import check_config, unchecked
from ipt_jax.core.errors import INTERRUPTED, RunStopped, UserError, did_you_mean, require_choice
from ipt_jax.core.files import atomic_write

# What a person can mend, and how; any other OSError is a fault of ours and keeps its traceback.
_NOT_THERE = (
    "what should be there is not (a volume that went, a file in a folder's place): see to it"
)
_ADVICE = {
    errno.ENOSPC: "the disk is full: free some space, or put the output on another disk",
    errno.EDQUOT: "your disk quota is used up: free some space, or write elsewhere",
    errno.EFBIG: "files may not grow so large there: raise the limit, or write elsewhere",
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS),
        "no permission to write there: change it, or choose another folder",
    ),
    **dict.fromkeys(
        (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENODEV, errno.ENXIO),
        _NOT_THERE,
    ),
    **dict.fromkeys(
        (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN, errno.ETIMEDOUT),
        "the volume does not answer: see that it is mounted and sound",
    ),
}
# Exit handlers that work take seconds: all that matters is on disk before.
EXIT_SECONDS = 60.0
BROKEN_PIPE = 128 + signal.SIGPIPE
_NAMED_PACKAGES = (
    "jax jaxlib flax optax orbax-checkpoint grain array-record numpy torch transformers vllm "
    "llguidance lm-eval sentencepiece tokenizers rensa py3langid resiliparse ray aiohttp"
).split()


def parse_config[T](
    cls: type[T],
    argv: Sequence[str] | None,
    *,
    prog: str,
    description: str,
    default: str | None = None,
) -> T:
    """Read `--config FILE.yaml` and dotted overrides into `cls`, a frozen dataclass.

    Where a key holds another dataclass, a file may name that part's own YAML file, relative to
    itself. Without
    `--config`, the file `default` is read, if one is given.

    Raises:
      UserError: an unknown key (the nearest valid one is named), a wrong type, a missing file.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog=prog, description=description, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file with any of the keys below")
    parser.add_class_arguments(cls)
    arguments = list(sys.argv[1:] if argv is None else argv)
    if default is not None and not _config_files(arguments):
        arguments = ["--config", default, *arguments]
    for path in _config_files(arguments):
        check_keys(cls, _read_yaml(path), where=str(path))
    _check_options(cls, arguments)
    arguments = _with_flags_set(cls, arguments)
    with unchecked():
        try:
            values = parser.instantiate_classes(parser.parse_args(arguments))
        except (ArgumentError, TypeError, ValueError) as error:
            raise _refusal(cls, error, prog) from error
        fields = _field_types(cls)
        config = cls(**{key: value for key, value in dict(values).items() if key in fields})
    check_config(config)
    return config


def _refusal(cls: type, error: Exception, prog: str) -> UserError:
    """What jsonargparse says of a value, with its key, and what a Literal's may have meant."""
    said = _one_paragraph(error)
    key = ".".join(re.findall(r'Parser key "([^"]+)"', said))  # one within another
    if key not in _all_keys(cls):
        return UserError(f"{prog}: {said} See {prog} --help.")
    literal = re.search(r"a typing.Literal(\[.*?\])\. Got value: (.*?)(?: - Expected|\.$)", said)
    if literal:
        nearest = did_you_mean(literal[2], ast.literal_eval(literal[1]))
        return UserError(f"{key}={literal[2]!r}: there is no such choice. {nearest}", key=key)
    return UserError(f"{prog}: {said} See {prog} --help.", key=key)


def choice_of(key: str, valid: Collection[str], *, default: str) -> str:
    """The value of a key that decides which settings there are, before those are read.

    Taken from the command line, else from the last `--config` file that has it.

    Raises:
      UserError: a value that is not in `valid` (the nearest is named).
    """
    found, arguments = default, sys.argv[1:]
    for path in _config_files(arguments):
        values = _read_yaml(path)
        found = (values.get(key) if isinstance(values, dict) else None) or found
    for number, argument in enumerate(arguments):
        if argument == f"--{key}":
            found = "".join(arguments[number + 1 : number + 2])
        elif argument.startswith(f"--{key}="):
            found = argument.partition("=")[2]
    require_choice(key, found, valid)
    return found


def check_keys(
    cls: type, values: Any, *, where: str, prefix: str = "", root: type | None = None
) -> None:
    """Refuse a key of the nested mapping `values` that dataclass `cls` does not have."""
    root = root or cls
    if not isinstance(values, dict):
        raise UserError(
            f"{prefix or 'the file'} should hold `key: value` lines, not {type(values).__name__}",
            path=where,
            advice="see the files in configs/ for the form",
        )
    valid = _field_types(cls)
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in valid:
            said = f"{where}: unknown key '{name}'. {_nearest(name, root)}"
            raise UserError(said, key=name, path=where)
        nested = _dataclass_in(valid[key])
        if nested and isinstance(value, dict):
            check_keys(nested, value, where=where, prefix=f"{name}.", root=root)
        elif nested and isinstance(value, str):
            path = Path(where).parent / value
            check_keys(nested, _read_yaml(path), where=str(path))


def _check_options(cls: type, arguments: Sequence[str]) -> None:
    for argument in arguments:
        name = argument.split("=", 1)[0]
        if not name.startswith("--") or name in ("--config", "--help", "--print_config"):
            continue
        parts, current = name[2:].rstrip("+").split("."), cls
        for part in parts:
            fields = _field_types(current)
            if part not in fields:
                said = f"unknown option '{name}'. {_nearest(name[2:], cls)}"
                raise UserError(said, key=name[2:])
            nested = _dataclass_in(fields[part])
            if nested is None:
                break  # what follows the dot is a key of a plain mapping
            current = nested


def _with_flags_set(cls: type, arguments: Sequence[str]) -> list[str]:
    """Let `--fresh` alone mean `--fresh true`, for every key that is true or false."""
    completed = []
    for number, argument in enumerate(arguments):
        completed.append(argument)
        following = "".join(arguments[number + 1 : number + 2]) or "--"
        if not argument.startswith("--") or not following.startswith("--"):
            continue
        current: Any = cls
        for part in argument[2:].split("."):
            inner = _dataclass_in(current) if current is not cls else cls
            current = _field_types(inner).get(part) if inner else None
        if current is bool:
            completed.append("true")
    return completed


def _field_types(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _dataclass_in(annotation: Any) -> type | None:
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and dataclasses.is_dataclass(candidate):
            return candidate
    return None


def _all_keys(cls: type, prefix: str = "") -> list[str]:
    keys = []
    for name, annotation in _field_types(cls).items():
        keys.append(prefix + name)
        if nested := _dataclass_in(annotation):
            keys += _all_keys(nested, f"{prefix}{name}.")
    return keys


def _nearest(name: str, cls: type) -> str:
    keys = _all_keys(cls)
    leaves = {key.rsplit(".", 1)[-1]: key for key in reversed(keys)}
    found = difflib.get_close_matches(name, keys, n=1, cutoff=0.6)
    if not found:
        last = difflib.get_close_matches(name.rsplit(".", 1)[-1], list(leaves), n=1, cutoff=0.6)
        found = [leaves[last[0]]] if last else []
    if found:
        return f"The nearest valid key is '{found[0]}'."
    top = ", ".join(key for key in keys if "." not in key)
    return f"Valid keys are: {top}."


def _config_files(arguments: Sequence[str]) -> list[Path]:
    paths = []
    for position, argument in enumerate(arguments):
        if argument == "--config" and position + 1 < len(arguments):
            paths.append(Path(arguments[position + 1]))
        elif argument.startswith("--config="):
            paths.append(Path(argument.removeprefix("--config=")))
    return paths


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError as error:
        raise UserError(
            "no such config file", path=path, advice="give one from configs/"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            f"not valid YAML ({_one_paragraph(error)})", path=path, advice="mend it"
        ) from error
    except IsADirectoryError as error:
        raise UserError(
            "a folder, not a YAML file", path=path, advice="give a file from configs/"
        ) from error


def _one_paragraph(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if text.endswith(".") else text + "."


def as_yaml(config: Any) -> str:
    """The resolved config as YAML that `parse_config` reads back."""
    values = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def write_run_files(folder: Path, config: Any, *, devices: Sequence[str] = ()) -> None:
    """Write `config.yaml` and `environment.json` (commit, versions, devices) into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / "config.yaml", as_yaml(config))
    versions = {}
    for name in _NAMED_PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    environment = {
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "packages": versions,
        "devices": list(devices),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }
    atomic_write(folder / "environment.json", json.dumps(environment, indent=1))


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None  # installed without its repository
    return done.stdout.strip()


def run_main(main: Callable[[], int | None]) -> None:
    """Run a launch script's `main`; exit 0, or 2 with one paragraph, or 130 after Ctrl-C.

    A `RunStopped` brings its own code; 141, without a word, where nobody reads what is printed.
    """
    code = 1
    try:
        code = main() or 0
        sys.stdout.flush()
    except UserError as error:
        code = print_error(str(error))
    except RunStopped as error:
        print(f"\n{error}", file=sys.stderr)
        code = error.code
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on from here.", file=sys.stderr)
        code = INTERRUPTED
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads(sys.stdout):
            code = BROKEN_PIPE
        elif (advice := advice_on(error)) is None:
            raise
        else:
            code = print_error(advice)
    finally:
        _leave_within(EXIT_SECONDS, code)
    sys.exit(code)


def _nobody_reads(stream: TextIO) -> bool:
    """Whether the reader of `stream` is gone, as with `| head`; what is left of it is dropped then.

    A pipe that broke may also be one to a process of ours, whose end is a fault to be told.
    """
    watched = select.poll()
    watched.register(stream.fileno(), 0)
    gone = any(events & (select.POLLERR | select.POLLHUP) for _, events in watched.poll(0))
    if gone:  # Python would try once more at its exit, and complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return gone


def advice_on(error: OSError) -> str | None:
    """What a person can do about it; None where it is a fault of ours."""
    advice = _ADVICE.get(error.errno or 0)
    if advice is None or (error.filename is None and advice is _NOT_THERE):
        return None
    return f"{error.filename or 'output'}: {advice}; then run the same command again."


def _leave_within(seconds: float, code: int) -> None:
    """End the process with `code` if its exit, which begins now, takes longer.

    Python waits for threads that libraries left behind; one of Orbax's, after a save that failed,
    never ends.
    """
    thread, script = threading.get_ident(), _outermost(sys._getframe())

    def watch() -> None:
        time.sleep(seconds)
        if _outermost(sys._current_frames().get(thread)) is script:
            return  # whoever called caught the exit
        left = [t.name for t in threading.enumerate() if not t.daemon and t.is_alive()]
        print(
            f"not waited for at the exit any longer: {', '.join(left) or 'exit handlers'}",
            file=sys.stderr,
            flush=True,
        )
        with contextlib.suppress(OSError, ValueError):  # closed, or nobody reads it
            sys.stdout.flush()  # Python would have, after those threads
        os._exit(code)

    threading.Thread(target=watch, name="exit watch", daemon=True).start()


def _outermost(frame: FrameType | None) -> FrameType | None:
    while frame is not None and frame.f_back is not None:
        frame = frame.f_back
    return frame


def print_error(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2
