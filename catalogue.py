"""Rows: a method is a row of a table. What the columns mean (`Variant`: a fixed teacher, train_skd.py; `OnlineVariant`:
a teacher that learns along, train_okd.py), and every row beyond the two papers' own comparisons, which stand in the
scripts, in the order of the pages.

A row that only combines what exists is a new method: it stands here and nowhere else. What a method keeps from step to
step is a class of methods.py; docs/methods.md shows the rows as tables.
"""

from dataclasses import dataclass, field

from losses import NO_TEACHER
from sample import WRITERS

# Where a row can have been read. "summary": what others write about a paper; "ours": nowhere, it is this project's own.
READ_FROM = ("paper", "code", "abstract", "summary", "common knowledge", "ours")


@dataclass(frozen=True)
class Variant:
    """One method with a fixed teacher. A new one is a new row of a table; flags, tests and docs/methods.md follow.

    accept_top_k=None in `loss_kwargs` takes the value of --accept-top-k. In `sampling`, (shape, first, last) moves over
    the run, shape being "linear" or "cosine", and (shape, first, last, share) over the first `share` of it.
    """

    writer: str  # a name in sample.WRITERS
    loss: str  # "cross_entropy", or a name in one of the tables of losses.py
    paper: str | None  # arXiv id or DOI
    note: str  # what it changes
    deviation: str = ""  # what is not the paper's: analogy, restriction, reconstruction
    read_from: str = "ours"  # where the row was read: one or two of READ_FROM, joined by ", "
    loss_kwargs: dict = field(default_factory=dict)  # of the loss
    kd_weight: float = 1.0  # of the loss; the rest is cross-entropy on the tokens
    temperature: float = 1.0  # of both sides of the loss
    # mixed: chance that the student writes, in the first and in the second half of the run
    student_share: tuple = (0.0, 0.0)
    mix_per: str = "batch"  # mixed: one draw per "batch" or per "sequence"
    answers: float | None = None  # the teacher's answers at this temperature take the place of the references
    answers_top_p: float | None = None  # their nucleus
    # overrides the sampling flags; accept_top_k and trust_region multiply the flag's value
    sampling: dict = field(default_factory=dict)
    method: str | None = None  # a name in METHODS: what is kept from step to step
    method_kwargs: dict = field(default_factory=dict)  # keywords of the method
    teacher: str = "pair"  # a name in TEACHERS: the one given, or one that is made before training
    hint: str | None = None  # what the teacher reads before the prompt: a kind in data.tasks.HINTS, or "sibling"
    # learning rate as a multiple of the default of --size (results/rates*; 1 where none was tried). Only the scripts
    # apply it (compare.peak_rate): distill takes Run(lr=...) as it is
    rate: float = 1.0

    def __post_init__(self):
        assert self.mix_per in ("batch", "sequence"), (
            f"who writes is drawn per batch or per sequence, not per {self.mix_per}"
        )
        knobs = self.sampling.keys() - {"prefix", self.writer}
        assert not knobs or self.writer in ("interleaved", "switching"), (
            f"{self.writer} has no use for {self.sampling}"
        )
        assert "prefix" not in self.sampling or WRITERS[self.writer].student_writes, (
            f"{self.writer} writes nothing now that a prefix could end"
        )
        shapes = {value[0] for value in self.sampling.values() if isinstance(value, tuple)}
        assert shapes <= {"linear", "cosine"}, f"a schedule is linear or cosine, found {shapes}"
        fixed = self.loss in NO_TEACHER and self.loss != "label_smoothing"
        assert not fixed or (self.kd_weight == 1 and not self.loss_kwargs), (
            f"{self.loss} has neither loss_kwargs nor another loss beside it"
        )


