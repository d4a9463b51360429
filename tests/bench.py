"""Every benchmark of the project in one run: each figure beside its floor, or beside a peer on equal shapes.

    python tests/bench.py                          all of it, about a quarter of an hour on two CPU cores
    python tests/bench.py --only sampling --rounds 5 --json bench.json
    python tests/bench.py --device cuda

What is compared is timed in turns, one call of each per round, and a ratio is the median over the rounds of the ratio
within a round: a machine that is busy for a while slows both sides of it. (Training steps, ours and trl's, are timed
one after the other, and their ratio is that of medians.) Models are random: their weights do not change
what a forward costs. With random weights student and teacher agree on nothing, and a proposal is accepted with chance
K / V: K = .88 V stands for a student accepted 88 % of the time.

Peers (transformers, trl) are timed when they can be imported; the project does not need them.
"""

import contextlib
import dataclasses
import functools
import json
import os
import statistics
import sys
import tempfile
import time
import types
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import losses  # noqa: E402
import sample  # noqa: E402
import train_okd  # noqa: E402
import train_skd  # noqa: E402
from lab import command_line, compare, folders, processes, records, tables, training  # noqa: E402
from model import GPT, GPTConfig  # noqa: E402

# name -> student and teacher as (n_layer, n_head, n_embd)
PAIRS = {"small": ((2, 2, 64), (4, 4, 128)), "big": ((3, 4, 96), (6, 4, 256))}
PROMPT = 8  # tokens
BASE = {"batch": 64, "length": 64, "vocabulary": 64}
VARIED = {"batch": (1, 64, 128), "length": (32, 64, 128, 512), "vocabulary": (64, 2048, 50257)}
FLOOR = "floor: student alone + one teacher forward"


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


