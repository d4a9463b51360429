"""Every row beyond the two papers' own comparisons: one literal table per script, in the order of the pages.

A row that only combines what exists is a new method: it stands here and nowhere else. What the columns mean says
methods.py (Variant, OnlineVariant); docs/methods.md shows the rows as tables.
"""

from methods import OnlineVariant, Variant

# fmt: off
FIXED_TEACHER = {  # of train_skd.py
    # another loss on the references
    "hinton": Variant("dataset", "forward_kl", "1503.02531",
                      "half cross-entropy, half KL between distributions softened by T = 2",
                      kd_weight=0.5, temperature=2.0, read_from="code"),
    "tvd": Variant("dataset", "total_variation", "2307.15190", "total variation in place of KL", read_from="code"),
    "skew_kl": Variant("dataset", "skew_forward_kl", "2402.03898",
                       "KL to a mixture with .1 teacher: gradients stay bounded", read_from="code"),
    "skew_reverse_kl": Variant("dataset", "skew_reverse_kl", "2402.03898", "reverse KL to a mixture with .1 student",
                               read_from="code"),
    "abkd": Variant("dataset", "alpha_beta", "2505.04560",
                    "alpha-beta divergence (.2, .7), between forward and reverse KL",
                    "its code adds a language-model loss", read_from="code"),
    "amid": Variant("dataset", "amid", "2510.15982", "the teacher is compared with an alpha-mixture of both",
                    "on references alone: its code also learns from student samples, kept and replayed as in distillm,"
                    " and adds a language-model loss", read_from="code"),
    "akl": Variant("dataset", "adaptive_kl", "2404.02657",
                   "forward and reverse KL over all tokens, weighed by how far the models differ on the teacher's head"
                   " and on its tail",
                   "the head is the smallest set with half the mass, weights are constants", read_from="code"),
    "dkd": Variant("dataset", "decoupled_kd", "2203.08679",
                   "KL split at the reference token: token against rest, and within the rest",
                   "from image classification, class = token; alpha 1 and beta 2 are ours; half cross-entropy",
                   loss_kwargs={"beta": 2.0}, kd_weight=0.5, read_from="code"),
    "logit_std": Variant("dataset", "standardized_kl", "2403.01427",
                         "logits are standardised over the vocabulary before the KL; .1 cross-entropy, which alone"
                         " fixes the student's confidence",
                         "from image classification; KD and cross-entropy weigh 9 : 1, in its code 90 : 1 (9 and .1)",
                         kd_weight=0.9, read_from="code"),
    "bild": Variant("dataset", "bidirectional_logit_differences", "2406.13555",
                    "pairwise differences of the 8 best logits, once the teacher's 8, once the student's",
                    "its code adds plain KL on the prompt's positions", read_from="code"),
    "taid": Variant("dataset", "forward_kl", "2501.16937",
                    "the target moves from the student's own logits to the teacher's",
                    "the schedule reads the KL, the paper's code the cross-entropy", method="interpolation",
                    read_from="code"),
    "topk_kd": Variant("dataset", "top_k_kl", "2503.16870",
                       "KL of the teacher's 8 best tokens and one class for all others",
                       "the class of all others is ours", loss_kwargs={"top_k": 8}, read_from="code"),
    "rs_kd": Variant("dataset", "forward_kl", "2503.16870",
                     "cross-entropy with 12 tokens drawn from the teacher at every position",
                     "drawn from the teacher itself, no proposal", method="sampled_targets", read_from="summary"),
    "uld": Variant("dataset", "universal_logit", "2402.12030",
                   "probabilities are compared by rank, whatever the tokens",
                   "one tokenizer here, for which it is not made; 1.5 against 1 of cross-entropy", kd_weight=0.6,
                   read_from="code"),

    # another writer
    "fdistill_kl": Variant("teacher", "forward_kl", "2307.15190", "KL on the teacher's samples", answers=1.0,
                           read_from="code"),
    "fdistill_rkl": Variant("student", "reverse_kl", "2307.15190", "reverse KL on the student's samples",
                            read_from="code"),
    "fdistill_js": Variant("mixed", "jsd_by_writer", "2307.15190",
                           "JSD: its student part on student samples, its teacher part on teacher samples",
                           "one response per prompt, by a draw, in place of both; mean over tokens", answers=1.0,
                           student_share=(0.5, 0.5), mix_per="sequence", read_from="code"),
    "fdistill_tvd": Variant("mixed", "total_variation", "2307.15190",
                            "total variation, half on student samples and half on teacher samples",
                            "one response per prompt, by a draw, in place of both; mean over tokens", answers=1.0,
                            student_share=(0.5, 0.5), mix_per="sequence", read_from="code"),
    "distillm": Variant("mixed", "skew_forward_kl", "2402.03898",
                        "skew KL; references until validation worsens, then student samples, kept and replayed",
                        "validation NLL, asked eight times a run; no language-model loss on a pretraining corpus",
                        method="replay", read_from="code"),  # which says from batch to batch who of the mixed writes
    "distillm2": Variant("mixed", "skew_by_writer", "2503.07067",
                         "skew KL on teacher samples, skew reverse KL on student samples",
                         "one response per prompt, by a draw, in place of both, hence half the paper's sum; the"
                         " student's is drawn now, not once per epoch; mean over tokens;"
                         " the curriculum for alpha is off, as in its code",
                         answers=1.0, student_share=(0.5, 0.5), mix_per="sequence", read_from="paper, code"),
    "distillspec": Variant("student", "total_variation", "2310.08461",
                           "trains a draft: total variation is its rejection rate",
                           "total variation always, where the paper chooses a divergence by task and decoding",
                           read_from="abstract"),
    "opd": Variant("student", "policy_gradient", None,
                   "on-policy policy gradient: log teacher - log student of the sampled token is its advantage",
                   "one update per batch, hence no importance ratio", read_from="code"),
    "opd_baseline": Variant("student", "policy_gradient", "2605.07865",
                            "opd less what the position is worth on average: the same gradient, less noise",
                            loss_kwargs={"baseline": True}, read_from="paper"),
    "eopd": Variant("student", "entropy_gated_kl", None,
                    "reverse KL on student samples, and forward KL where the teacher is unsure",
                    "reconstruction from the abstract (PMLR v306, jin26e): above .5 nats", read_from="abstract"),
    "speckd": Variant("dataset", "gated_forward_kl", "2510.24021",
                      "KL only where the student's best token is among the teacher's K best",
                      "reconstruction; divided by all tokens", loss_kwargs={"accept_top_k": None}, read_from="summary"),
    "adaswitch": Variant("switching", "forward_kl", "2510.07842",
                         "the student writes until it strays, then the teacher to the end",
                         "reconstruction: above three times the mean KL of the up to four tokens before,"
                         " asked from the second token on; the teacher writes at the student's temperature",
                         sampling={"factor": 3.0, "window": 4}, read_from="summary"),
    "fresh_teacher": Variant("interleaved", "forward_kl", None,
                             "control: the teacher writes anew in every step, the student nothing",
                             "ours: skd that accepts nothing, whose proposals are paid for all the same",
                             sampling={"accept_rule": "none", "accept_on": "raw"}),
    "ca_opd": Variant("interleaved", "confidence_gated", None,
                      "the teacher's probability decides, not its rank; cross-entropy on what it replaced",
                      "after Li et al. 2026; KL of the 8 best and a class of all others elsewhere",
                      sampling={"accept_rule": "minprob", "accept_min_prob": ("cosine", 0.5, 0.25), "replace": "argmax",
                                "accept_on": "raw"}, read_from="paper"),
    "skd_k_steps": Variant("interleaved", "forward_kl", None,
                           "SKD with a K that grows over the run, from a third to twice",
                           "ours: a schedule that SKD does without",
                           sampling={"accept_rule": "topk", "accept_top_k": ("linear", 1 / 3, 2.0)}),
    "skd_k_along": Variant("interleaved", "forward_kl", None,
                           "SKD with a K that falls along the response, from twice to a third",
                           "SKD's code lowers K from block to block, down to 1; twice, a third and 32 tokens are ours",
                           sampling={"accept_rule": "topk_along", "first": 2.0, "last": 1 / 3, "along": 32.0,
                                     "accept_on": "raw"}, read_from="code"),
    "skd_entropy": Variant("interleaved", "forward_kl", None,
                           "SKD with a bar on the teacher's probability that falls where it is unsure",
                           "ours: typical acceptance", sampling={"accept_rule": "typical", "accept_on": "raw"}),

    # features, added to word-level KD on the references
    "fitnet": Variant("dataset", "forward_kl", "1412.6550",
                      "+ squared error of the middle block's output, behind a projector",
                      "together with KD, not as a stage before it", method="feature",
                      method_kwargs={"feature": "hidden_mse", "weight": 1.0}, read_from="code"),
    "hidden_cosine": Variant("dataset", "forward_kl", "1910.01108",
                             "+ 1 - cosine of the last block's output, behind a projector",
                             "the projector, since the widths differ; KL and cosine weigh 1 : 1, in its code KL at"
                             " T = 2, language-model loss and cosine 5 : 2 : 1", method="feature",
                             method_kwargs={"feature": "hidden_cosine", "at": "last"}, read_from="code"),
    "at": Variant("dataset", "forward_kl", "1612.03928", "+ where along the sequence the activations are large",
                  "position of a sequence = pixel; the sum over positions, not their mean", method="feature",
                  method_kwargs={"feature": "attention_transfer", "weight": 10.0}, read_from="code"),
    "sp": Variant("dataset", "forward_kl", "1907.09682", "+ which positions of a sequence resemble each other",
                  "position of a sequence = sample of a batch", method="feature",
                  method_kwargs={"feature": "similarity_preserving", "at": "last", "weight": 10.0}, read_from="code"),
    "rkd_distance": Variant("dataset", "forward_kl", "1904.05068", "+ distances between the positions of a sequence",
                            "16 positions of a sequence = samples of a batch; weight 1 in place of 25",
                            method="feature",
                            method_kwargs={"feature": "rkd_distance", "at": "last", "weight": 1.0, "most": 16},
                            read_from="code"),
    "rkd_angle": Variant("dataset", "forward_kl", "1904.05068", "+ angles between the positions of a sequence",
                         "16 positions of a sequence = samples of a batch; weight 2 in place of 50", method="feature",
                         method_kwargs={"feature": "rkd_angle", "at": "last", "weight": 2.0, "most": 16},
                         read_from="code"),
    "rkd": Variant("dataset", "forward_kl", "1904.05068", "+ distances and angles between the positions of a sequence",
                   "16 positions of a sequence = samples of a batch; weights 1 and 2 in place of 25 and 50",
                   method="feature",
                   method_kwargs={"feature": "rkd", "at": "last", "weight": 0.04, "most": 16}, read_from="code"),
    "fsp": Variant("dataset", "forward_kl", "10.1109/CVPR.2017.754",
                   "+ how features go from the middle block to the last",
                   "positions = pixels; together with KD, behind projectors", method="flow", read_from="code"),

    "dskd": Variant("dataset", "forward_kl", "2406.17328",
                    "both models' last features under one head: the teacher's under the student's,"
                    " the student's under the teacher's",
                    "one tokenizer; KL in both spaces at T = 1, in its code at T = 2 without the factor T squared;"
                    " the maps learn at the student's rate, in its code at one of their own; half cross-entropy",
                    kd_weight=0.5, method="dual_space", read_from="code"),

    # papers of other fields
    "cmkd": Variant("dataset", "cmkd", "2410.06561", "Pearson and Spearman correlation with the teacher in place of KL",
                    "restricted to the teacher's 32 best tokens, renormalised; ranks are soft (sigmoids of differences,"
                    " .1); weights by the entropy's share of the log of the whole vocabulary are a reconstruction;"
                    " half cross-entropy", kd_weight=0.5, read_from="abstract"),
    "ckd": Variant("dataset", "comparative", "2311.02253",
                   "differences between the logits of two positions are matched, not the logits",
                   "positions of one sequence = samples, all pairs in closed form; differences leave the mean logits"
                   " free, which cross-entropy fixes in place of the paper's labels' part",
                   loss_kwargs={"label_weight": 0.0}, kd_weight=0.5, read_from="code"),
    "lelp": Variant("dataset", "forward_kl", "2409.20449",
                    "+ the teacher's last feature splits each token into 4 parts, to be learned too",
                    "reconstruction, restricted to the teacher's 2 best tokens and the 256 most frequent ones;"
                    " directions scaled to unit deviation", method="subclasses", read_from="abstract, summary"),
    "rdd": Variant("dataset", "forward_kl", "2407.03719",
                   "+ cross-entropy on easy tokens first, then where one of both models has it hard",
                   "token = pixel; the teacher's middle block = auxiliary head; a median in place of .7; divided by all"
                   " tokens, with no least number that counts", method="regions", read_from="code"),
    "kdiga": Variant("dataset", "forward_kl", "2110.12072", "+ both losses must react alike to a change of the input",
                     "analogy: one-hot tokens = pixels, at the token and the teacher's 4 guesses for it;"
                     " gradients of unit length", method="input_gradient", method_kwargs={"weight": 0.05},
                     read_from="abstract, summary"),
    "lwkd": Variant("dataset", "cross_entropy", "2005.09163",
                    "soft labels of a classifier that never sees the text, and a discriminator",
                    "analogy: points with noise = its simple pictures", method="soft_labels", read_from="abstract"),
    "label_smoothing": Variant("dataset", "label_smoothing", "1512.00567",
                               "control for lwkd: .9 on the reference, .1 spread over the tokens in use",
                               method="smoothing", read_from="common knowledge"),
    "one": Variant("dataset", "cross_entropy", "1806.04606",
                   "no teacher: three branches on one trunk learn from their gated sum",
                   "one gate per position, even at first; one branch is the pair's, the others start anew",
                   method="branches", read_from="summary"),

    # another teacher
    "takd": Variant("dataset", "forward_kl", "1902.03393",
                    "a teacher's assistant of middle size is distilled first and then teaches",
                    "the assistant learns for three times the student's steps, since it starts from nothing",
                    teacher="assistant", read_from="code"),
    "sftn": Variant("dataset", "forward_kl", "2102.07650",
                    "the teacher first learns on together with a student's upper half",
                    "reconstruction: one branch behind the middle block; the weights of the three losses (1 each)"
                    " are ours, and so is the rate", teacher="sftn", read_from="summary"),
}

