"""The entry, `python -m osrm_exp …` and `osrm-exp …`: a signal is heard from its first moment,
though what is asked for takes a second to load.

`osrm-exp merge …` merges adapters without a config, see `osrm_exp.merging.__main__`; anything else
is `osrm_exp.job`.
"""

import sys

from osrm_exp import signals


def main() -> None:
    """The command line."""
    if sys.argv[1:2] == ["merge"]:
        with signals.one_sentence("nothing was written"):
            from osrm_exp.merging.__main__ import main as merge

            return merge(sys.argv[2:])
    with signals.one_sentence():
        from osrm_exp.job import main as job

        return job()


if __name__ == "__main__":
    main()
