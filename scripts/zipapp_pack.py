#!/usr/bin/env python3
"""Gives an archive that shiv has made another __main__.py, and makes it reproducible.

zipapp_pack.py ARCHIVE MAIN SECONDS

The order of its members, their permissions and their times no longer depend on the umask and the
file systems of the host: they are sorted by name, 0644, and of the time SECONDS after the epoch.
"""

from __future__ import annotations

import sys
import time
import zipfile
from pathlib import Path


def pack(archive: Path, main: Path, seconds: int) -> None:
    """Rewrite an archive in place; its first line stays.

    Nothing in it is compressed: each start reads the module, and unpacking takes 2 ms of it.
    """
    with zipfile.ZipFile(archive) as made:
        members = {name: made.read(name) for name in made.namelist()}
    members["__main__.py"] = main.read_bytes()
    with open(archive, "rb") as file:
        shebang = file.readline()
    with open(archive, "wb") as file:
        file.write(shebang)
        with zipfile.ZipFile(file, "w") as packed:
            for name, data in sorted(members.items()):
                member = zipfile.ZipInfo(name, time.gmtime(seconds)[:6])
                member.create_system = 3  # Unix, of which the permissions are
                member.external_attr = 0o100644 << 16
                packed.writestr(member, data, zipfile.ZIP_STORED)


if __name__ == "__main__":
    pack(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
