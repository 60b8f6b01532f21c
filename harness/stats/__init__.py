"""Statistics as pure functions: no file, no run directory and no printed text.

- `continual`: the figures, each defined once as terms of the score matrix.
- `score_matrix`, `figure_terms`: the matrix of one run, and the terms that figures add up.
- `estimates`: a quantity by seed and by item, and its arithmetic.
- `intervals`: a mean with its interval, and t intervals over seeds.
- `two_way`: one interval for another seed and other items.
- `paired`: the difference of two estimates, with its intervals, tests and detectable effect.
- `significance`: p values, items lost and gained, Holm's correction, rank correlation.
- `by_item`: items forgotten and gained, with and without the share that guessing explains.
- `power`: detectable effects. `sampling`: pass@k, the noise floor, ratios.
- `design`: the seeds and items that a study needs to find a difference.
- `learning`: retention at equal learning, whether two methods learned equally, the learning rate that other seeds choose.
- `looks`: the level of a test at each of several planned numbers of seeds, and the fewest seeds that get a verdict.
- `claim_verdicts`: supported, contradicted, equivalent or not resolved.
"""
