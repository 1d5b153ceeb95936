#!/usr/bin/env bash
# torch 2.14.1, one thread of a CPU
#
# Behaviour: three operations that estimators of log-determinants need take many times as long as others
# that compute the same: a batched product of short matrices with one column for each sample (baddbmm), as in
# Gram-Schmidt; a norm of order infinity (vector_norm); and random signs (bernoulli_).
# One would have guessed: the same work takes about the same time, whichever of the matrices is transposed,
# and a maximum takes no longer than a sum of squares.
# The times vary; the script fails if a ratio is below 2.
# Output seen:
#   64 samples of 3072 entries less 1 overlap: baddbmm by columns 1959 us, by rows 78 us, ratio 25.1
#   largest entry of 100,352: vector_norm 338 us, abs and amax 22 us, ratio 15.1
#   131,072 random bits: bernoulli_ 1870 us, the bits of int32 108 us, ratio 17.4
source "$(dirname "$0")/venv.sh"
install 'torch==2.14.1'
run <<'PYTHON'
import sys
import time

import torch

torch.set_num_threads(1)
torch.manual_seed(0)


def microseconds(function, runs=30, repeats=7):
    function()
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        for _ in range(runs):
            function()
        best = min(best, (time.process_time() - start) / runs)
    return 1e6 * best


vector, basis, overlap = torch.randn(64, 3072), torch.randn(64, 1, 3072), torch.randn(64, 1, 1)
column, row = vector[:, :, None], vector[:, None]
powers = 2 ** torch.arange(31, dtype=torch.int32)


def by_columns():
    return torch.baddbmm(column, basis.mT, overlap, alpha=-1)


def by_rows():
    return torch.baddbmm(row, overlap, basis, alpha=-1)


def bits():
    words = torch.empty(131_072 // 31 + 1, dtype=torch.int32).random_()
    return (words[:, None] & powers).ne_(0).view(-1)[:131_072].float()


assert torch.allclose(by_columns()[:, :, 0], by_rows()[:, 0], atol=1e-5)
weight = torch.randn(784, 128)
assert torch.linalg.vector_norm(weight, torch.inf) == weight.abs().amax()
cases = {
    "64 samples of 3072 entries less 1 overlap: baddbmm by columns {:.0f} us, by rows {:.0f} us": (
        by_columns,
        by_rows,
    ),
    "largest entry of 100,352: vector_norm {:.0f} us, abs and amax {:.0f} us": (
        lambda: torch.linalg.vector_norm(weight, torch.inf),
        lambda: weight.abs().amax(),
    ),
    "131,072 random bits: bernoulli_ {:.0f} us, the bits of int32 {:.0f} us": (
        lambda: torch.empty(131_072).bernoulli_(0.5),
        bits,
    ),
}
ratios = []
for text, pair in cases.items():
    times = [microseconds(function) for function in pair]
    ratios.append(times[0] / times[1])
    print(f"{text.format(*times)}, ratio {ratios[-1]:.1f}")
sys.exit(min(ratios) < 2)
PYTHON
