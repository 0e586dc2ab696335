"""HTTP servers of tests, each on a port of loopback."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def listening(
    handler: type[BaseHTTPRequestHandler], port: int = 0, *, clients_leave: bool = False
) -> Iterator[int]:
    """Serve on `port`, a free one for 0, until the block ends; yields the port.

    The errors of connections are printed, unless `clients_leave`.
    """
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    if clients_leave:
        server.handle_error = lambda request, address: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
