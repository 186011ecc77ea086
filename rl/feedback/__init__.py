"""From many judgements to what is learned: the maths of feedback, on tensors and plain numbers.

`combine` puts named rewards together and `dual` finds the multipliers of constraints, `ensemble`
joins several scores of one reply, `ranking` pairwise judgements of many, `implicit` reads the
policy itself as a reward; `curation` and `selection` choose what to keep and what to label, and
`mixture` finds groups of annotators who agree.
"""
