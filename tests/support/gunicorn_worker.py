"""gunicorn's worker with our class, as a user makes it."""

from uvicorn_worker import UvicornWorker  # type: ignore[import-untyped]


class Worker(UvicornWorker):  # type: ignore[misc]
    """uvicorn in a worker of gunicorn's."""

    CONFIG_KWARGS = {"ws": "watershed_mw.uvicorn:WatershedProtocol"}  # noqa: RUF012  # as uvicorn-worker has it
