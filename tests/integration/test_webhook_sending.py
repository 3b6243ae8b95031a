"""What is posted to a webhook, to whom, and what is made of the answer: real sockets, names of our own."""

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from uuid import UUID

import pytest

from common.clock import now
from common.errors import Invalid
from services.notification import webhook_sending
from services.notification.webhook_sending import Secrets, Sender
from services.notification.webhooks import LONGEST_PAUSE, Answer
from tests.receiver import Receiver

HOOK, DELIVERY = UUID(int=1), UUID(int=2)
PUBLIC, LOOPBACK = "93.184.215.14", "127.0.0.1"


class Names:
    """What each look-up of any name finds, one after the other; the last one for ever."""

    def __init__(self, *found: Sequence[str]) -> None:
        self.found = list(found)
        self.asked: list[str] = []

    async def __call__(self, host: str, _port: int) -> Sequence[str]:
        self.asked.append(host)
        return self.found.pop(0) if len(self.found) > 1 else self.found[0]


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver() as receiver:
        yield receiver


@pytest.fixture
async def here() -> AsyncIterator[Sender]:
    """One that may post to loopback."""
    async with Sender(private=True) as sender:
        yield sender


LITERALS = [
    *("127.0.0.1", "127.1", "127.0.1", "0", "0x0", "0.0.0", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1"),
    *("017700000001", "127.000.000.001", "0x7f.0x0.0x0.0x1", "localhost", "LOCALHOST", "169.254.169.254"),
    *("2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "10.1", "192.168.257", "172.16.0.1", "100.64.0.1"),
    *("[::]", "[::1]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]"),
    *("[fe80::1]", "[fd00:ec2::254]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[::ffff:169.254.169.254]"),
]


@pytest.mark.parametrize("host", LITERALS)
async def test_addresses_that_are_not_public_are_refused_however_they_are_written(
    host: str, receiver: Receiver
) -> None:
    url = f"https://{host}:{receiver.port}/"
    async with Sender(private=False) as sender:
        with pytest.raises(Invalid, match="public internet") as refusal:
            await sender.check(url)
        answer = await sender.post(url, [], "{}")
    assert refusal.value.context == {"field": "url", "got": url}
    assert answer.status is None
    assert "public internet" in str(answer.error)
    assert receiver.posts == []


@pytest.mark.parametrize("found", [[LOOPBACK], [PUBLIC, LOOPBACK], ["::1"], ["::ffff:127.0.0.1"], ["fe80::1%lo"], []])
async def test_a_name_that_leads_to_any_address_of_ours_is_refused(found: Sequence[str], receiver: Receiver) -> None:
    url = f"https://hooks.example.org:{receiver.port}/"
    async with Sender(private=False, resolve=Names(found)) as sender:
        with pytest.raises(Invalid, match="address"):
            await sender.check(url)
        assert "address" in str((await sender.post(url, [], "{}")).error)
    assert receiver.posts == []


async def test_a_name_that_leads_elsewhere_once_it_is_registered_is_refused(receiver: Receiver) -> None:
    names = Names([PUBLIC], [LOOPBACK])
    url = f"https://hooks.example.org:{receiver.port}/"
    async with Sender(private=False, resolve=names) as sender:
        await sender.check(url)
        answer = await sender.post(url, [], "{}")
    assert (answer.status, names.asked) == (None, ["hooks.example.org"] * 2)
    assert "public internet" in str(answer.error)
    assert receiver.posts == []


async def test_a_name_is_looked_up_once_for_a_post_which_goes_to_that_very_address(receiver: Receiver) -> None:
    names = Names([LOOPBACK], ["127.0.0.2"])
    async with Sender(private=True, resolve=names) as sender:
        answer = await sender.post(f"http://hooks.example.org:{receiver.port}/a?b", [], "{}")
    assert (answer, names.asked) == (Answer(204, None), ["hooks.example.org"])
    [post] = receiver.posts
    assert post.line == "POST /a?b HTTP/1.1"
    assert post.headers["host"] == f"hooks.example.org:{receiver.port}"


@pytest.mark.parametrize("found", [["127.0.0.2", "::1", LOOPBACK], [LOOPBACK, "127.0.0.2"]])
async def test_of_several_addresses_one_that_answers_is_asked(found: Sequence[str], receiver: Receiver) -> None:
    async with Sender(private=True, resolve=Names(found)) as sender:
        assert (await sender.post(f"http://hooks.example.org:{receiver.port}/", [], "{}")).status == 204


async def test_a_redirect_is_a_failure_and_nobody_goes_there(here: Sender) -> None:
    async with Receiver() as inner, Receiver(lambda _: f"307 Temporary Redirect\r\nLocation: {inner.url}") as receiver:
        answer = await here.post(receiver.url, [], "{}")
        assert len(receiver.posts) == 1
        assert inner.posts == []
    assert answer == Answer(307, "Answered 307 Temporary Redirect; redirects are not followed")


@pytest.mark.parametrize("variable", ["http_proxy", "HTTPS_PROXY", "ALL_PROXY"])
async def test_no_proxy_of_the_environment_is_used(
    variable: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Receiver() as proxy:
        monkeypatch.setenv(variable, f"http://127.0.0.1:{proxy.port}")
        async with Sender(private=True) as sender:
            assert (await sender.post(receiver.url, [], "{}")).status == 204
        assert (len(receiver.posts), len(proxy.posts)) == (1, 0)


async def test_who_never_answers_is_not_waited_for(here: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook_sending, "SECONDS", 0.2)
    async with Receiver(lambda _: "") as receiver:
        answer = await here.post(receiver.url, [], "{}")
    assert (answer.status, str(answer.error)[:9]) == (None, "No answer")


async def test_an_answer_that_trickles_without_end_is_not_waited_for(
    here: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook_sending, "SECONDS", 0.5)

    async def trickle(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(b"HTTP/1.1 500 Oh\r\nContent-Length: 1000\r\n\r\n")
            while not writer.is_closing():
                writer.write(b"a")
                await writer.drain()
                await asyncio.sleep(0.05)
        except OSError:
            pass

    server = await asyncio.start_server(trickle, "127.0.0.1", 0)
    async with server:
        answer = await here.post(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", [], "{}")
    assert (answer.status, str(answer.error)[:9]) == (None, "No answer")


async def test_little_is_read_and_less_is_kept_of_what_is_said(here: Sender) -> None:
    async with Receiver(lambda _: "500 Oh\r\n\r\n" + "no\x00\x1b[31m\n" * 1_000_000) as receiver:
        answer = await here.post(receiver.url, [], "{}")
    assert answer.status == 500
    assert str(answer.error).startswith("Answered 500 Internal Server Error: no [31m no [31m")
    assert len(str(answer.error)) == 200


@pytest.mark.parametrize(
    ("said", "told"),
    [("nonsense", "does not speak HTTP"), ("599 Unheard Of", "Answered 599"), ("410 Gone", "410 Gone")],
)
async def test_what_is_wrong_is_told_in_words(said: str, told: str, here: Sender) -> None:
    async with Receiver(lambda _: said) as receiver:
        answer = await here.post(receiver.url, [], "{}")
    assert told in str(answer.error)
    assert answer.gone == (said == "410 Gone")


async def test_nobody_there_is_told(here: Sender) -> None:
    async with Receiver() as receiver:
        pass
    answer = await here.post(receiver.url, [], "{}")
    assert answer == Answer(None, "No connection: Connection refused")


LATER = format_datetime(datetime.now(UTC) + timedelta(hours=2), usegmt=True)


@pytest.mark.parametrize(
    ("said", "least", "most"),
    [
        ("120", 120, 120),
        ("99999999999999999999", LONGEST_PAUSE, LONGEST_PAUSE),
        pytest.param(LATER, 3_600, 7_200, id="later"),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0),
        ("Wed, 21 Oct 9999 07:28:00 GMT", LONGEST_PAUSE, LONGEST_PAUSE),
        *((nonsense, 0, 0) for nonsense in ("soon", "-1", "1.5", "²", "Wed, 21 Oct 2015 07:28:00", "")),
    ],
)
async def test_who_asks_for_patience_is_heard_within_reason(said: str, least: float, most: float, here: Sender) -> None:
    async with Receiver(lambda _: f"429 Too Many Requests\r\nRetry-After: {said}") as receiver:
        answer = await here.post(receiver.url, [], "{}")
    assert least <= answer.retry_after <= most


async def test_somebody_elses_implementation_believes_both_signatures_of_a_rotation(
    here: Sender, receiver: Receiver
) -> None:
    secrets = Secrets("of this system")
    await here.post(receiver.url, secrets.sign(HOOK, (2, 1), DELIVERY, now(), '{"é": 1}'), '{"é": 1}')
    [post] = receiver.posts
    assert post.headers["webhook-signature"].count("v1,") == 2
    assert [post.signed_by(secrets.of(HOOK, number)) for number in (1, 2, 3)] == [True, True, False]
    assert not post.signed_by(secrets.of(DELIVERY, 1))
    assert not post.signed_by(Secrets("of another system").of(HOOK, 1))


@pytest.fixture
def certified(home: Path) -> tuple[Path, Path]:
    """A key and a certificate for hooks.example.org."""
    key, certificate = home / "key.pem", home / "certificate.pem"
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=hooks.example.org"
    names = ("-addext", "subjectAltName=DNS:hooks.example.org", "-keyout", str(key), "-out", str(certificate))
    subprocess.run([*make.split(), *names], check=True, capture_output=True)
    return key, certificate


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl to make a certificate")
async def test_a_certificate_is_checked_for_the_name_and_not_for_the_address(certified: tuple[Path, Path]) -> None:
    key, certificate = certified
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(certificate, key)
    ours = ssl.create_default_context(cafile=str(certificate))
    async with Receiver(tls=theirs) as receiver, Sender(private=True, resolve=Names([LOOPBACK]), trust=ours) as sender:
        assert (await sender.post(f"https://hooks.example.org:{receiver.port}/", [], "{}")).status == 204
        wrong = await sender.post(f"https://other.example.org:{receiver.port}/", [], "{}")
        async with Sender(private=True, resolve=Names([LOOPBACK])) as stranger:
            unknown = await stranger.post(f"https://hooks.example.org:{receiver.port}/", [], "{}")
    assert "CERTIFICATE_VERIFY_FAILED" in str(wrong.error)
    assert "CERTIFICATE_VERIFY_FAILED" in str(unknown.error)
    assert len(receiver.posts) == 1
