"""FastAPI: security schemes and parameters are checked before the 101."""

# No `from __future__ import annotations` here: FastAPI could not look up names that are local to a test.
import json
import secrets
from typing import Annotated, Any

import pytest
from fastapi import Cookie, Depends, Header, HTTPException, Path, Query
from fastapi.exceptions import WebSocketRequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import (
    APIKeyCookie,
    APIKeyHeader,
    APIKeyQuery,
    HTTPAuthorizationCredentials,
    HTTPBasic,
    HTTPBasicCredentials,
    HTTPBearer,
    OAuth2PasswordBearer,
    SecurityScopes,
)
from pydantic import BaseModel, Field

from tests.support.fastapi_apps import application, refused, tell, told
from tests.support.threaded_servers import Uvicorn, errors_in
from tests.support.waiting import Inbox
from watershed_mw import AsyncConnection
from watershed_mw.fastapi import Accepted

Connection = Annotated[AsyncConnection, Depends(Accepted())]


# --- security ------------------------------------------------------------------------------------------------


TOKEN = "ann's token"


def checked(token: str) -> str:
    if not secrets.compare_digest(token.encode(), TOKEN.encode()):
        raise HTTPException(403, "this token is not valid")
    return "ann"


def bearer(credentials: Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer())]) -> str:
    return checked(credentials.credentials)


def oauth2(scopes: SecurityScopes, token: Annotated[str, Depends(OAuth2PasswordBearer("/token"))]) -> str:
    return checked(token)


def basic(credentials: Annotated[HTTPBasicCredentials, Depends(HTTPBasic(realm="here"))]) -> str:
    return checked(credentials.password)


def cookie(token: Annotated[str, Depends(APIKeyCookie(name="token"))]) -> str:
    return checked(token)


def header(token: Annotated[str, Depends(APIKeyHeader(name="x-token"))]) -> str:
    return checked(token)


def query(token: Annotated[str, Depends(APIKeyQuery(name="token"))]) -> str:
    return checked(token)


SCHEMES: dict[str, Any] = {
    "bearer": (bearer, {"Authorization": "Bearer {}"}, ""),
    "oauth2": (oauth2, {"Authorization": "Bearer {}"}, ""),
    "cookie": (cookie, {"Cookie": "token={}"}, ""),
    "header": (header, {"X_Token": "{}"}, ""),
    "query": (query, {}, "?token={}"),
}


@pytest.mark.need(9, 10)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_security_scheme_refuses_with_its_own_status(
    uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture, scheme: str
) -> None:
    dependency, fields, query_string = SCHEMES[scheme]
    app = application()

    @app.websocket("/")
    async def endpoint(name: Annotated[str, Depends(dependency)], conn: Connection) -> None:
        await tell(conn, f"hello {name}")

    run = uvicorns.run(app)

    def with_token(token: str) -> tuple[str, dict[str, str]]:
        quoted = token.replace(" ", "%20") if query_string else token
        return "/" + query_string.format(quoted), {name: value.format(token) for name, value in fields.items()}

    stranger = refused(uvicorns.port, "/")
    assert stranger.status == 401
    assert stranger["www-authenticate"]
    assert stranger["content-type"] == "application/json"
    assert json.loads(stranger.body) == {"detail": "Not authenticated"}
    path, changes = with_token("stolen")
    guess = refused(uvicorns.port, path, **changes)
    assert (guess.status, json.loads(guess.body)) == (403, {"detail": "this token is not valid"})
    path, changes = with_token(TOKEN)
    assert told(uvicorns.port, path, **changes) == "hello ann"
    assert [run.outcome() for _ in range(3)] == [None, None, None]
    assert errors_in(caplog.records) == []


@pytest.mark.need(9, 10)
def test_http_basic_authentication_works(uvicorns: Uvicorn) -> None:
    app = application()

    @app.websocket("/")
    async def endpoint(name: Annotated[str, Depends(basic)], conn: Connection) -> None:
        await tell(conn, f"hello {name}")

    uvicorns.run(app)
    stranger = refused(uvicorns.port, "/")
    assert (stranger.status, stranger["www-authenticate"]) == (401, 'Basic realm="here"')
    assert told(uvicorns.port, "/", Authorization="Basic YW5uOmFubidzIHRva2Vu") == "hello ann"


