"""Keeps the compiled form of sources that Python would compile anew each time, found again by what is in them.

On test hosts that is what Ansible sends: with its own strategy every module as a zip file of some forty sources, with
Mitogen's each of them over its connection. On the control node see molecule/shared/strategy. Other sources have their
compiled form beside them.
"""
# Every start of Python on the hosts reads this file: it imports only what is loaded already.
# ruff: noqa: PTH103, PTH105, PTH123

import _frozen_importlib_external
import _imp
import builtins
import marshal
import os
import sys
import zipimport

KEY = int.from_bytes(_frozen_importlib_external.MAGIC_NUMBER, "little")
# Shorter ones (bytes) are compiled in less time than a file takes to be found.
SHORTEST = 500

compile_anew = builtins.compile
compile_member = zipimport._compile_source  # type: ignore[attr-defined]


class Kept:
    """Compiled sources in a directory. Without write access they are compiled each time, as ever."""

    def __init__(self, directory: str) -> None:
        self.directory = f"{directory}/{sys.implementation.cache_tag}"

    def code(self, key: bytes, compile_it) -> object:  # type: ignore[no-untyped-def]
        """Return what was compiled earlier of the same key, or what `compile_it` compiles now."""
        kept = f"{self.directory}/{_imp.source_hash(KEY, key).hex()}"
        try:
            with open(kept, "rb") as file:
                return marshal.loads(file.read())  # noqa: S302  (only who runs it writes there)
        except (OSError, ValueError, EOFError, TypeError):
            code = compile_it()
        new = f"{kept}.{os.getpid()}"
        try:
            os.makedirs(self.directory, exist_ok=True)
            with open(new, "wb") as file_to_keep:
                marshal.dump(code, file_to_keep)
            os.replace(new, kept)
        except OSError:
            pass
        return code

    def member(self, path: str, source: bytes) -> object:
        """Stand for the function that compiles what is imported from a zip file."""
        return self.code(source, lambda: compile_member(path, source))

    def compile(
        self,
        source: object,
        filename: str,
        mode: str,
        flags: int = 0,
        dont_inherit: bool = False,
        optimize: int = -1,
        **more: object,
    ) -> object:
        """Stand for the builtin: whole sources are kept, all else is compiled as ever."""
        text = source.encode("utf-8", "surrogatepass") if isinstance(source, str) else source
        plain = mode == "exec" and dont_inherit and not flags and optimize == -1 and not more
        if not plain or not isinstance(text, bytes) or len(text) < SHORTEST:
            return compile_anew(source, filename, mode, flags, dont_inherit, optimize, **more)  # type: ignore[call-overload]
        return self.code(b"%s\0%s" % (os.fsencode(filename), text), lambda: compile_anew(text, filename, mode, 0, True))


def keep_in(directory: str) -> None:
    """Keep what this process compiles from now on."""
    kept = Kept(directory)
    zipimport._compile_source = kept.member  # type: ignore[attr-defined]
    builtins.compile = kept.compile  # type: ignore[assignment]
