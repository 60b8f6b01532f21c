"""Statistics as pure functions: no file, no run directory and no printed text.

- `continual`: the figures, each defined once as terms of the score matrix.
- `score_matrix`, `figure_terms`: the matrix of one run, and the terms of which figures are made.
- `estimates`: a quantity by seed and by item, and its arithmetic.
- `intervals`: t intervals over seeds, and over items or clusters of items.
- `paired`: the difference of two estimates, with all that says how sure it is.
- `significance`: p values, items lost and gained, Holm's correction, rank correlation.
- `by_item`: items forgotten and gained, with and without what guessing explains.
- `power`, `sampling`: detectable effects, pass@k, the noise floor. `two_way`: one interval for another seed and other items.
- `design`: the runs that a study needs to see a difference.
- `learning`: retention at equal learning, whether two methods learned equally at the end, the rate that other seeds choose.
- `claim_verdicts`: supported, contradicted or not resolved.
"""