@dataclass(frozen=True)
class OnlineVariant:
    """One method whose teacher learns along, or a control. None in a field of train_okd.DEFAULTS is the flag's value,
    but for `module`, where None is a fixed teacher and "flag" the value of --module. Elsewhere None means none."""

    paper: str | None  # arXiv id
    note: str
    writer: str = "dataset"  # of the tokens that divergences are taken on (sample.write_tokens)
    student_share: tuple = (0.0, 0.0)  # mixed: in the first and in the second half
    mix_per: str = "batch"
    # the student's side
    student_divergence: str | None = None  # a name in losses.DIVERGENCES, or "minillm"
    student_kd: float | None = None  # weight of the divergence; the rest is cross-entropy on the references
    # the teacher's side; without a module it is fixed
    module: str | None = None  # a name in model.ONLINE_MODULES; "flag": the one of --module
    module_lr: float | None = None  # as a share of the student's
    alpha: float | None = None  # weight of the student's feedback; the rest is cross-entropy on the references
    teacher_divergence: str | None = None
    anchor: float | None = None  # weight of KL(adapted || original)
    anchor_decay: bool = False  # the anchor falls linearly to 0
    update: str | None = None  # "simultaneous", or "alternating": the student learns from the teacher after its update
    rank: int | None = None
    # in place of the teacher's loss: a meta-gradient, "exact" or by "difference"
    meta_gradient: str | None = None
    deviation: str = ""  # what is not the paper's
    read_from: str = "ours"  # where the row was read, as a Variant's
    temperature: float | None = None  # of both divergences
    module_scale: float | None = None  # factor on what the module adds
    module_start: float | None = None  # share of the steps before the module starts to move
    teacher_mix: float | None = None  # minillm: the teacher's share in every draw
    hint: str | None = None  # as a Variant's
    rate: float = 1.0  # as a Variant's
    sampling = {}  # no row of this kind has sampling settings of its own

    def __post_init__(self):
        assert not self.hint or self.writer == "dataset" and not self.meta_gradient, (
            "a teacher that learns along reads a hint before references only, and by no meta-gradient"
        )


