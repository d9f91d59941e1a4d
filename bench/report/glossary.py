"""What every word and column of a report means, for readers who have not seen the paper."""

from bench.metrics import METRICS

WORLDS = {
    "gaussian": "Latents are a mixture of Gaussians, and rewards are linear, quadratic or sigmoid "
    "in a linear network of the decoded latent: every value has a closed form, the sigmoid's up "
    "to a quadrature good to eight digits.",
    "shapes": "Captioned 32 x 32 pictures of flat shapes, and a trained miniature of Stable "
    "Diffusion 3.5 (autoencoder, text encoder, flow transformer) with the rewards CLIP, aesthetic "
    "and HPS, trained in miniature too.",
}
IDEAS = {
    "noisy latent z_t, noise level sigma": "A clean latent z_0 (what an image is decoded from) "
    "mixed with Gaussian noise: z_t = (1 - t) z_0 + t eps, sigma = t. At 0 it is clean, at 1 pure "
    "noise.",
    "value": "What reward to expect once a noisy latent is finished. The mean value is the "
    "average reward E[r(z_0) | z_t]; the soft value (1/lambda) log E[exp(lambda r(z_0)) | z_t] "
    "counts high rewards more, and is what guidance and steering need in theory.",
    "posterior": "Which clean latents count as possible. prompt: those that fit both the noisy "
    "latent and the prompt. data: those that fit the noisy latent, whatever the prompt. A "
    "sampler's name (model): what that sampler would make of the noisy latent.",
    "target and estimand": "What an estimator says it estimates, and what it is judged against. "
    "Where they differ, part of the bias is a difference of aims.",
    "data and sampler latents": "Clean latents of the data with noise added, or latents that a "
    "sampler passed through on its way.",
    "truth": "What estimators are judged against. Exact where a world has closed forms. Else an "
    "average over a bank: the rewards of clean latents, weighted by how likely each is to have "
    "become the noisy latent; the clean latent that was noised is one of them.",
    "floor of the truth": "The RMSE that a truth which is an average has itself, estimated from "
    "the two halves of its bank. Absolute RMSE contains this constant (mean squared errors add); "
    "signed biases of mean values and differences of squared errors do not. Squared biases, and "
    "ratios such as skill or a quarter of an RMSE, contain it too and make estimators look more "
    "alike. "
    "With fewer than two effective members it is a lower bound (\u2265): the bank cannot tell.",
    "realised reward": "The reward of the very clean latent that was noised. On average it equals "
    "the true value, so it can stand in for the truth where that is unknown.",
    "noise floor": "By how much two equal methods seem to differ in time on this machine: of a "
    "method timed against itself in turns, in fresh processes, 95 % of the ratios lie within it "
    "(stitchbench calibrate).",
    "95 % interval": "In [brackets]. Latents of one prompt are not independent, so each prompt "
    "counts once: a t interval over prompts, or a BCa bootstrap from 50 prompts on.",
    "clearly better, clearly worse": "The difference, paired by prompt, has an interval that "
    "excludes 0 and a p-value below 0.05 after Holm's adjustment for the number of comparisons in "
    "the table. Two intervals that overlap say nothing by themselves; neither does 'not clear' "
    "prove that two are equal.",
}
REFERENCES = {
    "truth": "The value that all others are judged against: its own errors are 0 by definition.",
    "constant": "The prompt's value before anything is seen, whatever the latent looks like: the "
    "bar to clear.",
    "terminal": "The reward of the noisy latent taken as if it were clean.",
    "tweedie": "The reward of the denoiser's one-step guess of the clean latent.",
    "MC (monte_carlo)": "The average reward of N rollouts of k solver steps from the noisy "
    "latent. The kernel is how they are drawn: only reversal (and exact, which needs the truth) "
    "ends in the posterior, given a good denoiser and enough steps; ode, square, sigma and "
    "flow_grpo keep the noise levels' distributions but finish a given latent differently. Its "
    "times include drawing random numbers, one reproducible stream per rollout: about a third of "
    "them on one CPU thread.",
    "linear stitch (linear_stitch)": "A frozen generator's first blocks joined to a reward "
    "model's last blocks by a closed-form linear layer: stage 1 of StitchVM. The published method "
    "also finetunes the result.",
}
COLUMNS = {
    "bias": "bias",
    "variance": "variance",
    "Spearman": "spearman",
    "pairwise": "pairwise",
    "regret": "regret",
    "gradient cosine": "gradient_cosine",
    "gradient error": "gradient_error",
}
DERIVED = {
    "RMSE": "Root of the mean squared error against the true value, in units of the reward.",
    "offset-free RMSE": "The same after removing each prompt's offset, which changes no choice "
    "between latents of a prompt.",
    "skill": "1 - MSE / MSE(constant): 1 is the truth, 0 no better than the prompt's mean, "
    "negative worse than that.",
    "prompts won": "Share of prompts on which the squared error is below the constant's, ties "
    "half: the probability of improvement on it (Agarwal et al., 2021, arXiv:2108.13264), with "
    "Wilson's interval. A few prompts that are far off cannot move it.",
    "time per value": "Median seconds per latent in a batch.",
    "cost / Tweedie": "Time per value over Tweedie's at the same noise level.",
    "as good, but dearer": "Estimators not clearly worse than the one of lowest RMSE, and at "
    "most a quarter above it; the lowest is marked unless it is the trusted one.",
    "peak memory": "Largest tensor memory during one call on a batch, above weights and inputs.",
    "calls per value": "What one value asks of the models: full denoiser calls (velocity), "
    "partial ones (trunk, with the blocks run), decodes, reward calls, and calls of a reward's "
    "last blocks alone (tail).",
    "detectable skill gap": "The smallest true difference in skill between the trusted estimator "
    "and the one of lowest RMSE (or the runner-up) that a test on these prompts finds 80 % of the "
    "time. A smaller gap may be there unseen.",
    "against constant, against best": "Whether the squared error is clearly better or worse than "
    "the constant's, or than the best candidate's; as good: not clearly worse than that "
    "and within a quarter of its RMSE; unclear: neither.",
}


def columns() -> dict[str, str]:
    """Every column of a table and what it means."""
    units = {"reward": " (units of the reward)", "reward^2": " (squared units of the reward)"}
    found = {}
    for heading, name in COLUMNS.items():
        metric = METRICS[name]
        about = f"{metric.about[0].upper()}{metric.about[1:]}"
        found[heading] = f"{about}{units.get(metric.unit, '')}; best {BEST[metric.better]}."
    return found | DERIVED


BEST = {"zero": "near 0", "low": "low", "high": "high"}
