"""Rooms in FastAPI, behind a bearer token: python examples/fastapi_rooms.py [port].

The token is the member's name. Joining ws://.../rooms/{number} sends the list of members; GET /rooms/{number} returns
it as JSON.
"""

import sys
from collections import defaultdict
from typing import Annotated

import uvicorn
from fastapi import APIRouter, Depends, FastAPI, HTTPException
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from watershed_mw import AsyncConnection, ConnectionClosed, WatershedASGI
from watershed_mw.fastapi import Accepted

members: defaultdict[int, dict[str, AsyncConnection]] = defaultdict(dict)


def member(token: Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer())]) -> str:
    if not token.credentials.isalpha():
        raise HTTPException(403, "the token is a name: letters only")
    return token.credentials


Member = Annotated[str, Depends(member)]
Connection = Annotated[AsyncConnection, Depends(Accepted(["rooms.v1"]))]

rooms = APIRouter(prefix="/rooms")


@rooms.get("/{number}")
def list_members(number: int, name: Member) -> list[str]:
    return sorted(members[number])


@rooms.websocket("/{number}")
async def enter(number: int, name: Member, conn: Connection) -> None:
    members[number][name] = conn
    try:
        await conn.send(", ".join(sorted(members[number])))
        async for message in conn:
            if isinstance(message, str) and message in members[number]:
                try:
                    members[number][message].send(f"{name} greets you")
                except ConnectionClosed:
                    pass  # that member is disconnecting
    finally:
        if members[number].get(name) is conn:
            del members[number][name]


app = FastAPI()
app.include_router(rooms)
app.add_middleware(WatershedASGI)

if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    uvicorn.run(app, port=port, ws="watershed_mw.uvicorn:WatershedProtocol")
