"""Where a run's figures go besides metrics.jsonl: TensorBoard and Weights & Biases.

TensorBoard's event files are written with protobuf alone: the libraries that write them import
torch or TensorFlow where those are installed, and the trainer loads neither.
"""

from __future__ import annotations

import functools
import os
import secrets
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

from ipt_jax.core.errors import UserError
from ipt_jax.core.files import atomic_write, naming


class WandbWriter:
    """One Weights & Biases run for all starts; its id is kept in wandb_run_id.txt."""

    def __init__(self, folder: Path, project: str, mode: str):
        """Begin the run, or go on with it.

        Raises:
          UserError: not logged in, or the service cannot be reached.
        """
        import wandb  # an optional extra; MetricsConfig.check has seen that it is there
        from wandb.errors import Error

        path = folder / "wandb_run_id.txt"
        if not path.exists():
            atomic_write(path, secrets.token_hex(8) + "\n")
        try:
            self._run = wandb.init(
                project=project,
                id=path.read_text(encoding="utf-8").strip(),
                name=folder.resolve().name,
                config=_config(folder),
                dir=str(folder),
                resume="allow",
                mode="offline" if mode == "offline" else "online",
                # It would take the progress bar's output through its own pipes.
                settings=wandb.Settings(console="off"),
            )
        except Error as error:
            raise UserError(
                f"metrics.wandb_project={project!r}: Weights & Biases did not start "
                f"({str(error).rstrip('.')}). Run `wandb login`, or set metrics.wandb_mode=offline "
                "and upload with `wandb sync` later."
            ) from error

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Note the figures of step number `step`."""
        # A run resumed before its last line comes by the same steps again; they are there.
        if step >= self._run.step:
            self._run.log(dict(scalars), step=step)

    def close(self, failed: bool) -> None:
        """No writes after this; `failed`: an error ended the run."""
        self._run.finish(exit_code=int(failed))


def _config(folder: Path) -> dict[str, Any] | None:
    path = folder / "config.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else None


_SESSION_START = 1  # tensorflow.SessionLog.START


class EventFile:
    """One file of scalars in a folder that TensorBoard shows; on disk after every `write`."""

    def __init__(self, folder: Path, first_step: int):
        """Begin a file whose steps are `first_step` and later.

        TensorBoard hides what earlier files in the folder hold of these steps: they were written
        by a run that went on past the checkpoint it was resumed from.
        """
        folder.mkdir(parents=True, exist_ok=True)
        now = time.time_ns()
        # Readers take the files in the order of their names.
        name = f"{now // 10**9:010d}.{socket.gethostname()}.{now}.{os.getpid()}"
        self._path = folder / f"events.out.tfevents.{name}"
        self._file = self._path.open("xb", buffering=0)
        self._append(file_version="brain.Event:2")
        self._append(step=first_step, session_log={"status": _SESSION_START})

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Add one point to each tag's curve."""
        values = [{"tag": tag, "simple_value": value} for tag, value in scalars.items()]
        self._append(step=step, summary={"value": values})

    def close(self, failed: bool) -> None:
        """No writes after this."""
        self._file.close()

    def _append(self, **fields: Any) -> None:
        data = _event_class()(wall_time=time.time(), **fields).SerializeToString()
        length = struct.pack("<Q", len(data))
        with naming(self._path):
            self._file.write(length + _checksum(length) + data + _checksum(data))


@functools.cache
def _event_class() -> type[message.Message]:
    """The fields of tensorflow.Event that scalars need, in a pool of our own."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="ipt_jax/event.proto", package="tensorflow", syntax="proto3"
    )

    def add(parent: str, name: str, number: int, kind: int, **more: Any) -> None:
        found = {entry.name: entry for entry in file.message_type}
        entry = found.get(parent) or file.message_type.add(name=parent)
        entry.field.add(name=name, number=number, type=kind, **{"label": 1, **more})

    add("Value", "tag", 1, kinds.TYPE_STRING)
    add("Value", "simple_value", 2, kinds.TYPE_FLOAT)
    add("Summary", "value", 1, kinds.TYPE_MESSAGE, label=3, type_name=".tensorflow.Value")
    add("SessionLog", "status", 1, kinds.TYPE_INT32)  # an enum there; the same on the wire
    add("Event", "wall_time", 1, kinds.TYPE_DOUBLE)
    add("Event", "step", 2, kinds.TYPE_INT64)
    add("Event", "file_version", 3, kinds.TYPE_STRING)
    add("Event", "summary", 5, kinds.TYPE_MESSAGE, type_name=".tensorflow.Summary")
    add("Event", "session_log", 7, kinds.TYPE_MESSAGE, type_name=".tensorflow.SessionLog")
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Event"))


def _checksum(data: bytes) -> bytes:
    """The masked CRC-32C of a TFRecord frame."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _crc_table()[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


@functools.cache
def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return tuple(table)
