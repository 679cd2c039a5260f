"""The files of a data set as it was published: a folder or a zip, with the zips in the folder opened in place."""

import functools
import lzma
import os
import pathlib
import threading
import zipfile
import zlib
from collections.abc import Iterator

from mvg_jax.errors import RunError

MAX_MEMBER = 4 * 2**30  # bytes of a zip's member, unpacked

_HIDDEN = ("__MACOSX", ".")
# What zipfile raises for a broken, encrypted or hostile archive.
_BROKEN = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)


class Files:
    """Files by name, "/" between folders; a member of a zip is named "path/of.zip/path/of/member".

    Data sets lie around under many roots (images/, images/images/, one more folder, still zipped), so files are found by the end of
    their path. Equal when of one root. Pickles small and opens its zips again elsewhere. RunError when the root is not there or
    is no readable zip.
    """

    def __init__(self, root: str | pathlib.Path):
        self.root = pathlib.Path(root).absolute()
        if not self.root.exists():
            raise RunError(f"no such file or folder: {root}")
        self._lock = threading.Lock()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Files) and other.root == self.root

    def __hash__(self) -> int:
        return hash(self.root)

    def __getstate__(self) -> dict:
        return {"root": self.root}

    def __setstate__(self, state: dict) -> None:
        self.root, self._lock = state["root"], threading.Lock()

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """All names, sorted."""
        return tuple(sorted(self._where))

    def find(self, *ends: str) -> str | None:
        """The file whose path ends with the first of `ends` that any does, whatever the case; of several the shortest path."""
        for end in ends:
            parts = end.lower().strip("/").split("/")
            near = self._by_end.get("/".join(parts[-2:]), ())
            fits = [name for name in near if name.lower().split("/")[-len(parts) :] == parts]
            if fits:
                return min(fits, key=lambda name: (name.count("/"), name))
        return None

    def need(self, *ends: str) -> str:
        """Like `find`; RunError naming what was looked for when nothing fits."""
        name = self.find(*ends)
        if name is None:
            raise RunError(f"{self.root} holds no {' or '.join(ends)}")
        return name

    def read(self, name: str) -> bytes:
        """The content of a file. RunError when it is not there or cannot be read."""
        if name not in self._where:
            raise RunError(f"{self.root} holds no {name}")
        archive, member = self._where[name]
        try:
            if archive is None:
                return (self.root / member).read_bytes()
            with self._lock:  # members share the archive's file position
                size = self._zip(archive).getinfo(member).file_size
                if size > MAX_MEMBER:
                    raise RunError(f"{name} of {self.root} has {size} bytes unpacked, more than {MAX_MEMBER}")
                return self._zip(archive).read(member)
        except _BROKEN as error:
            raise RunError(f"cannot read {name} of {self.root}: {error}") from error

    def path(self, name: str) -> pathlib.Path | None:
        """Where the file lies on disk; None for a member of a zip."""
        archive, member = self._where[name]
        return self.root / member if archive is None else None

    @functools.cached_property
    def _where(self) -> dict[str, tuple[pathlib.Path | None, str]]:
        """Name -> (zip or None, path in it or below the root)."""
        if self.root.is_file():
            return {member: (self.root, member) for member in self._members(self.root)}
        where = {}
        for path in _walk(self.root):
            name = path.relative_to(self.root).as_posix()
            where[name] = (None, name)
            if path.suffix.lower() == ".zip":
                where |= {f"{name}/{member}": (path, member) for member in self._members(path)}
        return where

    @functools.cached_property
    def _by_end(self) -> dict[str, list[str]]:
        """Names by their last part, and by their last two, in lower case."""
        by_end: dict[str, list[str]] = {}
        for name in self._where:
            parts = name.lower().split("/")
            for end in {parts[-1], "/".join(parts[-2:])}:
                by_end.setdefault(end, []).append(name)
        return by_end

    def _members(self, archive: pathlib.Path) -> list[str]:
        try:
            infos = self._zip(archive).infolist()
        except _BROKEN as error:
            raise RunError(f"cannot read {archive}: {error}") from error
        names = [info.filename for info in infos if not info.is_dir()]
        return [name for name in names if not any(part.startswith(_HIDDEN) for part in name.split("/"))]

    @functools.cached_property
    def _zips(self) -> dict[pathlib.Path, zipfile.ZipFile]:
        return {}

    def _zip(self, archive: pathlib.Path) -> zipfile.ZipFile:
        if archive not in self._zips:
            self._zips[archive] = zipfile.ZipFile(archive)
        return self._zips[archive]


def _walk(root: pathlib.Path) -> Iterator[pathlib.Path]:
    """The plain files below a folder that are not hidden. Linked folders come last, and only where nothing else led to them."""

    def refuse(error: OSError) -> None:
        raise RunError(f"cannot read {error.filename}: {error.strerror}") from error

    seen, tops = set(), [str(root)]
    for top in tops:
        for folder, folders, names in os.walk(top, onerror=refuse):
            if (real := os.path.realpath(folder)) in seen:
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith(_HIDDEN))
            tops += filter(os.path.islink, (os.path.join(folder, name) for name in folders))
            paths = (pathlib.Path(folder, name) for name in names if not name.startswith(_HIDDEN))
            yield from (path for path in paths if path.is_file())