def sampling(device, rounds, pair="small", gammas=(1, 2, 4, 8, None), accepted=(0.88, 1.0), **changes):
    """All samplers of one pair at one point -> rows, each beside its floor."""
    shape = BASE | changes
    batch, length, vocabulary = shape["batch"], shape["length"], shape["vocabulary"]
    student, teacher = make_pair(pair, vocabulary, PROMPT + length, device)
    prompts, counts = make_prompts(batch, vocabulary), {}
    sequences = torch.tensor([prompt + prompt[:1] * length for prompt in prompts], device=device)

    def seeded():
        return {"generator": torch.Generator().manual_seed(3)}

    def counted(name, function, **options):
        counts[name] = function(student, teacher, prompts, length, **options, **seeded()).counters

    @torch.no_grad()
    def floor():
        sample.generate(student, prompts, length, **seeded())
        # Large logits, some rows at a time.
        for rows in sequences.split(max(1, 2**25 // (vocabulary * sequences.size(1)))):
            teacher(rows)

    functions = {
        "student alone": lambda: sample.generate(student, prompts, length, **seeded()),
        "teacher alone": lambda: sample.generate(teacher, prompts, length, **seeded()),
        FLOOR: floor,
    }
    against = {}
    for share in accepted:
        for gamma in gammas:
            name = f"interleaved, gamma {gamma or 'auto'}, {share:.0%} accepted"
            options = {"gamma": gamma, "accept_top_k": round(share * vocabulary), "keep_features": vocabulary > 2**14}
            functions[name] = functools.partial(counted, name, sample.interleaved_generate, **options)
            against[name] = FLOOR
    name = "lossless speculative, gamma auto"
    functions[name] = functools.partial(
        counted, name, sample.speculative_generate, gamma=None, keep_features=vocabulary > 2**14
    )
    against[name] = "teacher alone"
    rows, times = [], in_turns(functions, rounds, device)
    for name, own in times.items():
        seconds = statistics.median(own)
        row = {"pair": pair, **shape, "what": name, "seconds": seconds, "tokens/s": batch * length / seconds}
        if name in against:
            row |= {"times its floor": ratio(own, times[against[name]])}
        if name in counts:
            figures = dict(zip(sample.COUNTERS, counts[name].tolist()))
            row |= {
                "accepted": figures["accepted"] / figures["judged"],
                "thrown away": figures["discarded"] / figures["proposed"],
            }
        rows.append(row)
    return rows


def samplers(device, rounds):
    """Both pairs at the base point."""
    return [row for pair in PAIRS for row in sampling(device, rounds, pair)]


def arithmetic(shape, vocabulary, length):
    """Operations per written token: weights, head, and attention over a context that is half written on average."""
    layers, _, width = shape
    return 24 * layers * width**2 + 2 * width * vocabulary + 4 * layers * width * (PROMPT + length / 2)


def axes(device, rounds):
    """One axis varied at a time from the base point, on the small pair; time per token against the arithmetic."""
    rows, points = [], [("batch", BASE["batch"])]
    points += [(axis, value) for axis, values in VARIED.items() for value in values if value != BASE[axis]]
    for axis, value in points:
        fewer = 1 if value > 10_000 else rounds
        rows += sampling(device, fewer, gammas=(None,), accepted=(0.88,), **{axis: value})
    base = {row["what"]: row["seconds"] / (row["batch"] * row["length"]) for row in rows[:5]}
    for row in rows:
        row["time per token, times the base's"] = row["seconds"] / (row["batch"] * row["length"]) / base[row["what"]]
        if row["what"] in ("student alone", "teacher alone"):
            shape = PAIRS["small"][row["what"] == "teacher alone"]
            own, unit = (arithmetic(shape, at["vocabulary"], at["length"]) for at in (row, BASE))
            row["arithmetic, times the base's"] = own / unit
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# Training steps: the loops of both scripts, on random models and texts.

STEPS = (  # (script, variant, flags)
    (train_skd, "supervised", ""),
    (train_skd, "supervised", "--cache-teacher dense"),
    (train_skd, "on_policy", ""),
    (train_skd, "skd", ""),
    (train_okd, "okd", ""),
    (train_okd, "okd_skd", ""),
)
PARTS = ("sampling_ms", "teacher_ms", "student_ms", "update_ms")


def train(script, variant, extra, pair, device, steps, folder, batch=64, length=64, vocabulary=64, **changes):
    """Seconds per part of each step of a run of the script's own loop, the first two left out,
    and its memory figure."""
    args = script.parse_flags(
        f"--device {device.type} --variants {variant} --steps {steps + 2} --batch-size {batch} --log-every 1 --jobs 1 "
        f"--accept-top-k {round(0.88 * vocabulary)} --chunk-loss no {extra}".split()
    )[0]
    student, teacher = make_pair(pair, vocabulary, PROMPT + length, device)
    prompts = make_prompts(batch, vocabulary)
    references = [prompt[:1] * length for prompt in prompts]
    # An end token that no model can write: all responses have the same length.
    tokenizer = types.SimpleNamespace(eos_token=None, n_vocab=vocabulary)
    no_examples = types.SimpleNamespace(examples=[])
    random_pair = types.SimpleNamespace(tokenizer=tokenizer, max_new_tokens=length, train=no_examples, hinted={})
    lines = []
    log = types.SimpleNamespace(write=lambda kind, **figures: lines.append(figures) if kind == "step" else None)
    row = script.VARIANTS[variant] if script is train_skd else train_okd.resolve(script.VARIANTS[variant], args)
    row = dataclasses.replace(row, **changes)
    run, cache = compare.make_run(random_pair, args, 1, log), training.TeacherCache
    run.validate = lambda *models: {"score": 0.0, "val_nll": 0.0, "drift": 0.0}  # training alone
    training.TeacherCache = functools.partial(cache, folder=folder)
    try:
        costs, _ = script.distill(row, student.train(), teacher.requires_grad_(False), prompts, references, run)
    finally:
        training.TeacherCache = cache
    return lines[2:], costs["memory_mb"]


def steps(device, rounds):
    """Steps of the base point, split into their parts; the floor is the supervised step, which writes nothing."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for pair in PAIRS:
            floor = None
            for script, variant, extra in STEPS:
                lines, memory = train(script, variant, extra, pair, device, rounds, folder, **BASE)
                parts = {part.replace("_", ", "): statistics.median(line[part] for line in lines) for part in PARTS}
                whole = sum(parts.values())
                floor = floor or whole
                name = f"{script.__name__}: {variant} {extra}".strip()
                row = {"pair": pair, **BASE, "what": name, "step, ms": whole, **parts}
                row |= {"share of sampling": parts["sampling, ms"] / whole, "times supervised": whole / floor}
                rows.append(row | {"memory, MB": memory})
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# Losses at a vocabulary of 50,257: dense against chunks.


@contextlib.contextmanager
def without_stderr():
    """The profiler's own lines go nowhere."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def peak_memory(function, device):
    """The most bytes that a call of function() holds beyond what was there before."""
    cpu = torch.profiler.ProfilerActivity.CPU
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return torch.cuda.max_memory_allocated() - before
    with without_stderr(), torch.profiler.profile(activities=[cpu], profile_memory=True) as profile:
        function()
    held, most = 0, 0
    events = (event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]")
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def large_vocabulary(device, rounds, positions=(8, 64), vocabulary=50257):
    """Forward and backward of a loss from the last hidden states of the big pair, 512 positions."""
    generator = torch.Generator().manual_seed(4)
    (_, _, narrow), (_, _, wide) = PAIRS["big"]

    def drawn(*shape):
        return torch.randn(*shape, generator=generator).to(device)

    features, head = drawn(*positions, narrow).requires_grad_(), drawn(vocabulary, narrow).requires_grad_()
    teacher_features, teacher_head = drawn(*positions, wide), drawn(vocabulary, wide)
    targets = torch.randint(0, vocabulary, positions, generator=generator).to(device)
    rows = []
    for name in ("cross_entropy", "forward_kl", "reverse_kl", "generalized_jsd", "skew_forward_kl", "total_variation"):
        if name == "cross_entropy":
            loss, other = losses.cross_entropy, targets
        else:
            loss, other = losses.DIVERGENCES[name], losses.HiddenStates(teacher_features, teacher_head)

        def dense(loss=loss, other=other):
            judged = other.features @ other.head.T if isinstance(other, losses.HiddenStates) else other
            torch.autograd.grad(loss(features @ head.T, judged).mean(), (features, head))

        def chunked(loss=loss, other=other):
            value = losses.by_chunks(loss, losses.HiddenStates(features, head), other)
            torch.autograd.grad(value.mean(), (features, head))

        times = in_turns({"dense": dense, "chunked": chunked}, rounds, device)
        memory = {"dense": peak_memory(dense, device), "chunked": peak_memory(chunked, device)}
        for how in times:
            row = {"positions": positions[0] * positions[1], "vocabulary": vocabulary, "what": f"{name}, {how}"}
            row |= {"seconds": statistics.median(times[how]), "peak memory, MB": memory[how] / 1e6}
            if how == "chunked":
                row |= {
                    "time, times dense": ratio(times["chunked"], times["dense"]),
                    "memory, times dense": memory["chunked"] / memory["dense"],
                }
            rows.append(row)
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# Peers on equal shapes.


def peer_model(shape, vocabulary, block_size, device):
    """A GPT-2 of transformers with the same layers, heads, width and activation as ours."""
    import transformers

    layers, heads, width = shape
    config = transformers.GPT2Config(
        vocab_size=vocabulary, n_positions=block_size, n_layer=layers, n_head=heads, n_embd=width,
        activation_function="gelu", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config).to(device).eval()


def peers(device, rounds):
    """transformers' generate and assisted generation against the samplers, trl's GKD step against the loop's."""
    try:
        import transformers
    except ImportError:
        print("transformers cannot be imported: no comparison with it, nor with trl (pip install transformers trl)")
        return []
    transformers.utils.logging.set_verbosity_error()
    rows, vocabulary, length = [], BASE["vocabulary"], BASE["length"]
    sampled = {"do_sample": True, "max_new_tokens": length, "min_new_tokens": length, "pad_token_id": 0, "top_k": 0}

    def compare(what, pair, batch, unit, ours, theirs):
        times = in_turns({"deviation": ours, "theirs": theirs}, rounds, device)
        row = {"pair": pair, "batch": batch, "what": what, "against": unit}
        row |= {"ours, s": statistics.median(times["deviation"]), "theirs, s": statistics.median(times["theirs"])}
        rows.append(row | {"theirs / ours": ratio(times["theirs"], times["deviation"])})

    for pair in PAIRS:
        models = make_pair(pair, vocabulary, PROMPT + length, device)
        others = [peer_model(shape, vocabulary, PROMPT + length, device) for shape in PAIRS[pair]]
        for batch in (64, 1):
            prompts = make_prompts(batch, vocabulary)
            ids = torch.tensor(prompts, device=device)
            attended = torch.ones_like(ids)
            for who, model, other in zip(("student", "teacher"), models, others):
                compare(
                    f"generate, {who}", pair, batch, f"transformers {transformers.__version__} generate",
                    lambda model=model: sample.generate(model, prompts, length,
                                                        generator=torch.Generator().manual_seed(3)),
                    lambda other=other: other.generate(ids, attention_mask=attended, **sampled),
                )  # fmt: skip
        compare(
            "lossless speculative", pair, 1, f"transformers {transformers.__version__} assisted generation",
            lambda: sample.speculative_generate(*models, prompts, length, generator=torch.Generator().manual_seed(3)),
            lambda: others[1].generate(ids, attention_mask=attended, assistant_model=others[0], **sampled),
        )  # fmt: skip
    return rows + gkd_steps(device, rounds)


def gkd_steps(device, rounds):
    """trl's GKD, its own functions in the order of its training step, against the same step of train_skd.py."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    try:
        import transformers
        import trl
        from trl.experimental.gkd import GKDTrainer
    except ImportError:
        print("trl cannot be imported: no comparison with it (pip install trl)")
        return []
    rows, batch, vocabulary, length = [], BASE["batch"], BASE["vocabulary"], BASE["length"]
    for pair in PAIRS:
        student, teacher = (peer_model(shape, vocabulary, PROMPT + length, device) for shape in PAIRS[pair])
        optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3, fused=device.type in ("cpu", "cuda"))
        prompts = torch.tensor(make_prompts(batch, vocabulary), device=device)
        references = torch.cat([prompts, prompts[:, :1].expand(-1, length)], 1)
        labels = references.masked_fill(torch.arange(PROMPT + length, device=device) < PROMPT, -100)
        config = transformers.GenerationConfig(
            do_sample=True, max_new_tokens=length, min_new_tokens=length, pad_token_id=0, top_k=0, eos_token_id=None
        )
        trainer = types.SimpleNamespace(
            teacher_model=teacher, beta=0.5, generalized_jsd_loss=GKDTrainer.generalized_jsd_loss
        )

        def step(on_policy, student=student, trainer=trainer, optimizer=optimizer, prompts=prompts, config=config,
                 references=references, labels=labels):  # fmt: skip
            inputs = {"prompts": prompts, "prompt_attention_mask": torch.ones_like(prompts)}
            tokens, attended, wanted = references, torch.ones_like(references), labels
            if on_policy:
                student.eval()
                with torch.no_grad():
                    tokens, attended, wanted = GKDTrainer.generate_on_policy_outputs(student, inputs, config)
                student.train()
            inputs = {"input_ids": tokens, "attention_mask": attended, "labels": wanted}
            GKDTrainer.compute_loss(trainer, student, inputs).backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

        for what, variant, on_policy in (
            ("supervised step", "supervised", False),
            ("on-policy step", "on_policy", True),
        ):
            same = {"loss": "generalized_jsd", "loss_kwargs": {"beta": 0.5}}  # as trl's
            lines, _ = train(train_skd, variant, "", pair, device, rounds, None, **BASE, **same)
            ours = [sum(line[part] for part in PARTS) / 1e3 for line in lines]
            theirs = in_turns({"theirs": functools.partial(step, on_policy)}, rounds, device)["theirs"]
            row = {"pair": pair, "batch": batch, "what": what, "against": f"trl {trl.__version__} GKD"}
            row |= {"ours, s": statistics.median(ours), "theirs, s": statistics.median(theirs)}
            rows.append(row | {"theirs / ours": row["theirs, s"] / row["ours, s"]})
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# The script.

SECTIONS = {"sampling": samplers, "axes": axes, "steps": steps, "losses": large_vocabulary, "peers": peers}


def table(rows):
    """The rows as a Markdown table, words first: counts as they are,
    other numbers with as many digits as they can carry."""

    def text(value):
        if not isinstance(value, float):
            return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
        return f"{value:,.0f}" if value >= 100 else f"{value:.{1 if value >= 20 else 2 if value >= 0.1 else 3}f}"

    names = list(dict.fromkeys(name for row in rows for name in row))
    words = [name for name in names if isinstance(rows[0].get(name), str)]
    names = words + [name for name in names if name not in words]
    return tables.markdown_table([[text(row.get(name)) for name in names] for row in rows], names, left=len(words))


def render(record, names=tuple(SECTIONS)):
    """The tables of these sections of a record as markdown, the machine first;
    a number that is the same in all rows stands above them."""
    about = record["machine"]
    place = (
        f"{about['device_name']}, {about['threads']} thread(s) used"
        if about["device"] == "cpu"
        else about["device_name"]
    )
    commit = (
        f"commit {about['commit'][:10]}{' (modified)' if about['modified'] else ''}" if about["commit"] else "no commit"
    )
    parts = [f"{place}; torch {about['torch']}; {commit}; {about['date']}; medians of {record['rounds']} rounds."]
    for name, section in SECTIONS.items():
        rows = record.get(name)
        if not rows or name not in names:
            continue
        same = [
            key for key, value in rows[0].items() if type(value) is int and all(row.get(key) == value for row in rows)
        ]
        caption = section.__doc__.split("\n")[0].rstrip(".")
        everywhere = ", ".join(f"{key} {rows[0][key]:,}" for key in same)
        caption += f". Everywhere: {everywhere}." if same else "."
        parts.append(f"**{name}**: {caption}")
        parts.append(table([{key: value for key, value in row.items() if key not in same} for row in rows]))
    return "\n\n".join(parts)


def main(argv=None):
    """Run the sections, print their tables, write the JSON."""
    parser = command_line.Parser(prog="tests/bench.py", description="Benchmarks, each figure beside its floor.")
    parser.add_argument(
        "--json", type=os.path.expanduser, metavar="FILE", help="write all figures there, after each section"
    )
    parser.add_argument(
        "--show",
        type=os.path.expanduser,
        metavar="FILE",
        help="print the tables of a file that --json wrote, and run nothing",
    )
    parser.add_argument("--only", default=",".join(SECTIONS), help=f"comma-separated, of {', '.join(SECTIONS)}")
    parser.add_argument("--rounds", type=int, default=5, help="timed calls of everything (default: 5)")
    parser.add_argument("--threads", type=int, default=1, help="of torch, on a CPU (default: 1)")
    parser.add_argument("--device", default="cpu", choices=("auto", "cpu", "cuda", "mps"), help="where (default: cpu)")
    args = parser.parse_args(argv)
    names = args.only.split(",")
    for name in names:
        if name not in SECTIONS:
            parser.error(f"unknown section {name!r}: choose from {', '.join(SECTIONS)}")
    if args.show:
        try:
            return print(render(json.loads(Path(args.show).read_text(encoding="utf-8")), names))
        except (OSError, ValueError, KeyError, TypeError) as error:
            parser.error(f"--show {args.show}: not a file that --json wrote ({error})")
    if args.rounds < 1 or args.threads < 1:
        parser.error("--rounds and --threads must be at least 1")
    try:
        device = processes.pick_device(args.device)
    except ValueError as error:
        parser.error(str(error))
    if args.json and not Path(args.json).parent.is_dir():
        parser.error(f"--json {args.json}: there is no such folder")
    torch.set_num_threads(args.threads)
    processes.use_precision("auto", device)
    record = {"machine": folders.describe_machine(device), "rounds": args.rounds}
    for name in names:
        started = time.perf_counter()
        record[name] = SECTIONS[name](device, args.rounds)
        print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
        if args.json:
            Path(args.json).write_text(json.dumps(records.rounded(record), indent=1) + "\n", encoding="utf-8")
    print("\n" + render(record))


if __name__ == "__main__":
    main()
