"""Updates: the stack that a merge method receives, the result that it gives, and their algebra.

A task's **delta** is `B @ A`, with `A [rank, in]`, `B [out, rank]` and LoRA's scaling folded into
`B`; `R` is the sum of the tasks' ranks. `*` is no axis for one update and `[task]` for a stack:
what a method receives, or a result that gives every task its own.

An update is `LowRank`, `Dense`, `Routed` or `Gated`. All of them answer the same questions, so that
nobody has to ask which it is: what a module's output becomes (`added`), what `task(i)` runs with,
who shares it (`sharing`), its `rank` (None: dense), the `error` of a truncation. `single` is the
one delta that truncation and export need, or the sentence why there is none.
"""

from osrm_exp.lora.forms import Dense as Dense
from osrm_exp.lora.forms import Gated as Gated
from osrm_exp.lora.forms import Routed as Routed
from osrm_exp.lora.forms import Update as Update
from osrm_exp.lora.linalg import RANK_CUT as RANK_CUT
from osrm_exp.lora.linalg import SVD as SVD
from osrm_exp.lora.linalg import basis as basis
from osrm_exp.lora.linalg import frame as frame
from osrm_exp.lora.linalg import is_finite as is_finite
from osrm_exp.lora.linalg import qr as qr
from osrm_exp.lora.linalg import svd as svd
from osrm_exp.lora.low_rank import Lost as Lost
from osrm_exp.lora.low_rank import LowRank as LowRank
from osrm_exp.lora.low_rank import stack as stack
from osrm_exp.lora.result import Result as Result
from osrm_exp.lora.small import Cores as Cores
from osrm_exp.lora.small import cores as cores
from osrm_exp.lora.small import framed as framed
