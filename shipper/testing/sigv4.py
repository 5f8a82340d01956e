"""Checks AWS Signature Version 4 of a request, written from AWS's description of the process, not from a client's code."""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from shipper.testing.http_server import Request

_HEADER = re.compile(r"AWS4-HMAC-SHA256 Credential=([^,]+), ?SignedHeaders=([^,]+), ?Signature=([0-9a-f]{64})")


def check(request: Request, access: str, secret: str, region: str, service: str) -> str:
    """Say what is wrong with the signature, or nothing."""
    found = _HEADER.fullmatch(request.headers.get("authorization", ""))
    if found is None:
        return "Missing Authentication Token"
    credential, signed, signature = found.groups()
    key_id, _, scope = credential.partition("/")
    stamp = request.headers.get("x-amz-date", "")
    wanted = f"{stamp[:8]}/{region}/{service}/aws4_request"
    if key_id != access:
        return "The security token included in the request is invalid."
    if scope != wanted:
        return f"Credential should be scoped to {wanted}, not {scope}"
    digest = hashlib.sha256(request.body).hexdigest()
    if request.headers.get("x-amz-content-sha256") != digest:
        return "The body's hash is missing or not that of the body"
    names = signed.split(";")
    if "host" not in names or "x-amz-date" not in names:
        return "host and x-amz-date must be signed"
    # Each part of the path is encoded twice for every service but S3: once in the URL, once here.
    path = quote(quote(request.path, safe="/-_.~"), safe="/-_.~")
    query = "&".join(
        f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}" for name, value in sorted(request.query.items())
    )
    headers = "".join(f"{name}:{' '.join(request.headers.get(name, '').split())}\n" for name in names)
    canonical = f"{request.method}\n{path}\n{query}\n{headers}\n{signed}\n{digest}"
    text = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    key = ("AWS4" + secret).encode()
    for part in (stamp[:8], region, service, "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    if not hmac.compare_digest(hmac.new(key, text.encode(), hashlib.sha256).hexdigest(), signature):
        return "The request signature we calculated does not match the signature you provided."
    return ""
