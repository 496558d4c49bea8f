"""Merge methods: pure functions from a stack of low-rank updates to one update (or one a task).

    def method(updates: Mapping[str, LowRank], /, **statistics, *, hyperparameters)
        -> Mapping[str, Update]

`updates[module]` holds `A [task, rank, in]` and `B [task, out, rank]`. A result without a task axis
is one merged model; with a leading task axis it is what each task runs with (EMR). An update is
low rank wherever that is exact, else dense, or routed (SMILE); a result may be a lazy mapping that
computes a module on access.

What holds for all of them, and `tests/merging/test_laws.py` checks for every `conf/merge/*.yaml`:
inputs are not modified; results have the dtype of the factors and repeat bit by bit; at its
`neutral` settings a method returns a single adapter as it is; the order of tasks does not matter,
unless its `laws` say `ordered`; a task of rank 0 is a task of zeros; null directions of the factors
have no say (`ill_posed`: they have), and neither has their gauge, but where the method acts on
factors or says `gauge_dependent`. `idempotent` claims more: T equal adapters give that adapter.

A method is a *rule* on stacks `[task, m, n]` in a *space* (`spaces`: the deltas, the coordinates of
KnOTS, cores, or A and B apart), or works on the factors itself. Elementwise rules read deltas as
`streams` of row blocks and find their thresholds exactly by `selection`, in a few passes.

Whoever calls a method, by a config or by its name here or in its file, gets the same: factors in
float32 at least, whatever comes, and a sentence where they are not finite (`contract.upheld`).
"""

import inspect
import sys

from osrm_exp.merging.api import merge as merge
from osrm_exp.merging.contract import upheld
from osrm_exp.merging.ctm import ctm_ta as ctm_ta
from osrm_exp.merging.ctm import ctm_ties as ctm_ties
from osrm_exp.merging.curvature import fisher as fisher
from osrm_exp.merging.curvature import mats as mats
from osrm_exp.merging.do_merging import do_merging as do_merging
from osrm_exp.merging.doge import doge_ta as doge_ta
from osrm_exp.merging.doge import doge_ta_sgd as doge_ta_sgd
from osrm_exp.merging.dropping import dare as dare
from osrm_exp.merging.dropping import dare_ties as dare_ties
from osrm_exp.merging.dropping import della as della
from osrm_exp.merging.elementwise import magmax as magmax
from osrm_exp.merging.elementwise import ties as ties
from osrm_exp.merging.factors import lorahub as lorahub
from osrm_exp.merging.factors import peft_cat as peft_cat
from osrm_exp.merging.factors import peft_dare_linear as peft_dare_linear
from osrm_exp.merging.factors import peft_dare_ties as peft_dare_ties
from osrm_exp.merging.factors import peft_linear as peft_linear
from osrm_exp.merging.factors import peft_magnitude_prune as peft_magnitude_prune
from osrm_exp.merging.factors import peft_svd as peft_svd
from osrm_exp.merging.factors import peft_ties as peft_ties
from osrm_exp.merging.factors import robustmerge as robustmerge
from osrm_exp.merging.geometry import karcher as karcher
from osrm_exp.merging.geometry import model_stock as model_stock
from osrm_exp.merging.geometry import slerp as slerp
from osrm_exp.merging.linear import average as average
from osrm_exp.merging.linear import individual as individual
from osrm_exp.merging.linear import pretrained as pretrained
from osrm_exp.merging.linear import task_arithmetic as task_arithmetic
from osrm_exp.merging.lora_lego import lora_lego as lora_lego
from osrm_exp.merging.masks import consensus as consensus
from osrm_exp.merging.masks import emr as emr
from osrm_exp.merging.masks import tall_mask as tall_mask
from osrm_exp.merging.opcm import opcm as opcm
from osrm_exp.merging.osrm_posthoc import osrm_posthoc as osrm_posthoc
from osrm_exp.merging.pcb import pcb as pcb
from osrm_exp.merging.regmean import lm_cocktail as lm_cocktail
from osrm_exp.merging.regmean import regmean as regmean
from osrm_exp.merging.regmean import regmean_pp as regmean_pp
from osrm_exp.merging.smile import smile as smile
from osrm_exp.merging.spectral import cart as cart
from osrm_exp.merging.spectral import iso_c as iso_c
from osrm_exp.merging.spectral import iso_cts as iso_cts
from osrm_exp.merging.spectral import iso_cts_fixed_rank as iso_cts_fixed_rank
from osrm_exp.merging.spectral import tsv as tsv
from osrm_exp.merging.spectral_dense import iso_c_dense as iso_c_dense
from osrm_exp.merging.spectral_dense import iso_cts_dense as iso_cts_dense
from osrm_exp.merging.spectral_dense import opcm_dense as opcm_dense
from osrm_exp.merging.spectral_dense import tsv_dense as tsv_dense
from osrm_exp.merging.weighted import breadcrumbs as breadcrumbs
from osrm_exp.merging.weighted import peft_dense_prune as peft_dense_prune
from osrm_exp.merging.weighted import peft_dense_ties as peft_dense_ties
from osrm_exp.merging.weighted import ties_mergekit as ties_mergekit
from osrm_exp.merging.wudi import wudi as wudi
from osrm_exp.merging.wudi import wudi_adam as wudi_adam

for _name, _method in list(globals().items()):
    if inspect.isfunction(_method) and _method not in (merge, upheld):
        globals()[_name] = upheld(_method)
        setattr(sys.modules[_method.__module__], _name, globals()[_name])
