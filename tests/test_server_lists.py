"""What test hosts keep of apt's lists: a server's packages, and all that these may ask for."""

from __future__ import annotations

import sys

from repository import ROOT

sys.path.insert(0, str(ROOT / "molecule/shared"))

from testbed import server_lists

PACKAGES = [
    {"Package": "nginx", "Section": "httpd", "Depends": "nginx-common (<< 1.26.3-3.1~), libc6 (>= 2.38)"},
    {"Package": "nginx-common", "Section": "libs"},
    {"Package": "libc6", "Section": "libs", "Recommends": "libidn2-0"},
    {"Package": "libidn2-0", "Section": "libs"},
    {"Package": "certbot", "Section": "web", "Depends": "python3:any, python3-certbot (= 4.0.0-2) | acme-client"},
    {"Package": "python3", "Section": "python"},
    {"Package": "python3-certbot", "Section": "python"},
    {"Package": "dehydrated", "Section": "misc", "Provides": "acme-client"},
    {"Package": "tasksel-data", "Section": "tasks", "Priority": "important"},
    {"Package": "python3-venv", "Section": "python"},
    {"Package": "gnome", "Section": "gnome", "Depends": "nginx, gnome-shell"},
    {"Package": "gnome-shell", "Section": "gnome"},
]


def test_a_servers_packages_are_kept_with_all_that_they_ask_for_and_nothing_else() -> None:
    known = {fields["Package"] for fields in PACKAGES}
    assert server_lists.kept(PACKAGES) & known == known - {"gnome", "gnome-shell"}
