"""The message and the exit code with which a command ends after an error."""

import shlex
import sys
from typing import NamedTuple

from selfie_cli.cli.console import discard
from selfie_cli.errors import SelfieError, Stopped, is_out_of_memory
from selfie_cli.signals import STOPPING, is_alone


class Failure(NamedTuple):
    message: str
    exit_code: int


def failure(error: BaseException) -> Failure | None:
    """Return what to tell the user about an error; None for a bug."""
    if isinstance(error, SelfieError):
        return Failure(str(error) + (how_to_resume() if isinstance(error, Stopped) else ""), error.exit_code)
    if isinstance(error, KeyboardInterrupt):
        return Failure(f"stopped{how_to_resume()}", 128 + (error.args or STOPPING)[0])
    if isinstance(error, RuntimeError | MemoryError | ImportError) and is_out_of_memory(error):
        remedy = "choose a smaller --batch-size, --image-size or --backbone, or allow more (ulimit -v)"
        return Failure(f"out of memory: {remedy}{how_to_resume()}", 1)
    if isinstance(error, OSError):
        return Failure(of_files(error), 1)
    if isinstance(error, RuntimeError) and not is_alone():
        from selfie_cli.training.distributed import is_lost_process

        if is_lost_process(error):
            return Failure(f"another process of this job has ended, see its error{how_to_resume()}", 1)
    return None


def of_files(error: OSError) -> str:
    try:
        sys.stdout.flush()
    except OSError:
        discard(sys.stdout)
    where = error.filename2 or error.filename  # with two files, the one being written
    line = f"{where or 'reading or writing failed'}: {error.strerror or error}"
    resume = how_to_resume()
    return line + (f". Nothing saved is lost{resume}" if resume else "")


def how_to_resume() -> str:
    """Return the end of a message, with the command that resumes this process's run; '' if there is no run."""
    runs = sys.modules.get("selfie_cli.runs")  # not imported here: memory may have run out
    if runs is None or (run := runs.begun()) is None:
        return ""
    if is_alone():
        return f". Resume with: selfie {run.verb} --resume {shlex.quote(str(run.path))}"
    from selfie_cli.training.distributed import environment

    return f". Resume with: {environment().resume_command(run.verb, run.path)}"
