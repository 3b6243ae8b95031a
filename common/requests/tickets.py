"""What the tickets service can be asked: many listings to be made or changed in one request."""

from typing import Annotated, Literal
from uuid import UUID

import msgspec
from msgspec import UNSET, Meta, UnsetType

from common.clock import Moment, in_utc
from common.events import TicketDetails
from common.http import LINE
from common.requests import Endpoint
from common.requests.bulk import Chunk, Verdicts

Code = Literal[
    "AED", "AFN", "ALL", "AMD", "AOA", "ARS", "AUD", "AWG", "AZN", "BAM", "BBD", "BDT", "BGN", "BHD", "BIF", "BMD",
    "BND", "BOB", "BRL", "BSD", "BTN", "BWP", "BYN", "BZD", "CAD", "CDF", "CHF", "CLP", "CNY", "COP", "CRC", "CUP",
    "CVE", "CZK", "DJF", "DKK", "DOP", "DZD", "EGP", "ERN", "ETB", "EUR", "FJD", "FKP", "GBP", "GEL", "GHS", "GIP",
    "GMD", "GNF", "GTQ", "GYD", "HKD", "HNL", "HTG", "HUF", "IDR", "ILS", "INR", "IQD", "IRR", "ISK", "JMD", "JOD",
    "JPY", "KES", "KGS", "KHR", "KMF", "KPW", "KRW", "KWD", "KYD", "KZT", "LAK", "LBP", "LKR", "LRD", "LSL", "LYD",
    "MAD", "MDL", "MGA", "MKD", "MMK", "MNT", "MOP", "MRU", "MUR", "MVR", "MWK", "MXN", "MYR", "MZN", "NAD", "NGN",
    "NIO", "NOK", "NPR", "NZD", "OMR", "PAB", "PEN", "PGK", "PHP", "PKR", "PLN", "PYG", "QAR", "RON", "RSD", "RUB",
    "RWF", "SAR", "SBD", "SCR", "SDG", "SEK", "SGD", "SHP", "SLE", "SOS", "SRD", "SSP", "STN", "SVC", "SYP", "SZL",
    "THB", "TJS", "TMT", "TND", "TOP", "TRY", "TTD", "TWD", "TZS", "UAH", "UGX", "USD", "UYU", "UZS", "VED", "VES",
    "VND", "VUV", "WST", "XAF", "XCD", "XOF", "XPF", "YER", "ZAR", "ZMW", "ZWG",
]  # fmt: skip
"""Active codes of ISO 4217 that people pay with."""

Currency = Annotated[Code, Meta(description="A code of ISO 4217 that people pay with, such as EUR", examples=["EUR"])]
Title = Annotated[str, LINE, Meta(examples=["Opening night"])]
Venue = Annotated[str, LINE, Meta(examples=["Town hall"])]
Price = Annotated[
    int,
    Meta(
        ge=1,
        le=100_000_000,
        description="A whole number from 1 to 100000000, in minor units of the currency: 2500 is 25.00 EUR",
        examples=[2500],
    ),
]
Quantity = Annotated[int, Meta(ge=1, le=1_000_000, examples=[100])]
PerOrder = Annotated[int, Meta(ge=1, le=1_000)]
StartsAt = Annotated[Moment, Meta(examples=["2030-12-31T20:00:00Z"])]


class NewTicket(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A listing to be. `price` is in minor units of `currency`."""

    title: Title
    price: Price
    currency: Currency
    quantity: Quantity
    max_per_order: PerOrder = 10
    venue: Venue | None = None
    starts_at: StartsAt | None = None

    def details(self) -> TicketDetails:
        """Raises Invalid."""
        details = msgspec.convert(self, TicketDetails, from_attributes=True)
        starts_at = self.starts_at and in_utc("starts_at", self.starts_at)
        return msgspec.structs.replace(details, starts_at=starts_at)


class TicketChanges(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to change; what is left out stays."""

    title: Title | UnsetType = UNSET
    price: Price | UnsetType = UNSET
    quantity: Quantity | UnsetType = UNSET
    max_per_order: PerOrder | UnsetType = UNSET
    venue: Venue | UnsetType | None = UNSET
    starts_at: StartsAt | UnsetType | None = UNSET

    def changes(self) -> dict[str, object]:
        """Raises Invalid."""
        given = {name: getattr(self, name) for name in TicketChanges.__struct_fields__}
        changes = {name: value for name, value in given.items() if value is not UNSET}
        if self.starts_at:
            changes["starts_at"] = in_utc("starts_at", self.starts_at)
        return changes


class TicketUpdate(TicketChanges, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is to change of which ticket; of `version` of it, if that is given."""

    ticket_id: UUID
    version: Annotated[int, Meta(ge=1)] | None = None


CREATE_TICKETS = Endpoint("tickets", "create", Chunk, Verdicts)
"""Each payload is a `NewTicket`, each Done has the id of the ticket, which is made from that of the operation."""

UPDATE_TICKETS = Endpoint("tickets", "update", Chunk, Verdicts)
"""Each payload is a `TicketUpdate`."""
