"""What is sealed opens with its secret and where it belongs, and in no other way."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.identity.sealing import NONCE_BYTES, CannotOpen, Sealer

OLD, NEW, FOREIGN = "old secret " * 4, "new secret " * 4, "foreign secret " * 4
TOKEN, ISSUER, ADA, BOB = "1//refresh-token", "https://idp.example", "ada", "bob"


@given(plain=st.text(st.characters(exclude_categories=["Cs"])), bound_to=st.lists(st.text("abc\n\x00é"), max_size=3))
def test_what_is_sealed_opens(plain: str, bound_to: list[str]) -> None:
    sealer = Sealer([NEW])
    assert sealer.open(sealer.seal(plain, *bound_to), *bound_to) == plain


def test_nothing_of_it_shows_and_no_two_look_alike() -> None:
    sealer = Sealer([NEW])
    once, again = sealer.seal(TOKEN, ISSUER, ADA), sealer.seal(TOKEN, ISSUER, ADA)
    assert once != again
    assert TOKEN.encode() not in base64.urlsafe_b64decode(once.partition(".")[2] + "==")


def test_a_new_secret_seals_and_the_old_one_still_opens() -> None:
    before, after = Sealer([OLD]), Sealer([NEW, OLD])
    sealed = before.seal(TOKEN, ISSUER, ADA)
    assert before.is_current(sealed)
    assert after.open(sealed, ISSUER, ADA) == TOKEN
    assert not after.is_current(sealed)
    anew = after.seal(TOKEN, ISSUER, ADA)
    assert after.is_current(anew)
    assert Sealer([NEW]).open(anew, ISSUER, ADA) == TOKEN


def test_a_secret_that_is_not_known_is_told_by_its_key_and_not_by_itself() -> None:
    sealed = Sealer([OLD]).seal(TOKEN, ISSUER, ADA)
    with pytest.raises(CannotOpen, match=f"not known here .key {sealed.partition('.')[0]}") as refusal:
        Sealer([NEW]).open(sealed, ISSUER, ADA)
    assert OLD not in str(refusal.value)
    assert TOKEN not in str(refusal.value)


@pytest.mark.parametrize(
    "elsewhere",
    [(ISSUER, BOB), ("https://other.example", ADA), (ADA, ISSUER), (ISSUER + ADA,), (ISSUER, ADA, ""), (ISSUER,), ()],
    ids=["user", "provider", "swapped", "joined", "more", "less", "nothing"],
)
def test_it_does_not_open_where_it_does_not_belong(elsewhere: tuple[str, ...]) -> None:
    sealer = Sealer([NEW])
    with pytest.raises(CannotOpen, match="does not belong"):
        sealer.open(sealer.seal(TOKEN, ISSUER, ADA), *elsewhere)


def test_any_changed_character_is_noticed() -> None:
    sealer = Sealer([NEW])
    sealed = sealer.seal(TOKEN, ISSUER, ADA)
    unused = len(sealed) - 1  # of the last character some bits may stand for nothing
    for at in range(unused):
        changed = sealed[:at] + ("A" if sealed[at] != "A" else "B") + sealed[at + 1 :]
        with pytest.raises(CannotOpen):
            sealer.open(changed, ISSUER, ADA)


def test_the_key_of_one_secret_on_what_another_sealed_opens_nothing() -> None:
    both = Sealer([NEW, OLD])
    mixed = both.seal("x").partition(".")[0] + "." + Sealer([OLD]).seal(TOKEN).partition(".")[2]
    with pytest.raises(CannotOpen):
        both.open(mixed)


@pytest.mark.parametrize("cut", [0, 1, 2, 3, NONCE_BYTES, 16, 20, 30])
def test_what_is_cut_short_does_not_open(cut: int) -> None:
    sealer = Sealer([NEW])
    key, _, text = sealer.seal(TOKEN).partition(".")
    with pytest.raises(CannotOpen):
        sealer.open(f"{key}.{text[:cut]}")


@pytest.mark.parametrize(
    "text", ["", ".", TOKEN, "abc.def", "0123456789ab", "0123456789ab.a+b/", "0123456789ab.AAAA\n"]
)
def test_what_was_never_sealed_is_told(text: str) -> None:
    with pytest.raises(CannotOpen, match="never sealed"):
        Sealer([NEW]).open(text)


@pytest.mark.parametrize("secrets", [(), ("",), ("short",), (NEW, "short")], ids=["none", "empty", "short", "old one"])
def test_there_has_to_be_a_secret_that_nobody_guesses(secrets: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="at least 32 characters"):
        Sealer(secrets)


def test_a_foreign_system_opens_nothing() -> None:
    with pytest.raises(CannotOpen):
        Sealer([FOREIGN]).open(Sealer([NEW]).seal(TOKEN))