# --- parameters ----------------------------------------------------------------------------------------------


@pytest.mark.need(9)
def test_parameters_are_checked_before_the_101(uvicorns: Uvicorn, caplog: pytest.LogCaptureFixture) -> None:
    app = application()
    called = Inbox[None]()

    @app.websocket("/items/{number}")
    async def endpoint(
        number: Annotated[int, Path(gt=0)],
        conn: Connection,
        size: Annotated[int, Query(le=10)] = 3,
        x_color: Annotated[str, Header(max_length=5)] = "red",
        flavour: Annotated[str | None, Cookie(pattern="^[a-z]+$")] = None,
    ) -> None:
        called.put(None)
        await tell(conn, [number, size, x_color, flavour])

    run = uvicorns.run(app)
    assert told(uvicorns.port, "/items/7") == [7, 3, "red", None]
    assert told(uvicorns.port, "/items/7?size=10", X_Color="blue", Cookie="flavour=mint") == [7, 10, "blue", "mint"]
    for path, changes in (
        ("/items/x", {}),
        ("/items/0", {}),
        ("/items/7?size=11", {}),
        ("/items/7", {"X_Color": "orange"}),
        ("/items/7", {"Cookie": "flavour=MINT"}),
    ):
        # FastAPI closes with 1008 where a page gets a 422, and ASGI turns any close before the accept into a 403.
        assert refused(uvicorns.port, path, **changes).status == 403
    for _ in range(2):
        called.get()
    assert called.empty
    assert [run.outcome() for _ in range(7)] == [None] * 7
    assert errors_in(caplog.records) == []


@pytest.mark.need(9)
@pytest.mark.parametrize(
    "place", ["a dependency before", "a dependency of a dependency", "one that needs it", "a model"]
)
def test_parameters_of_dependencies_are_checked_before_the_101(uvicorns: Uvicorn, place: str) -> None:
    app = application()

    class Filter(BaseModel):
        page: Annotated[int, Field(gt=0)]

    def page(page: Annotated[int, Query(gt=0)]) -> int:
        return page

    def twice(page: Annotated[int, Depends(page)]) -> int:
        return page

    async def with_page(conn: Connection, page: Annotated[int, Query(gt=0)]) -> int:
        return page

    if place == "one that needs it":

        @app.websocket("/")
        async def with_connection(conn: Connection, page: Annotated[int, Depends(with_page)]) -> None:
            await tell(conn, page)

    elif place == "a model":

        @app.websocket("/")
        async def with_model(query: Annotated[Filter, Query()], conn: Connection) -> None:
            await tell(conn, query.page)

    else:
        dependency = page if place == "a dependency before" else twice

        @app.websocket("/")
        async def endpoint(page: Annotated[int, Depends(dependency)], conn: Connection) -> None:
            await tell(conn, page)

    uvicorns.run(app)
    assert told(uvicorns.port, "/?page=2") == 2
    for path in ("/", "/?page=0", "/?page=x"):
        assert refused(uvicorns.port, path).status == 403


def test_the_application_may_respond_to_invalid_parameters(uvicorns: Uvicorn) -> None:
    app = application()

    @app.exception_handler(WebSocketRequestValidationError)
    async def explain(websocket: Any, error: WebSocketRequestValidationError) -> JSONResponse:
        return JSONResponse({"wrong": [one["loc"] for one in error.errors()]}, 422)

    @app.websocket("/{number}")
    async def endpoint(number: int, conn: Connection, size: int = 1) -> None:
        await tell(conn, "never")

    uvicorns.run(app)
    answer = refused(uvicorns.port, "/x?size=y")
    assert (answer.status, json.loads(answer.body)) == (422, {"wrong": [["path", "number"], ["query", "size"]]})


def test_parameters_of_an_overridden_dependency_are_not_required(uvicorns: Uvicorn) -> None:
    app = application()

    def user(token: Annotated[str, Query()]) -> str:
        return token

    @app.websocket("/")
    async def endpoint(user: Annotated[str, Depends(user)], conn: Connection) -> None:
        await tell(conn, user)

    app.dependency_overrides[user] = lambda: "ann"
    uvicorns.run(app)
    assert told(uvicorns.port, "/") == "ann"
