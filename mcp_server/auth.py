"""Static bearer tokens for HTTP: each belongs to one user, and is kept only as its hash."""

import hashlib
import hmac
import re
import secrets

from mcp.server.auth.provider import AccessToken

from mcp_server.settings import Settings, SettingsError

_ENTRY = re.compile(r"(?P<user>[^\x00-\x1f\x7f,]{1,256}):(?P<hash>[0-9a-f]{64})", re.IGNORECASE)


def hash_token(token: str) -> str:
    """SHA-256 of a token, in hexadecimal. Tokens are 256 random bits, so a slow hash would add nothing."""
    return hashlib.sha256(token.encode()).hexdigest()


def new_token(user: str) -> tuple[str, str]:
    """A new random token for `user`, and the entry for AUTH_TOKENS or the tokens file."""
    token = secrets.token_urlsafe(32)
    return token, f"{user}:{hash_token(token)}"


def load_tokens(settings: Settings) -> list[tuple[str, str]]:
    """The (user, hash) pairs of AUTH_TOKENS and of AUTH_TOKENS_FILE.

    Raises:
        SettingsError: naming the setting, and the line, that can't be read.
    """
    entries = [("AUTH_TOKENS", number, entry) for number, entry in enumerate(settings.auth_tokens, 1)]
    if settings.auth_tokens_file is not None:
        try:
            lines = settings.auth_tokens_file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"AUTH_TOKENS_FILE can't be read ({type(error).__name__}).") from None
        entries += [
            ("AUTH_TOKENS_FILE", number, line.strip())
            for number, line in enumerate(lines, 1)
            if line.strip() and not line.lstrip().startswith("#")
        ]
    tokens: list[tuple[str, str]] = []
    for setting, number, entry in entries:
        match = _ENTRY.fullmatch(entry)
        if match is None:
            raise SettingsError(
                f"{setting}: entry {number} isn't user:sha256. `durable-context token USER` makes one that is."
            )
        tokens.append((match["user"], match["hash"].lower()))
    if not tokens and (settings.auth_tokens_file is not None or "auth_tokens" in settings.model_fields_set):
        # Whoever sets one of them means to keep others out.
        raise SettingsError(
            "AUTH_TOKENS or AUTH_TOKENS_FILE is set and holds no entry. Add one, as `durable-context token USER` "
            "makes, or unset both."
        )
    return tokens


class StaticTokenVerifier:
    """Tells which user a bearer token belongs to.

    Args:
        tokens: (user, hash) pairs.
    """

    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self._tokens = tokens

    async def verify_token(self, token: str) -> AccessToken | None:
        """The token's user as its subject, or None. Every entry is compared, each in constant time."""
        presented = hash_token(token)
        found: str | None = None
        for user, kept in self._tokens:
            if hmac.compare_digest(presented, kept):
                found = user
        if found is None:
            return None
        return AccessToken(token=token, client_id=found, subject=found, scopes=[])
