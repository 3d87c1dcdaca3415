"""The rooms and what each imports: python tools/floors.py [--write docs/architecture.md]

A room is a folder of `ipt_jax` or `data_gen`; `data_gen` itself is the files that lie in it. A room
stands one floor above the highest of those that it imports. tests/test_walls.py compares the page.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from ipt_jax.core.errors import importing

with importing():
    from ipt_jax.core.configuration import run_main
    from ipt_jax.core.files import atomic_write

ROOT = Path(__file__).parents[1]
PACKAGES = ("ipt_jax", "data_gen")
BEGIN, END = "<!-- floors -->\n", "<!-- end of floors -->"


def imports(source: str, package: str = "") -> Iterator[tuple[int, str]]:
    """Line and full name of each module or name that `source` imports, in functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *([base] if base else [])])
            # `from ipt_jax import data` names the module ipt_jax.data.
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def module_graph(root: Path = ROOT) -> dict[str, set[str]]:
    """Each module of ours -> those of ours that it imports."""
    paths = {}
    for path in (path for package in PACKAGES for path in (root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    graph: dict[str, set[str]] = {}
    for module, path in paths.items():
        folder = ".".join(path.parent.relative_to(root).parts)
        found = {name for _, name in imports(path.read_text(encoding="utf-8"), folder)}
        # What is imported is a module, or a name in one.
        found = {name if name in paths else name.rpartition(".")[0] for name in found}
        graph[module] = (found & paths.keys()) - {module}
    return graph


def room_of(module: str, graph: Mapping[str, set[str]]) -> str:
    """The room that a module lies in."""
    package, *rest = module.split(".")
    is_folder = any(name.startswith(".".join([package, *rest[:1], ""])) for name in graph)
    return ".".join([package, *rest[:1]]) if rest and is_folder else package


def room_graph(graph: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Each room -> the rooms that it imports."""
    rooms: dict[str, set[str]] = {}
    for module, imported in graph.items():
        room = room_of(module, graph)
        rooms.setdefault(room, set()).update(room_of(name, graph) for name in imported)
    return {room: imported - {room} for room, imported in rooms.items() if "." in room or imported}


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Names that import each other in a ring, the first again at its end; empty where none do."""
    try:
        TopologicalSorter({name: sorted(graph[name]) for name in sorted(graph)}).prepare()
    except CycleError as error:
        return error.args[1][::-1]  # there each comes before what imports it
    return []


def table(rooms: Mapping[str, set[str]]) -> str:
    """The floors in Markdown, the roof first. Raises ValueError where rooms stand in a ring."""
    if ring := circle(rooms):
        raise ValueError(f"rooms import each other: {' -> '.join(ring)}")

    def floor(room: str) -> int:
        return 1 + max((floor(below) for below in rooms[room]), default=-1)

    lines = ["| floor | room | uses |", "|--:|---|---|"]
    for room in sorted(rooms, key=lambda room: (-floor(room), room)):
        uses = ", ".join(f"`{name}`" for name in sorted(rooms[room])) or "nothing of ours"
        lines.append(f"| {floor(room)} | `{room}` | {uses} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table, or put it between the marks of a page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, help="page with marks for the table")
    page = parser.parse_args(argv).write
    made = table(room_graph(module_graph()))
    if page is None:
        print(made, end="")
        return
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    atomic_write(page, before + BEGIN + made + END + rest.partition(END)[2])


if __name__ == "__main__":
    run_main(main)
