"""Errors become messages and exit codes: a person reads the one, a scheduler the other."""

from __future__ import annotations

import errno
import os
import signal

import pytest
import typer

from fpe_core import CheckpointError, ParameterError
from jobs.terminal.exits import Terminated, exit_code, guarded, message_of
from pipeline.errors import (
    Interrupted,
    JobError,
    LeaseError,
    LedgerError,
    ManifestError,
    ResourceError,
    StorageError,
    TooManyFailuresError,
)


def code_of(error: BaseException) -> int:
    @guarded
    def command() -> None:
        raise error

    with pytest.raises(typer.Exit) as left:
        command()
    return left.value.exit_code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (JobError("x"), 2),
        (ManifestError("x", ["row 1"]), 2),
        (ParameterError("x"), 2),
        (CheckpointError("x"), 2),
        (StorageError("x"), 1),
        (LedgerError("x"), 1),
        (LeaseError("x"), 75),
        (ResourceError("x"), 1),
        (TooManyFailuresError("x"), 1),
        (Interrupted("x"), 130),
        (KeyboardInterrupt(), 130),
        (Terminated(), 143),
        (RuntimeError("x"), 70),
        (OSError(errno.EROFS, "Read-only file system", "/tmp/fpe-ids"), 1),
        (PermissionError(errno.EACCES, "Permission denied", "/root/.cache"), 1),
        (OSError(errno.ENOSPC, "No space left on device"), 1),
        (FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"), 1),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x"), 70),
    ],
)
def test_exit_codes(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(error) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(("error: ", "stopped: "))
    assert "Traceback" not in printed.err


def test_an_interruption_that_began_with_sigterm_says_so() -> None:
    error = Interrupted("stopped after 3 edits")
    error.__cause__ = Terminated()
    assert exit_code(error) == 143
    assert message_of(error) == "stopped after 3 edits"


def test_sigterm_arrives_as_an_interruption(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)

    @guarded
    def command() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()

    with pytest.raises(typer.Exit) as left:
        command()
    assert left.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert "The same command goes on from here" in capsys.readouterr().err


def test_a_reader_that_has_enough_is_no_error() -> None:
    assert code_of(BrokenPipeError()) == 0


def test_messages_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """No markup, no colours of words, no wrapping of paths."""
    message = "edit.layers[0]: [bold]must[/bold] be :smile: " + "x" * 200
    code_of(JobError(message))
    assert capsys.readouterr().err == f"error: {message}\n"


def test_a_defect_names_the_way_to_its_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code_of(ZeroDivisionError("long\nstory\ndivision by zero"))
    quiet = capsys.readouterr().err
    assert quiet.startswith("error: ZeroDivisionError: division by zero\n")
    assert "fpe --debug" in quiet
    monkeypatch.setattr("sys.argv", ["fpe", "run", "job.yaml", "--debug"])
    code_of(ZeroDivisionError("division by zero"))
    assert "Traceback" in capsys.readouterr().err
