"""gunicorn's worker with `WatershedProtocol`, as users define it."""

from uvicorn_worker import UvicornWorker  # type: ignore[import-untyped]


class Worker(UvicornWorker):  # type: ignore[misc]
    """uvicorn in a gunicorn worker."""

    CONFIG_KWARGS = {"ws": "watershed_mw.uvicorn:WatershedProtocol"}  # noqa: RUF012  # as uvicorn-worker has it
