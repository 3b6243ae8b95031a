"""Whatever a provider publishes or sends, it is refused in one way: no other error comes of it."""

from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import Unauthenticated
from services.identity.id_token import ALGORITHMS, Header, claims_of, header_of, key_for, keys_in
from tests.forger import base64url, jwk, private_key

NAMES = ["kty", "use", "key_ops", "alg", "kid", "crv", "x", "y", "n", "e", "d", "p", "k", "x5c", "x5u", "oth"]
VALUES = [*("RSA", "EC", "OKP", "oct", "AKP", "sig", "enc", "verify", "P-256", "P-521", "secp256k1", "Ed25519")]
WORDS = st.sampled_from([*VALUES, "X25519", "Ed448", "RS256", "", "AQAB", "AA", "é", "\0", "?"])
JSON = (
    st.none()
    | st.booleans()
    | st.integers(-2, 2**53)
    | WORDS
    | st.text("aZ9é=_-", max_size=50)
    | st.lists(WORDS, max_size=2)
)
HONEST = [jwk(private_key(kind)) for kind in ("RSA", "EC", "Ed25519")]


@given(
    honest=st.sampled_from([{}, *HONEST]),
    odd=st.dictionaries(st.sampled_from(NAMES), JSON, max_size=4),
    without=st.sets(st.sampled_from(NAMES), max_size=2),
)
def test_odd_keys_are_left_out_and_the_good_one_beside_them_is_found(
    honest: dict[str, Any], odd: dict[str, Any], without: set[str]
) -> None:
    other = {name: value for name, value in {**honest, **odd}.items() if name not in without}
    good = jwk(private_key("EC", 1), kid="good")
    keys = keys_in(msgspec.json.encode({"keys": [other, good]}))
    found = key_for(Header("ES256", "good"), keys)
    assert found is not None
    assert found.kid == "good"


@given(
    header=st.dictionaries(st.sampled_from(["alg", "kid", "typ", "jwk", "jku", "x5u", "x5c", "cty"]), JSON),
    algorithm=st.sampled_from(sorted(ALGORITHMS)),
    payload=st.binary(max_size=50),
    signature=st.binary(max_size=80) | st.sampled_from([bytes(64), bytes(256)]),
    kind=st.sampled_from(["RSA", "EC", "Ed25519"]),
)
def test_a_token_that_nobody_signed_is_refused(
    header: dict[str, Any], algorithm: str, payload: bytes, signature: bytes, kind: str
) -> None:
    token = ".".join(
        base64url(each) for each in (msgspec.json.encode({"alg": algorithm, **header}), payload, signature)
    )
    (key,) = keys_in(msgspec.json.encode({"keys": [jwk(private_key(kind))]}))
    with suppress(Unauthenticated):
        header_of(token)
    with pytest.raises(Unauthenticated):
        claims_of(token, key)


@given(token=st.text("eyJhbGciOiJub25lIn0.=-_A{}é\n\ud800", max_size=200))
def test_a_text_that_is_no_token_is_refused(token: str) -> None:
    (key,) = keys_in(msgspec.json.encode({"keys": [jwk(private_key("RSA"))]}))
    with pytest.raises(Unauthenticated):
        header_of(token)
    with pytest.raises(Unauthenticated):
        claims_of(token, key)
