"""errors.py: the exception tree, and the attributes of its members for RFC 6455 sections 4 and 7.4."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest

from watershed_mw import errors
from watershed_mw.errors import (
    ConnectionClosed,
    HandshakeError,
    LocalProtocolError,
    ProtocolError,
    RemoteProtocolError,
    UnsupportedServerError,
    WatershedError,
)

EXAMPLES = [
    HandshakeError("expected this, got that", status=426, headers=[("Sec-WebSocket-Version", "13")]),
    RemoteProtocolError("expected this, got that", close_code=1007),
    LocalProtocolError("expected this, got that"),
    ConnectionClosed(1000, "bye"),
    UnsupportedServerError("not here"),
    HandshakeError("expected 101, got 403", status=403, headers=[("X", "1")], body=b"no", response="an HTTP client's"),
]


def test_every_exception_derives_from_watershed_error_and_is_exported() -> None:
    classes = [item for _, item in inspect.getmembers(errors, inspect.isclass) if item.__module__ == errors.__name__]
    assert {item.__name__ for item in classes} == set(errors.__all__)
    assert all(issubclass(item, WatershedError) for item in classes)


def test_the_tree_matches_the_module_docstring() -> None:
    printed = (errors.__doc__ or "").partition("::")[2]
    for name in errors.__all__:
        assert name in printed
    assert issubclass(RemoteProtocolError, ProtocolError)
    assert issubclass(LocalProtocolError, ProtocolError)


def test_a_local_failure_is_never_attributed_to_the_peer() -> None:
    assert not issubclass(LocalProtocolError, RemoteProtocolError)
    assert not issubclass(RemoteProtocolError, LocalProtocolError)
    assert not issubclass(RemoteProtocolError, ValueError)
    assert issubclass(LocalProtocolError, ValueError)


def test_handshake_error_carries_an_http_response() -> None:
    error = HandshakeError("expected é", status=426, headers=iter([("A", "1")]))
    assert (error.status, error.headers, error.body) == (426, (("A", "1"),), "expected é\n".encode())
    assert str(error) == "expected é"


def test_handshake_error_defaults_to_400() -> None:
    error = HandshakeError("no")
    assert (error.status, error.headers, error.body, error.response) == (400, (), b"no\n", None)


def test_handshake_error_carries_the_response_that_a_client_received() -> None:
    answer = object()
    error = HandshakeError("no", status=403, body=b"", response=answer)
    assert (error.body, error.response) == (b"", answer)  # an empty body is one


def test_handshake_error_body_can_always_be_encoded() -> None:
    assert HandshakeError("lone \ud800").body == b"lone ?\n"


def test_protocol_error_defaults_to_1002() -> None:
    assert ProtocolError("no").close_code == 1002
    assert RemoteProtocolError("no", close_code=1009).close_code == 1009


def test_connection_closed_is_caught_as_oserror_without_an_errno() -> None:
    error = ConnectionClosed(1001, "shutting down")
    assert isinstance(error, OSError)
    assert error.errno is None
    assert (error.code, error.reason) == (1001, "shutting down")
    assert str(error) == "the WebSocket connection has ended with code 1001: shutting down"
    assert str(ConnectionClosed(1006)) == "the WebSocket connection has ended with code 1006"


def test_unsupported_server_error_is_a_runtime_error() -> None:
    assert issubclass(UnsupportedServerError, RuntimeError)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_exceptions_survive_copying_and_pickling(error: WatershedError) -> None:
    # Process pools and loggers that cross processes pickle exceptions.
    for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        assert vars(twin) == vars(error)
