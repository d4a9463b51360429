"""SKD's premise: does a teacher judge worse what a poor student has begun? Measured on finished runs of a math task.

    python -m lab.premise FOLDER      what train_skd.py left there -> a table, and FOLDER/premise.json

A response states results, the digit after each "=". At each of them the fixed teacher is asked for its likeliest token,
given everything that stands before; it is right where that is the true result of the operation AS IT IS WRITTEN there.
So it is not blamed for what the writer wrote before, and what is measured is its own judgement on somebody's prefixes:
those of the references, of its own samples, and of the student's samples before and after distillation.

The table is made by lab/claims.py, from premise.json alone.
"""

if __name__ == "__main__":
    import lab.interrupted  # noqa: F401  Ctrl-C while torch is imported ends with one line

import json
import os
from pathlib import Path

import torch

from data import tasks
from lab import command_line, folders, processes
from lab.claims import PREMISE, REFERENCES, STUDENT_START, TEACHER, premise_table
from lab.evaluate import MOST_LOGITS, sample_responses
from lab.reading import ordered_variants, pairs_of, read_runs, sorted_runs
from lab.records import rounded, run_name, write_whole
from lab.rollouts import load_both
from losses import entropy
from sample import pad_sequences

ROWS = 200  # prompts of the test split

# Places where a result is stated, apart: is all that stands before one right so far, or does it hold a mistake already?
SIDES = {"": None, "_on_right": True, "_on_wrong": False}
FIGURES = (  # means over places
    "teacher_right", "teacher_asked", "teacher_neither", "teacher_probability", "result_entropy", "writer_right",
)  # fmt: skip


