"""Keys of restic repositories that are quick to open, for tests that call restic hundreds of times.

restic makes opening a repository cost half a second of processor, against guessing of passwords. That is the same work
at each of its calls, and proves nothing in the hundredth test. The repository itself stays as restic has made it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from typing import Any

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.poly1305 import Poly1305

SETTINGS = "/etc/chatbot-backup/settings.json"
OURS = "testbed"
# The smallest that restic takes, and that scrypt allows with blocks of this size.
COST = {"N": 2, "r": 8, "p": 1}


def make_quick(host: Any) -> None:
    """Give each repository in a directory of the host another key, for the same password, and take its old one away."""
    for place in json.loads(host.check_output("cat %s", SETTINGS))["repositories"]:
        directory = place["repository"]
        if not directory.startswith("/") or host.run(f'grep -qs \'"hostname": "{OURS}"\' {directory}/keys/*').succeeded:
            continue
        master = host.check_output("chatbot-backup restic --repository %s cat masterkey", place["name"])
        key = sealed(json.loads(master), place["password"])
        name = hashlib.sha256(key.encode()).hexdigest()
        host.check_output(
            "cd %s/keys && printf %%s %s > %s && chmod 0400 %s && find . -type f ! -name %s -delete",
            directory, key, name, name, name,
        )  # fmt: skip
        host.check_output("chatbot-backup restic --repository %s cat config", place["name"])


def sealed(master: dict[str, Any], password: str) -> str:
    """Return the file of a key, as restic documents it under "Keys, Encryption and MAC".

    Args:
        master: the repository's keys, as `restic cat masterkey` prints them.
        password: what shall open them.
    """
    salt, nonce = secrets.token_bytes(64), secrets.token_bytes(16)
    derived = hashlib.scrypt(password.encode(), salt=salt, n=COST["N"], r=COST["r"], p=COST["p"], dklen=64)
    encryption, mac_cipher, mac_point = derived[:32], derived[32:48], derived[48:]
    ciphertext = Cipher(algorithms.AES(encryption), modes.CTR(nonce)).encryptor().update(json.dumps(master).encode())
    # Poly1305-AES: the second half of Poly1305's key is the nonce, encrypted.
    pad = Cipher(algorithms.AES(mac_cipher), modes.ECB()).encryptor().update(nonce)  # noqa: S305 - one block
    tag = Poly1305.generate_tag(mac_point + pad, ciphertext)
    data = {
        "created": "2000-01-01T00:00:00Z",
        "username": "root",
        "hostname": OURS,
        "kdf": "scrypt",
        **COST,
        "salt": base64.b64encode(salt).decode(),
        "data": base64.b64encode(nonce + ciphertext + tag).decode(),
    }
    return json.dumps(data)
