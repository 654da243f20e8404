"""The document of the gateway's own endpoints says what they say."""

from __future__ import annotations

from typing import Any

import httpx
import jsonschema
import pytest

from aibrix_ray.dataplane.openapi import OWNED, Answer, Endpoint, document
from aibrix_ray.dataplane.owned import owned_app
from tests.dataplane.gateways import MakeGateway


async def test_every_route_is_in_the_table(gateway: MakeGateway) -> None:
    app: Any = owned_app((await gateway()).app)
    served = {route.path.replace(":path}", "}") for route in app.routes}
    assert {endpoint.path for endpoint in OWNED} <= served


async def test_it_is_served(gateway: MakeGateway) -> None:
    answer = await (await gateway()).http.get("/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == document()


def resolved(answer: httpx.Response, path: str) -> tuple[str, dict[str, Any]]:
    """Return the media type and the schema that the document has for this answer."""
    said = document()["paths"][path]["get"]["responses"][str(answer.status_code)]["content"]
    [(media_type, content)] = said.items()
    return media_type, content["schema"] | {"components": document()["components"]}


@pytest.mark.parametrize(
    ("path", "asked", "status"),
    [
        ("/v1/models", "/v1/models", 200),
        ("/v1/models/{model}", "/v1/models/m", 200),
        ("/v1/models/{model}", "/v1/models/other", 404),
        ("/healthz", "/healthz", 200),
        ("/readyz", "/readyz", 200),
        ("/metrics", "/metrics?scope=process", 200),
        ("/metrics", "/metrics?scope=nowhere", 400),
        ("/-/healthz", "/-/healthz", 200),
        ("/-/routes", "/-/routes", 200),
        ("/openapi.json", "/openapi.json", 200),
    ],
)
async def test_each_answer_is_what_the_document_says(
    gateway: MakeGateway, path: str, asked: str, status: int
) -> None:
    answer = await (await gateway()).http.get(asked)
    assert answer.status_code == status
    media_type, schema = resolved(answer, path)
    assert answer.headers["content-type"].split(";")[0] == media_type
    body = answer.json() if media_type == "application/json" else answer.text
    jsonschema.validate(body, schema)


@pytest.mark.parametrize("path", ["/readyz", "/-/healthz"])
async def test_what_a_draining_gateway_says_is_in_it_too(gateway: MakeGateway, path: str) -> None:
    running = await gateway()
    running.app.draining = True
    answer = await running.http.get(path)
    assert answer.status_code == 503
    media_type, schema = resolved(answer, path)
    jsonschema.validate(answer.json() if "json" in media_type else answer.text, schema)


def test_an_endpoint_with_a_body_and_a_key_says_so() -> None:
    endpoint = Endpoint(
        "/admin/v1/things/{thing}",
        "Make a thing.",
        {201: Answer("The thing.", {"type": "object"})},
        method="put",
        body={"type": "object"},
        errors=(401,),
        needs_admin_key=True,
    )
    made = document([*OWNED, endpoint])
    operation = made["paths"]["/admin/v1/things/{thing}"]["put"]
    assert operation["operationId"] == "put_admin_v1_things_thing"
    assert operation["requestBody"]["content"]["application/json"]["schema"] == {"type": "object"}
    assert operation["security"] == [{"AdminKey": []}]
    assert operation["responses"].keys() == {"201", "401"}
    assert made["paths"].keys() > document()["paths"].keys() - {"/admin/v1/things/{thing}"}
