"""Sugar for FastAPI: a dependency that gives an endpoint its accepted connection.

It composes with other dependencies and security schemes. A 101 cannot be taken back, so it has to
be the last one: whoever another dependency refuses gets that one's HTTP answer.
"""

# No `from __future__ import annotations` here: FastAPI reads the annotations of __call__, and finds no module to look
# up their names in when a dependency is an object.
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

    What the endpoint leaves open is ended when it returns. ``app.add_middleware(WatershedASGI)`` must stand in front.

    Args:
        protocols: subprotocols that are supported here; those of the middleware in front unless given.
        options: options of these connections, such as ``ping_interval=5.0``.

    Raises:
        TypeError, ValueError: an option is not one of a connection, or cannot have its value; at once.
    """

    def __init__(self, protocols: Sequence[str] | None = None, **options: Unpack[ConnectionOptions]) -> None:
        check_connection_options(options, "Accepted()")
        self._protocols = protocols
        self._options = options

    async def __call__(self, websocket: WebSocket) -> AsyncConnection:
        """Accept.

        Raises:
            HandshakeError: no subprotocol in common; the client has been told so.
            TypeError: the endpoint is no coroutine function.
            RuntimeError: another dependency comes after this one, or no ``WatershedASGI`` stands in front.
            WebSocketRequestValidationError: a parameter of the request is not valid.
        """
        _check_endpoint(websocket)
        self._check_last(websocket)
        _check_parameters(websocket)
        return await upgrade_of(websocket).accept(self._protocols, **self._options)

    def _check_last(self, websocket: WebSocket) -> None:
        route = websocket.scope.get("route")
        calls = list(_in_order(getattr(route, "dependant", None)))
        if self not in calls:
            return  # behind an override, or with a FastAPI that keeps its dependencies elsewhere
        late = [call for call in calls[calls.index(self) + 1 :] if call not in calls[: calls.index(self) + 1]]
        # What depends on the connection comes after it by nature.
        late = [call for call in late if not _needs(getattr(route, "dependant", None), call, self)]
        if late:
            name = getattr(late[0], "__name__", type(late[0]).__name__)
            raise RuntimeError(
                f"expected the connection as the last dependency of {websocket.url.path}, got {name} after it, which "
                "could not refuse any more once the 101 is sent: declare the connection last"
            )


def _check_endpoint(websocket: WebSocket) -> None:
    # FastAPI awaits what an endpoint for WebSockets returns, whatever it is: here the client still gets an answer.
    endpoint = getattr(websocket.scope.get("route"), "endpoint", None)
    if inspect.isroutine(endpoint) and not is_coroutine_function(endpoint):
        raise TypeError(
            f"expected a coroutine function (async def) as the endpoint of {websocket.url.path}, got {endpoint!r}: "
            "make it async def, or call what blocks by fastapi.concurrency.run_in_threadpool()"
        )


def _check_parameters(websocket: WebSocket) -> None:
    # FastAPI calls an endpoint's dependencies before it judges the endpoint's own parameters, and goes on to the next
    # dependency where those of one are wrong. It would find out after the 101.
    dependant = getattr(websocket.scope.get("route"), "dependant", None)
    overrides = getattr(websocket.scope.get("app"), "dependency_overrides", {})
    if dependant is not None and (errors := list(_invalid(dependant, websocket, overrides))):
        raise WebSocketRequestValidationError(errors)


def _invalid(dependant: Any, websocket: WebSocket, overrides: Container[Any]) -> Iterator[Any]:
    """What FastAPI finds wrong with the parameters of ``dependant`` and of all below it that nobody has overridden."""
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
    """What FastAPI calls below ``dependant``, in its order."""
    for inner in getattr(dependant, "dependencies", ()):
        yield from _in_order(inner)
        yield inner.call


def _needs(dependant: Any, call: Any, wanted: Any) -> bool:
    """Whether ``call``, somewhere below ``dependant``, itself depends on ``wanted``."""
    return any(
        (inner.call is call and wanted in _in_order(inner)) or _needs(inner, call, wanted)
        for inner in getattr(dependant, "dependencies", ())
    )


async def upgrade(websocket: WebSocket) -> ASGIUpgrade:
    """A dependency that leaves the decision to the endpoint, which awaits ``accept(...)`` or ``reject(...)``."""
    _check_endpoint(websocket)
    return upgrade_of(websocket)
