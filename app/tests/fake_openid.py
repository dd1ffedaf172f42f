"""A fake: a small OpenID Connect provider, whose people are who a test says they are. It signs with a real key."""

import base64
import hashlib
import json
import secrets
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import RSAKey

CLIENT_ID = "chatbot"
CLIENT_SECRET = "secret of the client"


@dataclass
class FakeOpenID:
    """Sends everybody back at once, as `claims` say at that moment; what is None there is left out."""

    claims: dict[str, Any] = field(
        default_factory=lambda: {"sub": "1", "email": "ada@example.org", "email_verified": True, "name": "Ada"}
    )
    # Put into the ID token whatever is right.
    forged: dict[str, Any] = field(default_factory=dict)
    # Claims that only the userinfo endpoint tells.
    userinfo: dict[str, Any] = field(default_factory=dict)
    # Sign with another key than the published one.
    wrong_key: bool = False
    requests: list[str] = field(default_factory=list)

    def __enter__(self) -> Self:
        fake = self
        self._key = RSAKey.generate_key(2048, {"kid": "1", "use": "sig"})
        self._codes: dict[str, dict[str, str]] = {}

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                fake._get(self)

            def do_POST(self) -> None:
                fake._post(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        """The issuer."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def authorize(self, location: str) -> str:
        """What a browser does that was sent here: where it is sent back to."""
        query = {name: values[0] for name, values in parse_qs(urlsplit(location).query).items()}
        assert query["response_type"] == "code"
        assert query["client_id"] == CLIENT_ID
        assert query["code_challenge_method"] == "S256"
        assert "openid" in query["scope"]
        code = secrets.token_urlsafe()
        self._codes[code] = query
        return query["redirect_uri"] + "?" + urlencode({"code": code, "state": query["state"]})

    def _get(self, handler: BaseHTTPRequestHandler) -> None:
        self.requests.append(handler.path)
        pages: dict[str, Any] = {
            "/.well-known/openid-configuration": {
                "issuer": self.url,
                "authorization_endpoint": f"{self.url}/authorize",
                "token_endpoint": f"{self.url}/token",
                "jwks_uri": f"{self.url}/jwks",
                "userinfo_endpoint": f"{self.url}/userinfo",
                "id_token_signing_alg_values_supported": ["RS256"],
            },
            "/jwks": {"keys": [self._key.as_dict(private=False)]},
            "/userinfo": self.userinfo,
        }
        _answer(handler, pages.get(handler.path))

    def _post(self, handler: BaseHTTPRequestHandler) -> None:
        self.requests.append(handler.path)
        body = parse_qs(handler.rfile.read(int(handler.headers["Content-Length"])).decode())
        query = self._codes.pop(body["code"][0], None)
        basic = base64.b64encode(f"{CLIENT_ID}:{CLIENT_SECRET}".encode()).decode()
        challenge = base64.urlsafe_b64encode(hashlib.sha256(body["code_verifier"][0].encode()).digest())
        if (
            query is None
            or handler.headers["Authorization"] != f"Basic {basic}"
            or query["code_challenge"] != challenge.decode().rstrip("=")
            or query["redirect_uri"] != body["redirect_uri"][0]
        ):
            _answer(handler, {"error": "invalid_grant"}, 400)
            return
        key = RSAKey.generate_key(2048) if self.wrong_key else self._key
        clock = int(time.time())
        claims = {"iss": self.url, "aud": CLIENT_ID, "iat": clock, "exp": clock + 60, "nonce": query["nonce"]}
        told = {name: value for name, value in (claims | self.claims | self.forged).items() if value is not None}
        token = jwt.encode({"alg": "RS256", "kid": "1"}, told, key)
        _answer(handler, {"access_token": "x", "token_type": "Bearer", "expires_in": 600, "id_token": token})


def _answer(handler: BaseHTTPRequestHandler, page: Any, status: int = 200) -> None:
    body = json.dumps(page).encode()
    handler.send_response(404 if page is None else status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)
