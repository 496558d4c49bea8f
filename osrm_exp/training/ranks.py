"""One function in several processes of this machine, the ranks of a torch process group.

The calling process takes no part: it watches the ranks, hears the signals, and ends all of them
where one fails, which a process that waits for another rank's tensors could not.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch.multiprocessing as mp
from torch import Tensor, distributed, get_num_threads, set_num_threads
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from osrm_exp import signals
from osrm_exp.tasks.prompts import UNCOUNTED

TOLD = (ValueError, OSError)  # what is a sentence for a user, and not a bug of ours


def run(ranks: int, function: Callable[..., None], *arguments: Any) -> None:
    """`function(*arguments)` in every rank; what it is given is pickled.

    Raises:
        ValueError, OSError: what a rank raised first.
        OSError: a rank was killed.
    """
    failures = mp.get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        passed = (ranks, Path(folder, "ranks"), failures, function, arguments)
        started = mp.start_processes(
            _rank, passed, ranks, join=False, daemon=True, start_method="spawn"
        )
        try:
            while not started.join(grace_period=0):
                pass
        except ProcessRaisedException:
            if failures.empty():
                raise
            raise failures.get() from None
        except ProcessExitedException as error:
            raise OSError(
                f"a process of trainer.devices={ranks} was lost ({error}), most likely for want of "
                "memory; the same command continues"
            ) from None
        finally:
            _end(started.processes)


def _rank(
    rank: int, ranks: int, meeting: Path, failures: Any, function: Callable, arguments: tuple
) -> None:
    signals.leave_to_parent()
    logging.disable(logging.CRITICAL if rank else logging.INFO)  # what one says all would say
    set_num_threads(max(1, get_num_threads() // ranks))
    os.environ["LOCAL_RANK"] = str(rank)  # Lightning takes this process for what it is
    store = distributed.FileStore(str(meeting), ranks)  # no port that another cell could take
    distributed.init_process_group(store=store, rank=rank, world_size=ranks)
    try:
        function(*arguments)
    except TOLD as error:
        failures.put(error if isinstance(error, OSError) else ValueError(str(error)))
        raise
    finally:
        distributed.destroy_process_group()


def _end(processes: list[BaseProcess]) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        process.join()


def first() -> bool:
    """Whether this process is the one that writes: rank 0, or the only one."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def share(batch: dict[str, Tensor], rank: int, ranks: int) -> dict[str, Any]:
    """The rows of a batch that a rank computes: every `ranks`-th.

    `weight` is by what its mean loss is to be multiplied, so that the mean over ranks is the mean
    over the batch; it is 0 where a rank has no label to learn from, as with fewer rows than ranks.
    """
    if ranks == 1:
        return batch
    own = {key: tensor[rank::ranks] for key, tensor in batch.items()}
    if not (counted := _counted(own["labels"])):
        return {**batch, "weight": 0.0}
    return {**own, "weight": counted * ranks / _counted(batch["labels"])}


def _counted(labels: Tensor) -> int:
    """Over how many labels a mean loss goes: rows, or of texts that are written the tokens."""
    return int((labels[:, 1:] != UNCOUNTED).sum()) if labels.dim() > 1 else len(labels)


def gathered(own: list[Any]) -> list[Any]:
    """What all ranks hold, in the order of ranks."""
    if not distributed.is_initialized():
        return own
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, own)
    return [one for part in found for one in part]
