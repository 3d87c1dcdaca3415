"""Arrays of a checkpoint that are read when, and as far as, they are asked for."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from ipt_jax.core.errors import UserError
from ipt_jax.core.lazy_array import LazyArray


class SavedArray(LazyArray):
    """One array of a checkpoint."""

    def __init__(self, folder: Path, name: str, context: ts.Context, held: Any = None):
        """Open the array `name` (keys joined by dots) of the tree saved in `folder`.

        `held` is kept as long as the array: what lets the folder last.
        """
        self._held, self._from = held, f"{folder}: {name}"
        info = ocp.type_handlers.ParamInfo(name=name, parent_dir=cast(Any, folder))
        spec = ts.Spec(ocp.type_handlers.get_json_tspec_read(info, use_ocdbt=True))
        self._store = ts.open(spec, open=True, context=context).result()
        self.shape = tuple(self._store.shape)
        self.dtype = self._store.dtype.numpy_dtype

    def __getitem__(self, index: Any) -> np.ndarray:
        try:
            return self._store[index].read().result()
        except ValueError as error:
            raise UserError(
                f"{self._from} cannot be read any more ({error})",
                key="checkpoints.keep",
                advice="if a run deleted the checkpoint, try again or raise its checkpoints.keep",
            ) from error


class StreamedArrays(ocp.type_handlers.NumpyHandler):
    """Orbax's way to save host arrays, but one part along the first axis after the other.

    So of a LazyArray no more than a part is in memory.
    """

    def __init__(self) -> None:
        super().__init__(deepcopy_host_arrays=False)
        self._one_at_a_time = asyncio.Semaphore(1)

    async def _open_and_write(
        self, value: Any, tspec: dict[str, Any], ts_context: ts.Context
    ) -> None:
        async with self._one_at_a_time:
            spec = ts.Spec(tspec)
            store = await ts.open(spec, create=True, open=True, context=ts_context)
            chunk: Any = store.chunk_layout.write_chunk.shape
            rows = chunk[0]
            for start in range(0, value.shape[0], rows):
                part = slice(start, start + rows)
                await store[part].write(np.asarray(value[part]))


def differences(folder: Path, abstract: Any) -> list[str]:
    """The first three arrays saved in `folder` with another shape or dtype than `abstract` has.

    Raises:
      ValueError, KeyError, OSError: `folder` holds no tree that can be read.
    """

    def described(leaf: Any) -> str:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            key = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
            leaf = jax.eval_shape(jax.random.key_data, key)
        return f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"

    def table(tree: Any) -> dict[str, str]:
        leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_array)
        return {".".join(ocp.tree.str_keypath(path)): described(leaf) for path, leaf in leaves}

    asked, there = table(abstract), table(_read_tree(folder))
    return [
        f"{name} is {there.get(name, 'absent')} in it and {asked.get(name, 'absent')} here"
        for name in dict.fromkeys((*asked, *there))
        if asked.get(name) != there.get(name)
    ][:3]


def open_saved(folder: Path, held: Any = None) -> Any:
    """The tree saved in `folder` (dicts and lists) with SavedArrays as leaves; reads no array.

    `held`: what they keep as long as they last.
    """
    context = ocp.type_handlers.get_ts_context(use_ocdbt=True)

    def opened(leaf: Any) -> SavedArray:
        return SavedArray(folder, leaf.name, context, held)

    return jax.tree.map(opened, _read_tree(folder), is_leaf=_is_array)


def hold(folder: Path) -> tempfile.TemporaryDirectory[str] | None:
    """Hard links to the checkpoints in `folder`, gone with the object; None where links fail."""
    try:
        held = tempfile.TemporaryDirectory(
            prefix=".reading-", dir=folder, ignore_cleanup_errors=True
        )
        while names := _saves(folder):
            for name in names:
                source, target = folder / name, Path(held.name, name)
                try:
                    shutil.copytree(source, target, copy_function=os.link)
                except OSError:  # shutil.Error is one
                    if source.exists():
                        return None
                if not source.exists():  # the run deleted it, so that files may be missing
                    shutil.rmtree(target, ignore_errors=True)
            if _saves(Path(held.name)):
                break
    except OSError:
        return None
    return held


def _saves(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.isdecimal()]


def _read_tree(folder: Path) -> Any:
    with ocp.PyTreeCheckpointer() as reader:
        metadata: Any = reader.metadata(folder)
    return metadata.item_metadata.tree


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, ocp.metadata.Metadata)
