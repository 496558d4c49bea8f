"""`python -m osrm_exp.export results/EXPERIMENT/rows/CELL.jsonl OUT`; see `files`."""

import sys

from osrm_exp.export.files import main

main(sys.argv[1:])
