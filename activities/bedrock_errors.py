"""What an error of boto3's means to the tool's caller: each one is classed here, once."""

import re
from dataclasses import dataclass
from typing import Any

from temporalio.exceptions import ApplicationError

from activities.embedding_models import base_model_id, shown_model_id
from activities.errors import Kind, failure

_THROTTLED = {"ThrottlingException", "Throttling", "TooManyRequestsException", "ServiceQuotaExceededException"}
_NOT_READY = {"ModelTimeoutException", "ModelNotReadyException", "ServiceUnavailableException"}
_EXPIRED = {"ExpiredTokenException", "ExpiredToken", "RequestExpired"}
_BAD_CREDENTIALS = {
    "UnrecognizedClientException",
    "InvalidClientTokenId",
    "InvalidSignatureException",
    "SignatureDoesNotMatch",
    "IncompleteSignature",
    "IncompleteSignatureException",
    "MissingAuthenticationToken",
    "MissingAuthenticationTokenException",
    "NotAuthorized",
}
_TOO_LONG = re.compile(
    r"too long|too many (input |total )?(tokens|text bytes)|maxlength|max(imum)? (context|input|tokens)|context window"
)
_CALLS = ("InvokeModel", "Converse", "ConverseStream")


def _scrubbed(message: str) -> str:
    """AWS's words without ARNs, accounts, key ids and whatever they quote, cut to 200 characters."""
    message = re.sub(r'arn:\S+|"[^"]*"|\[[^\]]*\]', "…", message)
    message = re.sub(r"\b(?:[A-Z]{4}[A-Z0-9]{12,}|\d{12})\b", "…", message)
    return " ".join(message.split())[:200].rstrip(".")


@dataclass(frozen=True)
class Called:
    """What was called, as messages tell it.

    Attributes:
        model_id: As the setting has it.
        setting: The environment variable that chose the model.
        region: AWS's name of it; None where it isn't known.
        local: Whether the embedded endpoint was called.
    """

    model_id: str
    setting: str
    region: str | None
    local: bool

    @property
    def service(self) -> str:
        return "The embedded model endpoint" if self.local else "Amazon Bedrock"

    @property
    def model(self) -> str:
        """The model and, where that matters, its region."""
        where = f" in region {self.region}" if self.region and not self.local else ""
        return f"model {shown_model_id(self.model_id)}{where}"


def explain(error: Exception, called: Called) -> ApplicationError:
    """The one failure that `error` is to the rest of the system.

    Args:
        error: What boto3 raised.
        called: What it was calling.
    """
    from botocore import exceptions as aws
    from botocore.eventstream import ParserError
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    match error:
        case aws.ClientError():
            return failure(*_explain_answer(error, called))
        case aws.NoCredentialsError() | aws.NoAuthTokenError():
            return failure(
                "not_configured",
                f"No AWS credentials were found for {called.model}. Give them as boto3 reads them: environment "
                "variables, a profile (AWS_PROFILE), or a role.",
            )
        case aws.PartialCredentialsError() | aws.ProfileNotFound() | aws.ConfigNotFound() | aws.ConfigParseError():
            return failure(
                "not_configured",
                f"The AWS credentials can't be read ({type(error).__name__}). Check AWS_ACCESS_KEY_ID with "
                "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE and the AWS configuration files.",
            )
        case (
            aws.SSOError()
            | aws.LoginError()
            | aws.TokenRetrievalError()
            | aws.CredentialRetrievalError()
            | aws.RefreshWithMFAUnsupportedError()
        ):
            return failure(
                "access_denied",
                f"The AWS credentials can't be renewed ({type(error).__name__}). Sign in again, for single sign-on by "
                "`aws sso login`.",
            )
        case aws.BaseEndpointResolverError() | aws.InvalidRegionError() | aws.EndpointProviderError():
            return failure(*_no_endpoint(called))
        case ValueError() if str(error).startswith("Invalid endpoint"):
            return failure(*_no_endpoint(called))
        case aws.InvalidConfigError() | aws.InvalidRetryConfigurationError() | aws.InvalidProxiesConfigError():
            return failure(
                "not_configured",
                f"The AWS configuration can't be used ({type(error).__name__}). Check the AWS_… environment variables "
                "and configuration files.",
            )
        case aws.ParamValidationError():
            return failure(
                "rejected",
                f"The request to {called.model} isn't a valid one, so it wasn't sent. Check {called.setting}.",
            )
        case aws.SSLError() if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return failure(
                "not_configured",
                f"The TLS certificate of {called.service} can't be verified. Behind a proxy that replaces "
                "certificates, set AWS_CA_BUNDLE to its authority's.",
            )
        case aws.ReadTimeoutError() | aws.ConnectTimeoutError():
            return failure("unavailable", f"{called.service} did not answer for {called.model} in time. Try again.")
        case aws.HTTPClientError() | aws.ConnectionError() | aws.IncompleteReadError() | OSError():
            advice = "Try again." if called.local else "Check the network and AWS_REGION, or try again."
            return failure(
                "unavailable",
                f"{called.service} can't be reached for {called.model} ({type(error).__name__}). {advice}",
            )
        # A stream's own exceptions, which boto3 doesn't wrap.
        case HTTPError():
            return failure("unavailable", f"{called.service}'s answer for {called.model} broke off. Try again.")
        case ResponseParserError() | ParserError():
            return failure("unavailable", f"{called.service}'s answer for {called.model} is garbled. Try again.")
    return failure("rejected", f"The call of {called.model} failed ({type(error).__name__}). Check {called.setting}.")


