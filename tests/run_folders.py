"""What lies in a run folder, and what of it no marker lists."""

from pathlib import Path

from ipt_jax.core import run_folder


def content(folder: Path) -> dict[str, bytes]:
    """The bytes of every file, by its name below the folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def unlisted(folder: Path) -> set[str]:
    """Files that neither the folder's marker nor that of a run folder in it lists."""
    left = {path for path in folder.rglob("*") if path.is_file()}
    for file in [path for path in left if path.name == run_folder.MARKER_NAME]:
        marker = run_folder._read(file.parent)
        assert marker is not None
        left -= {file, file.with_name(run_folder.LOCK_NAME)}
        for found in run_folder._matching(file.parent, marker.owns):
            left -= {found, *found.rglob("*")}
    return {path.relative_to(folder).as_posix() for path in left}
