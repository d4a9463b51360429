"""The laws of methods.py: every row's loss by hand, what each Method keeps,
and that its state is all there is to it.

FORMULAS says for each row of VARIANTS, once more and slowly, what a row of a batch costs: without padding, token by
token, in float64 and with plain probabilities. What a method draws or learns is read from its buffers, everything else
is written out here: nothing in this part calls losses.py, features.py or a method.
"""

import copy
import dataclasses
import functools
import io
import itertools
import math
import types

import pytest
import torch
import torch.nn.functional as F
from test_sample import FALSE_ALARM, assert_follows
from tiny import (  # noqa: F401  (unmeasured is a fixture)
    SIZES,
    WRITING,
    Watched,
    distilled,
    flags,
    generator,
    matrix,
    moved_apart,
    prompts_of,
    same_weights,
    sharp_gpt,
    teacher_of,
    tiny_pair,
    unmeasured,
    weights_of,
)
from torch.nn.attention import SDPBackend, sdpa_kernel

import features
import methods
import train_skd
from data.tasks import make_task
from lab import compare, groups
from lab.pairs import Pair, PairSettings, encode_task
from losses import Tokens
from model import GPT, GPTConfig, learning_rate, make_optimizer
from sample import DATASET, STUDENT, TEACHER, Noise, rollout_from_ids
from train_skd import VARIANTS

# ---------------------------------------------------------------------------------------------------------------------
# One row of a batch, as a formula sees it.


class Row:
    """A prompt and its response of n tokens, in float64 and without padding;
    `at` are the positions that predict these."""

    def __init__(self, variant, student, teacher, prompt, response, sources, place, state, read=None):
        self.variant, self.student, self.teacher, self.place, self.state = variant, student, teacher, place, state
        self.response, self.by_teacher = response, [source == TEACHER for source in sources]
        self.inputs = torch.tensor(prompt + response)[:-1]
        self.at = range(len(prompt) - 1, len(prompt) + len(response) - 1)
        self.read = prompt if read is None else read  # what the teacher reads in place of the prompt

    @functools.cached_property
    def student_probs(self):
        return self.student(self.inputs[None])[0, list(self.at)].softmax(-1)

    @functools.cached_property
    def teacher_probs(self):
        with torch.no_grad():
            teacher_logits = self.teacher(torch.tensor(self.read + self.response)[None, :-1])[0]
        return teacher_logits[len(self.read) - 1 :].softmax(-1)

    def double(self, name):
        """What the method keeps under this name."""
        return self.state[name].double()


def kl(first, second):
    return (first * (first / second).log()).sum()


def ce(own, token):
    return -own[token].log()


def softened(probs, temperature):
    return probs ** (1 / temperature) / (probs ** (1 / temperature)).sum()


def entropy(probs):
    return -(probs * probs.log()).sum()


def ranked(probs):
    """Tokens, the likeliest first."""
    return sorted(range(len(probs)), key=lambda token: -probs[token].item())


def at_each(function):
    """function(student's probabilities, teacher's, token, whether the teacher wrote it) at
    each position: row -> (n,)."""

    def formula(row):
        positions = zip(row.student_probs, row.teacher_probs, row.response, row.by_teacher)
        return torch.stack([function(own, other, token, by) for own, other, token, by in positions])

    return formula


word_level = at_each(lambda own, other, token, by: kl(other, own))
label = at_each(lambda own, other, token, by: ce(own, token))
variation = at_each(lambda own, other, token, by: (own - other).abs().sum() / 2)


def mixed(first, second, share=0.5):
    return share * first + (1 - share) * second


def ab(first, second, alpha=0.2, beta=0.7):
    total = alpha + beta
    terms = first**alpha * second**beta - alpha / total * first**total - beta / total * second**total
    return -terms.sum() / (alpha * beta)


def amid(own, other, token, by):
    assistant = mixed(other**0.25, own**0.25) ** 4
    return ab(other, assistant / assistant.sum())


def adaptive(own, other, token, by):
    head, mass = [], 0.0
    for best in ranked(other):
        if mass < 0.5:
            head.append(best)
            mass += other[best].item()
    gap = (own - other).abs().detach()
    share = gap[head].sum() / gap.sum()
    return share * kl(other, own) + (1 - share) * kl(own, other)


def decoupled(own, other, token, by):
    two_way, rest = [], []
    for probs in (other, own):
        others = torch.stack([prob for place, prob in enumerate(probs) if place != token])
        two_way.append(torch.stack([probs[token], others.sum()]))
        rest.append(others / others.sum())
    return 0.5 * ce(own, token) + 0.5 * (kl(*two_way) + 2 * kl(*rest))


def standardized(own, other, token, by):
    scores = [(probs.log() - probs.log().mean()) / probs.log().std() for probs in (other, own)]
    return 0.1 * ce(own, token) + 0.9 * 4 * kl(*((score / 2).softmax(-1) for score in scores))


def logit_differences(own, other, token, by):
    total = 0.0
    for leader in (other, own):
        pairs_of_best = list(itertools.combinations(ranked(leader)[:8], 2))
        total += kl(
            *((torch.stack([(x[i] / x[j]).log() for i, j in pairs_of_best]) / 3).softmax(-1) for x in (other, own))
        )
    return total


def buckets(own, other, token, by):
    best = ranked(other)[:8]
    rest = [v for v in range(len(other)) if v not in best]
    return kl(*(torch.cat([probs[best], probs[rest].sum()[None]]) for probs in (other, own)))


def underrated(own, other, token, by):
    """ToDi: what each token's share of both models says of it is held constant."""
    share = (other / (other + own)).detach()
    return (share * other * (other / own).log() + (1 - share) * own * (own / other).log()).sum()


def preferred(own, other, token, by):
    better, worse = int(other.argmax()), int(own.argmax())
    ratio = own[better] * other[worse] / (own[worse] * other[better])
    return 0.5 * ce(own, token) + 0.5 * ((1 + 1 / ratio).log() - math.log(2))


def all_pairs(first):
    """CSD: every pair of tokens, weighted by `first` and by the student."""

    def one(own, other, token, by):
        weights = {"student": own, "teacher": other}[first].detach()[:, None] * own.detach()
        gap = (own / other).log()
        return (weights * (gap[:, None] - gap).square()).sum() / 4

    return at_each(one)


def best_tokens(whose):
    """Reverse KL of both models on eight tokens, made to sum to 1."""

    def one(own, other, token, by):
        best = ranked({"student": own, "teacher": other}[whose])[:8]
        return kl(own[best] / own[best].sum(), other[best] / other[best].sum())

    return at_each(one)


def at_chosen(row, per_token, scores, share):
    """The losses at the positions with the highest scores, so that their mean is the row's."""
    n = len(scores)
    kept = sorted(range(n), key=lambda t: (-scores[t], t))[: math.ceil(share * n - 1e-9)]
    return torch.stack([per_token[t] * (n / len(kept)) * (t in kept) for t in range(n)])


def least_sure(row):
    return at_chosen(row, word_level(row), [entropy(own).item() for own in row.student_probs], 0.2)


def learnable(row):
    """AdaSPEC: forward KL where it exceeds the distilled copy's most."""
    copied = copy.deepcopy(row.student)
    copied.load_state_dict(
        {name[len("reference.") :]: x for name, x in row.state.items() if name.startswith("reference.")}
    )
    with torch.no_grad():
        known = copied(row.inputs[None])[0, list(row.at)].softmax(-1)
    per_token = word_level(row)
    gains = [loss.item() - kl(other, own).item() for loss, other, own in zip(per_token, row.teacher_probs, known)]
    return at_chosen(row, per_token, gains, 0.4)


def sharpened(row):
    """Veto: the teacher times a power of the student, a constant."""

    def one(own, other, token, by):
        target = other * own.detach() ** row.state["beta"]
        return kl(target / target.sum(), own)

    return at_each(one)(row)


def unsure_or_wrong(row):
    scores = []
    for own, other in zip(row.student_probs.detach(), row.teacher_probs):
        middle = mixed(own, other)
        wrong = (kl(own, middle) + kl(other, middle)).item() / (2 * math.log(2))
        scores.append(1 - (1 - entropy(own).item() / math.log(len(own))) * (1 - wrong))
    return at_chosen(row, at_each(lambda own, other, token, by: kl(own, other))(row), scores, 0.5)


def by_rank(own, other, token, by):
    sides = (probs[ranked(probs)] for probs in (own, other))
    return 0.4 * ce(own, token) + 0.6 * (next(sides) - next(sides)).abs().sum()


def correlation(x, y):
    x, y = x - x.mean(), y - y.mean()
    return (x * y).sum() / (x.square().sum() * y.square().sum()).sqrt()


def correlations(own, other, token, by):
    best = ranked(other)[:32]
    numbers, orders = [], []
    for probs in (own, other):
        numbers.append(probs[best] / probs[best].sum())
        z = probs[best].log()
        before = ((z - z[:, None]) / 0.1).sigmoid().masked_fill(torch.eye(32, dtype=torch.bool), 0.0)
        orders.append(1 + before.sum(-1))
    doubt = entropy(other) / math.log(len(other))
    apart = (1 - doubt) * (1 - correlation(*numbers)) + doubt * (1 - correlation(*orders))
    return 0.5 * ce(own, token) + 0.5 * apart


def compared(row):
    """CKD: half the squared differences of differences to the teacher's, over all ordered pairs of positions;
    half cross-entropy."""
    V, n = row.student_probs.size(-1), len(row.response)
    own, other = (x - x.mean(-1, keepdim=True) for x in (row.student_probs.log(), row.teacher_probs.log()))
    total = sum(((own[i] - own[j]) - (other[i] - other[j])).square().sum() / V for i in range(n) for j in range(n))
    labels = torch.stack([ce(probs, token) for probs, token in zip(row.student_probs, row.response)])
    return 0.5 * (total / n**2).expand(n) + 0.5 * labels


def writer_jsd(own, other, token, by):
    mix = mixed(own, other)
    return kl(other, mix) if by else kl(own, mix)


def writer_skew(own, other, token, by):
    return kl(other, mixed(other, own, 0.1)) if by else kl(own, mixed(own.detach(), other, 0.1))


def advantage(own, other, token, by):
    return -(other[token] / own[token]).log().detach() * own[token].log()


def beyond_the_teacher(row):
    """ExOPD: a quarter more of what the teacher is above the student's start."""
    start = copy.deepcopy(row.student)
    start.load_state_dict({name: row.double(f"student_at_start.{name}") for name in start.state_dict()})
    with torch.no_grad():
        start_probs = start(row.inputs[None])[0, list(row.at)].softmax(-1)
    losses = []
    for own, other, begun, token in zip(row.student_probs, row.teacher_probs, start_probs, row.response):
        reward = 1.25 * (other[token] / begun[token]).log() - (own[token] / begun[token]).log().detach()
        losses.append(-reward * own[token].log())
    return torch.stack(losses)


def early_first(row):
    """IW-OPD: weight 1.5 where no token has strayed yet, 1 where all that will has."""
    tokens = list(zip(row.student_probs, row.teacher_probs, row.response))
    sizes = [abs((other[token] / own[token]).log().item()) for own, other, token in tokens]
    weights = [1.5 - 0.5 * sum(sizes[:t]) / sum(sizes) for t in range(len(sizes))]
    return torch.stack([weight * advantage(*three, False) for weight, three in zip(weights, tokens)])


def gated(row):
    def one(own, other, token, by):
        return kl(other, own) * (ranked(other).index(int(own.argmax())) < row.variant.loss_kwargs["accept_top_k"])

    return at_each(one)(row)


def unsure(row):
    threshold = row.variant.loss_kwargs.get("threshold", 0.5)
    return at_each(lambda own, other, token, by: kl(own, other) + kl(other, own) * (entropy(other) > threshold))(row)


def moving_target(row):
    """TAID: the geometric mean of both, the student's part a constant."""

    def one(own, other, token, by):
        target = own.detach() ** (1 - row.double("share")) * other ** row.double("share")
        return kl(target / target.sum(), own)

    return at_each(one)(row)


def noise_of(row, width):
    """(n, width) uniforms of this row, one at a time: a function of the step's seed,
    the place in the batch and the position."""
    noise = Noise(generator(row.state["step_seed"]), torch.tensor([row.place]))
    return torch.stack(
        [torch.cat([noise(torch.tensor([t * width + i]), "target") for i in range(width)]) for t in row.at]
    ).double()


def drawn_targets(row):
    """RS-KD: twelve tokens of each position, by the inverse of the teacher's cumulative distribution."""
    losses = []
    for own, other, uniform in zip(row.student_probs, row.teacher_probs, noise_of(row, 12)):
        tokens = [next(v for v, mass in enumerate(other.cumsum(-1)) if mass > u) for u in uniform]
        losses.append(sum(ce(own, token) for token in tokens) / 12)
    return torch.stack(losses)


