"""Ten minutes on a GPU: what only a GPU can show, step by step. Every finding is printed, and kept in a record.

    python tests/gpu.py                            the record is runs/gpu-DATE.json
    python tests/gpu.py --minutes 20 --json FILE --only quick,bits,jobs
    python tests/gpu.py --device cpu               the same steps in miniature: shows that this script works

A step's commands run in processes of their own, which end when its time is up: one that hangs or dies takes no other
step with it. The record is written after each step. What the machine lacks is skipped, with the reason. Bits that
differ where the same were promised (docs/reliability.md) are a failure, elsewhere a finding. Exit status 0: no failure.
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import sample  # noqa: E402
from lab import command_line, folders, processes, records  # noqa: E402
from model import GPT, GPTConfig, whole_file  # noqa: E402

EVERY_ROW = ("--variants", "all", "--hint-share", "0.5", "--steps", "8")
SAME = ("--variants", "supervised,skd", "--steps", "80", "--jobs", "1")  # a run that is made several times
TINY = "--teacher-steps 3 --start-steps 3 --batch-size 4 --measure 4 --jobs 1".split()


class Skipped(Exception):
    """The machine, or the time, lacks what a step needs."""


class Failed(Exception):
    """A step did not end as it must."""


class Place:
    """Where the steps run: the device, a folder for what they leave, and the time that the step under way has."""

    def __init__(self, device, folder):
        self.device, self.tiny, self.folder = device, device == "cpu", Path(folder)
        self.until, self.findings = 0.0, {}  # of the step under way

    def python(self, *words, expected=(0,), interrupt_at=None):
        """Run a Python command -> what it printed. `interrupt_at`: (a file, a text in it that SIGINT answers)."""
        path, how = self.folder / "output", {"cwd": ROOT, "stderr": subprocess.STDOUT, "start_new_session": True}
        with open(path, "wb") as file:
            process = subprocess.Popen([sys.executable, *words], stdout=file, **how)
        try:
            while (status := process.poll()) is None and time.monotonic() < self.until:
                if interrupt_at and interrupt_at[0].exists() and interrupt_at[1] in interrupt_at[0].read_text("utf-8"):
                    process.send_signal(signal.SIGINT)
                    interrupt_at = None
                time.sleep(0.05)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        printed = path.read_text(encoding="utf-8", errors="replace")
        if status not in expected:
            why = "was ended: its time was up" if status is None else f"ended with status {status}"
            raise Failed("\n".join([f"{' '.join(words[:3])} .. {why}", *printed.splitlines()[-12:]]))
        return printed

    def script(self, name, out, *flags, launcher=(), **options):
        """Run a script of the project in the folder `out` -> (what it printed, seconds)."""
        started = time.monotonic()
        fixed = ["--device", self.device, "--quick", "--out", str(self.folder / out)]
        printed = self.python(*launcher, name, *fixed, *(TINY if self.tiny else []), *flags, **options)
        return printed, round(time.monotonic() - started, 1)

    def child(self, name):
        """Findings of a function of this file, called in a process of its own."""
        printed = self.python(__file__, "--child", name, "--device", self.device)
        self.findings |= json.loads(next(line for line in printed.splitlines()[::-1] if line.startswith("{")))

    def finished(self, out):
        """Names of the runs that a script has finished in the folder `out`."""
        paths = (self.folder / out).glob("*.jsonl")
        return [path.stem for path in paths if '"kind": "final"' in path.read_text(encoding="utf-8")]

    def compare(self, what, one, other, promised):
        """Note whether two folders' runs ended at the same bits; Failed if they did not and that was `promised`."""
        found = [difference(self.folder / one, self.folder / other, name) for name in self.finished(one)]
        self.findings[what] = next(filter(None, found), "the same bits" if found else "no run has finished")
        if promised and (any(found) or not found):
            raise Failed(f"{what}: {self.findings[what]}")