def _no_endpoint(called: Called) -> tuple[Kind, str]:
    return (
        "not_configured",
        f"There is no usable Amazon Bedrock endpoint for {called.model}. Set AWS_REGION to a region that has the "
        "model, and AWS_ENDPOINT_URL_BEDROCK_RUNTIME, if at all, to a URL.",
    )


def _explain_answer(error: Any, called: Called) -> tuple[Kind, str]:
    """Kind and message of an error that AWS answered with, a `botocore.exceptions.ClientError`."""
    code: str = error.response["Error"].get("Code", "")
    words: str = error.response["Error"].get("Message", "")
    status: int = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    # In a stream the names begin in lower case.
    code = code[:1].upper() + code[1:]
    if code in ("ModelErrorException", "ModelStreamErrorException"):
        # AWS wraps what the model's own server answered; without a status, it is the model that failed.
        status = error.response.get("originalStatusCode") or 500

    if code in _NOT_READY or code == "InternalServerException" or status >= 500 or status == 408:
        return "unavailable", f"{called.service} can't serve {called.model} now ({code}). Try again."
    if code in _THROTTLED or status == 429:
        return (
            "throttled",
            f"{called.service} is throttling {called.model} ({code}). Call it less often, or raise its quota in the "
            "AWS account.",
        )
    if code in _EXPIRED:
        return "access_denied", "The AWS credentials have expired. Renew them, for single sign-on by `aws sso login`."
    if code in _BAD_CREDENTIALS:
        return (
            "access_denied",
            f"AWS doesn't accept the credentials in use ({code}). Check them, and that this computer's clock is right.",
        )
    if error.operation_name not in _CALLS:
        return (
            "access_denied",
            f"The AWS credentials can't be had: {error.operation_name} failed ({code}). Check the profile or role that "
            "they come from.",
        )
    if code == "AccessDeniedException" or status in (401, 403) or "operation not allowed" in words.lower():
        return (
            "access_denied",
            f"Amazon Bedrock refused access to {called.model}: the credentials in use need {_permission(error)} on it, "
            f"and the account access to it there. Grant both, or set {called.setting} to another model.",
        )
    if code == "ResourceNotFoundException" or status == 404:
        return (
            "not_configured",
            f"{called.service} doesn't offer {called.model}, or the account may not use it yet. Check {called.setting} "
            "and AWS_REGION, and the model's page in the Bedrock console.",
        )
    return _explain_validation(words, called, error.operation_name != "InvokeModel")


def _permission(error: Any) -> str:
    streams = error.operation_name == "ConverseStream"
    return "bedrock:InvokeModelWithResponseStream" if streams else "bedrock:InvokeModel"


def _explain_validation(words: str, called: Called, converses: bool) -> tuple[Kind, str]:
    """Kind and message of a ValidationException, which AWS uses for wrong settings and for wrong requests alike."""
    said = words.lower()
    if converses and "image" in said and not _TOO_LONG.search(said):
        return (
            "rejected",
            f"{called.service} can't take the image for {called.model}: {_scrubbed(words)}. Send another image, or "
            f"set {called.setting} to a model that takes images.",
        )
    if "identifier is invalid" in said:
        return "not_configured", f"{called.service} knows no {called.model}. Check {called.setting} and AWS_REGION."
    if "on-demand throughput" in said:
        name = base_model_id(called.model_id)
        return (
            "not_configured",
            f"Amazon Bedrock serves {called.model} by inference profile only. Set {called.setting} to the profile's "
            f"id, such as us.{name} or global.{name}.",
        )
    if "support the model that you provided" in said:
        return "not_configured", f"{called.service} can't use {called.model} this way. Check {called.setting}."
    if "minlength" in said or "blank" in said or "non-empty" in said:
        return "rejected", f"An empty text can't be given to {called.model}. Send some text."
    if _TOO_LONG.search(said):
        return (
            "over_limit" if converses else "rejected",
            f"The text is longer than {called.model} takes. Send less of it.",
        )
    return "rejected", f"{called.service} rejected the request to {called.model}: {_scrubbed(words)}."
