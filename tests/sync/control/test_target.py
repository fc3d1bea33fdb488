import pytest

from sync import TargetError
from sync.control.target import Target


@pytest.mark.parametrize(
    ("address", "shown", "key"),
    [
        ("http://127.0.0.1:9000", "http://127.0.0.1:9000", None),
        ("http://host", "http://host:9000", None),
        ("https://host/base/", "https://host:443/base", None),
        ("host:9100", "http://host:9100", None),
        ("grpc://host", "grpc://host:8001", None),
        ("grpcs://[::1]:8443", "grpcs://[::1]:8443", None),
        ("http://trainer:s%2Fcret@host:9000", "http://host:9000", "s/cret"),
        ("http://secret@host:9000", "http://host:9000", "secret"),
    ],
)
def test_addresses(address, shown, key):
    target = Target.parse(address)
    assert str(target) == shown
    assert target.key == key


def test_a_key_in_the_address_wins():
    assert Target.parse("grpc://user:mine@host", "other").key == "mine"
    assert Target.parse("grpc://host", "other").key == "other"


@pytest.mark.parametrize("address", ["ftp://user:secret@host", "http://user:secret@host:port", "http://user:secret@"])
def test_bad_addresses_are_refused_without_showing_the_key(address):
    with pytest.raises(TargetError) as caught:
        Target.parse(address)
    assert "secret" not in str(caught.value)


def test_the_key_is_in_no_repr():
    assert "secret" not in repr(Target.parse("http://user:secret@host"))
