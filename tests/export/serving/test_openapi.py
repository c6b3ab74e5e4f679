"""The OpenAPI document matches the server: schemathesis sends valid and invalid requests to every path."""

from __future__ import annotations

import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.config import SchemathesisConfig

from export.serving.openapi import openapi_document
from export.serving.settings import Settings

# the settings of the servers in conftest.py
SETTINGS = Settings(bundles=("bundle",), max_body=100_000, max_text=5_000, queue=200)
DOCUMENT = openapi_document(["tiny"], SETTINGS)
# the document has neither the names of heads nor the relation of shape and data
CHECKS = {
    "negative_data_rejection": {"expected-statuses": [400, 404, 405, 413, 415, 422]},
    "positive_data_acceptance": {"expected-statuses": [200, 422]},
}
CONFIG = SchemathesisConfig.from_dict({"checks": CHECKS})
schema = schemathesis.openapi.from_dict(DOCUMENT, config=CONFIG)
of_labels = schemathesis.openapi.from_dict(openapi_document(["packed"], SETTINGS), config=CONFIG)


def test_the_server_serves_its_document(server):
    assert server.send("/openapi.json").json() == DOCUMENT


@schema.parametrize()
@settings(max_examples=10, deadline=None, suppress_health_check=[*HealthCheck])
def test_the_server_behaves_as_documented(case, server):
    case.call_and_validate(base_url=server.url)


@of_labels.include(path=["/predict", "/v1/systemone"]).parametrize()
@settings(max_examples=20, deadline=None, suppress_health_check=[*HealthCheck])
def test_the_server_of_a_packed_bundle_behaves_as_documented(case, packed_server):
    case.call_and_validate(base_url=packed_server.url)
