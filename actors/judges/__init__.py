"""Judges that are models: reward models and their kin, text classifiers, and judges of pairs.

`actors.reward.build_judge` is the one place that knows which kind is which class.
"""
