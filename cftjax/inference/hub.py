"""To and from the Hugging Face hub: what `cftjax push` uploads, and what `hf:USER/NAME` in the place of a run means.

Tokens come from `hf auth login` or HF_TOKEN alone, and HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE work as the hub's
library says.
"""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from cftjax import extras
from cftjax.inference import packed
from cftjax.text import cut, printable

PREFIX = "hf:"
LOGIN = "log in first (hf auth login), or set HF_TOKEN"


class Repository(NamedTuple):
    """A repository of the hub, and what of it.

    Attributes:
        name: USER/NAME.
        revision: a branch, tag or commit; None for the main branch.
    """

    name: str
    revision: str | None = None

    def __str__(self) -> str:
        """As it is given in the place of a run."""
        return f"{PREFIX}{self.name}" + (f"@{self.revision}" if self.revision else "")


def named(word: str) -> Repository:
    """The repository of USER/NAME or USER/NAME@REVISION, with or without the prefix.

    Raises:
        ValueError: for what can be none.
    """
    name, _, revision = word.removeprefix(PREFIX).partition("@")
    well_formed = re.fullmatch(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", name, re.ASCII)
    if not well_formed or ".." in name or "--" in name or name.endswith((".git", ".", "-")):
        raise ValueError(f"{cut(printable(word))} is no name of a repository: give USER/NAME, or USER/NAME@REVISION")
    return Repository(name, revision or None)


def is_named(where: object) -> bool:
    """Whether something in the place of a run is a repository of the hub."""
    return str(where).startswith(PREFIX)


def download(repository: Repository) -> Path:
    """The folder of a repository's files in the hub's cache, downloaded where they are not there yet, and checked.

    Raises:
        ValueError: in a line, where they cannot be had or are no run of cftjax.
    """
    with told(repository) as library:
        files = [*packed.FILES]
        folder = library.snapshot_download(repository.name, revision=repository.revision, allow_patterns=files)
    packed.check(Path(folder), str(repository))
    return Path(folder)


def check_token() -> None:
    """Refuse to begin without a token, without which nothing can be uploaded.

    Raises:
        ValueError: with how to get one.
    """
    if library().get_token() is None:
        raise ValueError(f"the hub takes nothing without a token: {LOGIN}")


def upload(folder: Path, repository: Repository, *, private: bool, message: str) -> str:
    """Upload a folder's files in one commit, to a repository that is made if need be; the commit's address.

    Args:
        folder: of the files.
        repository: whose revision is a branch, which is made if need be.
        private: whether nobody else may see it; one that is there already must be so.
        message: of the commit.

    Raises:
        ValueError: in a line, where that is not possible.
    """
    with told(repository) as library:
        api = library.HfApi(library_name="cftjax")
        # Where it is not asked for, the account or organisation says which of the two a new one is.
        api.create_repo(repository.name, private=private or None, exist_ok=True)
        if private and not api.model_info(repository.name).private:
            raise ValueError(
                f"{repository} is there already, and public: nothing was uploaded. Make it private, or name another"
            )
        if repository.revision:
            api.create_branch(repository.name, branch=repository.revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository.name, folder_path=folder, revision=repository.revision, commit_message=message
        )
    return str(commit.commit_url)


def library() -> ModuleType:
    """The hub's library.

    Raises:
        ImportError: without the extra, with the command that installs it.
    """
    try:
        import huggingface_hub  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(f"the hub needs huggingface_hub: {extras.install('hub')}") from error
    return huggingface_hub


@contextlib.contextmanager
def told(repository: Repository) -> Iterator[ModuleType]:
    """The hub's library, whose many errors are told in a line each.

    Raises:
        ValueError: with the mend.
    """
    hub = library()
    from huggingface_hub import errors  # pyright: ignore[reportMissingImports]

    # It warns of what is said here anyway, such as that nobody is logged in.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield hub
    except errors.GatedRepoError as error:
        raise ValueError(f"{repository} is shown to nobody who has not asked for it on the hub's page") from error
    except errors.RepositoryNotFoundError as error:
        raise ValueError(f"the hub has no {repository}, or shows it to its owner alone: {LOGIN}") from error
    except errors.RevisionNotFoundError as error:
        raise ValueError(f"{repository}: there is no such branch, tag or commit") from error
    except errors.LocalEntryNotFoundError as error:
        raise ValueError(f"{repository} was not downloaded before, and the hub cannot be reached") from error
    except errors.OfflineModeIsEnabled as error:
        raise ValueError(f"{repository}: HF_HUB_OFFLINE keeps from the hub; unset it") from error
    except errors.HfHubHTTPError as error:
        raise ValueError(refused(repository, error)) from error
    except ValueError:
        raise
    # Errors of the network have a base of another library, which differs between its versions, and may be an OSError.
    except Exception as error:
        if type(error).__module__.startswith(("httpx", "httpcore", "requests", "urllib3")):
            raise ValueError(f"{repository}: the hub cannot be reached ({one_line(error)})") from error
        if not isinstance(error, OSError):
            raise
        raise ValueError(f"{repository}: {one_line(error)}") from error


def refused(repository: Repository, error: Exception) -> str:
    """What the hub's answer means."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return f"{repository}: the hub does not know the token: {LOGIN}"
    if status == 403:
        return f"{repository}: the token may not write there: use one that may, or name a repository of your own"
    return f"{repository}: {one_line(error)}"


def one_line(error: Exception) -> str:
    """The first line of an error."""
    lines = str(error).strip().splitlines()
    return cut(printable(lines[0] if lines else type(error).__name__), 300)
