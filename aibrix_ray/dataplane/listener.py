"""The HTTP server of a gateway, made from its arguments."""

from __future__ import annotations

from aibrix_ray.asgi import AsgiApp, Certificate, ConnectionLimits, HttpServer, connections_possible
from aibrix_ray.config.gateway import GatewayArgs


def make_server(app: AsgiApp, args: GatewayArgs) -> HttpServer:
    """Return the server; it does not listen yet.

    Raises:
        ConfigError: the certificate or its key cannot be used.
    """
    http = args.http
    limits = ConnectionLimits(
        max_connections=connections_possible(http.max_connections),
        max_header_bytes=http.max_header_bytes,
        max_url_bytes=http.max_url_bytes,
        upload_timeout_s=http.upload_timeout_s,
        max_body_bytes=args.max_body_bytes,
    )
    certificate = None
    if http.tls is not None:
        certificate = Certificate(http.tls.cert_file, http.tls.key_file)
    return HttpServer(app, keep_alive_s=args.keep_alive_s, limits=limits, certificate=certificate)
