"""Writes PhantomVQA as another data set publishes its files, quirks included.

    python scripts/export_phantom.py --dataset=slake --out=DIR [--layout=NAME] [--split=train] [--size=200]

The split is named as that data set names it; its scenes come from PhantomVQA's train, val or test scenes accordingly. Several
splits can be written into one folder. What was written is read back, and the reader's report is printed.
"""

import sys
from collections.abc import Sequence

import tqdm
from absl import flags

from mvg_jax import program
from mvg_jax.data import exporters, readers
from mvg_jax.data.phantom import PhantomSource

DATASET = flags.DEFINE_enum("dataset", None, list(exporters.EXPORTERS), "Whose layout.")
LAYOUT = flags.DEFINE_string("layout", None, "Which of the data set's layouts; the usual one if not given.")
OUT = flags.DEFINE_string("out", None, "Folder to write to.")
SPLIT = flags.DEFINE_string("split", "train", "Split, as the data set names it.")
SIZE = flags.DEFINE_integer("size", 200, "Questions.", lower_bound=1)


def phantom_split(split: str) -> str:
    """PhantomVQA's split for a split of another data set."""
    return "train" if split.startswith("train") else "test" if split.startswith("test") else "val"


class Watched(Sequence):
    """Tasks that move a progress bar on as they are drawn."""

    def __init__(self, tasks: PhantomSource, bar: tqdm.tqdm):
        self._tasks, self._bar = tasks, bar

    def __len__(self) -> int:
        return len(self._tasks)

    def __getitem__(self, index: int):
        task = self._tasks[index]
        self._bar.update()
        return task


def main() -> None:
    name, split = DATASET.value, SPLIT.value
    source = PhantomSource(phantom_split(split), SIZE.value)
    with tqdm.tqdm(total=len(source), desc=f"{name} {split}", unit="task", disable=not sys.stderr.isatty()) as bar:
        exporters.export(name, Watched(source, bar), OUT.value, split, LAYOUT.value)
    print(f"{OUT.value}: {name}, layout {LAYOUT.value or exporters.layouts(name)[0]}; read back with")
    print(f"mvg_jax.data.readers.read({name!r}, {OUT.value!r}, {split!r})")
    print(readers.read(name, OUT.value, split).report)


if __name__ == "__main__":
    program.run(main, required=("dataset", "out"))