# fmt: off
FIXED_TEACHER = {  # of train_skd.py
    # another loss on the references
    "hinton": Variant("dataset", "forward_kl", "1503.02531",
                      "half cross-entropy, half KL between distributions softened by T = 2", kd_weight=0.5,
                      temperature=2.0, read_from="code"),
    "tvd": Variant("dataset", "total_variation", "2307.15190", "total variation in place of KL", read_from="code"),
    "skew_kl": Variant("dataset", "skew_forward_kl", "2402.03898",
                       "forward KL to a mixture with .1 teacher: bounded gradients", read_from="code"),
    "skew_reverse_kl": Variant("dataset", "skew_reverse_kl", "2402.03898", "reverse KL to a mixture with .1 student",
                               read_from="code"),
    "abkd": Variant("dataset", "alpha_beta", "2505.04560",
                    "alpha-beta divergence (.2, .7), between forward and reverse KL",
                    "without its code's language-model loss", read_from="code"),
    "amid": Variant("dataset", "amid", "2510.15982",
                    "divergence between the teacher and an alpha-mixture of both models",
                    "references only; its code also replays student samples and adds a language-model loss",
                    read_from="code"),
    "akl": Variant("dataset", "adaptive_kl", "2404.02657",
                   "forward and reverse KL, weighed by how far the models differ on the teacher's head and on its tail",
                   "head: smallest set with half the mass; weights get no gradient", read_from="code"),
    "dkd": Variant("dataset", "decoupled_kd", "2203.08679",
                   "KL in two terms: the reference token against the rest, and within the rest",
                   "from image classification, class = token; alpha 1, beta 2 and half cross-entropy are ours",
                   loss_kwargs={"beta": 2.0}, kd_weight=0.5, read_from="code"),
    "logit_std": Variant("dataset", "standardized_kl", "2403.01427",
                         "KL of logits standardised over the vocabulary; the cross-entropy alone fixes their scale",
                         "from image classification; KD : cross-entropy is 9 : 1, in its code 90 : 1", kd_weight=0.9,
                         read_from="code"),
    "bild": Variant("dataset", "bidirectional_logit_differences", "2406.13555",
                    "differences between the 8 largest logits, once the teacher's 8, once the student's",
                    "without its code's KL on the prompt", read_from="code"),
    "taid": Variant("dataset", "forward_kl", "2501.16937",
                    "the target moves from the student's own logits to the teacher's",
                    "its schedule reads the KL, in its code the cross-entropy", method="interpolation",
                    read_from="code"),
    "topk_kd": Variant("dataset", "top_k_kl", "2503.16870",
                       "KL over the teacher's 8 likeliest tokens and one class for the rest",
                       "the class for the rest is ours", loss_kwargs={"top_k": 8}, read_from="code"),
    "rs_kd": Variant("dataset", "forward_kl", "2503.16870",
                     "cross-entropy with 12 tokens sampled from the teacher at every position",
                     "sampled from the teacher itself, without a proposal distribution", method="sampled_targets",
                     read_from="summary"),
    "uld": Variant("dataset", "universal_logit", "2402.12030", "probabilities compared by rank, whatever the tokens",
                   "one tokenizer, though made for two; KD : cross-entropy is 1.5 : 1", kd_weight=0.6,
                   read_from="code"),

    # another target, or other positions (2024 to 2026)
    "todi": Variant("dataset", "token_wise_kl", "2505.16297",
                    "forward KL for tokens the student underrates, reverse KL for those it overrates",
                    "T = 1 and no cross-entropy, in its code T = 2 and half of either", read_from="code"),
    "dpkd": Variant("dataset", "favourites", "2406.19774",
                    "preference loss: the teacher's likeliest token before the student's",
                    "beta 1 is ours; half cross-entropy, without which only the likeliest token would be learned",
                    kd_weight=0.5, read_from="code"),
    "csd": Variant("dataset", "logit_differences", "2509.25837",
                   "squared differences of logit differences, over all pairs of tokens",
                   "both tokens weighted by the student, as in its code's main loss: reverse KL's gradient, exactly;"
                   " references only", read_from="abstract, code"),
    "csd_teacher": Variant("dataset", "logit_differences", "2509.25837",
                           "csd with pairs weighted by the teacher and by the student", "references only",
                           loss_kwargs={"first": "teacher"}, read_from="abstract, code"),
    "se_kd": Variant("dataset", "chosen_positions", "2602.01395",
                     "KL only at the fifth of a response's positions where the student is least sure",
                     "reconstruction: forward KL; a fifth of each response, rounded up; the teacher is asked"
                     " everywhere, so nothing is saved", read_from="abstract"),
    "adaspec": Variant("dataset", "forward_kl", "2510.19779",
                       "trains a draft model where a copy of it that was distilled first is nearer to the teacher",
                       ".4 of each response, in its code of a batch; the copy takes as many steps as the student",
                       method="learnable", read_from="code"),

    # another writer
    "fdistill_kl": Variant("teacher", "forward_kl", "2307.15190", "KL on the teacher's samples", answers=1.0,
                           read_from="code"),
    "fdistill_rkl": Variant("student", "reverse_kl", "2307.15190", "reverse KL on the student's samples",
                            read_from="code", rate=0.5),
    "fdistill_js": Variant("mixed", "jsd_by_writer", "2307.15190",
                           "JSD: its student part on student samples, its teacher part on teacher samples",
                           "one response per prompt, drawn from either, not both; mean over tokens", answers=1.0,
                           student_share=(0.5, 0.5), mix_per="sequence", read_from="code"),
    "fdistill_tvd": Variant("mixed", "total_variation", "2307.15190",
                            "total variation, half on student samples and half on teacher samples",
                            "one response per prompt, drawn from either, not both; mean over tokens", answers=1.0,
                            student_share=(0.5, 0.5), mix_per="sequence", read_from="code"),
    "distillm": Variant("mixed", "skew_forward_kl", "2402.03898",
                        "skew KL; references until validation worsens, then student samples, kept and replayed",
                        "validation by NLL, eight times a run; no loss on a pretraining corpus", method="replay",
                        read_from="code"),  # the method chooses each batch's writer
    "distillm2": Variant("mixed", "skew_by_writer", "2503.07067",
                         "skew KL on teacher samples, skew reverse KL on student samples",
                         "one response per prompt, drawn from either: half the paper's sum; student samples are fresh,"
                         " not one per epoch; mean over tokens; no curriculum for alpha, as in its code", answers=1.0,
                         student_share=(0.5, 0.5), mix_per="sequence", read_from="paper, code"),
    "distillspec": Variant("student", "total_variation", "2310.08461",
                           "trains a draft model: total variation is its rejection rate",
                           "always total variation; the paper chooses a divergence by task and decoding",
                           read_from="abstract"),
    "opd": Variant("student", "policy_gradient", None,
                   "policy gradient on student samples; advantage: log teacher - log student of the token",
                   "one update per batch, so no importance ratio", read_from="code", rate=0.25),
    "opd_baseline": Variant("student", "policy_gradient", "2605.07865",
                            "opd minus the mean advantage of the position: same gradient, less noise",
                            loss_kwargs={"baseline": True}, read_from="paper", rate=0.25),
    "tip": Variant("student", "chosen_positions", "2604.14084",
                   "reverse KL on student samples, at the half of positions where it is unsure, or sure and wrong",
                   "reconstruction: the highest scores of each response, not drawn; entropy / ln V and JSD / ln 2 in"
                   " place of measures scaled to a batch's extremes",
                   loss_kwargs={"share": 0.5, "score": "soft_or", "divergence": "reverse_kl"},
                   read_from="abstract, summary"),
    "veto": Variant("student", "forward_kl", "2601.07155",
                    "KL on student samples to teacher times student^beta, beta from .8 to 0",
                    "forward KL alone, of its two; beta .8 is its choice for reasoning", method="veto",
                    read_from="abstract, summary"),
    "rkl_teachers_top": Variant("student", "top_k_kl", None,
                                "reverse KL on student samples over the teacher's 8 likeliest tokens, made to sum to 1",
                                "blind to what the student puts elsewhere, whatever it writes there",
                                loss_kwargs={"top_k": 8, "missing": "renormalize_both", "reverse": True}),
    "rkl_students_top": Variant("student", "top_k_kl", None,
                                "reverse KL on student samples over the student's 8 likeliest tokens, made to sum to 1",
                                "blind to what the teacher likes and the student does not expect",
                                loss_kwargs={"top_k": 8, "missing": "renormalize_both", "reverse": True,
                                             "whose": "student"}),
    "eopd": Variant("student", "entropy_gated_kl", "2603.07079",
                    "reverse KL on student samples, and forward KL where the teacher is unsure",
                    "reconstruction from the abstract; unsure: entropy above .5 nats (a summary says .8, and forward KL"
                    " over 16 tokens)",
                    read_from="abstract"),
    "speckd": Variant("dataset", "gated_forward_kl", "2510.24021",
                      "KL only where the student's likeliest token is among the teacher's K likeliest",
                      "reconstruction; its second version is named SelecTKD; mean over all tokens",
                      loss_kwargs={"accept_top_k": None}, read_from="summary"),
    "adaswitch": Variant("switching", "forward_kl", "2510.07842",
                         "the student writes until its KL to the teacher jumps, then the teacher to the end",
                         "reconstruction; a jump: above three times the mean KL of up to four tokens before, from the"
                         " second token on; the teacher writes at the student's temperature",
                         sampling={"factor": 3.0, "window": 4}, read_from="summary"),
    "fresh_teacher": Variant("interleaved", "forward_kl", None,
                             "control: in every step the teacher writes new responses, the student nothing",
                             "skd that accepts nothing; the drafts still count as compute",
                             sampling={"accept_rule": "none", "accept_on": "raw"}),
    "ca_opd": Variant("interleaved", "confidence_gated", None,
                      "accepts by the teacher's probability, not its rank; cross-entropy on replaced tokens",
                      "after Li et al. 2026; on other tokens KL over the 8 likeliest and a class for the rest",
                      sampling={"accept_rule": "minprob", "accept_min_prob": ("cosine", 0.5, 0.25), "replace": "argmax",
                                "accept_on": "raw"},
                      read_from="paper"),
    "skd_k_steps": Variant("interleaved", "forward_kl", None,
                           "SKD with a K that grows over the run, from a third to twice",
                           sampling={"accept_rule": "topk", "accept_top_k": ("linear", 1 / 3, 2.0)}),
    "skd_k_along": Variant("interleaved", "forward_kl", None,
                           "SKD with a K that falls along the response, from twice to a third",
                           "its code lowers K per block, down to 1; twice, a third and 32 tokens are ours",
                           sampling={"accept_rule": "topk_along", "first": 2.0, "last": 1 / 3, "along": 32.0,
                                     "accept_on": "raw"},
                           read_from="code"),
    "skd_entropy": Variant("interleaved", "forward_kl", None,
                           "SKD with typical acceptance: the required probability falls where the teacher is unsure",
                           sampling={"accept_rule": "typical", "accept_on": "raw"}),

    # who writes, in the papers of 2026
    "trb": Variant("trust_region", "reverse_kl", "2605.31159",
                   "a mixture writes at first: as near to the teacher as a shrinking KL around the student allows",
                   "full reverse KL, in the paper over the student's 16 likeliest tokens; one response per prompt; the"
                   " teacher reads the samples again for the loss; of its settings .02 nats (--trust-region), which"
                   " fall to 0 over an eighth of the steps",
                   sampling={"trust_region": ("linear", 1.0, 0.0, 0.125)}, read_from="paper"),
    "trb_fixed": Variant("trust_region", "reverse_kl", "2605.31159",
                         "control: trb whose mixture writes to the end",
                         "as trb", sampling={"trust_region": 1.0}, read_from="paper"),
    "prefix_opd": Variant("student", "reverse_kl", "2602.15260",
                          "student samples end early, at a length that grows to the whole budget",
                          "reconstruction: from a quarter of the budget on, linear in the steps",
                          sampling={"prefix": ("linear", 0.25, 1.0)}, read_from="abstract, summary"),
    "ssd": Variant("dataset", "cross_entropy", "2604.01193",
                   "control without a teacher: cross-entropy on samples of the student's own start, at T = 1.6",
                   "nucleus .8 as its code, without its top-k of 20; nothing is filtered", answers=1.6,
                   answers_top_p=0.8, teacher="start", read_from="abstract, summary"),

    # policy gradients with a reward beside the teacher's, or weights
    "exopd": Variant("student", "policy_gradient", "2602.12125",
                     "opd with the teacher's reward counted from the student's start, times 1.25: a target beyond the"
                     " teacher", "one update per batch, so no importance ratio", method="extrapolation",
                     method_kwargs={"strength": 1.25}, read_from="code", rate=0.125),
    "iw_opd": Variant("student", "policy_gradient", "2606.22600",
                      "opd with weights from 1.5 down to 1 as the prefix strays from the teacher",
                      "one update per batch, so no importance ratio", loss_kwargs={"early": 0.5}, read_from="code",
                      rate=0.25),
    "kdrl": Variant("student", "policy_gradient", "2506.02208",
                    "opd, and the task's score of each response against three others to the same prompt as a reward",
                    "reconstruction: beta 1 throughout and groups of 4 are ours; one update per batch, so neither"
                    " importance ratio nor clipping", method="scored", method_kwargs={"group": 4, "beta": 1.0},
                    read_from="abstract, summary", rate=0.125),
    "mopd": Variant("student", "policy_gradient", "2606.30406",
                    "opd with a teacher per task, each prompt with its own; advantages clipped at 5",
                    "specialists are copies of the pair's teacher that learn on, by one task's references each; made"
                    " for --task mixed: other tasks have one specialist", loss_kwargs={"clip": 5.0},
                    teacher="specialists", read_from="code", rate=0.25),

    # features, added to word-level KD on the references
    "fitnet": Variant("dataset", "forward_kl", "1412.6550",
                      "+ squared error of the middle block's output, through a projector",
                      "beside KD, not as a stage before it", method="feature",
                      method_kwargs={"feature": "hidden_mse", "weight": 1.0}, read_from="code"),
    "hidden_cosine": Variant("dataset", "forward_kl", "1910.01108",
                             "+ 1 - cosine of the last block's output, through a projector",
                             "the projector, since widths differ; KL : cosine is 1 : 1, in its code KL (T = 2),"
                             " language-model loss and cosine 5 : 2 : 1", method="feature",
                             method_kwargs={"feature": "hidden_cosine", "at": "last"}, read_from="code"),
    "at": Variant("dataset", "forward_kl", "1612.03928", "+ where along the sequence activations are large",
                  "position = pixel; sum over positions, not mean", method="feature",
                  method_kwargs={"feature": "attention_transfer", "weight": 10.0}, read_from="code"),
    "sp": Variant("dataset", "forward_kl", "1907.09682", "+ which positions of a sequence resemble each other",
                  "position of a sequence = sample of a batch", method="feature",
                  method_kwargs={"feature": "similarity_preserving", "at": "last", "weight": 10.0}, read_from="code"),
    "rkd_distance": Variant("dataset", "forward_kl", "1904.05068", "+ distances between the positions of a sequence",
                            "16 positions = samples of a batch; weight 1, not 25", method="feature",
                            method_kwargs={"feature": "rkd_distance", "at": "last", "weight": 1.0, "most": 16},
                            read_from="code"),
    "rkd_angle": Variant("dataset", "forward_kl", "1904.05068", "+ angles between the positions of a sequence",
                         "16 positions = samples of a batch; weight 2, not 50", method="feature",
                         method_kwargs={"feature": "rkd_angle", "at": "last", "weight": 2.0, "most": 16},
                         read_from="code"),
    "rkd": Variant("dataset", "forward_kl", "1904.05068", "+ distances and angles between the positions of a sequence",
                   "16 positions = samples of a batch; weights 1 and 2, not 25 and 50", method="feature",
                   method_kwargs={"feature": "rkd", "at": "last", "weight": 0.04, "most": 16}, read_from="code"),
    "fsp": Variant("dataset", "forward_kl", "10.1109/CVPR.2017.754",
                   "+ how features change from the middle block to the last",
                   "position = pixel; beside KD, through projectors", method="flow", read_from="code"),

    "dskd": Variant("dataset", "forward_kl", "2406.17328",
                    "both models' last features under one head: the teacher's under the student's, and the reverse",
                    "one tokenizer; T = 1, in its code 2 without the factor T squared; the maps learn at the student's"
                    " rate; half cross-entropy", kd_weight=0.5, method="dual_space", read_from="code"),

    # papers of other fields
    "cmkd": Variant("dataset", "cmkd", "2410.06561", "Pearson and Spearman correlation with the teacher in place of KL",
                    "over the teacher's 32 likeliest tokens, renormalised; soft ranks (sigmoids, .1); entropy weights"
                    " are a reconstruction; half cross-entropy", kd_weight=0.5, read_from="abstract"),
    "ckd": Variant("dataset", "comparative", "2311.02253",
                   "matches differences between the logits of two positions, not the logits",
                   "positions = samples, all pairs in closed form; cross-entropy fixes the mean logits, in place of"
                   " the paper's label term", loss_kwargs={"label_weight": 0.0}, kd_weight=0.5, read_from="code"),
    "lelp": Variant("dataset", "forward_kl", "2409.20449",
                    "+ the teacher's last features split each token into 4 subclasses, learned too",
                    "reconstruction; the teacher's 2 likeliest tokens, the 256 most frequent ones; directions of unit"
                    " deviation", method="subclasses", read_from="abstract, summary"),
    "rdd": Variant("dataset", "forward_kl", "2407.03719",
                   "+ cross-entropy on easy tokens first, then on tokens hard for exactly one model",
                   "token = pixel; the teacher's middle block = auxiliary head; a median in place of .7; mean over all"
                   " tokens", method="regions", read_from="code"),
    "kdiga": Variant("dataset", "forward_kl", "2110.12072",
                     "+ both models' losses should have the same gradient in the input",
                     "analogy: one-hot tokens = pixels, at the token and the teacher's 4 likeliest; gradients of unit"
                     " length", method="input_gradient", method_kwargs={"weight": 0.05}, read_from="abstract, summary"),
    "lwkd": Variant("dataset", "cross_entropy", "2005.09163",
                    "soft labels from a classifier that never sees the text, and a discriminator",
                    "analogy: noisy points = its simple pictures", method="soft_labels", read_from="abstract"),
    "label_smoothing": Variant("dataset", "label_smoothing", "1512.00567",
                               "control for lwkd: .9 on the reference, .1 spread over the tokens in use",
                               method="smoothing", read_from="common knowledge"),
    "one": Variant("dataset", "cross_entropy", "1806.04606",
                   "no teacher: three branches on one trunk learn from their gated sum",
                   "one gate per position, uniform at first; one branch is the pair's student, the others start anew",
                   method="branches", read_from="summary"),

    # another teacher
    "takd": Variant("dataset", "forward_kl", "1902.03393",
                    "an assistant of middle size is distilled first, then teaches",
                    "the assistant starts from random weights and takes three times the student's steps",
                    teacher="assistant", read_from="code"),
    "sftn": Variant("dataset", "forward_kl", "2102.07650",
                    "the teacher first trains together with a student's upper half",
                    "reconstruction: one branch behind the middle block; loss weights (1 each) and rate are ours",
                    teacher="sftn", read_from="summary"),
}

