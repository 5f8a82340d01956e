"""Checks signatures of AWS requests (Signature Version 4) as the service does, written from AWS's description of it."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from urllib.parse import quote

from shipper.testing.http_server import Request

#: Seconds by which a request's time may differ from the service's.
TOLERANCE = 300

_HEADER = re.compile(
    r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d{8})/([^/]+)/([^/]+)/aws4_request, ?SignedHeaders=([^,]+), ?Signature=(\w+)"
)


class SignatureError(Exception):
    """A request that is not signed as it should be. ``code`` is the service's own."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class Key:
    """A secret access key, and the session token that must come with it, if any."""

    def __init__(self, secret: str, token: str = "") -> None:
        self.secret = secret
        self.token = token


def check(request: Request, *, keys: Mapping[str, Key], service: str, region: str, now: float) -> str:
    """Give the access key that signed the request; ``now`` is in seconds since 1970. Raises SignatureError."""
    headers = request.headers
    found = _HEADER.fullmatch(headers.get("authorization", ""))
    if found is None:
        raise SignatureError("MissingAuthenticationTokenException", "Missing Authentication Token")
    name, day, in_region, for_service, signed, signature = found.groups()
    key = keys.get(name)
    if key is None or headers.get("x-amz-security-token", "") != key.token:
        raise SignatureError("UnrecognizedClientException", "The security token included in the request is invalid.")
    if (in_region, for_service) != (region, service):
        raise SignatureError(
            "InvalidSignatureException", f"Credential should be scoped to a valid region. Expected {region}/{service}."
        )
    stamp = headers.get("x-amz-date", "")
    moment = datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
    if abs(moment - now) > TOLERANCE:
        raise SignatureError("InvalidSignatureException", f"Signature expired: {stamp} is not within 5 min of now")
    names = signed.split(";")
    if not {"host", "x-amz-date"} <= set(names):
        raise SignatureError("InvalidSignatureException", "'Host' and 'X-Amz-Date' must be signed")
    digest = hashlib.sha256(request.body).hexdigest()
    if headers.get("x-amz-content-sha256", digest) != digest:
        raise SignatureError("InvalidSignatureException", "The body's hash is not that of the body")
    canonical = "\n".join(
        [
            request.method,
            # Each part of the path is encoded twice for every service but S3: once in the URL, once here.
            quote(quote(request.path, safe="/-_.~"), safe="/-_.~"),
            "&".join(f"{quote(a, safe='-_.~')}={quote(b, safe='-_.~')}" for a, b in sorted(request.query.items())),
            *(f"{header}:{' '.join(headers.get(header, '').split())}" for header in names),
            "",
            signed,
            digest,
        ]
    )
    scope = f"{day}/{in_region}/{for_service}/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    signing = f"AWS4{key.secret}".encode()
    for part in (day, in_region, for_service, "aws4_request"):
        signing = hmac.new(signing, part.encode(), hashlib.sha256).digest()
    if not hmac.compare_digest(hmac.new(signing, text.encode(), hashlib.sha256).hexdigest(), signature):
        raise SignatureError(
            "InvalidSignatureException",
            "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access"
            " Key and signing method. Consult the service documentation for details.",
        )
    return name
