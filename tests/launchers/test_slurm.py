"""Jobs by `squeue`; a Slurm that runs is in `test_launchers.py`."""

import subprocess

import pytest

pytest.importorskip("submitit", reason='pip install "osrm-exp[slurm]"')

from submitit.slurm.slurm import SlurmJob

from osrm_exp.launchers.slurm import Queue, Watch

SAID = """\
12_0|RUNNING
12_1|CANCELLED
12_2|CONFIGURING
12_3|COMPLETING
13|OUT_OF_MEMORY
14_0|PENDING
"""


@pytest.fixture
def queue(monkeypatch):
    """A watcher of six jobs whose `squeue` says `SAID`, or fails."""
    found = Queue(60)
    for job in ("12_0", "12_1", "12_2", "12_3", "12_4", "13"):
        found.register_job(job)
    found.answer = SAID

    def check_output(line, **options):
        assert line[0] == "squeue"
        if found.answer is None:
            raise subprocess.CalledProcessError(1, line)
        return found.answer.encode()

    monkeypatch.setattr(subprocess, "check_output", check_output)
    return found


def test_a_job_has_ended_where_slurm_says_so_or_knows_it_no_more(queue):
    done = {job: queue.is_done(job) for job in sorted(queue._registered)}
    assert [job for job, is_done in done.items() if is_done] == ["12_1", "12_4", "13"]
    assert queue.get_state("12_4") == "GONE" and queue.get_state("12_2") == "RUNNING"


def test_a_controller_that_does_not_answer_ends_nothing(queue):
    queue.answer = None
    assert not any(queue.is_done(job, mode="force") for job in queue._registered)


@pytest.mark.parametrize("accounts", [True, False, None])
def test_accounts_are_believed_where_there_are_any(accounts, monkeypatch):
    before = SlurmJob.watcher
    monkeypatch.setattr(SlurmJob, "watcher", before)

    def sacct(line, **options):
        if accounts is None:
            raise FileNotFoundError(line[0])
        return subprocess.CompletedProcess(line, 0 if accounts else 1)

    monkeypatch.setattr(subprocess, "run", sacct)
    Watch().on_multirun_start(None)
    assert (SlurmJob.watcher is before) == bool(accounts)