# A teacher that sees more: it reads a hint before the prompt and judges the same response. Most are the student itself.
# A row with a hint needs a pair that has read some (--hint-share). Without a hint context_kd is `supervised`, and
# context_on_policy is `on_policy`.
FIXED_TEACHER |= {
    "sdft": Variant("student", "forward_kl", "2601.19897",
                    "the student teaches itself: an average of its weights reads an answer before the prompt",
                    "decay .99 per step is ours; the answer is worked anew, it is not the reference; no token left out",
                    teacher="start", method="average", method_kwargs={"decay": 0.99}, hint="solution",
                    read_from="summary, code", rate=0.0125),
    "sdft_demonstration": Variant("student", "forward_kl", None,
                                  "control: sdft whose teacher reads another prompt with its answer",
                                  teacher="start", method="average", method_kwargs={"decay": 0.99},
                                  hint="demonstration", rate=0.0125),
    "sdpo": Variant("student", "top_k_kl", "2601.20802",
                    "the student teaches itself: an average of its weights reads a right answer to the same prompt",
                    "groups of 4, the first other right answer; no clipping; responses without one count as zeros in"
                    " the mean", loss_kwargs={"top_k": 20, "reverse": True, "whose": "student"}, teacher="start",
                    method="sibling", method_kwargs={"group": 4, "decay": 0.99}, hint="sibling",
                    read_from="abstract, summary", rate=0.05),
    "opsd": Variant("student", "generalized_jsd", "2601.18734",
                    "the student teaches itself: its frozen start reads a worked solution before the prompt",
                    "no clipping per token; the solution is worked anew, it is not the reference",
                    loss_kwargs={"beta": 0.5}, teacher="start", hint="solution", read_from="code"),
    "opsd_live": Variant("student", "generalized_jsd", "2601.18734",
                         "opsd with the student's live weights as teacher", "as opsd", loss_kwargs={"beta": 0.5},
                         teacher="start", method="average", method_kwargs={"decay": 0.0}, hint="solution",
                         read_from="code", rate=0.0125),
    "opsd_no_hint": Variant("student", "generalized_jsd", None,
                            "control: opsd whose teacher reads the student's prompt, and has nothing to tell it",
                            loss_kwargs={"beta": 0.5}, teacher="start"),
    "opsd_wrong_hint": Variant("student", "generalized_jsd", None,
                               "control: opsd whose teacher reads another prompt's solution",
                               loss_kwargs={"beta": 0.5}, teacher="start", hint="unrelated"),
    "context_kd": Variant("dataset", "forward_kl", "2209.15189",
                          "the pair's teacher reads a worked solution before the prompt; KD on the references",
                          "on the references, in the paper on the teacher's own answers", hint="solution",
                          read_from="common knowledge"),
    "context_kd_wrong_hint": Variant("dataset", "forward_kl", None,
                                     "control: context_kd whose teacher reads another prompt's solution",
                                     hint="unrelated"),
    "context_on_policy": Variant("student", "forward_kl", None,
                                 "on_policy whose teacher reads a worked solution before the prompt", hint="solution",
                                 rate=0.25),
}

