"""Every failure of AWS as one sentence with its cure: the only place that knows botocore's exceptions."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import botocore.exceptions as botocore_errors
import urllib3.exceptions

from neuron_port.errors import NeuronPortError


class DeployError(NeuronPortError):
    """Something on AWS did not go as planned."""


class AwsError(DeployError):
    """AWS refused a call, or could not be reached; `code` is AWS's own word for it ("" when it never answered)."""

    def __init__(self, message: str, *, hint: str | None, code: str) -> None:
        super().__init__(message, hint=hint)
        self.code = code


PERMISSIONS = "docs/deploy.md lists the permissions that each command needs; give them to these credentials."
CREDENTIALS = "Run `aws configure` or `aws sso login`, or set AWS_PROFILE."
QUOTA = (
    "Ask for more in Service Quotas (Amazon EC2, vCPUs of the instance family), or take a smaller instance."
)
CAPACITY = "Try again later, another --instance, another region, or --market on-demand."

DENIED = ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "AuthFailure", "403", "Forbidden")
NOT_FOUND = ("NoSuchBucket", "NoSuchKey", "404", "NotFound")
NO_CAPACITY = ("InsufficientInstanceCapacity", "InsufficientHostCapacity", "InsufficientReservedInstanceCapacity",
               "SpotMaxPriceTooLow", "Unsupported")  # fmt: skip
QUOTA_REACHED = ("VcpuLimitExceeded", "InstanceLimitExceeded", "MaxSpotInstanceCountExceeded", "LimitExceeded",
                 "LimitExceededException", "ServiceQuotaExceededException", "ResourceLimitExceeded",
                 "TooManyBuckets")  # fmt: skip

# AWS's code -> (what it means here, what to do). {message} is AWS's own sentence.
MEANINGS: dict[str, tuple[str, str]] = {
    **dict.fromkeys(DENIED, ("AWS refused: these credentials lack a permission ({message})", PERMISSIONS)),
    **dict.fromkeys(NOT_FOUND, ("it does not exist ({message})", "Check the name, the account and the region.")),
    **dict.fromkeys(NO_CAPACITY, ("AWS has no capacity for it now ({message})", CAPACITY)),
    **dict.fromkeys(QUOTA_REACHED, ("a quota of the account is reached ({message})", QUOTA)),
    **dict.fromkeys(("InvalidAccessKeyId", "InvalidClientTokenId", "SignatureDoesNotMatch",
                     "UnrecognizedClientException", "IncompleteSignature"),
                    ("AWS does not know these credentials ({message})", CREDENTIALS)),
    **dict.fromkeys(("ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"),
                    ("the credentials have expired", CREDENTIALS)),
    **dict.fromkeys(("PermanentRedirect", "301", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"),
                    ("the bucket is in another region ({message})", "Set AWS_REGION to the bucket's region.")),
    **dict.fromkeys(("Throttling", "ThrottlingException", "RequestLimitExceeded", "SlowDown", "TooManyRequestsException"),
                    ("AWS is throttling this account", "Wait a minute and run the same command again.")),
    **dict.fromkeys(("InvalidAMIID.NotFound", "InvalidAMIID.Malformed", "InvalidAMIID.Unavailable"),
                    ("the machine image does not exist in this region ({message})", "Give one with --image.")),
    "ParameterNotFound": ("the region publishes no such Neuron machine image ({message})",
                          "Use a region with Neuron images, or give --image."),
    "OptInRequired": ("the account has not enabled this service or region", "Enable it in the AWS console."),
}  # fmt: skip


@contextlib.contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turn what botocore raises inside the block into an AwsError that says what we were `doing`."""
    try:
        yield
    except botocore_errors.ClientError as error:
        details = error.response.get("Error", {})
        code, message = str(details.get("Code", "")), str(details.get("Message", ""))
        raise from_code(doing, code, message or str(error)) from None
    except (botocore_errors.NoCredentialsError, botocore_errors.PartialCredentialsError,
            botocore_errors.CredentialRetrievalError, botocore_errors.ProfileNotFound,
            botocore_errors.TokenRetrievalError, botocore_errors.UnauthorizedSSOTokenError,
            botocore_errors.SSOTokenLoadError) as error:  # fmt: skip
        sentence = f"Cannot {doing}: no usable AWS credentials ({error})"
        raise AwsError(sentence, hint=CREDENTIALS, code="") from None
    except botocore_errors.NoRegionError:
        raise AwsError(f"Cannot {doing}: no AWS region is set", hint="Set AWS_REGION.", code="") from None
    except (
        botocore_errors.HTTPClientError,
        botocore_errors.ConnectionError,
        urllib3.exceptions.HTTPError,
    ) as error:
        sentence = f"Cannot {doing}: AWS cannot be reached ({error})"
        cure = "Check the network and AWS_ENDPOINT_URL; the same command goes on where it stopped."
        raise AwsError(sentence, hint=cure, code="") from None
    except botocore_errors.BotoCoreError as error:
        raise AwsError(
            f"Cannot {doing}: {error}", hint="Check AWS_PROFILE and the files in ~/.aws.", code=""
        ) from None


def from_code(doing: str, code: str, message: str) -> AwsError:
    """The error for AWS's code; one that is not in the table keeps AWS's own words."""
    meaning, cure = MEANINGS.get(code, ("AWS answered {code}: {message}", None))
    text = meaning.format(message=message.rstrip("."), code=code)
    return AwsError(f"Cannot {doing}: {text}", hint=cure, code=code)
