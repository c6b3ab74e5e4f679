"""The OpenAPI document says what the server does: schemathesis asks all of it, rightly and wrongly."""

from __future__ import annotations

import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.config import SchemathesisConfig

from export.serving.openapi import document
from export.serving.settings import VERSION, Settings

# as the server of conftest.py is started
SETTINGS = Settings(bundles=("bundle",), max_body=100_000, max_text=5_000, queue=200)
DOCUMENT = document(["tiny"], SETTINGS, VERSION)
# the names of heads, and that a shape fits its data, are not in the document
CHECKS = {
    "negative_data_rejection": {"expected-statuses": [400, 404, 405, 413, 415, 422]},
    "positive_data_acceptance": {"expected-statuses": [200, 422]},
}
CONFIG = SchemathesisConfig.from_dict({"checks": CHECKS})
schema = schemathesis.openapi.from_dict(DOCUMENT, config=CONFIG)


def test_the_server_gives_its_document(server):
    assert server.ask("/openapi.json").json() == DOCUMENT


@schema.parametrize()
@settings(max_examples=10, deadline=None, suppress_health_check=[*HealthCheck])
def test_the_server_does_what_its_document_says(case, server):
    case.call_and_validate(base_url=server.url)