ONLINE_TEACHER = {  # of train_okd.py
    # another divergence to the fixed teacher
    "fixed_jsd": OnlineVariant("2306.13649", "Jensen-Shannon divergence to the fixed teacher on the references",
                               student_divergence="generalized_jsd", read_from="code"),
    # the online teacher
    "okd_collapse": OnlineVariant(None, "control: the module learns from the student alone, at the student's rate",
                                  module="flag", alpha=1.0, module_lr=1.0),
    "okd_reverse_kl": OnlineVariant("2409.12512", "OKD with reverse KL on the student's side", module="flag",
                                    student_divergence="reverse_kl", read_from="paper"),
    "okd_jsd": OnlineVariant("2409.12512", "OKD with the JSD on the student's side", module="flag",
                             student_divergence="generalized_jsd", read_from="paper"),
    "okd_prefix": OnlineVariant("2409.12512", "OKD with gated trainable keys and values", module="prefix",
                                deviation="the gate, which makes it start as the identity", read_from="paper"),
    "okd_ptuning": OnlineVariant("2409.12512", "OKD with trainable virtual tokens", module="ptuning",
                                 deviation="the virtual tokens come from a small network and have no positions",
                                 read_from="paper"),
    "okd_adapter": OnlineVariant("1902.00751", "OKD with bottleneck adapters behind every block", module="adapter",
                                 deviation="one per block, in the paper two", read_from="common knowledge"),
    "okd_full": OnlineVariant(None, "OKD with all of the teacher's weights trainable, at .02 of the student's rate",
                              module="full", module_lr=0.02),
    # relatives
    "dml": OnlineVariant("1706.00384", "two peers: both with cross-entropy and KL, all weights trainable",
                         module="full", student_divergence="forward_kl", student_kd=0.5, alpha=0.5, module_lr=1.0,
                         teacher_divergence="reverse_kl", update="simultaneous",
                         deviation="one peer is a pretrained teacher; both terms are halved; both move at once",
                         read_from="summary"),
    "prokt": OnlineVariant("2107.09305",
                           "the whole teacher learns the references, kept near the student; then the student follows",
                           module="full", student_divergence="forward_kl", alpha=0.5, module_lr=0.02,
                           teacher_divergence="forward_kl", update="alternating",
                           deviation="KL direction and the teacher's rate are guesses; both terms are halved",
                           read_from="abstract"),
    "pesf_kd": OnlineVariant("2205.15308",
                             "an adapter on the last feature; both models take squared error and cross-entropy",
                             module="last_adapter", student_divergence="squared_error", student_kd=0.5, alpha=0.5,
                             teacher_divergence="squared_error",
                             deviation="loss of its language part, summed over the vocabulary; no feature term; T = 1,"
                                       " in its code 5; its code's rate is --module-lr 0.2", read_from="code"),
    "promptkd": OnlineVariant("2402.12842",
                              "a soft prompt minimises KL from the adapted teacher to student and original teacher, on"
                              " student samples", writer="student", module="ptuning", rank=7, module_lr=1.0,
                              student_divergence="reverse_kl", alpha=1.0, teacher_divergence="forward_kl", anchor=1.0,
                              anchor_decay=True, update="alternating",
                              deviation="the prompt comes from a small network, starts at random and has no positions",
                              read_from="code"),
    "metadistil": OnlineVariant("2106.04570",
                                "meta-gradient: one student step must lower the loss on held-out references",
                                module="flag", student_divergence="forward_kl", meta_gradient="exact",
                                update="alternating",
                                deviation="a module, not all weights; KL alone; the inner step is one of SGD at .1; a"
                                          " fifth of the prompts is held out, in its code the validation set",
                                read_from="code"),
    "ikd": OnlineVariant("2109.04641", "metadistil with a finite difference in place of the second derivative",
                         module="flag", student_divergence="forward_kl", meta_gradient="difference",
                         update="alternating",
                         deviation="reconstruction: the difference of DARTS, all else as metadistil",
                         read_from="abstract"),
    # ours: an online teacher on tokens that the student writes
    "okd_on_policy": OnlineVariant(None, "OKD with both KLs on student samples", writer="student", module="flag"),
    "okd_skd": OnlineVariant(None, "OKD with both KLs on SKD's interleaved samples", writer="interleaved",
                             module="flag"),
    # a teacher that sees more (a row with a hint needs --hint-share)
    "okd_context": OnlineVariant(None, "OKD whose teacher reads a worked solution before the prompt", module="flag",
                                 hint="solution"),
}
# fmt: on
