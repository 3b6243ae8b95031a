"""Headers of messages, as our client of NATS writes and reads them."""

import nats.errors
import pytest
from nats.aio.msg import Msg

from common.runtime import Platform


async def sent(platform: Platform, headers: dict[str, str]) -> Msg:
    """A message with these headers, as it arrives."""
    inbox = platform.client.new_inbox()
    subscription = await platform.client.subscribe(inbox)
    await platform.client.publish(inbox, b"body", headers=headers)
    return await subscription.next_msg(timeout=5)


async def test_headers_arrive_as_they_were_sent(platform: Platform) -> None:
    headers = {"ce-type": "order_created", "Title": "Ünïcode: 1, 2", "X!#$%&'*+.^_`|~9": "a:b"}
    message = await sent(platform, headers)
    assert (message.headers, message.data) == (headers, b"body")


@pytest.mark.parametrize("line_break", ["\r\n", "\n", "\r"])
async def test_no_value_can_end_its_header_and_begin_another(platform: Platform, line_break: str) -> None:
    message = await sent(platform, {"dead-error": f"a{line_break}Nats-Msg-Id: b", "ce-type": "x"})
    assert message.headers is not None
    assert set(message.headers) == {"dead-error", "ce-type"}
    assert message.data == b"body"


@pytest.mark.parametrize("name", ["a b", "a:b", "a\r\nb", "ä"])
async def test_a_name_that_is_none_is_refused(platform: Platform, name: str) -> None:
    with pytest.raises(nats.errors.BadHeaderError):
        await sent(platform, {name: "value"})
