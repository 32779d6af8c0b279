"""What the server says of itself in /openapi.json, and what it does with requests that are made after it."""

from __future__ import annotations

import httpx
import pytest

READS_NO_BODY = {  # POST and nothing in it
    "/v1/models/{name}/load", "/v1/models/{name}/unload", "/v1/images/edits", "/v1/images/variations",
    "/sdapi/v1/interrupt", "/sdapi/v1/skip", "/sdapi/v1/unload-checkpoint", "/sdapi/v1/reload-checkpoint",
    "/sdapi/v1/refresh-checkpoints", "/sdapi/v1/refresh-vae", "/sdapi/v1/refresh-loras",
}  # fmt: skip
EXAMPLES = 6  # requests for each path and method
STEPS = ("steps", "num_inference_steps")


@pytest.fixture(scope="module")
def openapi(server):
    return httpx.get(f"{server.url}/openapi.json").json()


def test_every_body_has_a_schema(openapi):
    for path, methods in openapi["paths"].items():
        if "post" in methods and path not in READS_NO_BODY:
            content = methods["post"]["requestBody"]["content"]
            assert content["application/json"]["schema"], path


def test_every_reference_leads_somewhere(openapi):
    """A body's schema that was made alone has its parts in $defs, which no reader looks for there."""

    def follow(part):
        for name, value in part.items() if isinstance(part, dict) else enumerate(part):
            if name == "$ref":
                found = openapi
                for step in value.removeprefix("#/").split("/"):
                    found = found[step]
            elif isinstance(value, dict | list):
                follow(value)

    follow(openapi)


def test_a_job_is_described_field_by_field(openapi):
    kinds = openapi["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]["schema"]["oneOf"]
    generate, classify = kinds
    assert {"prompt", "steps", "seed", "timeout", "priority"} <= set(generate["properties"])
    assert {"pictures", "top_k", "threshold"} <= set(classify["properties"])
    assert all(kind["additionalProperties"] is False for kind in kinds)


def test_nothing_made_after_the_schema_breaks_the_server(server):
    """Schemathesis' requests, good and bad ones, the same each time: no answer is 5xx, and the server is as before."""
    schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis")
    from hypothesis import HealthCheck, given, settings
    from hypothesis.errors import Unsatisfiable
    from schemathesis import GenerationMode

    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    asked, statuses = 0, set()

    def run(operation, mode):
        @settings(
            max_examples=EXAMPLES, derandomize=True, database=None, deadline=None,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case):
            nonlocal asked
            few_steps(case.body)
            response = case.call(base_url=server.url)
            asked += 1
            statuses.add(response.status_code)
            assert response.status_code < 500, (case.method, case.formatted_path, response.text[:500])

        try:
            ask()
        except Unsatisfiable:  # nothing that could be wrong about it
            assert mode is GenerationMode.NEGATIVE, operation.label

    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            run(operation, mode)
    assert asked > 300
    assert {200, 404, 422} <= statuses
    with server.client() as http:
        assert http.get("/healthz").status_code == 200
        assert server.idle(http)


def few_steps(body):
    """What can be drawn at all shall not take minutes."""
    for part in (body, body.get("parameters")) if isinstance(body, dict) else ():
        for name in STEPS if isinstance(part, dict) else ():
            if isinstance(part.get(name), int):
                part[name] = min(part[name], 2)