ONLINE_TEACHER = {  # of train_okd.py
    # another divergence to the fixed teacher
    "fixed_jsd": OnlineVariant("2306.13649", "Jensen-Shannon divergence to the fixed teacher on the references",
                               student_divergence="generalized_jsd", read_from="code"),
    # the online teacher
    "okd_collapse": OnlineVariant(None, "control: the LoRA learns from the student alone, at the student's rate",
                                  module="flag", alpha=1.0, module_lr=1.0),
    "okd_reverse_kl": OnlineVariant("2409.12512", "OKD with reverse KL on the student's side", module="flag",
                                    student_divergence="reverse_kl", read_from="paper"),
    "okd_jsd": OnlineVariant("2409.12512", "OKD with the JSD on the student's side", module="flag",
                             student_divergence="generalized_jsd", read_from="paper"),
    "okd_prefix": OnlineVariant("2409.12512", "OKD with gated trainable keys and values", module="prefix",
                                deviation="the gate, so that it starts as the identity", read_from="paper"),
    "okd_ptuning": OnlineVariant("2409.12512", "OKD with trainable virtual tokens", module="ptuning",
                                 deviation="the virtual tokens come out of a small network and have no positions",
                                 read_from="paper"),
    "okd_adapter": OnlineVariant("1902.00751", "OKD with bottleneck adapters behind every block", module="adapter",
                                 deviation="one behind each block, where the paper has one behind either part of it",
                                 read_from="common knowledge"),
    "okd_full": OnlineVariant(None, "OKD with all of the teacher's weights trainable, at .02 of the student's rate",
                              module="full", module_lr=0.02),
    # relatives
    "dml": OnlineVariant("1706.00384", "two peers, both with cross-entropy and KL, all weights of both trainable",
                         module="full", student_divergence="forward_kl", student_kd=0.5, alpha=0.5, module_lr=1.0,
                         teacher_divergence="reverse_kl", update="simultaneous",
                         deviation="starts from a pretrained teacher, not from two equal peers;"
                                   " both terms are halved, both move at once", read_from="summary"),
    "prokt": OnlineVariant("2107.09305",
                           "the whole teacher learns the references while kept near the student,"
                           " then the student follows",
                           module="full", student_divergence="forward_kl", alpha=0.5, module_lr=0.02,
                           teacher_divergence="forward_kl", update="alternating",
                           deviation="from the abstract: the direction of its KL and the teacher's rate are readings;"
                                     " both terms are halved", read_from="abstract"),
    "pesf_kd": OnlineVariant("2205.15308", "an adapter on the last feature; both take squared error and cross-entropy",
                             module="last_adapter", student_divergence="squared_error", student_kd=0.5, alpha=0.5,
                             teacher_divergence="squared_error",
                             deviation="the loss of its language part, sum over the vocabulary in place of the mean;"
                                       " its feature term is left out; temperature 1, in its code 5;"
                                       " its code's rate for the adapter is --module-lr 0.2", read_from="code"),
    "promptkd": OnlineVariant("2402.12842",
                              "a soft prompt learns KL from the adapted teacher to the student and to the original one,"
                              " on student samples",
                              writer="student", module="ptuning", rank=7, module_lr=1.0,
                              student_divergence="reverse_kl", alpha=1.0, teacher_divergence="forward_kl",
                              anchor=1.0, anchor_decay=True, update="alternating",
                              deviation="the prompt comes out of a small network, starts at random and has no"
                                        " positions", read_from="code"),
    "metadistil": OnlineVariant("2106.04570",
                                "meta-gradient: one student step towards the module must lower the loss"
                                " on held-out references",
                                module="flag", student_divergence="forward_kl", meta_gradient="exact",
                                update="alternating",
                                deviation="a module in place of all weights; KL alone; the inner step is one of plain"
                                          " descent, at .1; a fifth of the prompts is held out,"
                                          " its code takes the validation set", read_from="code"),
    "ikd": OnlineVariant("2109.04641",
                         "the same meta-gradient, its second derivative by a difference of two first ones",
                         module="flag", student_divergence="forward_kl", meta_gradient="difference",
                         update="alternating",
                         deviation="reconstruction from the abstract and MetaDistil's code: the difference is that of"
                                   " DARTS, all else as metadistil", read_from="abstract"),
    # what nobody has: an online teacher on tokens that the student writes
    "okd_on_policy": OnlineVariant(None, "OKD with both KLs on student samples", writer="student", module="flag"),
    "okd_skd": OnlineVariant(None, "OKD with both KLs on SKD's interleaved samples", writer="interleaved",
                             module="flag"),
}
# fmt: on