def hidden_of(model, inputs):
    """The output of every block, (T, C), by running them one after the other."""
    x = (model.token_embedding.weight[inputs] + model.position_embedding.weight[: len(inputs)])[None]
    outputs = []
    for layer, block in enumerate(model.blocks):
        x = block(x, layer)
        outputs.append(x[0])
    return outputs


def middle(outputs):
    """Of one block the only one, of two the first, of three the second."""
    return outputs[(len(outputs) - 1) // 2]


def both_hidden(row, pick):
    """What pick(outputs of all blocks) is, of student and teacher, at the positions that count."""
    with torch.no_grad():
        teacher = pick(hidden_of(row.teacher, row.inputs))
    return pick(hidden_of(row.student, row.inputs))[list(row.at)], teacher[list(row.at)]


def last(outputs):
    return outputs[-1]


def fitnet(row):
    own, other = both_hidden(row, middle)
    return word_level(row) + (own @ row.double("projector.weight").T - other).square().mean(-1)


def hidden_cosine(row):
    own, other = both_hidden(row, last)
    return word_level(row) + 1 - F.cosine_similarity(own @ row.double("projector.weight").T, other, dim=-1)


def attention(row):
    energies = [h.square().mean(-1) for h in both_hidden(row, middle)]
    own, other = (energy / energy.norm() for energy in energies)
    return word_level(row) + 10 * len(own) * (own - other).square()


def similarity(row):
    grams = [h @ h.T for h in both_hidden(row, last)]
    own, other = (torch.stack([line / line.norm() for line in gram]) for gram in grams)
    return word_level(row) + 10 * (own - other).square().mean(-1)


def smooth(x):
    return 0.5 * x**2 if abs(x) < 1 else abs(x) - 0.5


def distances(row):
    n, sides = len(row.response), []
    for h in both_hidden(row, last):
        apart = {(i, j): (h[i] - h[j]).norm() for i in range(n) for j in range(n) if i != j}
        mean = sum(apart.values()) / len(apart)
        sides.append({key: value / mean for key, value in apart.items()})
    return sum(smooth(sides[0][key] - sides[1][key]) for key in sides[0]) / len(sides[0])


def angles(row):
    n, sides = len(row.response), []
    for h in both_hidden(row, last):
        sides.append(
            {
                (i, j, k): (h[j] - h[i]) @ (h[k] - h[i]) / ((h[j] - h[i]).norm() * (h[k] - h[i]).norm())
                for i, j, k in itertools.permutations(range(n), 3)
            }
        )
    return sum(smooth(sides[0][key] - sides[1][key]) for key in sides[0]) / len(sides[0])


def flow(row):
    first, second = both_hidden(row, middle), both_hidden(row, last)
    n = len(row.response)
    own = sum(
        torch.outer(first[0][t] @ row.double("first.weight").T, second[0][t] @ row.double("second.weight").T)
        for t in range(n)
    )
    other = sum(torch.outer(first[1][t], second[1][t]) for t in range(n))
    return word_level(row) + (own / n - other / n).square().mean()


def two_spaces(row):
    """DSKD: last features, normalised, through a map and under the other model's head; both KLs at the row's T,
    times T^2."""
    temperature = row.variant.temperature

    def apart(first, second):
        return temperature**2 * kl(softened(first, temperature), softened(second, temperature))

    own, other = both_hidden(row, last)
    own, other = row.student.norm(own), row.teacher.norm(other)
    students_head, teachers_head = (model.token_embedding.weight for model in (row.student, row.teacher))
    of_teacher = (other @ row.double("to_student.weight").T @ students_head.detach().T).softmax(-1)
    of_student = (own @ row.double("to_teacher.weight").T @ teachers_head.T).softmax(-1)
    students, teachers = (own @ students_head.T).softmax(-1), (other @ teachers_head.T).softmax(-1).detach()
    losses = [
        0.5 * ce(students[place], token)
        + 0.5 * (ce(of_teacher[place], token) + apart(of_teacher[place].detach(), students[place])
                 + apart(teachers[place], of_student[place]))
        for place, token in enumerate(row.response)
    ]
    return torch.stack(losses)


@functools.cache
def in_use():
    """The tokens of the tiny task's responses."""
    return sorted({token for response in tiny_pair().train.responses for token in response})


def input_gradients(row):
    """KDIGA: both losses by one-hot inputs, at the input token and at those of the teacher's four
    guesses that are another."""
    everywhere, gradients = list(range(len(row.inputs))), []
    with torch.no_grad():
        expected = row.teacher(row.inputs[None])[0]
    # Nobody expects a first token: there, what is expected behind it.
    guesses = [ranked(expected[max(t - 1, 0)].softmax(-1))[:4] for t in everywhere]
    ids = [[int(token), *(g for g in own if g != token)] for token, own in zip(row.inputs, guesses)]
    for model in (row.student, row.teacher):
        one_hot = F.one_hot(row.inputs, model.config.vocab_size).double().requires_grad_()
        x = (one_hot @ model.token_embedding.weight + model.position_embedding.weight[everywhere])[None]
        with sdpa_kernel(SDPBackend.MATH):
            for layer, block in enumerate(model.blocks):
                x = block(x, layer)
            probs = (model.norm(x)[0] @ model.token_embedding.weight.T).softmax(-1)[list(row.at)]
            loss = sum(ce(probs[i], token) for i, token in enumerate(row.response)) / len(row.response)
            (gradient,) = torch.autograd.grad(loss, one_hot, create_graph=True)
        picked = torch.cat([gradient[t, tokens] for t, tokens in enumerate(ids)])
        gradients.append(picked / picked.norm())
    return word_level(row) + 0.05 * (gradients[0] - gradients[1].detach()).square().sum()


def parts_of_tokens(row):
    """LELP: the teacher's parts against the student's, on its best tokens."""
    own, other = both_hidden(row, last)
    own, other, slots, found = row.student.norm(own), row.teacher.norm(other).detach(), row.state["slot"], []
    for place, teacher_probs in enumerate(row.teacher_probs):
        total = own.new_zeros(())
        for token in ranked(teacher_probs)[: row.state["top_k"]]:
            slot = slots[token]
            if slot >= 0:
                targets = (row.double("directions")[slot] @ (other[place] - row.double("centres")[slot])).softmax(-1)
                parts = (row.double("head")[slot] @ own[place]).softmax(-1)
                total = total + teacher_probs[token] * kl(targets, parts)
        found.append(total)
    return word_level(row) + torch.stack(found)


def easy_or_hard(row):
    """RDD: cross-entropy weighted by what the teacher's middle says, then where exactly one of both has it hard."""
    early = middle(hidden_of(row.teacher, row.inputs))[list(row.at)] @ row.double("early_map")
    early = (row.teacher.norm(early) @ row.teacher.head.T).softmax(-1).detach()
    losses = []
    for place, (own, other, token) in enumerate(zip(row.student_probs, row.teacher_probs, row.response)):
        weight = (-kl(early[place], other)).exp()
        if not row.state["warm"]:
            weight = (own[token] <= row.double("threshold")) != (other[token] <= row.double("threshold"))
        losses.append(kl(other, own) + weight * ce(own, token))
    return torch.stack(losses)


def soft_labels(row):
    """LW-KD: label, a soft label for a noisy point of the token, and a discriminator that shall not tell them apart."""
    used, losses = row.state["used"].tolist(), []
    for own, token, uniform in zip(row.student_probs, row.response, noise_of(row, 16)):
        noisy = row.double("points")[used.index(token)] + 0.2 * math.sqrt(12) * (uniform - 0.5)
        soft = (row.double("weights") @ noisy).softmax(-1)
        best = own[ranked(own)[:8]]
        real = (F.gelu(best @ row.double("hidden")) @ row.double("last"))[0].sigmoid()
        losses.append(ce(own, token) + kl(soft, own[used]) - 0.1 * real.log())
    return torch.stack(losses)


def branches(row):
    """ONE: three whole models that share their lower blocks; the student is the first of them."""
    own = dict(row.student.named_parameters())
    trunk = (row.student.config.n_layer - 1) // 2
    upper = row.student.config.n_layer - trunk - 1
    models = [own]
    for number in range(2):
        names = [(f"others.{number}.{i}.", f"blocks.{trunk + 1 + i}.") for i in range(upper)]
        names.append((f"others.{number}.{upper}.", "norm."))
        replaced = {
            new + name[len(old) :]: x.double()
            for name, x in row.state.items()
            for old, new in names
            if name.startswith(old)
        }
        assert replaced and set(replaced) <= set(own)
        models.append(own | replaced)
    logits = [
        torch.func.functional_call(row.student, weights, (row.inputs[None],))[0, list(row.at)] for weights in models
    ]
    gate = (hidden_of(row.student, row.inputs)[trunk][list(row.at)] @ row.double("gate")).softmax(-1)
    losses = []
    for place, token in enumerate(row.response):
        ensemble = sum(gate[place, number] * logits[number][place] for number in range(3))
        loss = ce(ensemble.softmax(-1), token)
        for branch in logits:
            loss = loss + ce(branch[place].softmax(-1), token)
            loss = loss + 9 * kl((ensemble / 3).softmax(-1).detach(), (branch[place] / 3).softmax(-1))
        losses.append(loss)
    return torch.stack(losses)


FORMULAS = {
    **dict.fromkeys("sft seqkd ssd".split(), label),
    **dict.fromkeys(
        "supervised on_policy imitkd two_stage skd fdistill_kl adaswitch fresh_teacher skd_k_steps skd_k_along "
        "skd_entropy takd sftn sdft sdft_demonstration context_kd context_kd_wrong_hint context_on_policy".split(),
        word_level,
    ),
    **dict.fromkeys(
        "gkd opsd opsd_live opsd_no_hint opsd_wrong_hint".split(),
        at_each(lambda own, other, token, by: (kl(other, mixed(own, other)) + kl(own, mixed(own, other))) / 2),
    ),
    "hinton": at_each(lambda own, other, token, by: 0.5 * ce(own, token)
                      + 0.5 * 4 * kl(softened(other, 2), softened(own, 2))),
    **dict.fromkeys("tvd fdistill_tvd distillspec".split(), variation),
    **dict.fromkeys("skew_kl distillm".split(),
                    at_each(lambda own, other, token, by: kl(other, mixed(other, own, 0.1)))),
    "skew_reverse_kl": at_each(lambda own, other, token, by: kl(own, mixed(own, other, 0.1))),
    "abkd": at_each(lambda own, other, token, by: ab(other, own)),
    "amid": at_each(amid),
    "akl": at_each(adaptive),
    "dkd": at_each(decoupled),
    "logit_std": at_each(standardized),
    "bild": at_each(logit_differences),
    "taid": moving_target,
    "topk_kd": at_each(buckets),
    "rs_kd": drawn_targets,
    "uld": at_each(by_rank),
    **dict.fromkeys("fdistill_rkl trb trb_fixed prefix_opd".split(),
                    at_each(lambda own, other, token, by: kl(own, other))),
    "todi": at_each(underrated),
    "dpkd": at_each(preferred),
    "csd": all_pairs("student"),
    "csd_teacher": all_pairs("teacher"),
    "se_kd": least_sure,
    "adaspec": learnable,
    "veto": sharpened,
    "tip": unsure_or_wrong,
    "rkl_teachers_top": best_tokens("teacher"),
    "rkl_students_top": best_tokens("student"),
    "fdistill_js": at_each(writer_jsd),
    "distillm2": at_each(writer_skew),
    "opd": at_each(advantage),
    "opd_baseline": at_each(lambda own, other, token, by: advantage(own, other, token, by)
                            - kl(own, other).detach() * own[token].log()),
    "exopd": beyond_the_teacher,
    "iw_opd": early_first,
    "mopd": at_each(lambda own, other, token, by: -(other[token] / own[token]).log().detach().clamp(-5, 5)
                    * own[token].log()),
    "kdrl": at_each(advantage),  # untrained models score nothing: test_scores_are_compared_within_a_group
    "sdpo": at_each(lambda own, other, token, by: 0.0 * own[token]),  # and so: test_a_right_sibling_is_the_hint
    "eopd": unsure,
    "speckd": gated,
    "ca_opd": at_each(lambda own, other, token, by: ce(own, token) if by else buckets(own, other, token, by)),
    "fitnet": fitnet,
    "hidden_cosine": hidden_cosine,
    "at": attention,
    "sp": similarity,
    "rkd_distance": lambda row: word_level(row) + distances(row),
    "rkd_angle": lambda row: word_level(row) + 2 * angles(row),
    "rkd": lambda row: word_level(row) + 0.04 * (25 * distances(row) + 50 * angles(row)),
    "fsp": flow,
    "dskd": two_spaces,
    "cmkd": at_each(correlations),
    "ckd": compared,
    "lelp": parts_of_tokens,
    "rdd": easy_or_hard,
    "kdiga": input_gradients,
    "lwkd": soft_labels,
    "label_smoothing": at_each(lambda own, other, token, by: 0.9 * ce(own, token) - 0.1 * own.log()[in_use()].mean()),
    "one": branches,
}


def rows_of(run, step):
    """The rows of a run's batch, with the student as it was then."""
    rollout, student = run.rollouts[step], copy.deepcopy(run.student)
    student.load_state_dict([run.start, *run.weights][step])
    student.recompute = False
    student, teacher = (copy.deepcopy(model).double() for model in (student, run.teacher))
    average = {name[8:]: x for name, x in run.states[step].items() if name.startswith("average.")}
    teacher.load_state_dict(teacher.state_dict() | average)  # as it was then, if it moves
    hinted = dict(zip(map(tuple, run.pair.train.prompts), run.pair.hinted.get(run.row.hint, run.pair.train.prompts)))
    for place, (prompt, response) in enumerate(zip(prompts_of(rollout), rollout.responses())):
        sources = rollout.source[place, len(prompt) :].tolist()[: len(response)]
        yield Row(run.row, student, teacher, prompt, response, sources, place, run.states[step], hinted[tuple(prompt)])


def plain_loss(name, run, step, reduction):
    """(loss, gradient norm) of a run's batch: row by row, by the formula of that name."""
    assert name in FORMULAS, f"{name} is a new row: write its loss, token by token, into FORMULAS"
    rows = list(rows_of(run, step))
    per_response = [FORMULAS[name](row) for row in rows]
    if reduction == "token":
        loss = torch.cat(per_response).mean()
    else:
        loss = torch.stack([losses.mean() for losses in per_response]).mean()
    loss.backward()
    norm = math.sqrt(sum(weight.grad.square().sum().item() for weight in rows[0].student.parameters()))
    return loss.item(), norm


def test_every_formula_has_a_row():
    """No formula is left over from a row that is gone or has another name."""
    assert set(FORMULAS) <= set(VARIANTS)


@pytest.mark.slow
def test_every_row_has_a_formula():
    """A row of the table is said twice; a new one turns no fast test red."""
    missing = set(VARIANTS) - set(FORMULAS)
    assert not missing, f"add to FORMULAS what a batch costs, token by token, by {', '.join(sorted(missing))}"


def ragged(rollout):
    """The same rollout with rows that end early, each at its own place: what stands behind is padding now."""
    most = torch.tensor([4, 14, 7, 9])[: len(rollout.lengths)]
    return dataclasses.replace(rollout, lengths=torch.minimum(rollout.lengths, rollout.prompt_len + most))


MOVED = {  # where untrained models, whose rows are flat, would always decide alike: numbers with which they do not
    "lelp": {"method_kwargs": {"top_k": 60}},
    "eopd": {"loss_kwargs": {"threshold": 4.7}},
    "adaswitch": {"sampling": {"factor": 1.1, "window": 4}},
    "ca_opd": {"sampling": VARIANTS["ca_opd"].sampling | {"accept_min_prob": 0.004}},
}


@functools.cache
def ragged_run(variant, reduction="token"):
    """Two steps of a row on the deep pair, with responses of different lengths."""
    row = dataclasses.replace(VARIANTS[variant], **MOVED.get(variant, {}))
    return Watched(row, tiny_pair(2, 3), flags(steps=2, reduction=reduction), change=ragged)


FAST_LOSSES = [*((name, "token") for name in FORMULAS if name != "rkd"), *((name, "sequence") for name in WRITING)]


# Every row has a formula of its own; rkd's is the sum of two others, and its loop is long.
@pytest.mark.usefixtures("unmeasured")
@matrix("variant, reduction", itertools.product(FORMULAS, ("token", "sequence")), fast=FAST_LOSSES)
def test_the_loss_by_hand(variant, reduction):
    """Loss and gradient of each batch are those of the row's formula on the response tokens, and on nothing else."""
    run = ragged_run(variant, reduction)
    for step, line in enumerate(run.steps):
        assert (line["loss"], line["gradient_norm"]) == pytest.approx(
            plain_loss(variant, run, step, reduction), rel=1e-4, abs=1e-7
        )


@pytest.mark.parametrize("chunks", ["yes", "no"])
def test_a_temperature_reaches_both_spaces(chunks):
    """dskd at T = 2: the KL of either space is softened and times 4, and neither cross-entropy is."""
    row = dataclasses.replace(VARIANTS["dskd"], temperature=2.0)
    run = Watched(row, tiny_pair(2, 3), flags(steps=2, chunk_loss=chunks), change=ragged)
    for step, line in enumerate(run.steps):
        assert (line["loss"], line["gradient_norm"]) == pytest.approx(plain_loss("dskd", run, step, "token"), rel=1e-4)


@pytest.mark.usefixtures("unmeasured")
def test_the_conditions_are_met():
    """What a formula decides by is seen both ways: tokens accepted and not, easy and hard, split and whole,
    of either writer."""

    def kinds(variant, step, of):
        return {bool(found) for row in rows_of(ragged_run(variant), step) for found in of(row)}

    assert method_of("lelp").top_k == 2 and method_of("rs_kd").draws == 12 and method_of("kdiga").top_k == 4

    def beyond(row, base=word_level):
        return (FORMULAS[variant](row) - base(row)).abs() > 1e-9

    both = {True, False}
    for variant in ("speckd", "lelp"):
        assert kinds(variant, 0, beyond) == both, variant
    variant = "rdd"  # first every token, then some
    assert kinds(variant, 0, beyond) == {True} and kinds(variant, 1, beyond) == both
    variant = "eopd"
    assert kinds(variant, 0, lambda row: beyond(row, FORMULAS["fdistill_rkl"])) == both
    for variant in ("fdistill_js", "fdistill_tvd", "distillm2", "skd", "adaswitch", "ca_opd"):
        assert kinds(variant, 0, lambda row: row.by_teacher) == both, variant


# ---------------------------------------------------------------------------------------------------------------------
# Methods by themselves.


def run_of(pair, student, args, seed=1):
    """A run that has its data, as one has before its method begins, and no batches; validation is worse every time."""
    run = compare.make_run(pair, args, seed)
    numbers = itertools.count()
    run.validate = lambda student, adapted: {"score": 0.0, "val_nll": float(next(numbers))}
    run.begin(student, pair.train.prompts, pair.train.responses, order=torch.zeros(0, 4, dtype=torch.long))
    run.step = types.SimpleNamespace(notes={})
    return run


def method_of(variant, pair=None, student=None, seed=1, args=None, **knobs):
    """The Method of a row, as a run makes it."""
    pair, args = pair or tiny_pair(2, 3), args or flags(steps=10)
    student = student or pair.new_student()
    row = methods.resolve(VARIANTS[variant], args.accept_top_k)
    row = dataclasses.replace(row, method_kwargs=row.method_kwargs | knobs)
    method = methods.make_method(row, student, pair.teacher, run_of(pair, student, args, seed))
    method.before_run(train_skd.distill)
    return method


def at_step(number, num_steps=10, rows=4, write=None):
    """What a method is told of a step of a run."""
    numbers = {"places": range(rows), "example_ids": list(range(rows))}
    return types.SimpleNamespace(number=number, progress=number / num_steps, write=write, **numbers)


def random_logits(*shape, seed=0, scale=2.0):
    return scale * torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def part_of(targets, mask=None, inputs=None, places=None, captured=None):
    """What a method reads of a training.Part; every position counts unless `mask` says otherwise."""
    mask = torch.ones_like(targets, dtype=torch.bool) if mask is None else mask
    places = list(range(len(targets))) if places is None else places
    inputs = targets if inputs is None else inputs
    tokens = Tokens(targets, mask, torch.zeros_like(mask))
    rows = slice(0, len(targets))
    return types.SimpleNamespace(tokens=tokens, inputs=inputs, places=places, rows=rows, captured=captured or {})


def per_token_of(method, student_logits, teacher_logits, targets=None, places=None):
    """The method's loss at every position of a batch of such logits."""
    B, T, V = student_logits.shape
    targets = torch.randint(V, (B, T), generator=generator(9)) if targets is None else targets
    return method.per_token(student_logits, teacher_logits, part_of(targets, places=places))


def probs_and_kl(student_logits, teacher_logits):
    """Both models' probabilities, and KL(teacher || student) at every position."""
    own, other = student_logits.softmax(-1), teacher_logits.softmax(-1)
    return own, other, (other * (other / own).log()).sum(-1)


# TAID.


def test_taids_schedule_by_hand():
    """Losses 2.0, then 1.0, at share .4: momentum .005, step 1.503750e-4; the first loss is only kept."""
    method = method_of("taid", args=flags(steps=10**9)).double()  # so many steps that the linear part stands still
    method.share.fill_(0.4)
    method.before_step(at_step(0))
    method.after_step(torch.tensor(2.0).double())
    assert method.share == 0.4 and method.momentum == 0
    method.after_step(torch.tensor(1.0).double())
    assert method.momentum.item() == pytest.approx(0.005, rel=1e-12)
    assert method.share.item() - 0.4 == pytest.approx(1.503750e-4, rel=1e-6)


@pytest.mark.parametrize("num_steps, rate", [(40, 5e-4), (40, 0.3), (4000, 0.02)])
def test_taids_share_moves_one_way(num_steps, rate):
    """Any losses: the recurrence of the paper's code, a share that never falls,
    never exceeds 1 and is at least linear."""
    method = method_of("taid", args=flags(steps=num_steps), rate=rate).double()
    method.share.fill_(0.4)
    losses = (3 * torch.rand(40, generator=generator(3), dtype=torch.float64)).tolist()
    share, momentum, before, shares = 0.4, 0.0, None, []
    for step, loss in enumerate(losses):
        method.before_step(at_step(step, num_steps))
        share = max(share, 0.4 + 0.6 * step / num_steps)
        assert method.share.item() == pytest.approx(share, rel=1e-9)
        shares.append(method.share.item())
        method.after_step(torch.tensor(loss, dtype=torch.float64))
        if before is not None:
            momentum = 0.99 * momentum + 0.01 * (before - loss) / (before + 1e-15)
            share = min(1.0, share + rate / (1 + math.exp(-momentum)) * (1 - share))
        before = loss
        shares.append(method.share.item())
    assert shares == sorted(shares) and 0.4 <= shares[0] and shares[-1] <= 1
    assert all(share >= 0.4 + 0.6 * step / num_steps - 1e-12 for step, share in enumerate(shares[::2]))
    if rate > 0.1:
        assert shares[20] > 0.4 + 0.6 * 10 / num_steps + 0.1  # here the losses decide, not the steps


def test_taid_begins_at_itself_and_ends_at_the_teacher():
    """At share 0 value and gradient are 0; at share 1 both are forward KL's;
    between them the gradient points to the target."""
    method, student_logits, teacher_logits = (
        method_of("taid").double(),
        random_logits(2, 3, 5),
        random_logits(2, 3, 5, seed=1),
    )
    own, _, distance = probs_and_kl(student_logits, teacher_logits)
    for share in (0.0, 0.4, 1.0):
        method.share.fill_(share)
        leaf = student_logits.clone().requires_grad_()
        value = per_token_of(method, leaf, teacher_logits)
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
        target = ((1 - share) * student_logits + share * teacher_logits).softmax(-1)
        assert torch.allclose(gradient, own - target, atol=1e-12)
        if share != 0.4:
            assert torch.allclose(value, share * distance, atol=1e-12) and (gradient.abs().max() > 1e-9) == (share == 1)


# Veto.


def test_vetos_power_falls_to_nothing():
    """beta is .8 at the first of ten steps and .08 at the last, by progress alone; the gradient is the student minus
    the target, which no token that the student does not expect can be."""
    method, student_logits, teacher_logits = method_of("veto"), random_logits(2, 3, 5), random_logits(2, 3, 5, seed=1)
    for number in range(10):
        method.before_step(at_step(number))
        assert method.beta == pytest.approx(0.8 * (10 - number) / 10)
        leaf = student_logits.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(per_token_of(method, leaf, teacher_logits).sum(), leaf)
        target = teacher_logits.softmax(-1) * student_logits.softmax(-1) ** method.beta
        torch.testing.assert_close(gradient, student_logits.softmax(-1) - target / target.sum(-1, keepdim=True))


# AdaSPEC.


def test_adaspecs_copy_is_a_run_of_supervised():
    """The copy is what `supervised` makes of the student; the student starts from where it stood, the copy stands still
    while the student learns."""
    pair, args = tiny_pair(2, 3), flags(steps=3)
    run = Watched(VARIANTS["adaspec"], pair, args, seed=4)
    assert same_weights(run.start, weights_of(pair.new_student()))
    copied = Watched(VARIANTS["supervised"], pair, args, seed=4).end
    assert same_weights(copied, weights_of(run.method.reference))
    assert not any(weight.requires_grad for weight in run.method.reference.parameters())


def test_adaspec_leaves_out_what_the_copy_has_not_learned():
    """A copy equal to the student gains nowhere: the first positions count. A copy that is the teacher gains where the
    student is furthest off: these count."""
    pair = tiny_pair(2, 3)
    method = method_of("adaspec", pair, share=0.5)
    prompts, responses = pair.train.prompts[:4], pair.train.responses[:4]
    rollout = rollout_from_ids(prompts, responses, [DATASET] * 4, "cpu")
    inputs, mask = rollout.tokens[:, :-1], rollout.response_mask[:, 1:]
    with torch.no_grad():
        student_logits, teacher_logits = (model(inputs) for model in method.models)
    part = part_of(rollout.tokens[:, 1:], mask, inputs)
    _, _, distance = probs_and_kl(student_logits, teacher_logits)
    for reference, gain in ((method.models[0], 0 * distance), (method.models[1], distance)):
        method.reference = reference
        chosen = method.per_token(student_logits, teacher_logits, part) > 0
        for row in range(4):
            places = mask[row].nonzero().flatten().tolist()
            best = sorted(places, key=lambda t: (-gain[row, t].item(), t))[: math.ceil(len(places) / 2)]
            assert chosen[row].nonzero().flatten().tolist() == sorted(best)


# RS-KD.


def draws_of(method, teacher_logits, places=None):
    """How often each token was drawn at each position: the gradient is the student's
    probability minus counts / draws."""
    leaf = torch.zeros_like(teacher_logits).requires_grad_()
    (gradient,) = torch.autograd.grad(per_token_of(method, leaf, teacher_logits, places=places).sum(), leaf)
    counts = method.draws * (1 / leaf.size(-1) - gradient)
    assert (counts - counts.round()).abs().max() < 1e-4 and (counts.round().sum(-1) == method.draws).all()
    return counts.round().long()


def test_sampled_targets_follow_the_teacher():
    """24,000 draws have the teacher's frequencies, and so have pairs of draws at neighbouring positions (false alarm
    below 1e-6 each)."""
    method = method_of("rs_kd")
    row = torch.tensor([0.4, 0.3, 0.2, 0.07, 0.03]).log()
    method.before_step(at_step(0, rows=50))
    counts = draws_of(method, row.expand(50, 40, 5))
    law = {(v,): prob for v, prob in enumerate(row.exp().tolist())}
    assert_follows(law, [(v,) for v, number in enumerate(counts.sum((0, 1)).tolist()) for _ in range(number)])
    method.draws = 1
    first = draws_of(method, row.expand(5000, 2, 5)).argmax(-1)
    law = {(a, b): row[a].exp().item() * row[b].exp().item() for a in range(5) for b in range(5)}
    assert_follows(law, list(map(tuple, first.tolist())))
    assert FALSE_ALARM <= 1e-6


def test_sampled_targets_belong_to_their_place():
    """However a batch is split, padded or shuffled, a row's draws are the same;
    another step and another place draw anew."""
    method, teacher_logits = method_of("rs_kd"), random_logits(6, 9, 30).float()
    method.before_step(at_step(0, rows=6))
    whole = draws_of(method, teacher_logits)
    for rows in ([0, 1, 2], [5, 3], [4]):
        assert torch.equal(draws_of(method, teacher_logits[rows], rows), whole[rows])
        assert torch.equal(draws_of(method, teacher_logits[rows, :4], rows), whole[rows, :4])
    assert not torch.equal(draws_of(method, teacher_logits, [1, 0, 3, 2, 5, 4]), whole)
    method.before_step(at_step(1, rows=6))
    assert not torch.equal(draws_of(method, teacher_logits), whole)


# DistiLLM.


def test_the_threshold_follows_validation():
    """It rises by .1 only where the loss is .1 above its reference, and only then the reference moves; at most 1.

    The first reference is what validation says before the first step, here 0.
    """
    method = method_of("distillm")
    assert (method.threshold, method.reference) == (0, 0.0)
    seen = []
    for loss in (0.05, -0.5, 0.09, 0.11, 0.15, 0.20, 0.22, 0.31, 0.33):
        method.after_evaluation({"val_nll": loss})
        seen.append((round(method.threshold, 9), method.reference))
    assert seen == [
        (0, 0.0), (0, 0.0), (0, 0.0), (0.1, 0.11), (0.1, 0.11), (0.1, 0.11), (0.2, 0.22), (0.2, 0.22), (0.3, 0.33),
    ]  # fmt: skip
    for loss in range(3, 20):
        method.after_evaluation({"val_nll": float(loss)})
    assert method.threshold == 1


def test_who_writes_at_which_number():
    """Below threshold (1 - progress) the student; from there to the threshold the buffer,
    the student while that is not full."""
    method = method_of("distillm", args=flags(steps=10), capacity=8)
    for threshold, step in ((0.0, 0), (0.5, 0), (0.5, 2), (0.5, 9), (1.0, 5)):
        method.threshold = threshold
        method.before_step(at_step(step))
        cut = threshold * (1 - step / 10)
        for seen_rows in (0, 7, 8, 30):
            method.seen_rows = seen_rows
            for number in (0.0, cut - 1e-6, cut + 1e-6, threshold - 1e-6, threshold, threshold + 1e-6, 0.999999):
                if 0 <= number < 1:
                    between = "replay" if seen_rows >= 8 else "student"
                    wanted = "student" if number < cut else between if number < threshold else "dataset"
                    assert method.choose(number) == wanted


class Scripted:
    """A Replay that is told its numbers and what a student writes:
    batches of 4 rows, each token a number of its own."""

    def __init__(self, capacity=12):
        self.method = method_of("distillm", args=flags(steps=10), capacity=capacity)
        self.method.threshold, self.numbers, self.written = 0.5, iter(()), []
        choose = self.method.choose
        self.method.choose = lambda uniform: choose(next(self.numbers))

    def by(self, writer, *models, **options):
        prompts = [[100 + len(self.written), i] for i in range(4)]
        responses = [[len(self.written)] * (1 + (len(self.written) + i) % 5) for i in range(4)]
        rollout = rollout_from_ids(prompts, responses, [STUDENT if writer == "student" else DATASET] * 4, "cpu")
        rollout.finished = torch.tensor([True, False, len(self.written) % 2 == 0, True])
        if writer == "student":
            self.written.append(rollout)
        return rollout

    def step(self, number, step=5):
        self.numbers = iter([number])
        return self.method.write(at_step(step, write=self.by))


def lines_of_rollout(rollout):
    """Every row as (tokens, prompt length, sources, whether it finished)."""
    cut = [rollout.tokens.tolist(), rollout.source.tolist()]
    return [
        (tuple(cut[0][i][:stop]), start, tuple(cut[1][i][:stop]), end)
        for i, (start, stop, end) in enumerate(
            zip(rollout.prompt_len.tolist(), rollout.lengths.tolist(), rollout.finished.tolist())
        )
    ]


def test_what_is_replayed_was_written():
    """Until the buffer is full the student writes; then batches of different kept rows come back, whole;
    the oldest rows go."""
    play = Scripted(capacity=12)
    for number in range(3):  # .3 lies between .25 and .5: a replay, were the buffer full
        play.step(0.3)
        assert play.method.writer == "student" and len(play.written) == number + 1
    kept = [line for rollout in play.written for line in lines_of_rollout(rollout)]
    seen = set()
    for _ in range(40):
        rollout = play.step(0.3)
        lines = lines_of_rollout(rollout)
        assert play.method.writer == "replay" and len(play.written) == 3
        assert len(set(lines)) == 4 and set(lines) <= set(kept)
        beyond = torch.arange(rollout.tokens.size(1)) >= rollout.lengths[:, None]
        assert not rollout.tokens[beyond].any() and not rollout.source[beyond].any() and rollout.teacher_logits is None
        seen |= set(lines)
    assert seen == set(kept)  # 160 draws of 12 rows: one is missed with a chance below 12 (2/3)^40 = 1.1e-6
    play.step(0.6)
    assert play.method.writer == "dataset" and play.method.seen_rows == 12  # references are not kept
    play.step(0.1)
    assert play.method.writer == "student"
    kept = kept[4:] + lines_of_rollout(play.written[-1])
    for _ in range(40):
        assert set(lines_of_rollout(play.step(0.3))) <= set(kept)
    for _ in range(2):
        play.step(0.1)
    assert play.written[-1].tokens.size(1) < play.written[-2].tokens.size(1)  # a short batch cuts no longer one
    kept = [line for rollout in play.written[-3:] for line in lines_of_rollout(rollout)]
    for _ in range(40):
        assert set(lines_of_rollout(play.step(0.3))) <= set(kept)


def test_a_long_batch_leaves_nothing_of_a_short_one():
    """A slot that held a longer row holds zeros behind its new one."""
    play = Scripted(capacity=4)
    for _ in range(6):
        play.step(0.1)
        (kept,) = [lines_of_rollout(play.step(0.3))]
        assert sorted(kept) == sorted(lines_of_rollout(play.written[-1]))
        filled = torch.arange(play.method.tokens.size(1)) < play.method.lengths[:, None]
        assert not play.method.tokens[~filled].any() and not play.method.source[~filled].any()


def test_the_buffer_holds_a_thousand_rows_or_a_batch():
    """Capacity 1000 as in the paper's code, and never less than one batch."""
    assert len(method_of("distillm").lengths) == 1000
    assert len(method_of("distillm", args=flags(steps=10, batch_size=1500)).lengths) == 1500


def test_a_run_that_replays(monkeypatch):
    """Validation that only worsens: references first, then the student's own, then replays;
    each step's loss is the formula's.

    What is replayed costs no writing: tokens are counted when the student writes them.
    """
    losses = iter(range(100))

    def worse(*args, **kwargs):
        return {"score": 0.0, "val_nll": float(next(losses)), "kl_teacher": 0.0}

    monkeypatch.setattr(compare, "evaluate_quickly", worse)
    row = dataclasses.replace(VARIANTS["distillm"], method_kwargs={"capacity": 12, "rise": 0.3})
    run = Watched(row, tiny_pair(2, 3), flags(steps=24), seed=3)
    # Measured before the first step and after every third: each is worse than the one before by 1.
    assert [state["threshold"] for state in run.states[::3]] == pytest.approx([0, 0.3, 0.6, 0.9, 1, 1, 1, 1])
    assert run.writers[0] == "dataset" and set(run.writers) == {"dataset", "student", "replay"}
    assert run.writers.index("student") < run.writers.index("replay") and run.writers[:12].count("student") >= 3
    prompts, written = [], 0
    for step, (writer, rollout) in enumerate(zip(run.writers, run.rollouts)):
        if writer == "student":
            prompts += prompts_of(rollout)
            written += int(rollout.response_mask.sum())
        assert writer != "replay" or all(prompt in prompts for prompt in prompts_of(rollout))
        found = run.steps[step]["loss"], run.steps[step]["gradient_norm"]
        assert found == pytest.approx(plain_loss("distillm", run, step, "token"), rel=1e-4)
    assert run.costs["tokens_generated"] == written


# What a run tells its method.


def test_a_run_tells_its_method_the_loss():
    """After every step TAID has its loss, the one that is logged,
    and from the second on a share beyond the linear part."""
    row = dataclasses.replace(VARIANTS["taid"], method_kwargs={"rate": 1.0})
    run = Watched(row, tiny_pair(2, 3), flags(steps=4))
    told = [state["before"].item() for state in run.states[1:]] + [run.method.before.item()]
    assert told == [line["loss"] for line in run.steps] and run.states[0]["before"].isnan()
    shares = [state["share"].item() for state in run.states]
    assert shares[:2] == pytest.approx([0.4, 0.55]) and shares[2] > 0.7 + 0.01 and shares[3] > 0.85 + 0.01


def test_a_method_learns_by_its_own_clipped_gradient():
    """What its optimizer is given has norm 1 where it was longer; the student's is clipped apart from it."""
    for weight, longer in ((1e3, True), (1e-3, False)):
        row = dataclasses.replace(VARIANTS["fsp"], method_kwargs={"weight": weight})
        run = Watched(row, tiny_pair(2, 3), flags(steps=1))
        norms = [
            math.sqrt(sum(x.grad.square().sum().item() for x in model.parameters()))
            for model in (run.method, run.student)
        ]
        assert norms[1] == pytest.approx(min(1.0, run.steps[0]["gradient_norm"]), rel=1e-4)
        assert norms[0] == pytest.approx(1.0, rel=1e-4) if longer else 0 < norms[0] < 0.9


def test_a_run_trains_the_discriminator_on_its_own_loss():
    """In a run lwkd's network gets the gradient of telling labels from students, worked out from the batch by hand."""
    run = Watched(VARIANTS["lwkd"], tiny_pair(2, 3), flags(steps=1), change=ragged)
    weights = [run.states[0][name].double().requires_grad_() for name in ("hidden", "last")]
    losses = {1: [], -1: []}
    for row in rows_of(run, 0):
        for own, token, uniform in zip(row.student_probs.detach(), row.response, noise_of(row, 16)):
            noisy = (
                row.double("points")[row.state["used"].tolist().index(token)]
                + 0.2 * math.sqrt(12) * (uniform - 0.5)
            )
            for probs, sign in (((row.double("weights") @ noisy).softmax(-1), 1), (own, -1)):
                odds = F.gelu(probs[ranked(probs)[:8]] @ weights[0]) @ weights[1]
                losses[sign].append(-(sign * odds[0]).sigmoid().log())
    wanted = torch.autograd.grad(sum(torch.stack(side).mean() for side in losses.values()), weights)
    norm = math.sqrt(sum(x.square().sum().item() for x in wanted))
    for found, gradient in zip((run.method.hidden.grad, run.method.last.grad), wanted):
        assert torch.allclose(found.double(), gradient / max(1.0, norm), rtol=1e-3, atol=1e-5)


def test_references_come_in_order():
    """references_of gives every reference once, in order, in batches of any size; count_pass notes that pass."""
    pair = tiny_pair()
    run = run_of(pair, pair.new_student(), flags())
    for size in (1, 7, 24, 64):
        batches = list(methods.references_of(run, size))
        assert [len(batch.lengths) for batch in batches[:-1]] == [size] * (len(batches) - 1)
        assert [prompt for batch in batches for prompt in prompts_of(batch)] == pair.train.prompts
        assert [response for batch in batches for response in batch.responses()] == pair.train.responses
    fed = sum(int((batch.lengths - 1).sum()) for batch in batches)
    methods.count_pass(run)
    assert run.prepared == [{"teacher_tokens": fed, "teacher_forwards": 1}]


def test_only_the_flags_own_none_is_filled_in():
    """accept_top_k=None is --accept-top-k; a None of another name means what the loss says of it."""
    row = dataclasses.replace(VARIANTS["supervised"], loss="pearson", loss_kwargs={"top_k": None})
    assert methods.resolve(row, 3) == row
    (own,) = [name for name, row in VARIANTS.items() if None in row.loss_kwargs.values()]
    assert methods.resolve(VARIANTS[own], 3).loss_kwargs == {"accept_top_k": 3}


def test_only_a_copy_of_the_student_is_averaged():
    """An average would move the pair's own teacher: such a row is refused before it has."""
    pair = tiny_pair()
    row = dataclasses.replace(VARIANTS["on_policy"], method="average", method_kwargs={"decay": 0.5})
    before = copy.deepcopy(pair.teacher.state_dict())
    with pytest.raises(ValueError, match="average changes its teacher's weights: give the row teacher='start'"):
        methods.make_method(row, pair.new_student(), pair.teacher, run_of(pair, pair.new_student(), flags()))
    assert all(torch.equal(weight, before[name]) for name, weight in pair.teacher.state_dict().items())


# Features.


@pytest.mark.parametrize("variant", ["fitnet", "hidden_cosine", "fsp", "dskd"])
def test_a_projector_learns_beside_the_student(variant):
    """It starts with the mean square of what goes in, moves at the student's rate and without decay;
    the teacher stands still."""
    pair = tiny_pair(2, 3)
    teacher = weights_of(pair.teacher)
    run = Watched(VARIANTS[variant], pair, flags(steps=2, lr=1e-3, weight_decay=50.0))
    names = [name for name, _ in run.method.named_parameters()]
    wanted = {"fsp": ["first.weight", "second.weight"], "dskd": ["to_teacher.weight", "to_student.weight"]}
    assert names == wanted.get(variant, ["projector.weight"])
    for name in names:
        start, end = run.states[0][name], run.states[1][name]
        assert start.shape == ((8, 12) if name == "to_student.weight" else (12, 8))
        assert 0.5 < start.square().mean() * start.size(1) < 2
        step = (end - start).abs()
        rate = learning_rate(0, 2, 1e-3)
        # Adam's first step is the rate; 50 * rate would be decay.
        assert rate * 0.9 < step.median() and step.max() < rate * 1.01
    assert same_weights(teacher, pair.teacher.state_dict())


@pytest.mark.parametrize(
    "variant", [name for name, row in VARIANTS.items() if row.method in ("feature", "flow", "subclasses", "dual_space")]
)
def test_which_blocks_are_compared(variant, monkeypatch):
    """Of a student with 2 blocks and a teacher with 3 the middle ones are the first and the second;
    the last are the last."""
    seen, capture_hidden = [], methods.capture_hidden

    def told(model, blocks):
        seen.append((model.config.n_layer, tuple(blocks)))
        return capture_hidden(model, blocks)

    monkeypatch.setattr(methods, "capture_hidden", told)
    Watched(VARIANTS[variant], tiny_pair(2, 3), flags(steps=1))
    middle_ones, last_ones = {(2, (0,)), (3, (1,))}, {(2, (1,)), (3, (2,))}
    wanted = {"fitnet": middle_ones, "at": middle_ones, "fsp": {(2, (0, 1)), (3, (1, 2))}}
    assert set(seen) == wanted.get(variant, last_ones)
    assert methods.block_at(tiny_pair(1, 1).teacher, "middle") == 0
    assert [
        methods.block_at(GPT(GPTConfig(5, 4, depth, 1, 2)), "middle") for depth in (2, 3, 4, 6, 12)
    ] == [0, 1, 1, 2, 5]


def test_input_gradients_need_unfused_attention(monkeypatch):
    """The student's loss is differentiated twice; with the fused kernel torch cannot,
    which is why the passes are wrapped."""
    run = Watched(VARIANTS["kdiga"], tiny_pair(2, 3), flags("--recompute", steps=1))
    assert run.steps[0]["gradient_norm"] > 0 and not run.student.recompute  # a recomputed block would be fused again
    monkeypatch.setattr(methods, "second_order", methods.nullcontext)
    with pytest.raises(RuntimeError, match="derivative for aten::_scaled_dot_product"):
        Watched(VARIANTS["kdiga"], tiny_pair(2, 3), flags(steps=1))


def test_a_right_guess_is_no_second_token(monkeypatch):
    """With the whole vocabulary as guesses the input token is one of them: each position has every entry once."""
    whole, picked, exact = [], [], methods.input_gradient

    def told(per_token, inputs, head, masked, ids, create_graph):
        whole.append(exact(per_token, inputs, head, masked, None, create_graph=True).detach())
        assert ids.size(-1) == whole[-1].size(-1) + 1
        return exact(per_token, inputs, head, masked, ids, create_graph=create_graph)

    def compared(*gradients):
        picked.extend(gradient.detach() for gradient in gradients[:2])
        return features.input_gradient_alignment(*gradients)

    monkeypatch.setattr(methods, "input_gradient", told)
    monkeypatch.setattr(methods, "input_gradient_alignment", compared)
    row = dataclasses.replace(VARIANTS["kdiga"], method_kwargs={"weight": 0.05, "top_k": 10_000})
    Watched(row, tiny_pair(2, 3), flags(steps=1))
    assert len(whole) == len(picked) == 2
    for every, some in zip(whole, picked):
        assert every.abs().sum() > 0
        torch.testing.assert_close(some.square().sum(-1), every.square().sum(-1))


# LELP.


def forward_of(method, student, teacher, rollout):
    """Both models' forwards over a batch, as a part makes them -> (student's logits, teacher's logits, the part)."""
    inputs, captured = rollout.tokens[:, :-1], {}
    with torch.no_grad(), method.capture(teacher, False) as captured[id(teacher)]:
        teacher_logits = teacher(inputs)
    with method.capture(student, True) as captured[id(student)]:
        student_logits = student(inputs)
    part = part_of(rollout.tokens[:, 1:], rollout.response_mask[:, 1:], inputs, captured=captured)
    return student_logits, teacher_logits, part


def lelp_batch(variant="lelp", **knobs):
    """(method, (student's logits, teacher's, part) of references, own features (B, T, C), the teacher's)."""
    pair = tiny_pair(2, 3)
    student, teacher = pair.new_student(), pair.teacher
    method = method_of(variant, pair, student, **knobs)
    method.before_step(at_step(0, rows=24))
    batch = forward_of(method, student, teacher, next(methods.references_of(method.run)))
    own, other = method.captured(batch[-1])
    return method, batch, student.norm(own.hidden[0]), teacher.norm(other.hidden[0])


def joint_of(method, batch, own, other, parts=4):
    """(student's, teacher's) probabilities of (token, part), each (B, T, V, parts):
    a whole token has its mass in part 0."""
    student_logits, teacher_logits, _ = batch
    joints = []
    for probs, logits in (
        (student_logits.double().softmax(-1), torch.einsum("nsc,btc->btns", method.head.double(), own.double())),
        (teacher_logits.double().softmax(-1), torch.stack(
            [(other.double() - centre) @ directions.T
             for centre, directions in zip(method.centres.double(), method.directions.double())], 2)),
    ):  # fmt: skip
        shares = torch.zeros(*probs.shape, parts, dtype=torch.float64)
        shares[..., 0] = 1
        for token, slot in enumerate(method.slot.tolist()):
            if slot >= 0:
                shares[:, :, token] = logits[:, :, slot].softmax(-1)
        joints.append(probs[..., None] * shares)
    return joints


def test_parts_add_up_to_their_tokens():
    """Summed over the parts both joint distributions are the models' own; at least three tokens were split, not all."""
    method, batch, own, other = lelp_batch()
    student_joint, teacher_joint = joint_of(method, batch, own, other)
    assert torch.allclose(student_joint.sum(-1), batch[0].double().softmax(-1), atol=1e-12)
    assert torch.allclose(teacher_joint.sum(-1), batch[1].double().softmax(-1), atol=1e-12)
    assert 3 <= int((method.slot >= 0).sum()) < 30
    assert sorted(method.slot[method.slot >= 0].tolist()) == list(range(len(method.centres)))


def test_the_joint_cross_entropy_comes_apart():
    """CE of the joint = CE of tokens + sum over tokens of teacher(token) CE of its parts;
    the loss is the joint KL, top_k at V.

    With less than V tokens it is smaller, since every left-out term is a KL.
    """
    V = tiny_pair(2, 3).tokenizer.n_vocab
    method, batch, own, other = lelp_batch(top_k=V)
    student_joint, teacher_joint = joint_of(method, batch, own, other)
    whole = -(teacher_joint * student_joint.log().masked_fill(teacher_joint == 0, 0.0)).sum((-2, -1))
    token_probs, own_probs = teacher_joint.sum(-1), student_joint.sum(-1)
    conditional = teacher_joint / token_probs[..., None]
    own_conditional = (student_joint / own_probs[..., None]).log().masked_fill(conditional == 0, 0.0)
    tokens_ce, parts_ce = -(token_probs * own_probs.log()).sum(-1), -(conditional * own_conditional).sum(-1)
    assert torch.allclose(whole, tokens_ce + (token_probs * parts_ce).sum(-1), atol=1e-9)
    entropy_of_joint = -(teacher_joint * teacher_joint.log().masked_fill(teacher_joint == 0, 0.0)).sum((-2, -1))
    found = method.per_token(*batch).double()
    assert torch.allclose(found, whole - entropy_of_joint, atol=1e-4)
    method.top_k = 2
    fewer = method.per_token(*batch).double()
    assert (fewer < found + 1e-6).all() and (fewer < found - 1e-3).any()


@pytest.mark.parametrize("method_kwargs", [{"subclasses": 1}, {"least": 10**6}, {"most_classes": 0}])
def test_without_parts_lelp_is_word_level(method_kwargs):
    """One part per token, or no token seen often enough: forward KL, to rounding, and a head that learns nothing."""
    method, batch, *_ = lelp_batch(**method_kwargs)
    _, _, distance = probs_and_kl(batch[0].double(), batch[1].double())
    per_token = method.per_token(*batch)
    assert torch.allclose(per_token.double(), distance, rtol=1e-4, atol=1e-5)
    gradient = torch.autograd.grad(per_token.sum(), method.head, allow_unused=True)[0]
    assert gradient is None or not gradient.any()


def test_parts_lie_along_the_features_of_their_token():
    """A class's centre is the mean of the teacher's last features in front of it,
    along its directions their spread is 1.

    The directions span the first principal ones: what they leave over is the smallest that as many directions can
    leave.
    """
    pair = tiny_pair(2, 3)
    method, found = method_of("lelp", pair), {}
    for prompt, response in zip(pair.train.prompts, pair.train.responses):
        tokens = torch.tensor(prompt + response)
        with torch.no_grad():
            features = pair.teacher(tokens[None, :-1], features=True)[0]
        for place in range(len(prompt) - 1, len(tokens) - 1):
            found.setdefault(int(tokens[place + 1]), []).append(features[place])
    for token, slot in enumerate(method.slot.tolist()):
        assert (slot >= 0) == (len(found.get(token, ())) >= 16)
        if slot >= 0:
            own = torch.stack(found[token])
            centred = own - own.mean(0)
            assert torch.allclose(method.centres[slot], own.mean(0), atol=1e-5)
            along = centred @ method.directions[slot].T
            assert torch.allclose(along.std(0), torch.ones(4), atol=1e-3)
            basis = torch.linalg.qr(method.directions[slot].T)[0]
            left = (centred - centred @ basis @ basis.T).square().sum()
            smallest = torch.linalg.svdvals(centred)[4:].square().sum()
            assert left.item() == pytest.approx(smallest.item(), rel=1e-3, abs=1e-5)


# RDD.


def test_the_threshold_is_the_teachers_median():
    """As many reference tokens lie at or above it as at or below;
    the lens made the teacher's middle a better predictor."""
    pair = tiny_pair(2, 3)
    method, gold, early = method_of("rdd", pair), [], {"before": [], "after": []}
    for prompt, response in zip(pair.train.prompts, pair.train.responses):
        tokens, at = torch.tensor(prompt + response), range(len(prompt) - 1, len(prompt) + len(response) - 1)
        with torch.no_grad():
            probs = pair.teacher(tokens[None, :-1])[0].softmax(-1)
            gold += [probs[place, tokens[place + 1]].item() for place in at]
            hidden = middle(hidden_of(pair.teacher, tokens[:-1]))
            for name, lens in (("before", torch.eye(12)), ("after", method.early_map)):
                probs = (pair.teacher.norm(hidden @ lens) @ pair.teacher.head.T).softmax(-1)
                early[name] += [probs[place, tokens[place + 1]].log().item() for place in at]
    threshold = method.threshold.item()
    assert threshold == pytest.approx(sorted(gold)[(len(gold) - 1) // 2], rel=1e-4)
    assert sum(early["after"]) > sum(early["before"]) + len(gold) * 0.1


def test_a_teacher_sure_of_most_tokens_still_knows_easy_ones(monkeypatch):
    """Where the median is the largest probability, that would make every token hard for everybody, and none count: the
    threshold then is the largest below it. A teacher that is equally sure of all tokens tells none apart."""
    real, pair = methods.cross_entropy, tiny_pair(2, 3)
    monkeypatch.setattr(methods, "cross_entropy", lambda scores, ids: real(scores, ids) * (ids % 4 == 0))  # 0: surely
    threshold = method_of("rdd", pair, early_steps=1).threshold.item()
    gold = []
    for prompt, response in zip(pair.train.prompts, pair.train.responses):
        with torch.no_grad():
            probs = pair.teacher(torch.tensor([prompt + response])[:, :-1])[0].softmax(-1)
        at = range(len(prompt) - 1, len(prompt) + len(response) - 1)
        gold += [probs[t, token].item() for t, token in zip(at, response) if token % 4 == 0]
    assert threshold == pytest.approx(max(gold), rel=1e-4) and threshold < 1
    monkeypatch.setattr(methods, "cross_entropy", lambda scores, ids: real(scores, ids) * 0)
    assert method_of("rdd", pair, early_steps=1).threshold.item() == 1


def test_a_token_counts_where_one_of_both_has_it_hard():
    """Truth table of the second stage: cross-entropy is added where exactly one probability is at or below the
    threshold.

    A threshold that nobody is below, or nobody above, selects nothing: plain word-level KD.
    """
    method = method_of("rdd", warmup=0.0).double()
    method.before_step(at_step(0))
    assert not method.warm
    probs = torch.tensor(
        [[[0.1, 0.9], [0.1, 0.9], [0.8, 0.2], [0.7, 0.3]], [[0.2, 0.8], [0.6, 0.4], [0.3, 0.7], [0.9, 0.1]]]
    )
    own, other = probs.double().log()[:, None]
    _, _, distance = probs_and_kl(own, other)
    for threshold, chosen in (
        (0.5, [0, 1, 1, 0]), (0.2, [0, 1, 0, 0]), (0.19, [1, 1, 0, 0]), (0.0, [0] * 4), (1.0, [0] * 4),
    ):
        method.threshold.fill_(threshold + 1e-9)
        wanted = distance[0] - torch.tensor(chosen) * own[0, :, 0]
        found = per_token_of(method, own, other, torch.zeros(1, 4, dtype=torch.long))
        assert torch.allclose(found[0], wanted, atol=1e-9)


def test_the_stages_of_rdd():
    """A tenth of the run is the first stage, and what it weighs by is exp(-KL):
    at most 1, and 1 where the middle agrees."""
    method = method_of("rdd", args=flags(steps=30))
    for step in range(30):
        method.before_step(at_step(step, 30))
        assert method.warm == (step < 3)
    run = ragged_run("rdd")
    for row in rows_of(run, 0):
        weight = (FORMULAS["rdd"](row) - word_level(row)) / label(row)
        assert (weight > 0).all() and (weight < 1).all()


# LW-KD.


def gold_mass(method, tokens, steps=40):
    """The mass that soft labels give to their own token, over the noise of some steps: (steps, len(tokens))."""
    found, targets = [], torch.tensor([tokens])
    for step in range(steps):
        method.before_step(at_step(step, steps, 1))
        labels = method.soft_labels(targets, [0]).exp()
        assert torch.allclose(labels.sum(-1), torch.ones(1, len(tokens)), atol=1e-5)
        found.append(labels[0].gather(-1, method.slot[targets[0]][:, None])[:, 0])
    return torch.stack(found)


def test_soft_labels_know_the_token():
    """Their mass on the token is .8 on average over tokens and noise, and they differ from place to place.

    2,000 labels of a mass in 0..1: the mean is within .06 but for a chance of 1.1e-6 (Hoeffding); the tuning's own
    sample of as many takes as much.
    """
    pair = tiny_pair(2, 3)
    method = method_of("lwkd", pair)
    used = method.used.tolist()
    assert used == sorted({token for response in pair.train.responses for token in response})
    mass = gold_mass(method, used, steps=math.ceil(2000 / len(used)))
    assert abs(mass.mean() - 0.8) < 0.12
    method.before_step(at_step(0, rows=1))
    same = method.soft_labels(torch.full((1, 9), used[3]), [0])[0]
    assert all((a - b).abs().max() > 1e-3 for a, b in itertools.combinations(same, 2))
    sharper = method_of("lwkd", pair, gold=0.95)
    assert abs(gold_mass(sharper, used, steps=math.ceil(2000 / len(used))).mean() - 0.95) < 0.12
    assert gold_mass(sharper, used).mean() > gold_mass(method, used).mean() + 0.05


def test_soft_labels_are_as_strong_as_their_control():
    """Cross-entropy + KL to the label pulls to a target with .9 on the reference; label_smoothing's has .9 and a
    share of the .1, which lies on the tokens in use as lwkd's does.

    Read from the gradients by the logits; without the discriminator.
    """
    pair = tiny_pair(2, 3)
    V, masses, unused = pair.tokenizer.n_vocab, {}, {}
    targets = torch.tensor(in_use())[None].expand(60, -1)
    for variant, knobs, strength in (("lwkd", {"adversarial": 0.0}, 2), ("label_smoothing", {}, 1)):
        method = method_of(variant, pair, **knobs)
        method.before_step(at_step(0, rows=60))
        leaf = random_logits(*targets.shape, V).float().requires_grad_()
        (gradient,) = torch.autograd.grad(per_token_of(method, leaf, None, targets).sum(), leaf)
        target = leaf.softmax(-1) - gradient / strength
        assert torch.allclose(target.sum(-1), torch.ones(targets.shape), atol=1e-4) and target.min() > -1e-5
        masses[variant] = target.gather(-1, targets[..., None]).mean().item()
        unused[variant] = 1 - target[..., in_use()].sum(-1)
    assert masses["label_smoothing"] == pytest.approx(0.9 + 0.1 / len(in_use()), abs=1e-4)
    assert masses["lwkd"] == pytest.approx(0.9, abs=0.06)
    assert len(in_use()) < V / 4 and all(rest.abs().max() < 1e-4 for rest in unused.values())


def test_the_discriminator_learns_apart_from_the_student():
    """The student's loss leaves it alone, its own loss leaves the student alone;
    it learns to tell labels from students."""
    pair = tiny_pair(2, 3)
    student = pair.new_student()
    method = method_of("lwkd", pair, student)
    rollout = next(methods.references_of(method.run))
    inputs, targets, mask = rollout.tokens[:, :-1], rollout.tokens[:, 1:], rollout.response_mask[:, 1:]

    def losses():
        """(the student's, the discriminator's) gradients of one step:
        of the student's loss, and what learn() will follow."""
        method.before_step(at_step(0, rows=24))
        student.zero_grad()
        per_token = method.per_token(student(inputs), None, part_of(targets, mask, inputs))
        per_token[mask].mean().backward()
        before = {name: weight.grad.clone() for name, weight in student.named_parameters()}
        real, made_up = (
            torch.cat([probs[counted] for probs, counted in rows]) for rows in (method.real, method.made_up)
        )
        method.after_step(torch.tensor(0.0))
        assert all(torch.equal(before[name], weight.grad) for name, weight in student.named_parameters())
        return real, made_up, {name: weight.grad.clone() for name, weight in method.named_parameters()}

    real, made_up, gradients = losses()
    hidden, final = (weight.detach().clone().double().requires_grad_() for weight in (method.hidden, method.last))

    def odds(rows):
        return (F.gelu(rows.double() @ hidden) @ final)[:, 0].sigmoid()

    loss = -odds(real).log().mean() - (1 - odds(made_up)).log().mean()
    for wanted, found in zip(torch.autograd.grad(loss, [hidden, final]), gradients.values()):
        assert torch.allclose(wanted.float(), found, rtol=1e-3, atol=1e-6)
    for _ in range(60):
        losses()
        method.learn(torch.tensor(0.0), 0.01)
    real, made_up, _ = losses()
    right = (method.looks_real(real) > 0).float().mean() + (method.looks_real(made_up) < 0).float().mean()
    assert right / 2 > 0.8
    assert (real.diff(dim=-1) <= 0).all() and (made_up.diff(dim=-1) <= 0).all()  # the best first


# ONE.


def test_branches_differ_and_all_learn():
    """Three upper halves that differ from the start, each with a gradient, and a gate;
    the kept student is the first branch."""
    run = Watched(VARIANTS["one"], tiny_pair(2, 3), flags(steps=2))
    first, second = run.states[:2]
    drawn = [
        name
        for name, x in first.items()
        if name.startswith("others.0.") and isinstance(x, torch.Tensor) and x.dim() >= 2
    ]
    assert len(drawn) == 4  # one block above the trunk: qkv, out, up, down
    for name in drawn:
        other, student = name.replace("others.0", "others.1"), "blocks.1." + name.removeprefix("others.0.0.")
        one, two, own = first[name], first[other], run.start[student]
        assert (one - two).abs().mean() > 0.1 * one.std() and (one - own).abs().mean() > 0.1 * own.std()
        assert one.std() == pytest.approx(own.std(), rel=0.5)
    weights = [name for name, x in first.items() if isinstance(x, torch.Tensor)]
    assert all((second[name] - first[name]).abs().max() > 1e-4 for name in weights) and "gate" in weights
    assert not first["gate"].any()  # every branch counts the same at first


def test_one_branch_is_two_cross_entropies():
    """Without others the sum is the student itself: 2 CE + 9 KL(itself || itself)."""
    run = Watched(dataclasses.replace(VARIANTS["one"], method_kwargs={"branches": 1}), tiny_pair(2, 3), flags(steps=1))
    plain = Watched(VARIANTS["sft"], tiny_pair(2, 3), flags(steps=1))
    assert run.steps[0]["loss"] == pytest.approx(2 * plain.steps[0]["loss"], rel=1e-5)
    assert run.steps[0]["gradient_norm"] == pytest.approx(2 * plain.steps[0]["gradient_norm"], rel=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# Another teacher than the pair's.


@pytest.mark.parametrize(
    "student, teacher, wanted",
    [
        ((2, 2, 32), (2, 2, 64), (2, 2, 44)),
        ((2, 2, 64), (4, 4, 128), (3, 3, 90)),
        ((4, 4, 128), (6, 6, 384), (5, 5, 220)),
        ((1, 2, 8), (1, 2, 12), (1, 2, 10)),
    ],
)
def test_an_assistant_is_of_middle_size(student, teacher, wanted):
    """Depth, heads and width are the geometric means, the width a multiple of the heads;
    weights lie between both models'."""
    pair = tiny_pair()
    V, block = pair.tokenizer.n_vocab, pair.student_config.block_size
    small, large = (GPT(GPTConfig(V, block, *shape)) for shape in (student, teacher))
    pair = dataclasses.replace(
        pair, teacher=large.requires_grad_(False), student_config=small.config, student_weights=small.state_dict()
    )
    between = teacher_of(VARIANTS["takd"], pair, flags(steps=1))
    config = between.config
    assert (
        (config.n_layer, config.n_head, config.n_embd) == wanted
        and (config.vocab_size, config.block_size) == (V, block)
    )
    assert small.num_parameters() < between.num_parameters() < large.num_parameters()


def test_takd_is_two_runs_of_supervised():
    """Teacher to assistant, assistant to student: the same weights to the bit as two runs of `supervised` by hand."""
    pair, args = tiny_pair(2, 3), flags(steps=3)
    run = Watched(VARIANTS["takd"], pair, args, seed=4)
    between = GPT(run.teacher.config, generator(1_000_003 * 4 + 5))
    distilled(train_skd, VARIANTS["supervised"], between, pair, flags(steps=9), 4)
    assert same_weights(between.state_dict(), run.teacher.state_dict())
    assert not run.teacher.training and all(weight.grad is None for weight in pair.teacher.parameters())
    chain = Watched(VARIANTS["supervised"], dataclasses.replace(pair, teacher=between), args, seed=4)
    assert same_weights(chain.end, run.end)
    assert not same_weights(Watched(VARIANTS["supervised"], pair, args, seed=4).end, run.end)


def test_sftns_teacher_is_a_copy_that_learned():
    """SFTN's teacher moved, stands still from there on and asks no gradient; the pair's own one did not move."""
    pair, args = tiny_pair(2, 3), flags(steps=3)
    before = weights_of(pair.teacher)
    run = Watched(VARIANTS["sftn"], pair, args)
    assert run.teacher is not pair.teacher and same_weights(before, pair.teacher.state_dict())
    moved = {name: (run.teacher.state_dict()[name] - before[name]).abs().max().item() for name in before}
    assert min(moved.values()) > 0 and max(moved.values()) < 3 * 3 * 0.1 * args.settings.teacher_lr
    assert not any(weight.requires_grad for weight in run.teacher.parameters()) and not run.teacher.training
    again = teacher_of(VARIANTS["sftn"], pair, args)
    assert same_weights(weights_of(run.teacher), weights_of(again))
    still = teacher_of(VARIANTS["sftn"], pair, args, rate=0.0)
    assert same_weights(before, weights_of(still))


def test_the_first_step_of_sftns_teacher_by_hand():
    """CE of both, and KL(teacher || branch) with gradients to both,
    on the branch = the student's upper half over a bridge."""
    pair, args = tiny_pair(2, 3), flags(steps=1)
    found = teacher_of(VARIANTS["sftn"], pair, args)
    draws = generator(1_000_003 + 4)
    bridge = torch.empty(8, 12).normal_(0.0, 12**-0.5, generator=draws).double().requires_grad_()
    rows = torch.randperm(24, generator=draws)[:4].tolist()
    teacher, student = copy.deepcopy(pair.teacher).double().requires_grad_(), pair.new_student().double()
    head = student.head.detach().clone().requires_grad_()
    losses = []
    for i in rows:
        prompt, response = pair.train.prompts[i], pair.train.responses[i]
        inputs, at = torch.tensor(prompt + response)[:-1], range(len(prompt) - 1, len(prompt) + len(response) - 1)
        other = teacher(inputs[None])[0].softmax(-1)
        branch = student.blocks[1]((hidden_of(teacher, inputs)[1] @ bridge.T)[None], 0)
        own = (student.norm(branch)[0] @ head.T).softmax(-1)
        losses += [ce(other[t], token) + ce(own[t], token) + kl(other[t], own[t]) for t, token in zip(at, response)]
    weights = list(teacher.parameters())
    torch.stack(losses).mean().backward()
    everything = [*weights, bridge, head, *student.blocks[1].parameters(), *student.norm.parameters()]
    torch.nn.utils.clip_grad_norm_(everything, 1.0)
    make_optimizer(teacher, learning_rate(0, 1, 0.1 * args.settings.teacher_lr)).step()
    # A first step of Adam is as long as the rate wherever there is a gradient; no key bias has one.
    apart = moved_apart({name: weight.float() for name, weight in teacher.state_dict().items()}, weights_of(found))
    assert apart < 1e-6 < 1e-4 < moved_apart(weights_of(pair.teacher), weights_of(found))


# ---------------------------------------------------------------------------------------------------------------------
# Everything that a method needs to go on is in its state_dict.

KEEPING = [
    "taid", "veto", "adaspec", "rs_kd", "distillm", "fitnet", "hidden_cosine", "fsp", "dskd", "lelp", "rdd", "lwkd",
    "label_smoothing", "one", "kdiga", "rkd", "supervised", "exopd", "kdrl",
]


class Driven:
    """A method and its student, driven by hand: the updates of `distill` without its sampling,
    its rate and its records."""

    def __init__(self, variant, seed=1):
        self.pair = tiny_pair(2, 3)
        self.student, knobs = (
            self.pair.new_student(),
            {"distillm": {"capacity": 10, "rise": 0.05}, "rdd": {"warmup": 0.7}}.get(variant, {}),
        )
        self.method = method_of(variant, self.pair, self.student, seed, flags(steps=24), **knobs)
        self.outputs = []

    def write(self, step):
        prompts, responses = ([column[i % 24] for i in range(4 * step, 4 * step + 4)] for column in self.pair.train[1:])

        def by(writer, *models, **options):
            if writer == "student":  # any text, as long as the step decides it
                return rollout_from_ids(prompts, [response[::-1] for response in responses], [STUDENT] * 4, "cpu")
            return rollout_from_ids(prompts, responses, [DATASET] * 4, "cpu")

        return self.method.write(at_step(step, 24, write=by))

    def step(self, step):
        rollout = self.write(step)
        student_logits, teacher_logits, part = forward_of(self.method, self.student, self.pair.teacher, rollout)
        per_token, mask = self.method.per_token(student_logits, teacher_logits, part), part.tokens.mask
        self.student.zero_grad()
        loss = per_token[mask].mean()
        loss.backward()
        with torch.no_grad():
            for weight in self.student.parameters():
                weight -= 0.003 * weight.grad / weight.grad.norm().clamp(min=1e-9)
        self.method.learn(loss.detach(), 0.01)
        self.method.after_evaluation({"val_nll": float(step + 1)})
        self.outputs += [per_token.detach().masked_fill(~mask, 0.0), rollout.finished, rollout.source]

    def go_on(self):
        """Twelve more steps -> (what each gave, the state at the end)."""
        self.outputs = []
        for step in range(12, 24):
            self.step(step)
        return self.outputs, flat(self.method.state_dict())


def flat(state):
    """A state_dict with the parts of its extra state, and of the optimizer's in that, as entries of their own."""
    rest, found = dict(state), {}
    extra = dict(rest.pop("_extra_state"))
    for number, moments in (extra.pop("optimizer") or {"state": {}})["state"].items():
        found |= {("optimizer", number, name): x for name, x in moments.items()}
    found |= {("extra", name): x for name, x in extra.items()}
    return found | rest


def same_values(one, other):
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.shape == other.shape and torch.equal(one.nan_to_num(7.7), other.nan_to_num(7.7))
    return not isinstance(one, torch.Tensor) and not isinstance(other, torch.Tensor) and one == other


@functools.cache
def halfway(variant):
    """(state of the method after twelve steps, of the student, what then comes): the state went through a file."""
    driven, file = Driven(variant), io.BytesIO()
    for step in range(12):
        driven.step(step)
    torch.save([driven.method.state_dict(), driven.student.state_dict()], file)
    file.seek(0)
    method, student = torch.load(file, weights_only=True)
    return method, student, driven.go_on()


def resumed(variant, state, student):
    """What a fresh object of another seed gives once it has read the state."""
    driven = Driven(variant, seed=2)
    driven.method.load_state_dict(state)
    driven.student.load_state_dict(student)
    return driven.go_on()


@matrix("variant", KEEPING, fast=[name for name in KEEPING if name != "adaspec"])  # which distils twice
def test_a_state_is_all_there_is(variant):
    """Saved, read into a fresh object of another seed, and gone on with:
    the same numbers to the bit, and the same state."""
    method, student, (outputs, end) = halfway(variant)
    found, found_end = resumed(variant, copy.deepcopy(method), student)
    assert all(map(torch.equal, outputs, found)) and end.keys() == found_end.keys()
    assert all(same_values(end[name], found_end[name]) for name in end)


def other_value(x):
    """A value in the place of x that means something else, and is still of its kind."""
    if isinstance(x, torch.Tensor):
        if x.dtype == torch.uint8:
            return generator(77).get_state()
        if x.dim() == 0:
            return x + 1
        if x.dtype.is_floating_point:  # by amounts that differ: a model's norms take off what is the same everywhere
            return x + torch.randn(x.shape, generator=generator(5))
        return ~x if x.dtype == torch.bool else x - 1 if same_values(x, x.roll(1, 0)) else x.roll(1, 0)
    return {float: lambda: x + 300, int: lambda: 2}.get(type(x), lambda: 0.0)()


DRAWS = {"rs_kd", "distillm", "lwkd"}  # from their generator, in the run; the others in the beginning alone


@matrix("variant", KEEPING, fast=["taid", "rs_kd", "distillm", "fitnet", "label_smoothing", "supervised", "kdrl"])
def test_nothing_in_a_state_is_idle(variant):
    """Every entry counts: without it loading fails, and with another value in its place what comes is different."""
    method, student, (outputs, end) = halfway(variant)
    names = list(flat(method))
    for name in names[:: max(1, len(names) // 30)]:  # of many alike, some
        state = copy.deepcopy(method)
        if isinstance(name, tuple) and name[0] == "optimizer":
            place, key = state["_extra_state"]["optimizer"]["state"][name[1]], name[2]
        else:
            place, key = (state["_extra_state"], name[1]) if isinstance(name, tuple) else (state, name)
        place[key] = other_value(place[key])
        found, found_end = resumed(variant, copy.deepcopy(state), student)
        others = [entry for entry in end if entry != name]
        changed = not all(map(same_values, outputs, found)) or not all(
            same_values(end[entry], found_end.get(entry)) for entry in others
        )
        idle = name == ("extra", "generator") and variant not in DRAWS
        assert changed != idle, name
        del place[key]
        if name[0] != "optimizer":
            with pytest.raises((KeyError, RuntimeError)):
                Driven(variant, seed=2).method.load_state_dict(state)


def test_what_keeps_nothing_has_nothing_to_save():
    """KEEPING has a row of every kind of Method; the rows beside it share their classes."""
    # Average and Sibling keep their teacher: test_hints.py, test_resume.py
    kinds = {methods.Method, *methods.METHODS.values()} - {methods.Average, methods.Sibling}
    assert {type(method_of(name)) for name in KEEPING} == kinds
    for name in ("supervised", "rkd", "kdiga", "label_smoothing"):
        assert list(method_of(name).state_dict()) == ["_extra_state"]


@pytest.mark.parametrize("variant", ["rs_kd", "distillm", "fitnet", "fsp", "dskd", "lelp", "lwkd", "one"])
def test_draws_are_the_seeds(variant):
    """What a method draws in the beginning, and its generator, are those of the run's seed."""
    one, other, third = (flat(method_of(variant, seed=seed).state_dict()) for seed in (1, 1, 2))
    assert one.keys() == other.keys() == third.keys() and all(same_values(one[name], other[name]) for name in one)
    assert not same_values(one["extra", "generator"], third["extra", "generator"])
    drawn = {
        "fitnet": "projector.weight", "fsp": "second.weight", "dskd": "to_student.weight", "lelp": "head",
        "lwkd": "points", "one": "others.1.0.up.weight",
    }
    assert variant not in drawn or not same_values(one[drawn[variant]], third[drawn[variant]])


# ---------------------------------------------------------------------------------------------------------------------
# Policy gradients with a reward beside the teacher's.


def test_extrapolation_of_nothing_is_on_policy_distillation():
    """ExOPD at strength 1 ends at opd's very weights, however far the student has moved; at 1.25 it does not."""
    pair, args = tiny_pair(2, 3), flags(steps=3)
    opd = Watched(VARIANTS["opd"], pair, args)
    for strength in (1.0, 1.25):
        row = dataclasses.replace(VARIANTS["exopd"], method_kwargs={"strength": strength})
        run = Watched(row, pair, args)
        assert same_weights(opd.end, run.end) == (strength == 1)
        assert same_weights(run.start, weights_of(run.method.student_at_start)) and not same_weights(run.start, run.end)


def count_sevens(pair, rows, responses):
    """A scorer that untrained models satisfy, each in its own way."""
    return [float(sum(token % 7 == row % 7 for token in response)) for row, response in zip(rows, responses)]


@pytest.mark.parametrize("how", [[], ["--micro-batch", "3"], ["--chunk-loss", "yes"]], ids=" ".join)
def test_scores_are_compared_within_a_group(monkeypatch, how):
    """kdrl by hand: a batch is two prompts four times each; a token's advantage is its response's score less its
    siblings' mean, over their deviation, + beta times what the teacher says; also in parts. The record has the mean."""
    monkeypatch.setattr(compare, "scores", count_sevens)
    pair, row = tiny_pair(2, 3), dataclasses.replace(VARIANTS["kdrl"], method_kwargs={"group": 4, "beta": 0.5})
    run = Watched(row, pair, flags("--batch-size", "8", *how))
    order = compare.make_run(pair, flags("--batch-size", "8"), 1)
    order.begin(pair.new_student(), pair.train.prompts, pair.train.responses)
    for step, (line, rollout) in enumerate(zip(run.steps, run.rollouts)):
        numbers = [order.order[step, place].item() for place in (0, 0, 0, 0, 1, 1, 1, 1)]
        assert prompts_of(rollout) == [pair.train.prompts[number] for number in numbers]
        assert len(set(map(tuple, rollout.responses()[:4]))) > 1
        scores = torch.tensor(count_sevens(pair, numbers, rollout.responses()), dtype=torch.float64).view(2, 4)
        assert line["reward"] == pytest.approx(scores.mean().item())
        relative = (scores - scores.mean(-1, keepdim=True)) / scores.std(-1, keepdim=True, correction=0)
        rows = list(rows_of(run, step))
        losses = [
            0.5 * at_each(advantage)(row) - score * torch.stack([own[token].log() for own, token in
                                                                 zip(row.student_probs, row.response)])
            for row, score in zip(rows, relative.flatten())
        ]
        loss = torch.cat(losses).mean()
        loss.backward()
        norm = math.sqrt(sum(weight.grad.square().sum().item() for weight in rows[0].student.parameters()))
        assert (line["loss"], line["gradient_norm"]) == pytest.approx((loss.item(), norm), rel=1e-4)


def test_groups_and_their_scores():
    """1, 0, 0, 0 is 1.732051 and -.577350 three times; equal scores are zeros, as is a group of one; a batch that is no
    multiple ends with a smaller group; each row's prompt is its group's."""
    found = groups.group_advantages(torch.tensor([1.0, 0, 0, 0, 0.3, 0.3, 0.3, 0.3, 5.0]), 4)
    assert found.tolist() == pytest.approx([1.732051, *[-0.577350] * 3, *[0.0] * 5], abs=1e-6)
    run = types.SimpleNamespace(order=torch.arange(18).view(2, 9), reward=count_sevens)
    groups.use_groups(run, 4)
    assert run.order.tolist() == [[0] * 4 + [1] * 4 + [2], [9] * 4 + [10] * 4 + [11]]


def test_every_process_takes_its_own_scores(monkeypatch):
    """Of three processes the second has rows 1 and 4 of six: their advantages are those that the whole batch gives."""
    written = [[7], [7, 7], [14], [], [21, 7, 7], [28]]  # 1, 2, 1, then 0, 3, 1 multiples of seven
    method = method_of("kdrl", group=3)
    monkeypatch.setattr(groups, "gathered_in_order", lambda own: [1.0, own[0], 1.0, 0.0, own[1], 1.0])
    method.run.reward = lambda rows, responses: count_sevens(None, [0] * len(rows), responses)
    ours = [written[place] for place in (1, 4)]
    rollout = rollout_from_ids([[1], [2]], ours, [STUDENT] * 2, "cpu")
    step = {"places": [1, 4], "example_ids": [5, 6], "progress": 0.0}
    method.write(types.SimpleNamespace(**step, write=lambda *_, **options: rollout))
    assert method.advantages.tolist() == pytest.approx([2**0.5, 5 / 14**0.5])
    assert method.run.step.notes["reward"] == pytest.approx(8 / 6)


def test_scores_of_the_task():
    """A run's reward is the task's score of the decoded response, and a reference gets 1."""
    pair = tiny_pair()
    reward = compare.make_run(pair, flags(), 1).reward
    assert reward([3, 5, 3], [pair.train.responses[3], pair.train.responses[5], [7]]) == [1, 1, 0]
    assert pair.train.responses[3] != pair.train.responses[5]


# MOPD: a teacher for each task.


def two_tasks_pair():
    """A tiny pair whose prompts are of math or of translation."""
    data = encode_task(make_task("mixed", difficulty=1, **SIZES), PairSettings())
    teacher, student = (sharp_gpt(width, data.tokenizer.n_vocab, data.block_size, width) for width in (12, 8))
    splits = [data.splits[name] for name in ("train", "val", "test", "ood")]
    return Pair(data.task, data.tokenizer, teacher.requires_grad_(False), student.config, student.state_dict(), *splits,
                data.max_new_tokens, "two tasks")


def test_each_prompt_has_its_own_teacher():
    """mopd: a specialist is the teacher after cross-entropy on its own task's references, and all keep its embedding; a
    row is answered by its own one, whoever stands beside it; the student learns from that."""
    pair = two_tasks_pair()
    run = Watched(VARIANTS["mopd"], pair, flags(steps=2))
    experts, names = run.teacher.specialists, ("math", "translation")
    parts = [pair.task.part(example) for example in pair.train.examples]
    assert set(parts) == set(names) and len(experts) == 2
    tokens = [torch.tensor([text + response[:1]]) for text, response in zip(*pair.train[1:])]
    for text, part in zip(tokens, parts):
        own = experts[names.index(part)](text)
        assert torch.equal(run.teacher(text), own)
        assert torch.allclose(run.teacher(text, features=True) @ run.teacher.head.T, own, atol=1e-5)
    both = [next(text for text, part in zip(tokens, parts) if part == name)[:, :2] for name in names]
    together = run.teacher(torch.cat(both))
    for row, (text, expert, other) in enumerate(zip(both, experts, reversed(experts))):
        assert torch.allclose(together[row], expert(text)[0], atol=1e-5)
        assert not torch.allclose(together[row], other(text)[0], atol=1e-3)
    for name, expert in zip(names, experts):
        learner = copy.deepcopy(pair.teacher).requires_grad_(True)
        learner.token_embedding.requires_grad_(False)
        rows = [number for number, part in enumerate(parts) if part == name]
        columns = [[column[row] for row in rows] for column in pair.train[1:]]
        alone = compare.make_run(pair, flags(steps=2, lr=0.1 * flags().settings.teacher_lr), 1)
        train_skd.distill(VARIANTS["sft"], learner.train(), pair.teacher, *columns, alone)
        assert same_weights(weights_of(learner), weights_of(expert))
        assert torch.equal(expert.head, pair.teacher.head)
        assert not same_weights(weights_of(expert), weights_of(pair.teacher))
    for step, line in enumerate(run.steps):
        assert (line["loss"], line["gradient_norm"]) == pytest.approx(plain_loss("mopd", run, step, "token"), rel=1e-4)


def test_domains_that_no_token_tells_are_refused():
    """Prompts of two domains that begin alike, or not one domain for each prompt: one line."""
    pair, student = tiny_pair(), tiny_pair().new_student()
    for domains, words in ((["a", "b"] * 12, "first token must tell its domain"), (["a"], "found 1, 24 prompts")):
        run = compare.make_run(pair, flags(), 1)
        run.begin(student, pair.train.prompts, pair.train.responses)
        run.domains = domains
        with pytest.raises(ValueError, match=words) as error:
            methods.specialists(train_skd.distill, student, pair.teacher, run)
        assert "\n" not in str(error.value)


def test_groups_need_room():
    """Fewer rows than a group has: one line, before anything is made."""
    with pytest.raises(ValueError, match="answers each prompt 4 times: give at least --batch-size 4, found 3") as error:
        train_skd.check_row("kdrl", flags("--batch-size", "3"), 24)
    assert "\n" not in str(error.value)
    train_skd.check_row("kdrl", flags("--batch-size", "4"), 24)


# ---------------------------------------------------------------------------------------------------------------------
# Rows that are the same method at the end of a knob.

SAME_AT_AN_END = [
    ("hinton", {"kd_weight": 0.0, "temperature": 1.0}, "sft"),
    ("hinton", {"kd_weight": 1.0, "temperature": 1.0}, "supervised"),
    ("gkd", {"student_share": (0.0, 0.0), "loss": "forward_kl", "loss_kwargs": {}}, "supervised"),
    ("gkd", {"student_share": (1.0, 1.0), "loss": "forward_kl", "loss_kwargs": {}}, "on_policy"),
    ("amid", {"loss_kwargs": {"alpha": -1.0, "weight": 0.1, "order": "teacher_assistant", "base": "forward_kl"}},
     "skew_kl"),
    ("topk_kd", {"loss_kwargs": {"top_k": 256}}, "supervised"),
    ("se_kd", {"loss_kwargs": {"share": 1.0}}, "supervised"),
    ("adaspec", {"method_kwargs": {"share": 1.0}}, "supervised"),
    ("veto", {"method_kwargs": {"start": 0.0}}, "on_policy"),
    ("tip", {"loss_kwargs": {"share": 1.0, "divergence": "reverse_kl"}}, "fdistill_rkl"),
    ("rkl_students_top", {"loss_kwargs": {"top_k": 257, "reverse": True, "whose": "student"}}, "fdistill_rkl"),
    ("fitnet", {"method_kwargs": {"feature": "hidden_mse", "weight": 0.0}}, "supervised"),
    ("kdiga", {"method_kwargs": {"weight": 0.0}}, "supervised"),
    ("dskd", {"kd_weight": 0.0}, "sft"),
    ("fresh_teacher", {"sampling": {"accept_rule": "topk", "accept_on": "raw"}}, "skd"),
    ("taid", {"method_kwargs": {"start": 1.0}}, "supervised"),
    ("skd_k_steps", {"sampling": {"accept_top_k": ("linear", 1.0, 1.0)}}, "skd"),
    ("speckd", {"loss_kwargs": {"accept_top_k": 257}}, "supervised"),
    ("trb", {"sampling": {"trust_region": 0.0}}, "fdistill_rkl"),
    ("prefix_opd", {"sampling": {"prefix": 1.0}}, "fdistill_rkl"),
    ("ssd", {"answers": 0.0, "answers_top_p": None, "teacher": "pair"}, "seqkd"),
    ("dkd", {"loss_kwargs": {"alpha": 0.0, "beta": 1e-5}, "kd_weight": 0.5}, "half of sft"),
    ("exopd", {"method_kwargs": {"strength": 1.0}}, "opd"),
    ("iw_opd", {"loss_kwargs": {"early": 0.0}}, "opd"),
    ("kdrl", {"method_kwargs": {"group": 1, "beta": 1.0}}, "opd"),
]


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize(
    "variant, changes, twin", SAME_AT_AN_END, ids=[f"{row}-{twin}" for row, _, twin in SAME_AT_AN_END]
)
def test_a_knob_leads_from_one_row_to_another(variant, changes, twin):
    """At the end of its knob a row trains what another row trains:
    the same loss and gradient at every step, to rounding."""
    pair, args = tiny_pair(2, 3), flags(steps=3)
    row = VARIANTS["sft"] if twin == "half of sft" else VARIANTS[twin]
    run, other = Watched(dataclasses.replace(VARIANTS[variant], **changes), pair, args), Watched(row, pair, args)
    scale = 0.5 if twin == "half of sft" else 1.0
    for line, wanted in zip(run.steps[:1] if scale != 1 else run.steps, other.steps):
        for figure in ("loss", "gradient_norm"):
            assert line[figure] == pytest.approx(scale * wanted[figure], rel=1e-4, abs=1e-7), figure
