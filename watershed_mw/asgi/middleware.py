"""The ASGI middleware: checks every upgrade request and gives the application an upgrade object.

No answer is sent before the application decides, unless RFC 6455 or the origin policy requires a refusal. Accept and
refusal pass through ASGI ``receive`` and ``send``, so that middlewares see them and can add headers. Under this
package's uvicorn class frames then bypass ASGI; on every other server they pass as ASGI messages.
"""

from __future__ import annotations

from typing import Unpack

from ..connection.limit import ConnectionLimit, Place
from ..errors import ConnectionClosed, HandshakeError
from ..http.target import scope_to_origin_form
from ..options import Options
from .channels import App, Receive, Scope, Send
from .policy import UpgradePolicy
from .upgrade import ASGIUpgrade

__all__ = ["WatershedASGI"]


class WatershedASGI:
    """ASGI middleware: every websocket scope gets ``scope["watershed"]``, an :class:`ASGIUpgrade`.

    It may wrap the application from outside or be one of its middlewares.

    Args:
        app: the ASGI application; HTTP and lifespan scopes reach it untouched.
        options: see :class:`~watershed_mw.Options`.

    Raises:
        TypeError, ValueError: an option is unknown or has an invalid value.
    """

    def __init__(self, app: App, **options: Unpack[Options]) -> None:
        self.app = app
        self.options = options
        self.policy = UpgradePolicy(options)
        self.shed = self.policy.shed
        self._connection_limit = ConnectionLimit(self.shed.settings.max_connections)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one scope."""
        if scope["type"] != "websocket":
            await self.app(scope, receive, send)
            return
        scope_to_origin_form(scope)
        upgrade = ASGIUpgrade(self.policy, scope, receive, send)
        place: Place | None = None
        try:
            try:
                upgrade.check()
                place = self._connection_limit.enter()
            except HandshakeError as error:
                await upgrade.refuse(error)
                return
            scope["watershed"] = upgrade
            await upgrade.serve(self.app)
        except ConnectionClosed:
            if not upgrade.over:
                raise  # it is about another connection, such as one to a database or an upstream
        except HandshakeError:
            if not upgrade.refused:
                raise
        finally:
            if place is not None:
                place.leave()
            # Breaks the reference cycle of scope and upgrade, which would wait for the garbage collector.
            scope.pop("watershed", None)
