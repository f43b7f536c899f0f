"""The Hugging Face hub, or a mirror of it (HF_ENDPOINT), as a repository. The only file that imports huggingface_hub.

The library finds the endpoint and the token (HF_ENDPOINT, HF_TOKEN, or a login), makes the requests and reads the
answers; its own downloads do not continue a file after a kill, so the bytes take model.downloads' way.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Final

import msgspec

from sawyer.errors import (
    CheckpointCorrupt,
    MissingExtra,
    NotAuthorised,
    RefusedError,
    SawyerError,
    UnknownModel,
    UnreachableError,
)
from sawyer.model.downloads import HubId, Listing
from sawyer.model.endpoint import shown_endpoint, without_secrets

if os.environ.get("HF_ENDPOINT"):
    shown_endpoint(os.environ["HF_ENDPOINT"])  # the library would fail on some while it is imported

try:
    from huggingface_hub import HfApi, constants, errors, get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status
except ImportError as error:
    raise MissingExtra(
        "huggingface_hub is not installed, and this needs it", hint="pip install 'sawyer[hub]'"
    ) from error

_TIMEOUT_S: Final = 20.0
"""Without a byte for so long, the line counts as broken."""
_HEADERS: Final = {"user-agent": f"sawyer/{version('sawyer')}"}
_HTTP_ERROR: Final = errors.HfHubHTTPError.__mro__[1]
"""The base of all errors of the library's HTTP client."""
_WHOLE: Final = 200
_FORBIDDEN: Final = frozenset({401, 403})
_NOT_FOUND: Final = 404
_NO_MORE: Final = 416
_TROUBLE: Final = frozenset({408, 429})
_SERVER_ERROR: Final = 500

constants.HF_HUB_DISABLE_TELEMETRY = True  # else each request would say what else is installed, and who started us


class Hub:
    """One repository on the hub."""

    def __init__(self, source: HubId, endpoint: str = "") -> None:
        """Raises UsageError for an endpoint that is no address."""
        self.source = source
        self._address: str = endpoint or constants.ENDPOINT
        """Where it is asked for; by default as the library finds it. It may hold a password."""
        self.endpoint = shown_endpoint(self._address)
        """The same, as it may be printed."""

    def listing(self) -> Listing:
        """The files in its top folder. Raises UnknownModel, NotAuthorised, RefusedError, UnreachableError."""
        with _told(self):
            try:
                info = HfApi(endpoint=self._address, headers=_HEADERS).model_info(
                    self.source.repo, revision=self.source.revision, files_metadata=True, timeout=_TIMEOUT_S
                )
                files = [
                    {
                        "name": each.rfilename,
                        "size_bytes": each.size,
                        "sha256": each.lfs.sha256 if each.lfs else "",
                        "git_sha1": each.blob_id,
                    }
                    for each in info.siblings or ()
                    if "/" not in each.rfilename and not each.rfilename.startswith(".")
                ]
                return msgspec.convert({"source": self.source, "commit": info.sha, "files": files}, Listing)
            except errors.HfHubHTTPError:
                raise
            except (ValueError, TypeError, KeyError, AttributeError) as error:  # whatever a stranger's JSON lacks
                said = f"{type(error).__name__}: {without_secrets(str(error))}"
                raise UnreachableError(
                    f"{self.endpoint} does not answer as a hub does ({said})",
                    hint="Check HF_ENDPOINT, and that no proxy or login page answers in its place.",
                ) from error

    def stream(self, commit: str, name: str, start: int, end: int) -> Generator[bytes, None, None]:
        """The bytes of a file from `start` to `end`. A redirect is followed, without the token if it leads elsewhere.
        Raises UnreachableError (trying again may help), NotAuthorised, CheckpointCorrupt, RefusedError."""
        url = hf_hub_url(self.source.repo, name, revision=commit, endpoint=self._address)
        wanted = {"accept-encoding": "identity", "range": f"bytes={start}-{end - 1}"}
        headers = build_hf_headers(headers=_HEADERS | wanted)
        with (
            _told(self, name),
            get_session().stream("GET", url, headers=headers, timeout=_TIMEOUT_S, follow_redirects=True) as response,
        ):
            hf_raise_for_status(response)
            skip = start if response.status_code == _WHOLE else 0  # a server that knows no ranges
            for chunk in response.iter_bytes():
                yield chunk[skip:]
                skip = max(0, skip - len(chunk))


@contextmanager
def _told(hub: Hub, name: str = "") -> Iterator[None]:
    """What the library raises in here becomes an error of ours, which says what to do."""
    try:
        yield
    except errors.OfflineModeIsEnabled as error:
        raise UnreachableError(
            "huggingface_hub is in offline mode", hint="Unset HF_HUB_OFFLINE, or name a folder that holds the files."
        ) from error
    except errors.HfHubHTTPError as error:
        raise _answered(hub, name, error) from error
    except _HTTP_ERROR as error:
        reason = "" if "Bearer" in str(error) else f": {without_secrets(str(error))}"  # never the token
        raise UnreachableError(
            f"cannot reach {hub.endpoint} ({type(error).__name__}{reason})",
            hint="Check the connection, and HF_ENDPOINT. The same command goes on where it stopped.",
        ) from error


def _answered(hub: Hub, name: str, error: errors.HfHubHTTPError) -> SawyerError:
    """By what the hub says in its headers, else by the status."""
    status, source, endpoint = error.response.status_code, hub.source, hub.endpoint
    licence = (
        f"Accept its licence at {endpoint}/{source.repo}, make a token at {endpoint}/settings/tokens, and set HF_TOKEN."
    )
    if isinstance(error, errors.GatedRepoError):
        return NotAuthorised(f"{source.repo} is gated: only who accepted its licence gets its files", hint=licence)
    if isinstance(error, errors.RevisionNotFoundError):
        return UnknownModel(
            f"{source.repo} has no revision {source.revision}", hint="Name a branch, a tag or a commit of it."
        )
    if isinstance(error, errors.RemoteEntryNotFoundError) or status == _NO_MORE:
        return CheckpointCorrupt(
            f"{endpoint} has less of {name} than it lists", hint="Try again later, or name another revision."
        )
    if isinstance(error, errors.RepositoryNotFoundError) or status == _NOT_FOUND:
        return UnknownModel(
            f"there is no repository {source.repo} at {endpoint}, or it is private (nor is there such a folder here)",
            hint="Check the name. For a private one set HF_TOKEN to a token that may read it.",
        )
    if status in _FORBIDDEN:
        return NotAuthorised(f"{endpoint} refuses {name or source.repo} ({status})", hint=licence)
    if status in _TROUBLE or status >= _SERVER_ERROR:
        return UnreachableError(
            f"{endpoint} has trouble, or asks us to wait ({status})",
            hint="Start the same command again later: it goes on where it stopped.",
        )
    return RefusedError(f"{endpoint} refuses {name or source.repo} ({status})", hint="Check the name and HF_ENDPOINT.")
