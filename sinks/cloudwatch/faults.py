"""What errors of botocore and answers of the service mean for the delivery."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from botocore import exceptions as aws

from shipper.errors import ParkedError, PermanentError, RetryableError, SinkError

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The group or stream is missing.
MISSING = "ResourceNotFoundException"
#: What is to be created is there.
EXISTS = "ResourceAlreadyExistsException"
#: Credentials were taken, the right lacks.
DENIED = frozenset(["AccessDeniedException", "AccessDenied", "UnauthorizedOperation", "NotAuthorized"])

#: Codes of credentials that do not hold: new ones must be looked for.
_LOGIN = frozenset([
    "UnrecognizedClientException", "InvalidClientTokenId", "ExpiredToken", "ExpiredTokenException",
    "InvalidSignatureException", "SignatureDoesNotMatch", "IncompleteSignature", "IncompleteSignatureException",
    "MissingAuthenticationToken", "MissingAuthenticationTokenException", "RequestExpired", "InvalidAccessKeyId",
    "AuthFailure", "OptInRequired", "SubscriptionRequiredException", "RegionDisabledException",
])  # fmt: skip
#: Codes that say "slower" (botocore's own list, retries/throttling, and the service's error reference).
_THROTTLED = frozenset([
    "ThrottlingException", "Throttling", "ThrottledException", "RequestThrottledException", "RequestThrottled",
    "TooManyRequestsException", "RequestLimitExceeded", "BandwidthLimitExceeded", "SlowDown", "PriorRequestNotComplete",
    "ProvisionedThroughputExceededException", "EC2ThrottledException",
])  # fmt: skip
#: Codes of requests that would be refused again.
_REFUSED = frozenset([
    "InvalidParameterException", "InvalidParameterValue", "InvalidParameterCombination", "ValidationException",
    "ValidationError", "SerializationException", "RequestEntityTooLargeException",
])  # fmt: skip
_NO_CREDENTIALS = (
    aws.NoCredentialsError, aws.PartialCredentialsError, aws.CredentialRetrievalError, aws.ProfileNotFound,
    aws.TokenRetrievalError, aws.NoAuthTokenError, aws.SSOError, aws.LoginError, aws.ConfigNotFound,
    aws.ConfigParseError, aws.UnknownCredentialError, aws.InvalidConfigError, aws.MissingDependencyException,
)  # fmt: skip
_BAD_CONFIG = (aws.NoRegionError, aws.InvalidRegionError, aws.EndpointProviderError, aws.BaseEndpointResolverError)
#: The connection was never made, so that nothing can have been taken.
_UNSENT = (aws.EndpointConnectionError, aws.ConnectTimeoutError, aws.ProxyConnectionError)


def sorted_error(error: Exception, what: str, *, unsure: bool = False) -> SinkError:
    """Sort an error. ``what`` names the destination; ``unsure`` says that the request stores, and may be stored twice."""
    if isinstance(error, SinkError):
        return error
    if isinstance(error, aws.ClientError):
        return refusal(error.response, what, unsure=unsure)
    text = f"{what}: {error}"
    if isinstance(error, _NO_CREDENTIALS):
        return ParkedError(
            f"{text}; give this process credentials: a role of the machine, a profile, or access_key_id",
            code="credentials",
        )
    if isinstance(error, _BAD_CONFIG):
        return ParkedError(f"{text}; set region, or check endpoint, use_fips and use_dualstack", code="region")
    if isinstance(error, aws.SSLError):
        if "CERTIFICATE_VERIFY_FAILED" in str(error) or "certificate verify failed" in str(error):
            return ParkedError(
                f"{text}; give the certificate that signed the server's as ca_file, or mend the name in the endpoint",
                code="tls",
            )
        return RetryableError(text, code="tls")
    if isinstance(error, _UNSENT):
        return RetryableError(text, code="connect")
    code = "timeout" if isinstance(error, aws.ReadTimeoutError) else "connection"
    return RetryableError(text, code=code, maybe_taken=unsure)


def refusal(response: Mapping[str, Any], what: str, *, unsure: bool = False) -> SinkError:
    """Sort an answer that is no success."""
    details = response.get("Error", {})
    meta = response.get("ResponseMetadata", {})
    code, status = str(details.get("Code", "")), int(meta.get("HTTPStatusCode", 0))
    text = f"{what}: {status} {code}: {' '.join(str(details.get('Message', '')).split())[:500]}"
    if code in _THROTTLED or status == 429:
        return RetryableError(text, code=code, retry_after=_retry_after(meta))
    if status >= 500 or status in {408, 425}:
        # ServiceUnavailable may come after the events were stored.
        return RetryableError(text, code=code, retry_after=_retry_after(meta), maybe_taken=unsure)
    if code in _LOGIN:
        return ParkedError(
            f"{text}; check the credentials, and this machine's clock if it speaks of a signature or of time", code=code
        )
    if code in DENIED or status in {401, 403, 407}:
        return ParkedError(f"{text}; allow what the sink's page names under rights", code=code)
    if code in {MISSING, EXISTS}:
        return ParkedError(text, code=code)
    if code == "LimitExceededException":
        return ParkedError(f"{text}; raise the quota of log groups, or delete some", code=code)
    if code == "OperationAbortedException":
        return RetryableError(text, code=code)
    if code in _REFUSED or status == 413:
        return PermanentError(text, code=code)
    if 300 <= status < 400 or status in {404, 405, 501}:
        return ParkedError(f"{text}; check region and endpoint", code=code)
    return RetryableError(text, code=code, maybe_taken=unsure)


def stale(error: SinkError) -> bool:
    """Tell whether credentials must be looked for anew before the next request."""
    return error.code in _LOGIN or error.code in {"credentials", "region", "tls", "secret"}


def _retry_after(meta: Mapping[str, Any]) -> float | None:
    """Give seconds: AWS's own header has milliseconds (botocore, retries/standard), a proxy's has seconds."""
    headers = meta.get("HTTPHeaders", {})
    for name, unit in (("x-amz-retry-after", 0.001), ("retry-after", 1.0)):
        value = str(headers.get(name, ""))
        if value.isascii() and value.isdigit():
            return int(value) * unit
    return None
