"""TLS on a listener: what is spoken, renewal under way, and certificates that cannot be used."""

from __future__ import annotations

import asyncio
import logging
import ssl
import subprocess
from pathlib import Path

import pytest
import trustme

from aibrix_ray.asgi import Certificate, Receive, Scope, Send
from aibrix_ray.errors import ConfigError
from tests.asgi.certificates import Files, files_in, trusting
from tests.asgi.conftest import MakeServer, Running, echo
from tests.dataplane.clients import RawClient
from tests.dataplane.waiting import eventually, within


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def files(tmp_path: Path, authority: trustme.CA) -> Files:
    files = files_in(tmp_path)
    files.write(authority.issue_cert("localhost"))
    return files


def load(files: Files) -> Certificate:
    return Certificate(str(files.cert), str(files.key))


async def dial(running: Running, context: ssl.SSLContext) -> RawClient:
    """Connect by TLS."""
    client = RawClient(
        *await within(
            asyncio.open_connection(
                "127.0.0.1", running.port, ssl=context, server_hostname="localhost"
            )
        )
    )
    running.clients.append(client)
    return client


def serial(client: RawClient) -> str:
    """The number of the certificate that the server has shown."""
    shown = client.writer.get_extra_info("ssl_object").getpeercert()
    number: str = shown["serialNumber"]
    return number


async def test_requests_are_served_over_tls_and_say_so(
    serve: MakeServer, files: Files, authority: trustme.CA
) -> None:
    schemes: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        schemes.append(scope["scheme"])
        await echo(scope, receive, send)

    client = await dial(await serve(app, certificate=load(files)), trusting(authority))
    for body in (b"small", b"large" * 200_000):
        client.post(body, "/")
        assert (await client.answer()).body == body
    assert schemes == ["https", "https"]


async def test_http_1_1_is_agreed_on_and_http2_is_not(
    serve: MakeServer, files: Files, authority: trustme.CA
) -> None:
    running = await serve(certificate=load(files))
    context = trusting(authority)
    context.set_alpn_protocols(["h2", "http/1.1"])
    client = await dial(running, context)
    assert client.writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
    assert client.writer.get_extra_info("ssl_object").version() in ("TLSv1.2", "TLSv1.3")


async def test_versions_before_1_2_are_refused(
    serve: MakeServer, files: Files, authority: trustme.CA
) -> None:
    running = await serve(certificate=load(files))
    context = trusting(authority)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await dial(running, context)


async def test_plain_http_on_a_tls_port_gets_nothing_and_harms_nobody(
    serve: MakeServer, files: Files, authority: trustme.CA
) -> None:
    running = await serve(certificate=load(files))
    plain = await running.connect()
    plain.get("/")
    assert b"HTTP" not in await plain.rest()
    client = await dial(running, trusting(authority))
    client.post(b"x", "/")
    assert (await client.answer()).body == b"x"


async def test_a_refusal_reaches_its_client_over_tls_too(
    serve: MakeServer, files: Files, authority: trustme.CA
) -> None:
    running = await serve(certificate=load(files), max_url_bytes=100)
    client = await dial(running, trusting(authority))
    client.get("/" + "a" * 200)
    answer = await client.answer()
    assert (answer.status, answer.error["code"]) == (414, "uri_too_long")


async def test_a_client_that_never_shakes_hands_is_dropped(serve: MakeServer, files: Files) -> None:
    running = await serve(certificate=load(files), upload_timeout_s=0.1)
    silent = await running.connect()
    assert await silent.rest() == b""


async def test_a_renewed_certificate_is_shown_to_new_connections_and_old_ones_go_on(
    serve: MakeServer, files: Files, authority: trustme.CA
) -> None:
    certificate = load(files)
    running = await serve(certificate=certificate, upload_timeout_s=0.2)
    other = trustme.CA()
    old = await dial(running, trusting(authority))
    first = serial(old)
    files.write(other.issue_cert("localhost"))
    await eventually(lambda: certificate._current is not certificate.context, "it is noticed")
    new = await dial(running, trusting(other))
    assert serial(new) != first
    for client in (old, new):
        client.post(b"x", "/")
        assert (await client.answer()).body == b"x"
    with pytest.raises(ssl.SSLCertVerificationError):
        await dial(running, trusting(authority))


def test_a_half_written_renewal_is_not_taken_until_it_is_whole(
    files: Files, authority: trustme.CA, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="aibrix_ray")
    certificate = load(files)
    assert not certificate.refresh()
    old, new = authority.issue_cert("localhost"), authority.issue_cert("localhost")
    files.write(new, key=old)
    assert not certificate.refresh()
    assert "the old one stays" in caplog.text
    caplog.clear()
    assert not certificate.refresh()  # said once, not every second
    assert not caplog.records
    files.write(new)
    assert certificate.refresh()
    assert "took the changed certificate" in caplog.text


def test_a_renewal_by_a_swapped_link_is_noticed(tmp_path: Path, authority: trustme.CA) -> None:
    for name in ("1", "2"):
        (tmp_path / name).mkdir()
        files_in(tmp_path / name).write(authority.issue_cert("localhost"))
    (tmp_path / "now").symlink_to("1")
    certificate = load(files_in(tmp_path / "now"))
    (tmp_path / "next").symlink_to("2")
    (tmp_path / "next").replace(tmp_path / "now")
    assert certificate.refresh()


def test_a_certificate_that_is_gone_for_a_moment_stays_in_use(files: Files) -> None:
    certificate = load(files)
    files.cert.rename(files.cert.with_suffix(".away"))
    assert not certificate.refresh()
    files.cert.with_suffix(".away").rename(files.cert)
    assert certificate.refresh()


# What cannot be used


def test_a_missing_file_is_named_with_its_field(files: Files) -> None:
    files.cert.unlink()
    with pytest.raises(ConfigError, match="No such file") as refused:
        load(files)
    assert refused.value.path == "gateway.args.http.tls.cert_file"
    assert refused.value.value == str(files.cert)


def test_a_relative_path_is_shown_where_it_was_looked_for(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files.cert.parent)
    with pytest.raises(ConfigError, match=f"looked for at {files.cert.parent}/none.key") as refused:
        Certificate("tls.crt", "none.key")
    assert refused.value.path == "gateway.args.http.tls.key_file"


def test_a_key_of_another_certificate_is_said_to_be_that(
    files: Files, authority: trustme.CA
) -> None:
    files.write(authority.issue_cert("localhost"), key=authority.issue_cert("localhost"))
    with pytest.raises(ConfigError, match="do not belong together") as refused:
        load(files)
    assert refused.value.path == "gateway.args.http.tls.key_file"


@pytest.mark.parametrize("name", ["cert", "key"])
@pytest.mark.parametrize("content", [b"", b"not PEM", b"-----BEGIN CERTIFICATE-----\nx\n"])
def test_what_is_no_pem_is_said_to_be_none(files: Files, name: str, content: bytes) -> None:
    getattr(files, name).write_bytes(content)
    with pytest.raises(ConfigError, match="in PEM") as refused:
        load(files)
    assert refused.value.path == f"gateway.args.http.tls.{name}_file"


def test_a_key_with_a_passphrase_is_refused_and_nobody_is_asked_for_it(files: Files) -> None:
    secret = files.key.with_suffix(".secret")
    command = ["openssl", "pkey", "-in", str(files.key), "-aes256", "-passout", "pass:abcd"]
    subprocess.run([*command, "-out", str(secret)], check=True, capture_output=True)
    with pytest.raises(ConfigError, match="without a passphrase"):
        Certificate(str(files.cert), str(secret))
