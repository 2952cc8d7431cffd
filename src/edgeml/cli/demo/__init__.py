"""``edgeml demo``: the whole job on embedded defaults, with real processes on loopback.

``data/`` holds what ``examples/train_digits.py`` writes: three small models, and evaluation data
cut from scikit-learn's digits (Optical Recognition of Handwritten Digits, E. Alpaydin and C.
Kaynak, UCI Machine Learning Repository).
"""