def difference(one, other, name):
    """How two runs of one name differ, from their final students and the steps that they logged; None where not."""
    weights = [torch.load(folder / f"{name}.pt", weights_only=True)["weights"] for folder in (one, other)]
    most = max((weights[0][key] - weights[1][key]).abs().max().item() for key in weights[0])
    if most == 0:
        return None
    lines = [(folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines() for folder in (one, other)]
    losses = [[(x["step"], x["loss"]) for x in map(json.loads, own) if x["kind"] == "step"] for own in lines]
    first = next((step for (step, loss), (_, twin) in zip(*losses) if loss != twin), None)
    return f"{name}: weights differ by up to {most:.2g}, the first logged loss that differs is of step {first}"


# ---------------------------------------------------------------------------------------------------------------------
# The steps, in their order. Each fills place.findings.


def scripts(place, *flags):
    """Both scripts from flags to table: how many runs finished, in what time, and what the others failed with."""
    broken = []
    for script, name in (("train_skd.py", "skd"), ("train_okd.py", "okd")):
        out, few = f"{script} {' '.join(flags)}", ["--variants", name, "--steps", "2"] if place.tiny else []
        try:
            printed, seconds = place.script(script, out, *flags, *few, expected=(0, 1))
        finally:  # also where its time was up
            place.findings[script] = f"{len(place.finished(out))} runs finished"
        place.findings[script] += f" in {seconds} s"
        broken += [line for line in printed.splitlines() if ": run " in line and " failed: " in line]
    if broken:
        raise Failed("\n".join(broken))


def both_devices(device):
    """The noise, which must be the same on the CPU and on the device, and sampled tokens, which may round otherwise."""
    processes.use_precision("fp32", device)
    model, found = GPT(GPTConfig(64, 80, 2, 2, 32)), []
    prompts = [[row + 1] * (1 + row % 5) for row in range(32)]
    for where in (torch.device("cpu"), device):
        table = sample.Noise(torch.Generator().manual_seed(1), torch.arange(32, device=where)).table(64, "student")
        rollout = sample.generate(model.to(where), prompts, 64, generator=torch.Generator().manual_seed(1))
        found.append((table.cpu(), rollout.tokens.cpu()))
    uniforms, tokens = zip(*found)
    if not torch.equal(*uniforms):
        raise SystemExit("the noise is another one on the device: no sampler may be trusted there")
    return {"noise": "equal", "sampled tokens that are equal": torch.eq(*tokens).float().mean().item()}


def waits(place):
    """Where the host waits for the device in a step, by torch's own account."""
    if place.tiny:
        raise Skipped("torch counts waits for CUDA alone")
    place.child("hidden_waits")


def hidden_waits(device):
    """Row -> place -> waits per step: what a run of 32 steps has more than one of 16, which is evaluated as often."""
    import bench  # only here: it takes seconds
    torch.cuda.set_sync_debug_mode(1)  # a warning for each
    found, skd, okd = {}, bench.train_skd, bench.train_okd
    for script, variant in ((skd, "supervised"), (skd, "skd"), (okd, "okd"), (okd, "okd_skd")):
        counted = []
        for steps in (14, 30):  # two more are made
            with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                bench.train(script, variant, "--log-every 100", "small", device, steps, folder)
            told = [x for x in caught if "synchroniz" in str(x.message)]
            counted.append(Counter(f"{Path(x.filename).name}:{x.lineno}" for x in told))
        found[variant] = {where: number / 16 for where, number in (counted[1] - counted[0]).most_common()}
    return found


def bits(place):
    """The same run twice: promised up to 64 tokens in float32 and TF32, looked at beyond."""
    cases = [("math", "auto"), ("summarisation", "auto"), ("math", "bf16"), ("summarisation", "bf16")]
    for task, precision in cases[:1] if place.tiny else cases:
        outs = [f"bits {task} {precision} {number}" for number in (1, 2)]
        for out in outs:
            place.script("train_skd.py", out, *SAME, "--task", task, "--precision", precision)
        place.compare(f"{task}, {precision}", *outs, promised=(task, precision) == cases[0])


def resume(place):
    """A run that is interrupted and resumed, beside one that is not."""
    whole = "bits math auto 1"
    place.finished(whole) or place.script("train_skd.py", whole, *SAME)
    begun = place.folder / "resumed" / "supervised_pair1_seed1.jsonl", '"kind": "eval", "step": 10,'
    place.script("train_skd.py", "resumed", *SAME, interrupt_at=begun, expected=(130,))
    if "resumes after step" not in place.script("train_skd.py", "resumed", *SAME, "--resume")[0]:
        raise Failed("the interrupted run began anew")
    place.compare("after SIGINT and --resume", whole, "resumed", promised=True)


def jobs(place):
    """One run after the other against several at a time: wall time of the whole command, and the bits."""
    number, names, steps = ("2", "sft,skd", "2") if place.tiny else ("4", "supervised,on_policy,gkd,skd", "160")
    place.finished("train_skd.py ") or place.script("train_skd.py", "warm", "--variants", "sft")  # the pair is cached
    for own in ("1", number):
        _, seconds = place.script("train_skd.py", f"jobs {own}", "--variants", names, "--steps", steps, "--jobs", own)
        place.findings[f"--jobs {own}, seconds"] = seconds
    place.compare("side by side", "jobs 1", f"jobs {number}", promised=True)


def bench(place):
    """tests/bench.py."""
    if place.tiny:
        raise Skipped("on a CPU it takes a quarter of an hour: python tests/bench.py")
    file = place.folder / "bench.json"
    try:
        place.python("tests/bench.py", "--device", place.device, "--json", str(file), "--rounds", "3")
    finally:  # it writes after each section
        if file.exists():
            place.findings["figures"] = json.loads(file.read_text(encoding="utf-8"))


def suite(place):
    """The tests, on this machine's CPU and torch."""
    if not importlib.util.find_spec("xdist"):
        raise Skipped("what it needs is not installed: pip install pytest pytest-xdist hypothesis")
    more = ["tests/test_metrics.py"] if place.tiny else ["-n", str(min(8, os.cpu_count()))]
    place.findings["pytest"] = place.python("-m", "pytest", "-q", "-p", "no:cacheprovider", *more).splitlines()[-1]


def torchrun(place):
    """Two processes that share each batch."""
    if not place.tiny and torch.cuda.device_count() < 2:
        raise Skipped("there is one GPU")
    launcher = "-m torch.distributed.run --standalone --nproc-per-node 2".split()
    _, seconds = place.script("train_skd.py", "torchrun", "--variants", "skd", "--steps", "8", launcher=launcher)
    place.findings["two processes"] = f"{len(place.finished('torchrun'))} run finished in {seconds} s"


STEPS = {  # name -> (its share of the time at most, the step)
    "quick": (0.2, scripts),
    "rows": (0.3, lambda place: scripts(place, *EVERY_ROW)),
    "rows_bf16": (0.2, lambda place: scripts(place, *EVERY_ROW, "--precision", "bf16")),
    "noise": (0.1, lambda place: place.child("both_devices")),
    "waits": (0.1, waits),
    "bits": (0.2, bits),
    "resume": (0.1, resume),
    "jobs": (0.2, jobs),
    "bench": (0.3, bench),
    "suite": (0.4, suite),
    "torchrun": (0.2, torchrun),
}


def main(argv=None):
    """Run the steps -> the exit status."""
    parser = command_line.Parser(prog="tests/gpu.py", description="What only a GPU can show, step by step.")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu: a miniature (default: cuda)")
    parser.add_argument("--json", metavar="FILE", type=os.path.expanduser, help="(default: runs/gpu-DATE.json)")
    parser.add_argument("--minutes", type=float, default=10, help="for all steps together (default: 10)")
    parser.add_argument("--only", default=",".join(STEPS), help=f"comma-separated, of {', '.join(STEPS)}")
    parser.add_argument("--child", help="for its own use")
    args = parser.parse_args(argv)
    try:
        device = processes.pick_device(args.device)
    except ValueError as error:
        parser.error(f"{error}; --device cpu shows that the script works")
    if args.child:
        return print(json.dumps({"both_devices": both_devices, "hidden_waits": hidden_waits}[args.child](device)))
    if not set(names := args.only.split(",")) <= set(STEPS) or not 0 < args.minutes < 1e6:
        parser.error(f"--only takes {', '.join(STEPS)}, --minutes a number above 0; found {args.only}, {args.minutes}")
    path = args.json or str(ROOT / f"runs/gpu-{time.strftime('%Y-%m-%d-%H%M%S')}.json")
    gpu = f"{torch.cuda.get_device_properties(device)}, CUDA {torch.version.cuda}" if args.device == "cuda" else None
    record = {"machine": folders.describe_machine(device), "gpu": gpu, "minutes": args.minutes, "steps": {}}
    end = time.monotonic() + 60 * args.minutes
    with tempfile.TemporaryDirectory() as folder:
        place = Place(args.device, folder)
        for name in names:
            found = record["steps"][name] = take(place, name, args.minutes, end)
            with whole_file(path) as file:
                file.write((json.dumps(records.rounded(record), indent=1) + "\n").encode())
            print(f"{name:<10} {found['status']:<8} {found['seconds']:>5.0f} s  {found['why']}", flush=True)
            for key, value in found["findings"].items():
                print(f"    {key}: {'in the record' if key == 'figures' else value}", flush=True)
    count = Counter(found["status"] for found in record["steps"].values())
    print(", ".join(f"{number} {status}" for status, number in count.items()) + f"; the record is {path}")
    if args.device == "cpu":
        print("No GPU was asked: this miniature on a CPU shows that the script works, and nothing about a GPU.")
    return 1 if count["failed"] else 0


def take(place, name, minutes, end):
    """One step, within its share of the minutes and before `end` -> what the record says of it."""
    share, step = STEPS[name]
    started, place.findings, status, why = time.monotonic(), {}, "passed", ""
    place.until = min(started + 60 * minutes * share, end)
    try:
        if started >= end:
            raise Skipped(f"the {minutes:g} minutes are over: --only {name}, or more --minutes")
        step(place)
    except Skipped as reason:
        status, why = "skipped", str(reason)
    except Exception as error:  # a fault of this script must not cost the other findings
        status, why = "failed", str(error) if isinstance(error, Failed) else f"{type(error).__name__}: {error}"
    return {"status": status, "seconds": time.monotonic() - started, "why": why, "findings": place.findings}


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("tests/gpu.py: interrupted; what was found so far is in the record")
