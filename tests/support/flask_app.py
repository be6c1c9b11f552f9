"""The application that the Flask tests share; it reports everything it does into an inbox."""

from __future__ import annotations

from typing import Any

from flask import Flask, abort, current_app, g, redirect, request, session, url_for

from tests.support.waiting import Inbox
from watershed_mw import AsyncConnection, ThreadConnection
from watershed_mw.flask import Shed

EVENTS = Inbox[str]()
"""What the application says it does, in order."""


def application(**options: Any) -> Flask:
    app = Flask(__name__)
    app.secret_key = "secret"
    shed = Shed(app, **options)

    @app.before_request
    def before() -> Any:
        g.user = request.args.get("user", "nobody")
        if g.user == "banned":
            abort(403)
        return redirect("/login") if g.user == "stranger" else None

    @app.after_request
    def after(response: Any) -> Any:
        response.headers["X-After"] = "yes"
        session["seen"] = True
        return response

    @app.teardown_request
    def teardown(error: BaseException | None) -> None:
        EVENTS.put("teardown")

    @app.get("/page")
    def page() -> str:
        return "page"

    @shed.route("/blocking/<int:number>", protocols=["chat.v2", "chat.v1"])
    def blocking(connection: ThreadConnection, number: int) -> None:
        EVENTS.put("handler")
        for message in connection:
            where = f"{request.path} {current_app.name == app.name} {url_for('page', _external=False)}"
            connection.send(f"{message!s} {number} {g.user} {where}")

    @shed.route("/async/<int:number>")
    async def asynchronous(connection: AsyncConnection, number: int) -> None:
        async for message in connection:
            where = f"{request.path} {current_app.name == app.name} {url_for('page', _external=False)}"
            await connection.send(f"{message!s} {number} {g.user} {where}")

    @shed.route("/background")
    def background(connection: ThreadConnection) -> None:
        connection.on("text", lambda message: connection.send(f"{message} {connection.request.args['user']}"))
        connection.on("end", lambda code, reason: EVENTS.put(f"end {code}"))
        connection.run_in_background()

    @shed.route("/events")
    async def events(connection: AsyncConnection) -> None:
        connection.on("text", connection.send)
        EVENTS.put(f"end {(await connection.run())[0]}")

    @shed.route("/raise")
    def raises(connection: ThreadConnection) -> None:
        raise LookupError("secret")

    @shed.route("/raise-async")
    async def raises_async(connection: AsyncConnection) -> None:
        raise LookupError("secret")

    @shed.route("/choose", accept=False)
    def choose() -> Any:
        if request.args.get("user") is None:
            return "who are you?", 401
        session["name"] = g.user

        def shout(connection: ThreadConnection) -> None:
            for message in connection:
                connection.send(str(message).upper())

        return shout

    @shed.route("/small", connection_options={"max_message_size": 10})
    def small(connection: ThreadConnection) -> None:
        for message in connection:
            connection.send(message)

    return app
