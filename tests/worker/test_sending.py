"""One message sent to real receivers: what is reached, what is refused, how long it may take, how much is read."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest

from service.webhooks.settings import WebhookSettings
from tests.support.receiver import Receiver, Reply, certificate, receiving
from tests.support.waiting import CEILING_SECONDS
from worker.webhooks import sending
from worker.webhooks.sending import MAX_ANSWER, Answer, post

HERE = WebhookSettings(allow_http=True, networks=["127.0.0.0/30"], seconds=120, connect_seconds=60)  # type: ignore[arg-type]
IMPATIENT = HERE.model_copy(update={"seconds": 2.0})


def send(url: str, settings: WebhookSettings = HERE, resolve: sending.Resolver | None = None) -> Answer:
    return post(url, {"webhook-id": "m1"}, b'{"a": 1}', settings, resolve)


def test_a_message_arrives_as_it_is(receiver: Receiver) -> None:
    receiver.answer = lambda _: Reply(200, body=b"thanks")
    answer = send(receiver.url + "?q=1")
    assert (answer.status, answer.error, answer.body, answer.is_good) == (200, None, b"thanks", True)
    (got,) = receiver.got
    assert (got.path, got.body, got.headers["webhook-id"]) == ("/hook?q=1", b'{"a": 1}', "m1")
    assert got.headers["host"] == f"127.0.0.1:{receiver.port}"


def test_a_name_is_resolved_once_and_its_checked_address_connected_to(receiver: Receiver) -> None:
    """DNS rebinding: the first answer is allowed, every later one is another machine."""
    asked: list[str] = []

    def lying(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["127.0.0.2"]

    with receiving("127.0.0.2") as other:
        answer = send(f"http://rebind.example:{receiver.port}/", resolve=lying)
    assert (answer.status, asked, other.got) == (204, ["rebind.example"], [])
    assert receiver.got[0].headers["host"] == f"rebind.example:{receiver.port}"


def test_a_name_that_became_private_since_it_was_checked_is_not_reached(receiver: Receiver) -> None:
    public = WebhookSettings(allow_http=True)
    answer = send(f"http://rebind.example:{receiver.port}/", public, lambda *_: ["127.0.0.1"])
    assert answer.status is None
    assert "no public address" in (answer.error or "")
    assert receiver.got == []


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0",
     "0.0.0.0", "127.0.0.1.", "user@127.0.0.1", "169.254.169.254", "[fe80::1%25lo]", "①②⑦.⓪.⓪.①"],
)  # fmt: skip
def test_nothing_is_sent_to_this_machine_however_it_is_spelt(receiver: Receiver, host: str) -> None:
    answer = send(f"http://{host}:{receiver.port}/", WebhookSettings(allow_http=True))
    assert answer.status is None
    assert receiver.got == []


def test_http_is_refused_unless_the_operator_allows_it(receiver: Receiver) -> None:
    answer = send(receiver.url, WebhookSettings(networks=["127.0.0.0/8"]))  # type: ignore[arg-type]
    assert "http:// is not allowed" in (answer.error or "")
    assert receiver.got == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(receiver: Receiver, status: int) -> None:
    with receiving("127.0.0.2") as other:
        receiver.answer = lambda _: Reply(status, {"Location": f"http://127.0.0.2:{other.port}/secret"})
        answer = send(receiver.url)
    assert (answer.status, answer.is_good, other.got) == (status, False, [])
    assert "redirects" in (answer.error or "")


def test_no_proxy_of_the_environment_is_used(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    with receiving("127.0.0.2") as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.2:{proxy.port}")
        assert send(receiver.url).status == 204
    assert (len(receiver.got), proxy.got) == (1, [])


class TestTls:
    @pytest.fixture(autouse=True)
    def _fresh_trust(self) -> Iterator[None]:
        sending._trusting.cache_clear()  # the files that it trusts are named by the environment
        yield
        sending._trusting.cache_clear()

    def test_the_certificate_is_verified_against_the_name_and_not_the_address(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        context, trusted = certificate(tmp_path, "hooks.example")
        names: list[str | None] = []
        context.sni_callback = lambda _socket, name, _context: names.append(name)  # type: ignore[assignment]
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
        with receiving(context=context) as receiver:
            answer = send(f"https://hooks.example:{receiver.port}/x", resolve=lambda *_: ["127.0.0.1"])
            assert (answer.status, names) == (204, ["hooks.example"])
            other = send(f"https://other.example:{receiver.port}/x", resolve=lambda *_: ["127.0.0.1"])
            assert "TLS with other.example failed" in (other.error or "")
            assert len(receiver.got) == 1

    def test_an_address_in_the_certificate_will_do(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        context, trusted = certificate(tmp_path, "127.0.0.1")
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
        with receiving(context=context) as receiver:
            assert send(f"https://127.0.0.1:{receiver.port}/").status == 204

    def test_a_certificate_that_nobody_vouches_for_is_refused(self, tmp_path: Path) -> None:
        context, _ = certificate(tmp_path, "hooks.example")
        with receiving(context=context) as receiver:
            answer = send(f"https://hooks.example:{receiver.port}/x", resolve=lambda *_: ["127.0.0.1"])
            assert "TLS" in (answer.error or "")
            assert receiver.got == []


class TestTrouble:
    def test_nobody_listens(self) -> None:
        with receiving() as gone:
            port = gone.port
        assert "couldn't be reached" in (send(f"http://127.0.0.1:{port}/").error or "")

    def test_the_second_address_is_tried_where_the_first_refuses(self, receiver: Receiver) -> None:
        answer = send(f"http://two.example:{receiver.port}/", resolve=lambda *_: ["127.0.0.2", "127.0.0.1"])
        assert answer.status == 204

    def test_a_silent_receiver_is_given_up(self, receiver: Receiver) -> None:
        go_on = threading.Event()
        receiver.answer = lambda _: (go_on.wait(CEILING_SECONDS) and Reply()) or Reply()
        answer = send(receiver.url, IMPATIENT)
        go_on.set()
        assert answer.error == "No answer within 2 s."
        assert answer.seconds >= 2

    def test_a_receiver_that_drips_its_head_is_given_up(self) -> None:
        with dripping(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000) as port:
            answer = send(f"http://127.0.0.1:{port}/", IMPATIENT)
        assert answer.error == "No answer within 2 s."

    def test_a_body_that_drips_counts_as_answered(self) -> None:
        with dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", b"x" * 9999) as port:
            answer = send(f"http://127.0.0.1:{port}/", IMPATIENT)
        assert answer.is_good
        assert 0 < len(answer.body) < 9999, "the rest of it wasn't waited for"

    def test_no_more_than_64_kib_are_read(self, receiver: Receiver) -> None:
        receiver.answer = lambda _: Reply(200, body=b"x" * 10_000_000)
        answer = send(receiver.url)
        assert (answer.is_good, len(answer.body)) == (True, MAX_ANSWER)

    def test_what_is_no_http_is_an_error(self) -> None:
        with dripping(b"SSH-2.0-OpenSSH_9.9\r\n\r\n") as port:
            assert "couldn't be reached" in (send(f"http://127.0.0.1:{port}/").error or "")

    @pytest.mark.parametrize(
        ("value", "seconds"), [("120", 120), ("0", 0), ("soon", None), ("-1", None), ("9" * 50, None), ("1.5", None)]
    )
    def test_retry_after_in_seconds(self, receiver: Receiver, value: str, seconds: float | None) -> None:
        receiver.answer = lambda _: Reply(503, {"Retry-After": value})
        assert send(receiver.url).retry_after == seconds

    def test_retry_after_as_a_date(self, receiver: Receiver) -> None:
        receiver.answer = lambda _: Reply(429, {"Retry-After": formatdate(time.time() + 600, usegmt=True)})
        assert 0 < (send(receiver.url).retry_after or 0) <= 600


class dripping:  # noqa: N801 - used as a function
    """A server that sends `first` at once if there is a `rest`, and then a byte every 20 ms; gives its port."""

    def __init__(self, first: bytes, rest: bytes = b"") -> None:
        self._first, self._rest = (first, rest) if rest else (b"", first)

    def __enter__(self) -> int:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        port: int = self._server.getsockname()[1]
        return port

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        self._server.close()

    def _serve(self) -> None:
        connection, _ = self._server.accept()
        with connection:
            connection.recv(65536)
            try:
                connection.sendall(self._first)
                for byte in self._rest:
                    if self._stopping.wait(0.02):
                        return
                    connection.send(bytes([byte]))
            except (BrokenPipeError, ConnectionResetError):
                return
