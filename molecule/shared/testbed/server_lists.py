"""Keep of apt's package lists what a server is made of: less than a third. Runs on a test host.

Every call of apt reads all of them: a second of processor for each apt-get, and a full run of the tests has hundreds.
What is left is whole: apt chooses the same packages for whatever it can install. `apt-get update` leaves the lists
alone until the archive has newer ones.
"""

from __future__ import annotations

import re
from pathlib import Path

SECTIONS = {"admin", "database", "httpd", "net", "shells", "utils", "web"}
PRIORITIES = {"required", "important", "standard"}
# What roles and tests install of other sections, and no package of these asks for.
OTHERS = {"libfaketime", "libgomp1", "python3-venv", "restic"}
FOLLOWED = ("Pre-Depends", "Depends", "Recommends")
LISTS = Path("/var/lib/apt/lists")


def names(relation: str) -> list[str]:
    """Return the packages that a field names, alternatives too: `a (>= 1), b | c`."""
    return re.findall(r"(?:^|[,|])\s*([a-z0-9][a-z0-9+.-]+)", relation)


def kept(packages: list[dict[str, str]]) -> set[str]:
    """Return the names of the packages to keep, from the fields of all."""
    by_name: dict[str, list[dict[str, str]]] = {}
    for fields in packages:
        for name in (fields["Package"], *names(fields.get("Provides", ""))):
            by_name.setdefault(name, []).append(fields)
    waiting = [
        fields["Package"]
        for fields in packages
        if fields.get("Section") in SECTIONS or fields.get("Priority") in PRIORITIES or fields["Package"] in OTHERS
    ]
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            for fields in by_name.get(name, ()):
                waiting += [fields["Package"], *(each for field in FOLLOWED for each in names(fields.get(field, "")))]
    return found


def main() -> None:
    """Rewrite the lists."""
    texts = {file: file.read_text().split("\n\n") for file in LISTS.glob("*_Packages")}
    known = {
        file: [
            (text.strip("\n"), dict(re.findall(r"^([A-Za-z-]+): (.*)$", text, re.M)))
            for text in stanzas
            if text.strip()
        ]
        for file, stanzas in texts.items()
    }
    wanted = kept([fields for stanzas in known.values() for _, fields in stanzas])
    for file, stanzas in known.items():
        file.write_text("\n\n".join(text for text, fields in stanzas if fields["Package"] in wanted) + "\n")


if __name__ == "__main__":
    main()
