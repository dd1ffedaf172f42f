"""A real browser on the control node: Debian's Chromium, which trusts the test bed's certificate authority."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, BrowserContext, sync_playwright

# No calls home: nothing but the site is asked.
QUIET = (
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--no-first-run",
)


def _trust(home: Path, authority: Path) -> None:
    """Make a certificate store that has the authority, where Chromium looks for it."""
    store = home / ".pki/nssdb"
    store.mkdir(parents=True)
    for arguments in (["-N", "--empty-password"], ["-A", "-t", "C,,", "-n", "testbed", "-i", str(authority)]):
        subprocess.run(["certutil", "-d", f"sql:{store}", *arguments], check=True, capture_output=True)


@contextmanager
def chromium(home: Path, authority: Path, domain: str, address: str) -> Iterator[Browser]:
    """Start Chromium, for which `domain` is at `address` and nothing else is anywhere, with an empty `home` of its own.

    Raises:
        FileNotFoundError: when there is no chromium or certutil: `tools/bootstrap --with-browser` installs both.
        playwright.sync_api.Error: when it does not start.
    """
    if shutil.which("chromium") is None:
        raise FileNotFoundError("there is no chromium: tools/bootstrap --with-browser installs it")
    root = os.geteuid() == 0
    _trust(home, authority)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(Path(__file__).with_name("browser_alone.py")),
            # Chromium refuses its own sandbox to root.
            chromium_sandbox=not root,
            args=[f"--host-resolver-rules=MAP {domain} {'127.0.0.1' if root else address}", *QUIET],
            env={**os.environ, "HOME": str(home), "BROWSER_TARGET": f"{address}:443"},
        )
        try:
            yield browser
        finally:
            browser.close()


def person(browser: Browser, domain: str, **look: object) -> BrowserContext:
    """Return a browser of somebody else, with cookies of its own; `look` are Playwright's options for a context."""
    context = browser.new_context(base_url=f"https://{domain}", **look)  # type: ignore[arg-type]
    context.set_default_timeout(30_000)
    return context
