"""Lives on test hosts: keeps the compiled form of what Python imports from zip files.

Ansible sends every module as a zip file of some forty sources, and Python compiles them anew for each task: a good part
of the task's processor time. With this their compiled form stays in /var/cache, as that of other sources does.
"""
# Every start of Python on the hosts reads this file: it imports only what is loaded already.
# ruff: noqa: PTH103, PTH105, PTH123

import _frozen_importlib_external
import _imp
import marshal
import os
import sys
import zipimport

DIRECTORY = f"/var/cache/testbed-zipcache/{sys.implementation.cache_tag}"
KEY = int.from_bytes(_frozen_importlib_external.MAGIC_NUMBER, "little")
compile_source = zipimport._compile_source  # type: ignore[attr-defined]


def cached(path: str, source: bytes) -> object:
    """Return the code of a source, compiled now or earlier. Without write access it is compiled each time, as ever."""
    kept = f"{DIRECTORY}/{_imp.source_hash(KEY, source).hex()}"
    try:
        with open(kept, "rb") as file:
            return marshal.load(file)  # noqa: S302  (only root writes there)
    except (OSError, ValueError, EOFError, TypeError):
        code = compile_source(path, source)
    new = f"{kept}.{os.getpid()}"
    try:
        os.makedirs(DIRECTORY, exist_ok=True)
        with open(new, "wb") as file_to_keep:
            marshal.dump(code, file_to_keep)
        os.replace(new, kept)
    except OSError:
        pass
    return code


zipimport._compile_source = cached  # type: ignore[attr-defined]
