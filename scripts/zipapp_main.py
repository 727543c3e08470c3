"""The main program of dist/ycluster: runs site-packages/ycluster.py from the archive that it is in.

build_zipapp.sh puts it there as __main__.py. Nothing is unpacked: the archive needs no home, no
disk space and no write access.

Compiling the module takes longer than all else, so the compiled code is kept in ~/.cache/ycluster,
in a file whose name depends on the source and on the Python. A file is only used if it and its
folder belong to this user, if nobody else can write to them, and if its checksum is right.

Types stand in comments because an old Python, even 2.7, must be able to parse all of this file:
only then can it say which Python is needed.
"""

import sys

if sys.version_info < (3, 9):
    sys.exit("ycluster: needs Python 3.9 or later; this is %d.%d" % sys.version_info[:2])

import contextlib
import gc
import marshal
import os
import stat
import time
import types
from importlib.util import source_hash  # Importing hashlib would take longer than all else here.

MODULE = os.path.join(os.path.dirname(__file__), "site-packages", "ycluster.py")
KEPT_FOR = 30 * 86400  # seconds


def is_ours(status):
    # type: (os.stat_result) -> bool
    """Whether a file belongs to this user and nobody else can write to it."""
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022


def load(path):
    # type: (str) -> types.CodeType
    """Read code that `keep` has written. Raises OSError unless it is there, ours and complete."""
    if not is_ours(os.lstat(os.path.dirname(path))):
        raise OSError(path)
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    with open(fd, "rb", buffering=0) as file:  # A buffer would copy it all, which takes as long.
        if not is_ours(os.fstat(fd)):
            raise OSError(path)
        whole = memoryview(file.read())
    checksum, data = whole[:8], whole[8:]
    if source_hash(data) != checksum:
        raise OSError(path)
    code = marshal.loads(data)  # type: types.CodeType
    return code


def keep(path, code):
    # type: (str, types.CodeType) -> None
    """Write code to a file for the next run. Raises OSError if it can't be written."""
    folder = os.path.dirname(path)
    parent = os.path.dirname(folder)
    above = parent if os.path.exists(parent) else os.path.dirname(parent)
    if is_ours(os.stat(above)):  # Under sudo, HOME may be another user's: leave that alone.
        os.makedirs(folder, mode=0o700, exist_ok=True)
    if not is_ours(os.lstat(folder)):
        return
    data = marshal.dumps(code)
    beside = "%s.%d" % (path, os.getpid())
    try:
        with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(source_hash(data) + data)
        os.replace(beside, path)
    except OSError:
        os.unlink(beside)
        raise
    remove_old(folder)


def remove_old(folder):
    # type: (str) -> None
    """Remove what was kept long ago: each version of ycluster, and each Python, leaves 300 kB."""
    import re

    written_before = time.time() - KEPT_FOR
    for name in os.listdir(folder):
        # The second part is the pid of a run that was killed while it wrote.
        if not re.match(r"[0-9a-f]{16}(\.[0-9]+)?\Z", name):
            continue
        path = os.path.join(folder, name)
        try:
            status = os.lstat(path)
            old = status.st_mtime < written_before
            if old and stat.S_ISREG(status.st_mode) and is_ours(status):
                os.unlink(path)
        except OSError:
            continue  # Another run has removed it.


def compiled(source):
    # type: (bytes) -> types.CodeType
    """The code of the module: as an earlier run has kept it, else compiled now and kept."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    # Of each by itself: to add one to the other would copy the source, which takes as long.
    name = source_hash(source_hash(source) + sys.version.encode()).hex()
    path = os.path.join(cache, "ycluster", name)
    has_cache = os.path.isabs(cache)  # Without a HOME that can be used, the path is relative.
    if has_cache:
        try:
            return load(path)
        except OSError:
            pass  # There is none yet, or it must not be used.
    code = compile(source, MODULE, "exec", dont_inherit=True)
    if has_cache:
        with contextlib.suppress(OSError):  # If it can't be kept, the next run compiles it again.
            keep(path, code)
    return code


def quoted(path):
    # type: (bytes) -> str
    """What `Path.as_uri` calls; see `import_pathlib`."""
    from urllib.parse import quote_from_bytes

    return quote_from_bytes(path)


def import_pathlib():
    # type: () -> None
    """Import pathlib without urllib.parse, which takes longer than pathlib itself.

    Before Python 3.13 pathlib imports it at once, and needs one function of it in `Path.as_uri`
    alone. So it gets a module that has this function, for as long as its import takes.
    """
    name = "urllib.parse"
    if name not in sys.modules:
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__dict__["quote_from_bytes"] = quoted
        __import__("pathlib")
        del sys.modules[name]


def main():
    # type: () -> None
    """Import the module by hand and run it."""
    loader = globals()["__loader__"]  # of zipimport
    module = types.ModuleType("ycluster")
    module.__dict__.update(__file__=MODULE, __loader__=loader)
    sys.modules["ycluster"] = module
    import_pathlib()
    gc.disable()  # Loading makes many objects and no garbage; looking for some takes 1 ms.
    exec(compiled(loader.get_data(MODULE)), module.__dict__)
    gc.freeze()
    gc.enable()
    module.run()


main()
