"""A Dask scheduler, whose workers joblib uses where a user names one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from spptransfer.errors import ConfigError

# How long a scheduler may take to answer.
SECONDS = 3.0


def check_scheduler(address: str | None, what: str) -> None:
    """Ask a scheduler whether it is there; one on this machine, without an address, will be."""
    try:
        from distributed import Security
        from distributed.comm import connect
    except ImportError as error:
        raise ConfigError(f"{what} needs: pip install 'spptransfer[dask]'") from error
    if address is None:
        return

    async def ask() -> None:
        credentials = Security().get_connection_args("client")
        comm = await asyncio.wait_for(connect(address, **credentials), SECONDS)
        await comm.close()

    try:
        with ThreadPoolExecutor(1) as thread:  # whose event loop is none of a notebook's
            thread.submit(asyncio.run, ask()).result()
    except Exception as error:  # of the network, of an address, of what something else answers
        raise ConfigError(f"{what}: no Dask scheduler answers at '{address}'") from error


@contextmanager
def dask_workers(address: str | None, what: str) -> Iterator[None]:
    """Let joblib use a scheduler's workers, or those of a cluster on this machine."""
    check_scheduler(address, what)
    import joblib
    from distributed import Client

    with Client(address) as client, joblib.parallel_config("dask", client=client):
        yield
