"""Sends one webhook message: to an address that was checked, within a time limit, without following redirects.

The connection goes to one of the checked addresses, whatever the name resolves to by then; TLS asks for and verifies the
name of the URL. No proxy of the environment is used: it would resolve the name anew.
"""

from __future__ import annotations

import email.utils
import socket
import ssl
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final

import httpcore2 as httpcore

from service.webhooks import target as targets
from service.webhooks.settings import WebhookSettings
from service.webhooks.target import Address, Refused, Resolver, Target, Unresolved

MAX_ANSWER: Final = 64 * 1024
"""Bytes of an answer's body that are read at most."""
_MAX_ADDRESSES: Final = 4


@dataclass(frozen=True)
class Answer:
    """What came of a POST: a status, or an error's sentence. `seconds`: how long it took."""

    status: int | None
    error: str | None
    body: bytes
    seconds: float
    retry_after: float | None = None
    """Seconds that the receiver asked to wait."""

    @property
    def is_good(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


def post(
    url: str, headers: Mapping[str, str], body: bytes, settings: WebhookSettings, resolve: Resolver | None = None
) -> Answer:
    """POSTs `body`. Where that fails the answer has a sentence in `error`."""
    deadline = _Deadline(settings.seconds)
    try:
        target = targets.parse(url, allow_http=settings.allow_http)
        asked = resolve or targets.resolver(min(settings.connect_seconds, settings.seconds))
        addresses = targets.addresses(target, settings.networks, asked)
        answer = _exchange(target, addresses, headers, body, deadline, settings.connect_seconds)
    except (Refused, Unresolved) as error:
        answer = _failure(f"{error}.")
    except TimeoutError as error:
        answer = _failure(f"{error}." if str(error).startswith("no ") else f"no answer within {settings.seconds:g} s.")
    except ssl.SSLError as error:
        answer = _failure(
            f"TLS with {target.host} failed: {getattr(error, 'verify_message', None) or error.reason or error}."
        )
    except (OSError, httpcore.ProtocolError) as error:
        answer = _failure(f"{target.authority} couldn't be reached: {error or type(error).__name__}.")
    return replace(answer, seconds=deadline.spent)


def _failure(sentence: str) -> Answer:
    return Answer(None, sentence[:1].upper() + sentence[1:], b"", 0.0)


def _exchange(
    target: Target,
    addresses: Sequence[Address],
    headers: Mapping[str, str],
    body: bytes,
    deadline: _Deadline,
    connect_seconds: float,
) -> Answer:
    url = httpcore.URL(scheme=target.scheme, host=target.host, port=target.port, target=target.target)
    sent = {"Host": target.authority, "Content-Length": str(len(body)), "Connection": "close", **headers}
    context = _trusting() if target.scheme == "https" else None
    backend = _Pinned(addresses, deadline, connect_seconds)
    with (
        httpcore.HTTPConnection(url.origin, ssl_context=context, network_backend=backend) as connection,
        connection.stream("POST", url, headers=list(sent.items()), content=body) as response,
    ):
        head = {name.lower(): value for name, value in response.headers}
        received = bytearray()
        # Only the status counts, so an answer whose body breaks off is an answer.
        with suppress(OSError, httpcore.ProtocolError):
            for chunk in response.iter_stream():
                received += chunk
                if len(received) >= MAX_ANSWER:
                    break
    error = None
    if 300 <= response.status < 400:
        error = "The receiver redirects, which isn't followed: give the webhook the new URL."
    return Answer(response.status, error, bytes(received[:MAX_ANSWER]), 0.0, _retry_after(head.get(b"retry-after")))


def _retry_after(value: bytes | None) -> float | None:
    """Seconds from now, from a Retry-After header in either of its forms; None where it isn't understood."""
    if value is None:
        return None
    text = value.decode("latin-1").strip()
    if text.isascii() and text.isdecimal() and len(text) < 10:
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


@lru_cache(maxsize=1)
def _trusting() -> ssl.SSLContext:
    """Trusts what the system trusts (SSL_CERT_FILE and SSL_CERT_DIR name others)."""
    return ssl.create_default_context()


class _Deadline:
    """Counts down from `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._began, self._seconds = time.monotonic(), seconds

    @property
    def spent(self) -> float:
        return time.monotonic() - self._began

    @property
    def left(self) -> float:
        """The seconds that are left; raises TimeoutError when there are none."""
        left = self._seconds - self.spent
        if left <= 0:
            raise TimeoutError(f"no answer within {self._seconds:g} s")
        return left


class _Pinned(httpcore.NetworkBackend):
    """Connects to one of the given addresses, whatever the host's name is."""

    def __init__(self, addresses: Sequence[Address], deadline: _Deadline, connect_seconds: float) -> None:
        self._addresses, self._deadline, self._connect_seconds = addresses, deadline, connect_seconds

    def connect_tcp(self, host: str, port: int, *_: Any, **__: Any) -> httpcore.NetworkStream:
        connecting = _Deadline(min(self._connect_seconds, self._deadline.left))
        failure: OSError | None = None
        for address in self._addresses[:_MAX_ADDRESSES]:
            try:
                connected = socket.create_connection((str(address), port), timeout=connecting.left)
            except TimeoutError:
                raise TimeoutError(f"no connection within {self._connect_seconds:g} s") from None
            except OSError as error:
                failure = error
            else:
                connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return _Stream(connected, self._deadline)
        assert failure is not None
        raise failure


class _Stream(httpcore.NetworkStream):
    """A socket of which no call lasts longer than the whole attempt may."""

    def __init__(self, connected: socket.socket, deadline: _Deadline) -> None:
        self._socket, self._deadline = connected, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        self._socket.settimeout(self._deadline.left)
        return self._socket.recv(max_bytes)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        left = memoryview(buffer)
        while left:
            self._socket.settimeout(self._deadline.left)
            left = left[self._socket.send(left) :]

    def close(self) -> None:
        self._socket.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        self._socket.settimeout(self._deadline.left)
        try:
            return _Stream(ssl_context.wrap_socket(self._socket, server_hostname=server_hostname), self._deadline)
        except OSError:
            self._socket.close()
            raise

    def get_extra_info(self, info: str) -> Any:
        return None