@torch.no_grad()
def premise(teacher, tokenizer, prompts, responses, batch_size=128):
    """What a teacher makes of responses that somebody wrote -> a dict of figures; a mean over nothing is None.

    prompts: texts of digit chains; responses: lists of ids, the end token included. Shares lie in 0..1, entropies are
    nats per token, at temperature 1.

    responses, tokens: how many there are; teacher_entropy: the teacher's mean entropy over all response tokens; unread:
    written pieces that are no step, such as one cut off, and are passed over. Of the results that the others state:
    places: their number; teacher_right: the share at which the teacher's likeliest token is the true result of the
    operation as written; teacher_asked: at which it is what the prompt's own chain has in this place; teacher_neither:
    at which it is none of the two, which differ after a mistake; teacher_probability: its mean probability of the true
    result; result_entropy: its mean entropy there; writer_right: the share at which the writer itself is right. Ending
    in _on_right and _on_wrong the same for places before which all follows the prompt, and for those with a mistake
    before them.

    To "3+4-2=" somebody writes "3+4=8;8-2=6": the true results are 7 and 6, asked for were 7 and 5, and there is a
    mistake before the second. A teacher that says 6 with .8 everywhere and shares the rest among nine other tokens:
    teacher_right 1/2, 0 on right and 1 on wrong; teacher_asked 0; teacher_neither 1/2, the other way round;
    teacher_probability (.2/9 + .8) / 2 = .411; writer_right 1/2, 0 on right and 1 on wrong.

    Raises ValueError where a result is not a token of its own, or no digit chain asks for it.
    """
    assert len(prompts) == len(responses), f"{len(prompts)} prompts, {len(responses)} responses"
    if strangers := [prompt for prompt in prompts if not prompt.endswith("=")]:
        raise ValueError(f"{strangers[0][:60]!r} is no chain of digits: only those of --task math are looked at")
    device = next(teacher.parameters()).device
    encoded = [tasks.encode_prompt(tokenizer, prompt) for prompt in prompts]
    entropies, unread, places = [], 0, []
    order = sorted(range(len(prompts)), key=lambda i: len(encoded[i]) + len(responses[i]))  # little padding per batch
    longest = max([1] + [len(encoded[i]) + len(responses[i]) for i in order])
    batch_size = min(batch_size, max(1, MOST_LOGITS // (longest * tokenizer.n_vocab)))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        tokens, _ = pad_sequences([encoded[i] + responses[i] for i in batch], device)
        teacher_logits = teacher(tokens[:, :-1])  # (B, T-1, V); row t predicts token t+1
        likeliest, nats = teacher_logits.argmax(-1).cpu(), entropy(teacher_logits).cpu()
        probs = teacher_logits.float().softmax(-1).cpu()
        for row, i in enumerate(batch):
            first = len(encoded[i]) - 1  # the row of logits that predicts the first response token
            entropies += nats[row, first : first + len(responses[i])].tolist()
            for stated in results_at(tokenizer, prompts[i], responses[i]):
                if stated is None:
                    unread += 1
                    continue
                at = first + stated.at
                says, (token,) = tokenizer.decode([int(likeliest[row, at])]), tokenizer.encode(str(stated.true))
                right, asked = says == str(stated.true), says == str(stated.asked)
                figures = right, asked, not (right or asked), probs[row, at, token].item(), nats[row, at].item()
                places.append((stated.right_so_far, *figures, stated.written == stated.true))
    found = {"responses": len(prompts), "tokens": len(entropies), "unread": unread}
    found["teacher_entropy"] = tasks.mean(entropies)
    for side, wanted in SIDES.items():
        chosen = [place for place in places if wanted in (None, place[0])]
        found[f"places{side}"] = len(chosen)
        for column, name in enumerate(FIGURES, 1):
            found[name + side] = tasks.mean(place[column] for place in chosen)
    return found


def results_at(tokenizer, prompt, response):
    """tasks.stated_results of a response, with the index of a result's token in place of its character's.

    ValueError where a result does not begin a token of one digit: then the likeliest token would not be a result.
    """
    texts = [tokenizer.decode([token]) for token in response]  # bytes that are no text, one by one: no digit is in them
    token_at, character = {}, 0
    for index, text in enumerate(texts):
        token_at.setdefault(character, index) if text else None
        character += len(text)
    found = []
    for stated in tasks.stated_results(prompt, "".join(texts)):
        if stated is not None:
            index = token_at.get(stated.at)
            if index is None or len(texts[index]) > 1:
                raise ValueError("the tokenizer joins a result with what stands beside it: digits must be tokens")
            stated = stated._replace(at=index)
        found.append(stated)
    return found


def check_task(folder, about):
    """ValueError with one line unless a checkpoint's task states results of one digit each."""
    task, options = about.get("task"), about.get("task_options", {})
    if task != "math" or isinstance(options, dict) and options.get("stories"):
        what = f"task {str(task)[:40]}" if task != "math" else "word problems, whose results have two digits"
        raise ValueError(
            f"{folder} holds runs of {what}, where no single token is right or wrong: give the folder of a run of "
            "--task math without --stories"
        )


def measure_pair(folder, pair, runs, rows, device):
    """premise() of everybody who wrote, for one pair and its finished runs -> a list of dicts, one per writer."""
    start = str(folder / f"student_start_pair{pair}.pt")
    student, teacher, tokenizer, about = load_both(start, None, device)
    check_task(folder, about)
    examples = tasks.named_in(about, None, rows or ROWS).examples("test")
    if len(examples) < (rows or 1):
        raise ValueError(f"--rows must lie in 1..{len(examples)} (the task's test split), found {rows}")
    models = [(TEACHER, None, teacher), (STUDENT_START, None, student)]
    for run in runs:
        label = run.variant + (" at equal compute" if run.budget == "compute" else "")
        name = run_name(run.variant, run.pair, run.seed, run.budget)
        models.append((label, run.seed, load_both(str(folder / f"{name}.pt"), None, device)[0]))
    encoded = tasks.encode_split(tokenizer, examples)
    texts, budget = [example.prompt for example in examples], about.get("max_new_tokens", 32)
    written = [(REFERENCES, None, encoded.responses)]
    for writer, seed, model in models:
        responses, _ = sample_responses(model, encoded.prompts, budget, tokenizer.eos_token, seed=pair)
        written.append((writer, seed, responses))
    return [{"pair": pair, "writer": writer, "seed": seed} | premise(teacher, tokenizer, texts, responses)
            for writer, seed, responses in written]


def measure_folder(folder, rows=None, device="cpu", say=lambda line: None):
    """What everybody wrote in a folder of finished runs, judged by each pair's teacher -> the dict of premise.json.

    `rows` prompts of the test split (default: ROWS, or all where there are fewer); one sample per prompt at temperature
    1. `say` takes a line per pair. Raises ValueError for a folder without finished runs, without their models, or of
    another task, and for more rows than there are.
    """
    folder = Path(folder)
    runs, unfinished = read_runs(folder)
    if not runs:
        raise ValueError(f"{folder} holds no finished run: let train_skd.py finish first")
    for line in unfinished:
        say(f"note: not counted, unfinished: {line}")
    runs = sorted_runs(runs, ordered_variants(runs))
    measured, fingerprints = [], {}
    for pair in pairs_of(runs):
        own = [run for run in runs if run.pair == pair]
        found = measure_pair(folder, pair, own, rows, device)
        say(f"pair {pair}: {len(found)} writers, {found[0]['responses']} responses each")
        measured += found
        fingerprints[str(pair)] = own[0].header.get("fingerprint")
    return {
        "task": "math",
        "rows": measured[0]["responses"],
        "quick": any(run.header.get("quick") for run in runs),
        "fingerprints": fingerprints,
        "made_on": folders.describe_machine(torch.device(device)),
        "measured": measured,
    }


def main(argv=None):
    """Measure a folder of finished runs; see --help."""
    processes.use_any_terminal()
    parser = command_line.Parser(
        prog="lab.premise", description="Is the teacher worse on the student's prefixes? Of finished runs of math."
    )
    parser.error = lambda message: parser.exit(2, f"lab.premise: {' '.join(message.split())} (see --help)\n")
    parser.add_argument("folder", type=os.path.expanduser, help="the --out folder of a finished run of train_skd.py")
    parser.add_argument("--rows", type=int, help=f"prompts of the test split to look at (default: {ROWS})")
    command_line.add_device_flag(parser)
    args = parser.parse_args(argv)
    if args.rows is not None and args.rows < 1:
        raise ValueError(f"--rows must be at least 1, found {args.rows}")
    torch.set_num_threads(1)  # models this small gain nothing from more
    device = processes.pick_device(args.device)
    if note := processes.device_note(args.device, device.type):
        processes.print_line(note)
    found = measure_folder(args.folder, args.rows, device, processes.print_line)
    path = Path(args.folder) / PREMISE
    write_whole(path, json.dumps(rounded(found), indent=1, allow_nan=False) + "\n")
    print(f"\n{premise_table(found)}\n\nthe figures lie in {path}")
    return 0


if __name__ == "__main__":
    processes.run_tool("lab.premise", main)
