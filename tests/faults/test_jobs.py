"""Jobs of two processes under torchrun, one of which is killed."""

import os
import signal
from pathlib import Path
from random import Random

import pytest
from processes import Job, Reference, go_on, has_finished, made_by, states

WITHIN = 60.0  # seconds in which a job has to end that has lost a process
KINDS = ("pretrain (selfie)", "pretrain (byol)", "finetune")
OFTEN = ("--save-every", 0)


def check_told(job: Job, run: Path, verb: object) -> None:
    """Check that the job said how to go on, and showed no traceback of ours."""
    errors = [line for line in job.said.splitlines() if line.startswith("error: ")]
    resume = f"torchrun --nproc-per-node 2 -m selfie_cli {verb} --resume {run}"
    assert any(resume in line for line in errors), f"nobody was told how to go on: {job.said[:2000]}"
    assert "selfie_cli/" not in job.said, f"a traceback was shown: {job.said[:2000]}"
    assert "frame #" not in job.said, f"a traceback was shown: {job.said[:2000]}"


@pytest.mark.fault("SIGKILL of one of two processes at any moment", times=20)
def test_kill_one(undisturbed: Reference, tmp_path: Path, chance: Random) -> None:
    whole, run = undisturbed(chance.choice(KINDS), 2), tmp_path / "run"
    with Job(*whole.words, *OFTEN, "--out", run, folder=tmp_path) as job:
        job.until(lambda: len(job.ranks()) == 2)
        if chance.random() < 0.3:
            job.wait(chance.uniform(0, whole.seconds))
        else:  # before the first state there is nothing to lose, for most of the time
            job.until(lambda: states(run))
            job.wait(chance.uniform(0, 1))
        at_work, rank = states(run), chance.randrange(2)
        try:
            os.kill(job.ranks()[rank], signal.SIGKILL)
        except (LookupError, OSError):
            job.end(seconds=WITHIN)
            assert made_by(run) == whole.made
            return
        assert job.end(seconds=WITHIN) != 0
    if at_work:
        check_told(job, run, whole.words[0])
    if has_finished(run):
        assert made_by(run) == whole.made
    else:
        go_on(run, whole)
