"""What an open page is told, and in which order."""

from contextlib import aclosing
from uuid import UUID

from services.tickets.live import Page

ONE, OTHER = UUID(int=1), UUID(int=2)


async def told(page: Page) -> bytes:
    """What is sent next."""
    async with aclosing(page.news()) as news:
        return await anext(news)


async def test_how_it_was_does_not_undo_what_is_told_meanwhile() -> None:
    page = Page([ONE])
    page.tell(ONE, b"3 left")
    page.begin(ONE, b"10 left")
    assert await told(page) == b"3 left"


async def test_only_the_latest_of_each_is_sent_and_only_of_what_is_shown() -> None:
    page = Page([ONE])
    page.begin(ONE, b"10 left")
    page.tell(OTHER, b"1 left")
    page.tell(ONE, b"4 left")
    page.tell(ONE, b"3 left")
    assert await told(page) == b"3 left"


async def test_a_page_that_ends_is_sent_only_when_to_come_back() -> None:
    page = Page([])
    page.end()
    async with aclosing(page.news()) as news:
        assert [each.startswith(b"retry: ") async for each in news] == [True]
