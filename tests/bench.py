"""Every benchmark of the project in one run: each figure beside its floor, or beside a peer on equal shapes.

    python tests/bench.py                          all of it, some minutes on two CPU cores
    python tests/bench.py --only sampling --rounds 5 --json bench.json
    python tests/bench.py --device cuda

What is compared is timed in turns, one call of each per round, and a ratio is the median over the rounds of the ratio
within a round: a machine that is busy for a while slows both sides of it. Models are random: their weights do not change
what a forward costs. With random weights student and teacher agree on nothing, and a proposal is accepted with chance
K / V: K = .88 V stands for a student accepted 88 % of the time.

Peers (transformers, trl) are timed when they can be imported; the project does not need them.
"""

import argparse
import json
import statistics
import sys
import threading
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import losses  # noqa: E402
import sample  # noqa: E402
import train_okd  # noqa: E402
import train_skd  # noqa: E402
from data import evaluate, runs  # noqa: E402
from model import GPT, GPTConfig, make_optimizer  # noqa: E402

# name -> student and teacher as (n_layer, n_head, n_embd)
PAIRS = {"small": ((2, 2, 64), (4, 4, 128)), "big": ((3, 4, 96), (6, 4, 256))}
PROMPT = 8  # tokens
BASE = {"batch": 64, "length": 64, "vocabulary": 64}
VARIED = {"batch": (1, 64, 128), "length": (32, 64, 128, 512), "vocabulary": (64, 2048, 50257)}
SECTIONS = ("sampling", "axes", "steps", "losses", "peers")


# ---------------------------------------------------------------------------------------------------------------------
# Timing.


def in_turns(functions, rounds, device):
    """name -> seconds per round (list); one call of each per round, after one call of each that does not count."""
    times = {name: [] for name in functions}
    for number in range(rounds + 1):
        for name, function in functions.items():
            synchronise(device)
            before = time.perf_counter()
            function()
            synchronise(device)
            if number:
                times[name].append(time.perf_counter() - before)
    return times


def synchronise(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ratio(own, other):
    """Median over the rounds of own / other."""
    return statistics.median(a / b for a, b in zip(own, other))


def make_pair(name, vocabulary, block_size, device):
    """Random student and teacher of a named pair, in eval mode."""
    generator = torch.Generator().manual_seed(1)
    return [GPT(GPTConfig(vocabulary, block_size, *shape), generator).to(device).eval() for shape in PAIRS[name]]


def make_prompts(batch, vocabulary):
    generator = torch.Generator().manual_seed(2)
    return torch.randint(1, vocabulary, (batch, PROMPT), generator=generator).tolist()


# ---------------------------------------------------------------------------------------------------------------------
# Samplers.


def sampling(pair, device, rounds, gammas=(1, 2, 4, 8, None), **changes):
    """All samplers of one pair at one point -> rows, each beside its floor."""
    shape = BASE | changes
    batch, length, vocabulary = shape["batch"], shape["length"], shape["vocabulary"]
    student, teacher = make_pair(pair, vocabulary, PROMPT + length, device)
    prompts, counts = make_prompts(batch, vocabulary), {}
    sequences = torch.tensor([prompt + prompt[:1] * length for prompt in prompts], device=device)

    def seeded():
        return {"generator": torch.Generator().manual_seed(3)}

    def interleaved(name, gamma, accept_top_k):
        rollout = sample.interleaved_generate(
            student, teacher, prompts, length, gamma=gamma, accept_top_k=accept_top_k, **seeded()
        )
        counts[name] = rollout.counters

    def lossless(name, gamma):
        counts[name] = sample.speculative_generate(student, teacher, prompts, length, gamma=gamma, **seeded()).counters

    @torch.no_grad()
    def floor():
        sample.generate(student, prompts, length, **seeded())
        teacher(sequences)

    functions = {
        "student alone": lambda: sample.generate(student, prompts, length, **seeded()),
        "teacher alone": lambda: sample.generate(teacher, prompts, length, **seeded()),
        "floor: student + one teacher forward": floor,
    }
    for accept_top_k in (round(0.88 * vocabulary), vocabulary):
        for gamma in gammas:
            name = f"interleaved, gamma {gamma or 'auto'}, {'all' if accept_top_k == vocabulary else '88 %'} accepted"
            functions[name] = lambda name=name, gamma=gamma, k=accept_top_k: interleaved(name, gamma, k)
    functions["lossless speculative, gamma auto"] = lambda: lossless("lossless speculative, gamma auto", None)
    times = in_turns(functions, rounds, device)
    rows = []
    for name, own in times.items():
        against = {"student alone": None, "teacher alone": None, "floor: student + one teacher forward": None}.get(
            name, "teacher alone" if name.startswith("lossless") else "floor: student + one teacher forward"
        )
        row = {"pair": pair, **shape, "what": name, "seconds": statistics.median(own)}
        row["tokens_per_second"] = batch * length / row["seconds"]
        if against:
            row |= {"against": against, "ratio": ratio(own, times[against])}
        if name in counts:
            counted = dict(zip(sample.COUNTERS, counts[name].tolist()))
            row |= {
                "accept_rate": counted["accepted"] / counted["judged"],
                "discarded_share": counted["discarded"] / counted["proposed"],
            }
        rows.append(row)
    return rows


def axes(device, rounds):
    """One axis varied at a time from the base point, on the small pair; time per token against the arithmetic."""
    rows = []
    for axis, values in VARIED.items():
        for value in values:
            if value != BASE[axis]:
                fewer = rounds if axis == "batch" or value < 2048 else max(1, rounds // 2)
                rows += sampling("small", device, fewer, gammas=(None,), **{axis: value})
    return rows


def main(argv=None):
    """Run the sections, print their tables, write the JSON."""
    parser = argparse.ArgumentParser(prog="tests/bench.py", description="Benchmarks, each figure beside its floor.")
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    parser.add_argument("--only", default=",".join(SECTIONS), help=f"comma-separated sections of {', '.join(SECTIONS)}")
    parser.add_argument("--rounds", type=int, default=5, help="timed calls of everything (default: 5)")
    parser.add_argument("--threads", type=int, default=1, help="of torch, on a CPU (default: 1)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps (default: cpu)")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    for pair in PAIRS:
        for row in sampling(pair, device, args.rounds):
            print(f"{row['pair']:<6}{row['what']:<45}{row['tokens_per_second']:>10.0f}{row.get('ratio', 0):>8.2f} {row.get('accept_rate', 0):.2f} {row.get('discarded_share', 0):.2f}", flush=True)


if __name__ == "__main__":
    main()
