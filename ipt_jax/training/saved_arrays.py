"""Arrays of a checkpoint that are read when, and as far as, they are asked for."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts


class SavedArray:
    """One array on disk: `array[index]` reads that part of it, np.asarray(array) all."""

    def __init__(self, folder: Path, name: str, context: ts.Context):
        """Open the array `name` (keys joined by dots) of the tree saved in `folder`."""
        info = ocp.type_handlers.ParamInfo(name=name, parent_dir=cast(Any, folder))
        spec = ts.Spec(ocp.type_handlers.get_json_tspec_read(info, use_ocdbt=True))
        self.name = name
        self._store = ts.open(spec, open=True, context=context).result()
        self.shape: tuple[int, ...] = tuple(self._store.shape)
        self.dtype: np.dtype = self._store.dtype.numpy_dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        return self._store[index].read().result()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError(f"{self.name}: an array on disk cannot be had without a copy.")
        return self._store.read().result().astype(dtype or self.dtype, copy=False)

    def __repr__(self) -> str:
        return f"SavedArray({self.name!r}, shape={self.shape}, dtype={self.dtype})"


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


def open_saved(folder: Path) -> Any:
    """The tree saved in `folder` (dicts and lists) with SavedArrays as leaves; reads no array."""
    context = ocp.type_handlers.get_ts_context(use_ocdbt=True)
    return jax.tree.map(
        lambda leaf: SavedArray(folder, leaf.name, context), _read_tree(folder), is_leaf=_is_array
    )


def _read_tree(folder: Path) -> Any:
    with ocp.PyTreeCheckpointer() as reader:
        metadata: Any = reader.metadata(folder)
    return metadata.item_metadata.tree


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, ocp.metadata.Metadata)
