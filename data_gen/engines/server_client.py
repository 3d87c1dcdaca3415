"""The connection to an OpenAI-compatible server: address, key, what it says of itself."""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from data_gen.engines.config import EngineConfig, ServerConfig
from data_gen.engines.failures import Failure, error_message, exception_failure, status_failure
from ipt_jax.core.errors import UserError
from ipt_jax.core.json_lines import parse_json

_MOST_BYTES = 64 << 20  # of one answer
_PROBE_SECONDS = 10.0


@dataclass(frozen=True)
class ServerDescription:
    """What a server says of itself; none of it can be checked from here."""

    model: str
    """Id in its list of models."""
    owner: str
    """`owned_by` of that model; empty where not given."""
    root: str
    """Last part of the name or path that the model was loaded from; empty where not given."""
    version: str
    """The server's version; empty where not given."""
    context_tokens: int | None
    """Most tokens of prompt and completion, where it says so."""

    @property
    def revision(self) -> str:
        """For provenance: the server's own words, marked as such."""
        said = {"model": self.model, "owned_by": self.owner, "root": self.root}
        words = ", ".join(f"{key} {value}" for key, value in said.items() if value)
        return f"reported by the server, not verified: {words}"


def api_address(url: str) -> str:
    """`url` without a slash at its end and, where it has no path, with /v1.

    Raises UserError for what is no http(s) address and for one with a user or password in it.
    """
    parts = urlsplit(url.strip())
    if parts.username or parts.password:
        raise UserError(
            "`engine.server.url` holds a user name or password: leave them out, and give a key by "
            "`engine.server.api_key_env`, the name of an environment variable.",
            key="engine.server.url",
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
        raise UserError(
            f"`engine.server.url` is {url!r}: it must be an address like http://HOST:8000/v1.",
            key="engine.server.url",
        )
    path = parts.path.rstrip("/") or "/v1"
    return f"{parts.scheme}://{parts.netloc}{path}"


def read_key(config: ServerConfig) -> str:
    """The API key out of the environment; empty where the config names no variable."""
    if not config.api_key_env:
        return ""
    key = os.environ.get(config.api_key_env, "").strip()
    if not key:
        raise UserError(
            f"the environment variable {config.api_key_env} (`engine.server.api_key_env`) is not "
            "set or empty: set it to the server's API key. The config holds the variable's name, "
            "never the key.",
            key="engine.server.api_key_env",
        )
    return key


def allow_connections(connections: int) -> None:
    """Raise this process's limit of open files where `connections` would pass it."""
    needed = connections + 256
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise UserError(
            f"`engine.server.max_concurrency` is {connections}, and this process may open {hard} "
            f"files: lower it, or allow {needed} (`ulimit -n`).",
            key="engine.server.max_concurrency",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


class ServerClient:
    """One aiohttp session. Made, used and closed on one event loop."""

    def __init__(self, config: EngineConfig) -> None:
        self.settings = config.server
        self.wanted_model = config.model
        self.address = api_address(self.settings.url)
        self._key = read_key(self.settings)
        self._session: Any = None
        self._limits: Any = None
        self._probe_limits: Any = None

    async def open(self) -> None:
        """Make the session. Nothing is sent yet."""
        import aiohttp

        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        how = self.settings
        self._limits = aiohttp.ClientTimeout(
            total=how.total_seconds, sock_connect=how.connect_seconds, sock_read=how.read_seconds
        )
        self._probe_limits = aiohttp.ClientTimeout(total=min(how.total_seconds, _PROBE_SECONDS))
        self._session = aiohttp.ClientSession(
            headers=headers,
            # uvicorn closes idle connections after 5 s; reuse none that it may just be closing.
            connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=300, keepalive_timeout=3),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=how.use_proxy,
        )

    async def close(self) -> None:
        """Close the session."""
        if self._session is not None:
            await self._session.close()

    def clean(self, text: str) -> str:
        """`text` without the key, which some servers quote."""
        return text.replace(self._key, "***") if self._key else text

    async def send(self, path: str, body: bytes) -> tuple[bytes, str] | Failure:
        """POST below the API's address: the body and its type of an answer with status 200."""
        return await self._ask("POST", f"{self.address}/{path}", body, self._limits)

    async def get(self, path: str, *, root: bool = False) -> tuple[bytes, str] | Failure:
        """GET below the API's address, or with `root` below the address without /v1."""
        base = self.address.removesuffix("/v1") if root else self.address
        return await self._ask("GET", f"{base}/{path}", None, self._probe_limits)

    async def _ask(
        self, method: str, url: str, body: bytes | None, limits: Any
    ) -> tuple[bytes, str] | Failure:
        try:
            async with self._session.request(
                method, url, data=body, timeout=limits, allow_redirects=False
            ) as response:
                pieces, size = [], 0
                async for piece in response.content.iter_any():
                    pieces.append(piece)
                    size += len(piece)
                    if size > _MOST_BYTES:
                        return Failure("malformed", f"an answer of more than {_MOST_BYTES} bytes")
                content = b"".join(pieces)
                status, headers = response.status, response.headers
        except Exception as error:
            failure = exception_failure(error)
            if failure is None:
                raise
            return failure
        if status != 200:
            return status_failure(status, headers, content, time.time())
        return content, headers.get("Content-Type", "")

    async def models(self) -> list[dict[str, Any]] | Failure:
        """The server's list of models."""
        return _taken(
            await self.get("models"),
            "list of models",
            lambda found: [dict(one) for one in found["data"] if isinstance(one["id"], str)],
        )

    async def count(self, fields: Mapping[str, Any]) -> int | Failure:
        """Tokens of a prompt, by vLLM's /tokenize."""
        base = self.address.removesuffix("/v1")
        body = json.dumps(fields).encode()
        answer = await self._ask("POST", f"{base}/tokenize", body, self._probe_limits)
        return _taken(answer, "count", lambda found: int(found["count"]))

    async def describe(self) -> ServerDescription:
        """Ask who the server is.

        Raises UserError where it refuses the key or does not list the model. A failure otherwise
        is raised as `ServerSilent`, so that the caller may wait for a server that is starting.
        """
        models = await self.models()
        if isinstance(models, Failure):
            if models.reason in ("http_401", "http_403"):
                raise self.refusal(models)
            if models.reason not in ("http_404", "http_405"):
                raise ServerSilent(models)
            models = []  # a server without a list
        found = self._listed(models)
        version = _taken(
            await self.get("version", root=True), "version", lambda found: found["version"][:60]
        )
        context = found.get("max_model_len")
        return ServerDescription(
            found["id"],
            str(found.get("owned_by") or ""),
            str(found.get("root") or "").rstrip("/").rsplit("/", 1)[-1],
            version if isinstance(version, str) else "",
            context if isinstance(context, int) and context > 0 else None,
        )

    def _listed(self, models: list[dict[str, Any]]) -> dict[str, Any]:
        names = [model["id"] for model in models]
        if self.wanted_model == "auto":
            if len(models) == 1:
                return models[0]
            raise UserError(
                f"`engine.model` is `auto`, and the server at {self.address} lists "
                f"{', '.join(names[:20]) or 'no models'}: name one.",
                key="engine.model",
                path=self.address,
            )
        for model in models:
            if model["id"] == self.wanted_model:
                return model
        if models:
            raise UserError(
                f"the server at {self.address} has no model '{self.wanted_model}' "
                f"(`engine.model`); it lists {', '.join(names[:20])}.",
                key="engine.model",
                path=self.address,
            )
        return {"id": self.wanted_model}

    def refusal(self, failure: Failure) -> UserError:
        """The error for a key that the server does not take."""
        key = self.settings.api_key_env
        mend = f"check the key in the variable {key}" if key else "set `engine.server.api_key_env`"
        return UserError(
            f"the server at {self.address} refuses access ({failure.reason}: "
            f"{self.clean(failure.detail)}): {mend}, then run the same command again.",
            key="engine.server.api_key_env",
            path=self.address,
        )


class ServerSilent(Exception):
    """The server gave no usable answer to the question who it is."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.reason}: {failure.detail}")
        self.failure = failure


def _taken[T](
    answer: tuple[bytes, str] | Failure, what: str, take: Callable[[Any], T]
) -> T | Failure:
    """What `take` takes of an answer's JSON; a failure where it is of another form."""
    if isinstance(answer, Failure):
        return answer
    try:
        return take(parse_json(answer[0]))
    except (ValueError, KeyError, TypeError):
        said = error_message(answer[0])[:120]
        return Failure("malformed", f"a {what} of another form: {said}")
