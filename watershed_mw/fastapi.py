"""A FastAPI dependency that provides the accepted connection.

It composes with other dependencies and security schemes. It must be the last dependency, as a 101 cannot be taken back:
a request that another dependency refuses then gets an HTTP response.
"""

# No `from __future__ import annotations` here: FastAPI evaluates the annotations of __call__, and cannot resolve names
# if the dependency is an object.
import inspect
from collections.abc import Container, Iterator, Sequence
from typing import Any, Unpack

from fastapi.dependencies.utils import request_params_to_args
from fastapi.exceptions import WebSocketRequestValidationError
from starlette.websockets import WebSocket

from .asgi.upgrade import ASGIUpgrade
from .connection.aio.api import AsyncConnection, is_coroutine_function
from .options import ConnectionOptions, check_connection_options
from .starlette import upgrade_of

__all__ = ["Accepted", "upgrade"]


class Accepted:
    """A dependency that accepts the upgrade: ``conn: Annotated[AsyncConnection, Depends(Accepted())]``.

    The connection is closed when the endpoint returns. ``app.add_middleware(WatershedASGI)`` is required.

    Args:
        protocols: supported subprotocols; those of the middleware by default.
        options: options of these connections, such as ``ping_interval=5.0``.

    Raises:
        TypeError, ValueError: an option is not a connection option, or has an invalid value; raised here, not on the
            first connection.
    """

    def __init__(self, protocols: Sequence[str] | None = None, **options: Unpack[ConnectionOptions]) -> None:
        check_connection_options(options, "Accepted()")
        self._protocols = protocols
        self._options = options

    async def __call__(self, websocket: WebSocket) -> AsyncConnection:
        """Accept the upgrade.

        Raises:
            HandshakeError: no common subprotocol; the client has been refused.
            TypeError: the endpoint is not a coroutine function.
            RuntimeError: another dependency comes after this one, or ``WatershedASGI`` is missing.
            WebSocketRequestValidationError: a parameter of the request is invalid.
        """
        _check_endpoint(websocket)
        self._check_last(websocket)
        _check_parameters(websocket)
        return await upgrade_of(websocket).accept(self._protocols, **self._options)

    def _check_last(self, websocket: WebSocket) -> None:
        route = websocket.scope.get("route")
        calls = list(_in_order(getattr(route, "dependant", None)))
        if self not in calls:
            return  # overridden, or FastAPI keeps its dependencies elsewhere
        late = [call for call in calls[calls.index(self) + 1 :] if call not in calls[: calls.index(self) + 1]]
        # Dependencies that use the connection must come after it.
        late = [call for call in late if not _needs(getattr(route, "dependant", None), call, self)]
        if late:
            name = getattr(late[0], "__name__", type(late[0]).__name__)
            raise RuntimeError(
                f"expected the connection as the last dependency of {websocket.url.path}, got {name} after it, which "
                "cannot refuse once the 101 is sent: declare the connection last"
            )


def _check_endpoint(websocket: WebSocket) -> None:
    # FastAPI awaits the result of a WebSocket endpoint without a check. Here the client can still get a response.
    endpoint = getattr(websocket.scope.get("route"), "endpoint", None)
    if inspect.isroutine(endpoint) and not is_coroutine_function(endpoint):
        raise TypeError(
            f"expected a coroutine function (async def) as the endpoint of {websocket.url.path}, got {endpoint!r}: run "
            "blocking code with fastapi.concurrency.run_in_threadpool()"
        )


def _check_parameters(websocket: WebSocket) -> None:
    # FastAPI validates the endpoint's parameters after calling its dependencies, and continues with the next dependency
    # if the parameters of one are invalid. So it would report errors only after the 101.
    dependant = getattr(websocket.scope.get("route"), "dependant", None)
    overrides = getattr(websocket.scope.get("app"), "dependency_overrides", {})
    if dependant is not None and (errors := list(_invalid(dependant, websocket, overrides))):
        raise WebSocketRequestValidationError(errors)


def _invalid(dependant: Any, websocket: WebSocket, overrides: Container[Any]) -> Iterator[Any]:
    """Validation errors for the parameters of ``dependant`` and of its dependencies that are not overridden."""
    parameters = (
        (dependant.path_params, websocket.path_params),
        (dependant.query_params, websocket.query_params),
        (dependant.header_params, websocket.headers),
        (dependant.cookie_params, websocket.cookies),
    )
    for fields, values in parameters:
        yield from request_params_to_args(fields, values)[1]
    for inner in dependant.dependencies:
        if inner.call not in overrides:
            yield from _invalid(inner, websocket, overrides)


def _in_order(dependant: Any) -> Iterator[Any]:
    """The dependencies of ``dependant`` in the order in which FastAPI calls them."""
    for inner in getattr(dependant, "dependencies", ()):
        yield from _in_order(inner)
        yield inner.call


def _needs(dependant: Any, call: Any, wanted: Any) -> bool:
    """Whether ``call``, a direct or indirect dependency of ``dependant``, depends on ``wanted``."""
    return any(
        (inner.call is call and wanted in _in_order(inner)) or _needs(inner, call, wanted)
        for inner in getattr(dependant, "dependencies", ())
    )


async def upgrade(websocket: WebSocket) -> ASGIUpgrade:
    """A dependency that leaves the decision to the endpoint, which awaits ``accept(...)`` or ``reject(...)``."""
    _check_endpoint(websocket)
    return upgrade_of(websocket)
