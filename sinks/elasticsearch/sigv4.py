"""Signs requests for Amazon OpenSearch with botocore, which also finds and renews the credentials.

AWS Signature Version 4, service ``es`` or ``aoss``. OpenSearch Serverless demands the hash of the body as a header,
which domains accept too.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import botocore.auth
import botocore.awsrequest
import botocore.exceptions
import botocore.session

from shipper.errors import ParkedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sinks.elasticsearch.config import SigV4Config

_SIGNED = frozenset(["content-type", "content-encoding"])


class Signer:
    """Gives the headers that prove who asks. Credentials are looked up once and renewed by botocore."""

    def __init__(self, config: SigV4Config) -> None:
        """Find the credentials. Raises ParkedError when there are none."""
        self._config = config
        try:
            self._credentials = botocore.session.Session(profile=config.profile or None).get_credentials()
        except botocore.exceptions.BotoCoreError as error:
            raise ParkedError(f"sigv4: {error}", code="credentials") from error
        if self._credentials is None:
            raise ParkedError(
                "sigv4: no AWS credentials found; give the machine a role, or set AWS_ACCESS_KEY_ID and"
                " AWS_SECRET_ACCESS_KEY, or name a profile",
                code="credentials",
            )

    def headers(self, method: str, url: str, body: bytes, headers: Mapping[str, str]) -> dict[str, str]:
        """Give the headers to add to this very request. Raises ParkedError when credentials cannot be renewed."""
        request = botocore.awsrequest.AWSRequest(
            method=method,
            url=url,
            data=body,
            headers={name: value for name, value in headers.items() if name.lower() in _SIGNED},
        )
        request.headers["X-Amz-Content-SHA256"] = hashlib.sha256(body).hexdigest()
        try:
            frozen = self._credentials.get_frozen_credentials()
            botocore.auth.SigV4Auth(frozen, self._config.service, self._config.region).add_auth(request)
        except botocore.exceptions.BotoCoreError as error:
            raise ParkedError(f"sigv4: the AWS credentials cannot be used: {error}", code="credentials") from error
        return dict(request.headers.items())
