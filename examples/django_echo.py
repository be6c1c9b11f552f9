"""An echo server as a single-file Django application: python examples/django_echo.py [port]."""

import sys

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse
from django.urls import path
from werkzeug.serving import run_simple

from watershed_mw import AsyncConnection, HandshakeError, WatershedWSGI

settings.configure(
    SECRET_KEY="change me",
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["127.0.0.1", "localhost"],
    MIDDLEWARE=["django.middleware.security.SecurityMiddleware", "django.middleware.csrf.CsrfViewMiddleware"],
)


async def talk(conn: AsyncConnection) -> None:
    async for message in conn:
        await conn.send(message)


def echo(request: HttpRequest) -> HttpResponse:
    upgrade = request.environ.get("watershed")
    if upgrade is None:
        return HttpResponse("expected a WebSocket upgrade, got a plain request\n", status=426)
    try:
        upgrade.accept(["echo.watershed"]).run_in_background(talk)
    except HandshakeError as refusal:  # Django would answer each of them with 400
        return HttpResponse(refusal.body, status=refusal.status)
    return HttpResponse()  # discarded: the 101 has already been sent, and the thread is free


urlpatterns = [path("", echo)]
application = WatershedWSGI(get_wsgi_application())

if __name__ == "__main__":
    run_simple("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 8000, application, threaded=True)
